"""An encoder of ModernBERT-base's shape (Warner et al. 2024): 22 layers of 768, rows of 512.

  python -m electra_jax.main --config=configs/modern_base.py --config.data.source='corpus/*.txt.gz'

Meant for 8 GPUs or a v5e-16 slice. The generator has the same width and half the depth, as in DeBERTaV3 (He et al. 2021), so that
transformers' ModernBert opens both towers. Rates are our choice, not a published recipe.
"""

from electra_jax.config import default_config, with_arguments


def get_config(arguments=''):
  c = default_config()
  c.name = 'modern_base'
  c.sequence_length, c.batch_size, c.steps = 512, 256, 766_000
  c.model.update(
    family='modern',
    hidden_size=768,
    embedding_size=768,
    num_layers=22,
    num_heads=12,
    intermediate_size=1152,
    layer_norm_eps=1e-5,
    dropout=0.0,
    attention_dropout=0.0,
  )
  c.generator.update(hidden_fraction=1.0, layers_fraction=0.5)
  c.optimizer.update(learning_rate=5e-4, b2=0.98, bias_correction=True)
  return with_arguments(c, arguments)

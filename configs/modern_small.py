"""A small encoder of ModernBERT's family, rows of 512: rotary positions, GeGLU, no biases, local attention in two layers of three.

  python -m electra_jax.main --config=configs/modern_small.py --config.data.source='corpus/*.txt.gz'

Meant for one GPU or a v5e-4 slice. The generator has the same width and half the depth, as in DeBERTaV3 (He et al. 2021), so that
transformers' ModernBert opens both towers. Sizes and rates are our choice, not a published recipe.
"""

from electra_jax.config import default_config, with_arguments


def get_config(arguments=''):
  c = default_config()
  c.name = 'modern_small'
  c.sequence_length, c.batch_size, c.steps = 512, 128, 250_000
  c.model.update(
    family='modern',
    hidden_size=384,
    embedding_size=384,
    num_layers=12,
    num_heads=6,
    intermediate_size=576,
    layer_norm_eps=1e-5,
    dropout=0.0,
    attention_dropout=0.0,
  )
  c.generator.update(hidden_fraction=1.0, layers_fraction=0.5)
  c.optimizer.update(learning_rate=1e-3, warmup_steps=5_000, b2=0.98, bias_correction=True)
  return with_arguments(c, arguments)

"""An encoder of ModernBERT-base's shape (Warner et al. 2024): 22 layers of 768, rows of 512 tokens.

  python -m electra_jax.main --config=configs/modern_base.py --config.data.source='corpus/*.txt.gz'

Meant for 8 GPUs or a v5e-16 slice. The generator has the same width and half the depth, as in
DeBERTaV3 (He et al. 2021), so that ModernBert of transformers opens both towers. Learning rates are
our choice, not a published recipe.
"""

import ml_collections

from electra_jax.config import default_config, with_arguments


def get_config(arguments: str = '') -> ml_collections.ConfigDict:
  """The config; `arguments` are those after the colon of --config=FILE:name=value,...."""
  c = default_config()
  c.name = 'modern_base'
  c.sequence_length = 512
  c.batch_size = 256
  c.steps = 766_000
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

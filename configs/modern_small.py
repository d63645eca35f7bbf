"""A small encoder of ModernBERT's family, with rows of 512 tokens.

  python -m electra_jax.main --config=configs/modern_small.py --config.data.source='corpus/*.txt.gz'

It has rotary positions, GeGLU, no biases, and local attention in two of three layers. Meant for one
GPU or a v5e-4 slice. The generator has the same width and half the depth, as in DeBERTaV3 (He et
al. 2021), so that ModernBert of transformers opens both towers. Sizes and learning rates are our
choice, not a published recipe.
"""

import ml_collections

from electra_jax.config import default_config, with_arguments


def get_config(arguments: str = '') -> ml_collections.ConfigDict:
  """The config; `arguments` are those after the colon of --config=FILE:name=value,...."""
  c = default_config()
  c.name = 'modern_small'
  c.sequence_length = 512
  c.batch_size = 128
  c.steps = 250_000
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

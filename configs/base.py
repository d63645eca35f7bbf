"""ELECTRA-Base as published (Clark et al. 2020, table 6): 110 M parameters, rows of 512 tokens.

  python -m electra_jax.main --config=configs/base.py --config.data.source='corpus/*.txt.gz'

The parameters are those of the discriminator. Meant for 8 GPUs or a v5e-16 slice. The published run
saw 100 billion tokens in 4 days on 16 TPU v3 and reached 85.1 on GLUE's development sets (table 1).
It also starts on a laptop, and reports the cost of a step. For steps of a few seconds:

  python -m electra_jax.main --config=configs/base.py:batch=4,seq=128,steps=100,warmup=10
"""

import ml_collections

from electra_jax.config import default_config, with_arguments


def get_config(arguments: str = '') -> ml_collections.ConfigDict:
  """The config; `arguments` are those after the colon of --config=FILE:name=value,...."""
  c = default_config()
  c.name = 'base'
  c.sequence_length = 512
  c.batch_size = 256
  c.steps = 766_000
  c.model.update(hidden_size=768, embedding_size=768, num_heads=12, intermediate_size=3072)
  c.generator.hidden_fraction = 1 / 3
  c.optimizer.learning_rate = 2e-4
  return with_arguments(c, arguments)

"""ELECTRA-Large as published (Clark et al. 2020, table 6): 335 M parameters, rows of 512 tokens.

  python -m electra_jax.main --config=configs/large.py --config.data.source='corpus/*.txt.gz'

The parameters are those of the discriminator. Meant for a v5e-64 or v5p-32 slice. 400 thousand
steps (419 billion tokens) are the paper's ELECTRA-400K, which has 89.0 on GLUE's development sets
(table 2); --config=configs/large.py:steps=1750000 is the released ELECTRA-1.75M, which has 89.5.
"""

import ml_collections

from electra_jax.config import default_config, with_arguments


def get_config(arguments: str = '') -> ml_collections.ConfigDict:
  """The config; `arguments` are those after the colon of --config=FILE:name=value,...."""
  c = default_config()
  c.name = 'large'
  c.sequence_length = 512
  c.batch_size = 2048
  c.steps = 400_000
  c.model.update(
    hidden_size=1024, embedding_size=1024, num_layers=24, num_heads=16, intermediate_size=4096
  )
  c.objective.mask_rate = 0.25
  c.optimizer.learning_rate = 2e-4
  c.model.remat = 'dots'
  return with_arguments(c, arguments)

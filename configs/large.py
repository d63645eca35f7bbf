"""ELECTRA-Large as published (Clark et al. 2020, table 6): 335 M parameters in the discriminator, rows of 512.

  python -m electra_jax.main --config=configs/large.py --config.data.source='corpus/*.txt.gz'

Meant for a v5e-64 or v5p-32 slice. 400 thousand steps (419 billion tokens) are the paper's ELECTRA-400K, 89.0 on GLUE's development
sets (table 2); --config=configs/large.py:steps=1750000 is the released ELECTRA-1.75M, 89.5.
"""

from electra_jax.config import default_config, with_arguments


def get_config(arguments=''):
  c = default_config()
  c.name = 'large'
  c.sequence_length, c.batch_size, c.steps = 512, 2048, 400_000
  c.model.update(
    hidden_size=1024, embedding_size=1024, num_layers=24, num_heads=16, intermediate_size=4096
  )
  c.objective.mask_rate = 0.25
  c.optimizer.learning_rate = 2e-4
  c.model.remat = 'dots'
  return with_arguments(c, arguments)

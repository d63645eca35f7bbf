"""ELECTRA-Small as published (Clark et al. 2020, table 6): 14 M parameters, rows of 128 tokens.

  python -m electra_jax.main --config=configs/small.py --config.data.source='corpus/*.txt.gz'

The parameters are those of the discriminator. Meant for one GPU or a v5e-4 slice. The published run
saw 16.4 billion tokens in 4 days on one V100 and reached 79.9 on GLUE's development sets (table 1).
The released "Small++" is another model: rows of 512, 4 M steps, a generator of full width.
"""

import ml_collections

from electra_jax.config import default_config, with_arguments


def get_config(arguments: str = '') -> ml_collections.ConfigDict:
  """The config; `arguments` are those after the colon of --config=FILE:name=value,...."""
  c = default_config()  # the defaults are those of Small
  c.name = 'small'
  return with_arguments(c, arguments)

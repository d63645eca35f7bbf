"""ELECTRA-Small as published (Clark et al. 2020, table 6): 14 M parameters in the discriminator, rows of 128.

  python -m electra_jax.main --config=configs/small.py --config.data.source='corpus/*.txt.gz'

Meant for one GPU or a v5e-4 slice. The published run saw 16.4 billion tokens in 4 days on one V100 and reached 79.9 on GLUE's
development sets (table 1). The released "Small++" is another model: rows of 512, 4 M steps, a generator of full width.
"""

from electra_jax.config import default_config, with_arguments


def get_config(arguments=''):
  c = default_config()  # its defaults are those of Small
  c.name = 'small'
  return with_arguments(c, arguments)

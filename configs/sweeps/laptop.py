"""Three learning rates of configs/tiny.py on the bundled text: a first sweep, for a laptop's CPU.

  python -m electra_jax.main --mode=sweep --config=configs/sweeps/laptop.py

Each of the six runs trains on 1.6 million tokens, and all of the text is in the package. The table
compares how well the discriminators find replaced tokens of the held-out documents.
"""

import ml_collections

from electra_jax.sweep.config import default_config


def get_config() -> ml_collections.ConfigDict:
  """The sweep."""
  c = default_config()
  c.name = 'laptop'
  c.base = 'configs/tiny.py:steps=800,warmup=80'
  c.fields = (('eval_every', 800), ('save_every', 200))
  c.runs = tuple(
    (f'rate-{rate:g}', {'optimizer.learning_rate': rate}) for rate in (1e-3, 2e-3, 4e-3)
  )
  c.seeds = (0, 1)
  return c

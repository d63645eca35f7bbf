r"""STS-B, how similar two sentences are, from 0 to 5: ten epochs as published.

  python -m electra_jax.main --mode=finetune --config=configs/finetune/stsb.py \
      --config.init=runs/small --config.data.source=glue

Each of the 5,749 pairs is also trained on with its sentences swapped (Clark et al. 2020, appendix
B).
"""

import ml_collections

from electra_jax.finetune.config import default_config


def get_config() -> ml_collections.ConfigDict:
  """The fine-tuning config."""
  c = default_config()
  c.name = c.task = 'stsb'
  return c

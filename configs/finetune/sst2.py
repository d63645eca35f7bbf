r"""SST-2, whether a film review is positive: 67,349 phrases, three epochs as published.

  python -m electra_jax.main --mode=finetune --config=configs/finetune/sst2.py \
      --config.init=runs/small --config.data.source=glue

The recipe is that of Clark et al. 2020, appendix B. On a laptop add --config.train_examples=10000,
and report it with the score.
"""

import ml_collections

from electra_jax.finetune.config import default_config


def get_config() -> ml_collections.ConfigDict:
  """The fine-tuning config."""
  c = default_config()
  c.name = c.task = 'sst2'
  return c

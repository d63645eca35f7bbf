r"""SQuAD 1.1, two epochs on windows of 512 tokens (Clark et al. 2020, appendix B).

  python -m electra_jax.main --mode=finetune --config=configs/finetune/squad1.py \
      --config.init=runs/base --config.data.source=squad

The folder squad holds train-v1.1.json and dev-v1.1.json.
"""

import ml_collections

from electra_jax.finetune.config import default_config


def get_config() -> ml_collections.ConfigDict:
  """The fine-tuning config."""
  c = default_config()
  c.name = c.task = 'squad1'
  c.save_every = 1_000
  return c

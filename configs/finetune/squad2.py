r"""SQuAD 2.0, two epochs on windows of 512 tokens (Clark et al. 2020, appendix B).

  python -m electra_jax.main --mode=finetune --config=configs/finetune/squad2.py \
      --config.init=runs/base --config.data.source=squad

A third of the questions has no answer. The folder squad holds train-v2.0.json and dev-v2.0.json.
The threshold from which on no answer is given is chosen on dev.
"""

import ml_collections

from electra_jax.finetune.config import default_config


def get_config() -> ml_collections.ConfigDict:
  """The fine-tuning config."""
  c = default_config()
  c.name = c.task = 'squad2'
  c.save_every = 1_000
  return c

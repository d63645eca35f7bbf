r"""Parts of speech of a Universal Dependencies treebank.

  python -m electra_jax.main --mode=finetune --config=configs/finetune/pos.py \
      --config.init=runs/small --config.data.source=UD_English-EWT

The tags are UPOS, or XPOS with --config.data.tags=xpos. The folder holds the treebank's .conllu
files.
"""

import ml_collections

from electra_jax.finetune.config import default_config


def get_config() -> ml_collections.ConfigDict:
  """The fine-tuning config."""
  c = default_config()
  c.name = c.task = 'pos'
  return c

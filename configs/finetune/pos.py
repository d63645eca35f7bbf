"""Parts of speech of a Universal Dependencies treebank: UPOS, or XPOS with --config.data.tags=xpos.

  python -m electra_jax.main --mode=finetune --config=configs/finetune/pos.py --config.init=runs/small --config.data.source=UD_English-EWT

The folder holds the treebank's .conllu files.
"""

from electra_jax.finetune.config import default_config


def get_config():
  c = default_config()
  c.name = c.task = 'pos'
  return c

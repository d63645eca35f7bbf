r"""Linear probes for the parts of speech of a Universal Dependencies treebank, per layer.

  python -m electra_jax.main --mode=probe --config=configs/probe/pos.py --workdir=runs/small \
      --config.data.source=UD_English-EWT

The tags are UPOS, or XPOS with --config.data.tags=xpos. Other tasks of tags or classes:
--config.task=ner, or classification with --config.data.train and --config.data.dev.
"""

import ml_collections

from electra_jax.finetune.probe_config import default_config


def get_config() -> ml_collections.ConfigDict:
  """The config of the probes."""
  c = default_config()
  c.name = c.task = 'pos'
  return c

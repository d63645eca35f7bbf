r"""Named entities, from files of words and tags in columns.

  python -m electra_jax.main --mode=finetune --config=configs/finetune/ner.py \
      --config.init=runs/small --config.data.source=conll2003

With --config.task=chunking phrases. The folder holds one file each whose name contains train, dev
(valid, testa) and test (testb); or name them with --config.data.train and so on. Scores are those
of conlleval and seqeval. Files in the tagging scheme of CoNLL-2003 (IOB1) require
--config.data.repair_tags=repair, UNER's English training file --config.data.ignore_labels=OTH,O.
"""

import ml_collections

from electra_jax.finetune.config import default_config


def get_config() -> ml_collections.ConfigDict:
  """The fine-tuning config."""
  c = default_config()
  c.name = c.task = 'ner'
  return c

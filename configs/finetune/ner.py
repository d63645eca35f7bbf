"""Named entities, or chunks with --config.task=chunking: files of words and tags in columns, or numbered with comments.

  python -m electra_jax.main --mode=finetune --config=configs/finetune/ner.py --config.init=runs/small --config.data.source=conll2003

The folder holds one file each whose name has train, dev (valid, testa) and test (testb); or name them with --config.data.train and so on.
Scored as conlleval and seqeval do. Files as CoNLL-2003 was handed out (IOB1) want --config.data.repair_tags=repair, UNER's English
training file --config.data.ignore_labels=OTH,O.
"""

from electra_jax.finetune.config import default_config


def get_config():
  c = default_config()
  c.name = c.task = 'ner'
  return c

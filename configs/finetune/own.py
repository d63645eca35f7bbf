"""One's own labelled texts, pairs, values, spans or tags, from TSV, CSV or JSON lines with named columns.

  python -m electra_jax.main --mode=finetune --config=configs/finetune/own.py --config.init=runs/small \\
      --config.data.train=train.csv --config.data.dev=dev.csv --config.data.text=review --config.data.label=stars

--config.task is classification (labels as found in the training data), regression, tagging or span; a second text is --config.data.pair.
"""

from electra_jax.finetune.config import default_config


def get_config():
  c = default_config()
  c.name, c.task = 'own', 'classification'
  return c

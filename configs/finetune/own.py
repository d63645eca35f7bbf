r"""Your own labeled texts, pairs, values, spans or tags, from tables in any format.

  python -m electra_jax.main --mode=finetune --config=configs/finetune/own.py \
      --config.init=runs/small --config.data.train=train.csv --config.data.dev=dev.csv \
      --config.data.text=review --config.data.label=stars

Columns are named. --config.task is classification (labels as found in the training data),
multilabel, regression, ranking, tagging or span; --config.data.pair names the column of a second
text. docs/finetuning.md has an example of each.
"""

import ml_collections

from electra_jax.finetune.config import default_config


def get_config() -> ml_collections.ConfigDict:
  """The fine-tuning config."""
  c = default_config()
  c.name = 'own'
  c.task = 'classification'
  return c

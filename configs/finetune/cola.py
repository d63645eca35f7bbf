r"""CoLA, whether a sentence is acceptable English: 8,551 sentences, three epochs as published.

  python -m electra_jax.main --mode=finetune --config=configs/finetune/cola.py \
      --config.init=runs/small --config.data.source=glue

The recipe is that of Clark et al. 2020, appendix B. The folder glue holds CoLA/train.tsv and
CoLA/dev.tsv as the GLUE benchmark distributes them.
"""

import ml_collections

from electra_jax.finetune.config import default_config


def get_config() -> ml_collections.ConfigDict:
  """The fine-tuning config."""
  c = default_config()
  c.name = c.task = 'cola'
  return c

"""CoLA, is a sentence acceptable English: the published recipe, three epochs of 8,551 sentences (Clark et al. 2020, appendix B).

  python -m electra_jax.main --mode=finetune --config=configs/finetune/cola.py --config.init=runs/small --config.data.source=glue

The folder glue holds CoLA/train.tsv and CoLA/dev.tsv as the GLUE benchmark gives them out.
"""

from electra_jax.finetune.config import default_config


def get_config():
  c = default_config()
  c.name = c.task = 'cola'
  return c

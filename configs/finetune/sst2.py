"""SST-2, is a film review good or bad: three epochs of 67,349 phrases (Clark et al. 2020, appendix B).

  python -m electra_jax.main --mode=finetune --config=configs/finetune/sst2.py --config.init=runs/small --config.data.source=glue

On a laptop add --config.train_examples=10000, and say so beside the score.
"""

from electra_jax.finetune.config import default_config


def get_config():
  c = default_config()
  c.name = c.task = 'sst2'
  return c

"""STS-B, how alike two sentences are, 0 to 5: ten epochs of 5,749 pairs and the same pairs swapped (Clark et al. 2020, appendix B).

python -m electra_jax.main --mode=finetune --config=configs/finetune/stsb.py --config.init=runs/small --config.data.source=glue
"""

from electra_jax.finetune.config import default_config


def get_config():
  c = default_config()
  c.name = c.task = 'stsb'
  return c

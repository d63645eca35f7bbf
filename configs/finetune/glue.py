"""All of GLUE, ten trials a task, as the paper reports medians of ten (Clark et al. 2020, section 3.1); ends in one table.

  python -m electra_jax.main --mode=finetune --config=configs/finetune/glue.py --config.init=runs/base --config.data.source=glue

The folder glue holds the tasks' folders as GLUE's download script makes them. Epochs are the published ones, by task. For fewer tasks:
--config.task=cola,rte,stsb. Killed, the same command goes on.
"""

from electra_jax.finetune.config import default_config


def get_config():
  c = default_config()
  c.name = 'glue'
  c.task = 'cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte,wnli'
  c.num_trials = 10
  c.save_every = 5_000
  return c

r"""All tasks of GLUE with ten trials each, and one table of the results.

  python -m electra_jax.main --mode=finetune --config=configs/finetune/glue.py \
      --config.init=runs/base --config.data.source=glue

The paper reports medians of ten trials (Clark et al. 2020, section 3.1). The folder glue holds the
tasks' folders as GLUE's download script makes them. Epochs are the published ones of each task. For
fewer tasks: --config.task=cola,rte,stsb. The same command resumes a run that was stopped.
"""

import ml_collections

from electra_jax.finetune.config import default_config


def get_config() -> ml_collections.ConfigDict:
  """The fine-tuning config."""
  c = default_config()
  c.name = 'glue'
  c.task = 'cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte,wnli'
  c.num_trials = 10
  c.save_every = 5_000
  return c

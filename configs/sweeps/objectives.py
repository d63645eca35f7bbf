"""The paper's comparison of objectives at equal FLOPs.

  python -m electra_jax.main --mode=sweep --config=configs/sweeps/objectives.py:data

electra and mlm are compared at three budgets, each twice the one before, and the other objectives
at the largest. `data` is a folder with pretrain/openstax_ccby.txt.xz and wiki_cc_by_sa.txt.xz,
glue/CoLA, glue/STS-B and tagging/ud_ewt. Each of the 27 runs is fine-tuned on three tasks and
probed with its encoder frozen. Meant for a CPU: 1.2 million parameters. A run of the largest budget
takes six minutes on one core and its tasks three; the whole sweep takes three and a half hours.
Learning rates are those of a pilot (docs/results.md).
"""

import pathlib
from typing import Any

import ml_collections

from electra_jax.sweep.config import default_config

# FLOPs of training, forward and backward.
BUDGETS = {'1': 3e12, '2': 6e12, '4': 1.2e13}
# Learning rates of objectives that do not use that of configs/nano.py.
RATES = {'mlm': 2e-3, 'all_tokens_mlm': 2e-3}
RESULTS = pathlib.Path(__file__).resolve().parents[2] / 'benchmarks' / 'results'


def run(objective: str, budget: str) -> tuple[str, dict[str, Any]]:
  """The name of a run and what it changes."""
  changes: dict[str, Any] = {'objective.name': objective, 'budget_flops': BUDGETS[budget]}
  if objective in RATES:
    changes['optimizer.learning_rate'] = RATES[objective]
  return f'{objective}@{budget}', changes


def get_config(data: str = 'data') -> ml_collections.ConfigDict:
  """The sweep; `data` is the folder with the corpora and tasks."""
  c = default_config()
  c.name = 'objectives'
  c.base = 'configs/nano.py'
  c.seeds = (0, 1, 2)
  c.rows = 4_096
  # The results in docs/results.md; one is used where its data is the same.
  c.known = (str(RESULTS / 'objectives.jsonl'),)
  books = f'{data}/pretrain/openstax_ccby.txt.xz;weight=6'
  wiki = f'{data}/pretrain/wiki_cc_by_sa.txt.xz;weight=4'
  c.fields = (
    ('data.source', f'{books},{wiki}'),
    ('optimizer.warmup_fraction', 0.08),
    ('eval_every', 5_000),
    ('save_every', 5_000),
  )
  c.runs = (
    *(run(objective, budget) for budget in BUDGETS for objective in ('electra', 'mlm')),
    *(run(objective, '4') for objective in ('replace_mlm', 'all_tokens_mlm', 'electra_15')),
  )
  some = {'train_examples': 3_000}
  fixed_rate = {'optimizer.learning_rate': 1e-3}
  glue = some | {'data.source': f'{data}/glue'}
  tags = some | {'data.source': f'{data}/tagging/ud_ewt', 'max_length': 128}
  mean = {'frozen': True, 'head.pooling': 'mean'}
  c.finetune = (
    ('cola', 'configs/finetune/cola.py', glue | fixed_rate | {'epochs': 1.0}),
    ('stsb', 'configs/finetune/stsb.py', glue | fixed_rate | {'epochs': 2.0}),
    ('pos', 'configs/finetune/pos.py', tags | fixed_rate | {'epochs': 1.0}),
    ('pos_probe', 'configs/finetune/pos.py', tags | {'epochs': 1.0, 'frozen': True}),
    ('stsb_probe', 'configs/finetune/stsb.py', glue | mean | {'epochs': 2.0}),
  )
  return c

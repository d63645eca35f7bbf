"""The objectives of the paper's comparison at equal FLOPs: electra against mlm at three budgets, each a doubling, and the others at the largest.

  python -m electra_jax.main --mode=sweep --config=configs/sweeps/objectives.py:data

`data` is a folder with pretrain/openstax_ccby.txt.xz and wiki_cc_by_sa.txt.xz, glue/CoLA, glue/STS-B and tagging/ud_ewt. Each of the 27 runs is fine-tuned on
three tasks and probed with its encoder frozen. For a CPU: 1.2 million parameters. A run of the largest budget takes six minutes of a core and its tasks three,
the whole sweep three and a half hours of one. Rates are the pilot's, which docs/results.md has.
"""

import pathlib

from electra_jax.sweep.config import default_config

BUDGETS = {'1': 3e12, '2': 6e12, '4': 1.2e13}  # FLOPs of training, forward and backward
RATES = {'mlm': 2e-3, 'all_tokens_mlm': 2e-3}  # the others as configs/nano.py
RESULTS = pathlib.Path(__file__).resolve().parents[2] / 'benchmarks' / 'results'


def get_config(data='data'):
  c = default_config()
  c.name, c.base, c.seeds, c.rows = 'objectives', 'configs/nano.py', (0, 1, 2), 4_096
  c.known = (
    str(RESULTS / 'objectives.jsonl'),
  )  # what docs/results.md shows; a line counts where its data are the same
  c.fields = (
    (
      'data.source',
      f'{data}/pretrain/openstax_ccby.txt.xz;weight=6,{data}/pretrain/wiki_cc_by_sa.txt.xz;weight=4',
    ),
    ('optimizer.warmup_fraction', 0.08),
    ('eval_every', 5_000),
    ('save_every', 5_000),
  )

  def rate(objective):
    return {'optimizer.learning_rate': RATES[objective]} if objective in RATES else {}

  def run(objective, budget):
    return (
      f'{objective}@{budget}',
      {'objective.name': objective, 'budget_flops': BUDGETS[budget], **rate(objective)},
    )

  c.runs = (
    *(run(objective, budget) for budget in BUDGETS for objective in ('electra', 'mlm')),
    *(run(objective, '4') for objective in ('replace_mlm', 'all_tokens_mlm', 'electra_15')),
  )
  glue, tags, fixed_rate = (
    {'data.source': f'{data}/glue'},
    {'data.source': f'{data}/tagging/ud_ewt', 'max_length': 128},
    {'optimizer.learning_rate': 1e-3},
  )
  some = {'train_examples': 3_000}
  c.finetune = (
    ('cola', 'configs/finetune/cola.py', glue | fixed_rate | some | {'epochs': 1.0}),
    ('stsb', 'configs/finetune/stsb.py', glue | fixed_rate | some | {'epochs': 2.0}),
    ('pos', 'configs/finetune/pos.py', tags | fixed_rate | some | {'epochs': 1.0}),
    ('pos_probe', 'configs/finetune/pos.py', tags | some | {'epochs': 1.0, 'frozen': True}),
    (
      'stsb_probe',
      'configs/finetune/stsb.py',
      glue | some | {'frozen': True, 'head.pooling': 'mean', 'epochs': 2.0},
    ),
  )
  return c

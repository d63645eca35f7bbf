"""What the towers share: embeddings (as published), nothing, or embeddings whose gradients are kept apart (GDES, He et al. 2021), at equal FLOPs.

  python -m electra_jax.main --mode=sweep --config=configs/sweeps/sharing.py:data

Data, encoder, generator and tasks are those of configs/sweeps/objectives.py, at its largest budget.
"""

import pathlib

from electra_jax.sweep.config import load_config_file


def get_config(data='data'):
  c = load_config_file(f'{pathlib.Path(__file__).with_name("objectives.py")}:{data}')
  _, last = c.runs[-1]
  c.name, c.known = 'sharing', (*c.known, str(pathlib.Path(c.known[0]).with_name('sharing.jsonl')))
  c.runs = tuple(
    (sharing, {'sharing': sharing, 'budget_flops': last['budget_flops']})
    for sharing in ('embeddings', 'none', 'disentangled')
  )
  return c

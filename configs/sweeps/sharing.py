"""What the towers share, at equal FLOPs: embeddings as published, nothing, or GDES embeddings.

  python -m electra_jax.main --mode=sweep --config=configs/sweeps/sharing.py:data

With GDES (He et al. 2021) the discriminator uses the generator's embeddings without sending its
gradient to them. Data, encoder, generator and tasks are those of configs/sweeps/objectives.py, at
its largest budget.
"""

import pathlib

import ml_collections

from electra_jax.sweep.config import load_config_file


def get_config(data: str = 'data') -> ml_collections.ConfigDict:
  """The sweep; `data` is the folder with the corpora and tasks."""
  c = load_config_file(f'{pathlib.Path(__file__).with_name("objectives.py")}:{data}')
  _, last = c.runs[-1]
  c.name = 'sharing'
  c.known = (*c.known, str(pathlib.Path(c.known[0]).with_name('sharing.jsonl')))
  c.runs = tuple(
    (sharing, {'sharing': sharing, 'budget_flops': last['budget_flops']})
    for sharing in ('embeddings', 'none', 'disentangled')
  )
  return c

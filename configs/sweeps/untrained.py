"""The control of configs/sweeps/objectives.py: its encoder with initial weights, on the same tasks.

python -m electra_jax.main --mode=sweep --config=configs/sweeps/untrained.py:data

The run has one step with a learning rate of 1e-9.
"""

import pathlib

import ml_collections

from electra_jax.sweep.config import load_config_file


def get_config(data: str = 'data') -> ml_collections.ConfigDict:
  """The sweep; `data` is the folder with the corpora and tasks."""
  c = load_config_file(f'{pathlib.Path(__file__).with_name("objectives.py")}:{data}')
  c.name = 'untrained'
  c.known = (str(pathlib.Path(c.known[0]).with_name('untrained.jsonl')),)
  c.runs = (('untrained', {'steps': 1, 'optimizer.learning_rate': 1e-9}),)
  return c

"""The control of configs/sweeps/objectives.py: its encoder with the weights it begins with (one step at a rate of 1e-9), on the same tasks.

python -m electra_jax.main --mode=sweep --config=configs/sweeps/untrained.py:data
"""

import pathlib

from electra_jax.sweep.config import load_config_file


def get_config(data='data'):
  c = load_config_file(f'{pathlib.Path(__file__).with_name("objectives.py")}:{data}')
  c.name, c.known = 'untrained', (str(pathlib.Path(c.known[0]).with_name('untrained.jsonl')),)
  c.runs = (('untrained', {'steps': 1, 'optimizer.learning_rate': 1e-9}),)
  return c

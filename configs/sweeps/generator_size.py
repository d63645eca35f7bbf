"""Generators from an eighth of the discriminator's width to all of it, at equal FLOPs.

  python -m electra_jax.main --mode=sweep --config=configs/sweeps/generator_size.py:data

This is figure 3 of Clark et al. 2020, whose best generators have a quarter to half of the
discriminator's width. Data, encoder and tasks are those of configs/sweeps/objectives.py, at its
largest budget.
"""

import pathlib

import ml_collections

from electra_jax.sweep.config import load_config_file


def get_config(data: str = 'data') -> ml_collections.ConfigDict:
  """The sweep; `data` is the folder with the corpora and tasks."""
  c = load_config_file(f'{pathlib.Path(__file__).with_name("objectives.py")}:{data}')
  _, last = c.runs[-1]
  c.name = 'generator_size'
  c.known = (*c.known, str(pathlib.Path(c.known[0]).with_name('generator_size.jsonl')))
  fractions = {'eighth': 0.125, 'quarter': 0.25, 'half': 0.5, 'equal': 1.0}
  c.runs = tuple(
    (name, {'generator.hidden_fraction': fraction, 'budget_flops': last['budget_flops']})
    for name, fraction in fractions.items()
  )
  return c

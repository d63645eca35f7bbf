"""How large a generator: from an eighth of the discriminator's width to all of it, at equal FLOPs (Clark et al. 2020, figure 3).

  python -m electra_jax.main --mode=sweep --config=configs/sweeps/generator_size.py:data

Data, encoder and tasks are those of configs/sweeps/objectives.py, at its largest budget. The paper's best generators have a quarter to half of the
discriminator's width.
"""

import pathlib

from electra_jax.sweep.config import load_config_file


def get_config(data='data'):
  c = load_config_file(f'{pathlib.Path(__file__).with_name("objectives.py")}:{data}')
  _, last = c.runs[-1]
  c.name, c.known = (
    'generator_size',
    (*c.known, str(pathlib.Path(c.known[0]).with_name('generator_size.jsonl'))),
  )
  c.runs = tuple(
    (name, {'generator.hidden_fraction': fraction, 'budget_flops': last['budget_flops']})
    for name, fraction in (('eighth', 0.125), ('quarter', 0.25), ('half', 0.5), ('equal', 1.0))
  )
  return c

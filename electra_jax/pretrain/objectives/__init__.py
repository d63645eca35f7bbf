"""Objectives, a file each: `LOSSES`, `HEADS`, `examples`, `counts` and `loss`, as in electra.py. What they share is in shared.py."""

import importlib

NAMES = ('electra', 'mlm', 'replace_mlm', 'all_tokens_mlm', 'electra_15', 'electric')


def named(name: str):
  """The module of config.objective.name. Raises ValueError for another name."""
  if name not in NAMES:
    raise ValueError(f'the objective is {name!r}; it is one of {", ".join(NAMES)}.')
  return importlib.import_module(f'{__name__}.{name}')

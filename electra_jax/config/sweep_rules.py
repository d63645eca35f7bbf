"""Rules across the fields of a sweep's config, one function each; see rules.py."""

import re
from collections.abc import Mapping

from electra_jax.config.declarations import require
from electra_jax.config.sweeps import SweepConfig


def sweep_has_runs(c: SweepConfig) -> None:
  """A sweep has a base config and runs."""
  require(
    c.base,
    'config.base is empty; name the config file that all runs start from, as configs/mini.py.',
  )
  require(
    c.runs,
    'config.runs is empty; give each run as its name and what it changes, as '
    "(('mlm', {'objective.name': 'mlm'}), ...).",
  )


def seeds_are_distinct(c: SweepConfig) -> None:
  """Each seed is a different non-negative integer."""
  valid = all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in c.seeds)
  require(
    c.seeds and valid and len(set(c.seeds)) == len(c.seeds),
    f'config.seeds is {c.seeds!r}; expected each number once, from 0 on.',
  )


def entries_are_well_formed(c: SweepConfig) -> None:
  """Entries of config.runs and config.finetune have their parts, and names that files can have."""
  for kind, width, form in (
    ('runs', 2, 'its name and a dict of fields'),
    ('finetune', 3, 'its name, a config file and a dict of fields'),
  ):
    entries = getattr(c, kind)
    for entry in entries:
      require(
        isinstance(entry, tuple)
        and len(entry) == width
        and isinstance(entry[0], str)
        and isinstance(entry[-1], Mapping),
        f'config.{kind} holds {entry!r}; expected {form}.',
      )
      require(
        re.fullmatch(r'[A-Za-z0-9][\w.+@-]*', entry[0]),
        f'config.{kind}: {entry[0]!r} cannot be a name; use letters, digits and . _ + - @.',
      )
    names = [entry[0] for entry in entries]
    require(
      len(set(names)) == len(names),
      f'config.{kind} has {max(names, key=names.count, default="")!r} twice; expected one each.',
    )


def changes_are_pairs(c: SweepConfig) -> None:
  """config.fields holds pairs of a field and its value."""
  for pair in c.fields:
    require(
      isinstance(pair, tuple) and len(pair) == 2,
      f'config.fields holds {pair!r}; expected pairs of a field and its value.',
    )


SWEEP = (sweep_has_runs, seeds_are_distinct, entries_are_well_formed, changes_are_pairs)


def check_sweep(c: SweepConfig) -> None:
  """Applies the rules of sweeps. Raises UserError for the first that does not hold."""
  for rule in SWEEP:
    rule(c)

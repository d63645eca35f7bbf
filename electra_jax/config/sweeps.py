"""The fields of a sweep's config."""

import dataclasses
from typing import Any

from electra_jax.config import declarations
from electra_jax.config.declarations import Config, ConfigDict, field


@dataclasses.dataclass(frozen=True)
class SweepConfig(Config):
  """Many pretraining runs; fields of other configs are named with dots, as 'objective.name'."""

  name: str = field('sweep', 'Names the default workdir, runs/<name>.', one_line=True)
  base: str = field(
    '', 'Pretraining config that all runs start from, with arguments: configs/mini.py:steps=1000.'
  )
  fields: tuple[Any, ...] = field((), "What all runs change of it: (('batch_size', 64), ...).")
  runs: tuple[Any, ...] = field(
    (),
    "Names and changes: (('mlm@1', {'objective.name': 'mlm'}), ...); the part before @ is a group.",
  )
  seeds: tuple[Any, ...] = field((0,), 'Each run is made once with each of these seeds.')
  finetune: tuple[Any, ...] = field(
    (),
    "Tasks of each run: (('cola', 'configs/finetune/cola.py', {'epochs': 1.0}), ...).",
  )
  rows: int = field(0, 'Held-out rows that a run is evaluated on, at most; 0: all.', at_least=0)
  known: tuple[Any, ...] = field(
    (), 'Files with results of finished runs, used where config and data are the same.'
  )
  delete_runs: bool = field(
    False, "Delete a run's checkpoints and fine-tuning as soon as its result is written."
  )


def default_config() -> ConfigDict:
  """The ConfigDict of a sweep's fields with their defaults, for a config file to change."""
  return declarations.config_dict(SweepConfig)

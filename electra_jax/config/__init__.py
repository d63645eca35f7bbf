"""Configs: fields declared once, checks, and JSON. Importing it imports neither JAX nor TensorFlow.

A config file returns the ConfigDict of `default_config()` with some fields changed. `checked` turns
it into the frozen, typed config that the programs take.
"""

from electra_jax.config.declarations import (
  AnyConfig,
  Config,
  completed,
  differences,
  flat,
  freeze,
  from_plain,
  names_with,
  to_plain,
)
from electra_jax.config.finetuning import FinetuningConfig
from electra_jax.config.phases import Phase, phases_of
from electra_jax.config.pretraining import (
  BUDGETS,
  ModelConfig,
  PretrainingConfig,
  default_config,
  with_arguments,
)
from electra_jax.config.rules import check_finetuning, check_pretraining, check_sweep, has_budget
from electra_jax.config.sweeps import SweepConfig
from electra_jax.errors import UserError

__all__ = [
  'AnyConfig',
  'BUDGETS',
  'Config',
  'FinetuningConfig',
  'ModelConfig',
  'Phase',
  'PretrainingConfig',
  'SweepConfig',
  'UserError',
  'checked',
  'checked_finetuning',
  'checked_pretraining',
  'checked_sweep',
  'completed',
  'default_config',
  'differences',
  'flat',
  'freeze',
  'from_plain',
  'has_budget',
  'kind_of',
  'names_with',
  'phases_of',
  'to_plain',
  'with_arguments',
]


def checked_pretraining(config: AnyConfig, sizes_known: bool | None = None) -> PretrainingConfig:
  """Returns the typed config of a pretraining ConfigDict, its ranges and rules checked.

  Args:
    config: a ConfigDict, or a typed config.
    sizes_known: whether the sizes are final. The weights of config.init decide them, so None leaves
      the rules about sizes to the check after they were read.

  Raises:
    UserError: for the first field or rule that does not hold.
  """
  c = freeze(PretrainingConfig, config)
  check_pretraining(c, sizes_known=not c.init if sizes_known is None else sizes_known)
  return c


def checked_finetuning(config: AnyConfig) -> FinetuningConfig:
  """The typed config of a fine-tuning ConfigDict, checked. Raises UserError."""
  c = freeze(FinetuningConfig, config)
  check_finetuning(c)
  return c


def checked_sweep(config: AnyConfig) -> SweepConfig:
  """The typed config of a sweep's ConfigDict, its own fields checked. Raises UserError."""
  c = freeze(SweepConfig, config)
  check_sweep(c)
  return c


def kind_of(config: AnyConfig) -> type[Config]:
  """The program that a ConfigDict is for, as the class of its typed config."""
  if 'runs' in config:
    return SweepConfig
  return FinetuningConfig if 'task' in config else PretrainingConfig


def checked(config: AnyConfig) -> Config:
  """The typed config of a ConfigDict of any of the three programs, checked. Raises UserError."""
  kind = kind_of(config)
  if kind is SweepConfig:
    return checked_sweep(config)
  return checked_finetuning(config) if kind is FinetuningConfig else checked_pretraining(config)

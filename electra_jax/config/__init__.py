"""Configs: fields declared once, checks, and JSON. Importing it imports neither JAX nor TensorFlow.

A config file returns the ConfigDict of `default_config()` with some fields changed.
`checked_config` turns it into the frozen, typed config that the programs take.
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
from electra_jax.config.finetuning_rules import check_finetuning
from electra_jax.config.phases import Phase, phases_of
from electra_jax.config.pretraining import (
  BUDGETS,
  ModelConfig,
  PretrainingConfig,
  default_config,
  with_arguments,
)
from electra_jax.config.probing import ProbingConfig, check_probing
from electra_jax.config.rules import check_pretraining, has_budget
from electra_jax.config.sweep_rules import check_sweep
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
  'ProbingConfig',
  'SweepConfig',
  'UserError',
  'checked_config',
  'checked_finetuning',
  'checked_pretraining',
  'checked_probing',
  'checked_sweep',
  'completed',
  'config_kind',
  'default_config',
  'differences',
  'flat',
  'freeze',
  'from_plain',
  'has_budget',
  'names_with',
  'phases_of',
  'to_plain',
  'with_arguments',
]


def checked_pretraining(config: AnyConfig, sizes_known: bool | None = None) -> PretrainingConfig:
  """The typed config of a pretraining ConfigDict, its ranges and rules checked.

  Args:
    config: a ConfigDict, or a typed config.
    sizes_known: whether the sizes are final. The weights of config.init determine them; None
      leaves the rules about sizes to a later check where config.init is set.

  Raises:
    UserError: for the first field or rule that is violated.
  """
  c = freeze(PretrainingConfig, config)
  check_pretraining(c, sizes_known=not c.init if sizes_known is None else sizes_known)
  return c


def checked_finetuning(config: AnyConfig) -> FinetuningConfig:
  """The typed config of a fine-tuning ConfigDict, its ranges and rules checked.

  Raises:
    UserError: for the first field or rule that is violated.
  """
  c = freeze(FinetuningConfig, config)
  check_finetuning(c)
  return c


def checked_probing(config: AnyConfig) -> ProbingConfig:
  """The typed config of a ConfigDict of probes, its ranges and rules checked.

  Raises:
    UserError: for the first field or rule that is violated.
  """
  c = freeze(ProbingConfig, config)
  check_probing(c)
  return c


def checked_sweep(config: AnyConfig) -> SweepConfig:
  """The typed config of a sweep's ConfigDict, checked. Configs of its runs are checked elsewhere.

  Raises:
    UserError: for the first field or rule that is violated.
  """
  c = freeze(SweepConfig, config)
  check_sweep(c)
  return c


def config_kind(config: AnyConfig) -> type[Config]:
  """The class of the typed config that a ConfigDict is for."""
  if 'runs' in config:
    return SweepConfig
  if 'penalty' in config:
    return ProbingConfig
  return FinetuningConfig if 'task' in config else PretrainingConfig


def checked_config(config: AnyConfig) -> Config:
  """The typed config of a ConfigDict of any of the programs, checked.

  Raises:
    UserError: for the first field or rule that is violated.
  """
  kind = config_kind(config)
  if kind is SweepConfig:
    return checked_sweep(config)
  if kind is ProbingConfig:
    return checked_probing(config)
  return checked_finetuning(config) if kind is FinetuningConfig else checked_pretraining(config)

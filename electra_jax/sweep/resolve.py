"""The one place where a sweep's config is interpreted: (config, workdir) -> ResolvedSweep.

Importing it imports no JAX, so that a mistake in any of the runs is reported within a second.
"""

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from electra_jax.config import (
  AnyConfig,
  Config,
  FinetuningConfig,
  PretrainingConfig,
  SweepConfig,
  checked_finetuning,
  checked_pretraining,
  checked_sweep,
  config_kind,
  freeze,
)
from electra_jax.config.config_files import load_config_file
from electra_jax.config.declarations import fields_of, typed_value
from electra_jax.errors import UserError
from electra_jax.training import run_folder

# Fields that the sweep sets itself.
_SET_BY_SWEEP = ('name', 'seed', 'keep')
_SET_BY_SWEEP_IN_TASKS = ('name', 'init', 'init_step', 'like', 'keep_trials')
C = TypeVar('C', bound=Config)


@dataclasses.dataclass(frozen=True)
class SweepJob:
  """One run with one seed.

  Attributes:
    run: the run's name.
    seed: its seed.
    changes: what the run changes of the base, as the sweep's config has it.
    config: the pretraining config.
    tasks: fine-tuning configs by name, without the run to start from.
  """

  run: str
  seed: int
  changes: dict[str, Any]
  config: PretrainingConfig
  tasks: dict[str, FinetuningConfig]

  @property
  def name(self) -> str:
    """The name of the job, as --only takes it."""
    return f'{self.run}:{self.seed}'

  @property
  def file(self) -> str:
    """The name of the job in names of files."""
    return f'{self.run}-{self.seed}'


@dataclasses.dataclass(frozen=True)
class ResolvedSweep:
  """A sweep's config with the configs of all of its runs.

  Attributes:
    config: the sweep's own fields.
    workdir: its folder.
    jobs: one per run and seed, in the order of the config, seeds together.
  """

  config: SweepConfig
  workdir: epath.Path
  jobs: tuple[SweepJob, ...]


def group_of(run: str) -> str:
  """A run's name without the part from the @ on, which names its budget."""
  return run.partition('@')[0]


def resolve_sweep(config: AnyConfig, workdir: str | os.PathLike[str]) -> ResolvedSweep:
  """Resolves a sweep's config, and those of all of its runs and tasks. No data is read.

  Args:
    config: a ConfigDict, or a typed config.
    workdir: the sweep's folder.

  Raises:
    UserError: for a mistake in the sweep's own config or in that of a run or task.
  """
  return ResolvedSweep(checked_sweep(config), run_folder.folder(workdir), tuple(jobs_of(config)))


def jobs_of(config: AnyConfig) -> list[SweepJob]:
  """The jobs of a sweep's config, see `resolve_sweep`."""
  c = checked_sweep(config)
  base = _with_changes(_base_config(c.base), dict(c.fields), 'config.fields', _SET_BY_SWEEP)
  tasks = {name: _task_config(name, file, fields) for name, file, fields in c.finetune}
  jobs = []
  for run, fields in c.runs:
    of_run = _with_changes(base, dict(fields), f'run {run}', _SET_BY_SWEEP)
    of_run = _checked(f'run {run}', checked_pretraining, of_run)
    if not of_run.data.store and not of_run.data.heldout_fraction:
      raise UserError(
        f'run {run}: config.data.heldout_fraction is 0; expected above 0, since a sweep compares '
        'its runs on held-out rows.'
      )
    for seed in c.seeds:
      of_seed = of_run.replace({'name': f'{run}, seed {seed}', 'seed': seed, 'keep': 1})
      # Trials of two seeds differ in everything that a seed determines.
      seeded = {
        name: task.replace({'seed': task.seed + seed * task.num_trials})
        for name, task in tasks.items()
      }
      jobs.append(SweepJob(run, seed, dict(fields), of_seed, seeded))
  return jobs


def _base_config(path: str) -> PretrainingConfig:
  """The pretraining config of config.base."""
  base = load_config_file(path)
  if config_kind(base) is not PretrainingConfig or 'objective' not in base:
    raise UserError(
      f'config.base is {path}, which is not a pretraining config; expected one, such as '
      'configs/mini.py.'
    )
  return _checked(f'config.base {path}', lambda c: freeze(PretrainingConfig, c), base)


def _task_config(name: str, file: str, fields: Mapping[str, Any]) -> FinetuningConfig:
  """The fine-tuning config of an entry of config.finetune."""
  where = f'{name} of config.finetune'
  loaded = load_config_file(file)
  if config_kind(loaded) is not FinetuningConfig:
    raise UserError(
      f'{where} is {file}, which is not a fine-tuning config; expected one, such as '
      'configs/finetune/cola.py.'
    )
  task = _checked(where, lambda c: freeze(FinetuningConfig, c), loaded)
  task = _with_changes(task, fields, where, _SET_BY_SWEEP_IN_TASKS).replace(
    {'name': name, 'init': 'the run', 'init_step': 'last', 'like': '', 'keep_trials': 'none'}
  )
  task = _checked(where, checked_finetuning, task)
  if len(task.tasks) != 1:
    raise UserError(f'{where} has the tasks {task.task}; expected one entry for each of them.')
  return task


def _checked(where: str, check: Callable[[Any], C], config: AnyConfig) -> C:
  """The result of a check; its error message begins with `where`."""
  try:
    return check(config)
  except UserError as error:
    raise UserError(f'{where}: {error}') from None


def _with_changes(config: C, fields: Mapping[str, Any], where: str, reserved: Sequence[str]) -> C:
  """A copy of a config with fields set.

  Args:
    config: the config.
    fields: name with dots -> value.
    where: beginning of an error message.
    reserved: fields that the sweep sets itself.

  Raises:
    UserError: for a name that is not a field or that is reserved, and a value of another type.
  """
  known = fields_of(type(config))
  typed = {}
  for name, value in fields.items():
    if name not in known:
      near = difflib.get_close_matches(str(name), known, n=1)
      help_ = f'did you mean {near[0]!r}?' if near else 'remove it.'
      raise UserError(f'{where} sets {name!r}, which is not a field; {help_}')
    if name in reserved:
      raise UserError(f'{where} sets {name!r}, which the sweep sets itself; remove it.')
    try:
      typed[name] = typed_value(known[name], value)
    except UserError:
      kind = known[name].kind.__name__
      raise UserError(
        f'{where} sets {name} to {value!r}; expected a value of type {kind}.'
      ) from None
  return config.replace(typed)

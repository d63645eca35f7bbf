"""The one place where a sweep's config is interpreted: (config, workdir) -> ResolvedSweep."""

import dataclasses
import difflib
import importlib.util
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
  freeze,
)
from electra_jax.config.declarations import ConfigDict, fields_of, typed_value
from electra_jax.errors import UserError
from electra_jax.training import run_folder

# Fields that the sweep sets itself.
OWN = ('name', 'seed', 'keep')
OWN_OF_TASKS = ('name', 'init', 'init_step', 'like', 'keep_trials')
C = TypeVar('C', bound=Config)


@dataclasses.dataclass(frozen=True)
class Job:
  """One run with one seed.

  Attributes:
    run: the run's name.
    seed: its seed.
    changes: what the run changes of the base, as the sweep's config has it.
    config: to pretrain with.
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
  """What a sweep's config means.

  Attributes:
    config: the sweep's own fields.
    workdir: its folder.
    jobs: one per run and seed, in the order of the config, seeds together.
  """

  config: SweepConfig
  workdir: epath.Path
  jobs: tuple[Job, ...]


def group(run: str) -> str:
  """A run's name without what follows the @: its budget."""
  return run.partition('@')[0]


def resolve(config: AnyConfig, workdir: str | os.PathLike[str]) -> ResolvedSweep:
  """Resolves a sweep's config, and those of all of its runs and tasks. No data is read.

  Args:
    config: a ConfigDict, or a typed config.
    workdir: the sweep's folder.

  Raises:
    UserError: for a field that cannot be, in the sweep's own config or in that of a run or task.
  """
  return ResolvedSweep(checked_sweep(config), run_folder.folder(workdir), tuple(jobs_of(config)))


def jobs_of(config: AnyConfig) -> list[Job]:
  """The jobs of a sweep's config, see `resolve`."""
  c = checked_sweep(config)
  base = _pretraining(c.base)
  base = changed(base, dict(c.fields), 'config.fields', OWN)
  tasks = {name: _task(name, file, fields) for name, file, fields in c.finetune}
  jobs = []
  for run, fields in c.runs:
    of_run = changed(base, dict(fields), f'run {run}', OWN)
    of_run = _checked(f'run {run}', checked_pretraining, of_run)
    for seed in c.seeds:
      mine = of_run.replace({'name': f'{run}, seed {seed}', 'seed': seed, 'keep': 1})
      # Trials of two seeds differ in all that a seed determines.
      seeded = {
        name: task.replace({'seed': task.seed + seed * task.num_trials})
        for name, task in tasks.items()
      }
      jobs.append(Job(run, seed, dict(fields), mine, seeded))
  return jobs


def _pretraining(path: str) -> PretrainingConfig:
  base = load(path)
  if 'task' in base or 'objective' not in base:
    raise UserError(
      f'config.base {path} is no config to pretrain with; name one, as configs/mini.py.'
    )
  return _checked(f'config.base {path}', lambda c: freeze(PretrainingConfig, c), base)


def _task(name: str, file: str, fields: Mapping[str, Any]) -> FinetuningConfig:
  """The fine-tuning config of an entry of config.finetune."""
  where = f'{name} of config.finetune'
  loaded = load(file)
  if 'task' not in loaded:
    raise UserError(
      f'{where}: {file} is no config to fine-tune with; name one, as configs/finetune/cola.py.'
    )
  task = _checked(where, lambda c: freeze(FinetuningConfig, c), loaded)
  task = changed(task, fields, where, OWN_OF_TASKS).replace(
    {'name': name, 'init': 'the run', 'init_step': 'last', 'like': '', 'keep_trials': 'none'}
  )
  task = _checked(where, checked_finetuning, task)
  if len(task.tasks) != 1:
    raise UserError(f'{where} has the tasks {task.task}; give each an entry of its own.')
  return task


def _checked(where: str, check: Callable[[Any], C], config: AnyConfig) -> C:
  """The result of a check, whose complaint begins with `where`."""
  try:
    return check(config)
  except UserError as error:
    raise UserError(f'{where}: {error}') from None


def load(path: str) -> ConfigDict:
  """The ConfigDict of a file, given as on the command line: FILE or FILE:ARGUMENTS.

  Raises:
    UserError: where the file cannot be read, fails, or returns no ConfigDict.
  """
  import ml_collections

  file, colon, arguments = path.partition(':')
  try:
    spec = importlib.util.spec_from_file_location('sweep_config_file', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arguments) if colon else module.get_config()
  except UserError as error:
    raise UserError(f'{path}: {error}') from None
  except OSError as error:
    raise UserError(
      f'the config file {file} cannot be read ({error.strerror}); expected a path from here.'
    ) from None
  except Exception as error:  # whatever a user's file raises
    raise UserError(
      f'the config file {path} does not work ({type(error).__name__}: '
      f'{" ".join(str(error).split())}); fix it.'
    ) from None
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f'the config file {path} makes no config; its get_config must return one.')
  return config


def changed(config: C, fields: Mapping[str, Any], where: str, own: Sequence[str] = ()) -> C:
  """A copy of a config with fields set, named with dots.

  Args:
    config: the config.
    fields: name -> value.
    where: beginning of the sentence of an error.
    own: fields that the sweep sets itself.

  Raises:
    UserError: for a name that is not a field or one of `own`, and for a value of another type.
  """
  known, typed = fields_of(type(config)), {}
  for name, value in fields.items():
    if name not in known:
      near = difflib.get_close_matches(str(name), known, n=1)
      help_ = f'did you mean {near[0]!r}?' if near else 'remove it.'
      raise UserError(f'{where} sets {name!r}, which is not a field; {help_}')
    if name in own:
      raise UserError(f'{where} sets {name!r}, which the sweep sets itself; remove it.')
    try:
      typed[name] = typed_value(known[name], value)
    except UserError:
      raise UserError(
        f'{where} sets {name} to {value!r}; it must be of type {known[name].kind.__name__}.'
      ) from None
  return config.replace(typed)

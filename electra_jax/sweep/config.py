"""Reads and checks the config of a sweep: all fields with their meaning, and the configs of the runs that it asks for."""

import copy
import difflib
import importlib.util
import re
from typing import Any, NamedTuple

import ml_collections

from electra_jax import config as configs
from electra_jax.errors import UserError
from electra_jax.finetune import config as finetune_config

# What the sweep sets itself.
OWN = ('name', 'seed', 'keep')
OWN_OF_TASKS = ('name', 'init', 'init_step', 'like', 'keep_trials')


def default_config() -> ml_collections.ConfigDict:
  """All fields with their defaults. Fields of other configs are named with dots, as on the command line: 'objective.name'."""
  c = ml_collections.ConfigDict()
  c.name = 'sweep'  # names the default workdir, runs/<name>
  c.base = ''  # the pretraining config that all runs begin with, and its arguments: configs/mini.py:steps=1000
  c.fields = ()  # what all runs change of it: (('batch_size', 64), ...)
  c.runs = ()  # each run's name and what it changes further: (('mlm@1', {'objective.name': 'mlm'}), ...). Runs whose
  # names differ behind an @ alone are of one group, a line of the picture
  c.seeds = (0,)  # each run once with each of them
  c.finetune = ()  # what is trained from each run's last checkpoint: (('cola', 'configs/finetune/cola.py', {'epochs': 1.0}), ...);
  # with 'frozen': True a probe
  c.rows = 0  # most held-out rows that a run is evaluated on; 0: all
  c.known = ()  # files of lines of finished runs that count, if their configs and data are those asked for
  c.delete_runs = False  # delete a run's checkpoints and fine-tuning as soon as its line is written
  return c


class Job(NamedTuple):
  """One run with one seed."""

  run: str  # the run's name
  seed: int
  changes: dict  # what the run changes of the base, as the sweep's config has it
  config: Any  # to pretrain with
  tasks: dict[str, Any]  # fine-tuning configs by name, which lack the run to begin with

  @property
  def name(self) -> str:
    return f'{self.run}:{self.seed}'

  @property
  def file(self) -> str:
    """The same where a file is to be named."""
    return f'{self.run}-{self.seed}'


def group(run: str) -> str:
  """A run's name without what stands behind @: its budget."""
  return run.partition('@')[0]


def _need(condition, message):
  if not condition:
    raise UserError(message)


def check(config) -> list[Job]:
  """The runs of a sweep, in its order, seeds together.

  Raises UserError for a field that cannot be, in the sweep's own config or in that of one of its runs or tasks. No data is read.
  """
  c = config
  configs.check_fields(c, default_config(), 'electra_jax/sweep/config.py')
  _need(
    c.base,
    'config.base is empty; name the config file that all runs begin with, as configs/mini.py.',
  )
  _need(
    c.runs,
    "config.runs is empty; give each run as its name and what it changes, as (('mlm', {'objective.name': 'mlm'}), ...).",
  )
  _need(c.rows >= 0, f'config.rows is {c.rows}; give a number of held-out rows, or 0 for all.')
  _need(
    c.seeds
    and all(isinstance(seed, int) and seed >= 0 for seed in c.seeds)
    and len(set(c.seeds)) == len(c.seeds),
    f'config.seeds is {tuple(c.seeds)!r}; give each number once, from 0 on.',
  )
  for field, width, form in (
    ('runs', 2, 'its name and a dict of fields'),
    ('finetune', 3, 'its name, a config file and a dict of fields'),
  ):
    for entry in c[field]:
      _need(
        isinstance(entry, (tuple, list))
        and len(entry) == width
        and isinstance(entry[0], str)
        and hasattr(entry[-1], 'items'),
        f'config.{field} holds {entry!r}; each entry is {form}.',
      )
      _need(
        re.fullmatch(r'[A-Za-z0-9][\w.+@-]*', entry[0]),
        f'config.{field}: {entry[0]!r} is no name; use letters, digits and . _ + - @.',
      )
    names = [entry[0] for entry in c[field]]
    _need(
      len(set(names)) == len(names),
      f'config.{field} has {max(names, key=names.count, default="")!r} twice; give each a name of its own.',
    )
  for pair in c.fields:
    _need(
      isinstance(pair, (tuple, list)) and len(pair) == 2,
      f"config.fields holds {pair!r}; give pairs of a field and its value, as (('batch_size', 64),).",
    )

  base = changed(load(c.base), dict(c.fields), 'config.fields', OWN)
  tasks = {}
  for name, file, fields in c.finetune:
    where = f'{name} of config.finetune'
    task = changed(load(file), dict(fields), where, OWN_OF_TASKS)
    _need(
      'task' in task,
      f'{where}: {file} is no config to fine-tune with; name one, as configs/finetune/cola.py.',
    )
    task.name, task.init, task.init_step, task.like, task.keep_trials = (
      name,
      'the run',
      'last',
      '',
      'none',
    )
    _blame(where, finetune_config.check, task)
    _need(
      len(finetune_config.tasks(task)) == 1,
      f'{where} has the tasks {task.task}; give each an entry of its own.',
    )
    tasks[name] = task

  jobs = []
  for run, fields in c.runs:
    where = f'run {run}'
    one = changed(base, dict(fields), where, OWN)
    _need(
      'task' not in one and 'objective' in one,
      f'config.base {c.base} is no config to pretrain with; name one, as configs/mini.py.',
    )
    _blame(where, configs.check, one)
    for seed in c.seeds:
      mine, of_tasks = copy.deepcopy(one), copy.deepcopy(tasks)
      mine.name, mine.seed, mine.keep = f'{run}, seed {seed}', seed, 1
      for task in of_tasks.values():  # trials of two seeds differ in all that a seed decides
        task.seed += seed * task.num_trials
      jobs.append(Job(run, seed, dict(fields), mine, of_tasks))
  return jobs


def _blame(where, check_one, config):
  try:
    check_one(config)
  except UserError as error:
    raise UserError(f'{where}: {error}') from None


def load(path: str):
  """The config of a file, given as on the command line: FILE or FILE:ARGUMENTS. Raises UserError where it makes none."""
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
      f'the config file {file} cannot be read ({error.strerror}); name one as it is seen from here.'
    ) from None
  except Exception as error:  # whatever a person's file raises
    raise UserError(
      f'the config file {path} does not work ({type(error).__name__}: {" ".join(str(error).split())}); mend it.'
    ) from None
  _need(
    isinstance(config, ml_collections.ConfigDict),
    f'the config file {path} makes no config; its get_config is to return one.',
  )
  return config


def changed(config, fields: dict, where: str, own: tuple[str, ...] = ()):
  """A copy of a config with fields set, given with dots.

  Raises UserError, which begins with `where`, for one that is not there, that the sweep sets itself (`own`) or is of another type.
  """
  config, known = copy.deepcopy(config), configs.flat(config)
  for field, value in fields.items():
    near = difflib.get_close_matches(str(field), known, n=1)
    _need(
      field in known,
      f'{where} sets {field!r}, which is not a field'
      + (f'; did you mean {near[0]!r}?' if near else '; leave it out.'),
    )
    _need(field not in own, f'{where} sets {field!r}, which the sweep sets itself; leave it out.')
    *groups, name = field.split('.')
    target = config
    for part in groups:
      target = target[part]
    try:
      target[name] = value
    except TypeError:
      raise UserError(
        f'{where} sets {field} to {value!r}; it must be of type {type(known[field]).__name__}.'
      ) from None
  return config

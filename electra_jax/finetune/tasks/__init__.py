"""Tasks by name: the specs of `registry.TASKS`, opened as a config describes."""

from collections.abc import Mapping
from typing import Any

from electra_jax import registry
from electra_jax.config.declarations import fields_of, typed_options
from electra_jax.config.finetuning import FinetuningConfig
from electra_jax.finetune.tasks.task import Options, Task, TaskSpec


def open_task(name: str, config: FinetuningConfig) -> Task:
  """Opens a task with the data of config.data and the options of config.task_options.

  Args:
    name: one of config.tasks.
    config: of the fine-tuning run.

  Raises:
    UserError: the task or an option is not known, or the data is missing or malformed.
  """
  spec: TaskSpec = registry.TASKS.get(name)
  return spec.open(name, config.data, task_options(name, config))


def define_task(name: str, config: FinetuningConfig, labels: tuple[str, ...]) -> Task:
  """The task for a model that was trained by another program; its data may be missing.

  Args:
    name: one of config.tasks.
    config: of the fine-tuning run.
    labels: of the model, in the order of its logits; a task with fixed labels ignores them.

  Raises:
    UserError: the task cannot have these labels, or data that is named cannot be read.
  """
  spec: TaskSpec = registry.TASKS.get(name)
  return spec.define(name, config.data, task_options(name, config), labels)


def restore_task(description: Mapping[str, Any]) -> Task:
  """The task that `Task.describe` described, without data.

  Args:
    description: as JSON has it.

  Raises:
    UserError: the task is not registered.
  """
  name = description['name']
  entry = registry.TASKS.entry(name)
  options = typed_options(
    entry.options, description.get('options', {}), 'task_options', f'the task {name!r}'
  )
  spec: TaskSpec = registry.TASKS.get(name)
  return spec.restore(description, options)


def task_options(name: str, config: FinetuningConfig) -> Options:
  """The options of a task, as its registered dataclass; None for a task without options.

  Several tasks of a config share config.task_options: each takes the options that it declares.

  Raises:
    UserError: an option that no task of the config has, or a value that is not accepted.
  """
  entry = registry.TASKS.entry(name)
  mine = _option_names(name)
  others = {option for other in config.tasks if other != name for option in _option_names(other)}
  given = {
    option: value
    for option, value in config.task_options.items()
    if option in mine or option not in others
  }
  return typed_options(entry.options, given, 'config.task_options', f'the task {name!r}')


def _option_names(name: str) -> set[str]:
  options = registry.TASKS.entry(name).options
  return set() if options is None else set(fields_of(options))

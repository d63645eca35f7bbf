"""The tasks by name, a family a file."""

import difflib
import importlib

from electra_jax.errors import UserError

# Which file of this folder knows a task.
FAMILIES = {
  **dict.fromkeys(('cola', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'rte', 'wnli'), 'glue'),
  **dict.fromkeys(('classification', 'regression'), 'text'),
  **dict.fromkeys(('ner', 'chunking', 'pos', 'tagging'), 'tagging'),
  **dict.fromkeys(('squad1', 'squad2', 'span'), 'squad'),
}
GLUE = tuple(name for name, family in FAMILIES.items() if family == 'glue')


def _family(name: str):
  if name not in FAMILIES:
    near = difflib.get_close_matches(name, FAMILIES, n=1)
    raise UserError(
      f'config.task names {name!r}, which is no task'
      + (f'; did you mean {near[0]}?' if near else f'; there are {", ".join(FAMILIES)}.')
    )
  return importlib.import_module(f'electra_jax.finetune.tasks.{FAMILIES[name]}')


def open_task(name: str, data):
  """The task of a name with the data that the group config.data says. Raises UserError where there is none, or its data is broken."""
  return _family(name).open_task(name, data)


def head_of(name: str) -> str:
  """The kind of head that a task has, of model.heads.KINDS. Raises UserError where there is no such task."""
  _family(name)
  return (
    'regression'
    if name == 'stsb'
    else {'glue': 'classification', 'tagging': 'tagging', 'squad': 'span'}.get(FAMILIES[name], name)
  )


def define_task(name: str, data, labels: tuple[str, ...]):
  """The task of a name for a model that was trained elsewhere, with whatever parts of its data config.data names, or none.

  `labels`: what the model calls them, in the order of its logits; tasks that have labels of their own keep these.

  Raises UserError where the labels are none for the task, or data that is named cannot be had.
  """
  return _family(name).define(name, data, labels)


def restore_task(description: dict):
  """The task that `Task.describe` told of, without its data: it reads what it is given, and makes sense of outputs."""
  return _family(description['name']).restore(description)

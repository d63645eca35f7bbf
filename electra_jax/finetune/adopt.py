"""--mode=import: a model that transformers fine-tuned becomes a fine-tuned run.

The run predicts and is scored like any other.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from electra_jax import console, file_access, registry
from electra_jax.config import AnyConfig, FinetuningConfig, checked_finetuning
from electra_jax.config.families import FAMILIES
from electra_jax.console import say
from electra_jax.errors import UserError
from electra_jax.finetune import initial, task_losses, task_program
from electra_jax.finetune.initial import Initial
from electra_jax.finetune.resolve import started
from electra_jax.finetune.run_files import claim_finetuning, keep_encoder, write_task
from electra_jax.finetune.task_losses import Split
from electra_jax.finetune.tasks import define_task, open_task
from electra_jax.finetune.tasks.task import Task
from electra_jax.folder_lock import FolderLock
from electra_jax.interop.origins import open_source
from electra_jax.interop.weights import Head, Weights, place_params
from electra_jax.model.heads import FineTuned, init_finetuned
from electra_jax.training import checkpoints, partitioning, run_folder
from electra_jax.training.update_step import TrainState, no_skips

PyTree: TypeAlias = Any

_UNNAMED = re.compile(r'LABEL_\d+')  # names that transformers gives to labels without names


def adopt(config: AnyConfig, workdir: str | os.PathLike[str], take_over: bool = False) -> None:
  """Makes a fine-tuned run of the folder that config.init names, for its one task.

  Data is optional: the labels are the model's, or those of a task with fixed labels (GLUE), to
  whose order the columns of the head are permuted. Splits that config.data names are used by
  --mode=predict --split=dev.

  Writes to WORKDIR: config.json, encoder.json, tokenizer/, and TASK/ with task.json, kept.json and
  one trial.

  Args:
    config: of fine-tuning.
    workdir: the folder of the new run.
    take_over: whether to take the folder from another process that writes into it.

  Raises:
    UserError: the folder holds no fine-tuned model, or one with another head or other labels than
      the task's; or WORKDIR holds a run.
  """
  config = checked_finetuning(config)
  if not registry.is_foreign(config.init):
    raise UserError(
      f'config.init is {config.init!r}; --mode=import expects a model of transformers, '
      '--config.init=hf:FOLDER.'
    )
  if len(config.tasks) != 1:
    names = ', '.join(config.tasks)
    raise UserError(f'config.task is {names}; expected one task for --mode=import.')
  name = config.tasks[0]
  source = f'config.init {config.init}'
  kind = registry.TASKS.get(name).head
  console.heading(f'{name}  ({workdir})')

  with console.phase('reading', config.init):
    weights = open_source(config.init)
  head = weights.head
  if head is None:
    raise UserError(f'{source} has no head of a task; train one with --mode=finetune.')
  if head.kind != kind:
    raise UserError(
      f'{source} is a model for {head.kind}, and {name} is {kind}; set '
      f'--config.task={_tasks_with_head(head.kind)}.'
    )
  start = initial.initial_of_weights(weights, config.init)
  task, head, notes = _with_labels(name, config, head, source)
  config = _as_imported(config, task, start, head)
  if 'dev' in task.splits:  # reports malformed and lost data before anything is written
    examples = task.examples('dev')
    features, _ = task.features(examples, start.tokenizer, config.max_length)
    split = Split(examples, features)
    task_losses.report_losses(config, task, 'dev', split, start.tokenizer)
  with FolderLock(workdir, take_over=take_over) as lock:
    run_folder.check_writable(run_folder.folder(workdir))
    lock.acquire()
    folder = _write_run(workdir, config, task, start, weights, head)

  say('encoder', start.describe())
  for note in (*start.notes, *notes):
    say('', note)
  say('head', f'{head.kind}' + (f', labels {", ".join(task.labels)}' if task.labels else ''))
  say('written', str(folder.parent), always=True)
  data = '--split=dev' if 'dev' in task.splits else '--input=FILE'
  say('next', f'python -m electra_jax.main --mode=predict --workdir={folder.parent} {data}')


def _tasks_with_head(head: str) -> str:
  """Tasks on user data with a head, as the value of a flag."""
  tasks = registry.TASKS
  names = [n for n in tasks if tasks.get(n).head == head and not tasks.get(n).fixed_labels]
  return ' or --config.task='.join(names)


def _as_imported(
  config: FinetuningConfig, task: Task, start: Initial, head: Head
) -> FinetuningConfig:
  """The config of the run, with what the model determines."""
  longest = task.recipe.max_length
  if FAMILIES[start.model.family].has_position_table:
    longest = min(longest, start.model.max_positions)
  return config.replace(
    {
      'head.style': head.style,
      'head.pooling': head.pooling,
      'max_length': config.max_length or longest,
      'select': 'last',
    }
  )


def _write_run(
  workdir: str | os.PathLike[str],
  config: FinetuningConfig,
  task: Task,
  start: Initial,
  weights: Weights,
  head: Head,
) -> epath.Path:
  """Writes the run, and returns the folder of its task."""
  model, _ = task_program.build_task_model(config, task, start, config.max_length)
  folder = _claimed(workdir, config, task.name)
  keep_encoder(folder.parent, dataclasses.replace(start, origin=start.origin | {'imported': True}))
  write_task(config, task, folder)
  params = _placed({**_params(start), 'head': head.params}, model)
  # The model has no optimizer, but checkpoints of runs contain its state.
  zero = jnp.zeros([], jnp.int32)
  state = TrainState(
    jnp.int32(weights.step or 0), params, {'none': zero}, zero, zero - 1, no_skips()
  )
  best_by = checkpoints.Criterion(task.metric, 'max')
  manager = checkpoints.open_manager(folder / 'trial-1', best_by=best_by)
  checkpoints.save(manager, weights.step or 0, state, {'none': zero}, None, best_by)
  checkpoints.wait(manager)
  manager.close()
  run_folder.write_json(folder / initial.KEPT, {'trials': [1]})
  return folder


def _params(start: Initial) -> dict[str, PyTree]:
  """The encoder's parameters, which a model of another program has in memory."""
  assert isinstance(start.weights, dict)
  return start.weights


def _placed(params: PyTree, model: FineTuned) -> PyTree:
  """The parameters on the devices."""
  boxed = jax.eval_shape(lambda: init_finetuned(model, 0))
  shardings = partitioning.parameter_shardings(boxed, partitioning.make_layout())
  return place_params(params, nn.unbox(boxed), shardings)


#### Labels ####


def _with_labels(
  name: str, config: FinetuningConfig, head: Head, source: str
) -> tuple[Task, Head, list[str]]:
  """The task and the head, whose outputs are in the task's order and unit.

  Args:
    name: of the task.
    config: of the run.
    head: as in the model's files.
    source: of the model, for messages.

  Returns:
    The task, the head, and sentences about what was changed.
  """
  fixed = registry.TASKS.get(name).fixed_labels
  unnamed = bool(head.labels) and all(map(_UNNAMED.fullmatch, head.labels))
  labels = head.labels
  if not fixed and unnamed and (config.data.train or config.data.source):
    labels = open_task(name, config).labels
  task = define_task(name, config, labels)
  if head.kind == 'regression':
    head, notes = _with_unit(task, head)
    return task, head, notes
  if head.kind == 'span':
    return task, head, []
  if unnamed and (fixed or labels != head.labels):
    return task, head, [_matched_by_order(task, head.labels, source)]
  order = np.arange(len(labels)) if not fixed else _order_of_labels(task, head.labels, source)
  notes = []
  if list(order) != sorted(order):
    notes.append(f'its labels are put in the order of the task: {", ".join(task.labels)}')
  dense = head.params['dense']
  return task, _with_dense(head, dense['kernel'][:, order], dense['bias'][order]), notes


def _with_unit(task: Task, head: Head) -> tuple[Head, list[str]]:
  """The head of regression with outputs that the task's range scales to [0, 1].

  Tasks on user data have the range [0, 1], so that the outputs stay as they are.
  """
  if (task.low, task.high) == (0.0, 1.0):
    return head, []
  dense = head.params['dense']
  low, width = np.float32(task.low), np.float32(task.high - task.low)
  scaled = _with_dense(head, dense['kernel'] / width, (dense['bias'] - low) / width)
  note = (
    f'its values, assumed to be between {task.low:g} and {task.high:g}, are scaled to [0, 1], as '
    f'for {task.name}'
  )
  return scaled, [note]


def _matched_by_order(task: Task, labels: Sequence[str], source: str) -> str:
  """Checks that labels without names can be those of the task, and describes the match."""
  if len(labels) != len(task.labels):
    raise UserError(
      f'{source} has {len(labels)} labels without names, and {task.name} has {len(task.labels)}: '
      f'{", ".join(task.labels)}; name them (id2label in config.json), or set --config.task to the '
      'task that the model was trained for.'
    )
  pairs = zip(labels, task.labels, strict=True)
  matched = ', '.join(f'{theirs} is {ours}' for theirs, ours in pairs)
  return f'its labels have no names and are matched to those of the task by order: {matched}'


def _order_of_labels(task: Task, labels: Sequence[str], source: str) -> np.ndarray:
  """The column of the head for each label of the task, int64 [labels]."""
  indices = {label.casefold(): i for i, label in enumerate(task.labels)}
  indices |= {label.casefold(): i for label, i in task.synonyms.items()}
  found = [indices.get(label.casefold(), -1) for label in labels]
  if sorted(found) != list(range(len(task.labels))):
    raise UserError(
      f'{source} has the labels {", ".join(labels)}, and {task.name} has {", ".join(task.labels)}; '
      'set --config.task to the task that the model was trained for, or to classification.'
    )
  return np.argsort(found)


def _with_dense(head: Head, kernel: np.ndarray, bias: np.ndarray) -> Head:
  dense = {'kernel': kernel, 'bias': bias}
  return dataclasses.replace(head, params={**head.params, 'dense': dense})


def _claimed(workdir: str | os.PathLike[str], config: FinetuningConfig, name: str) -> epath.Path:
  """The task's folder in WORKDIR, without the files of an import that was interrupted."""
  folder = run_folder.folder(workdir) / name
  claim_finetuning(workdir, config)
  if not started(folder.parent):
    return folder
  encoder = folder.parent / initial.ENCODER
  imported = False
  if file_access.exists(encoder):
    imported = run_folder.read_json(encoder, {'origin': dict})['origin'].get('imported')
  if not imported or file_access.exists(folder / initial.KEPT):
    raise UserError(f'{workdir} holds a run already; use another --workdir.')
  with file_access.reaching(folder, 'written'):
    folder.rmtree(missing_ok=True)
  return folder

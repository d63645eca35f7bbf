"""--mode=import: a model that was fine-tuned with `transformers` becomes a fine-tuned run, which predicts and is scored as any other."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import console
from electra_jax.config import checked_finetuning
from electra_jax.console import say
from electra_jax.errors import UserError
from electra_jax.finetune import initial, task_program
from electra_jax.finetune.resolve import started
from electra_jax.finetune.tasks import define_task, head_of, open_task
from electra_jax.finetune.train import describe, keep_encoder
from electra_jax.interop.origins import is_foreign, open_source
from electra_jax.interop.weights import Head, placed
from electra_jax.model.config import FAMILIES
from electra_jax.model.heads import init_finetuned
from electra_jax.training import checkpoints, partitioning, run_folder
from electra_jax.training.update_step import TrainState

_UNNAMED = re.compile(r'LABEL_\d+')  # what `transformers` calls labels that nobody named


def adopt(config, workdir) -> None:
  """Makes a fine-tuned run of the folder that config.init names, for its one task.

  Data is not needed: the labels are the model's, or those of a task that has its own (GLUE), whose order the head's columns are put in.
  Parts of the data that config.data names are what --mode=predict --split=dev takes.

  Leaves in WORKDIR: config.json, encoder.json, tokenizer/, and TASK/ with task.json, kept.json and the one trial.

  Raises UserError where the folder holds no fine-tuned model, one of another kind than the task's, or with other labels; and where
  WORKDIR is taken.
  """
  config = checked_finetuning(config)
  if not is_foreign(config.init):
    raise UserError(
      f'--mode=import takes a model of transformers, --config.init=hf:FOLDER, and config.init is {config.init!r}.'
    )
  if len(names := config.tasks) != 1:
    raise UserError(f'a model has one task, and config.task names {", ".join(names)}; name one.')
  name, source, kind = names[0], f'config.init {config.init}', head_of(names[0])
  console.heading(f'{name}  ({workdir})')

  #### The model, and the task that it is for ########################################################################
  weights = open_source(config.init)
  if (head := weights.head) is None:
    raise UserError(f'{source} has no head that a task trained; train one, with --mode=finetune.')
  if head.kind != kind:
    raise UserError(
      f'{source} is a model for {head.kind}, and {name} is {kind}; name a task that fits, as --config.task={_own_task(head.kind)}.'
    )
  start = initial.of_weights(weights, config.init)
  task, head, notes = _with_labels(name, config.data, head, source)
  if 'dev' in task.splits:
    task.examples('dev')  # what is wrong with it is told now

  #### The run #######################################################################################################
  positions = (
    start.model.max_positions
    if FAMILIES[start.model.family].has_position_table
    else task.recipe.max_length
  )
  config = config.replace(
    {
      'head.style': head.style,
      'head.pooling': head.pooling,
      'max_length': config.max_length or min(task.recipe.max_length, positions),
      'select': 'last',
    }
  )
  model, _ = task_program.build_model(config, task, start, config.max_length)
  folder = _claimed(workdir, config, name)
  keep_encoder(folder.parent, dataclasses.replace(start, origin=start.origin | {'imported': True}))
  describe(config, task, folder)
  layout = partitioning.make_layout()
  boxed = jax.eval_shape(lambda: init_finetuned(model, 0))
  params = placed(
    {**start.weights, 'head': head.params},
    nn.unbox(boxed),
    partitioning.parameter_shardings(boxed, layout),
  )
  # No optimizer came with it: a run's checkpoint has a place for one.
  zero = jnp.zeros([], jnp.int32)
  state = TrainState(jnp.int32(weights.step or 0), params, {'none': zero}, zero, zero - 1)
  manager = checkpoints.open_manager(folder / 'trial-1', metric=task.metric, mode='max')
  checkpoints.save(manager, weights.step or 0, state, {'none': zero}, None, task.metric)
  checkpoints.wait(manager)
  manager.close()
  run_folder.write_json(folder / initial.KEPT, {'trials': [1]})
  say('encoder', start.describe())
  for note in (*start.notes, *notes):
    say('', note)
  say('head', f'{head.kind}' + (f', labels {", ".join(task.labels)}' if task.labels else ''))
  say('written', str(folder.parent))
  say(
    'next',
    f'python -m electra_jax.main --mode=predict --workdir={folder.parent} '
    + ('--split=dev' if 'dev' in task.splits else '--input=FILE'),
  )


def _own_task(kind):
  return {'tagging': 'ner or --config.task=tagging', 'span': 'squad2 or --config.task=squad1'}.get(
    kind, kind
  )


def _with_labels(name, data, head: Head, source):
  """The task, the head with its outputs in the task's order and unit, and what was done, in sentences."""
  unnamed = bool(head.labels) and all(map(_UNNAMED.fullmatch, head.labels))
  labels, notes = head.labels, []
  own = name in ('classification', 'regression', 'tagging', 'ner', 'chunking', 'pos')
  if own and unnamed and (data.train or data.source):
    labels = open_task(name, data).labels
  task = define_task(name, data, labels)
  if head.kind == 'regression':
    # A task of one's own takes values as the model gives them; one with a scale is learned in [0, 1].
    if (task.low, task.high) != (0.0, 1.0):
      dense = head.params['dense']
      low, width = np.float32(task.low), np.float32(task.high - task.low)
      head = _with_dense(head, dense['kernel'] / width, (dense['bias'] - low) / width)
      notes.append(
        f'its values, taken to lie between {task.low:g} and {task.high:g}, are scaled to [0, 1], as {name} has them'
      )
    return task, head, notes
  if head.kind == 'span':
    return task, head, notes
  if unnamed and labels != head.labels or unnamed and not own:
    if len(head.labels) != len(task.labels):
      raise UserError(
        f'{source} has {len(head.labels)} labels and no names for them, and {name} has {len(task.labels)}: {", ".join(task.labels)}; '
        'give them names (id2label in config.json), or name the task that the model was trained for.'
      )
    notes.append(
      'its labels have no names and are taken in the order of the task: '
      + ', '.join(
        f'{theirs} is {ours}' for theirs, ours in zip(head.labels, task.labels, strict=True)
      )
    )
    return task, head, notes
  places = {label.casefold(): i for i, label in enumerate(task.labels)}
  places |= (
    {word.casefold(): i for word, i in getattr(task, 'words', {}).items()} if not own else {}
  )
  found = (
    list(range(len(labels))) if own else [places.get(label.casefold()) for label in head.labels]
  )
  if None in found or sorted(found) != list(range(len(task.labels))):
    raise UserError(
      f'{source} has the labels {", ".join(head.labels)}, and {name} has {", ".join(task.labels)}; name the task that the model '
      'was trained for, or one of your own: --config.task=classification.'
    )
  order = np.argsort(found)
  dense = head.params['dense']
  if list(order) != sorted(order):
    notes.append(f'its labels are put in the order of the task: {", ".join(task.labels)}')
  return task, _with_dense(head, dense['kernel'][:, order], dense['bias'][order]), notes


def _with_dense(head, kernel, bias):
  return dataclasses.replace(
    head, params={**head.params, 'dense': {'kernel': kernel, 'bias': bias}}
  )


def _claimed(workdir, config, name):
  """The task's folder in WORKDIR, which nothing was trained in. What an import that was cut short left goes."""
  folder = run_folder.folder(workdir) / name
  task_program.claim(workdir, config)
  if started(folder.parent):
    encoder = folder.parent / initial.ENCODER
    ours = run_folder.exists(encoder) and run_folder.read_json(encoder)['origin'].get('imported')
    if not ours or run_folder.exists(folder / initial.KEPT):
      raise UserError(f'{workdir} holds a run already; name another --workdir.')
    with run_folder.reaching(folder, 'written'):
      folder.rmtree(missing_ok=True)
  return folder

"""Opens a fine-tuned run for prediction: its task without data, and its best trial's weights."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import file_access
from electra_jax.config import FinetuningConfig, ModelConfig, from_plain
from electra_jax.data.tokenizers.loss_report import OneWarning
from electra_jax.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import batches, finetune_step, initial, task_losses, task_program
from electra_jax.finetune.resolve import resolve_saved_finetuning
from electra_jax.finetune.tasks import restore_task
from electra_jax.finetune.tasks.task import Features, Outputs, Task
from electra_jax.interop.weights import Head, Weights, trim_vocabulary
from electra_jax.model.heads import FineTuned, init_finetuned
from electra_jax.training import checkpoints, devices, partitioning, run_folder
from electra_jax.training.run_folder import read_json

PyTree: TypeAlias = Any


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FineTunedRun:
  """A fine-tuned model with its task. Calling it returns predictions.

  Attributes:
    workdir: of the run.
    trial: name of the trial's folder.
    step: of the checkpoint.
    config: of the run.
    task: without its data.
    tokenizer: of the run.
    model: the encoder with the task's head.
    params: the model's parameters, on the devices.
    layout: the mesh and how parameters are sharded.
    max_length: tokens per row at most.
    imported: whether another program trained the model.
  """

  workdir: str
  trial: str
  step: int
  config: FinetuningConfig
  task: Task
  tokenizer: Tokenizer
  model: FineTuned
  params: PyTree
  layout: partitioning.Layout
  max_length: int
  imported: bool = False

  @functools.cached_property
  def _warn_once(self) -> OneWarning:
    return OneWarning()

  @functools.cached_property
  def _predictor(self) -> finetune_step.Predictor:
    ids = finetune_step.special_ids(self.tokenizer)
    return finetune_step.Predictor(
      finetune_step.jit_predict(self.model, ids, self.layout),
      partitioning.padded_batch_size(self.config.eval_batch_size, self.layout.mesh),
      batches.buckets(self.max_length),
      ids.pad_id,
      self.layout.mesh,
    )

  def outputs(self, features: Features, progress: Callable[[int], None] | None = None) -> Outputs:
    """The model's outputs for rows.

    Args:
      features: the rows.
      progress: called with the number of rows done.
    """
    return self._predictor.outputs(self.params, features, progress)

  def features(self, examples: Sequence[Any]) -> tuple[Features, dict[str, int]]:
    """The rows of examples, and counts of what was truncated or skipped."""
    return self.task.features(examples, self.tokenizer, self.max_length)

  def weights(self) -> Weights:
    """The encoder and the head in host memory, float32, for export.

    The outputs of a regression head are in the unit of the task's data, not scaled to [0, 1].
    """
    params = trim_vocabulary(self.params, self.tokenizer.size)
    head = params.pop('head')
    if self.task.head == 'regression':
      head = _in_unit(head, self.task.low, self.task.high)
    encoder = dataclasses.replace(
      self.model.config,
      vocab_size=self.tokenizer.size,
      vocab_multiple=1,
      attention='xla',
      scan_unroll=1,
      dtype=jnp.float32,
    )
    labeled = self.task.head in ('classification', 'tagging')
    labels = tuple(self.task.labels) if labeled else ()
    return Weights(
      self.workdir,
      encoder,
      None,
      'embeddings',
      params,
      Head(self.task.head, self.model.style, labels, self.model.pooling, head),
      step=self.step,
      tokenizer=str(run_folder.folder(self.workdir) / 'tokenizer'),
    )

  def __call__(self, examples: str | Sequence[Any]) -> list[dict[str, Any]]:
    """Returns one prediction per example; see the task.

    The first time that the tokenizer loses 1% of the characters, or 10% are truncated, a Python
    warning states which.

    Args:
      examples: of the task, or the path of a file of them.
    """
    if isinstance(examples, str):
      examples = self.task.read(examples)
    features, _ = self.features(examples)
    if not self._warn_once.issued:
      losses = task_losses.count_losses(self.task, examples, features, self.tokenizer)
      self._warn_once(task_losses.warnings(losses, 'these examples'))
    return self.task.predictions(examples, features, self.outputs(features))


def _in_unit(head: PyTree, low: float, high: float) -> PyTree:
  """The head of regression with outputs that are not scaled to [0, 1]."""
  if (low, high) == (0.0, 1.0):
    return head
  width = np.float32(high - low)
  kernel = head['dense']['kernel'] * width
  bias = head['dense']['bias'] * width + np.float32(low)
  return {**head, 'dense': {'kernel': kernel, 'bias': bias}}


def is_finetuned(workdir: str | os.PathLike[str]) -> bool:
  """Whether a folder holds a fine-tuned run.

  Raises:
    UserError: its bucket cannot be reached.
  """
  folder = run_folder.folder(workdir)
  with file_access.reaching(folder):  # its error names the run, not this file
    return bool((folder / initial.ENCODER).exists())


def tasks_of(workdir: str | os.PathLike[str]) -> list[str]:
  """Names of the tasks whose weights a fine-tuned run keeps.

  Raises:
    UserError: the folder is not a fine-tuned run.
  """
  folder = run_folder.folder(workdir)
  if not is_finetuned(folder):
    raise UserError(
      f'{folder} is not a fine-tuned run: it has no {initial.ENCODER}; set --workdir to one.'
    )
  with file_access.reaching(folder):
    return sorted(
      path.parent.name
      for path in folder.glob(f'*/{initial.KEPT}')
      if initial.kept_trials(path.parent)
    )


def open_finetuned(workdir: str | os.PathLike[str], task: str | None = None) -> FineTunedRun:
  """Opens the best trial of a task on all devices.

  Args:
    workdir: of the fine-tuned run.
    task: its name; None where the run has a single task.

  Raises:
    UserError: there is no such run or task, or its weights were not kept.
  """
  folder = run_folder.folder(workdir)
  task = _chosen_task(str(folder), tasks_of(workdir), task)
  config = resolve_saved_finetuning(folder).config
  description = read_json(folder / task / initial.TASK, {'max_length': int})
  restored = restore_task(description)
  encoder = read_json(folder / initial.ENCODER, initial.ENCODER_SHAPE)
  tokenizer = load_tokenizer(folder / 'tokenizer')
  devices.use_compilation_cache(config.compilation_cache)
  pretrained = from_plain(encoder['model'], ModelConfig)
  start = initial.Initial(pretrained, tokenizer, encoder['origin'], None)
  model, _ = task_program.build_task_model(config, restored, start, description['max_length'])
  layout = partitioning.make_layout()
  boxed = jax.eval_shape(lambda: init_finetuned(model, 0))
  trial = initial.best_trial(folder / task)
  params, step = checkpoints.restore_params(
    folder / task / trial,
    config.select,
    nn.unbox(boxed),
    partitioning.parameter_shardings(boxed, layout),
    checkpoints.Criterion(restored.metric, 'max'),
  )
  return FineTunedRun(
    workdir=str(folder),
    trial=trial,
    step=step,
    config=config,
    task=restored,
    tokenizer=tokenizer,
    model=model,
    params=params,
    layout=layout,
    max_length=description['max_length'],
    imported=bool(encoder['origin'].get('imported')),
  )


def _chosen_task(folder: str, names: Sequence[str], task: str | None) -> str:
  """The name of the task to open, of those whose weights are kept."""
  if not names:
    raise UserError(
      f'{folder} has no weights: no trial is complete, or config.keep_trials was none; run '
      '--mode=finetune there first.'
    )
  if task is None and len(names) > 1:
    raise UserError(f'{folder} was fine-tuned on {", ".join(names)}; set --task to one of them.')
  if task is not None and task not in names:
    raise UserError(f'{folder} has no weights of {task!r}; it has those of {", ".join(names)}.')
  return names[0] if task is None else task

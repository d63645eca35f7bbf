"""A fine-tuned run, opened again: its task without its data, the weights of its best trial."""

import dataclasses
import functools
import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.config import FinetuningConfig, ModelConfig, from_plain
from electra_jax.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import batches, finetune_step, initial, task_program
from electra_jax.finetune.resolve import resolve_saved
from electra_jax.finetune.tasks import restore_task
from electra_jax.finetune.tasks.task import Features, Outputs, Task
from electra_jax.interop.weights import Head, Weights, trimmed
from electra_jax.model.heads import FineTuned, init_finetuned
from electra_jax.training import checkpoints, partitioning, run_folder
from electra_jax.training.run_folder import read_json


@dataclasses.dataclass(frozen=True, eq=False)
class FineTunedRun:
  """A fine-tuned run in Python. Call it with the task's examples, or with the name of a file of them, to get its predictions."""

  workdir: str
  trial: str
  step: int
  config: FinetuningConfig
  task: Task
  tokenizer: Tokenizer
  model: FineTuned
  params: Any
  layout: partitioning.Layout
  max_length: int
  imported: bool = False  # a model that was trained elsewhere

  @functools.cached_property
  def _predict(self):
    return finetune_step.jit_predict(
      self.model, finetune_step.special_ids(self.tokenizer), self.layout
    )

  def outputs(self, features: Features, progress=None) -> Outputs:
    """What the model says of features."""
    shards = partitioning.row_shards(self.layout.mesh)
    return finetune_step.run_model(
      self._predict,
      self.params,
      features,
      batch_size=-(-self.config.eval_batch_size // shards) * shards,
      lengths=batches.buckets(self.max_length),
      pad_id=self.tokenizer.pad_id,
      mesh=self.layout.mesh,
      progress=progress,
    )

  def features(self, examples) -> tuple[Features, dict[str, int]]:
    """The task's rows of examples, and counts of what was cut off."""
    return self.task.features(examples, self.tokenizer, self.max_length)

  def weights(self) -> Weights:
    """The encoder and the head on this machine, float32, for export.

    The values of regression are in the unit of the task's data, and not scaled to [0, 1] as they are learned.
    """
    size, task, params = self.tokenizer.size, self.task, trimmed(self.params, self.tokenizer.size)
    head = params.pop('head')
    low, high = (task.low, task.high) if task.head == 'regression' else (0.0, 1.0)
    if (low, high) != (0.0, 1.0):
      kernel, bias = head['dense']['kernel'], head['dense']['bias']
      head = {
        **head,
        'dense': {
          'kernel': kernel * np.float32(high - low),
          'bias': bias * np.float32(high - low) + np.float32(low),
        },
      }
    encoder = dataclasses.replace(
      self.model.config,
      vocab_size=size,
      vocab_multiple=1,
      attention='xla',
      scan_unroll=1,
      dtype=jnp.float32,
    )
    labels = tuple(task.labels) if task.head in ('classification', 'tagging') else ()
    return Weights(
      self.workdir,
      encoder,
      None,
      'embeddings',
      params,
      Head(task.head, self.model.style, labels, self.model.pooling, head),
      step=self.step,
      tokenizer=str(run_folder.folder(self.workdir) / 'tokenizer'),
    )

  def __call__(self, examples) -> list[dict]:
    """One prediction an example, see the task. `examples`: of the task, or the path of a file."""
    if isinstance(examples, str):
      examples = self.task.read(examples)
    features, _ = self.features(examples)
    return self.task.predictions(examples, features, self.outputs(features))


def is_finetuned(workdir) -> bool:
  """Whether a folder holds a fine-tuned run. Raises UserError where its bucket cannot be reached."""
  folder = run_folder.folder(workdir)
  with run_folder.reaching(folder):  # the sentence names the run, not this file of it
    return (folder / initial.ENCODER).exists()


def tasks_of(workdir) -> list[str]:
  """Names of the tasks whose weights a fine-tuned run keeps. Raises UserError where the folder holds none."""
  folder = run_folder.folder(workdir)
  if not is_finetuned(folder):
    raise UserError(
      f'{folder} is not a fine-tuned run: it has no {initial.ENCODER}; name one with --workdir.'
    )
  with run_folder.reaching(folder):
    return sorted(
      path.parent.name
      for path in folder.glob(f'*/{initial.KEPT}')
      if initial.kept_trials(path.parent)
    )


def open_finetuned(workdir, task: str | None = None) -> FineTunedRun:
  """Opens the best trial of a task on all devices.

  Args:
    workdir: of the fine-tuned run.
    task: its name; None where the run has only one.

  Raises UserError where there is no such run or task, or its weights were not kept.
  """
  folder, names = run_folder.folder(workdir), tasks_of(workdir)
  if not names:
    raise UserError(
      f'{folder} keeps no weights: no trial is done, or config.keep_trials was none; run --mode=finetune there first.'
    )
  if task is None and len(names) > 1:
    raise UserError(f'{folder} was fine-tuned on {", ".join(names)}; say which with --task.')
  task = names[0] if task is None else task
  if task not in names:
    raise UserError(f'{folder} keeps no weights of {task!r}; it has those of {", ".join(names)}.')
  config = resolve_saved(folder).config
  description = read_json(folder / task / initial.TASK)
  restored = restore_task(description)
  encoder = read_json(folder / initial.ENCODER)
  tokenizer = load_tokenizer(folder / 'tokenizer')
  if config.compilation_cache:
    jax.config.update('jax_compilation_cache_dir', os.path.expanduser(config.compilation_cache))
  start = initial.Initial(
    from_plain(encoder['model'], ModelConfig), tokenizer, encoder['origin'], None
  )
  model, _ = task_program.build_model(config, restored, start, description['max_length'])
  layout = partitioning.make_layout()
  boxed = jax.eval_shape(lambda: init_finetuned(model, 0))
  trial = initial.best_trial(folder / task)
  params, step = checkpoints.restore_params(
    folder / task / trial,
    config.select,
    nn.unbox(boxed),
    partitioning.parameter_shardings(boxed, layout),
    metric=restored.metric,
    mode='max',
  )
  return FineTunedRun(
    str(folder),
    trial,
    step,
    config,
    restored,
    tokenizer,
    model,
    params,
    layout,
    description['max_length'],
    bool(encoder['origin'].get('imported')),
  )

"""From a fine-tuning config, a task and an encoder to the program of its trials."""

import json
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from electra_jax.config import FinetuningConfig, completed, differences, names_with, to_plain
from electra_jax.errors import UserError
from electra_jax.finetune import batches, finetune_step
from electra_jax.finetune.initial import Initial, with_choices
from electra_jax.finetune.resolve import rates, started
from electra_jax.finetune.tasks.task import Features, Task
from electra_jax.model.config import FAMILIES
from electra_jax.model.heads import FineTuned, init_finetuned
from electra_jax.training import (
  hosts,
  optimizers,
  partitioning,
  plugins,
  run_folder,
  schedules,
  versions,
)
from electra_jax.training.encoders import attention_kernel, encoder_config
from electra_jax.training.schedules import WarmupDecay
from electra_jax.training.update_step import TrainState, fresh_state, state_shardings


def claim(workdir, config: FinetuningConfig) -> None:
  """Makes WORKDIR this config's, or verifies that it is. A folder without a trial may get another config.

  Raises:
    UserError: where the folder cannot be written or reached, or holds the run of another config.
  """
  workdir = run_folder.folder(workdir)
  run_folder.check_writable(workdir)
  plain, path = to_plain(config), workdir / 'config.json'
  if run_folder.exists(path):
    changed = differences(
      completed(run_folder.read_json(path), FinetuningConfig),
      plain,
      names_with(FinetuningConfig, 'resumable'),
    )
    if changed and started(workdir):
      more = '; ...' if len(changed) > 3 else ''
      raise UserError(
        f'{workdir} holds a run of another config ({"; ".join(changed[:3])}{more}); give the same '
        'config to resume it, or another --workdir.'
      )
  run_folder.write_json(path, plain)
  versions.record(workdir, resumed=started(workdir))
  plugins.record(workdir, config.specs)


class Program(NamedTuple):
  """What all trials of a task share."""

  config: FinetuningConfig
  task: Task
  initial: Initial
  layout: partitioning.Layout
  model: FineTuned
  max_length: int
  lengths: tuple[int, ...]  # that batches are padded to
  train: Features
  steps: int  # of a trial
  steps_per_epoch: int
  schedule: WarmupDecay  # of the learning rate
  shapes: TrainState
  shardings: TrainState
  fresh: Any  # seed -> parameters; jitted once, as the next three are
  state: Any  # parameters -> the state before the first step
  train_step: Any
  predict: Any
  rates: tuple[float, float]  # learning rate, layer-wise decay
  attention: tuple[str, str]  # kernel, and why
  constant: dict[str, float]  # what one and the same answer to everything scores on dev
  compiled: set  # lengths of rows that the step was compiled for, so far

  @property
  def inputs(self) -> dict:
    """Constants of the learning rate's schedule, the `schedules` of a step's batch."""
    return schedules.constants({'learning_rate': self.schedule})


def build_model(config: FinetuningConfig, task, initial: Initial, max_length: int):
  """The encoder with the task's head, its attention kernel and why it is that.

  Raises UserError where rows would be longer than the encoder's positions, or sizes contradict each other.
  """
  fields = with_choices(initial.model, config)
  if config.frozen:  # what is probed is the encoder as it is used
    fields = fields.replace({'dropout': 0.0, 'attention_dropout': 0.0})
  family = FAMILIES[fields.family]
  if family.has_position_table and max_length > fields.max_positions:
    raise UserError(
      f'{task.name} has rows of {max_length} tokens and the encoder {fields.max_positions} positions; '
      f'set --config.max_length={fields.max_positions}.'
    )
  if config.head.pooling != 'cls' and task.head not in ('classification', 'regression'):
    raise UserError(
      f'config.head.pooling belongs to classification and regression, and {task.name} is {task.head}; leave it out.'
    )
  paired = task.head == 'span' or bool(getattr(getattr(task, 'columns', None), 'second', ()))
  if family.has_token_types and fields.type_vocab_size < 2 and paired:
    raise UserError(
      f'{task.name} reads two texts in a row, and the encoder tells one from the other by two token types, of which it has '
      f'{fields.type_vocab_size}; name another encoder, or a task of single texts.'
    )
  head = config.head
  if head.style == 'transformers' and head.pooling not in family.transformers_poolings:
    raise UserError(
      "config.head.pooling 'mean' is not what transformers has on an ELECTRA encoder; leave it out, or set --config.head.style=published."
    )
  span_dropout = head.style == 'transformers' and family.transformers_span_dropout
  if head.dropout >= 0 and task.head == 'span' and not span_dropout:
    raise UserError(
      f'config.head.dropout is not for spans, whose head has none, and {task.name} is one; leave it out.'
    )
  platform = jax.default_backend()
  # Rows come in several lengths: the kernel is one that takes them all.
  shortest = batches.buckets(max_length, config.bucketed)[0]
  if fields.attention == 'splash' and shortest % 128:
    raise UserError(
      "config.model.attention 'splash' takes rows of multiples of 128 tokens; set --config.bucketed=False and such a --config.max_length."
    )
  encoder = encoder_config(fields, initial.tokenizer.size, shortest, config.dtype)
  model = FineTuned(
    encoder,
    task.head,
    labels=max(1, len(task.labels)),
    dropout=None if head.dropout < 0 else head.dropout,
    pooling=head.pooling,
    beam=head.beam,
    style=head.style,
    max_answer=getattr(task, 'max_answer', 1),
  )
  return model, attention_kernel(fields, shortest, config.dtype, platform)


def program(
  config, task, initial: Initial, layout: partitioning.Layout, train: Features, max_length: int
) -> Program:
  """Everything of a task that its trials share. Raises UserError where rows do not divide over the mesh, or what build_model raises."""
  shards = partitioning.row_shards(layout.mesh)
  if config.batch_size % (shards * config.micro_batches):
    raise UserError(
      f'config.batch_size {config.batch_size} does not divide over {shards} devices'
      + (f' and {config.micro_batches} micro-batches' if config.micro_batches > 1 else '')
      + f'; use a multiple of {shards * config.micro_batches}.'
    )
  model, kernel = build_model(config, task, initial, max_length)
  o, per_epoch = config.optimizer, batches.steps_per_epoch(len(train), config.batch_size)
  count = max(1, round((config.epochs or task.recipe.epochs) * per_epoch))
  rate, decay = rates(config, model.config.hidden_size)
  boxed = jax.eval_shape(lambda: init_finetuned(model, 0))
  schedule = WarmupDecay(rate, int(o.warmup * count), count)
  layer_rates = optimizers.layerwise_rates(
    nn.unbox(boxed), model.config.num_layers, decay, o.published_depths
  )
  optimizer = optimizers.adamw(
    optimizers.OptimizerSettings({'learning_rate': schedule}, o, layer_rates=layer_rates)
  )
  shapes, shardings = state_shardings(boxed, optimizer, layout)
  ids = finetune_step.special_ids(initial.tokenizer)
  train_step = finetune_step.jit_train_step(
    model,
    optimizer,
    ids,
    shardings,
    layout,
    partitioning.moment_shardings(shapes.params, shardings.params, layout),
    impossible_weight=config.head.impossible_weight,
    micro_batches=config.micro_batches,
    skip_nonfinite=config.skip_nonfinite,
    frozen=config.frozen,
  )
  fresh = jax.jit(
    lambda seed: nn.unbox(init_finetuned(model, seed)), out_shardings=shardings.params
  )
  state = jax.jit(
    lambda params: fresh_state(optimizer, params), out_shardings=shardings, donate_argnums=0
  )
  return Program(
    config,
    task,
    initial,
    layout,
    model,
    max_length,
    batches.buckets(max_length, config.bucketed),
    train,
    count,
    per_epoch,
    schedule,
    shapes,
    shardings,
    fresh,
    state,
    train_step,
    finetune_step.jit_predict(model, ids, layout),
    (rate, decay),
    kernel,
    task.constant(),
    set(),
  )


def first_state(p: Program, seed: int) -> TrainState:
  """A trial's state before its first step: the encoder as it was pretrained, or fresh, and a fresh head."""
  params = p.fresh(np.uint32(seed))
  if p.initial.weights is not None:

    def pretrained(tree):
      return {name: tree[name] for name in ('embeddings', 'discriminator')}

    params = {
      **params,
      **p.initial.restore(pretrained(p.shapes.params), pretrained(p.shardings.params)),
    }
  return p.state(params)


def same_on_all(config: FinetuningConfig) -> None:
  """Raises UserError where processes of the run have different configs."""
  hosts.same_everywhere('the config', json.dumps(to_plain(config), sort_keys=True))

"""The jitted steps of fine-tuning: the loss of a task with dropout, and outputs for rows."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.finetune import losses
from electra_jax.finetune.dev_loss import SPAN_TARGETS
from electra_jax.finetune.tasks.task import Features, Outputs
from electra_jax.model.encoder import Inputs, packed_inputs
from electra_jax.model.heads import FineTuned
from electra_jax.model.randomness import row_keys
from electra_jax.training import devices, partitioning
from electra_jax.training.flops import encoder_flops
from electra_jax.training.length_batches import (
  SHORTEST,
  BatchPlanner,
  batch_tokens,
  powers_of_two,
  program_tokens,
)
from electra_jax.training.row_predictor import RowPredictor
from electra_jax.training.update_step import (
  BatchLoss,
  TrainState,
  UpdateOptions,
  make_update_step,
)

PyTree = Any
Batch = dict[str, Any]
NOT_EXAMPLES = ('seed', 'schedules')  # entries of a batch that are not arrays of rows


@dataclasses.dataclass(frozen=True)
class SpecialIds:
  """Ids of the special tokens that the steps need."""

  pad_id: int
  cls_id: int
  sep_id: int


@dataclasses.dataclass(frozen=True)
class PredictionSizes:
  """Limits of the batches of prediction.

  Attributes:
    max_length: tokens per row at most.
    rows: config.eval_batch_size: a batch has at most as many tokens as so many longest rows.
    bucketed: whether rows may be padded to less than `max_length`.
    remember: see BatchPlanner.
  """

  max_length: int
  rows: int
  bucketed: bool = True
  remember: bool = True


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
  """The ids of a tokenizer."""
  return SpecialIds(tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)


def _inputs(token_ids: jax.Array, ids: SpecialIds) -> Inputs:
  return packed_inputs(token_ids, ids.pad_id, ids.cls_id, ids.sep_id)


def finetuning_loss(model: FineTuned, ids: SpecialIds, settings: losses.LossSettings) -> BatchLoss:
  """The loss of a task's head.

  A batch holds the arrays of batches.assemble; `seed`, a uint32 scalar that dropout depends on
  beside step and row; and `schedules`, the constants of the learning rate's schedule. As these are
  inputs, all trials of a task share a compiled program.

  Args:
    model: encoder and head.
    ids: ids of the special tokens.
    settings: of the loss.
  """

  def prepare(step: jax.Array | int, batch: Mapping[str, Any]) -> tuple[Batch, jax.Array]:
    examples = {name: value for name, value in batch.items() if name not in NOT_EXAMPLES}
    examples['keys'] = row_keys(batch['seed'], step, jnp.arange(batch['token_ids'].shape[0]))
    return examples, losses.training_denominator(model.kind, examples, settings)

  def loss(
    params: PyTree, examples: Batch, count: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    outputs: PyTree = model.apply(
      {'params': params},
      _inputs(examples['token_ids'], ids),
      examples,
      examples['keys'],
      method='training',
    )
    total, _, sums = losses.head_loss(model.kind, outputs, examples, settings)
    others = {name: value for name, value in sums.items() if name != 'loss'}
    return total / jnp.where(count > 0, count, 1), others | {'total': total}

  return BatchLoss(prepare, loss)


def jit_finetune_step(
  batch_loss: BatchLoss,
  optimizer: optax.GradientTransformation,
  shardings: TrainState,
  layout: partitioning.Layout,
  options: UpdateOptions,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """`train_step(state, batch) -> (state, sums)` under jax.jit; the state is donated.

  It is compiled once for each length of rows.

  Args:
    batch_loss: of `finetuning_loss`.
    optimizer: the optimizer.
    shardings: shardings of the state.
    layout: the mesh.
    options: options of the step, with the same layout. With `trained=('head',)` no gradient enters
      the encoder, so there is no backward pass through it.
  """
  step = make_update_step(batch_loss, optimizer, options)
  return jax.jit(
    partitioning.within(layout, step),
    out_shardings=(shardings, partitioning.replicated(layout.mesh)),
    donate_argnums=0,
    compiler_options=devices.compiler_options(layout.mesh),
  )


def jit_predict(
  model: FineTuned, ids: SpecialIds, layout: partitioning.Layout
) -> Callable[[PyTree, Batch], dict[str, jax.Array]]:
  """`predict(params, batch) -> outputs` under jax.jit; the outputs are replicated.

  It is compiled once for each length of rows.
  """

  def predict(params: PyTree, batch: Batch) -> PyTree:
    inputs = _inputs(batch['token_ids'], ids)
    return model.apply({'params': params}, inputs, batch, method='predict')

  return jax.jit(
    partitioning.within(layout, predict),
    out_shardings=partitioning.replicated(layout.mesh),
    compiler_options=devices.compiler_options(layout.mesh),
  )


def jit_evaluate(
  model: FineTuned,
  ids: SpecialIds,
  layout: partitioning.Layout,
  settings: losses.LossSettings,
) -> Callable[[PyTree, Batch], dict[str, jax.Array]]:
  """`evaluate(params, batch) -> outputs`, as `jit_predict` with the `loss` of each row, for span.

  The outputs of other heads determine their losses, see dev_loss.py.
  """
  if model.kind != 'span':
    return jit_predict(model, ids, layout)

  def evaluate(params: PyTree, batch: Batch) -> PyTree:
    inputs = _inputs(batch['token_ids'], ids)
    found: PyTree = model.apply({'params': params}, inputs, batch, method='evaluation')
    predicted, trained = found
    terms = losses.span_terms(trained, batch, settings.impossible_weight)
    return predicted | {'loss': terms['loss']}

  return jax.jit(
    partitioning.within(layout, evaluate),
    out_shardings=partitioning.replicated(layout.mesh),
    compiler_options=devices.compiler_options(layout.mesh),
  )


@dataclasses.dataclass(frozen=True)
class Predictor:
  """Computes the outputs of a model for any number of rows.

  Attributes:
    rows: applies `jit_predict` or `jit_evaluate` to rows.
    targets: names of the targets of rows that this function takes, where rows have them.
  """

  rows: RowPredictor
  targets: tuple[str, ...] = ('allowed',)

  def outputs(
    self,
    params: PyTree,
    features: Features,
    progress: Callable[[int], None] | None = None,
  ) -> Outputs:
    """Outputs for all rows, in their order.

    Args:
      params: parameters of the model.
      features: the rows.
      progress: called with the number of rows that are done.

    Returns:
      Arrays by name, see finetune/tasks/task.py. Outputs per token are cut to the length of a row.
    """
    given = {name: x for name, x in features.targets.items() if name in self.targets}
    results: list[dict[str, np.ndarray]] = [{} for _ in range(len(features))]
    done = 0
    for rows, outputs in self.rows.batches(params, features.token_ids, given):
      for i, row in enumerate(rows):
        results[row] = {name: value[i] for name, value in outputs.items()}
      done += len(rows)
      if progress:
        progress(done)
    return _joined(results, features.token_ids)


def make_predictor(
  model: FineTuned,
  tokenizer: Tokenizer,
  layout: partitioning.Layout,
  sizes: PredictionSizes,
  settings: losses.LossSettings | None = None,
) -> Predictor:
  """The predictor of a model.

  Args:
    model: encoder and head.
    tokenizer: of the model.
    layout: the mesh.
    sizes: of its batches.
    settings: of the losses, for the outputs of `jit_evaluate`; None for those of `jit_predict`.
  """
  ids = special_ids(tokenizer)
  shards = partitioning.row_shards(layout.mesh)
  platform = layout.mesh.devices.flat[0].platform
  flops = encoder_flops(model.config, SHORTEST) / SHORTEST
  lengths = powers_of_two(sizes.max_length) if sizes.bucketed else (sizes.max_length,)
  planner = BatchPlanner(
    lengths,
    min(batch_tokens(platform), -(-sizes.rows * sizes.max_length // shards)),
    shards,
    program_tokens(platform, flops),
    between=sizes.bucketed,
    remember=sizes.remember,
  )
  if settings is None:
    return Predictor(
      RowPredictor(jit_predict(model, ids, layout), planner, ids.pad_id, layout.mesh)
    )
  evaluate = jit_evaluate(model, ids, layout, settings)
  rows = RowPredictor(evaluate, planner, ids.pad_id, layout.mesh)
  return Predictor(rows, ('allowed', *SPAN_TARGETS))


def _joined(
  results: Sequence[Mapping[str, np.ndarray]], token_ids: Sequence[np.ndarray]
) -> Outputs:
  """Outputs of rows by name; logits per token are cut to the length of their row."""
  if not results:
    return {}
  names = list(results[0])
  if results[0].get('logits', np.zeros(0)).ndim == 2:
    return {
      name: [r[name][: len(ids)] for r, ids in zip(results, token_ids, strict=True)]
      for name in names
    }
  return {name: np.stack([r[name] for r in results]) for name in names}

"""The jitted steps of fine-tuning: the task's loss with dropout, and what the model says of rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.finetune import batches, losses
from electra_jax.finetune.tasks.task import Features, Outputs
from electra_jax.model.encoder import packed_inputs
from electra_jax.model.heads import FineTuned
from electra_jax.model.randomness import row_keys
from electra_jax.training import partitioning, update_step


@dataclasses.dataclass(frozen=True)
class SpecialIds:
  """What the steps know of the tokenizer."""

  pad_id: int
  cls_id: int
  sep_id: int


def special_ids(tokenizer) -> SpecialIds:
  return SpecialIds(tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)


def _inputs(token_ids, ids: SpecialIds):
  return packed_inputs(token_ids, ids.pad_id, ids.cls_id, ids.sep_id)


def parts(model: FineTuned, ids: SpecialIds, impossible_weight: float):
  """`prepare` and `loss` for training.step.make_train_step.

  A batch is batches.assemble's arrays, `seed`, a uint32 scalar that dropout depends on beside step
  and row, and `schedules`, the constants of the learning rate: so that all trials of a task share a
  compiled program.
  """

  def prepare(step, batch):
    examples = {name: value for name, value in batch.items() if name not in ('seed', 'schedules')}
    examples['keys'] = row_keys(batch['seed'], step, jnp.arange(batch['token_ids'].shape[0]))
    return examples, losses.loss_denominator(model.kind, examples)

  def loss(params, examples, count):
    outputs = model.apply(
      {'params': params},
      _inputs(examples['token_ids'], ids),
      examples,
      examples['keys'],
      method='training',
    )
    total, _, sums = losses.task_loss(model.kind, outputs, examples, impossible_weight)
    return total / jnp.maximum(count, 1), {
      name: value for name, value in sums.items() if name != 'loss'
    } | {'total': total}

  return prepare, loss


def jit_train_step(
  model,
  optimizer,
  ids,
  shardings,
  layout,
  moments,
  *,
  impossible_weight: float,
  micro_batches: int = 1,
  skip_nonfinite: bool = False,
  frozen: bool = False,
):
  """`train_step(state, batch) -> (state, sums)` under jax.jit, compiled once for each length of rows; the state is donated.

  `frozen`: the head alone learns. No gradient goes into the encoder, so there is no backward pass through it.
  """
  prepare, loss = parts(model, ids, impossible_weight)
  step = update_step.make_train_step(
    prepare,
    loss,
    optimizer,
    micro_batches=micro_batches,
    skip_nonfinite=skip_nonfinite,
    layout=layout,
    moments=moments,
    trained=('head',) if frozen else None,
  )
  return jax.jit(
    partitioning.within(layout, step),
    out_shardings=(shardings, partitioning.replicated(layout.mesh)),
    donate_argnums=0,
  )


def jit_predict(model: FineTuned, ids: SpecialIds, layout: partitioning.Layout):
  """`predict(params, batch) -> outputs`, whole on every process, compiled once for each length of rows."""

  def predict(params, batch):
    return model.apply(
      {'params': params}, _inputs(batch['token_ids'], ids), batch, method='predict'
    )

  return jax.jit(
    partitioning.within(layout, predict), out_shardings=partitioning.replicated(layout.mesh)
  )


def on_mesh(batch: dict, mesh) -> dict:
  """The arrays of a batch with their rows split over the mesh; scalars whole on every device."""

  def place(value):
    value = np.asarray(value)
    if value.ndim == 0:
      return jax.make_array_from_callback((), partitioning.replicated(mesh), lambda index: value)
    return partitioning.global_batch(
      value[partitioning.process_rows(mesh, len(value))], mesh, len(value)
    )

  return {name: place(value) for name, value in batch.items()}


def run_model(
  predict, params, features: Features, *, batch_size: int, lengths, pad_id: int, mesh, progress=None
) -> Outputs:
  """What the model says of all rows, as tasks/task.py has it.

  Args:
    predict: of jit_predict.
    batch_size: rows a step, a multiple of mesh.row_shards.
    lengths: of batches.buckets.
    progress: called with the number of rows done.
  """
  inputs = dataclasses.replace(
    features,
    targets={name: features.targets[name] for name in ('allowed',) if name in features.targets},
  )
  results, pending = [None] * len(features), None

  def take(rows, outputs):
    outputs = jax.device_get(outputs)
    for i, row in enumerate(rows):
      results[row] = {name: value[i] for name, value in outputs.items()}

  done = 0
  for rows in batches.in_order(inputs, batch_size):
    outputs = predict(
      params, on_mesh(batches.assemble(inputs, rows, batch_size, lengths, pad_id), mesh)
    )
    if pending:
      take(*pending)  # while the device is busy with the next
    pending = rows, outputs
    done += len(rows)
    if progress:
      progress(done)
  if pending:
    take(*pending)
  per_token = (
    results and results[0].get('logits', np.zeros(0)).ndim == 2
  )  # tagging: cut to the row's own length
  return {
    name: [r[name][: len(ids)] for r, ids in zip(results, features.token_ids, strict=True)]
    if per_token
    else np.stack([r[name] for r in results])
    for name in (results[0] if results else ())
  }

"""The jitted steps of pretraining and of its evaluation: masks, both towers, losses; the update is training/update_step.py's."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.model.encoder import Inputs
from electra_jax.model.randomness import row_keys
from electra_jax.pretrain import metrics
from electra_jax.pretrain.objectives import common
from electra_jax.training import partitioning, update_step
from electra_jax.training.schedules import values
from electra_jax.training.update_step import TrainState, fresh_state


def init_params(model, seed: int, length: int):
  """Parameters of `model`, boxed with their logical axes. Pure, for jax.eval_shape and jax.jit."""
  ids = jnp.zeros((1, length), jnp.int32)
  key = jax.random.key(seed, impl='threefry2x32')
  # Nothing is attended to yet, and a kernel of another kind does not lower on several devices at once.
  model = model.clone(
    **{
      name: dataclasses.replace(getattr(model, name), attention='xla')
      for name in ('generator_config', 'discriminator_config')
    }
  )
  return model.init(key, Inputs(ids, ids + 1, ids, ids), jnp.zeros((1, 1), jnp.int32))['params']


def init_state(model, optimizer, seed: int, length: int) -> TrainState:
  """A state of fresh parameters."""
  return fresh_state(optimizer, nn.unbox(init_params(model, seed, length)))


def state_shardings(model, optimizer, length: int, layout: partitioning.Layout):
  """Shapes and shardings of the state: two trees like TrainState."""
  return update_step.layout_of_state(
    jax.eval_shape(lambda: init_params(model, 0, length)), optimizer, layout
  )


def make_train_step(
  model,
  objective,
  settings,
  optimizer,
  *,
  seed: int,
  micro_batches: int = 1,
  skip_nonfinite: bool = False,
  layout: partitioning.Layout | None = None,
  moments=None,
  trained: tuple[str, ...] | None = None,
  alone: bool = False,
  schedules: dict | None = None,
):
  """`train_step(state, batch) -> (state, sums)`: pure, to be jitted with `jit_train_step`.

  Args:
    model, objective, settings: the model, a module of pretrain/objectives and its settings.
    optimizer: an optax transformation over the parameters.
    seed: of masks, samples and dropout.
    micro_batches: parts that each device's rows are split into; gradients are added up, the update is the same.
    skip_nonfinite: leave out an update whose loss or gradient is not finite, and count it. Otherwise the state stays as it was
      before that step, this one and all that follow, and `bad_step` names it.
    layout, moments: of the mesh, and the shardings of the optimizer's moments (mesh.moment_shardings); None on one device.
    trained: top levels of the parameters that learn, where not all do.
    alone: the generator learns alone.
    schedules: name -> training.schedules.Schedule, of settings that change over the run.

  `batch` is {'token_ids': int [batch, length]}, and 'schedules', the constants of the learning rates' and the settings' schedules by name
  (training.schedules.constants); without them they are constants of the program. `sums` is what metrics.figures reads, and the sums of norms over steps.
  """

  def prepare(step, batch):
    token_ids, now = batch['token_ids'], values(schedules, step, batch.get('schedules'))
    settings_now = dataclasses.replace(settings, **now)
    examples = objective.examples(
      settings_now, token_ids, row_keys(seed, step, jnp.arange(token_ids.shape[0]))
    )
    return examples, objective.counts(settings_now, examples) | now

  def loss(params, examples, counts):
    settings_now = dataclasses.replace(
      settings, **{name: counts[name] for name in schedules}
    )  # the step's, the same for all rows
    return of_objective(settings_now, model, params, examples, counts, train=True)

  schedules, of_objective = (
    schedules or {},
    common.generator_alone if alone else objective.loss,
  )
  options = update_step.UpdateOptions(micro_batches, skip_nonfinite, layout, moments, trained)
  return update_step.make_update_step(update_step.BatchLoss(prepare, loss), optimizer, options)


def jit_train_step(
  train_step, shardings: TrainState, layout: partitioning.Layout, with_schedules: bool = False
):
  """`train_step` under jax.jit with in and out shardings and donated state.

  `with_schedules`: whether batches have 'schedules'.
  """
  batch = {'token_ids': partitioning.batch_sharding(layout.mesh)}
  if with_schedules:
    batch['schedules'] = partitioning.replicated(layout.mesh)
  return jax.jit(
    partitioning.within(layout, train_step),
    in_shardings=(shardings, batch),
    out_shardings=(shardings, partitioning.replicated(layout.mesh)),
    donate_argnums=0,
  )


def make_eval_step(model, objective, settings, *, seed: int):
  """`eval_step(params, token_ids [batch, length], rows [batch]) -> sums`, without dropout; masks depend on (seed, row) alone."""

  def eval_step(params, token_ids, rows):
    keys = row_keys(seed, 0, rows)
    examples = objective.examples(settings, token_ids, keys)
    loss, sums = objective.loss(
      settings,
      model,
      params,
      examples,
      objective.counts(settings, examples),
      train=False,
      bins=metrics.EVAL_BINS,
    )
    del loss
    return sums | {'tokens': (examples['inputs'].segment_ids > 0).sum(dtype=jnp.int32)}

  return eval_step


def jit_eval_step(model, objective, settings, layout: partitioning.Layout, *, seed: int):
  """`make_eval_step` under jax.jit: rows are split over the mesh, sums are whole on every process."""
  return jax.jit(
    partitioning.within(layout, make_eval_step(model, objective, settings, seed=seed)),
    out_shardings=partitioning.replicated(layout.mesh),
  )


def first_nonfinite(
  model,
  objective,
  settings,
  params,
  token_ids,
  *,
  seed: int,
  step: int,
  parts: int = 1,
  layout: partitioning.Layout | None = None,
  alone: bool = False,
  schedules: dict | None = None,
) -> str:
  """Names the first tensor that is not finite in a step that failed: a parameter, a figure, or a parameter's gradient.

  Computes the step's gradients again, in as many parts as it was made of.
  """
  layout = layout or partitioning.make_layout(devices=jax.devices()[:1])
  settings = dataclasses.replace(settings, **values(schedules or {}, step, None))

  def check(params, token_ids, rows):
    examples = objective.examples(settings, token_ids, row_keys(seed, step, rows))
    of_objective = common.generator_alone if alone else objective.loss

    def loss(params):
      return of_objective(
        settings, model, params, examples, objective.counts(settings, examples), train=True
      )

    (value, sums), grads = jax.value_and_grad(loss, has_aux=True)(params)

    def finite(tree):
      return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)

    figures = {name: x for name, x in sums.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return finite(params), finite(figures | {'loss': value}), finite(grads)

  check = jax.jit(
    partitioning.within(layout, check), out_shardings=partitioning.replicated(layout.mesh)
  )

  def split(x):
    return jax.make_array_from_callback(
      x.shape, partitioning.batch_sharding(layout.mesh), lambda index: x[index]
    )

  token_ids = np.asarray(token_ids)
  for part in range(parts):
    rows = np.arange(part, len(token_ids), parts, dtype=np.int32)
    if name := update_step.name_nonfinite(*check(params, split(token_ids[rows]), split(rows))):
      return name
  return 'a sum of gradients that are finite each'

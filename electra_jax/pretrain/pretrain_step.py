"""The jitted steps of pretraining and of its evaluation.

A step masks rows and computes the objective's loss; update_step.py updates the parameters.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from electra_jax.errors import UserError
from electra_jax.model.electra import Electra
from electra_jax.model.encoder import Inputs
from electra_jax.model.randomness import row_keys
from electra_jax.pretrain import metrics
from electra_jax.pretrain.objectives.objective import Objective
from electra_jax.pretrain.objectives.parts import Batch, LossContext, Params, Sums
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.training import devices, partitioning, update_step
from electra_jax.training.schedules import Schedule, values
from electra_jax.training.update_step import TrainState, UpdateOptions, fresh_state

PyTree: TypeAlias = Any
TrainStep: TypeAlias = Callable[[TrainState, PyTree], tuple[TrainState, Sums]]
# What jax.jit returns; it has `lower`, and is called like the function that it compiles.
Jitted: TypeAlias = Any
EvalStep: TypeAlias = Callable[[Params, PyTree], Sums]


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
  """What a training step computes, apart from the update of the parameters.

  Attributes:
    model: both towers and their heads.
    objective: of pretrain/objectives.
    settings: the objective's.
    seed: of masks, samples and dropout.
    generator_only: whether only the generator's loss is minimized.
    schedules: settings that change over the run, by name.
  """

  model: Electra
  objective: Objective
  settings: Settings
  seed: int
  generator_only: bool = False
  schedules: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)

  def prepare(self, step: jax.Array | int, batch: PyTree) -> tuple[Batch, dict[str, jax.Array]]:
    """Masks a global batch.

    Args:
      step: updates done before.
      batch: `token_ids` [batch, length]; `schedules`, see make_train_step, or none.

    Returns:
      The masked rows; counts over all of them, and the settings that change.
    """
    token_ids = batch['token_ids']
    now: dict[str, Any] = values(dict(self.schedules), step, batch.get('schedules'))
    keys = row_keys(self.seed, step, jnp.arange(token_ids.shape[0]))
    settings = dataclasses.replace(self.settings, **now)
    examples = self.objective.examples(settings, token_ids, keys)
    return examples, self.objective.counts(settings, examples) | now

  def loss(
    self, params: Params, examples: Batch, counts: dict[str, jax.Array]
  ) -> tuple[jax.Array, Sums]:
    """The loss of some rows of `prepare`, and sums for metrics; with dropout."""
    now: dict[str, Any] = {name: counts[name] for name in self.schedules}  # the same for all rows
    settings = dataclasses.replace(self.settings, **now)
    context = LossContext(settings, self.model, examples, counts, train=True)
    if self.generator_only:
      return self.objective.generator_only_loss(params, context)
    return self.objective.loss(params, context)


def init_params(model: Electra, seed: int, length: int) -> PyTree:
  """Parameters of `model`, boxed with their logical axes. Pure, for jax.eval_shape and jax.jit."""
  # Parameters do not depend on the kernel, and kernels of other kinds do not lower on several
  # devices at once.
  model = model.clone(
    **{
      name: dataclasses.replace(getattr(model, name), attention='xla')
      for name in ('generator_config', 'discriminator_config')
    }
  )
  return _init_params(model, jax.random.key(seed, impl='threefry2x32'), length)


@functools.partial(jax.jit, static_argnums=(0, 2))  # so that a model is traced for it once
def _init_params(model: Electra, key: jax.Array, length: int) -> PyTree:
  ids = jnp.zeros((1, length), jnp.int32)
  return model.init(key, Inputs(ids, ids + 1, ids, ids), jnp.zeros((1, 1), jnp.int32))['params']


def init_state(
  model: Electra, optimizer: optax.GradientTransformation, seed: int, length: int
) -> TrainState:
  """A state of randomly initialized parameters."""
  return fresh_state(optimizer, nn.unbox(init_params(model, seed, length)))


def state_shardings(
  model: Electra,
  optimizer: optax.GradientTransformation,
  length: int,
  layout: partitioning.Layout,
) -> tuple[TrainState, TrainState]:
  """Shapes and shardings of the state: two trees like TrainState."""
  boxed = jax.eval_shape(lambda: init_params(model, 0, length))
  return update_step.layout_of_state(boxed, optimizer, layout)


def make_train_step(
  computation: Computation,
  optimizer: optax.GradientTransformation,
  options: UpdateOptions | None = None,
) -> TrainStep:
  """Returns `train_step(state, batch) -> (state, sums)`: pure, for `jit_train_step`.

  `batch` has `token_ids`, int [batch, length], and may have `schedules`: the constants of learning
  rates and scheduled settings by name, see training.schedules.constants. Without them they are
  constants of the program. `sums` are those of the objective, and of norms over steps.

  Args:
    computation: the loss.
    optimizer: an optax transformation over the parameters.
    options: of the update; None for the defaults.
  """
  batch_loss = update_step.BatchLoss(computation.prepare, computation.loss)
  step: TrainStep = update_step.make_update_step(batch_loss, optimizer, options or UpdateOptions())
  return step


def jit_train_step(
  train_step: TrainStep,
  shardings: TrainState,
  layout: partitioning.Layout,
  with_schedules: bool = False,
) -> Jitted:
  """`train_step` under jax.jit with in and out shardings and donated state.

  Args:
    train_step: of make_train_step.
    shardings: of the state.
    layout: of the mesh.
    with_schedules: whether batches have `schedules`.
  """
  batch = {'token_ids': partitioning.batch_sharding(layout.mesh)}
  if with_schedules:
    batch['schedules'] = partitioning.replicated(layout.mesh)
  return jax.jit(
    partitioning.within(layout, train_step),
    in_shardings=(shardings, batch),
    out_shardings=(shardings, partitioning.replicated(layout.mesh)),
    donate_argnums=0,
    compiler_options=devices.compiler_options(layout.mesh),
  )


def make_eval_step(
  model: Electra, objective: Objective, settings: Settings, *, seed: int
) -> EvalStep:
  """Returns `eval_step(params, batch) -> sums`.

  There is no dropout. Masks and samples depend only on the seed and the numbers of the rows.

  The batch has `token_ids` [batch, length] and `rows` [batch], their numbers. It may have `groups`
  [batch], the group of each row in this batch, with `slots` [groups]: each sum then has a leading
  axis of groups. It may have `reference`, see evaluation.py: `token_ids` [batch, length], and
  `ranks` and `noise` of each token [vocab].
  """

  def eval_step(params: Params, batch: PyTree) -> Sums:
    token_ids, groups = batch['token_ids'], batch.get('groups')
    examples = objective.examples(settings, token_ids, row_keys(seed, 0, batch['rows']))
    context = LossContext(
      settings,
      model,
      examples,
      objective.counts(settings, examples),
      train=False,
      groups=groups,
      num_groups=0 if groups is None else len(batch['slots']),
    )
    _, sums = objective.loss(params, context)
    _check_groups(sums, context)
    tokens = (examples['inputs'].segment_ids > 0).astype(jnp.int32)
    sums |= {'tokens': context.summing.total(tokens)}
    if 'reference' in batch:
      sums |= _reference_sums(objective, params, context, batch['reference'])
    return sums

  return eval_step


def _check_groups(sums: Sums, context: LossContext) -> None:
  """Raises UserError for a sum of an objective that is not by groups."""
  for name, value in sums.items():
    if context.groups is not None and value.shape[:1] != (context.num_groups,):
      raise UserError(
        f'the sum {name!r} of the objective has shape {value.shape}; expected a leading axis of '
        f'{context.num_groups} groups, as context.summing.total returns it.'
      )


def _reference_sums(
  objective: Objective, params: Params, context: LossContext, reference: PyTree
) -> Sums:
  """Sums of the discriminator's verdicts on rows that were corrupted without a generator."""
  original, shown = context.inputs.token_ids, reference['token_ids']
  verdicts = objective.reference_verdicts(params, context, shown, reference['noise'][shown])
  return metrics.reference_sums(
    verdicts,
    reference['ranks'][shown],
    (shown != original).astype(jnp.float32),
    ~jnp.isin(original, jnp.array(context.settings.special_ids)),
    context.summing,
  )


def jit_eval_step(
  model: Electra,
  objective: Objective,
  settings: Settings,
  layout: partitioning.Layout,
  *,
  seed: int,
) -> Jitted:
  """`make_eval_step` under jax.jit: rows are split over the mesh, every process gets all sums."""
  return jax.jit(
    partitioning.within(layout, make_eval_step(model, objective, settings, seed=seed)),
    out_shardings=partitioning.replicated(layout.mesh),
    compiler_options=devices.compiler_options(layout.mesh),
  )


def first_nonfinite(
  computation: Computation,
  params: Params,
  token_ids: np.ndarray,
  *,
  step: int,
  micro_batches: int = 1,
  layout: partitioning.Layout | None = None,
) -> str:
  """Names the first tensor that is not finite in a step that failed.

  That is a parameter, a metric, or a parameter's gradient. The step's gradients are computed again.

  Args:
    computation: of the step.
    params: parameters before it.
    token_ids: its batch, int [batch, length].
    step: updates done before.
    micro_batches: parts that the batch was split into.
    layout: of the mesh; None for one device.
  """
  layout = layout or partitioning.make_layout(devices=jax.devices()[:1])
  now: dict[str, Any] = values(dict(computation.schedules), step, None)
  settings, objective = dataclasses.replace(computation.settings, **now), computation.objective

  def check(params: Params, token_ids: jax.Array, rows: jax.Array) -> tuple[PyTree, ...]:
    examples = objective.examples(settings, token_ids, row_keys(computation.seed, step, rows))
    counts = objective.counts(settings, examples) | now

    def loss(params: Params) -> tuple[jax.Array, Sums]:
      return computation.loss(params, examples, counts)

    (value, sums), grads = jax.value_and_grad(loss, has_aux=True)(params)

    def finite(tree: PyTree) -> PyTree:
      return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)

    floats = {name: x for name, x in sums.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return finite(params), finite(floats | {'loss': value}), finite(grads)

  jitted = jax.jit(
    partitioning.within(layout, check), out_shardings=partitioning.replicated(layout.mesh)
  )

  def split(x: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(
      x.shape, partitioning.batch_sharding(layout.mesh), lambda index: x[index]
    )

  token_ids = np.asarray(token_ids)
  for part in range(micro_batches):
    rows = np.arange(part, len(token_ids), micro_batches, dtype=np.int32)
    if name := update_step.name_nonfinite(*jitted(params, split(token_ids[rows]), split(rows))):
      return str(name)
  return 'a sum of gradients, each of which is finite'

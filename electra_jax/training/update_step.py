"""A training step of any loss: gradients over micro-batches and the mesh, the update, and norms."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from electra_jax.training import partitioning

# Limits of skipped updates, from which a run with skip_nonfinite stops.
MOST_IN_A_ROW = 20
WINDOW = 1_000  # steps
MOST_IN_WINDOW = WINDOW // 100
NEVER = -(2**30)  # in place of the step of a skipped update that there was not

PyTree = Any
Leaf = Any  # jax.Array; in trees of shapes or shardings, one of these


class TrainState(NamedTuple):
  """All that changes while training. Randomness is keyed by (seed, step, row) and has no state.

  Attributes:
    step: int32, steps taken.
    params: parameters.
    opt_state: state of the optimizer.
    skipped: int32, steps that were skipped because a loss or gradient was not finite.
    bad_step: int32, the step that was not finite and stopped the run, or at which the limits of
      skipped updates were passed; -1 for none.
    recent_skips: int32 `[MOST_IN_A_ROW]`, the steps of the last updates that were skipped, in their
      order, after NEVER where there were fewer.
  """

  step: Leaf
  params: PyTree
  opt_state: PyTree
  skipped: Leaf
  bad_step: Leaf
  recent_skips: Leaf


class BatchLoss(NamedTuple):
  """The loss of a batch, in two functions.

  Attributes:
    prepare: `(step, batch) -> (examples, counts)`: rows `[batch, ...]` for `loss`, and counts over
      all of them.
    loss: `(params, examples, counts) -> (value, sums)` of some of the rows. Values and sums of
      parts of the rows add up to those of the batch.
  """

  prepare: Callable[[jax.Array | int, Mapping[str, Any]], tuple[PyTree, PyTree]]
  loss: Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class UpdateOptions:
  """Options of a training step.

  Attributes:
    micro_batches: parts that the rows of each device are split into. Their gradients are added; the
      update is the same.
    skip_nonfinite: skip an update whose loss or gradient is not finite, and count it. The schedule
      of the learning rate advances, parameters and moments do not change. From MOST_IN_A_ROW
      skipped updates in a row, or more than MOST_IN_WINDOW in WINDOW steps, the run stops as
      without skipping: the state stays as it was before that step, in it and in all later steps,
      and `bad_step` names it.
    layout: layout on a mesh; None for one device.
    moments: shardings of the optimizer's moments, of partitioning.moment_shardings.
    trained: top-level names of the trainable parameters; None for all. The others and their moments
      do not change at all.
  """

  micro_batches: int = 1
  skip_nonfinite: bool = False
  layout: partitioning.Layout | None = None
  moments: PyTree = None
  trained: tuple[str, ...] | None = None


#### State ####


def fresh_state(optimizer: optax.GradientTransformation, params: PyTree) -> TrainState:
  """The state before the first step."""
  return TrainState(
    step=jnp.zeros([], jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    skipped=jnp.zeros([], jnp.int32),
    bad_step=jnp.full([], -1, jnp.int32),
    recent_skips=no_skips(),
  )


def no_skips() -> jax.Array:
  """The `recent_skips` of a state without skipped updates."""
  return jnp.full([MOST_IN_A_ROW], NEVER, jnp.int32)


def layout_of_state(
  boxed: PyTree, optimizer: optax.GradientTransformation, layout: partitioning.Layout
) -> tuple[TrainState, TrainState]:
  """Shapes and shardings of the state.

  The optimizer's moments are split as the parameters are, or more. Counters are replicated.

  Args:
    boxed: shapes of the parameters, with their logical axes.
    optimizer: the optimizer.
    layout: the mesh and its rules.

  Returns:
    Two trees like TrainState.
  """
  shardings = partitioning.parameter_shardings(boxed, layout)
  shapes = jax.eval_shape(functools.partial(fresh_state, optimizer), nn.unbox(boxed))
  whole = partitioning.replicated(layout.mesh)
  moments = partitioning.moment_shardings(shapes.params, shardings, layout)

  def split(_: PyTree, state: PyTree) -> PyTree:
    return {name: split_as_parameter(name, tree) for name, tree in state.items()}

  def split_as_parameter(name: str, tree: PyTree) -> PyTree:
    params = shapes.params[name]
    form: Any = jax.tree.structure(params)
    if form != jax.tree.structure(tree):
      return jax.tree.map(lambda _: whole, tree)
    # Optimizers that factor their moments, as Adafactor does, have some of other shapes.
    return jax.tree.map(
      lambda x, param, moment: moment if x.shape == param.shape else whole,
      tree,
      params,
      moments[name],
    )

  replicated = jax.tree.map(lambda _: whole, shapes.opt_state)
  opt_shardings = with_moments(replicated, shapes.params, split, shapes.opt_state)
  return shapes, TrainState(
    step=whole,
    params=shardings,
    opt_state=opt_shardings,
    skipped=whole,
    bad_step=whole,
    recent_skips=whole,
  )


def with_moments(
  opt_state: PyTree, params: Mapping[str, Any], change: Callable[..., PyTree], *others: PyTree
) -> PyTree:
  """Replaces the moments in an optimizer state.

  Moments are dicts by top-level parameters, as `mu` and `nu` of optax.ScaleByAdamState are, in the
  state of any optimizer.

  Args:
    opt_state: state of the optimizer.
    params: top-level parameters by name.
    change: `(moments, *moments of others) -> moments`.
    *others: states of the same structure.
  """

  def is_moments(x: PyTree) -> bool:
    return isinstance(x, dict) and x.keys() <= params.keys()

  def replaced(new: PyTree, *old: PyTree) -> PyTree:
    return change(new, *old) if is_moments(new) else new

  return jax.tree.map(replaced, opt_state, *others, is_leaf=is_moments)


#### The step ####


def make_update_step(
  batch_loss: BatchLoss,
  optimizer: optax.GradientTransformation,
  options: UpdateOptions,
) -> Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, dict[str, jax.Array]]]:
  """Makes `train_step(state, batch) -> (state, sums)`, a pure function.

  Args:
    batch_loss: the loss.
    optimizer: optax transformation of the parameters. Its update gets `batch['schedules']`, if the
      batch has it, as `inputs`; see training/schedules.py.
    options: options of the step.
  """
  optimizer = optax.with_extra_args_support(optimizer)
  trained, layout = options.trained, options.layout
  gradients: Callable[..., Any] = functools.partial(_gradients, batch_loss.loss, options)
  if layout:
    gradients = partitioning.sum_over_data(layout, gradients, options.moments)

  def split_as_moments(tree: PyTree) -> PyTree:
    return jax.lax.with_sharding_constraint(tree, options.moments) if layout else tree

  def train_step(
    state: TrainState, batch: Mapping[str, Any]
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    sums, grads = gradients(state.params, *batch_loss.prepare(state.step, batch))

    # Each device updates the parameters whose moments it holds. Then the parameters are gathered.
    grads, old_params = split_as_moments(grads), split_as_moments(state.params)
    updates, opt_state = optimizer.update(
      grads, state.opt_state, old_params, inputs=batch.get('schedules')
    )
    updates = _only_trained(trained, updates, jax.tree.map(jnp.zeros_like, updates))
    opt_state = with_moments(
      opt_state, state.params, functools.partial(_only_trained, trained), state.opt_state
    )
    params = split_as_moments(optax.apply_updates(old_params, updates))
    gradient_norms = tower_norms(grads)
    finite = jnp.isfinite(sums['loss']) & jnp.isfinite(gradient_norms['all'])
    recent = jnp.where(finite, state.recent_skips, _appended(state.recent_skips, state.step))
    stops = passes_limits(recent, state.step) if options.skip_nonfinite else ~finite
    bad = jnp.where(stops & (state.bad_step < 0), state.step, state.bad_step)
    fine = finite & (bad < 0)

    def keep(new: PyTree, old: PyTree, when: jax.Array = fine) -> PyTree:
      return jax.tree.map(lambda n, o: jnp.where(when, n, o), new, old)

    def keep_but_schedule(new: PyTree, old: PyTree) -> PyTree:
      return keep(new, old, bad < 0 if _is_schedule(new) else fine)

    new_state = TrainState(
      step=jnp.where(bad >= 0, state.step, state.step + 1),
      params=keep(params, old_params),
      opt_state=jax.tree.map(keep_but_schedule, opt_state, state.opt_state, is_leaf=_is_schedule),
      skipped=state.skipped + (~finite & (bad < 0)),
      bad_step=bad,
      recent_skips=keep(recent, state.recent_skips, bad < 0),
    )
    sums |= {'steps': jnp.ones([], jnp.int32)}
    for name, norms in (
      ('gradient_norm', gradient_norms),
      ('parameter_norm', tower_norms(old_params)),
      ('update_norm', tower_norms(updates)),
    ):
      sums |= {f'{name}/{tower}': norm for tower, norm in norms.items()}
    # A skipped step must not turn the sums of the whole interval into nan.
    return new_state, jax.tree.map(lambda x: jnp.where(fine, x, jnp.zeros_like(x)), sums)

  return train_step


def _appended(recent: jax.Array, step: jax.Array) -> jax.Array:
  """`recent_skips` with another step, without the oldest one."""
  return jnp.concatenate([recent[1:], step[None]])


def passes_limits(recent: jax.Array, step: jax.Array) -> jax.Array:
  """Whether so many updates were skipped that the run stops.

  Args:
    recent: as of TrainState, this step included.
    step: steps that were taken before this one.
  """
  in_a_row = recent[0] == step - (MOST_IN_A_ROW - 1)
  too_many = recent[-MOST_IN_WINDOW - 1] > step - WINDOW
  return in_a_row | (too_many & (step >= WINDOW - 1))


def _is_schedule(state: PyTree) -> bool:
  """Whether a part of an optimizer state is the count of a schedule, which follows the step."""
  return isinstance(state, optax.ScaleByScheduleState)


def _only_trained(
  trained: tuple[str, ...] | None, new: dict[str, PyTree], old: dict[str, PyTree]
) -> dict[str, PyTree]:
  """Takes the trainable top-level entries from `new`, the others from `old`."""
  if trained is None:
    return new
  return {name: new[name] if name in trained else old[name] for name in new}


def _gradients(
  loss: Callable[..., Any], options: UpdateOptions, params: PyTree, examples: PyTree, counts: PyTree
) -> tuple[dict[str, jax.Array], PyTree]:
  """Sums and gradients of some rows, added up over micro-batches."""

  def of_micro_batch(params: PyTree, examples: PyTree) -> tuple[dict[str, jax.Array], PyTree]:
    def trainable_loss(params: PyTree) -> tuple[jax.Array, dict[str, jax.Array]]:
      params = _only_trained(options.trained, params, jax.lax.stop_gradient(params))
      value: tuple[jax.Array, dict[str, jax.Array]] = loss(params, examples, counts)
      return value

    (value, sums), grads = jax.value_and_grad(trainable_loss, has_aux=True)(params)
    return {'loss': value, **sums}, grads

  parts = options.micro_batches
  if parts == 1:
    return of_micro_batch(params, examples)

  # Row r goes to micro-batch r % parts: each device keeps its own rows, and nothing moves.
  def split(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

  def add(total: PyTree, micro: PyTree) -> tuple[PyTree, None]:
    return jax.tree.map(jnp.add, total, of_micro_batch(params, micro)), None

  micro_batches = jax.tree.map(split, examples)
  first = jax.tree.map(lambda x: x[0], micro_batches)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_micro_batch, params, first)
  )
  total: tuple[dict[str, jax.Array], PyTree] = jax.lax.scan(add, zeros, micro_batches)[0]
  return total


def tower_norms(tree: Mapping[str, PyTree]) -> dict[str, jax.Array]:
  """Global norms of a tree like the parameters.

  Returns:
    Norms of 'embeddings', 'generator' and 'discriminator' (with their heads), and of 'all'.
  """
  squares: dict[str, Any] = {}
  for name, subtree in tree.items():
    tower = 'embeddings' if name == 'embeddings' else name.split('_')[0]
    squares[tower] = squares.get(tower, 0.0) + sum(
      jnp.sum(jnp.square(x)) for x in jax.tree.leaves(subtree)
    )
  norms = {tower: jnp.sqrt(total) for tower, total in squares.items()}
  return norms | {'all': jnp.sqrt(sum(squares.values()))}


#### The report of a step that was not finite ####


def find_nonfinite(
  batch_loss: BatchLoss,
  params: PyTree,
  step: int,
  batch: Mapping[str, Any],
  layout: partitioning.Layout,
) -> str:
  """Computes the gradients of a failed step again, and names the first tensor that is not finite.

  Args:
    batch_loss: the loss.
    params: parameters before the step.
    step: steps that were taken before.
    batch: batch of the step, on the mesh.
    layout: the mesh.
  """

  def check(params: PyTree, batch: Mapping[str, Any]) -> tuple[PyTree, PyTree, PyTree]:
    examples, counts = batch_loss.prepare(step, batch)
    (value, sums), grads = jax.value_and_grad(
      lambda params: batch_loss.loss(params, examples, counts), has_aux=True
    )(params)

    def finite(tree: PyTree) -> PyTree:
      return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)

    metrics = {name: x for name, x in sums.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return finite(params), finite(metrics | {'loss': value}), finite(grads)

  whole = partitioning.replicated(layout.mesh)
  checked = jax.jit(partitioning.within(layout, check), out_shardings=whole)(params, batch)
  return name_nonfinite(*checked) or 'a sum of gradients that are each finite'


def name_nonfinite(params: PyTree, metrics: PyTree, gradients: PyTree) -> str | None:
  """Names the first False in three trees of truth values; None if all are True."""
  for kind, tree in (
    ('the parameter', params),
    ('the metric', metrics),
    ('the gradient of', gradients),
  ):
    for path, fine in jax.tree_util.tree_leaves_with_path(tree):
      if not fine:
        return f'{kind} {jax.tree_util.keystr(path, simple=True, separator="/")}'
  return None

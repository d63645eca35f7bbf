"""A training step of any loss: gradients over micro-batches and the mesh, the update, and what is told of it."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from electra_jax.training import partitioning


class TrainState(NamedTuple):
  """All that changes while training. Randomness is not in it: it comes from (seed, step, row)."""

  step: jax.Array  # int32: steps done
  params: Any
  opt_state: Any
  skipped: jax.Array  # int32: steps left out because a gradient was not finite
  bad_step: jax.Array  # int32: the step that was not finite and halted the run, or -1


def fresh_state(optimizer, params) -> TrainState:
  """The state before the first step."""
  return TrainState(
    step=jnp.zeros([], jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    skipped=jnp.zeros([], jnp.int32),
    bad_step=jnp.full([], -1, jnp.int32),
  )


def state_shardings(boxed, optimizer, layout: partitioning.Layout):
  """Shapes and shardings of the state: two trees like TrainState. `boxed`: shapes of the parameters with their logical axes."""
  shardings = partitioning.parameter_shardings(boxed, layout)
  shapes = jax.eval_shape(lambda params: fresh_state(optimizer, params), nn.unbox(boxed))
  whole, moments = (
    partitioning.replicated(layout.mesh),
    partitioning.moment_shardings(shapes.params, shardings, layout),
  )
  # The optimizer's moments are laid out as the parameters are, or finer; counters are on every device.
  opt_shardings = with_moments(
    jax.tree.map(lambda _: whole, shapes.opt_state),
    lambda tree: {name: moments[name] for name in tree},
  )
  return shapes, TrainState(
    step=whole, params=shardings, opt_state=opt_shardings, skipped=whole, bad_step=whole
  )


def make_train_step(
  prepare,
  loss,
  optimizer,
  *,
  micro_batches: int = 1,
  skip_nonfinite: bool = False,
  layout: partitioning.Layout | None = None,
  moments=None,
  trained: tuple[str, ...] | None = None,
):
  """`train_step(state, batch) -> (state, sums)`, pure.

  Args:
    prepare: `(step, batch) -> (examples, counts)`: rows `[batch, ...]` for the loss, and counts over the whole of them.
    loss: `(params, examples, counts) -> (value, sums)`, of some of the rows: values and sums add up over them.
    optimizer: an optax transformation over the parameters. Its update gets `batch['schedules']`, where
      it is there, as `inputs`, see training/schedules.py.
    micro_batches: parts that each device's rows are split into; gradients are added up, the update is the same.
    skip_nonfinite: leave out an update whose loss or gradient is not finite, and count it. Otherwise the state stays as it was
      before that step, this one and all that follow, and `bad_step` names it.
    layout, moments: of the mesh, and the shardings of the optimizer's moments (mesh.moment_shardings); None on one device.
    trained: top levels of the parameters that learn, where not all do; the others and their moments stay bit for bit.
  """

  def mixed(new: dict, old: dict) -> dict:
    return (
      new
      if trained is None
      else {name: new[name] if name in trained else old[name] for name in new}
    )

  def micro_gradients(params, micro, counts):
    def learning(params):
      return loss(mixed(params, jax.lax.stop_gradient(params)), micro, counts)

    (value, sums), grads = jax.value_and_grad(learning, has_aux=True)(params)
    return {'loss': value, **sums}, grads

  def gradients(params, examples, counts):
    """Sums and gradients of rows, as many as there are."""
    if micro_batches == 1:
      return micro_gradients(params, examples, counts)

    # Row r goes to micro-batch r % k: each device keeps its own rows, nothing moves.
    def split(x):
      return x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    def add(total, micro):
      return (
        jax.tree.map(jnp.add, total, micro_gradients(params, micro, counts)),
        None,
      )

    split_examples = jax.tree.map(split, examples)
    first = jax.tree.map(lambda x: x[0], split_examples)
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(micro_gradients, params, first, counts)
    )
    return jax.lax.scan(add, zeros, split_examples)[0]

  optimizer = optax.with_extra_args_support(optimizer)
  over_devices = partitioning.sum_over_data(layout, gradients, moments) if layout else gradients
  laid_out = (
    (lambda tree: jax.lax.with_sharding_constraint(tree, moments))
    if layout
    else (lambda tree: tree)
  )

  def train_step(state: TrainState, batch):
    sums, grads = over_devices(state.params, *prepare(state.step, batch))

    # Each device updates the part of the parameters whose moments it has; then the parts are gathered.
    grads, old_params = laid_out(grads), laid_out(state.params)
    updates, opt_state = optimizer.update(
      grads, state.opt_state, old_params, inputs=batch.get('schedules')
    )
    updates = mixed(updates, jax.tree.map(jnp.zeros_like, updates))
    opt_state = with_moments(opt_state, lambda new, old: mixed(new, old), state.opt_state)
    params = laid_out(optax.apply_updates(old_params, updates))
    gradient_norms = tower_norms(grads)
    fine = jnp.isfinite(sums['loss']) & jnp.isfinite(gradient_norms['all']) & (state.bad_step < 0)

    def keep(new, old):
      return jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)

    bad = jnp.where(fine | skip_nonfinite | (state.bad_step >= 0), state.bad_step, state.step)
    new_state = TrainState(
      step=jnp.where(bad >= 0, state.step, state.step + 1),
      params=keep(params, old_params),
      opt_state=keep(opt_state, state.opt_state),
      skipped=state.skipped + (~fine & (bad < 0)),
      bad_step=bad,
    )
    sums |= {'steps': jnp.ones([], jnp.int32)}
    for name, norms in (
      ('gradient_norm', gradient_norms),
      ('parameter_norm', tower_norms(old_params)),
      ('update_norm', tower_norms(updates)),
    ):
      sums |= {f'{name}/{tower}': norm for tower, norm in norms.items()}
    # A step left out must not turn the sums of a whole interval into nan.
    return new_state, jax.tree.map(lambda x: jnp.where(fine, x, jnp.zeros_like(x)), sums)

  return train_step


def with_moments(opt_state, change, *others):
  """An optimizer's state with `change(moments, *moments of others)` in place of each of Adam's two moments."""

  def is_adam(x):
    return isinstance(x, optax.ScaleByAdamState)

  def replaced(new, *old):
    return new._replace(
      **{
        name: change(getattr(new, name), *(getattr(o, name) for o in old)) for name in ('mu', 'nu')
      }
    )

  return jax.tree.map(
    lambda new, *old: replaced(new, *old) if is_adam(new) else new,
    opt_state,
    *others,
    is_leaf=is_adam,
  )


def tower_norms(tree) -> dict[str, jax.Array]:
  """Global norms of a parameter-shaped tree: embeddings, generator and discriminator (heads included), and all."""
  squares = {}
  for name, subtree in tree.items():
    tower = 'embeddings' if name == 'embeddings' else name.split('_')[0]
    squares[tower] = squares.get(tower, 0.0) + sum(
      jnp.sum(jnp.square(x)) for x in jax.tree.leaves(subtree)
    )
  return {tower: jnp.sqrt(total) for tower, total in squares.items()} | {
    'all': jnp.sqrt(sum(squares.values()))
  }


def first_nonfinite(prepare, loss, params, step: int, batch, layout: partitioning.Layout) -> str:
  """Names the first tensor that is not finite in a step that failed: a parameter, a figure, or a parameter's gradient.

  Computes the step's gradients again; `prepare` and `loss` as in make_train_step.
  """

  def check(params, batch):
    examples, counts = prepare(step, batch)
    (value, sums), grads = jax.value_and_grad(
      lambda params: loss(params, examples, counts), has_aux=True
    )(params)

    def finite(tree):
      return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)

    figures = {name: x for name, x in sums.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return finite(params), finite(figures | {'loss': value}), finite(grads)

  fine = jax.jit(
    partitioning.within(layout, check), out_shardings=partitioning.replicated(layout.mesh)
  )(params, batch)
  return name_nonfinite(*fine) or 'a sum of gradients that are finite each'


def name_nonfinite(params, figures, gradients) -> str | None:
  """The first of three trees of truth values that says no, in words."""
  for kind, tree in (
    ('the parameter', params),
    ('the figure', figures),
    ('the gradient of', gradients),
  ):
    for path, fine in jax.tree_util.tree_leaves_with_path(tree):
      if not fine:
        return f'{kind} {jax.tree_util.keystr(path, simple=True, separator="/")}'
  return None

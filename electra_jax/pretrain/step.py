"""The jitted step: masks, both towers, gradients over micro-batches, the update, the figures' sums."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from electra_jax.model.encoder import Inputs
from electra_jax.pretrain import masking, metrics
from electra_jax.training import mesh as meshes


class TrainState(NamedTuple):
  """All that changes while training. Randomness is not in it: it comes from (seed, step, row)."""
  step: jax.Array         # int32: steps done
  params: Any
  opt_state: Any
  skipped: jax.Array      # int32: steps left out because a gradient was not finite
  bad_step: jax.Array     # int32: the step that was not finite and halted the run, or -1


def init_params(model, seed: int, length: int):
  """Parameters of `model`, boxed with their logical axes. Pure, for jax.eval_shape and jax.jit."""
  ids = jnp.zeros((1, length), jnp.int32)
  key = jax.random.key(seed, impl='threefry2x32')
  # Nothing is attended to yet, and a kernel of another kind does not lower on several devices at once.
  model = model.clone(**{name: dataclasses.replace(getattr(model, name), attention='xla') for name in ('generator_config', 'discriminator_config')})
  return model.init(key, Inputs(ids, ids + 1, ids, ids), jnp.zeros((1, 1), jnp.int32))['params']


def init_state(model, optimizer, seed: int, length: int, params=None) -> TrainState:
  """A fresh state; `params` to start from given parameters."""
  if params is None:
    params = nn.unbox(init_params(model, seed, length))
  return TrainState(step=jnp.zeros([], jnp.int32), params=params, opt_state=optimizer.init(params),
                    skipped=jnp.zeros([], jnp.int32), bad_step=jnp.full([], -1, jnp.int32))


def state_shardings(model, optimizer, length: int, layout: meshes.Layout):
  """Shapes and shardings of the state: two trees like TrainState."""
  boxed = jax.eval_shape(lambda: init_params(model, 0, length))
  shardings = meshes.parameter_shardings(boxed, layout)
  shapes = jax.eval_shape(lambda params: init_state(model, optimizer, 0, length, params), nn.unbox(boxed))
  whole = meshes.replicated(layout.mesh)
  # The optimizer's moments are laid out as the parameters are, or finer; counters are on every device.
  opt_shardings = optax.tree_map_params(optimizer, lambda _, sharding: sharding, shapes.opt_state,
                                        meshes.moment_shardings(shapes.params, shardings, layout),
                                        transform_non_params=lambda _: whole)
  return shapes, TrainState(step=whole, params=shardings, opt_state=opt_shardings, skipped=whole, bad_step=whole)


def make_train_step(model, objective, settings, optimizer, *, seed: int, micro_batches: int = 1,
                    skip_nonfinite: bool = False, layout: meshes.Layout | None = None, moments=None):
  """`train_step(state, batch) -> (state, sums)`: pure, to be jitted with `jit_train_step`.

  Args:
    model, objective, settings: the model, a module of pretrain/objectives and its settings.
    optimizer: an optax transformation over the parameters.
    seed: of masks, samples and dropout.
    micro_batches: parts that each device's rows are split into; gradients are added up, the update is the same.
    skip_nonfinite: leave out an update whose loss or gradient is not finite, and count it. Otherwise the state stays as it was
      before that step, this one and all that follow, and `bad_step` names it.
    layout, moments: of the mesh, and the shardings of the optimizer's moments (mesh.moment_shardings); None on one device.

  `batch` is {'token_ids': int [batch, length]}; `sums` is what metrics.figures reads, and the sums of norms over steps.
  """
  def micro_gradients(params, micro, counts):
    loss = lambda params: objective.loss(settings, model, params, micro, counts, train=True)
    (value, sums), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return {'loss': value, **sums}, grads

  def gradients(params, examples, counts):
    """Sums and gradients of rows, as many as there are."""
    if micro_batches == 1:
      return micro_gradients(params, examples, counts)
    # Row r goes to micro-batch r % k: each device keeps its own rows, nothing moves.
    split = lambda x: x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1)
    add = lambda total, micro: (jax.tree.map(jnp.add, total, micro_gradients(params, micro, counts)), None)
    split_examples = jax.tree.map(split, examples)
    first = jax.tree.map(lambda x: x[0], split_examples)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(micro_gradients, params, first, counts))
    return jax.lax.scan(add, zeros, split_examples)[0]

  over_devices = meshes.sum_over_data(layout, gradients, moments) if layout else gradients
  laid_out = (lambda tree: jax.lax.with_sharding_constraint(tree, moments)) if layout else (lambda tree: tree)

  def train_step(state: TrainState, batch):
    token_ids = batch['token_ids']
    keys = masking.row_keys(seed, state.step, jnp.arange(token_ids.shape[0]))
    examples = objective.examples(settings, token_ids, keys)
    sums, grads = over_devices(state.params, examples, objective.counts(settings, examples))

    # Each device updates the part of the parameters whose moments it has; then the parts are gathered.
    grads, old_params = laid_out(grads), laid_out(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, old_params)
    params = laid_out(optax.apply_updates(old_params, updates))
    gradient_norms = metrics.tower_norms(grads)
    fine = jnp.isfinite(sums['loss']) & jnp.isfinite(gradient_norms['all']) & (state.bad_step < 0)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)
    bad = jnp.where(fine | skip_nonfinite | (state.bad_step >= 0), state.bad_step, state.step)
    new_state = TrainState(
        step=jnp.where(bad >= 0, state.step, state.step + 1), params=keep(params, old_params),
        opt_state=keep(opt_state, state.opt_state), skipped=state.skipped + (~fine & (bad < 0)), bad_step=bad)
    sums |= {'steps': jnp.ones([], jnp.int32)}
    for name, norms in (('gradient_norm', gradient_norms), ('parameter_norm', metrics.tower_norms(old_params)),
                        ('update_norm', metrics.tower_norms(updates))):
      sums |= {f'{name}/{tower}': norm for tower, norm in norms.items()}
    # A step left out must not turn the sums of a whole interval into nan.
    return new_state, jax.tree.map(lambda x: jnp.where(fine, x, jnp.zeros_like(x)), sums)

  return train_step


def jit_train_step(train_step, shardings: TrainState, layout: meshes.Layout):
  """`train_step` under jax.jit with in and out shardings and donated state."""
  return jax.jit(meshes.within(layout, train_step), in_shardings=(shardings, {'token_ids': meshes.batch_sharding(layout.mesh)}),
                 out_shardings=(shardings, meshes.replicated(layout.mesh)), donate_argnums=0)


def make_eval_step(model, objective, settings, *, seed: int):
  """`eval_step(params, token_ids [batch, length], rows [batch]) -> sums`, without dropout; masks depend on (seed, row) alone."""
  def eval_step(params, token_ids, rows):
    keys = masking.row_keys(seed, 0, rows)
    examples = objective.examples(settings, token_ids, keys)
    loss, sums = objective.loss(settings, model, params, examples, objective.counts(settings, examples), train=False,
                                bins=metrics.EVAL_BINS)
    del loss
    return sums
  return eval_step


def jit_eval_step(model, objective, settings, layout: meshes.Layout, *, seed: int):
  """`make_eval_step` under jax.jit: rows are split over the mesh, sums are whole on every process."""
  return jax.jit(meshes.within(layout, make_eval_step(model, objective, settings, seed=seed)),
                 out_shardings=meshes.replicated(layout.mesh))


def first_nonfinite(model, objective, settings, params, token_ids, *, seed: int, step: int, parts: int = 1,
                    layout: meshes.Layout | None = None) -> str:
  """Names the first tensor that is not finite in a step that failed: a parameter, a figure, or a parameter's gradient.

  Computes the step's gradients again, in as many parts as it was made of.
  """
  layout = layout or meshes.make_layout(devices=jax.devices()[:1])

  def check(params, token_ids, rows):
    examples = objective.examples(settings, token_ids, masking.row_keys(seed, step, rows))
    loss = lambda params: objective.loss(settings, model, params, examples, objective.counts(settings, examples), train=True)
    (value, sums), grads = jax.value_and_grad(loss, has_aux=True)(params)
    finite = lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)
    figures = {name: x for name, x in sums.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return finite(params), finite(figures | {'loss': value}), finite(grads)

  check = jax.jit(meshes.within(layout, check), out_shardings=meshes.replicated(layout.mesh))
  split = lambda x: jax.make_array_from_callback(x.shape, meshes.batch_sharding(layout.mesh), lambda index: x[index])
  token_ids = np.asarray(token_ids)
  for part in range(parts):
    rows = np.arange(part, len(token_ids), parts, dtype=np.int32)
    for kind, tree in zip(('the parameter', 'the figure', 'the gradient of'), check(params, split(token_ids[rows]), split(rows))):
      for path, fine in jax.tree_util.tree_leaves_with_path(tree):
        if not fine:
          return f'{kind} {jax.tree_util.keystr(path, simple=True, separator="/")}'
  return 'a sum of gradients that are finite each'

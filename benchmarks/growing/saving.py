"""A checkpoint of parameters and moments: time to save and to restore it, and size."""

import pathlib
import tempfile
import time

from growing import resident

ARRAYS = 16  # of the parameters, as many layers have


def measure(point: dict[str, int]) -> dict[str, float]:
  """Saves and restores a state with Adam's moments.

  Args:
    point: 'parameters', their number.

  Returns:
    `blocking`: seconds until training could continue; `processor`: processor seconds until the
    checkpoint is complete, and `restore` those of restoring it; `clock`: seconds until it is
    complete; `disk`: bytes of its files; `memory`: bytes beside the state, at most.
  """
  import jax
  import jax.numpy as jnp
  import optax

  from electra_jax.training import checkpoints, partitioning, update_step

  side = round((point['parameters'] / ARRAYS) ** 0.5)
  layout = partitioning.make_layout(devices=jax.devices()[:1])
  whole = partitioning.replicated(layout.mesh)
  optimizer = optax.scale_by_adam()

  def fresh() -> update_step.TrainState:
    # Not zeros, which would be compressed away.
    params = {
      'encoder': {f'{i}': jax.random.normal(jax.random.key(i), (side, side)) for i in range(ARRAYS)}
    }
    state = update_step.fresh_state(optimizer, params)
    moments = jax.tree.map(lambda x: 0.1 * x, params)
    return state._replace(opt_state=state.opt_state._replace(mu=moments, nu=params))

  state = jax.block_until_ready(jax.jit(fresh, out_shardings=whole)())
  sums = {'loss': jnp.zeros(())}
  with tempfile.TemporaryDirectory() as folder:
    manager = checkpoints.open_manager(folder)
    before = resident.forget()
    clock, start = time.perf_counter(), time.process_time()
    checkpoints.save(manager, 1, state, sums, None)
    blocking = time.perf_counter() - clock
    checkpoints.wait(manager)
    found = {
      'blocking': blocking,
      'clock': time.perf_counter() - clock,
      'processor': time.process_time() - start,
      'memory': resident.most() - before,
      'disk': sum(p.stat().st_size for p in pathlib.Path(folder).rglob('*') if p.is_file()),
    }
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, sums))
    shardings = jax.tree.map(lambda _: whole, shapes[0])
    del state
    start = time.process_time()
    jax.block_until_ready(
      checkpoints.restore_state(manager, 1, shapes[0], shardings, shapes[1], whole)
    )
    found['restore'] = time.process_time() - start
    manager.close()
  return found

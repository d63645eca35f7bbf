"""Checkpoints: which are kept, on how many devices they open, and how damage is reported."""

import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import adamw, tiny_electra

from electra_jax.config import PretrainingConfig
from electra_jax.errors import UserError
from electra_jax.pretrain import pretrain_step
from electra_jax.training import checkpoints, partitioning
from electra_jax.training.update_step import no_skips

ADAM = optax.adam(1e-3)
NAN = math.nan


def state_of(size=16, step=0):
  """A state on all devices whose values depend on the step."""
  params = {
    'kernel': jnp.arange(size * 8, dtype=jnp.float32).reshape(size, 8) + step,
    'bias': jnp.full(8, step, jnp.float32),
  }
  state = pretrain_step.TrainState(
    jnp.int32(step), params, ADAM.init(params), jnp.int32(0), jnp.int32(-1), no_skips()
  )
  return jax.device_put(state, partitioning.replicated(partitioning.make_mesh()))


def sums_of(value):
  return {'steps': jnp.int32(value), 'loss': jnp.float32(value)}


def saved(workdir, keep, losses):
  """Saves a checkpoint per held-out loss (None: not evaluated); returns kept steps and the best."""
  with checkpoints.open_manager(workdir, keep=keep) as manager:
    for step, loss in enumerate(losses, 1):
      checkpoints.save(manager, step, state_of(step=step), sums_of(step), loss)
    manager.wait_until_finished()
    return sorted(manager.all_steps()), manager.best_step()


def targets(devices=None):
  """Shapes and shardings of the state for some of the devices."""
  mesh = partitioning.make_mesh(devices)
  shapes = jax.eval_shape(state_of)
  return (
    shapes,
    jax.tree.map(lambda _: partitioning.replicated(mesh), shapes),
    partitioning.replicated(mesh),
  )


def restored(workdir, step, devices=None):
  shapes, shardings, whole = targets(devices)
  with checkpoints.open_manager(workdir) as manager:
    return checkpoints.restore_state(
      manager, step, shapes, shardings, jax.eval_shape(sums_of, 0), whole
    )


def test_background_saving_is_not_affected_by_donated_buffers(tmp_path):
  copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state))
  train = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
  state, expected = state_of(size=1 << 17), {}
  with checkpoints.open_manager(tmp_path, keep=3) as manager:
    for step in (1, 2, 3):
      state = train(state)
      expected[step] = jax.device_get(copy(state))
      checkpoints.save(manager, step, state, sums_of(step), None)
      for _ in range(3):  # overwrites the buffers while the disk is busy
        state = train(state)
      jax.block_until_ready(state)
      manager.wait_until_finished()
  shapes = jax.eval_shape(lambda: state)
  for step in (1, 2, 3):
    _, shardings, whole = targets()
    with checkpoints.open_manager(tmp_path) as manager:
      found, sums = checkpoints.restore_state(
        manager, step, shapes, shardings, jax.eval_shape(sums_of, 0), whole
      )
    assert int(found.step) == step + 3 * (step - 1) and int(sums['steps']) == step
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected[step])


@pytest.mark.parametrize(
  'keep, losses, kept, best',
  [
    (1, [3.0, 1.0, 2.0, 2.5], [2, 4], 2),
    (2, [1.0, 2.0, 3.0, 4.0], [1, 3, 4], 1),
    (2, [4.0, 3.0, 2.0, 1.0], [3, 4], 4),
    (1, [2.0, None, 1.0, None, None], [3, 5], 3),
    (1, [None, None, None], [3], None),
    (1, [NAN, 2.0, 3.0], [2, 3], 2),
    (1, [2.0, 1.0, NAN, math.inf, 3.0], [2, 5], 2),
    (1, [NAN, NAN], [2], None),
  ],
  ids=str,
)
def test_the_best_and_the_last_checkpoints_are_kept(tmp_path, keep, losses, kept, best):
  assert saved(tmp_path, keep, losses) == (kept, best)
  shapes, shardings, _ = targets()
  for which, step in (
    ('last', len(losses)),
    ('best', best or len(losses)),
    (str(kept[0]), kept[0]),
  ):
    params, found = checkpoints.restore_params(tmp_path, which, shapes.params, shardings.params)
    assert found == step and params['bias'][0] == step


def test_the_best_checkpoint_of_an_earlier_start_is_kept(tmp_path):
  saved(tmp_path, 1, [3.0, 1.0, 2.0])
  with checkpoints.open_manager(tmp_path, keep=1) as manager:
    assert manager.latest_step() == 3 and manager.best_step() == 2
    checkpoints.save(manager, 4, state_of(step=4), sums_of(4), 5.0)
    manager.wait_until_finished()
    assert sorted(manager.all_steps()) == [2, 4]


def test_opening_removes_unfinished_saves_before_it_returns(tmp_path):
  saved(tmp_path, 1, [None])
  leftovers = [tmp_path / 'checkpoints' / f'{step}.orbax-checkpoint-tmp' for step in range(2, 50)]
  for leftover in leftovers:
    shutil.copytree(tmp_path / 'checkpoints' / '1', leftover)
  with checkpoints.open_manager(tmp_path, read_only=True) as manager:  # a run may be saving
    assert manager.all_steps() == [1]
  assert all(leftover.exists() for leftover in leftovers)
  with checkpoints.open_manager(tmp_path) as manager:  # of a finished run, which saves no more
    assert not any(leftover.exists() for leftover in leftovers)
    assert manager.all_steps() == [1]


@pytest.mark.parametrize('count', [1, 2, 8])
def test_any_number_of_devices_opens_a_checkpoint(tmp_path, count):
  saved(tmp_path, 1, [None, None])
  state, sums = restored(tmp_path, 2, jax.devices()[:count])
  assert (
    len(state.params['kernel'].devices()) == len(state.opt_state[0].mu['kernel'].devices()) == count
  )
  assert int(sums['steps']) == 2
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(state), jax.device_get(state_of(step=2))
  )


def test_a_checkpoint_of_split_moments_opens_bitwise_equal_on_other_meshes(tmp_path):
  model, optimizer = tiny_electra(num_heads=2), adamw(lambda step: 1e-2)
  rng = np.random.default_rng(0)

  def laid_out(devices, **sizes):
    config = PretrainingConfig().replace(
      {f'mesh.{axis}': size for axis, size in sizes.items()} | {'sharding.smallest': 0}
    )
    layout = partitioning.make_layout(config, jax.devices()[:devices])
    return *pretrain_step.state_shardings(model, optimizer, 32, layout), partitioning.replicated(
      layout.mesh
    )

  shapes, shardings, _ = laid_out(8)

  def draw(x):
    return (
      rng.standard_normal(x.shape).astype(x.dtype)
      if x.dtype == np.float32
      else np.full(x.shape, 7, x.dtype)
    )

  expected = jax.tree.map(draw, shapes)
  state = jax.device_put(expected, shardings)
  assert (
    sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.opt_state)) > 50
  )  # ZeRO-1
  with checkpoints.open_manager(tmp_path) as manager:
    checkpoints.save(manager, 7, state, sums_of(7), None)
    checkpoints.wait(manager)
  for devices, sizes in ((8, {'fsdp': 2, 'tensor': 2}), (1, {}), (8, {})):
    shapes, shardings, whole = laid_out(devices, **sizes)
    with checkpoints.open_manager(tmp_path) as manager:
      found, sums = checkpoints.restore_state(
        manager, 7, shapes, shardings, jax.eval_shape(sums_of, 0), whole
      )
    for x, want, sharding in zip(
      jax.tree.leaves(found), jax.tree.leaves(expected), jax.tree.leaves(shardings), strict=True
    ):
      assert x.sharding.is_equivalent_to(sharding, x.ndim) and x.dtype == want.dtype
      np.testing.assert_array_equal(x, want)
    params, _ = checkpoints.restore_params(tmp_path, 'last', shapes.params, shardings.params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), expected.params)


def test_parameters_open_without_the_optimizer(tmp_path):
  saved(tmp_path, 1, [None, 1.0])
  for item in ('opt_state', 'sums', 'counters'):
    shutil.rmtree(tmp_path / 'checkpoints' / '2' / item)
  shapes, shardings, _ = targets()
  params, step = checkpoints.restore_params(tmp_path, 'last', shapes.params, shardings.params)
  assert step == 2 and params['bias'][0] == 2


def test_reading_changes_no_file(tmp_path):
  saved(tmp_path, 2, [2.0, 1.0, 3.0])
  unfinished = (
    tmp_path / 'checkpoints' / '9.orbax-checkpoint-tmp'
  )  # another process may be writing it
  unfinished.mkdir()
  before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'checkpoints').rglob('*')}
  shapes, shardings, _ = targets()
  assert checkpoints.restore_params(tmp_path, 'last', shapes.params, shardings.params)[1] == 3
  assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'checkpoints').rglob('*')} == before


def test_an_interrupted_save_is_never_read(tmp_path):
  saved(tmp_path, 2, [2.0, 1.0])
  folder = tmp_path / 'checkpoints'
  shutil.copytree(folder / '2', folder / '3.orbax-checkpoint-tmp')
  assert checkpoints.any_saved(tmp_path)
  with checkpoints.open_manager(tmp_path, keep=2) as manager:
    assert manager.latest_step() == 2
    checkpoints.save(
      manager, 4, state_of(step=4), sums_of(4), None
    )  # waits until leftovers are removed
  assert not (folder / '3.orbax-checkpoint-tmp').exists()


def test_unfinished_saves_do_not_count_as_a_checkpoint(tmp_path):
  assert not checkpoints.any_saved(tmp_path)
  (tmp_path / 'checkpoints' / '3.orbax-checkpoint-tmp').mkdir(parents=True)
  assert not checkpoints.any_saved(tmp_path)


def damage(folder):
  """Cuts every data file of a checkpoint's item to half."""
  for path in folder.rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_opens(tmp_path):
  saved(tmp_path, 2, [2.0, 1.0])
  damage(tmp_path / 'checkpoints' / '2' / 'params')
  with pytest.raises(UserError, match=r'checkpoints/2 is damaged') as error:
    restored(tmp_path, 2)
  assert '\n' not in str(error.value)
  shapes, shardings, _ = targets()
  with pytest.raises(UserError, match=r'checkpoints/2 is damaged'):
    checkpoints.restore_params(tmp_path, 'last', shapes.params, shardings.params)
  assert checkpoints.restore_params(tmp_path, '1', shapes.params, shardings.params)[1] == 1


def test_a_missing_checkpoint_is_named(tmp_path):
  shapes, shardings, _ = targets()
  with pytest.raises(UserError, match='holds no checkpoint'):
    checkpoints.restore_params(tmp_path, 'last', shapes.params, shardings.params)
  saved(tmp_path, 2, [2.0, 1.0])
  for which in ('7', 7, 'first'):
    with pytest.raises(UserError, match=f'no checkpoint of step {which}; it has those of 1, 2'):
      checkpoints.restore_params(tmp_path, which, shapes.params, shardings.params)


def test_counters_of_version_0_1_0_are_completed(tmp_path, monkeypatch):
  skips = no_skips().at[-1].set(4)
  with checkpoints.open_manager(tmp_path, keep=2) as manager:
    checkpoints.save(manager, 5, state_of(step=5)._replace(recent_skips=skips), sums_of(1), None)
    monkeypatch.setattr(checkpoints, '_COUNTERS', ('step', 'skipped', 'bad_step'))
    checkpoints.save(manager, 6, state_of(step=6), sums_of(1), None)
    manager.wait_until_finished()
  monkeypatch.undo()
  np.testing.assert_array_equal(restored(tmp_path, 5)[0].recent_skips, skips)
  state, _ = restored(tmp_path, 6)
  np.testing.assert_array_equal(state.recent_skips, no_skips())
  assert int(state.step) == 6 and int(state.bad_step) == -1

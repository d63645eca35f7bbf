"""Checkpoints are complete before they count, and damage is found when they are read."""

import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax import checksums, file_access, verify
from electra_jax.errors import UserError
from electra_jax.training import checkpoint_files, checkpoints, partitioning, run_folder
from electra_jax.training.update_step import TrainState, no_skips


def state_of(step):
  """A state whose values depend on the step; one of its arrays is stored in a file of its own."""
  rng = np.random.default_rng(step)
  params = {'kernel': rng.standard_normal((64, 32), np.float32), 'bias': jnp.full(8, step, float)}
  return TrainState(
    jnp.int32(step), params, {'mu': params}, jnp.int32(0), jnp.int32(-1), no_skips()
  )


def save(workdir, steps=(1, 2)):
  with checkpoints.open_manager(workdir, keep=9) as manager:
    for step in steps:
      checkpoints.save(manager, step, state_of(step), {'steps': jnp.int32(step)}, 1.0)
      checkpoints.wait(manager)
  return pathlib.Path(workdir) / 'checkpoints'


def restore(workdir, step):
  """All arrays of a checkpoint, as a resumed run reads them."""
  shapes = jax.eval_shape(lambda: state_of(0))
  whole = partitioning.replicated(partitioning.make_mesh(jax.devices()[:1]))
  shardings = jax.tree.map(lambda _: whole, shapes)
  with checkpoints.open_manager(workdir, read_only=True) as manager:
    sums = {'steps': jax.ShapeDtypeStruct((), jnp.int32)}
    return checkpoints.restore_state(manager, step, shapes, shardings, sums, whole)


def same(state, step):
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, state, state_of(step))))


@pytest.fixture(scope='module')
def intact(tmp_path_factory):
  """The folder of a run with two checkpoints; tests change only copies of it."""
  workdir = tmp_path_factory.mktemp('intact')
  save(workdir)
  return workdir


@pytest.fixture
def workdir(intact, tmp_path):
  return shutil.copytree(intact, tmp_path / 'run')


def flip(path, position, bit=0):
  content = bytearray(path.read_bytes())
  content[position] ^= 1 << bit
  path.write_bytes(content)


def files_of(directory, step):
  return [directory / str(step) / name for name in file_access.files_below(directory / str(step))]


@pytest.mark.parametrize(
  'flips', [pytest.param(40, id='40'), pytest.param(2_000, id='2000', marks=pytest.mark.faults)]
)
def test_a_flipped_bit_is_found_or_changes_no_array(intact, tmp_path, flips):
  rng = random.Random(0)
  workdir = shutil.copytree(intact, tmp_path / 'run')
  paths = [path for path in files_of(workdir / 'checkpoints', 2) if path.stat().st_size]
  unnoticed = set()
  # Each file once, those of metadata too, and then bytes drawn evenly from all of them.
  sizes = [path.stat().st_size for path in paths]
  chosen = [*paths, *rng.choices(paths, sizes, k=max(0, flips - len(paths)))][:flips]
  for path in chosen:
    before = path.read_bytes()
    flip(path, rng.randrange(len(before)), rng.randrange(8))
    try:
      state, sums = restore(workdir, 2)
      assert same(state, 2) and sums['steps'] == 2, path
      unnoticed.add(path.name)
    except UserError as error:
      assert f'checkpoints{"/"}2' in str(error) and '\n' not in str(error)
    path.write_bytes(before)
  # The first only says, by being there, that a part is complete; in the second a name may change,
  # whose file is then not compared when the run resumes. --mode=verify misses that file.
  assert unnoticed <= {'commit_success.txt', checksums.SUMS}
  state, _ = restore(workdir, 2)
  assert same(state, 2)


def test_the_message_names_the_file_and_its_advice_opens_the_older_checkpoint(workdir):
  directory = workdir / 'checkpoints'
  path = max(files_of(directory, 2), key=lambda path: path.stat().st_size)
  flip(path, 100)
  with pytest.raises(UserError) as error:
    restore(workdir, 2)
  name = path.relative_to(directory / '2').as_posix()
  assert str(error.value) == (
    f'the checkpoint {directory}/2 is damaged: {name} differs from its checksum; the checkpoint of '
    f'step 1 is whole: to use it, move the folder 2 out of {directory}.'
  )
  shutil.move(directory / '2', workdir / 'damaged')
  with checkpoints.open_manager(workdir) as manager:
    assert manager.latest_step() == 1
  assert same(restore(workdir, 1)[0], 1)


def test_a_checkpoint_that_is_damaged_too_is_not_named(workdir):
  for step in (1, 2):
    flip(max(files_of(workdir / 'checkpoints', step), key=lambda p: p.stat().st_size), 100)
  with pytest.raises(UserError, match='no other checkpoint is whole; restore the file from a copy'):
    restore(workdir, 2)


def test_a_damaged_metric_does_not_choose_the_best_checkpoint(workdir):
  path = workdir / 'checkpoints' / '1' / 'metrics' / 'metrics'
  path.write_text(path.read_text().replace('1.0', '0.1'))
  with pytest.raises(UserError, match='metrics/metrics differs from its checksum'):
    checkpoints.find_step(workdir, 'best')


def test_only_the_items_that_are_read_are_checked(workdir):
  item = workdir / 'checkpoints' / '2' / 'opt_state'
  flip(max((p for p in item.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size), 9)
  shapes = jax.eval_shape(lambda: state_of(0)).params
  whole = partitioning.replicated(partitioning.make_mesh(jax.devices()[:1]))
  shardings = jax.tree.map(lambda _: whole, shapes)
  assert checkpoints.restore_params(workdir, 2, shapes, shardings)[1] == 2
  with pytest.raises(UserError, match='opt_state/'):
    checkpoints.read_arrays(workdir, 2, 'opt_state')


def test_a_checkpoint_without_checksums_opens_without_complaint(workdir, capsys):
  for step in (1, 2):
    (workdir / 'checkpoints' / str(step) / checksums.SUMS).unlink()
  assert same(restore(workdir, 2)[0], 2)
  verify.verify(str(workdir))
  assert capsys.readouterr().out.count('no checksums') == 2


def test_a_checkpoint_that_lacks_an_array_is_not_committed(tmp_path, monkeypatch):
  save(tmp_path, (1,))
  # What happened in folders with `[` in their names: the parts of the processes were not found.
  monkeypatch.setattr(run_folder.LocalPath, 'glob', lambda path, pattern: iter(()))
  with checkpoints.open_manager(tmp_path, keep=9) as manager:
    checkpoints.save(manager, 2, state_of(2), {'steps': jnp.int32(2)}, 1.0)
    with pytest.raises(UserError, match='was written without .*; expected all arrays'):
      checkpoints.wait(manager)
  assert checkpoint_files.steps_of(tmp_path / 'checkpoints') == [1]


def test_sha256sum_can_read_the_checksums(workdir):
  lines = (workdir / 'checkpoints' / '2' / checksums.SUMS).read_text().splitlines()
  sums = dict(reversed(line.split('  ')) for line in lines)
  below = set(file_access.files_below(workdir / 'checkpoints' / '2'))
  assert below - set(sums) == {checksums.SUMS} | {
    name for name in below if name.endswith('commit_success.txt')
  }


NAMES = [
  '[1]', ']', '*', '?', '{a,b}', '%20', '#', 'a b', '"', 'ü', '日本', '-x', '~', 'a:b|c', '$&;=!(',
]  # fmt: skip


@pytest.mark.parametrize('name', NAMES)
def test_checkpoints_are_whole_in_folders_of_any_name(tmp_path, name):
  workdir = tmp_path / name
  save(workdir, (1,))
  # A folder that the name would match as a pattern holds other data.
  assert same(restore(workdir, 1)[0], 1)


def test_a_folder_that_a_name_matches_as_a_pattern_is_not_touched(tmp_path):
  save(tmp_path / 'run-1', (1,))
  before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'run-1').rglob('*')}
  save(tmp_path / 'run-*', (2,))
  assert same(restore(tmp_path / 'run-*', 2)[0], 2)
  assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'run-1').rglob('*')} == before


@pytest.mark.parametrize(
  'name', ['a\nb', 'a\tb', 'a\\b', 'a\x07b', 'a\udcffb', 'a\u2028b', 'n' * 230, 'n/' * 2000]
)
def test_names_that_no_run_can_have_are_refused_at_the_start(tmp_path, name):
  with pytest.raises(UserError, match='expected a'):
    run_folder.folder(tmp_path / name)
  with pytest.raises(UserError, match='--output is'):
    file_access.check_name(str(tmp_path / name), '--output')


def test_links_and_relative_paths_name_the_same_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'real').mkdir()
  (tmp_path / 'link').symlink_to('real')
  save('link/../link/run/', (1,))
  assert same(restore(tmp_path / 'real' / 'run', 1)[0], 1)

"""Saves that fail: one sentence at once, further attempts, and the last good checkpoint."""

import errno
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import pytest

from electra_jax.errors import UserError
from electra_jax.training import checkpoint_files, checkpoints, saving
from electra_jax.training.update_step import TrainState, no_skips

# Of writes that nobody waits for anymore; console.quiet_libraries() hides it from users.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def state_of(step):
  # Random, so that compression does not make the file small.
  params = {'kernel': jax.random.normal(jax.random.key(step), (256, 256))}
  return TrainState(
    jnp.int32(step), params, {'mu': params}, jnp.int32(0), jnp.int32(-1), no_skips()
  )


SUMS = {'steps': jnp.int32(1)}


class Disk:
  """A disk that takes no file of more than 100 kB while it is `full`."""

  def __init__(self):
    self._soft, self._hard = resource.getrlimit(resource.RLIMIT_FSIZE)

  def full(self, full=True):
    limit = 100_000 if full else self._soft
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, self._hard))


@pytest.fixture
def disk():
  disk = Disk()
  yield disk
  disk.full(False)


@pytest.fixture
def saver(tmp_path, monkeypatch):
  monkeypatch.setattr(saving, 'RETRY_WAITS', (0.0, 0.0, 0.0))
  manager = checkpoints.open_manager(tmp_path)
  saver = saving.CheckpointSaver(manager, checkpoints.HELDOUT_LOSS)
  saver.save(1, state_of(1), SUMS, None)
  saver.finish(1, state_of(1), SUMS)
  return saver


def settled(saver):
  """Polls as the loop does, until a save that failed is noticed."""
  while not saver.is_due():
    pass


def test_a_failed_save_is_reported_before_the_next_one_and_repeated(saver, disk, tmp_path, capsys):
  disk.full()
  saver.save(2, state_of(2), SUMS, 1.0)
  settled(saver)
  (sentence,) = capsys.readouterr().err.splitlines()
  assert sentence == (
    'electra_jax: the checkpoint of step 2 could not be written (File too large); the run '
    'continues, and saves again in 0 s.'
  )
  directory = tmp_path / 'checkpoints'
  assert os.listdir(directory) == ['1']  # what the failed save left takes no space
  disk.full(False)
  saver.save(3, state_of(3), SUMS, None)
  saver.finish(3, state_of(3), SUMS)
  assert checkpoint_files.steps_of(directory) == [3] and not capsys.readouterr().err
  assert not checkpoint_files.damage_of(directory, 3)


def test_the_run_stops_after_some_attempts_with_the_last_good_checkpoint(saver, disk, tmp_path):
  disk.full()
  with pytest.raises(UserError) as error:
    saver.save(2, state_of(2), SUMS, 1.0)
    saver.finish(2, state_of(2), SUMS)
  directory = tmp_path / 'checkpoints'
  assert str(error.value) == (
    'the checkpoint of step 2 could not be written, 4 times in a row (File too large); the '
    f'checkpoint of step 1 is kept; make room in {directory} or repair it, and start the same '
    'command again.'
  )
  assert os.listdir(directory) == ['1']  # what the failed saves left takes no space
  disk.full(False)
  assert not checkpoint_files.damage_of(directory, 1)
  with checkpoints.open_manager(tmp_path) as manager:  # the advice
    assert manager.latest_step() == 1
    checkpoints.save(manager, 2, state_of(2), SUMS, None)
  assert checkpoint_files.steps_of(directory) == [2]


def test_attempts_are_some_time_apart(saver, disk, monkeypatch, capsys):
  monkeypatch.setattr(saving, 'RETRY_WAITS', (1000.0,))
  disk.full()
  saver.save(2, state_of(2), SUMS, None)
  while not capsys.readouterr().err:
    assert not saver.is_due()
  monkeypatch.setattr(checkpoints, 'save', lambda *args: pytest.fail('saved too early'))
  saver.save(3, state_of(3), SUMS, None)
  assert not saver.is_due()


@pytest.mark.skipif(os.geteuid() != 0, reason='mounts a file system')
def test_a_full_file_system_is_one_sentence(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(saving, 'RETRY_WAITS', ())
  if os.system(f'mount -t tmpfs -o size=300k tmpfs {tmp_path} 2>/dev/null'):
    pytest.skip('may not mount')
  try:
    manager = checkpoints.open_manager(tmp_path)
    saver = saving.CheckpointSaver(manager, checkpoints.HELDOUT_LOSS)
    with pytest.raises(UserError, match=os.strerror(errno.ENOSPC)):
      saver.save(2, state_of(2), SUMS, None)
      saver.finish(2, state_of(2), SUMS)
  finally:
    shutil.rmtree(tmp_path / 'checkpoints', ignore_errors=True)
    os.system(f'umount {tmp_path}')

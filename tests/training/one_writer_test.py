"""A run's folder has one writer: a second start writes nothing, and a replaced one stops."""

import json
import pathlib

import micro_run
import pytest

from electra_jax import folder_lock, main
from electra_jax.cli.modes import MODES
from electra_jax.errors import UserError
from electra_jax.folder_lock import LOCK_FILE, FolderInUse, FolderLock
from electra_jax.pretrain import run_start, train
from electra_jax.training import hosts
from electra_jax.training.metrics_writer import NoWriter
from electra_jax.training.status import FILE, Status
from electra_jax.training.step_loop import Interval, RunRecorder


class LongWork(BaseException):
  """The run has taken its folder."""


@pytest.fixture(autouse=True)
def no_data(monkeypatch, handlers):
  monkeypatch.setattr(folder_lock, '_LEAVING', 0.0)

  def refuse(*_):
    raise LongWork

  monkeypatch.setattr(run_start, 'prepare_data', refuse)


def arguments(folder, *more):
  return ['main', f'--config={micro_run.CONFIG}', f'--workdir={folder}', *more]


def test_a_second_start_says_who_writes_and_writes_nothing(tmp_path, capsys):
  with FolderLock(tmp_path) as first:
    first.acquire()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main.main(arguments(tmp_path)) == 1
    err = capsys.readouterr().err
    assert 'is being written by process' in err and err.count('\n') == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(LongWork):
      main.main(arguments(tmp_path, '--take_over'))
    with pytest.raises(FolderInUse):
      first.check(read=True)
  assert (tmp_path / 'config.json').exists() and not (tmp_path / LOCK_FILE).exists()


def test_modes_that_write_a_folder_can_take_it_over():
  names = {name for name, mode in MODES.items() if 'take_over' in mode.flags}
  assert names == {'train', 'prepare', 'finetune', 'import', 'export', 'sweep'}


def test_a_run_whose_folder_was_taken_writes_nothing_more(tmp_path):
  class Untouched:
    def __getattr__(self, name):
      pytest.fail(f'{name} is used')

  def refused(write):
    with pytest.raises(UserError, match='was taken over by .*; this process stops before'):
      write()

  with (
    FolderLock(tmp_path) as lock,
    FolderLock(tmp_path, take_over=True) as other,
    pytest.raises(FolderInUse),
    Status('train', lock=lock) as status,
  ):
    lock.acquire()
    status.claim(tmp_path)
    recorder = RunRecorder(Untouched(), Untouched(), status)
    other.acquire()
    (tmp_path / FILE).write_text('of the other')
    refused(lambda: recorder.save(1, Untouched(), None))
    recorder.writer = NoWriter()
    refused(lambda: recorder.log_training(1, {}, Interval(1, 1.0, 0.0)))
    refused(lambda: recorder.log_evaluation('heldout', 1, {}))
    status.change(state='running')
    status.check_held()
  assert (tmp_path / FILE).read_text() == 'of the other'


def test_only_the_first_process_holds_the_lock(tmp_path, monkeypatch):
  monkeypatch.setattr(hosts, 'first', lambda: False)
  with FolderLock(tmp_path) as lock:
    hosts.acquire(lock)
    assert not list(tmp_path.iterdir())
    lock.check(read=True)


def test_the_end_of_a_lost_process_releases_the_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(hosts, '_before_exit', [])
  lock = FolderLock(tmp_path)
  hosts.acquire(lock)
  for call in hosts._before_exit:
    call()
  assert not list(tmp_path.iterdir())


def test_a_refused_start_leaves_the_status_of_the_run(tmp_path):
  status = {'state': 'running', 'pid': 1}
  pathlib.Path(tmp_path, FILE).write_text(json.dumps(status))
  with FolderLock(tmp_path) as first:
    first.acquire()
    with pytest.raises(FolderInUse):
      train.train(main.parse_flags(arguments(tmp_path)).config, tmp_path)
  assert json.loads(pathlib.Path(tmp_path, FILE).read_text()) == status

"""One process at a time writes into a folder; a process that is gone never blocks the next one."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading

import fake_gcs
import fsspec
import pytest

from electra_jax import file_access, folder_lock
from electra_jax.errors import Preempted, UserError
from electra_jax.folder_lock import LOCK_FILE, FolderInUse, FolderLock

KINDS = ('path', 'memory', 'bucket')


@pytest.fixture(scope='module')
def bucket():
  pytest.importorskip('gcsfs', reason='needs gcsfs, of the gcs extra')
  with fake_gcs.serving('bucket') as buckets, pytest.MonkeyPatch.context() as patch:
    for name, value in buckets.environment().items():
      patch.setenv(name, value)
    yield buckets


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
  """A folder of each kind of place."""
  if request.param == 'path':
    yield str(tmp_path / 'run')
  elif request.param == 'memory':
    yield 'memory://run'
    with contextlib.suppress(FileNotFoundError):
      fsspec.filesystem('memory').rm('/run', recursive=True)
  else:
    buckets = request.getfixturevalue('bucket')
    buckets.objects.clear()
    yield 'gs://bucket/run'


@pytest.fixture(autouse=True)
def no_grace(monkeypatch):
  """A process that is alive is not waited for."""
  monkeypatch.setattr(folder_lock, '_LEAVING', 0.0)


class Clock:
  """Takes the place of the module's clock: waiting takes no time, and calls `meanwhile`."""

  strftime, gmtime = folder_lock.time.strftime, folder_lock.time.gmtime

  def __init__(self):
    self.now = 0.0
    self.meanwhile = lambda: None

  def monotonic(self):
    return self.now

  def sleep(self, seconds):
    self.now += seconds
    self.meanwhile()


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(folder_lock, 'time', clock)
  return clock


def elsewhere(**fields):
  """A process on another machine."""
  here = folder_lock.this_process()
  return dataclasses.replace(here, **{'host': 'elsewhere', 'boot': 'another', 'pid': 7} | fields)


def left_behind(folder, holder):
  """Writes the lock file of a process."""
  place = folder_lock._place_of(folder)
  content = holder.written()
  assert place.create(content)
  return place


def files(folder):
  return file_access.listing(folder)


def test_a_second_start_is_refused_with_the_name_of_the_first_until_it_ends(folder):
  second = FolderLock(folder)
  with FolderLock(folder) as first:
    assert files(folder) == []
    first.acquire()
    first.check(read=True)
    here = f"{folder}' is being written by process {os.getpid()} on "
    with pytest.raises(FolderInUse, match=here) as refused:
      second.acquire()
    assert '--take_over' in str(refused.value) and '\n' not in str(refused.value)
  with second:
    second.acquire()
    assert files(folder) == [LOCK_FILE]
  assert files(folder) == []
  assert file_access.is_remote(folder) or not os.path.exists(folder)


def test_a_process_of_this_machine_that_ended_is_gone_at_once(tmp_path, clock):
  clock.meanwhile = lambda: pytest.fail('it waits')
  ended = subprocess.Popen(['true'])
  ended.wait()
  unreaped = subprocess.Popen(['true'])  # it ends, and stays in the table of processes
  os.waitid(os.P_PID, unreaped.pid, os.WEXITED | os.WNOWAIT)
  here = folder_lock.this_process()
  gone = [
    dataclasses.replace(here, pid=ended.pid),
    dataclasses.replace(here, pid=unreaped.pid, started='1'),
    dataclasses.replace(here, started='1'),  # this pid was another process's
    dataclasses.replace(here, boot='before the restart', pid=1),
  ]
  for number, holder in enumerate(gone):
    left_behind(str(tmp_path / str(number)), holder)
    with FolderLock(tmp_path / str(number)) as lock:
      lock.acquire()
  unreaped.wait()


def test_a_process_that_was_killed_has_time_to_end(tmp_path, clock, monkeypatch):
  monkeypatch.setattr(folder_lock, '_LEAVING', 3.0)
  with FolderLock(tmp_path) as lock:
    left_behind(str(tmp_path), folder_lock.this_process())
    clock.meanwhile = lambda: clock.now > 2.0 and os.unlink(tmp_path / LOCK_FILE)
    lock.acquire()
  assert 2.0 < clock.now < 3.0


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'host': None, 'boot': None, 'pid_namespace': 'pid:[1]'},  # another container
    {'host': 'localhost'},  # many machines have this name
    {'pid_namespace': ''},
  ],
)
def test_a_process_elsewhere_is_waited_for_as_long_as_three_renewals(tmp_path, clock, fields):
  here = folder_lock.this_process()
  fields = {name: getattr(here, name) if value is None else value for name, value in fields.items()}
  left_behind(str(tmp_path), elsewhere(**fields))
  with FolderLock(tmp_path) as lock:
    lock.acquire()
  assert folder_lock.PATIENCE < clock.now < folder_lock.PATIENCE + 3
  assert folder_lock.PATIENCE > 3 * folder_lock.BEAT


@pytest.mark.parametrize('host', ['', 'localhost'])
def test_a_common_host_name_says_nothing_about_the_machine(host, monkeypatch):
  monkeypatch.setattr(folder_lock.socket, 'gethostname', lambda: host)
  here = folder_lock.this_process()
  assert folder_lock.state_of(dataclasses.replace(here, boot='another'), here) == 'unknown'


def test_a_process_elsewhere_that_renews_its_file_keeps_the_folder(folder, clock, monkeypatch):
  place = left_behind(folder, elsewhere())
  renewals = []

  monkeypatch.setattr(folder_lock, '_POLL', 10.0)

  def renew():
    if clock.now % 20 == 0:
      renewals.append(clock.now)
      place.renew(place.read(), elsewhere(token='t', beat=len(renewals)).written())

  holder = elsewhere(token='t')
  place.replace(place.read(), holder.written())
  clock.meanwhile = renew
  with pytest.raises(FolderInUse, match='process 7 on elsewhere, since'):
    FolderLock(folder).acquire()
  assert renewals == [20]
  with FolderLock(folder, take_over=True) as lock:
    lock.acquire()
    assert renewals == [20], 'it does not wait'


def test_a_holder_whose_folder_was_taken_stops_and_leaves_it(folder):
  with FolderLock(folder) as first:
    first.acquire()
    with FolderLock(folder, take_over=True) as second:
      second.acquire()
      with pytest.raises(FolderInUse, match='was taken over by process .* stops before it writes'):
        first.check(read=True)
      with pytest.raises(FolderInUse):
        first.check()
      first.release()
      second.check(read=True)
      assert files(folder) == [LOCK_FILE]


@pytest.mark.parametrize('links', [True, False])
@pytest.mark.parametrize('stale', [False, True])
def test_of_many_that_start_together_one_gets_the_folder(tmp_path, monkeypatch, links, stale):
  if not links:

    def link(source, target):
      raise PermissionError(1, 'Operation not permitted')

    monkeypatch.setattr(os, 'link', link)
  ended = subprocess.Popen(['true'])
  ended.wait()
  for number in range(10):
    folder = str(tmp_path / str(number))
    if stale:
      left_behind(folder, dataclasses.replace(folder_lock.this_process(), pid=ended.pid))
    barrier, outcomes = threading.Barrier(6), []

    def contend(folder=folder, barrier=barrier, outcomes=outcomes):
      lock = FolderLock(folder)
      barrier.wait()
      for _ in range(3):
        found = lock.attempt()
        if found is None:
          break
      outcomes.append((found, lock))

    threads = [threading.Thread(target=contend) for _ in range(6)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    (winner,) = [lock for found, lock in outcomes if found is None]
    winner.check(read=True)
    assert files(folder) == [LOCK_FILE]
    winner.release()


def test_generations_let_one_of_two_take_over(bucket):
  bucket.objects.clear()
  place = left_behind('gs://bucket/run', elsewhere())
  found = place.read()
  mine, other = elsewhere(token='a').written(), elsewhere(token='b').written()
  assert place.replace(found, mine) and not place.replace(found, other)
  assert place.read().content == mine and not place.create(other)
  place.remove(found)
  assert place.read().content == mine


class Killed(BaseException):
  """Ends a process at a place."""


def kill(*_):
  raise Killed


def test_what_a_kill_during_a_takeover_left_does_not_block_the_next(tmp_path, clock):
  ended = subprocess.Popen(['true'])
  ended.wait()
  gone = dataclasses.replace(folder_lock.this_process(), pid=ended.pid)
  place = left_behind(str(tmp_path), gone)
  content = place.read().content
  for claimant in (dataclasses.replace(gone, token='other'), elsewhere()):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(os, 'replace', kill)
      patch.setattr(os, 'unlink', lambda _: None)  # a kill leaves all files as they are
      with pytest.raises(Killed):
        place.replace(place.read(), claimant.written())
    assert len(files(tmp_path)) == 3, 'lock, claim and temporary file'
    with FolderLock(tmp_path) as lock:
      lock.acquire()
      assert files(tmp_path) == [LOCK_FILE]
    left_behind(str(tmp_path), folder_lock.parse(content))
  assert clock.now < 15


@pytest.mark.parametrize(
  'content',
  [b'', b'{', b'[' * 9000, b'[]', b'{"token": 1}', b'\xff\xfe', b'null', b'{"token": "a"}'],
)
def test_a_damaged_lock_file_is_one_of_an_unknown_process(tmp_path, clock, content):
  (tmp_path / LOCK_FILE).write_bytes(content)
  assert folder_lock.parse(content).describe() == 'another process'
  with FolderLock(tmp_path) as lock:
    lock.acquire()
  assert clock.now > folder_lock.PATIENCE


def test_no_lock_file_can_control_a_terminal():
  text = elsewhere(host='\x1b[2Ja\nb' + 'c' * 500).describe()
  assert text.isprintable() and len(text) < 200


def test_a_held_folder_is_renewed(folder, monkeypatch):
  monkeypatch.setattr(folder_lock, 'BEAT', 0.01)
  with FolderLock(folder) as lock:
    lock.acquire()
    place = lock._place
    first = place.read()
    for _ in range(2000):
      if place.read().version != first.version:
        break
      threading.Event().wait(0.005)
    else:
      pytest.fail('it is not renewed')
    lock.check(read=True)
  assert files(folder) == []


def test_a_process_that_another_one_replaced_does_not_continue_when_that_has_ended(folder):
  with FolderLock(folder) as hung:
    hung.acquire()
    with FolderLock(folder, take_over=True) as other:
      other.acquire()
    assert files(folder) == []
    with pytest.raises(FolderInUse, match='was taken over by another process'):
      hung.check(read=True)


def test_sigterm_releases_the_folder(tmp_path, handlers):
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  with pytest.raises(Preempted), FolderLock(tmp_path) as lock:
    lock.acquire()
    os.kill(os.getpid(), signal.SIGTERM)
    pytest.fail('it continues')
  assert files(tmp_path) == [] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_renewing_thread_does_not_hold_up_the_end_of_the_program(tmp_path):
  code = (
    'import sys\nfrom electra_jax.folder_lock import FolderLock\n'
    'lock = FolderLock(sys.argv[1])\nlock.acquire()\nprint("held")'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, tmp_path], capture_output=True, text=True, timeout=60
  )
  assert (done.returncode, done.stdout) == (0, 'held\n'), done.stderr
  with FolderLock(tmp_path) as lock:  # it was not released: its process is gone
    lock.acquire()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r"file/run' cannot be written: \S"):
    FolderLock(tmp_path / 'file/run').acquire()
  assert pathlib.Path(tmp_path / 'file').read_text() == ''

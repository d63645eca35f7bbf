"""One writer per folder: a file in the folder names the process that writes there.

A local folder, also on NFS, has an exclusive file, made by a hard link or by O_EXCL. At gs:// the
file is written under a precondition on its generation. Other stores of fsspec are asked to create
it exclusively, and it is read back.

A file that a process left behind does not block the next start. Where the process can be looked
up, on the same boot of the same machine, it counts as gone when it has ended. The same host name
with another boot id is a machine that was restarted, and its process is gone as well. Any other
process is watched: it renews its file every BEAT seconds, and counts as gone when PATIENCE seconds
bring no change. Only the time between two looks of this process is measured, so the clocks of the
machines do not matter.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import signal
import socket
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

from electra_jax import console, file_access, json_reader
from electra_jax.errors import Preempted, UserError

LOCK_FILE = '.writer.json'
BEAT = 20.0  # seconds between two renewals
PATIENCE = 3.25 * BEAT  # seconds without a renewal after which a process counts as gone
FORMAT = 1

_POLL = 1.0  # seconds between two looks at the file of another process
_LEAVING = 3.0  # seconds that a process may need to end after it was killed
_CLAIM_PATIENCE = 10.0  # seconds after which an unfinished takeover counts as abandoned
_MOST_BYTES = 1 << 14
_MAKE_ATTEMPTS = 3
_READ_ATTEMPTS = 5
_RELEASE_WAIT = 5.0  # seconds that a release waits for a renewal in progress
_REQUEST_SECONDS = 30.0
_COMMON_NAMES = ('', 'localhost', 'localhost.localdomain')  # of hosts; they identify no machine

State = Literal['alive', 'gone', 'unknown']


class FolderInUse(UserError):
  """Another process writes into the folder."""


def is_lock_file(name: str) -> bool:
  """Whether the file of this name is one of the lock."""
  return name.startswith(LOCK_FILE)


#### Who holds a lock ####


@dataclasses.dataclass(frozen=True)
class Holder:
  """The process that a lock file names.

  Attributes:
    token: random, of one acquisition.
    host: name of its machine.
    boot: id of the machine's boot; '' where there is none.
    pid_namespace: identifies the processes among which `pid` is unique; '' where unknown.
    pid: process ID.
    started: when the process started, in the system's unit; '' where unknown.
    since: when it took the folder, ISO 8601 in UTC.
    beat: number of renewals.
  """

  token: str = ''
  host: str = ''
  boot: str = ''
  pid_namespace: str = ''
  pid: int = 0
  started: str = ''
  since: str = ''
  beat: int = 0

  def describe(self) -> str:
    """The process, for messages; the fields come from a file, and may hold anything."""
    if not self.token:
      return 'another process'
    host, since = (''.join(filter(str.isprintable, t))[:80] for t in (self.host, self.since))
    return f'process {self.pid} on {host}, since {since}'

  def written(self) -> bytes:
    """The content of the lock file."""
    return (json.dumps({'format': FORMAT} | dataclasses.asdict(self), indent=1) + '\n').encode()


def parse(content: bytes) -> Holder:
  """The process that the content of a lock file names; without a token if it is damaged."""
  try:
    found = json_reader.parse(content, 'the lock')
    fields = {field.name: field.type for field in dataclasses.fields(Holder)}
    values = {name: found[name] for name in fields}
  except (ValueError, KeyError, TypeError):
    return Holder()
  right = all(type(values[name]) is kind for name, kind in fields.items())
  return Holder(**values) if right else Holder()


def this_process() -> Holder:
  """This process, with a new token."""
  since = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
  return Holder(
    token=uuid.uuid4().hex,
    host=socket.gethostname(),
    boot=_boot_id(),
    pid_namespace=_pid_namespace(),
    pid=os.getpid(),
    started=_start_of(os.getpid()) or '',
    since=since,
  )


def state_of(holder: Holder, here: Holder) -> State:
  """Whether a holder still runs, as far as this machine can know.

  Two containers of one machine share its boot id, but cannot see each other's processes: they have
  different namespaces of process IDs, and are watched like processes of other machines.
  """
  if not holder.token:
    return 'unknown'
  same_host = holder.host == here.host and here.host not in _COMMON_NAMES
  same_boot = holder.boot == here.boot if here.boot else same_host and not holder.boot
  if same_boot:
    if holder.pid_namespace != here.pid_namespace:
      return 'unknown'
    started = _start_of(holder.pid)
    if started is None:
      return 'gone'
    if not started or not holder.started:
      return 'unknown'
    return 'alive' if started == holder.started else 'gone'
  if same_host and holder.boot and here.boot:
    return 'gone'
  return 'unknown'


@functools.cache
def _boot_id() -> str:
  try:
    return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:  # not Linux: processes are then found by host name, ID and start
    return ''


def _pid_namespace() -> str:
  try:
    return os.readlink('/proc/self/ns/pid')
  except OSError:
    return ''


def _start_of(pid: int) -> str | None:
  """When a process of this machine started; None if there is none, '' if that is not known."""
  if pid <= 0:
    return None
  try:
    content = pathlib.Path(f'/proc/{pid}/stat').read_text(errors='replace')
    fields = content.rpartition(')')[2].split()  # the name before it may hold anything
    return None if fields[0] in 'ZX' else fields[19]
  except (OSError, IndexError):
    pass
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except (OSError, OverflowError):
    return ''
  try:
    import psutil
  except ImportError:
    return ''
  try:
    return str(psutil.Process(pid).create_time())
  except psutil.NoSuchProcess:
    return None
  except psutil.Error:
    return ''


#### Where the file is ####


@dataclasses.dataclass(frozen=True)
class _Found:
  """A lock file as it was read.

  Attributes:
    content: its bytes.
    version: changes with each renewal.
  """

  content: bytes
  version: Any


class _Place(Protocol):
  """The lock file of a folder. Methods raise what the file system raises."""

  def read(self) -> _Found | None:
    """The file; None if there is none."""

  def create(self, content: bytes) -> bool:
    """Writes the file unless it exists; returns whether it did."""

  def replace(self, found: _Found, content: bytes) -> bool:
    """Writes the file if it is still the one that was found; returns whether it did."""

  def renew(self, found: _Found, content: bytes) -> None:
    """Changes the version of the file of this process."""

  def remove(self, found: _Found) -> None:
    """Removes the file if it is still the one that was found."""


class _LocalPlace:
  """A file of a local or network file system. Renewals set its time of change, also on full disks.

  To replace the file of a process that is gone, a process first creates a claim exclusively, a
  file that is named after the content to replace. So of several that see the same file one wins.
  """

  def __init__(self, folder: str) -> None:
    self._path = os.path.join(folder, LOCK_FILE)
    self._made_folder = False
    self._claims: dict[str, tuple[bytes, float]] = {}

  def read(self) -> _Found | None:
    try:
      with open(self._path, 'rb') as file:  # opening refreshes what NFS has cached
        return _Found(file.read(_MOST_BYTES), os.fstat(file.fileno()).st_mtime_ns)
    except FileNotFoundError:
      return None

  def create(self, content: bytes) -> bool:
    folder = os.path.dirname(self._path)
    for _ in range(_MAKE_ATTEMPTS):
      self._made_folder |= not os.path.isdir(folder)
      os.makedirs(folder, exist_ok=True)
      # Another process may remove the folder, which is empty.
      with contextlib.suppress(FileNotFoundError), self._temporary(content) as temporary:
        return _link(temporary, self._path, content)
    return False

  def replace(self, found: _Found, content: bytes) -> bool:
    claim = f'{self._path}.{uuid.uuid5(uuid.NAMESPACE_OID, found.content.hex()).hex}.claim'
    with self._temporary(content) as temporary:
      if not _link(temporary, claim, content):
        self._drop_abandoned(claim)
        return False
      try:
        now = self.read()
        if now is None or now.content != found.content:
          return False
        with contextlib.suppress(FileNotFoundError):  # another process has cleaned up too early
          os.replace(temporary, self._path)
          return True
        return False
      finally:
        with contextlib.suppress(FileNotFoundError):
          os.unlink(claim)

  def renew(self, found: _Found, content: bytes) -> None:
    os.utime(self._path)

  def remove(self, found: _Found) -> None:
    now = self.read()
    if now is not None and now.content == found.content:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(self._path)
      if self._made_folder:
        with contextlib.suppress(OSError):  # it holds something now
          os.rmdir(os.path.dirname(self._path))

  def remove_leftovers(self) -> None:
    """Removes files of processes that were killed while they took the lock."""
    folder = os.path.dirname(self._path)
    for name in os.listdir(folder):
      if name.startswith(f'{LOCK_FILE}.') and name.endswith('.partial'):
        with contextlib.suppress(FileNotFoundError):
          os.unlink(os.path.join(folder, name))

  @contextlib.contextmanager
  def _temporary(self, content: bytes) -> Iterator[str]:
    temporary = f'{self._path}.{uuid.uuid4().hex[:8]}.partial'
    try:
      _write_new(temporary, content)
      yield temporary
    finally:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)

  def _drop_abandoned(self, claim: str) -> None:
    """Removes a claim whose process was killed before it finished the takeover."""
    try:
      content = pathlib.Path(claim).read_bytes()[:_MOST_BYTES]
    except FileNotFoundError:
      return
    state = state_of(parse(content), this_process())
    before, since = self._claims.setdefault(claim, (content, time.monotonic()))
    if before != content:
      self._claims[claim] = content, time.monotonic()
      return
    if state == 'gone' or state == 'unknown' and time.monotonic() - since > _CLAIM_PATIENCE:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(claim)


def _write_new(path: str, content: bytes) -> None:
  descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
  with open(descriptor, 'wb') as file:
    file.write(content)
    file.flush()
    os.fsync(descriptor)


def _link(temporary: str, path: str, content: bytes) -> bool:
  """Gives a written file a second name; returns False if that name exists.

  A link is atomic on NFS as well, where the answer may get lost: the count of links then shows
  whether it was made. Where links are not supported, the file is created exclusively and is empty
  for a moment, which readers take for a process that they do not know.
  """
  try:
    os.link(temporary, path)
    return True
  except FileExistsError:
    return os.stat(temporary).st_nlink == 2
  except FileNotFoundError:  # another process has removed the temporary file
    return False
  except OSError:
    try:
      _write_new(path, content)
      return True
    except FileExistsError:
      return False


class _GooglePlace:
  """An object of Google Cloud Storage. Every write has a precondition on the generation."""

  def __init__(self, folder: str) -> None:
    from google.cloud.storage import Client

    bucket, _, name = folder.partition('://')[2].partition('/')
    self._bucket = Client().bucket(bucket)
    self._name = f'{name}/{LOCK_FILE}'.lstrip('/')

  def read(self) -> _Found | None:
    from google.api_core.exceptions import NotFound, PreconditionFailed

    for _ in range(_READ_ATTEMPTS):
      blob = self._bucket.get_blob(self._name, timeout=_REQUEST_SECONDS)
      if blob is None:
        return None
      with contextlib.suppress(NotFound, PreconditionFailed):  # it changed between two requests
        content = blob.download_as_bytes(
          if_generation_match=blob.generation, timeout=_REQUEST_SECONDS
        )
        return _Found(content, blob.generation)
    raise OSError(f'{LOCK_FILE} changes too often to be read')

  def create(self, content: bytes) -> bool:
    return self._write(content, 0)

  def replace(self, found: _Found, content: bytes) -> bool:
    return self._write(content, found.version)

  def renew(self, found: _Found, content: bytes) -> None:
    self._write(content, found.version)

  def remove(self, found: _Found) -> None:
    from google.api_core.exceptions import NotFound, PreconditionFailed

    with contextlib.suppress(NotFound, PreconditionFailed):
      self._bucket.blob(self._name).delete(
        if_generation_match=found.version, timeout=_REQUEST_SECONDS
      )

  def _write(self, content: bytes, generation: int) -> bool:
    from google.api_core.exceptions import PreconditionFailed

    try:
      self._bucket.blob(self._name).upload_from_string(
        content, if_generation_match=generation, timeout=_REQUEST_SECONDS
      )
    except PreconditionFailed:  # also after a retry of a request whose answer was lost
      now = self.read()
      return now is not None and now.content == content
    return True


class _FsspecPlace:
  """A file of another store of fsspec, with the preconditions that the store offers.

  Where it offers none, two processes that start within the same instant may both succeed; each
  reads the file back, so that all but the last one notice.
  """

  def __init__(self, folder: str) -> None:
    self._path = file_access.join(folder, LOCK_FILE)
    self._system = file_access.filesystem(folder)

  def read(self) -> _Found | None:
    self._system.invalidate_cache()
    try:
      content = self._system.cat_file(self._path)
    except FileNotFoundError:
      return None
    return _Found(content, content)

  def create(self, content: bytes) -> bool:
    self._system.makedirs(self._path.rpartition('/')[0], exist_ok=True)
    try:
      self._system.pipe_file(self._path, content, mode='create')
    except FileExistsError:
      return self._is_ours(content)
    except (TypeError, ValueError, NotImplementedError):  # the store has no exclusive creation
      if self._system.exists(self._path):
        return False
      self._system.pipe_file(self._path, content)
    return self._is_ours(content)

  def replace(self, found: _Found, content: bytes) -> bool:
    if not self._is_ours(found.content):
      return False
    self._system.pipe_file(self._path, content)
    return self._is_ours(content)

  def renew(self, found: _Found, content: bytes) -> None:
    self._system.pipe_file(self._path, content)

  def remove(self, found: _Found) -> None:
    if self._is_ours(found.content):
      with contextlib.suppress(FileNotFoundError):
        self._system.rm_file(self._path)

  def _is_ours(self, content: bytes) -> bool:
    now = self.read()
    return now is not None and now.content == content


def _place_of(folder: str) -> _Place:
  if not file_access.is_remote(folder):
    return _LocalPlace(os.path.abspath(folder))
  return _GooglePlace(folder) if folder.startswith(('gs://', 'gcs://')) else _FsspecPlace(folder)


#### The lock ####


class FolderLock:
  """The right to write into a folder, which one process has at a time.

  Use it as a context manager around all writing. `acquire` takes the folder, and leaving the block
  releases it; so do SIGTERM and Ctrl-C, which end the block. A thread renews the lock file. It does
  not hold up the end of the program.

  Args:
    folder: path or address. It is made when the lock is taken.
    take_over: whether to take the folder also from a process that still runs.
  """

  def __init__(self, folder: str | os.PathLike[str], *, take_over: bool = False) -> None:
    self.folder = os.fspath(folder).rstrip('/') or '/'
    self._take_over = take_over
    self._me = Holder()
    self._place: _Place | None = None
    self._mutex = threading.Lock()  # of the place, and of what follows
    self._held: _Found | None = None
    self._taken_by: Holder | None = None
    self._released = threading.Event()
    self._watched: tuple[str, Any, float, bool] | None = None
    self._old_handler: Callable[[int, types.FrameType | None], Any] | int | None = None

  def __enter__(self) -> 'FolderLock':
    """Returns the lock, which is not taken yet."""
    return self

  def __exit__(self, *_: object) -> None:
    """Releases the folder."""
    self.release()

  @property
  def lost(self) -> bool:
    """Whether another process is known to have taken the folder."""
    return self._taken_by is not None

  def acquire(self) -> None:
    """Takes the folder, at once or after a wait that shows that its holder is gone.

    Raises:
      FolderInUse: another process writes there.
      file_access.Unwritable: the folder cannot be written.
    """
    waits = False
    alive_since: float | None = None
    while (found := self.attempt()) is not None:
      holder, alive = found
      if alive and not self._take_over:
        alive_since = time.monotonic() if alive_since is None else alive_since
        if time.monotonic() - alive_since < _LEAVING:
          time.sleep(_LEAVING / 10)
          continue
        raise FolderInUse(
          f'{self.folder!r} is being written by {holder.describe()}; stop that process or wait for '
          'its end, or take the folder from it with --take_over.'
        )
      if not waits:
        waits = True
        console.say(
          'waiting',
          f'at most {console.seconds(PATIENCE)} for a sign of {holder.describe()}, which has not '
          f'released {self.folder}; --take_over does not wait',
        )
      time.sleep(_POLL)

  def attempt(self) -> tuple[Holder, bool] | None:
    """Takes the folder if that is possible now.

    Returns:
      None if it is taken; otherwise the holder, and whether it is known to be alive.

    Raises:
      file_access.Unwritable: the folder cannot be written.
    """
    with file_access.reaching(self.folder, 'written', local=True), self._mutex:
      if self._held is not None:
        return None
      if self._place is None:
        self._place = _place_of(self.folder)
      self._me = this_process()
      content = self._me.written()
      found = self._place.read()
      if found is None:
        taken = self._place.create(content)
      else:
        state = self._state(found)
        may_take = state == 'gone' or self._take_over
        taken = may_take and self._place.replace(found, content)
        if not taken:
          return parse(found.content), state == 'alive'
      if taken and self._begin():
        return None
      return Holder(), False  # another process was faster, or released it between two requests

  def check(self, read: bool = False) -> None:
    """Checks that the folder is still this process's.

    Args:
      read: whether to read the lock file, as before a checkpoint; otherwise what the thread that
        renews it knows.

    Raises:
      FolderInUse: another process has taken it.
    """
    if read and self._held is not None and not self.lost:
      with contextlib.suppress(Exception):  # of any kind: not reaching a file is not losing it
        self._renew(renews=False)
    if self._taken_by is not None:
      raise FolderInUse(
        f'{self.folder!r} was taken over by {self._taken_by.describe()}; this process stops before '
        'it writes more.'
      )

  def release(self) -> None:
    """Releases the folder if this process holds it. A failure is not reported.

    The next start then finds that this process has ended, or misses its renewals.
    """
    self._released.set()
    if self._held is None or self._me.pid != os.getpid():
      return
    self._restore_handler()
    if not self._mutex.acquire(timeout=_RELEASE_WAIT):
      return
    try:
      held, self._held = self._held, None
      if held is not None and self._place is not None and not self.lost:
        self._place.remove(held)
    except Exception:  # of any kind, as stores raise
      pass
    finally:
      self._mutex.release()

  def _state(self, found: _Found) -> State:
    """Whether the holder of a file is alive, by its machine or by its renewals so far."""
    holder = parse(found.content)
    state = state_of(holder, self._me)
    if state != 'unknown':
      return state
    now = time.monotonic()
    if self._watched is None or self._watched[0] != holder.token:
      self._watched = holder.token, found.version, now, False
    _, version, since, renewed = self._watched
    if version != found.version:
      self._watched = holder.token, found.version, now, True
      return 'alive'
    if now - since > PATIENCE:
      return 'gone'
    return 'alive' if renewed else 'unknown'

  def _begin(self) -> bool:
    """Starts to hold the folder, if its file is this process's. `_mutex` is held."""
    assert self._place is not None
    found = self._place.read()
    if found is None or parse(found.content).token != self._me.token:
      return False
    self._held = found
    self._released.clear()
    if isinstance(self._place, _LocalPlace):
      self._place.remove_leftovers()
    self._handle_sigterm()
    threading.Thread(target=self._renew_often, args=(self._me.token,), daemon=True).start()
    return True

  def _renew_often(self, token: str) -> None:
    while not self._released.wait(BEAT):
      if self._me.token != token or self.lost:
        return
      with contextlib.suppress(Exception):  # of any kind: the next renewal may succeed
        self._renew()

  def _renew(self, renews: bool = True) -> None:
    """Looks at the lock file, and renews it if it is still this process's."""
    with self._mutex:
      if self._held is None or self._place is None or self.lost:
        return
      found = self._place.read()
      # Without a file another process may have taken the folder, written and released it.
      holder = Holder() if found is None else parse(found.content)
      if found is None or holder.token != self._me.token:
        self._taken_by = holder
        return
      self._held = found
      if renews:
        self._me = dataclasses.replace(self._me, beat=self._me.beat + 1)
        self._place.renew(found, self._me.written())
        self._held = self._place.read() or found

  #### SIGTERM ####

  def _handle_sigterm(self) -> None:
    """Makes SIGTERM end the block where it would end the process without a release."""
    if threading.current_thread() is not threading.main_thread() or sys.is_finalizing():
      return
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
      self._old_handler = signal.signal(signal.SIGTERM, self._stop)

  def _restore_handler(self) -> None:
    if self._old_handler is None or threading.current_thread() is not threading.main_thread():
      return
    if signal.getsignal(signal.SIGTERM) == self._stop:
      signal.signal(signal.SIGTERM, self._old_handler)
    self._old_handler = None

  def _stop(self, number: int, frame: types.FrameType | None) -> None:
    if os.getpid() != self._me.pid:  # a forked process: it holds nothing
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)
      return
    raise Preempted('asked to stop; the same command continues.')

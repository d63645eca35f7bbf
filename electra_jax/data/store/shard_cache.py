"""The shards of a store at an address, fetched to this machine: once per host, checked on arrival.

fsspec's caches (`filecache`, `blockcache`, `simplecache`) are not used. They do not compare a file
with a checksum, a process may read a file that another one is still writing, and processes of a
host that need the same file each fetch it.
"""

import concurrent.futures
import contextlib
import glob as local_glob
import hashlib
import os
import pathlib
import uuid
from collections.abc import Callable, Iterator, Sequence

from electra_jax import console, file_access
from electra_jax.data.store.token_manifest import Shard
from electra_jax.errors import UserError

_AT_ONCE = 16  # a connection of an object store has tens of MB/s, and waits for each answer
_ATTEMPTS = 2
_CHUNK_BYTES = 1 << 22

Advance = Callable[[int], None]


def default_cache() -> pathlib.Path:
  """The folder of the cache unless the config names another."""
  root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(root) / 'electra_jax'


def fetch_shards(address: str, shards: Sequence[Shard], folder: pathlib.Path) -> None:
  """Fetches the shards that are not in `folder` yet, several at a time, with a progress line.

  Args:
    address: of the store.
    shards: entries of its manifest.
    folder: local.

  Raises:
    UserError: see `fetch_shard`.
  """
  missing = [shard for shard in shards if not is_fetched(shard, folder)]
  if not missing:
    return
  arrived = [0] * len(missing)

  def fetch(i: int) -> None:
    fetch_shard(address, missing[i], folder, lambda count: arrived.__setitem__(i, count))

  total = sum(shard['bytes'] for shard in missing)
  with (
    console.progress('fetching', total, 'B') as line,
    concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool,
  ):
    waiting = {pool.submit(fetch, i) for i in range(len(missing))}
    try:
      while waiting:
        done, waiting = concurrent.futures.wait(waiting, 0.2, concurrent.futures.FIRST_EXCEPTION)
        for future in done:
          future.result()
        line(sum(arrived), f'{sum(arrived) / 1e9:.2f} of {total / 1e9:.2f} GB of {address}')
    finally:
      pool.shutdown(wait=False, cancel_futures=True)


def fetch_shard(
  address: str, shard: Shard, folder: pathlib.Path, advance: Advance | None = None
) -> pathlib.Path:
  """Fetches a shard unless it is in `folder`. Processes of a host that need it wait for one.

  Args:
    address: of the store.
    shard: its entry in the manifest.
    folder: local.
    advance: is called with the number of bytes that have arrived.

  Returns:
    The local file.

  Raises:
    UserError: it cannot be read, arrives damaged twice, or cannot be written here.
  """
  target = folder / str(shard['file'])
  if is_fetched(shard, folder):
    return target
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f'{shard["file"]}.lock') as alone:
      if alone:  # what processes that were killed have left
        for partial in folder.glob(f'{local_glob.escape(target.name)}.????????.partial'):
          partial.unlink(missing_ok=True)
      if not is_fetched(shard, folder):  # another process may have fetched it meanwhile
        source = file_access.join(address, shard['file'])
        _download(source, shard, target, advance or (lambda count: None))
  except OSError as error:
    raise UserError(
      f'the cache {str(folder)!r} cannot be written: {error.strerror or error}; name another '
      'folder for it'
    ) from None
  return target


def is_fetched(shard: Shard, folder: pathlib.Path) -> bool:
  """Whether a shard is in `folder`, where it gets its name when it is complete and checked."""
  try:
    return bool((folder / shard['file']).stat().st_size == shard['bytes'])
  except OSError:
    return False


def _download(address: str, shard: Shard, target: pathlib.Path, advance: Advance) -> None:
  """Writes the file at an address to `target`, complete and with the right checksum."""
  temporary = target.with_name(f'{target.name}.{uuid.uuid4().hex[:8]}.partial')
  complaint = ''
  try:
    for _ in range(_ATTEMPTS):
      digest = hashlib.blake2b(digest_size=16)
      count = 0
      with open(temporary, 'wb') as file:
        try:
          for chunk in _chunks(address):
            digest.update(chunk)
            file.write(chunk)
            count += len(chunk)
            advance(count)
        except _Unreadable as error:
          complaint = f'{error}; check that it exists and can be read, or prepare the corpus again'
          continue
        file.flush()
        os.fsync(file.fileno())
      if count == shard['bytes'] and digest.hexdigest() == shard['blake2b']:
        os.replace(temporary, target)
        return
      complaint = (
        f'the shard {address!r} is damaged: {count:,} bytes of {shard["bytes"]:,} arrived, or '
        'their checksum is wrong; prepare the corpus again'
      )
    raise UserError(complaint)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)


class _Unreadable(Exception):
  """The address failed, as opposed to the disk of this machine."""


def _chunks(address: str) -> Iterator[bytes]:
  try:
    with file_access.open_binary(address) as source:
      while chunk := source.read(_CHUNK_BYTES):
        yield chunk
  except UserError as error:
    raise _Unreadable(str(error)) from None
  except Exception as error:  # remote file systems raise many kinds
    raise _Unreadable(f'{address!r} cannot be read: {file_access.reason(error)}') from None


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[bool]:
  """Holds a lock file; yields whether it does.

  Where files cannot be locked, each process writes the same bytes. The kernel releases the lock
  with the process, so that no stale lock remains.
  """
  with open(path, 'w') as file:
    locked = False
    with contextlib.suppress(ImportError, OSError):
      import fcntl

      fcntl.flock(file, fcntl.LOCK_EX)
      locked = True
    yield locked

"""Shards of a store at an address, fetched to this machine: each once a host, checked on arrival."""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import uuid

from electra_jax import console, file_access
from electra_jax.errors import UserError

_AT_ONCE = 4
_ATTEMPTS = 2
_CHUNK_BYTES = 1 << 22


def default_cache() -> pathlib.Path:
  """Where what can be made or fetched again is kept unless a person says otherwise."""
  root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(root) / 'electra_jax'


def fetch_shards(address: str, shards: list[dict], folder: pathlib.Path) -> None:
  """Fetches the shards that are not in `folder` yet, some at once, with a progress line.

  Raises:
    UserError: what `fetch_shard` raises.
  """
  missing = [shard for shard in shards if not is_fetched(shard, folder)]
  if not missing:
    return
  arrived = [0] * len(missing)

  def fetch(i):
    fetch_shard(address, missing[i], folder, lambda count: arrived.__setitem__(i, count))

  total = sum(shard['bytes'] for shard in missing)
  with (
    console.progress('fetching', total) as line,
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


def fetch_shard(address: str, shard: dict, folder: pathlib.Path, advance=None) -> pathlib.Path:
  """A shard in `folder`, fetched where it is not there yet; processes of a host that want the same one wait for one.

  Args:
    address: of the store.
    shard: what the manifest says of it.
    advance: called with the bytes that have arrived.

  Raises:
    UserError: it cannot be read, arrives damaged twice, or cannot be kept.
  """
  target = folder / shard['file']
  if is_fetched(shard, folder):
    return target
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / f'{shard["file"]}.lock'):
      if not is_fetched(shard, folder):  # another process may have fetched it meanwhile
        _download(
          file_access.join(address, shard['file']), shard, target, advance or (lambda count: None)
        )
  except OSError as error:
    raise UserError(
      f'the cache {str(folder)!r} cannot be written: {error.strerror or error}; name another folder for it'
    ) from None
  return target


def is_fetched(shard: dict, folder: pathlib.Path) -> bool:
  """Whether a shard is in `folder`: it gets its name there when it is whole and has been checked."""
  try:
    return (folder / shard['file']).stat().st_size == shard['bytes']
  except OSError:
    return False


def _download(address, shard, target, advance):
  """Writes the file at an address to `target`, whole and with the right checksum or not at all."""
  temporary = target.with_name(f'{target.name}.{uuid.uuid4().hex[:8]}.partial')
  try:
    for _ in range(_ATTEMPTS):
      complaint = None
      digest, count = hashlib.blake2b(digest_size=16), 0
      with open(temporary, 'wb') as file:
        try:
          for chunk in _chunks(address):
            digest.update(chunk)
            file.write(chunk)
            count += len(chunk)
            advance(count)
        except _Unreadable as error:
          complaint = f'{error}; see that it is there and can be read, or prepare the corpus again'
          continue
        file.flush()
        os.fsync(file.fileno())
      if count == shard['bytes'] and digest.hexdigest() == shard['blake2b']:
        os.replace(temporary, target)
        return
      complaint = (
        f'the shard {address!r} is damaged: {count:,} bytes of {shard["bytes"]:,} came, '
        'or their checksum is wrong; prepare the corpus again'
      )
    raise UserError(complaint)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)


class _Unreadable(Exception):
  """The other side failed, as distinct from the disk of this machine."""


def _chunks(address):
  try:
    with file_access.open_binary(address) as source:
      while chunk := source.read(_CHUNK_BYTES):
        yield chunk
  except UserError as error:
    raise _Unreadable(str(error)) from None
  except Exception as error:  # remote file systems raise all kinds
    raise _Unreadable(f'{address!r} cannot be read: {file_access.reason(error)}') from None


@contextlib.contextmanager
def _alone(path):
  """Holds a lock file; where files cannot be locked, whoever is last writes the same bytes again."""
  with open(path, 'w') as file:
    with contextlib.suppress(ImportError, OSError):
      import fcntl

      fcntl.flock(file, fcntl.LOCK_EX)
    yield

"""Files by path or address: plain ones of this machine, and everything that fsspec opens (gs://, s3://, memory://)."""

import bz2
import contextlib
import dataclasses
import glob as local_glob
import gzip
import io
import logging
import lzma
import os
import pathlib
import shutil
import uuid
import zlib
from typing import BinaryIO

from electra_jax.errors import UserError

COMPRESSIONS = ('.gz', '.xz', '.bz2', '.zst')

_PACKAGES = {
  'gs': 'gcsfs',
  'gcs': 'gcsfs',
  's3': 's3fs',
  'az': 'adlfs',
  'abfs': 'adlfs',
  'http': 'aiohttp',
  'https': 'aiohttp',
  'hf': 'huggingface_hub',
}
_VERSION_MARKS = (
  'etag',
  'ETag',
  'md5Hash',
  'generation',
  'updated',
  'mtime',
  'LastModified',
  'last_modified',
  'created',
)
_WITH_FOLDERS = (
  'file',
  'local',
  'ftp',
  'sftp',
  'ssh',
  'smb',
  'hdfs',
  'webhdfs',
)  # others make them of the names
_BUFFER_BYTES = 1 << 18
_ZSTD_LEAST, _ZSTD_MOST = (
  1 << 8,
  1 << 14,
)  # bytes decompressed at a time, fewer where they become very many


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a file system tells of a file without opening it."""

  size: int  # bytes; 0 where it is not told
  version: str  # changes when the file does: time of change, or what a remote file system tells in its place


class Unwritable(UserError):
  """A file could not be written; those before it were."""


class Unreachable(UserError):
  """What is at an address could not be read, just now or at all."""


def is_remote(path: str | os.PathLike) -> bool:
  """Whether it is an address, scheme://..., and not a path of this machine."""
  return '://' in os.fspath(path)


def filesystem(address: str):
  """The fsspec file system of an address. Raises UserError where its package is not installed, or nobody knows it."""
  import fsspec

  scheme = address.split('://')[0]
  logger = logging.getLogger(_PACKAGES.get(scheme, scheme))
  if logger.level == logging.NOTSET:  # it would log what it raises too, with a traceback
    logger.setLevel(logging.CRITICAL)
  try:
    return fsspec.core.url_to_fs(address)[0]
  except ImportError:
    package = _PACKAGES.get(scheme, f'the fsspec package for {scheme}')
    raise UserError(
      f'{address!r} needs {package}, which is not installed; pip install {package}'
    ) from None
  except ValueError:
    raise UserError(
      f'{address!r} begins with a scheme that is not known; give a path, or an address such as '
      'gs://bucket/file'
    ) from None


def normal(path: str | os.PathLike) -> str:
  """A path or address as one writes it with care: `~` opened, no slash at the end."""
  path = os.fspath(path)
  return path.rstrip('/') if is_remote(path) else os.path.normpath(os.path.expanduser(path))


def join(folder: str | os.PathLike, *names: str) -> str:
  """A path or address inside a folder."""
  return '/'.join([os.fspath(folder).rstrip('/'), *names])


def absolute(path: str | os.PathLike) -> str:
  """What tells one file from others: the path with links resolved, or the address as its file system writes it."""
  path = os.fspath(path)
  if not is_remote(path):
    return os.path.realpath(path)
  system = filesystem(path)
  return system.unstrip_protocol(system._strip_protocol(path))


def exists(path: str | os.PathLike) -> bool:
  path = os.fspath(path)
  with _readable(path):
    return filesystem(path).exists(path) if is_remote(path) else os.path.exists(path)


def is_folder(path: str | os.PathLike) -> bool:
  path = os.fspath(path)
  with _readable(path):
    return filesystem(path).isdir(path) if is_remote(path) else os.path.isdir(path)


def find(pattern: str) -> dict[str, Facts]:
  """The files, no folders, that a pattern matches, sorted, with their facts; `**` matches any depth of folders."""
  if not is_remote(pattern):
    return {
      path: facts(path)
      for path in sorted(local_glob.glob(pattern, recursive=True))
      if os.path.isfile(path)
    }
  with _readable(pattern):
    system = filesystem(pattern)
    found = system.glob(pattern, detail=True)
    return {
      system.unstrip_protocol(name): _remote_facts(told)
      for name, told in sorted(found.items())
      if told['type'] == 'file'
    }


def glob(pattern: str) -> list[str]:
  """The files, no folders, that a pattern matches, sorted."""
  return list(find(pattern))


def facts(path: str | os.PathLike) -> Facts:
  """Size and version of a file. Raises UserError where there is none."""
  path = os.fspath(path)
  with _readable(path):
    if is_remote(path):
      return _remote_facts(filesystem(path).info(path))
    stat = os.stat(path)
    return Facts(stat.st_size, str(stat.st_mtime_ns))


def size(path: str | os.PathLike) -> int:
  """Bytes of a file."""
  return facts(path).size


def version(path: str | os.PathLike) -> str:
  """Something that changes when the file does."""
  return facts(path).version


def open_binary(path: str | os.PathLike) -> BinaryIO:
  """A file as stored, for reading; `tell` counts its bytes."""
  path = os.fspath(path)
  with _readable(path):
    return filesystem(path).open(path, 'rb') if is_remote(path) else open(path, 'rb')


def decompressed(raw: BinaryIO, path: str | os.PathLike) -> BinaryIO:
  """What a file holds: decompressed where its name ends in .gz, .xz, .bz2 or .zst, several streams in a row included.

  Reading raises one of `damage()` where the file is damaged, cut short, or of another kind than its name says.
  """
  suffix = pathlib.PurePosixPath(os.fspath(path)).suffix.lower()
  if suffix == '.zst':
    stream = _ZstdReader(raw)
  elif suffix in COMPRESSIONS:
    stream = {'.gz': gzip.open, '.xz': lzma.open, '.bz2': bz2.open}[suffix](raw)
  else:
    return raw
  return io.BufferedReader(stream, _BUFFER_BYTES)


def damage() -> tuple[type[Exception], ...]:
  """What reading a damaged compressed file raises."""
  import zstandard

  return (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


class _ZstdReader(io.RawIOBase):
  """Zstandard frames in a row. The library's own stream reader takes a file that is cut short for a whole one."""

  def __init__(self, raw: BinaryIO):
    self._raw, self._frame, self._ready, self._amount = raw, None, b'', _ZSTD_LEAST

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    import zstandard

    while not self._ready:
      piece = (
        self._frame.unused_data if self._frame and self._frame.eof else b''
      ) or self._raw.read(self._amount)
      if not piece:
        if not self._frame or not self._frame.eof:
          raise EOFError('it ends within a frame')
        return 0
      if (
        not self._frame or self._frame.eof
      ):  # windows beyond 128 MB, as of zstd --long=31, are taken too
        self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
      self._ready = memoryview(self._frame.decompress(piece))
      wanted = len(piece) * _BUFFER_BYTES // max(len(self._ready), 1)
      self._amount = max(_ZSTD_LEAST, min(wanted, _ZSTD_MOST))
    count = min(len(buffer), len(self._ready))
    buffer[:count], self._ready = self._ready[:count], self._ready[count:]
    return count


def read_bytes(path: str | os.PathLike) -> bytes:
  with open_binary(path) as file, _readable(os.fspath(path)):
    return file.read()


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file whole or not at all, its folder made where it is missing. Raises Unwritable where it cannot."""
  path = os.fspath(path)
  with _writable(path):
    if is_remote(path):  # objects appear when their upload is complete
      system = filesystem(path)
      if path.split('://')[0] in _WITH_FOLDERS:
        system.makedirs(path.rpartition('/')[0], exist_ok=True)
      system.pipe_file(path, content)
      return
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    temporary = f'{path}.{uuid.uuid4().hex[:8]}.partial'
    try:
      with open(temporary, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    finally:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)


def upload(path: str | os.PathLike, address: str) -> None:
  """Copies a file of this machine to an address. Raises Unwritable where it cannot."""
  with _writable(address):
    system = filesystem(address)
    if address.split('://')[0] in _WITH_FOLDERS:
      system.makedirs(address.rpartition('/')[0], exist_ok=True)
    system.put_file(os.fspath(path), address)


def listing(folder: str | os.PathLike) -> list[str]:
  """Names in a folder, sorted; of one that is not there, none."""
  folder = os.fspath(folder)
  if not exists(folder):
    return []
  with _readable(folder):
    if is_remote(folder):
      return sorted(
        name.rstrip('/').split('/')[-1] for name in filesystem(folder).ls(folder, detail=False)
      )
    return sorted(os.listdir(folder))


def remove(path: str | os.PathLike) -> None:
  """Removes a file or a folder with all in it, where there is one."""
  path = os.fspath(path)
  with _writable(path):
    if not exists(path):
      return
    if is_remote(path):
      filesystem(path).rm(path, recursive=True)
    elif os.path.isdir(path):
      shutil.rmtree(path)
    else:
      os.unlink(path)


def _remote_facts(told):
  mark = next((mark for mark in _VERSION_MARKS if told.get(mark)), None)
  value = told.get(mark, '')
  if hasattr(value, 'timestamp'):  # one file system may tell a time in both ways
    value = value.timestamp()
  return Facts(told.get('size') or 0, f'{mark} {value}' if mark else '')


def reason(error: Exception) -> str:
  """An error in a few words, of one line."""
  told = str(getattr(error, 'strerror', None) or error).strip()
  return told.splitlines()[0].rstrip('.') if told else type(error).__name__


@contextlib.contextmanager
def _readable(path):
  try:
    yield
  except Exception as error:
    if _is_mistake(error, path):
      raise (Unreachable if is_remote(path) else UserError)(
        f'{path!r} cannot be read: {reason(error)}'
      ) from None
    raise


@contextlib.contextmanager
def _writable(path):
  try:
    yield
  except Exception as error:
    if _is_mistake(error, path):
      raise Unwritable(f'{path!r} cannot be written: {reason(error)}') from None
    raise


def _is_mistake(error, path):
  """Whether an error is the file system's; remote ones raise all kinds."""
  return not isinstance(error, UserError) and (isinstance(error, OSError) or is_remote(path))

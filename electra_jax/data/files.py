"""Files by path or address: plain ones of this machine, and everything that fsspec opens (gs://, s3://, memory://)."""

import bz2
import contextlib
import glob as local_glob
import gzip
import io
import lzma
import os
import pathlib
import uuid
from typing import BinaryIO

from electra_jax.config import UserError

COMPRESSIONS = ('.gz', '.xz', '.bz2', '.zst')

_PACKAGES = {'gs': 'gcsfs', 'gcs': 'gcsfs', 's3': 's3fs', 'az': 'adlfs', 'abfs': 'adlfs'}
_BUFFER_BYTES = 1 << 18


def is_remote(path: str | os.PathLike) -> bool:
  """Whether it is an address, scheme://..., and not a path of this machine."""
  return '://' in os.fspath(path)


def filesystem(address: str):
  """The fsspec file system of an address. Raises UserError where its package is not installed, or nobody knows it."""
  import fsspec

  scheme = address.split('://')[0]
  try:
    return fsspec.filesystem(scheme)
  except ImportError:
    package = _PACKAGES.get(scheme, f'the fsspec package for {scheme}')
    raise UserError(f'{address!r} needs {package}, which is not installed; pip install {package}') from None
  except ValueError:
    raise UserError(f'{address!r} begins with a scheme that is not known; give a path, or an address such as gs://bucket/file') from None


def join(folder: str | os.PathLike, *names: str) -> str:
  """A path or address inside a folder."""
  return '/'.join([os.fspath(folder).rstrip('/'), *names])


def exists(path: str | os.PathLike) -> bool:
  path = os.fspath(path)
  with _readable(path):
    return filesystem(path).exists(path) if is_remote(path) else os.path.exists(path)


def is_folder(path: str | os.PathLike) -> bool:
  path = os.fspath(path)
  with _readable(path):
    return filesystem(path).isdir(path) if is_remote(path) else os.path.isdir(path)


def glob(pattern: str) -> list[str]:
  """The files, no folders, that a pattern matches, sorted; `**` matches any depth of folders."""
  if not is_remote(pattern):
    return sorted(path for path in local_glob.glob(pattern, recursive=True) if os.path.isfile(path))
  with _readable(pattern):
    system = filesystem(pattern)
    found = system.glob(pattern, detail=True)
    return sorted(system.unstrip_protocol(name) for name, facts in found.items() if facts['type'] == 'file')


def size(path: str | os.PathLike) -> int:
  """Bytes of a file."""
  path = os.fspath(path)
  with _readable(path):
    return filesystem(path).size(path) if is_remote(path) else os.stat(path).st_size


def version(path: str | os.PathLike) -> str:
  """Something that changes when the file does: time of change, or what a remote file system tells in its place."""
  path = os.fspath(path)
  with _readable(path):
    if not is_remote(path):
      return str(os.stat(path).st_mtime_ns)
    facts = filesystem(path).info(path)
    marks = ('etag', 'ETag', 'md5Hash', 'generation', 'updated', 'mtime', 'LastModified', 'last_modified', 'created')
    return next((f'{mark} {facts[mark]}' for mark in marks if facts.get(mark)), '')


def open_binary(path: str | os.PathLike) -> BinaryIO:
  """A file as stored, for reading; `tell` counts its bytes."""
  path = os.fspath(path)
  with _readable(path):
    return filesystem(path).open(path, 'rb') if is_remote(path) else open(path, 'rb')


def decompressed(raw: BinaryIO, path: str | os.PathLike) -> BinaryIO:
  """What a file holds: decompressed where its name ends in .gz, .xz, .bz2 or .zst, several streams in a row included."""
  suffix = pathlib.PurePosixPath(os.fspath(path)).suffix.lower()
  if suffix == '.zst':
    import zstandard

    stream = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
  elif suffix in COMPRESSIONS:
    stream = {'.gz': gzip.open, '.xz': lzma.open, '.bz2': bz2.open}[suffix](raw)
  else:
    return raw
  return io.BufferedReader(stream, _BUFFER_BYTES)


def read_bytes(path: str | os.PathLike) -> bytes:
  with open_binary(path) as file:
    return file.read()


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file whole or not at all, its folder made where it is missing. Raises UserError where it cannot."""
  path = os.fspath(path)
  with _writable(path):
    if is_remote(path):  # objects appear when their upload is complete
      filesystem(path).pipe_file(path, content)
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


@contextlib.contextmanager
def _readable(path):
  try:
    yield
  except OSError as error:
    raise UserError(f'{path!r} cannot be read: {_reason(error)}') from None


@contextlib.contextmanager
def _writable(path):
  try:
    yield
  except OSError as error:
    raise UserError(f'{path!r} cannot be written: {_reason(error)}') from None


def _reason(error):
  return error.strerror or str(error) or type(error).__name__

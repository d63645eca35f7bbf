"""Access to files by local path or by address: gs://, s3://, memory:// and what else fsspec opens.

The package reads and writes files through this module. A file is written whole or not at all.
Errors of a file system are raised as `UserError`s of one sentence that names the file.

Local paths are handled with the standard library, because reading lines through fsspec's wrapper
of a local file is slow and its glob matches hidden files.
"""

import bz2
import contextlib
import dataclasses
import errno
import glob as local_glob
import gzip
import hashlib
import io
import logging
import lzma
import os
import pathlib
import re
import shutil
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

from electra_jax import input_limits, remote_files
from electra_jax.errors import UserError, missing_package

if TYPE_CHECKING:
  from _typeshed import WriteableBuffer

Answer = Any  # of a method of a file system
FileSystem = Any  # fsspec.AbstractFileSystem; fsspec has no annotations

COMPRESSIONS = ('.gz', '.xz', '.bz2', '.zst')
# First bytes of compressed files.
COMPRESSION_MAGIC = {
  b'\x1f\x8b': '.gz',
  b'\xfd7zXZ\0': '.xz',
  b'BZh91AY&SY': '.bz2',
  b'\x28\xb5\x2f\xfd': '.zst',
}

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
_EXTRAS = {'gcsfs': 'gcs', 's3fs': 's3'}  # package -> extra of electra-jax that installs it
# File systems with real folders. Object stores derive folders from the names of objects.
_WITH_FOLDERS = ('file', 'local', 'ftp', 'sftp', 'ssh', 'smb', 'hdfs', 'webhdfs')
_GOOGLE = ('gs://', 'gcs://')
_GOOGLE_HINT = (
  '; check the address, the network, and that this account may read, write and delete in the '
  'bucket (gcloud auth application-default login).'
)
_AMAZON = ('s3://', 's3a://')
_AMAZON_HINT = (
  '; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile of '
  '~/.aws/credentials.'
)
_REASON_LENGTH = 160
# Longest path and name of a folder: the limits of Linux, less what the names below it take.
_PATH_BYTES = (1024 if sys.platform == 'darwin' else 4096) - 256
_NAME_BYTES = 200
_BUFFER_BYTES = 1 << 18
# Bytes that are decompressed at a time: few where they expand to many.
_ZSTD_LEAST = 1 << 8
_ZSTD_MOST = 1 << 12  # of which a hostile file makes 128 MB
_ZSTD_WINDOW = 1 << 31  # `zstd --long=31` writes windows of more than the default of 128 MB


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a file system reports of a file without opening it.

  Attributes:
    size: in bytes; 0 where the file system does not report it.
    version: changes when the file does: the time of change, or a remote file system's equivalent.
  """

  size: int
  version: str


class Unwritable(UserError):
  """A file could not be written. Files that were written before it are whole."""


class Unreachable(UserError):
  """A file at an address could not be read, now or ever."""


#### Paths and addresses ####


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether `path` is an address, scheme://..., and not a local path."""
  return '://' in os.fspath(path)


def filesystem(address: str) -> FileSystem:
  """The fsspec file system of an address.

  Raises:
    UserError: its package is not installed, or the scheme is unknown.
  """
  import fsspec

  scheme = address.split('://')[0]
  if scheme.rpartition(':')[2] in ('gs', 'gcs'):  # also behind another one, as in cache::gs
    set_up_google_storage()
  _silence(_PACKAGES.get(scheme, scheme))
  try:
    return fsspec.core.url_to_fs(address)[0]
  except ImportError:
    package = _PACKAGES.get(scheme, f'the fsspec package for {scheme}')
    if extra := _EXTRAS.get(package):
      raise missing_package(repr(address), package, extra) from None
    raise UserError(
      f'{address!r} needs {package}, which is not installed; pip install {package}'
    ) from None
  except ValueError:
    raise UserError(
      f'{address!r} has an unknown scheme; expected a path, or an address such as gs://bucket/file'
    ) from None


def set_up_google_storage() -> None:
  """Configures gcsfs for every use in this process, whoever opens it.

  gcsfs caches listings of folders by default. They would be out of date, because TensorStore and
  other processes write to the same bucket. A store that does not answer is given up after a while.
  """
  import fsspec

  settings = fsspec.config.conf.setdefault('gcs', {})
  settings.setdefault('use_listings_cache', False)
  if (timeout := remote_files.google_timeout()) is not None:
    settings.setdefault('requests_timeout', timeout)
  _silence('gcsfs')


def _silence(package: str) -> None:
  """Keeps a package from logging the errors that it raises, with their tracebacks."""
  logger = logging.getLogger(package)
  if logger.level == logging.NOTSET:
    logger.setLevel(logging.CRITICAL)


def normal(path: str | os.PathLike[str]) -> str:
  """A path or address in normal form: `~` expanded, no slash at the end."""
  path = os.fspath(path)
  return path.rstrip('/') if is_remote(path) else os.path.normpath(os.path.expanduser(path))


def check_name(path: str | os.PathLike[str], what: str) -> None:
  """Checks that the files of a run or a corpus can be written below a local path.

  TensorStore takes UTF-8 only, and loses files below a name with a backslash. A control character,
  such as a line break, would end up in lists of files, in scripts and in messages.

  Args:
    path: the path of a folder.
    what: the flag or field that names it, for the message.

  Raises:
    UserError: the path has such characters, or is longer than the file system allows.
  """
  path = os.fspath(path)
  if re.search(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\\]', path):
    raise UserError(
      f'{what} is {path!a}; expected a path of printable UTF-8 characters, without line breaks, '
      'tabs and backslashes.'
    )
  name = max(map(os.fsencode, path.split('/')), key=len)
  length = len(os.fsencode(os.path.abspath(path)))
  if len(name) > _NAME_BYTES or length > _PATH_BYTES:
    raise UserError(
      f'{what} is {path[:60]!r}..., a path of {length:,} bytes; expected at most {_PATH_BYTES:,}, '
      f'and at most {_NAME_BYTES} in each name.'
    )


def join(folder: str | os.PathLike[str], *names: str) -> str:
  """A path or address inside a folder."""
  return '/'.join([os.fspath(folder).rstrip('/'), *names])


def absolute(path: str | os.PathLike[str]) -> str:
  """The unique name of a file: its path with links resolved, or its address in normal form."""
  path = os.fspath(path)
  if not is_remote(path):
    return os.path.realpath(path)
  system = filesystem(path)
  return str(system.unstrip_protocol(system._strip_protocol(path)))


#### Finding files ####


def exists(path: str | os.PathLike[str]) -> bool:
  """Whether there is a file or folder.

  Raises:
    UserError: the file system of an address cannot be reached.
  """
  path = os.fspath(path)
  with reaching(path, local=True):
    if is_remote(path):
      return bool(_asked(path, 'exists'))
    return os.path.exists(path)


def is_folder(path: str | os.PathLike[str]) -> bool:
  """Whether there is a folder. Raises what `exists` raises."""
  path = os.fspath(path)
  with reaching(path, local=True):
    return bool(_asked(path, 'isdir')) if is_remote(path) else os.path.isdir(path)


def find_files(pattern: str) -> dict[str, Facts]:
  """The files that a pattern matches, without folders, sorted, with their facts.

  `**` matches any depth of folders. One request lists the files of an address.
  """
  if not is_remote(pattern):
    return {
      path: facts(path)
      for path in sorted(local_glob.glob(pattern, recursive=True))
      if os.path.isfile(path)
    }
  with reaching(pattern):
    system = filesystem(pattern)
    found = _asked(pattern, 'glob', detail=True)
    return {
      str(system.unstrip_protocol(name)): _remote_facts(info)
      for name, info in sorted(found.items())
      if info['type'] == 'file'
    }


def glob(pattern: str) -> list[str]:
  """The files that a pattern matches, without folders, sorted."""
  return list(find_files(pattern))


def escape(path: str | os.PathLike[str]) -> str:
  """A pattern that matches only a path or address itself, whatever characters it has.

  Addresses are not changed: fsspec has no such form.
  """
  path = os.fspath(path)
  return path if is_remote(path) else local_glob.escape(path)


def files_below(folder: str | os.PathLike[str]) -> list[str]:
  """All files below a folder, relative to it, with slashes, sorted; empty if it does not exist.

  Raises:
    UserError: the folder cannot be read.
  """
  folder = os.fspath(folder)
  with reaching(folder, local=True):
    if is_remote(folder):
      system = filesystem(folder)
      start = str(system._strip_protocol(folder)).rstrip('/') + '/'
      system.invalidate_cache()
      return sorted(name.removeprefix(start) for name in system.find(folder))
    return sorted(
      os.path.relpath(os.path.join(place, name), folder).replace(os.sep, '/')
      for place, _, names in os.walk(folder)
      for name in names
    )


def facts(path: str | os.PathLike[str]) -> Facts:
  """Size and version of a file.

  Raises:
    UserError: it does not exist or cannot be reached.
  """
  path = os.fspath(path)
  with reaching(path, local=True):
    if is_remote(path):
      return _remote_facts(_asked(path, 'info'))
    stat = os.stat(path)
    return Facts(stat.st_size, str(stat.st_mtime_ns))


def listing(folder: str | os.PathLike[str]) -> list[str]:
  """Names in a folder, sorted; empty if it does not exist."""
  folder = os.fspath(folder)
  with reaching(folder, local=True):
    try:
      if not is_remote(folder):
        return sorted(os.listdir(folder))
      names = _asked(folder, 'ls', detail=False)
    except FileNotFoundError:
      return []
    return sorted(name.rstrip('/').split('/')[-1] for name in names)


def _remote_facts(info: Mapping[str, Any]) -> Facts:
  return Facts(info.get('size') or 0, remote_files.version_of(info))


#### Reading ####


def open_binary(path: str | os.PathLike[str]) -> BinaryIO:
  """Opens a file for reading its stored bytes; its position counts them.

  At an address the bytes are checked while they are read, see `remote_files.open_checked`.
  """
  path = os.fspath(path)
  with reaching(path, local=True):
    if is_remote(path):
      return cast(BinaryIO, remote_files.open_checked(filesystem(path), path))
    return open(path, 'rb')


def read_bytes(path: str | os.PathLike[str], most: int = -1) -> bytes:
  """The content of a file as stored.

  Args:
    path: a path or an address.
    most: number of bytes to read at most; -1 for all.
  """
  path = os.fspath(path)
  if most < 0 and is_remote(path):
    with reaching(path):
      return remote_files.read_whole(filesystem(path), path)
  with open_binary(path) as file, reaching(path, local=True):
    return file.read() if most < 0 else read_at_most(file, most)


def read_at_most(file: IO[bytes], most: int) -> bytes:
  """The rest of a file, or its next `most` bytes.

  `read(most)` of a buffered file allocates so much memory, however small the file is.
  """
  pieces = []
  while most > 0 and (piece := file.read(min(most, _BUFFER_BYTES))):
    pieces.append(piece)
    most -= len(piece)
  return b''.join(pieces)


def digest(path: str | os.PathLike[str], kind: str | Callable[[], Any]) -> str:
  """The hash of a file as stored, in hexadecimal digits.

  Args:
    path: its path or address.
    kind: name of the hash function, or a function that returns a new hash.

  Raises:
    UserError: it cannot be read.
  """
  with open_binary(path) as file, reaching(path, local=True):
    return hashlib.file_digest(cast(Any, file), kind).hexdigest()


def compression(path: str | os.PathLike[str], head: bytes = b'') -> str:
  """How a file is compressed, by its name or else its first bytes: one of COMPRESSIONS, or ''.

  Args:
    path: its name.
    head: its first bytes as stored; empty to go by the name only.
  """
  suffix = pathlib.PurePosixPath(os.fspath(path)).suffix.lower()
  if suffix in COMPRESSIONS:
    return suffix
  return next((found for magic, found in COMPRESSION_MAGIC.items() if head.startswith(magic)), '')


def decompressed(
  raw: BinaryIO, path: str | os.PathLike[str], suffix: str | None = None
) -> BinaryIO:
  """The content of a file, decompressed if its name ends in .gz, .xz, .bz2 or .zst.

  Several compressed streams in a row are read as one. Reading raises one of `damage()` if the file
  is damaged, cut short or not of the kind that its name ends in, and UserError if it expands to
  more than the limits of input_limits.py.

  Args:
    raw: the file as stored.
    path: its name.
    suffix: of `compression`; None to go by the name.
  """
  suffix = compression(path) if suffix is None else suffix
  if not suffix:
    return raw
  openers: dict[str, Any] = {
    '.gz': gzip.open,
    '.xz': lzma.open,
    '.bz2': bz2.open,
    '.zst': _ZstdReader,
  }
  return io.BufferedReader(_Expansion(openers[suffix](raw), raw, os.fspath(path)), _BUFFER_BYTES)


def damage() -> tuple[type[Exception], ...]:
  """The exceptions that reading a damaged compressed file raises."""
  # A damaged header can claim a window that is larger than the memory.
  return (OSError, EOFError, MemoryError, zlib.error, lzma.LZMAError)


class _Expansion(io.RawIOBase):
  """A decompressed stream that may not be very much larger than what is stored."""

  def __init__(self, stream: io.RawIOBase, raw: BinaryIO, path: str) -> None:
    self._stream = stream
    self._raw = raw
    self._path = path
    self._count = 0

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: 'WriteableBuffer') -> int:
    count = self._stream.readinto(buffer) or 0
    self._count += count
    if self._count > input_limits.FREE_BYTES:
      input_limits.check_expansion(self._count, self._raw.tell(), f'the file {self._path!r}')
    return count


class _ZstdReader(io.RawIOBase):
  """Zstandard frames in a row.

  The stream reader of the zstandard package does not notice that a file is cut short. The package
  is imported only here, and its errors become OSErrors.
  """

  def __init__(self, raw: BinaryIO) -> None:
    self._raw = raw
    self._frame: Any = None
    self._ready: bytes | memoryview = b''
    self._amount = _ZSTD_LEAST

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: 'WriteableBuffer') -> int:
    import zstandard

    target = memoryview(buffer).cast('B')
    while not self._ready:
      ended = self._frame is None or self._frame.eof
      rest = self._frame.unused_data if self._frame is not None and ended else b''
      piece = rest or self._raw.read(self._amount)
      if not piece:
        if self._frame is None or not ended:
          raise EOFError('it ends within a frame')
        return 0
      if ended:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._frame = decompressor.decompressobj()
      try:
        self._ready = memoryview(self._frame.decompress(piece))
      except zstandard.ZstdError as error:
        raise OSError(str(error)) from None
      amount = len(piece) * _BUFFER_BYTES // max(len(self._ready), 1)
      self._amount = max(_ZSTD_LEAST, min(amount, _ZSTD_MOST))
    count = min(len(target), len(self._ready))
    target[:count] = self._ready[:count]
    self._ready = self._ready[count:]
    return count


#### Writing ####


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
  """Writes a file whole or not at all, and its folder if it is missing.

  A local file is written under another name, flushed to the disk and renamed. An object of a
  bucket appears when its upload is complete.

  Raises:
    Unwritable: it cannot be written.
  """
  path = os.fspath(path)
  with reaching(path, 'written', local=True):
    if is_remote(path):
      remote_files.write_whole(_with_folder(path), path, content)
      return
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    temporary = f'{path}.{uuid.uuid4().hex[:8]}.partial'
    try:
      with open(temporary, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
      sync_folder(os.path.dirname(path))
    finally:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)


def sync_folder(folder: str | os.PathLike[str]) -> None:
  """Makes the names of a local folder's files survive a power failure, where the system can."""
  if os.name == 'nt':  # folders cannot be opened there
    return
  descriptor = os.open(os.fspath(folder) or '.', os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network file systems
      raise
  finally:
    os.close(descriptor)


def upload(path: str | os.PathLike[str], address: str) -> None:
  """Copies a local file to an address.

  Raises:
    Unwritable: it cannot be written.
  """
  with reaching(address, 'written', local=True):
    remote_files.upload(_with_folder(address), os.fspath(path), address)


def remove(path: str | os.PathLike[str]) -> None:
  """Removes a file, or a folder with its content, if it exists.

  Raises:
    Unwritable: it cannot be removed.
  """
  path = os.fspath(path)
  with reaching(path, 'removed', local=True), contextlib.suppress(FileNotFoundError):
    if is_remote(path):
      _asked(path, 'rm', recursive=True)
    elif os.path.isdir(path) and not os.path.islink(path):
      shutil.rmtree(path)
    else:
      os.unlink(path)


def _asked(address: str, method: str, **options: object) -> Answer:
  """The result of a method of the file system of an address; failed requests are repeated."""
  system = filesystem(address)
  return remote_files.retried(lambda: getattr(system, method)(address, **options), address)


def _with_folder(address: str) -> FileSystem:
  """The file system of an address whose folder exists."""
  system = filesystem(address)
  if address.split('://')[0] in _WITH_FOLDERS:
    system.makedirs(address.rpartition('/')[0], exist_ok=True)
  return system


#### Errors ####


@contextlib.contextmanager
def reaching(
  path: str | os.PathLike[str], verb: str = 'read', local: bool = False
) -> Iterator[None]:
  """Raises what goes wrong in the block with a file as a UserError that names the file.

  Args:
    path: of the file or folder.
    verb: what the block does with it, as a participle: read, written or removed.
    local: whether an OSError of a local file is converted too. Errors at an address, of which the
      packages of remote file systems raise many kinds, always are.

  Raises:
    Unreachable: an address cannot be read.
    Unwritable: the file cannot be written or removed.
    UserError: a local file cannot be read.
  """
  path = os.fspath(path)
  try:
    yield
  except Exception as error:
    remote = is_remote(path)
    if isinstance(error, UserError) or not (remote or local and isinstance(error, OSError)):
      raise
    if path.startswith(_GOOGLE):
      message = f'{path!r} cannot be {verb} ({_google_reason(error)}){_GOOGLE_HINT}'
    else:
      message = f'{path!r} cannot be {verb}: {reason(error)}'
      if path.startswith(_AMAZON) and remote_files.lacks_credentials(error):
        message += _AMAZON_HINT
    kind = Unwritable if verb != 'read' else Unreachable if remote else UserError
    raise kind(message) from None


def reason(error: Exception) -> str:
  """An error in a few words, on one line."""
  if isinstance(error, MemoryError):
    return 'it needs more memory than there is'
  text = str(getattr(error, 'strerror', None) or error).strip()
  return text.splitlines()[0].rstrip('.') if text else type(error).__name__


def reason_text(text: str) -> str:
  """The first line of an error's text, cut to a length that fits into a sentence."""
  return (text.strip().splitlines() or [''])[0][:_REASON_LENGTH].rstrip('.')


def _google_reason(error: Exception) -> str:
  if isinstance(error, FileNotFoundError):
    return 'there is no such bucket or object'
  text = ' '.join(re.sub(r'^Forbidden: \S+', '', str(error)).split()).rstrip('.')
  return text[:_REASON_LENGTH] or type(error).__name__

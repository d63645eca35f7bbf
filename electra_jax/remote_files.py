"""Reads and writes at addresses that survive a store's temporary failures, and checks the bytes.

A request that fails for a reason that may pass is repeated after a pause that doubles, with jitter,
a limited number of times and for a limited time. The libraries of some stores do this themselves;
what they give up is not repeated. What arrives is compared with the size and the checksum that the
store reports.

`file_access.py` makes errors of this module sentences.
"""

import base64
import binascii
import hashlib
import io
import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
  import aiohttp
  from _typeshed import WriteableBuffer

T = TypeVar('T')
FileSystem = Any  # fsspec.AbstractFileSystem; fsspec has no annotations

ATTEMPTS = 5
FIRST_DELAY = 0.5  # seconds; with jitter, and doubled after each attempt
TOTAL_SECONDS = 180.0  # no attempt starts later than this after the first one
SILENCE = 60  # seconds without a byte after which a request has failed

_CONNECT_SECONDS = 30
_BUFFER_BYTES = 1 << 18
# Modules of exceptions that are raised after the library has repeated the request itself.
_REPEATED = ('gcsfs.', 'google.', 'requests.', 'aiohttp.')
_REPEATING = ('gs', 'gcs')
_LASTING: tuple[type[Exception], ...] = (
  FileNotFoundError,
  FileExistsError,
  IsADirectoryError,
  NotADirectoryError,
  PermissionError,
  ImportError,
  NotImplementedError,
  AttributeError,
  TypeError,
  ValueError,
)
_TEMPORARY_CODES = (401, 408, 425, 429)  # of 4xx: credentials that expired are renewed
# Fields of `info()` of which a file system has at least one, and that change with the file.
VERSION_FIELDS = (
  'etag',
  'ETag',
  'md5Hash',
  'blob_id',
  'generation',
  'updated',
  'mtime',
  'LastModified',
  'last_modified',
  'created',
)


class Damaged(OSError):
  """The bytes are not those that the store describes."""


class Changed(Damaged):
  """A file is another one than when it was opened, so that what was read of it does not help."""


#### Repeating ####


def retried(call: Callable[[], T], address: str) -> T:
  """Calls a function, again after errors that may pass.

  Args:
    call: a request, or several; it must be possible to repeat it.
    address: that it reads or writes.

  Raises:
    Exception: what the last call raised, of any kind.
  """
  start = time.monotonic()
  delay = FIRST_DELAY
  for attempt in range(1, ATTEMPTS + 1):
    try:
      return call()
    except Exception as error:
      pause = delay * random.uniform(0.5, 1.0)
      late = time.monotonic() + pause - start > TOTAL_SECONDS
      if attempt == ATTEMPTS or late or not may_pass(error, address):
        raise
      time.sleep(pause)
      delay *= 2
  raise AssertionError('unreachable')


def may_pass(error: Exception, address: str) -> bool:
  """Whether another attempt may succeed where one ended with an error."""
  code = _status(error)
  if code is not None and 400 <= code < 500:
    return code in _TEMPORARY_CODES
  if isinstance(error, (*_LASTING, Changed)) or lacks_credentials(error):
    return False
  if str(error).startswith('Forbidden'):  # as gcsfs raises it
    return False
  if address.partition('://')[0] in _REPEATING:
    return not type(error).__module__.startswith(_REPEATED)
  return True


def lacks_credentials(error: Exception) -> bool:
  """Whether a client of S3 found no credentials, or only a part of them."""
  return type(error).__name__ in ('NoCredentialsError', 'PartialCredentialsError')


def _status(error: Exception) -> int | None:
  """The HTTP status of an error, where it has one."""
  for name in ('code', 'status', 'status_code'):
    value = getattr(error, name, None)
    if isinstance(value, int) and not isinstance(value, bool):
      return value
    if isinstance(value, str) and value.isdecimal():
      return int(value)
  return None


def google_timeout() -> 'aiohttp.ClientTimeout | None':
  """Timeouts of gcsfs's requests: of silence, not of the whole, since objects may be large.

  By default a request has five minutes, whether or not the store answers.
  """
  try:
    import aiohttp
  except ImportError:  # gcsfs is not installed either
    return None
  return aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=SILENCE)


#### Checking ####


class _Digest(Protocol):
  def update(self, data: bytes, /) -> None: ...

  def digest(self) -> bytes: ...


class Expected:
  """What a store reports of a file, to compare bytes with.

  Attributes:
    size: in bytes; None if the store does not report it.
    version: changes with the file; '' if the store reports none.
  """

  def __init__(self, info: Mapping[str, Any]) -> None:
    """Takes what `info` of a file system returns."""
    # Objects that are stored compressed are delivered decompressed, unless asked otherwise.
    packed = (info.get('contentEncoding') or info.get('ContentEncoding') or '') not in (
      '',
      'identity',
    )
    size = info.get('size')
    self.size: int | None = None if packed or not isinstance(size, int) else size
    self.version = version_of(info)
    self._digest: bytes | None = None
    self._make: Callable[[], _Digest] = lambda: hashlib.md5(usedforsecurity=False)
    if packed:
      return
    if text := info.get('md5Hash'):
      self._digest = _decoded(text)
    elif (text := info.get('crc32c')) and (make := _crc32c()) is not None:
      self._digest, self._make = _decoded(text), make

  @property
  def has_checksum(self) -> bool:
    """Whether the store reports a checksum that this module computes."""
    return self._digest is not None

  def digest(self) -> _Digest:
    """A new computation of the checksum."""
    return self._make()

  def check(self, count: int, digest: _Digest | None) -> None:
    """Compares bytes that arrived.

    Args:
      count: their number.
      digest: of all of them; None if it was not computed.

    Raises:
      Damaged: they differ.
    """
    if self.size is not None and count != self.size:
      raise Damaged(f'{count:,} bytes of {self.size:,} arrived')
    if digest is not None and self._digest is not None and digest.digest() != self._digest:
      raise Damaged('its bytes do not have the checksum that the store reports')


def _decoded(text: object) -> bytes | None:
  try:
    return base64.b64decode(str(text), validate=True)
  except binascii.Error:
    return None


def _crc32c() -> Callable[[], _Digest] | None:
  """The checksum of objects of Google Cloud Storage that were composed of others."""
  try:
    import google_crc32c
  except ImportError:
    return None
  make: Callable[[], _Digest] = google_crc32c.Checksum
  return make


def version_of(info: Mapping[str, Any]) -> str:
  """A text that changes with a file; '' if its file system reports nothing that does."""
  field = next((field for field in VERSION_FIELDS if info.get(field)), None)
  value = info.get(field, '') if field else ''
  if hasattr(value, 'timestamp'):  # a file system may report a time as datetime or as a number
    value = value.timestamp()
  return f'{field} {value}' if field else ''


#### Reading ####


def read_whole(system: FileSystem, address: str) -> bytes:
  """The bytes of a file, compared with what its store reports."""

  def read() -> bytes:
    try:
      expected = Expected(system.info(address))
      content: bytes = system.cat_file(address)
      digest = expected.digest() if expected.has_checksum else None
      if digest is not None:
        digest.update(content)
      expected.check(len(content), digest)
    except Damaged:
      system.invalidate_cache()  # the size may be that of a listing before it changed
      raise
    return content

  return retried(read, address)


def open_checked(system: FileSystem, address: str) -> io.BufferedReader:
  """Opens a file for reading; a failed request is repeated from where it failed.

  Reading raises Damaged where bytes are missing or the file changes meanwhile, and, if it is read
  from its start to its end, before the last bytes where they do not have the store's checksum.
  """
  return io.BufferedReader(_CheckedFile(system, address), _BUFFER_BYTES)


class _CheckedFile(io.RawIOBase):
  """See `open_checked`."""

  def __init__(self, system: FileSystem, address: str) -> None:
    self._system = system
    self._address = address
    self._file: Any = None
    self._place = 0
    self._expected, self._file = retried(self._opened, address)
    # Of all bytes so far; None when they were not read one after another.
    self._digest = self._expected.digest() if self._expected.has_checksum else None

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def tell(self) -> int:
    return self._place

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    if whence == io.SEEK_CUR:
      offset += self._place
    elif whence == io.SEEK_END:
      if self._expected.size is None:
        raise io.UnsupportedOperation(f'the size of {self._address} is not known')
      offset += self._expected.size
    if offset != self._place:
      self._digest = None
      self._place = offset
      self._drop()
    return self._place

  def readinto(self, buffer: 'WriteableBuffer') -> int:
    target = memoryview(buffer).cast('B')
    piece = retried(lambda: self._read(len(target)), self._address)
    self._place += len(piece)
    if self._digest is not None:
      self._digest.update(piece)
    size = self._expected.size
    if self._digest is not None and (self._place == size or not piece):
      self._expected.check(self._place, self._digest)
      self._digest = None
    target[: len(piece)] = piece
    return len(piece)

  def close(self) -> None:
    if not self.closed:
      self._drop()
    super().close()

  def _opened(self) -> tuple[Expected, Any]:
    expected = Expected(self._system.info(self._address))
    return expected, self._system.open(self._address, 'rb')

  def _read(self, amount: int) -> bytes:
    """The next bytes, from the file as it was when it was opened first."""
    try:
      if self._file is None:
        expected, self._file = self._opened()
        if expected.version != self._expected.version or expected.size != self._expected.size:
          raise Changed('it changed while it was read')
        self._file.seek(self._place)
      piece: bytes = self._file.read(amount)
      if not piece and amount and self._place < (self._expected.size or 0):
        raise Damaged(f'{self._place:,} bytes of {self._expected.size:,} arrived')
    except Exception:
      self._drop()
      raise
    return piece

  def _drop(self) -> None:
    file, self._file = self._file, None
    if file is not None:
      try:
        file.close()
      except Exception:  # of any kind: it is not used anymore
        pass


#### Writing ####


def write_whole(system: FileSystem, address: str, content: bytes) -> None:
  """Writes a file and compares what its store then reports with what was written."""

  def write() -> None:
    system.pipe_file(address, content)
    _check_written(system, address, len(content), lambda digest: digest.update(content))

  retried(write, address)


def upload(system: FileSystem, path: str, address: str) -> None:
  """Copies a local file to an address and compares what its store then reports."""

  def add_to(digest: _Digest) -> None:
    with open(path, 'rb') as file:
      while piece := file.read(_BUFFER_BYTES):
        digest.update(piece)

  def write() -> None:
    system.put_file(path, address)
    with open(path, 'rb') as file:
      size = file.seek(0, io.SEEK_END)
    _check_written(system, address, size, add_to)

  retried(write, address)


def _check_written(
  system: FileSystem, address: str, size: int, add_to: Callable[[_Digest], None]
) -> None:
  expected = Expected(system.info(address))
  digest = expected.digest() if expected.has_checksum else None
  if digest is not None:
    add_to(digest)
  expected.check(size, digest)

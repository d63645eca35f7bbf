"""Reading shared by the corpus formats: lines, decompression, UTF-8, counts and progress."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from electra_jax import file_access, input_limits
from electra_jax.data.corpus import file_kinds
from electra_jax.errors import UserError

INVALID_UTF8 = ('refuse', 'replace')
SKIPPED = 'skipped: '  # begins the names of counts of files in archives that hold no corpus

Advance = Callable[[int], None]

_ADVANCE_LINES = 256
_LONG_LINE = 1 << 18
_NAMES_SHOWN = 20
_BYTE_ORDER_MARK = b'\xef\xbb\xbf'
_MAGIC_BYTES = 16


class OpenedFile(NamedTuple):
  """A file that is open for reading.

  Attributes:
    raw: as stored; its position counts stored bytes.
    stream: decompressed.
  """

  raw: BinaryIO
  stream: BinaryIO


class DocumentReader:
  """Reads lines or bytes of files for a corpus format, and counts.

  The `read` of a format gets one for each group of files. It takes text from `lines`, or bytes from
  `open` and text from `decode`.

  Attributes:
    invalid_utf8: what becomes of bytes that are not UTF-8: 'refuse' them, or 'replace' them with
      U+FFFD.
    counts: is added to: `replaced_bytes` that were not UTF-8, `documents_with_replacements`, and
      `blank_documents`, which are dropped.
  """

  def __init__(
    self,
    invalid_utf8: str = 'refuse',
    advance: Advance | None = None,
    counts: dict[str, int] | None = None,
    own_magic: tuple[bytes, ...] = (),
  ) -> None:
    """Starts with no count.

    Args:
      invalid_utf8: one of INVALID_UTF8.
      advance: is called with the number of stored bytes that were read since the last call.
      counts: see the class.
      own_magic: first bytes of the format that reads.

    Raises:
      UserError: `invalid_utf8` is unknown.
    """
    if invalid_utf8 not in INVALID_UTF8:
      raise UserError(
        f'invalid_utf8 is {invalid_utf8!r}; expected one of {", ".join(INVALID_UTF8)}.'
      )
    self.invalid_utf8 = invalid_utf8
    self.counts = {} if counts is None else counts
    self._advance = advance
    self._own_magic = own_magic
    self._replaced = 0  # in the current document

  def add(self, name: str, number: int = 1) -> None:
    """Adds to a count."""
    if number:
      self.counts[name] = self.counts.get(name, 0) + number

  def advance(self, size: int) -> None:
    """Reports that so many stored bytes were read."""
    if self._advance and size > 0:
      self._advance(size)

  def add_replaced(self, number: int) -> None:
    """Counts bytes of the current document that were replaced."""
    self._replaced += number
    self.add('replaced_bytes', number)

  def decode(self, data: bytes, where: str | Callable[[int], str]) -> str:
    """Text of UTF-8 bytes.

    Args:
      data: the bytes.
      where: the start of the error's sentence, such as 'row 3 of ... is not UTF-8'; a function
        gets the index of the first wrong byte.

    Raises:
      UserError: the bytes are not UTF-8 and `invalid_utf8` is 'refuse'.
    """
    try:
      return data.decode()
    except UnicodeDecodeError as error:
      if self.invalid_utf8 == 'refuse':
        beginning = where if isinstance(where, str) else where(error.start)
        raise UserError(
          f'{beginning}; convert it, for example with iconv, or set data.invalid_utf8=replace'
        ) from None
    self.add_replaced(len(data) - len(data.decode(errors='ignore').encode()))
    return data.decode(errors='replace')

  def document(self, text: str) -> Iterator[str]:
    """Yields a document that was read completely, unless it is blank."""
    replaced = self._replaced
    self._replaced = 0
    if not text or text.isspace():
      self.add('blank_documents')
      return
    self.add('documents_with_replacements', bool(replaced))
    yield text

  @contextlib.contextmanager
  def open(self, path: str) -> Iterator[BinaryIO]:
    """Opens a file for reading its decompressed bytes.

    Raises:
      UserError: the file cannot be read, is damaged or cut short.
    """
    with self.opened(path) as (raw, stream):
      yield stream
      self.advance(raw.tell())

  def stored_size(self, path: str) -> int:
    """The size of a file as it is stored, in bytes."""
    return file_access.facts(path).size

  @contextlib.contextmanager
  def stored(self, path: str) -> Iterator[tuple[BinaryIO, int]]:
    """Opens a file as it is stored, with its size in bytes, for reading at any place.

    Raises:
      UserError: the file cannot be read.
    """
    size = file_access.facts(path).size
    with file_access.open_binary(path) as raw:
      yield raw, size

  def lines(self, path: str) -> Iterator[tuple[int, str]]:
    r"""Yields (number, text without its end) of each line of a text file.

    Only \n ends a line; other line separators of Unicode are text.

    Raises:
      UserError: the file cannot be read, is damaged or cut short, is not UTF-8, or is not text; or
        a line is longer than LINE_BYTES of input_limits.py.
    """
    most = input_limits.scaled(input_limits.LINE_BYTES)
    seen = 0
    offset = 0
    number = 0

    def where(start: int) -> str:
      place = f'byte 0x{line[start]:02x} on line {number}, byte {offset + start} of the text'
      encoding = file_kinds.encoding_of(line[: file_kinds.HEAD_BYTES])
      likely = f', probably {encoding}' if encoding else ''
      return f'the corpus file {path!r} is not UTF-8 ({place}{likely})'

    with self.opened(path) as (raw, stream):
      while True:
        line = stream.readline(most + 1)
        if number % _ADVANCE_LINES == 0 or len(line) > _LONG_LINE or not line:
          position = raw.tell()
          self.advance(position - seen)
          seen = position
        if not line:
          if number == 0 and seen == 0 and _is_compressed(path):
            raise EOFError('it is empty')
          return
        number += 1
        if len(line) > most:
          where_it_is = f'line {number} of the corpus file {path!r}'
          raise input_limits.too_large(where_it_is, most)
        length = len(line)
        if number == 1:
          self._check_is_text(line, path)
          mark = len(_BYTE_ORDER_MARK) if line.startswith(_BYTE_ORDER_MARK) else 0
          line = line[mark:]
          offset += mark
          length -= mark
        line = line.rstrip(b'\r\n')
        text = self.decode(line, where)
        offset += length
        del line  # it may be large: one copy is in memory while the consumer works on it
        yield number, text

  @contextlib.contextmanager
  def opened(self, path: str) -> Iterator[OpenedFile]:
    """Yields a file as stored and decompressed, whatever its name ends in.

    Raises:
      UserError: the file cannot be read, is damaged or cut short.
    """
    with file_access.open_binary(path) as raw, self.naming_damage(path):
      suffix = file_access.compression(path)
      if not suffix:
        suffix = file_access.compression(path, raw.read(_MAGIC_BYTES))
        raw.seek(0)
      yield OpenedFile(raw, file_access.decompressed(raw, path, suffix))

  @contextlib.contextmanager
  def naming_damage(self, path: str) -> Iterator[None]:
    """Raises what reading a damaged file raises as a UserError that names the file."""
    broken = file_access.damage()
    remote = file_access.is_remote(path)
    try:
      yield
    except UserError:
      raise
    except Exception as error:
      if not isinstance(error, broken) and not remote:
        raise
      kind = file_access.Unreachable if remote else UserError
      raise kind(
        f'the corpus file {path!r} is damaged or cut short ({file_access.reason(error)}); '
        'replace it'
      ) from None

  def _check_is_text(self, line: bytes, path: str) -> None:
    """Raises UserError where the first line of a file is not text, whatever the file's name."""
    if any(map(line.startswith, self._own_magic)):
      return
    kind = file_kinds.unreadable_kind(line[: file_kinds.HEAD_BYTES])
    if kind:
      raise not_text(path, kind)


def not_text(path: str, kind: str) -> UserError:
  """The error for a file that is no corpus.

  Args:
    path: of the file.
    kind: what it is, such as 'a PDF document'.
  """
  if kind.endswith(' text'):
    encoding = kind.removesuffix(' text')
    return UserError(
      f'the corpus file {path!r} is {kind}; expected UTF-8, as iconv -f {encoding} -t UTF-8 '
      'makes it'
    )
  return UserError(
    f'the corpus file {path!r} is {kind}, not text; expected text, JSON lines, CSV, Parquet or '
    'Arrow, or an archive of such files'
  )


def named(names: Iterable[str]) -> str:
  """Quoted names with commas between, for a sentence; the first of very many."""
  quoted = list(map(repr, names))
  more = f' and {len(quoted) - _NAMES_SHOWN} more' if len(quoted) > _NAMES_SHOWN else ''
  return ', '.join(quoted[:_NAMES_SHOWN]) + more or 'none'


def _is_compressed(path: str) -> bool:
  return bool(file_access.compression(path))

"""The expanded sizes of columns, from the footer of a Parquet file.

pyarrow has them, too, but ends the process where its metadata of a column are damaged. The footer
is a structure in the compact protocol of Thrift; the numbers of its fields are those of
FileMetaData in parquet.thrift.
"""

import os
import struct
from typing import Any, BinaryIO, NamedTuple, TypeAlias

Value: TypeAlias = Any  # an integer, bytes, a list, or a structure as a dictionary

_MAGIC = b'PAR1'
_DELTA_BYTE_ARRAY = 7  # of the enumeration Encoding
_DEEPEST = 20  # structures and lists in each other
# Types of the compact protocol.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


class ColumnChunk(NamedTuple):
  """A column of a row group.

  Attributes:
    path: the names that lead to it, separated by dots.
    expanded: its bytes before compression.
    dictionary_offset: where its dictionary is in the file; None if it has none.
    deltas: whether values are stored as differences from the one before, as DELTA_BYTE_ARRAY.
  """

  path: str
  expanded: int
  dictionary_offset: int | None
  deltas: bool


def column_chunks(file: BinaryIO) -> list[list[ColumnChunk]]:
  """The columns of each row group.

  Args:
    file: a Parquet file. Its position is kept.

  Raises:
    ValueError: the footer is damaged.
  """
  position = file.tell()
  try:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 8))
    size, magic = struct.unpack('<I4s', file.read(8).rjust(8, b'\0'))
    if magic != _MAGIC or size > end - 8:
      raise ValueError('it does not end with a footer')
    file.seek(end - 8 - size)
    footer = _Reader(file.read(size)).structure()
  finally:
    file.seek(position)
  try:
    return [[_column_chunk(column) for column in group[1]] for group in footer.get(4, [])]
  except (KeyError, TypeError, AttributeError, UnicodeDecodeError):
    raise ValueError('its footer does not describe its columns') from None


def page_bytes(header: bytes) -> int | None:
  """The decompressed size of the page that begins with some bytes; None if they are no header.

  Args:
    header: at least the first two fields of PageHeader: the type of the page and the size.
  """
  reader = _Reader(header)
  try:
    values = [reader.value(_I32) for _ in range(2) if reader.byte() == 0x10 | _I32]
  except ValueError:
    return None
  return values[1] if len(values) == 2 else None


def _column_chunk(column: dict[int, Value]) -> ColumnChunk:
  metadata = column[3]
  expanded, offset = int(metadata[6]), metadata.get(11)
  return ColumnChunk(
    b'.'.join(metadata[3]).decode(),
    expanded,
    None if offset is None else int(offset),
    _DELTA_BYTE_ARRAY in metadata[2],
  )


class _Reader:
  """Values in the compact protocol (thrift-compact-protocol.md), from a position that moves."""

  def __init__(self, content: bytes) -> None:
    self._content = content
    self._at = 0
    self._depth = 0

  def byte(self) -> int:
    """The next byte.

    Raises:
      ValueError: there is none.
    """
    return self._bytes(1)[0]

  def structure(self) -> dict[int, Value]:
    """The fields of a structure, by their numbers.

    Raises:
      ValueError: it is damaged.
    """
    fields: dict[int, Value] = {}
    number = 0
    while header := self.byte():
      step, kind = header >> 4, header & 15
      number = number + step if step else self._zigzag()
      fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self.value(kind)
    return fields

  def value(self, kind: int) -> Value:
    """A value of a type.

    Raises:
      ValueError: it is damaged.
    """
    if kind in (_TRUE, _FALSE, _BYTE):
      return self.byte()
    if kind in (_I16, _I32, _I64):
      return self._zigzag()
    if kind == _DOUBLE:
      return self._bytes(8)
    if kind == _BINARY:
      return self._bytes(self._varint())
    self._depth += 1
    if self._depth > _DEEPEST or kind not in (_LIST, _SET, _MAP, _STRUCT):
      raise ValueError('its footer is damaged')
    found = self.structure() if kind == _STRUCT else self._collection(kind)
    self._depth -= 1
    return found

  def _collection(self, kind: int) -> list[Value]:
    """The values of a list or set; of a map, keys and values in turn."""
    kinds: tuple[int, ...]
    if kind == _MAP:
      count = self._varint()
      kinds = divmod(self.byte(), 16) if count else (0, 0)
    else:
      count, each = divmod(self.byte(), 16)
      count = self._varint() if count == 15 else count
      kinds = (each,)
    if count > len(self._content) - self._at:
      raise ValueError('its footer is damaged')
    return [self.value(each) for _ in range(count) for each in kinds]

  def _varint(self) -> int:
    value = shift = 0
    while True:
      byte = self.byte()
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value
      if shift > 63:
        raise ValueError('its footer is damaged')

  def _zigzag(self) -> int:
    value = self._varint()
    return (value >> 1) ^ -(value & 1)

  def _bytes(self, count: int) -> bytes:
    found = self._content[self._at : self._at + count]
    if len(found) < count:
      raise ValueError('its footer is damaged')
    self._at += count
    return found

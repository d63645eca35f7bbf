"""Parquet files, with the documents in one column of strings."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from electra_jax import input_limits
from electra_jax.data.corpus import arrow_columns, parquet_footer
from electra_jax.data.corpus.corpus_format import FieldFormat
from electra_jax.data.corpus.readers import DocumentReader

Arrow = Any  # objects of pyarrow, which has no annotations

_ROWS = 64  # decoded at a time
# Bytes of rows that are decoded at a time, where a dictionary makes long ones of little data.
_BATCH_BYTES = 1 << 28
_PAGE_HEADER_BYTES = 16
# Without reading ahead: it would read the column of a whole row group into memory.
_OPTIONS = {
  'buffer_size': 1 << 20,
  'pre_buffer': False,
  'page_checksum_verification': True,
}


class ParquetFormat(FieldFormat):
  """Parquet. Dots in the name of a column lead into structures; null is a blank document."""

  title = 'Parquet'
  extensions = ('.parquet',)
  magic = (b'PAR1\x15',)
  compressible = False
  seeks = True

  def text_fields(
    self, path: str, options: Mapping[str, str], reader: DocumentReader
  ) -> Sequence[str]:
    """See the base class."""
    with _opened(path, reader) as (file, _, _):
      return arrow_columns.text_columns(file.schema_arrow)

  def read(self, path: str, options: Mapping[str, str], reader: DocumentReader) -> Iterator[str]:
    """See the base class."""
    with _opened(path, reader) as (file, raw, size):
      column = _Column(file, options['field'], path, size)
      yield from _column_texts(column, raw, reader)


PARQUET = ParquetFormat()


@contextlib.contextmanager
def _opened(path: str, reader: DocumentReader) -> Iterator[tuple[Arrow, BinaryIO, int]]:
  """Yields an open ParquetFile, the file as stored, and its size."""
  import pyarrow.parquet as pq

  with arrow_columns.naming_damage(path, 'a Parquet file'), reader.stored(path) as (raw, size):
    with pq.ParquetFile(raw, **_OPTIONS) as file:
      yield file, raw, size


class _Column(NamedTuple):
  """A column of an open file.

  Attributes:
    file: the ParquetFile.
    name: of the column.
    path: of the file.
    size: of the file, in bytes.
  """

  file: Arrow
  name: str
  path: str
  size: int


def _column_texts(column: _Column, raw: BinaryIO, reader: DocumentReader) -> Iterator[str]:
  """The texts of a column; '' for null."""
  path, size = column.path, column.size
  names = arrow_columns.column_path(column.file.schema_arrow, column.name, path)
  total = column.file.metadata.num_rows
  seen = 0
  rows = 0
  expanded = 0
  for values in _batches(column, names, raw):
    for value in values:
      rows += 1
      if value is None:
        yield ''
        continue
      expanded += len(value)
      where = f'row {rows} of the corpus file {path!r} is not UTF-8'
      text = reader.decode(value, where)
      del value  # it may be large
      yield text
    input_limits.check_expansion(expanded, size, f'the corpus file {path!r}')
    reader.advance(size * rows // total - seen)
    seen = max(seen, size * rows // total)
  reader.advance(size - seen)


def _batches(
  column: _Column, names: tuple[str, ...], raw: BinaryIO
) -> Iterator[list[bytes | None]]:
  """The values of a column, a few rows at a time."""
  dotted = '.'.join(names)
  for group, chunks in enumerate(parquet_footer.column_chunks(raw)):
    chunk = next((chunk for chunk in chunks if chunk.path == dotted), None)
    rows = _ROWS if chunk is None else _rows_at_a_time(chunk, raw, column)
    for batch in column.file.iter_batches(rows, [group], [dotted], use_threads=False):
      yield arrow_columns.texts_of(batch.column(0), names[1:])


def _rows_at_a_time(chunk: parquet_footer.ColumnChunk, raw: BinaryIO, column: _Column) -> int:
  """How many rows of a part of a column are decoded at a time.

  A long value that is stored once, in a dictionary, can be the value of all rows.

  Raises:
    UserError: the part expands too far.
  """
  expanded = chunk.expanded
  input_limits.check_expansion(expanded, column.size, f'the corpus file {column.path!r}')
  longest = expanded if chunk.deltas else 0
  if chunk.dictionary_offset is not None:
    position = raw.tell()
    raw.seek(chunk.dictionary_offset)
    header = raw.read(_PAGE_HEADER_BYTES)
    longest = max(longest, parquet_footer.page_bytes(header) or expanded)
    raw.seek(position)
  return max(1, min(_ROWS, _BATCH_BYTES // max(longest, 1)))

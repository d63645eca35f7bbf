"""Parquet files, with the documents in one column of strings."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from electra_jax import file_access, input_limits
from electra_jax.data.corpus import parquet_footer
from electra_jax.data.corpus.corpus_format import FieldFormat
from electra_jax.data.corpus.readers import DocumentReader, named
from electra_jax.errors import UserError

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

  def read(self, path: str, options: Mapping[str, str], reader: DocumentReader) -> Iterator[str]:
    """See the base class."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = file_access.facts(path).size
    try:
      with file_access.open_binary(path) as raw, pq.ParquetFile(raw, **_OPTIONS) as file:
        column = _Column(file, options['field'], path, size)
        yield from _column_texts(column, raw, reader)
    except Exception as error:
      damage = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
      if isinstance(error, UserError) or not (
        isinstance(error, damage) or file_access.is_remote(path)
      ):
        raise
      raise UserError(
        f'the corpus file {path!r} is not a Parquet file, damaged or cut short '
        f'({file_access.reason(error)}); replace it'
      ) from None


PARQUET = ParquetFormat()


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
  names = _column_path(column.file.schema_arrow, column.name, path)
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
  import pyarrow as pa
  import pyarrow.compute as pc

  dotted = '.'.join(names)
  for group, chunks in enumerate(parquet_footer.column_chunks(raw)):
    chunk = next((chunk for chunk in chunks if chunk.path == dotted), None)
    rows = _ROWS if chunk is None else _rows_at_a_time(chunk, raw, column)
    for batch in column.file.iter_batches(rows, [group], [dotted], use_threads=False):
      values = batch.column(0)
      values.validate(full=True)  # Arrow ends the process where offsets or indices are damaged
      for name in names[1:]:
        values = pc.struct_field(values, name)
      if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
      yield values.cast(pa.large_binary()).to_pylist()


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


def _column_path(schema: Arrow, column: str, path: str) -> tuple[str, ...]:
  """The names that lead to a column of strings: one, or several where it is in structures."""
  found = {'.'.join(names): (names, kind) for names, kind in _leaves(schema)}
  if column not in found:
    raise UserError(
      f'the corpus file {path!r} has no column {column!r}; its columns are {named(found)}; name '
      'one with ;field=NAME'
    )
  names, kind = found[column]
  if not _is_text(kind):
    texts = [name for name, (_, kind) in found.items() if _is_text(kind)]
    raise UserError(
      f'the column {column!r} of the corpus file {path!r} holds {kind}, not text; its columns of '
      f'text are {named(texts)}; name one with ;field=NAME'
    )
  return names


def _leaves(
  fields: Iterable[Arrow], prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Arrow]]:
  """(names that lead to it, type) of each column that is not a structure."""
  import pyarrow as pa

  for field in fields:
    if pa.types.is_struct(field.type):
      yield from _leaves(field.type, (*prefix, field.name))
    else:
      yield (*prefix, field.name), field.type


def _is_text(kind: Arrow) -> bool:
  import pyarrow as pa

  value = kind.value_type if pa.types.is_dictionary(kind) else kind
  return any(
    is_kind(value)
    for is_kind in (
      pa.types.is_string,
      pa.types.is_large_string,
      pa.types.is_string_view,
      pa.types.is_binary,
      pa.types.is_large_binary,
      pa.types.is_binary_view,
    )
  )

"""Parquet files, with the documents in one column of strings."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from electra_jax import file_access
from electra_jax.data.corpus.corpus_format import FieldFormat
from electra_jax.data.corpus.readers import DocumentReader, named
from electra_jax.errors import UserError

Arrow = Any  # objects of pyarrow, which has no annotations

_ROWS = 64  # decoded at a time
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
        yield from _column_texts(file, options['field'], path, reader, size)
    except Exception as error:
      if isinstance(error, UserError) or not (
        isinstance(error, pa.ArrowException | OSError) or file_access.is_remote(path)
      ):
        raise
      raise UserError(
        f'the corpus file {path!r} is not a Parquet file, damaged or cut short '
        f'({file_access.reason(error)}); replace it'
      ) from None


PARQUET = ParquetFormat()


def _column_texts(
  file: Arrow, column: str, path: str, reader: DocumentReader, size: int
) -> Iterator[str]:
  """The texts of a column of an open file of `size` bytes; '' for null."""
  import pyarrow as pa
  import pyarrow.compute as pc

  seen = 0
  rows = 0
  names = _column_path(file.schema_arrow, column, path)
  total = file.metadata.num_rows
  for batch in file.iter_batches(_ROWS, columns=['.'.join(names)], use_threads=False):
    values = batch.column(0)
    for name in names[1:]:
      values = pc.struct_field(values, name)
    if pa.types.is_dictionary(values.type):
      values = values.dictionary_decode()
    for value in values.cast(pa.large_binary()).to_pylist():
      rows += 1
      if value is None:
        yield ''
        continue
      where = f'row {rows} of the corpus file {path!r} is not UTF-8'
      text = reader.decode(value, where)
      del value  # it may be large
      yield text
    reader.advance(size * rows // total - seen)
    seen = max(seen, size * rows // total)
  reader.advance(size - seen)


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

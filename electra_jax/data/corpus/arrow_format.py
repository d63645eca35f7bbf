"""Arrow files and streams, with the documents in one column of strings."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from electra_jax import input_limits
from electra_jax.data.corpus import arrow_columns
from electra_jax.data.corpus.corpus_format import FieldFormat
from electra_jax.data.corpus.readers import DocumentReader

Arrow = Any  # objects of pyarrow, which has no annotations

_FILE = b'ARROW1\0\0'
_STREAM = b'\xff\xff\xff\xff'  # before each message of a stream, since Arrow 0.15
ROWS = 64  # converted to text at a time


class ArrowFormat(FieldFormat):
  """Arrow IPC, files and streams. Dots in the name of a column lead into structures."""

  title = 'Arrow'
  extensions = ('.arrow', '.feather', '.ipc')
  magic = (_FILE, _STREAM)
  compressible = False
  seeks = True

  def text_fields(
    self, path: str, options: Mapping[str, str], reader: DocumentReader
  ) -> Sequence[str]:
    """See the base class."""
    with _opened(path, reader) as (schema, _, _, _):
      return arrow_columns.text_columns(schema)

  def read(self, path: str, options: Mapping[str, str], reader: DocumentReader) -> Iterator[str]:
    """See the base class. One batch of the file is in memory at a time."""
    seen = row = expanded = 0
    with _opened(path, reader) as (schema, batches, raw, size):
      names = arrow_columns.column_path(schema, options['field'], path)
      for batch in batches:
        column = batch.column(schema.get_field_index(names[0]))
        for start in range(0, len(column), ROWS):
          for value in arrow_columns.texts_of(column.slice(start, ROWS), names[1:]):
            row += 1
            if value is None:
              yield ''
              continue
            expanded += len(value)
            yield reader.decode(value, f'row {row} of the corpus file {path!r} is not UTF-8')
        input_limits.check_expansion(expanded, size, f'the corpus file {path!r}')
        position = min(size, raw.tell())
        reader.advance(position - seen)
        seen = max(seen, position)
      reader.advance(size - seen)


ARROW = ArrowFormat()


@contextlib.contextmanager
def _opened(
  path: str, reader: DocumentReader
) -> Iterator[tuple[Arrow, Iterator[Arrow], BinaryIO, int]]:
  """Yields the schema of a file, its batches, the file as stored, and its size."""
  import pyarrow as pa

  with arrow_columns.naming_damage(path, 'an Arrow file'), reader.stored(path) as (raw, size):
    is_file = raw.read(len(_FILE)) == _FILE
    raw.seek(0)
    if is_file:
      file = pa.ipc.open_file(raw)
      batches = (file.get_batch(i) for i in range(file.num_record_batches))
      yield file.schema, batches, raw, size
    else:
      stream = pa.ipc.open_stream(raw)
      yield stream.schema, iter(stream), raw, size

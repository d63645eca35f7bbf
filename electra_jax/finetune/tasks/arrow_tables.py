"""Parquet files, Arrow files and folders of `datasets.save_to_disk`, as rows with class names."""

import contextlib
import datetime
import decimal
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from electra_jax import file_access, input_limits, json_reader
from electra_jax.data.corpus import arrow_columns, dataset_folder, parquet_footer
from electra_jax.data.corpus.readers import named
from electra_jax.errors import UserError

Arrow = Any  # objects of pyarrow, which has no annotations
Json = Any

PARQUET_EXTENSIONS = ('.parquet', '.pq')
ARROW_EXTENSIONS = ('.arrow', '.feather')

FORMATS = ('parquet', 'arrow')  # as config.data.format names them

_PARQUET_MAGIC = b'PAR1'
_FILE_MAGIC = b'ARROW1'  # of Arrow's file format; streams begin otherwise
_ROWS = 1024  # of a batch of Parquet
_METADATA = b'huggingface'  # key of a schema


def is_arrow_data(path: str, format: str = 'auto') -> bool:
  """Whether a path is that of a Parquet or Arrow file, or of a folder of `save_to_disk`.

  Args:
    path: of a table.
    format: config.data.format, where it is known.
  """
  if format in FORMATS:
    return True
  suffix = pathlib.PurePosixPath(path).suffix.lower()
  if suffix in (*PARQUET_EXTENSIONS, *ARROW_EXTENSIONS):
    return True
  return dataset_folder.is_saved_dataset(path) or bool(dataset_folder.saved_splits(path))


def read_arrow_rows(path: str) -> list[dict[str, Any]]:
  """The rows of a file or of a dataset's folder, by column.

  A class of `ClassLabel` becomes its name, or None where it is -1 (unknown).

  Args:
    path: as `is_arrow_data` accepts.

  Raises:
    UserError: a file cannot be read, is damaged or too large, or a column holds binary data that is
      not UTF-8.
  """
  import pyarrow as pa

  files, indices = _files(path)
  batches = [batch for file in files for batch in _record_batches(file)]
  try:
    table = pa.Table.from_batches(batches)
    if indices:
      numbers = [batch.column(0) for file in indices for batch in _record_batches(file)]
      table = table.take(pa.chunked_array(numbers))
    rows: list[dict[str, Any]] = table.to_pylist()
  except (pa.ArrowException, ValueError, IndexError, OverflowError) as error:
    raise UserError(
      f'the rows of {path!r} cannot be read ({file_access.reason(error)}); replace it'
    ) from None
  _refuse_repeated_columns(table.column_names, path)
  names = class_names(table.schema)
  for number, row in enumerate(rows, 1):
    for column, value in row.items():
      where = f'row {number} of the file {path!r}'
      row[column] = _plain(value, names.get(column), f'{where} has in its column {column!r}')
  return rows


def _refuse_repeated_columns(names: Sequence[str], path: str) -> None:
  """Of two columns with a name, rows would have the last one."""
  if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
    raise UserError(f'the file {path!r} has two columns named {repeated[0]!r}; rename one')


def _plain(value: Json, names: tuple[str, ...] | None, where: str) -> Json:
  """A value as JSON would have it, classes as their names."""
  if isinstance(value, list):
    return [_plain(item, names, where) for item in value]
  if isinstance(value, dict):
    return {name: _plain(item, None, where) for name, item in value.items()}
  if names is not None and isinstance(value, int):
    if value == -1:
      return None
    if not 0 <= value < len(names):
      raise UserError(f'{where} the class {value}; expected one of its {len(names)} classes')
    return names[value]
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      raise UserError(f'{where} binary data; expected text in UTF-8') from None
  if isinstance(value, datetime.date | datetime.time):
    return value.isoformat()
  if isinstance(value, decimal.Decimal):
    return float(value)
  return value


#### Files ####


def _files(path: str) -> dataset_folder.SavedFiles:
  """The data files of a path, and the files of row numbers, in their order."""
  if splits := dataset_folder.saved_splits(path):
    raise UserError(
      f'the folder {path!r} has several splits: {named(splits)}; name the folder of one of them, '
      f'such as {file_access.join(path, splits[0])!r}'
    )
  if not dataset_folder.is_saved_dataset(path):
    return dataset_folder.SavedFiles([path], [])
  listed = dataset_folder.saved_files(path)
  for file in (*listed.data, *listed.indices):
    if not file_access.exists(file):
      raise UserError(
        f'the folder {path!r} lacks {file.removeprefix(path).lstrip("/")!r}, which its '
        f'{dataset_folder.STATE} lists; restore it, or save the dataset again'
      )
  return listed


def _record_batches(path: str) -> Iterator[Arrow]:
  """The record batches of a file, checked; an empty one of a file without rows.

  Args:
    path: a Parquet file by its extension or its first bytes, or else an Arrow file or stream.

  Raises:
    UserError: the file cannot be read, is damaged, or is too large.
  """
  parquet = pathlib.PurePosixPath(path).suffix.lower() in PARQUET_EXTENSIONS
  size = file_access.facts(path).size
  expanded = 0
  title = 'a Parquet file' if parquet else 'an Arrow file'
  with arrow_columns.naming_damage(path, title, 'the file'):
    with file_access.open_binary(path) as raw, contextlib.ExitStack() as stack:
      parquet = parquet or raw.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
      raw.seek(0)
      for batch in (_parquet_batches if parquet else _ipc_batches)(raw, stack):
        batch.validate(full=True)
        expanded += batch.nbytes
        input_limits.check_expansion(expanded, size, f'the file {path!r}')
        input_limits.check(expanded, input_limits.TABLE_BYTES, f'the file {path!r}')
        yield batch


def _parquet_batches(raw: BinaryIO, stack: contextlib.ExitStack) -> Iterator[Arrow]:
  import pyarrow as pa
  import pyarrow.parquet as pq

  chunks = [chunk for group in parquet_footer.column_chunks(raw) for chunk in group]
  size = raw.seek(0, os.SEEK_END)
  raw.seek(0)
  input_limits.check_expansion(sum(chunk.expanded for chunk in chunks), size, 'a Parquet file')
  file = stack.enter_context(pq.ParquetFile(raw, pre_buffer=False, page_checksum_verification=True))
  yield pa.RecordBatch.from_pylist([], schema=file.schema_arrow)
  for batch in file.iter_batches(_ROWS, use_threads=False):
    yield batch.replace_schema_metadata(file.schema_arrow.metadata)


def _ipc_batches(raw: BinaryIO, stack: contextlib.ExitStack) -> Iterator[Arrow]:
  import pyarrow as pa

  head = raw.read(len(_FILE_MAGIC))
  raw.seek(0)
  if head == _FILE_MAGIC:
    file = stack.enter_context(pa.ipc.open_file(raw))
    yield pa.RecordBatch.from_pylist([], schema=file.schema)
    yield from (file.get_batch(i) for i in range(file.num_record_batches))
  else:
    stream = stack.enter_context(pa.ipc.open_stream(raw))
    yield pa.RecordBatch.from_pylist([], schema=stream.schema)
    yield from stream


#### Class names ####


def class_names(schema: Arrow) -> dict[str, tuple[str, ...]]:
  """Names of the classes of each column of `ClassLabel`, or of lists of them, of `datasets`.

  Source: the key `huggingface` of the schema's metadata, as `datasets` writes it.

  Args:
    schema: of a file.
  """
  text = (schema.metadata or {}).get(_METADATA)
  if text is None:
    return {}
  try:
    described = json_reader.parse(text, 'the metadata of the schema')
  except json_reader.InvalidJson:
    return {}
  features = _member(_member(described, 'info'), 'features')
  if not isinstance(features, dict):
    return {}
  found = {name: _names_of(feature) for name, feature in features.items()}
  return {name: names for name, names in found.items() if names}


def _member(value: Json, name: str) -> Json:
  return value.get(name) if isinstance(value, dict) else None


def _names_of(feature: Json) -> tuple[str, ...]:
  """The class names of a feature; () where it has none. Lists are `[feature]` or have `feature`."""
  while isinstance(feature, list) or _member(feature, 'feature') is not None:
    feature = feature['feature'] if isinstance(feature, dict) else (feature or [None])[0]
  names = _member(feature, 'names')
  if _member(feature, '_type') != 'ClassLabel' or not isinstance(names, list):
    return ()
  return tuple(map(str, names))

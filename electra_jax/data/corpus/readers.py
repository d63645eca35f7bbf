"""Documents from one file: text, JSON lines or Parquet, plain or compressed, as a stream. See corpora.py."""

import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from electra_jax import file_access
from electra_jax.errors import UserError

_ADVANCE_LINES = 256
_LONG_LINE = 1 << 18
_PARQUET_ROWS = 64  # decoded at a time
_PARQUET_BUFFER_BYTES = 1 << 20
_NAMES_SHOWN = 20
_BYTE_ORDER_MARK = b'\xef\xbb\xbf'
_LONE_SURROGATES = re.compile('[\ud800-\udfff]')
# First bytes of what is no text, whatever its name says.
_MAGIC = {
  b'\x1f\x8b': '.gz',
  b'\xfd7zXZ\0': '.xz',
  b'BZh91AY&SY': '.bz2',
  b'\x28\xb5\x2f\xfd': '.zst',
  b'PAR1\x15': '.parquet',
  b'PK\x03\x04': '.zip',
  b'7z\xbc\xaf': '.7z',
}

Advance = Callable[[int], None] | None
Counts = dict[str, int] | None


def count(counts: Counts, name: str, number: int = 1) -> None:
  """Adds to a count, where somebody counts."""
  if counts is not None and number:
    counts[name] = counts.get(name, 0) + number


def decode(data: bytes, invalid_utf8: str, where: Callable[[int], str]) -> tuple[str, int]:
  """Text of UTF-8 bytes, and how many of them were not.

  Args:
    invalid_utf8: `'refuse'`, or `'replace'`: U+FFFD takes their place.
    where: names the place of a byte, given its index, for the error.

  Raises:
    UserError: they are not UTF-8, and to be refused.
  """
  try:
    return data.decode(), 0
  except UnicodeDecodeError as error:
    if invalid_utf8 == 'refuse':
      raise UserError(
        f'{where(error.start)}; convert it, with iconv say, or set data.invalid_utf8=replace'
      ) from None
  bad = len(data) - len(data.decode(errors='ignore').encode())
  return data.decode(errors='replace'), bad


def document(text: str, bad: int, counts: Counts) -> Iterator[str]:
  """The text, unless it is white space alone; counted either way."""
  if not text or text.isspace():
    count(counts, 'blank_documents')
    return
  count(counts, 'documents_with_replacements', bool(bad))
  yield text


def read_text(
  path: str, document_format: str, invalid_utf8: str, advance: Advance, counts: Counts
) -> Iterator[str]:
  """Documents of a text file: between blank lines (`'blank_line'`), one a line (`'line'`), or one in all (`'file'`)."""
  if document_format == 'line':
    for _, line, bad in _lines(path, invalid_utf8, advance, counts):
      yield from document(line, bad, counts)
    return
  paragraphs, replaced = [], 0
  for _, line, bad in _lines(path, invalid_utf8, advance, counts):
    replaced += bad
    blank = not line or line.isspace()
    if not blank or (document_format == 'file' and paragraphs):
      paragraphs.append(line)
    elif paragraphs:
      yield from document('\n'.join(paragraphs), replaced, counts)
      paragraphs, replaced = [], 0
  if paragraphs or document_format == 'file':
    yield from document('\n'.join(paragraphs).rstrip('\n'), replaced, counts)


def read_jsonl(
  path: str, field: str, invalid_utf8: str, advance: Advance, counts: Counts
) -> Iterator[str]:
  """Documents of a file with a JSON object a line: the string in its field. null is a blank document."""
  for number, line, bad in _lines(path, invalid_utf8, advance, counts):
    if not line or line.isspace():
      continue
    where = f'line {number} of the corpus file {path!r}'
    try:
      record = json.loads(line, strict=False)  # control characters inside a string are text
    except (ValueError, RecursionError) as error:
      raise UserError(f'{where} is not JSON ({file_access.reason(error)}); mend it') from None
    value = _member(record, field, where)
    escapes = '\\u' in line
    del line, record
    if value is None:
      count(counts, 'blank_documents')
      continue
    if not isinstance(value, str):
      raise UserError(
        f'{where} has {_kind(value)} in its field {field!r}, not a string; name another with ;field=NAME'
      )
    if escapes and (lone := len(_LONE_SURROGATES.findall(value))):
      if invalid_utf8 == 'refuse':
        raise UserError(
          f'{where} has half a surrogate pair in its field {field!r}, which is no character; mend it, or '
          'set data.invalid_utf8=replace'
        )
      value, bad = _LONE_SURROGATES.sub('\ufffd', value), bad + lone
      count(counts, 'replaced_bytes', lone)
    yield from document(value, bad, counts)


def read_parquet(
  path: str, column: str, invalid_utf8: str, advance: Advance, counts: Counts
) -> Iterator[str]:
  """Documents of a Parquet file: the rows of one column of strings. null is a blank document."""
  import pyarrow as pa
  import pyarrow.compute as pc
  import pyarrow.parquet as pq

  size = file_access.size(path)
  seen = rows = 0
  # Read ahead, the column of a whole row group would be in memory.
  options = {
    'buffer_size': _PARQUET_BUFFER_BYTES,
    'pre_buffer': False,
    'page_checksum_verification': True,
  }
  try:
    with file_access.open_binary(path) as raw, pq.ParquetFile(raw, **options) as file:
      names = _column(file.schema_arrow, column, path)
      total = file.metadata.num_rows
      for batch in file.iter_batches(_PARQUET_ROWS, columns=['.'.join(names)], use_threads=False):
        values = batch.column(0)
        for name in names[1:]:
          values = pc.struct_field(values, name)
        if pa.types.is_dictionary(values.type):
          values = values.dictionary_decode()
        for value in values.cast(pa.large_binary()).to_pylist():
          rows += 1
          if value is None:
            count(counts, 'blank_documents')
            continue
          where = f'row {rows} of the corpus file {path!r} is not UTF-8'
          text, bad = decode(value, invalid_utf8, lambda _, where=where: where)
          count(counts, 'replaced_bytes', bad)
          del value
          yield from document(text, bad, counts)
        if advance and size * rows // total > seen:
          advance(size * rows // total - seen)
          seen = size * rows // total
  except Exception as error:
    if isinstance(error, UserError) or not (
      isinstance(error, pa.ArrowException | OSError) or file_access.is_remote(path)
    ):
      raise
    raise UserError(
      f'the corpus file {path!r} is no Parquet file, damaged or cut short ({file_access.reason(error)}); '
      'make it again'
    ) from None
  if advance and size > seen:
    advance(size - seen)


def _column(schema, column, path):
  """The names that lead to a column of strings: one, or several where it is inside structures."""
  import pyarrow as pa

  def leaves(fields, prefix=()):
    for field in fields:
      if pa.types.is_struct(field.type):
        yield from leaves(field.type, (*prefix, field.name))
      else:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        yield (
          (*prefix, field.name),
          any(
            is_kind(kind)
            for is_kind in (
              pa.types.is_string,
              pa.types.is_large_string,
              pa.types.is_string_view,
              pa.types.is_binary,
              pa.types.is_large_binary,
              pa.types.is_binary_view,
            )
          ),
          field.type,
        )

  found = {'.'.join(names): (names, is_text, kind) for names, is_text, kind in leaves(schema)}
  if column not in found:
    raise UserError(
      f'the corpus file {path!r} has no column {column!r}; its columns are {named(found)}; name one '
      'with ;field=NAME'
    )
  names, is_text, kind = found[column]
  if not is_text:
    texts = [name for name, (_, is_text, _) in found.items() if is_text]
    raise UserError(
      f'the column {column!r} of the corpus file {path!r} holds {kind}, not text; its columns of text '
      f'are {named(texts)}; name one with ;field=NAME'
    )
  return names


def _member(record: Any, field: str, where: str):
  """A field of a JSON object; `a.b` is b inside a, where no field is called so."""
  if not isinstance(record, dict):
    raise UserError(
      f'{where} is {_kind(record)}, not a JSON object; give files with an object a line, such as '
      '{"text": "..."}'
    )
  value = record
  for name in [field] if field in record else field.split('.'):
    if not isinstance(value, dict) or name not in value:
      raise UserError(
        f'{where} has no field {field!r}; its fields are {named(record)}; name one with ;field=NAME'
      )
    value = value[name]
  return value


def _kind(value):
  return {
    bool: 'a truth value',
    int: 'a number',
    float: 'a number',
    str: 'a string',
    list: 'a list',
    dict: 'an object',
    type(None): 'null',
  }[type(value)]


def named(names: Iterable[str]) -> str:
  """Names in a row, for a sentence; of very many the first."""
  names = list(map(repr, names))
  more = f' and {len(names) - _NAMES_SHOWN} more' if len(names) > _NAMES_SHOWN else ''
  return ', '.join(names[:_NAMES_SHOWN]) + more or 'none'


def _lines(path, invalid_utf8, advance, counts):
  """Yields (number, line without its end, bytes that were not UTF-8). Only \\n parts lines; others are text."""
  compressed = pathlib.PurePosixPath(path).suffix.lower() in file_access.COMPRESSIONS
  broken = file_access.damage()
  seen = offset = number = 0

  def where(start):
    place = f'byte 0x{line[start]:02x} on line {number}, byte {offset + start} of the text'
    return f'the corpus file {path!r} is not UTF-8 ({place})'

  with file_access.open_binary(path) as raw:
    try:
      stream = file_access.decompressed(raw, path)
      while True:
        line = stream.readline()
        if advance and (number % _ADVANCE_LINES == 0 or len(line) > _LONG_LINE or not line):
          position = raw.tell()
          if position > seen:
            advance(position - seen)
            seen = position
        if not line:
          if compressed and number == 0 and raw.tell() == 0:
            raise EOFError('it is empty')
          return
        number += 1
        length = len(line)
        if number == 1:
          _check_text(line, path)
          mark = len(_BYTE_ORDER_MARK) if line.startswith(_BYTE_ORDER_MARK) else 0
          line, offset = line[mark:], offset + mark
          length -= mark
        line = line.rstrip(b'\r\n')
        text, bad = decode(line, invalid_utf8, where)
        count(counts, 'replaced_bytes', bad)
        offset += length
        del line  # a line may be large: one copy of it while somebody works on it
        yield number, text, bad
    except UserError:
      raise
    except Exception as error:
      if not isinstance(error, broken) and not file_access.is_remote(path):
        raise
      told = file_access.reason(error)
      kind = file_access.Unreachable if file_access.is_remote(path) else UserError
      raise kind(
        f'the corpus file {path!r} is damaged or cut short ({told}); make it again'
      ) from None


def _check_text(line, path):
  for magic, suffix in _MAGIC.items():
    if line.startswith(magic):
      name = pathlib.PurePosixPath(path).name
      raise UserError(
        f'the corpus file {path!r} holds {suffix} data, not text; '
        + (
          f'call it {name}{suffix}'
          if suffix in (*file_access.COMPRESSIONS, '.parquet')
          else 'unpack it'
        )
      )

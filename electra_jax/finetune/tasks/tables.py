"""Tables of examples: TSV, CSV, JSON lines and JSON, plain or compressed, local or at an address, or from standard input."""

import csv
import difflib
import io
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from electra_jax import file_access
from electra_jax.data.corpus import readers, tfds
from electra_jax.errors import UserError

FORMATS = ('tsv', 'csv', 'jsonl', 'json')
STANDARD_INPUT = '-'

_SUFFIXES = {
  '.tsv': 'tsv',
  '.csv': 'csv',
  '.jsonl': 'jsonl',
  '.ndjson': 'jsonl',
  '.json': 'json',
  '.conll': 'conll',
  '.conllu': 'conllu',
  '.iob2': 'conll',
  '.txt': 'txt',
}
_BYTE_ORDER_MARK = b'\xef\xbb\xbf'


class Row(NamedTuple):
  """One row: the line of the file that it begins on, counted from 1, and its values by column, text but in JSON."""

  line: int
  values: dict[str, Any]


def read_table(
  path: str,
  format: str = 'auto',
  columns: Sequence[str] | None = None,
  header: bool = True,
  broken: list[int] | None = None,
) -> list[Row]:
  """The rows of a table, all of them, with all of their columns.

  Args:
    path: a file, plain or compressed, an address, or '-' for standard input.
    format: tsv: fields between tabs, no quotes, a row a line. csv: fields quoted as in RFC 4180, between commas, or the
      semicolons or tabs that the header has more of. jsonl: an object a line. json: a list of objects. auto: as the file's name
      says; of standard input jsonl where it begins with '{', else tsv.
    columns: with a header, and in JSON, those that each row must have. Without a header: the names of all columns, in order.
    header: whether the first row of TSV and CSV names the columns.
    broken: takes the lines with more or fewer fields than there are columns, which are left out; None: the first one is an error.

  Raises:
    UserError: the file cannot be read, is not UTF-8, has no rows, lacks a column, names one twice, or a row is broken.
  """
  text = read_text(path)
  if format == 'auto':
    format = format_of(path)
    if path == STANDARD_INPUT:
      format = 'jsonl' if text.lstrip().startswith('{') else 'tsv'
  return parse_table(text, path, format, columns, header, broken)


def parse_table(
  text: str,
  path: str,
  format: str,
  columns: Sequence[str] | None = None,
  header: bool = True,
  broken: list[int] | None = None,
  keep: Sequence[str] | None = None,
) -> list[Row]:
  """The rows of a table whose text is at hand already; `path` is for complaints. Otherwise as `read_table`, without auto.

  Args:
    keep: TSV and CSV: the only columns that rows are to have, where they are there; None for all.
  """
  if format not in FORMATS:
    raise UserError(
      f'what kind of table {shown(path)} is does not follow from its name; set data.format to one of '
      f'{", ".join(FORMATS)}'
    )
  if format in ('jsonl', 'json'):
    rows = (_json_lines if format == 'jsonl' else _json_list)(text, path)
    for row in rows:
      need(columns or (), row.values, path, row.line)
  else:
    rows = _separated(text, path, format, columns, header, broken, keep)
  if not rows and broken:
    raise UserError(
      f'{place(path, broken[0])}, and all others, have more or fewer fields than there should be; mend them'
    )
  if not rows:
    raise UserError(
      f'{shown(path)} holds no rows; give a file with at least one'
      + (' below its header' if header else '')
    )
  return rows


def format_of(path: str) -> str:
  """What a file's name says it is, before the suffix of its compression: tsv, csv, jsonl, json, conll, conllu, txt, or ''."""
  name = pathlib.PurePosixPath(path)
  if name.suffix.lower() in file_access.COMPRESSIONS:
    name = name.with_suffix('')
  return _SUFFIXES.get(name.suffix.lower(), '')


def read_text(path: str) -> str:
  """All of a file, decompressed, without a byte order mark; '-': standard input. Raises UserError where it is no UTF-8 text."""
  if path == STANDARD_INPUT:
    content = sys.stdin.buffer.read()
  else:
    try:
      with file_access.open_binary(path) as raw:
        content = file_access.decompressed(raw, path).read()
    except file_access.damage() as error:
      raise UserError(f'{shown(path)} cannot be read: {file_access.reason(error)}') from None
  content = content.removeprefix(_BYTE_ORDER_MARK)
  try:
    text = content.decode()
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    raise UserError(
      f'{place(path, line)} is not UTF-8 (byte 0x{content[error.start]:02x}); convert it, with iconv say'
    ) from None
  if '\0' in text:
    line = text.count('\n', 0, text.index('\0')) + 1
    raise UserError(
      f'{place(path, line)} holds a zero byte, so it is no text, or not UTF-8; convert it, with iconv say'
    )
  return text


def read_lines(path: str) -> list[str]:
  """Lines of a text file without their ends, as of `read_text`. Only \\n parts lines, so index + 1 is what editors count."""
  lines = [line.removesuffix('\r') for line in read_text(path).split('\n')]
  return lines if lines[-1] else lines[:-1]


def shown(path: str) -> str:
  """A file's name for a sentence."""
  return (
    'standard input'
    if path == STANDARD_INPUT
    else f'the file {path!r}'
    if not path.startswith(tfds.PREFIX)
    else repr(path)
  )


def place(path: str, line: int) -> str:
  """A line of a file for a sentence; of TFDS an example, counted from 1."""
  return (
    f'example {line} of {path!r}'
    if path.startswith(tfds.PREFIX)
    else f'line {line} of {shown(path)}'
  )


def need(
  columns: Sequence[str],
  present: Sequence[str],
  path: str,
  line: int | None = None,
  field: str = '',
) -> None:
  """Raises UserError, naming what there is, for the first of `columns` that is not present in the table, or in a line of it.

  Args:
    field: the config's field that names the column, as `data.text`, to be named in the sentence.
  """
  for column in columns:
    if column in present:
      continue
    near = difflib.get_close_matches(
      column, [name for name in present if isinstance(name, str)], n=1
    )
    quoted = f'"{column}"' in present
    raise UserError(
      f'{shown(path) if line is None else place(path, line)} has no column {column!r}'
      + (f' (did you mean {near[0]!r}?)' if near else '')
      + f'; its columns are {readers.named(present)}'
      + ('; name one with ' + field if field else '')
      + ('; fields in quotes are read with data.format=csv' if quoted else '')
    )


def text_value(path: str, row: Row, column: str) -> str:
  """A value as text: numbers and truth values of JSON as JSON writes them. Raises UserError for null, lists and objects."""
  value = row.values[column]
  if isinstance(value, str):
    return value
  if isinstance(value, bool | int | float):
    return json.dumps(value)
  kind = {list: 'a list', dict: 'an object'}.get(type(value), 'null')
  raise UserError(
    f'{place(path, row.line)} has {kind} in its column {column!r}, where text is wanted; mend it'
  )


def _separated(text, path, format, columns, header, broken, keep):
  """Rows of TSV or CSV."""
  if format == 'tsv':
    lines = text.split('\n')
    records = (
      (number, line.removesuffix('\r').split('\t'))
      for number, line in enumerate(lines, 1)
      if line and line != '\r'
    )
  else:
    records = _csv_records(text, path, header)
  names = columns
  if header:
    _, names = next(records, (1, None))
    if names is None:
      raise UserError(f'{shown(path)} is empty; give one with a header and rows')
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
      raise UserError(f'{shown(path)} has two columns called {twice[0]!r}; rename one')
    need(columns or (), names, path)
  width, rows = len(names), []
  picked = [(name, i) for i, name in enumerate(names) if keep is None or name in keep]
  for number, fields in records:
    if len(fields) == width:
      rows.append(Row(number, {name: fields[i] for name, i in picked}))
    elif broken is not None:
      broken.append(number)
    else:
      raise UserError(
        f'{place(path, number)} has {len(fields)} fields where '
        + ('its header has ' if header else 'there should be ')
        + f'{width}; mend it'
      )
  return rows


def _csv_records(text, path, header):
  """Yields (line, fields) of records, which may go over several lines."""
  csv.field_size_limit(
    min(sys.maxsize, 2**31 - 1)
  )  # else texts beyond 131,072 characters are refused
  first = text.split('\n', 1)[0]
  separator = max(',;\t', key=first.count) if header else ','
  reader = csv.reader(io.StringIO(text, newline=''), delimiter=separator, strict=True)
  while True:
    number = reader.line_num + 1
    try:
      fields = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      raise UserError(
        f'{place(path, number)} is not CSV ({file_access.reason(error)}); mend it'
      ) from None
    if fields:
      yield number, fields


def _json_lines(text, path):
  rows = []
  for number, line in enumerate(text.split('\n'), 1):
    if not line or line.isspace():
      continue
    try:
      value = json.loads(line, strict=False)
    except (ValueError, RecursionError) as error:
      raise UserError(
        f'{place(path, number)} is not JSON ({file_access.reason(error)}); mend it'
      ) from None
    rows.append(Row(number, _object(value, path, number)))
  return rows


def _json_list(text, path):
  """Objects of one JSON document that is a list, each with its line."""
  decoder, rows, line, counted = json.JSONDecoder(strict=False), [], 1, 0
  blank = ' \t\r\n'
  position = len(text) - len(text.lstrip(blank))
  if text[position : position + 1] != '[':
    hint = (
      '; set data.format=jsonl where each line is an object'
      if text[position : position + 1] == '{'
      else ''
    )
    raise UserError(f'{shown(path)} is not a JSON list of objects{hint or "; give one"}')

  def skip(position):
    while text[position : position + 1] in blank and position < len(text):
      position += 1
    return position

  position = skip(position + 1)
  while text[position : position + 1] != ']':
    line, counted = line + text.count('\n', counted, position), position
    try:
      value, position = decoder.raw_decode(text, position)
    except (ValueError, RecursionError) as error:
      raise UserError(
        f'{place(path, line)} begins what is not JSON ({file_access.reason(error)}); mend it'
      ) from None
    rows.append(Row(line, _object(value, path, line)))
    position = skip(position)
    if text[position : position + 1] == ',':
      position = skip(position + 1)
    elif text[position : position + 1] != ']':
      raise UserError(
        f'{place(path, line)} begins an object after which the list neither goes on nor ends; mend it'
      )
  return rows


def _object(value, path, line):
  if not isinstance(value, dict):
    raise UserError(
      f'{place(path, line)} is not a JSON object; give rows such as {{"text": "...", "label": "..."}}'
    )
  return value

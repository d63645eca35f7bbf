"""Tables of examples: TSV, CSV, JSON lines, JSON, Parquet and Arrow, local or remote."""

import csv
import difflib
import io
import json
import math
import pathlib
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from electra_jax import file_access, input_limits, json_reader
from electra_jax.config.finetuning import TaskDataConfig
from electra_jax.data.corpus import dataset_folder, readers, tfds
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import arrow_tables

FORMATS = ('tsv', 'csv', 'jsonl', 'json')
SPLITS = ('train', 'dev', 'test')
_SPLIT_NAMES = {'train': ('train',), 'dev': ('dev', 'validation', 'valid'), 'test': ('test',)}
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
# JSON of labeled data. Columns that no task reads may hold NaN, as pandas writes missing values.
RULES = json_reader.Rules(control_characters=True, lone_surrogates=True, not_finite=True)
# Texts that stand for a missing label, as programs write them into tables.
_MISSING = ('nan', 'null', '<na>', 'inf', 'infinity')
_WHOLE = re.compile(r'([+-]?\d+)\.0+')
_LARGEST_EXACT = 2**53  # from here on a float stands for several integers
_SURROGATES = re.compile('[\ud800-\udfff]')
_MAYBE_SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')
_BYTE_ORDER_MARK = b'\xef\xbb\xbf'
_BLANK = ' \t\r\n'

JsonValue: TypeAlias = Any  # what json_reader.parse returns


class Row(NamedTuple):
  """One row of a table.

  Attributes:
    line: the line of the file that it starts on, or the number of the row, counted from 1.
    values: by column; text, except in JSON, Parquet and Arrow.
  """

  line: int
  values: dict[str, Any]


def read_table(
  path: str,
  format: str = 'auto',
  columns: Sequence[str] | None = None,
  header: bool = True,
  broken: list[int] | None = None,
) -> list[Row]:
  """All rows of a table, with all of their columns.

  Args:
    path: a file, compressed or not, an address, or '-' for standard input. Parquet and Arrow files
      are known by their names, and may be folders of `datasets.save_to_disk`.
    format: tsv: fields separated by tabs, no quotes, one row per line. csv: fields quoted as in
      RFC 4180, separated by commas, or by semicolons or tabs where the header has more of them.
      jsonl: one object per line. json: a list of objects. auto: by the file's name; for standard
      input jsonl where it starts with '{', else tsv.
    columns: with a header, and in JSON, those that each row must have. Without a header: the names
      of all columns, in order.
    header: whether the first row of TSV and CSV names the columns.
    broken: receives the numbers of lines that have more or fewer fields than there are columns;
      they are skipped. None: such a line is an error.

  Raises:
    UserError: the file cannot be read, is not UTF-8, has no rows, lacks a column, has two columns
      of the same name, or has a malformed row.
  """
  if arrow_tables.is_arrow_data(path, format):
    return read_arrow(path, columns)
  text = read_file_text(path)
  if format == 'auto':
    format = format_from_name(path)
    if path == STANDARD_INPUT:
      format = 'jsonl' if text.lstrip().startswith('{') else 'tsv'
  return parse_table(text, path, format, columns, header, broken)


def read_arrow(path: str, columns: Sequence[str] | None = None) -> list[Row]:
  """The rows of a Parquet or Arrow file or of a dataset's folder.

  Args:
    path: as `arrow_tables.is_arrow_data` accepts.
    columns: those that there must be.

  Raises:
    UserError: it cannot be read, has no rows, or lacks a column.
  """
  rows = [
    Row(number, values) for number, values in enumerate(arrow_tables.read_arrow_rows(path), 1)
  ]
  if not rows:
    raise UserError(f'{shown(path)} has no rows; expected at least one')
  require_columns(columns or (), rows[0].values, path)
  return rows


def parse_table(
  text: str,
  path: str,
  format: str,
  columns: Sequence[str] | None = None,
  header: bool = True,
  broken: list[int] | None = None,
  keep: Collection[str] | None = None,
) -> list[Row]:
  """The rows of a table that was read already.

  Args:
    text: of the file.
    path: of the file, for messages.
    format: as in `read_table`, without auto.
    columns: as in `read_table`.
    header: as in `read_table`.
    broken: as in `read_table`.
    keep: TSV and CSV: the columns that rows have, where the table has them; None for all.

  Raises:
    UserError: as in `read_table`.
  """
  if format not in FORMATS:
    raise UserError(
      f'the format of {shown(path)} cannot be inferred from its name; set data.format to one of '
      f'{", ".join((*FORMATS, *arrow_tables.FORMATS))}'
    )
  if format in ('jsonl', 'json'):
    rows = (_json_lines if format == 'jsonl' else _json_list)(text, path)
    for row in rows:
      require_columns(columns or (), row.values, path, row.line)
  else:
    records = _tsv_records(text) if format == 'tsv' else _csv_records(text, path, header)
    names = _header(records, path, columns) if header else list(columns or ())
    rows = _separated(records, names, path, header, broken, keep)
  if not rows and broken:
    raise UserError(
      f'{place(path, broken[0])} and all other lines have more or fewer fields than expected; fix '
      'them'
    )
  if not rows:
    below = ' below its header' if header and format in ('tsv', 'csv') else ''
    raise UserError(f'{shown(path)} has no rows; expected at least one{below}')
  return rows


def format_from_name(path: str) -> str:
  """The format that a file's name implies: tsv, csv, jsonl, json, conll, conllu, txt, or ''.

  A suffix of a compression format is ignored.
  """
  name = pathlib.PurePosixPath(path)
  if name.suffix.lower() in file_access.COMPRESSIONS:
    name = name.with_suffix('')
  return _SUFFIXES.get(name.suffix.lower(), '')


def read_file_text(path: str) -> str:
  """The whole text of a file, decompressed, without a byte order mark.

  Args:
    path: '-' for standard input.

  Raises:
    UserError: it cannot be read, is not UTF-8 text, or is larger than TABLE_BYTES of
      input_limits.py.
  """
  most = input_limits.scaled(input_limits.TABLE_BYTES)
  if path == STANDARD_INPUT:
    content = file_access.read_at_most(sys.stdin.buffer, most + 1)
  else:
    try:
      with file_access.open_binary(path) as raw:
        content = file_access.read_at_most(file_access.decompressed(raw, path), most + 1)
    except file_access.damage() as error:
      raise UserError(f'{shown(path)} cannot be read: {file_access.reason(error)}') from None
  if len(content) > most:
    raise input_limits.too_large(shown(path), most)
  content = content.removeprefix(_BYTE_ORDER_MARK)
  try:
    text: str = content.decode()
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    raise UserError(
      f'{place(path, line)} is not UTF-8 (byte 0x{content[error.start]:02x}); convert the file, '
      'for example with iconv'
    ) from None
  if '\0' in text:
    line = text.count('\n', 0, text.index('\0')) + 1
    raise UserError(
      f'{place(path, line)} contains a zero byte, so the file is not text in UTF-8; convert it, '
      'for example with iconv'
    )
  return text


def read_lines(path: str) -> list[str]:
  r"""Lines of a text file without their ends, read as in `read_file_text`.

  Only \n separates lines, so that index + 1 is the line number of editors.
  """
  lines = [line.removesuffix('\r') for line in read_file_text(path).split('\n')]
  return lines if lines[-1] else lines[:-1]


def shown(path: str) -> str:
  """A file as messages name it."""
  if path == STANDARD_INPUT:
    return 'standard input'
  if path.startswith(tfds.PREFIX):
    return repr(path)
  return f'the {"folder" if _is_folder(path) else "file"} {path!r}'


def place(path: str, line: int) -> str:
  """A line of a file, or an example of a TFDS dataset, as messages name it; counted from 1."""
  if path.startswith(tfds.PREFIX):
    return f'example {line} of {path!r}'
  suffix = pathlib.PurePosixPath(path).suffix.lower()
  in_rows = suffix in (*arrow_tables.PARQUET_EXTENSIONS, *arrow_tables.ARROW_EXTENSIONS)
  return f'{"row" if in_rows or _is_folder(path) else "line"} {line} of {shown(path)}'


def split_files(name: str, data: TaskDataConfig) -> dict[str, str]:
  """The file of each split of a task on user data.

  Args:
    name: of the task.
    data: config.data: train, dev and test; source, a folder of `datasets.save_to_disk` with several
      splits, of which validation is dev.

  Raises:
    UserError: the source is something else.
  """
  found = {split: path for split in SPLITS if (path := getattr(data, split))}
  if not data.source:
    return found
  folders = saved_folders(data.source)
  if not folders:
    raise UserError(
      f'config.data.source is {data.source!r}, and the task {name!r} reads files; set '
      'config.data.train and config.data.dev, and leave config.data.source empty'
    )
  return folders | found


def saved_folders(source: str) -> dict[str, str]:
  """The folder of each split in a folder of `datasets.save_to_disk`; {} for other folders."""
  if source.startswith(tfds.PREFIX):
    return {}
  there = dataset_folder.saved_splits(source)
  found = {split: next((n for n in _SPLIT_NAMES[split] if n in there), '') for split in SPLITS}
  return {split: file_access.join(source, theirs) for split, theirs in found.items() if theirs}


def label_names(text: str) -> tuple[str, ...]:
  """Names of labels in their order, as data.label_names has them.

  Args:
    text: names separated by commas, or a file with one name per line; '' for none.

  Raises:
    UserError: a name is empty or occurs twice, or the file cannot be read.
  """
  if not text:
    return ()
  if ',' not in text and file_access.exists(text):
    names = [line.strip() for line in read_lines(text)]
  else:
    names = [name.strip() for name in text.split(',')]
    if len(names) == 1:
      raise UserError(
        f'data.label_names is {text!r}, which is no file; expected names separated by commas, or a '
        'file with one name per line'
      )
  if '' in names or len(set(names)) < len(names):
    raise UserError(
      f'data.label_names is {text!r}; expected different names separated by commas, or a file with '
      'one name per line'
    )
  return tuple(names)


def _is_folder(path: str) -> bool:
  if pathlib.PurePosixPath(path).suffix or file_access.is_remote(path):
    return False  # such a folder is called a file, rather than asked for in each message
  return file_access.is_folder(path)


def require_columns(
  columns: Sequence[str],
  present: Collection[str],
  path: str,
  line: int | None = None,
  field: str = '',
) -> None:
  """Checks that a table, or one row of it, has certain columns.

  Args:
    columns: that it must have.
    present: that it has.
    path: of the file, for the message.
    line: of the row; None for the table.
    field: the config field that names the column, such as `data.text`, for the message.

  Raises:
    UserError: a column is missing.
  """
  for column in columns:
    if column in present:
      continue
    known = [name for name in present if isinstance(name, str)]
    near = difflib.get_close_matches(column, known, n=1)
    owner = shown(path) if line is None else place(path, line)
    raise UserError(
      f'{owner} has no column {column!r}'
      + (f' (did you mean {near[0]!r}?)' if near else '')
      + f'; its columns are {readers.named(present)}'
      + (f'; set {field} to one of them' if field else '')
      + ('; set data.format=csv to read fields in quotes' if f'"{column}"' in present else '')
    )


def text_value(path: str, row: Row, column: str) -> str:
  """A value as text; numbers and booleans of JSON are written as in JSON.

  Raises:
    UserError: the value is null, not finite, a list or an object.
  """
  value = row.values[column]
  if isinstance(value, str):
    return value
  if isinstance(value, bool | int | float) and math.isfinite(value):
    return json.dumps(value)
  kinds: dict[type, str] = {
    list: 'a list',
    dict: 'an object',
    float: json.dumps(value, default=str),
  }
  kind = kinds.get(type(value), 'null' if value is None else f'a {type(value).__name__}')
  raise UserError(f'{place(path, row.line)} has {kind} in its column {column!r}; expected text')


def label_text(value: JsonValue) -> str:
  """A label as text: whole numbers without a fraction, booleans as in JSON, no white space around.

  Integers beside missing values are floats in data frames and Parquet: 1.0 is the label 1.

  Args:
    value: text, a finite number or a boolean.
  """
  if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_EXACT:
    return str(int(value))
  return value.strip() if isinstance(value, str) else json.dumps(value)


def plain_label(label: str) -> str:
  """A label as `label_text` writes it, where other programs write it as 1.0 or True."""
  if label.lower() in ('true', 'false'):
    return label.lower()
  whole = _WHOLE.fullmatch(label)
  return whole[1] if whole else label


def is_missing(value: JsonValue) -> bool:
  """Whether a label or value stands for none: null, not a finite number, empty, or such a text."""
  if isinstance(value, str):
    return value.strip().lower().lstrip('+-') in ('', *_MISSING)
  return value is None or isinstance(value, float) and not math.isfinite(value)


#### TSV and CSV ####

_Records = Iterator[tuple[int, list[str]]]  # line number, fields


def _header(records: _Records, path: str, columns: Sequence[str] | None) -> list[str]:
  """The names of the columns, in the first record."""
  _, names = next(records, (1, None))
  if names is None:
    raise UserError(f'{shown(path)} is empty; expected a header and rows')
  if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
    raise UserError(f'{shown(path)} has two columns named {repeated[0]!r}; rename one')
  require_columns(columns or (), names, path)
  return names


def _separated(
  records: _Records,
  names: list[str],
  path: str,
  header: bool,
  broken: list[int] | None,
  keep: Collection[str] | None,
) -> list[Row]:
  width = len(names)
  rows: list[Row] = []
  picked = [(name, i) for i, name in enumerate(names) if keep is None or name in keep]
  for number, fields in records:
    if len(fields) == width:
      rows.append(Row(number, {name: fields[i] for name, i in picked}))
    elif broken is not None:
      broken.append(number)
    else:
      why = ' as in the header' if header else ''
      raise UserError(f'{place(path, number)} has {len(fields)} fields; expected {width}{why}')
  return rows


def _tsv_records(text: str) -> _Records:
  for number, line in enumerate(text.split('\n'), 1):
    if line and line != '\r':
      yield number, line.removesuffix('\r').split('\t')


def _csv_records(text: str, path: str, header: bool) -> _Records:
  """Records, which may span several lines."""
  # The default limit refuses texts longer than 131,072 characters.
  most = min(input_limits.scaled(input_limits.FIELD_CHARACTERS), 2**31 - 1)
  csv.field_size_limit(most)
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
      if 'field larger than' in str(error):
        raise input_limits.too_large(
          f'a field of {place(path, number)}', most, 'characters'
        ) from None
      raise UserError(
        f'{place(path, number)} is not valid CSV ({file_access.reason(error)}); fix it'
      ) from None
    if fields:
      yield number, fields


#### JSON ####


def parse_json(text: str, where: str) -> JsonValue:
  """A JSON document of labeled data; see `whole_characters`.

  Args:
    text: the document.
    where: it is, as the beginning of a sentence.

  Raises:
    UserError: it is not JSON.
  """
  value = json_reader.parse(text, where, 'fix it', RULES)
  return whole_characters(value) if _MAYBE_SURROGATE.search(text) else value


def whole_characters(value: JsonValue) -> JsonValue:
  """A value with U+FFFD in place of each half of a surrogate pair, which has no UTF-8.

  Tokenizers read it so; predictions and reports contain the text, and offsets stay the same.
  """
  if isinstance(value, str):
    return _SURROGATES.sub('\ufffd', value)
  if isinstance(value, list):
    return [whole_characters(item) for item in value]
  if isinstance(value, dict):
    return {whole_characters(name): whole_characters(item) for name, item in value.items()}
  return value


def _json_lines(text: str, path: str) -> list[Row]:
  rows: list[Row] = []
  for number, line in enumerate(text.split('\n'), 1):
    if not line or line.isspace():
      continue
    value = parse_json(line, place(path, number))
    rows.append(Row(number, _object(value, path, number)))
  return rows


def _json_list(text: str, path: str) -> list[Row]:
  """Objects of one JSON document that is a list, each with its line."""
  rows: list[Row] = []
  line, counted = 1, 0
  position = len(text) - len(text.lstrip(_BLANK))
  if text[position : position + 1] != '[':
    hint = '; set data.format=jsonl if each line is an object'
    hint = hint if text[position : position + 1] == '{' else ''
    raise UserError(f'{shown(path)} is not a JSON list of objects{hint}')
  position = _after_blanks(text, position + 1)
  while text[position : position + 1] != ']':
    line, counted = line + text.count('\n', counted, position), position
    start = position
    value, position = json_reader.parse_next(text, start, place(path, line), 'fix it', RULES)
    if _MAYBE_SURROGATE.search(text, start, position):
      value = whole_characters(value)
    rows.append(Row(line, _object(value, path, line)))
    position = _after_blanks(text, position)
    if text[position : position + 1] == ',':
      position = _after_blanks(text, position + 1)
    elif text[position : position + 1] != ']':
      raise UserError(
        f'{place(path, line)} starts an object after which the list has neither a comma nor its '
        'end; fix it'
      )
  return rows


def _after_blanks(text: str, position: int) -> int:
  """The first position from `position` on that is not white space."""
  while position < len(text) and text[position] in _BLANK:
    position += 1
  return position


def _object(value: JsonValue, path: str, line: int) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise UserError(
      f'{place(path, line)} is not a JSON object; expected rows such as '
      '{"text": "...", "label": "..."}'
    )
  return value


def first_fields(text: str) -> list[str]:
  """The fields of the first line of a text, separated by tabs."""
  return text.split('\n', 1)[0].removesuffix('\r').split('\t')

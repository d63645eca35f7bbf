"""CSV and TSV files, with the documents in one column (RFC 4180; other delimiters are detected)."""

import csv
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from electra_jax import file_access, input_limits
from electra_jax.data.corpus.corpus_format import CorpusFormat, CorpusSource, FieldFormat, Key
from electra_jax.data.corpus.readers import DocumentReader, named
from electra_jax.errors import UserError

_DELIMITERS = {'comma': ',', 'semicolon': ';', 'tab': '\t', 'pipe': '|'}
_SAMPLE_RECORDS = 20  # by which the delimiter is detected
_SAMPLE_CHARACTERS = 1 << 16
_TAB_EXTENSIONS = ('.tsv', '.tab')
_REMEDY = 'repair it, or set ;quotes=no if quotes are text'


class CsvFormat(FieldFormat):
  """Records with a header. A field may be in quotes, and then hold line breaks.

  Fields that are not in quotes, as in most TSV files, have `;quotes=no`. Without a header
  (`;header=no`) columns are numbered from 1.
  """

  title = 'CSV'
  extensions = ('.csv', '.tsv', '.tab')
  options = {'field': 'text', 'delimiter': '', 'header': 'yes', 'quotes': 'yes'}
  is_text = True
  version = 1

  def part_read(self, source: CorpusSource) -> Key:
    """See the base class."""
    return CorpusFormat.part_read(self, source)

  def options_identity(self, source: CorpusSource) -> Key:
    """See the base class."""
    return CorpusFormat.options_identity(self, source)

  def parse_options(self, location: str, given: Mapping[str, str]) -> dict[str, str]:
    """See the base class."""
    options = super().parse_options(location, given)
    for name in ('header', 'quotes'):
      if options[name] not in ('yes', 'no'):
        raise UserError(
          f'the corpus source {location!r} has {name}={options[name]}; expected yes or no.'
        )
    if options['delimiter'] and options['delimiter'] not in _DELIMITERS:
      raise UserError(
        f'the corpus source {location!r} has delimiter={options["delimiter"]}; expected one of '
        f'{", ".join(_DELIMITERS)}.'
      )
    return options

  def text_fields(
    self, path: str, options: Mapping[str, str], reader: DocumentReader
  ) -> Sequence[str]:
    """The names in the header; of records without one, their numbers."""
    _, first = next(_records(path, options, reader), (0, []))
    return _header(first, options)

  def read(self, path: str, options: Mapping[str, str], reader: DocumentReader) -> Iterator[str]:
    """See the base class."""
    column = width = -1
    for line, record in _records(path, options, reader):
      if not record:  # a blank line
        continue
      if column < 0:
        header = _header(record, options)
        column, width = _column(header, options['field'], path), len(header)
        if options['header'] == 'yes':
          continue
      if len(record) != width:
        raise UserError(
          f'the record that ends on line {line} of the corpus file {path!r} has {len(record)} '
          f'fields, and the first has {width}; {_REMEDY}'
        )
      yield record[column]


CSV = CsvFormat()


def _header(record: Sequence[str], options: Mapping[str, str]) -> list[str]:
  if options['header'] == 'yes':
    return [name.strip() for name in record]
  return [str(number) for number in range(1, len(record) + 1)]


def _column(header: Sequence[str], field: str, path: str) -> int:
  """The place of a column."""
  if field not in header:
    raise UserError(
      f'the corpus file {path!r} has no column {field!r}; its columns are {named(header)}; name '
      'one with ;field=NAME'
    )
  return header.index(field)


def _records(
  path: str, options: Mapping[str, str], reader: DocumentReader
) -> Iterator[tuple[int, list[str]]]:
  """Yields (line on which it ends, fields) of each record, with line feeds as line breaks."""
  csv.field_size_limit(input_limits.scaled(input_limits.FIELD_CHARACTERS))
  lines = (text + '\n' for _, text in reader.lines(path))
  sample: list[str] = []
  size = 0
  while size < _SAMPLE_CHARACTERS and len(sample) < 4 * _SAMPLE_RECORDS:
    line = next(lines, None)
    if line is None:
      break
    sample.append(line)
    size += len(line)

  def all_lines() -> Iterator[str]:
    yield from sample
    yield from lines

  chosen = options['delimiter']
  delimiter = _DELIMITERS[chosen] if chosen else _delimiter(path, sample, options)
  records = csv.reader(all_lines(), **_dialect(delimiter, options))
  while True:
    try:
      record = next(records)
    except StopIteration:
      return
    except csv.Error as error:
      raise UserError(
        f'the record that ends on line {records.line_num} of the corpus file {path!r} is not valid '
        f'CSV ({file_access.reason(error)}); {_REMEDY}'
      ) from None
    yield records.line_num, record


def _dialect(delimiter: str, options: Mapping[str, str]) -> dict[str, Any]:
  quoting = csv.QUOTE_MINIMAL if options['quotes'] == 'yes' else csv.QUOTE_NONE
  return {'delimiter': delimiter, 'quoting': quoting, 'strict': True}


def _delimiter(path: str, sample: Sequence[str], options: Mapping[str, str]) -> str:
  """The delimiter of a file: a tab by its name, or the one that gives records of equal width.

  Of several, the one with the most fields; a comma where there is none.
  """
  name = pathlib.PurePosixPath(path)
  suffixes = [name.suffix.lower(), pathlib.PurePosixPath(name.stem).suffix.lower()]
  if any(suffix in _TAB_EXTENSIONS for suffix in suffixes):
    return '\t'
  best, most = ',', 1
  for delimiter in _DELIMITERS.values():
    widths = set()
    reader = csv.reader(sample, **_dialect(delimiter, options))
    try:
      for record, _ in zip(reader, range(_SAMPLE_RECORDS), strict=False):  # as many as there are
        if record:
          widths.add(len(record))
    except csv.Error:  # as the last record of the sample is cut
      pass
    if len(widths) == 1 and (width := widths.pop()) > most:
      best, most = delimiter, width
  return best

"""JSON lines: files with one JSON object per line and the document in one of its fields."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from electra_jax import json_reader
from electra_jax.data.corpus import file_kinds
from electra_jax.data.corpus.corpus_format import FieldFormat
from electra_jax.data.corpus.readers import DocumentReader, named
from electra_jax.errors import UserError

Json = Any  # a value of JSON

_LONE_SURROGATES = re.compile('[\ud800-\udfff]')


class JsonlFormat(FieldFormat):
  """JSON lines. Dots in the name of a field lead into nested objects; null is a blank document."""

  title = 'JSON lines'
  extensions = ('.jsonl', '.ndjson')
  ambiguous_extensions = ('.json',)
  is_text = True

  def recognizes_text(self, head: bytes) -> bool:
    """See the base class."""
    return file_kinds.holds_json_lines(head)

  def text_fields(
    self, path: str, options: Mapping[str, str], reader: DocumentReader
  ) -> Sequence[str]:
    """The strings of the first object, those of objects in it with dots."""
    line = next((line for _, line in reader.lines(path) if line and not line.isspace()), '')
    where = f'the first line of the corpus file {path!r}'
    return list(_strings(json_reader.parse(line, where, 'repair it', json_reader.TEXTS)))

  def read(self, path: str, options: Mapping[str, str], reader: DocumentReader) -> Iterator[str]:
    """See the base class."""
    field = options['field']
    for number, line in reader.lines(path):
      if not line or line.isspace():
        continue
      where = f'line {number} of the corpus file {path!r}'
      record = json_reader.parse(line, where, 'repair it', json_reader.TEXTS)
      value = _member(record, field, where)
      escapes = '\\u' in line
      del line, record
      if value is None:
        yield ''
        continue
      if not isinstance(value, str):
        raise UserError(
          f'{where} has {json_reader.kind_of(value)} in its field {field!r}, not a string; name '
          'another field with ;field=NAME'
        )
      if escapes and (lone := len(_LONE_SURROGATES.findall(value))):
        if reader.invalid_utf8 == 'refuse':
          raise UserError(
            f'{where} has half a surrogate pair in its field {field!r}, which is not a character; '
            'repair it, or set data.invalid_utf8=replace'
          )
        value = _LONE_SURROGATES.sub('\ufffd', value)
        reader.add_replaced(lone)
      yield value


JSONL = JsonlFormat()


def _strings(record: Json, prefix: str = '') -> Iterator[str]:
  """Names of the fields of an object that hold a string."""
  for name, value in record.items() if isinstance(record, dict) else ():
    if isinstance(value, str):
      yield prefix + name
    elif not prefix:
      yield from _strings(value, f'{name}.')


def _member(record: Json, field: str, where: str) -> Json:
  """A field of a JSON object; `a.b` is b inside a, unless a field has that name."""
  if not isinstance(record, dict):
    raise UserError(
      f'{where} is {json_reader.kind_of(record)}, not a JSON object; expected an object per line, '
      'such as {"text": "..."}'
    )
  value: Json = record
  for name in [field] if field in record else field.split('.'):
    if not isinstance(value, dict) or name not in value:
      raise UserError(
        f'{where} has no field {field!r}; its fields are {named(record)}; name one with ;field=NAME'
      )
    value = value[name]
  return value

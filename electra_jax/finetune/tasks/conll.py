"""Sentences with a tag per word: CoNLL columns, CoNLL-U, JSON, Parquet and Arrow.

Columns are also written.
"""

import dataclasses
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from electra_jax import json_reader
from electra_jax.data.corpus.readers import named
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import arrow_tables, offsets, tables, tag_schemes
from electra_jax.finetune.tasks.tables import place, shown

FORMATS = ('auto', 'conll', 'conllu', 'tsv', 'jsonl', 'json', *arrow_tables.FORMATS)
# Fields of JSON that are used where the configured one is missing.
_TEXT_FIELDS = ('tokens', 'words', 'text', 'sentence')
_TAG_FIELDS = ('tags', 'entities', 'spans', 'labels', 'label')
UNTAGGED = '_'  # in CoNLL-U and in test files of other formats: there is no tag

_NUMBER = re.compile(r'[1-9]\d*')
_RANGE = re.compile(r'\d+[-.]\d+')  # words written as one (1-2), and omitted words (1.1)
# Where words are not numbered, a word may be a '#': a comment precedes a sentence and has a key.
_COMMENT = re.compile(r'# ?(?:\S+ = |(?:id|sent_id|text|newdoc|newpar)(?: |$))')
_ID = re.compile(r'# ?(?:sent_id =|id =?) ?(\S+)')
_CONLLU_COLUMNS = 10
_INSPECTED = 200  # lines that the layout is inferred from

# (fields of a line, number of fields of the first line, line number) -> tag, '' for none
_TagReader = Callable[[list[str], int, int], str]


class Sentence(NamedTuple):
  """Words, their tags, and their position in a file.

  Attributes:
    tokens: the words.
    tags: of each word; None for a sentence without tags.
    path: of the file.
    lines: of each word, counted from 1.
    id: of the sentence in the file, or ''.
    repaired: number of tags that were changed because they violated their scheme.
    text: that the words are parts of; '' where only the words are known.
    offsets: first character of each word in `text`, and the character after its last; () without
      text.
    widened: number of entities that began or ended inside a word, and were extended to all of it.
  """

  tokens: tuple[str, ...]
  tags: tuple[str, ...] | None
  path: str
  lines: tuple[int, ...]
  id: str = ''
  repaired: int = 0
  text: str = ''
  offsets: tuple[tuple[int, int], ...] = ()
  widened: int = 0


@dataclasses.dataclass(frozen=True)
class SentenceLayout:
  """Where a file has words and tags.

  Attributes:
    format: one of FORMATS.
    tags: conll: a column counted from 0, -1 for the last; conllu: upos, xpos or a key of MISC.
    text: JSON: the field of the words.
    label: JSON: the field of the tags.
    auto: the value of `tags` for CoNLL-U where `tags` is 'auto'; '' where it must be set.
    names: of tags that are integers.
    fields: JSON: further fields that may have the tags, such as 'ner_tags'.
    plain_integers: whether integers without names are tags themselves.
  """

  format: str = 'auto'
  tags: str = 'auto'
  text: str = 'text'
  label: str = 'label'
  auto: str = 'upos'
  names: tuple[str, ...] = ()
  fields: tuple[str, ...] = ()
  plain_integers: bool = False

  def __post_init__(self) -> None:
    if self.format not in FORMATS:
      raise UserError(
        f'data.format is {self.format!r}; expected one of {", ".join(FORMATS)} for a task of tags'
      )


def read_sentences(
  path: str, layout: SentenceLayout, columns: dict[str, str | None] | None = None
) -> list[Sentence]:
  """The sentences of a file.

  The layout is inferred from the file's name, else from its content; `tsv` and `txt` are columns.

  Args:
    path: a file, compressed or not, an address, or '-' for standard input.
    layout: where it has words and tags.
    columns: receives the names of the columns `words` and `tags`, in JSON, Parquet and Arrow.

  Raises:
    UserError: it cannot be read, is not UTF-8, has no sentence, or a line is malformed.
  """
  if arrow_tables.is_arrow_data(path, layout.format):
    return _sentences_of_rows(tables.read_arrow(path), path, layout, columns)
  kind = tables.format_from_name(path) if layout.format == 'auto' else layout.format
  if kind == 'csv':
    raise UserError(
      f'{shown(path)} is CSV, which has no tag per word; expected CoNLL columns, CoNLL-U, JSON '
      'lines, Parquet or Arrow'
    )
  if kind in ('jsonl', 'json'):
    return _sentences_of_rows(tables.read_table(path, kind), path, layout, columns)
  known = 'conllu' if kind == 'conllu' else None
  return sentences_of_lines(tables.read_lines(path), path, layout, known)


def _sentences_of_rows(
  rows: Sequence[tables.Row],
  path: str,
  layout: SentenceLayout,
  columns: dict[str, str | None] | None,
) -> list[Sentence]:
  if columns is not None:
    first = rows[0].values
    columns |= {'words': text_field(first, layout), 'tags': tag_field(first, layout)}
  return sentences_of_records(((row.line, row.values) for row in rows), path, layout)


def sentences_of_lines(
  lines: Sequence[str], path: str, layout: SentenceLayout, kind: str | None = None
) -> list[Sentence]:
  """The sentences in lines of columns.

  Args:
    lines: of the file.
    path: of the file, for messages.
    layout: where it has words and tags.
    kind: as `layout_of_lines` returns it; None to infer it.

  Raises:
    UserError: there is no sentence, or a line is malformed.
  """
  kind = kind or layout_of_lines(lines)
  if kind == 'jsonl':
    return sentences_of_records(_json_records(lines, path), path, layout)
  sentences = _ColumnReader(kind, layout, path).read(lines)
  if not sentences:
    raise UserError(f'{shown(path)} has no sentences; expected at least one')
  if layout.names and kind != 'conllu':
    sentences = [_with_names(sentence, layout) for sentence in sentences]
  found = {tag for sentence in sentences for tag in sentence.tags or ()}
  if not found - {'', UNTAGGED}:
    return [sentence._replace(tags=None) for sentence in sentences]
  if '' not in found:
    return sentences
  if kind == 'conllu':  # other words have the key in MISC
    return [
      sentence._replace(tags=tuple(tag or 'O' for tag in sentence.tags or ()))
      for sentence in sentences
    ]
  number = next(
    number
    for sentence in sentences
    for number, tag in zip(sentence.lines, sentence.tags or (), strict=True)
    if not tag
  )
  raise UserError(
    f'{place(path, number)} has no tag, though other words have one; fix the line, or set '
    'data.tags to the column of the tags'
  )


class _ColumnReader:
  """Reads lines of columns, sentence by sentence."""

  def __init__(self, kind: str, layout: SentenceLayout, path: str) -> None:
    self._path = path
    self._word = 0 if kind == 'columns' else 1  # the column of the word; 1 after a number
    reader = _conllu_tag_reader if kind == 'conllu' else _column_tag_reader
    self._tag_of = reader(layout, kind, path)
    self._sentences: list[Sentence] = []
    self._clear()

  def _clear(self) -> None:
    self._tokens: list[str] = []
    self._tags: list[str] = []
    self._numbers: list[int] = []
    self._id = ''

  def _end_sentence(self) -> None:
    if self._tokens:
      self._sentences.append(
        Sentence(tuple(self._tokens), tuple(self._tags), self._path, tuple(self._numbers), self._id)
      )
    self._clear()

  def read(self, lines: Sequence[str]) -> list[Sentence]:
    """All sentences; a word without a tag has the tag ''."""
    width = 0
    for number, line in enumerate(lines, 1):
      if not line.strip(' \t'):
        self._end_sentence()
        continue
      if self._is_comment(line):
        self._id = found[1] if (found := _ID.match(line)) else self._id
        continue
      fields = split_columns(line)
      if self._word == 0 and fields[0] == '-DOCSTART-':
        self._end_sentence()
        continue
      if self._word == 1 and _RANGE.fullmatch(fields[0]):
        continue
      width = width or len(fields)
      self._add(fields, width, number)
    self._end_sentence()
    return self._sentences

  def _is_comment(self, line: str) -> bool:
    if line[0] != '#':
      return False
    return self._word == 1 or (not self._tokens and _COMMENT.match(line) is not None)

  def _add(self, fields: list[str], width: int, number: int) -> None:
    if self._word == 1 and not _NUMBER.fullmatch(fields[0]):
      raise UserError(
        f'{place(self._path, number)} starts with {fields[0]!r}; expected the number of a word: '
        'fix the line, or set data.format'
      )
    if len(fields) <= self._word or not fields[self._word]:
      raise UserError(f'{place(self._path, number)} has no word; fix it')
    self._tokens.append(fields[self._word])
    self._tags.append(self._tag_of(fields, width, number))
    self._numbers.append(number)


def split_columns(line: str) -> list[str]:
  """Fields separated by tabs, or by spaces where there is no tab.

  Other white space, such as no-break spaces, is part of a word.
  """
  line = line.rstrip(' \t')
  if ' ' not in line:
    return line.split('\t')
  if '\t' in line:
    return [field.strip(' ') for field in line.split('\t')]
  return [field for field in line.split(' ') if field]


def layout_of_lines(lines: Sequence[str]) -> str:
  """The layout of a file, inferred from its lines.

  Returns:
    'conllu' (ten columns), 'numbered' (columns after the number of the word in its sentence),
    'jsonl' or 'columns'.
  """
  kind = 'numbered'
  expected, most = 1, 1  # number of the next word, largest number found
  for line in lines[:_INSPECTED]:
    if not line.strip(' \t'):
      expected = 1
    elif line[0] != '#':
      if line.startswith('{"') and _is_object(line):
        return 'jsonl'
      fields = line.split('\t')
      if _RANGE.fullmatch(fields[0]):
        continue
      if fields[0] != str(expected) or len(fields) < 2:
        return 'columns'
      most, expected = max(most, expected), expected + 1
      if len(fields) == _CONLLU_COLUMNS:
        kind = 'conllu'
  return kind if most > 1 or kind == 'conllu' else 'columns'


def _column_tag_reader(layout: SentenceLayout, kind: str, path: str) -> _TagReader:
  """Reads the tags of columns without names."""
  if layout.tags != 'auto':
    try:
      column = int(layout.tags)
    except ValueError:
      raise UserError(
        f'data.tags is {layout.tags!r}; expected a column number, from 0, or -1 for the last, '
        f'since the columns of {shown(path)} have no names'
      ) from None
  else:
    column = 2 if kind == 'numbered' else -1
  word = 1 if kind == 'numbered' else 0

  def tag_of(fields: list[str], width: int, number: int) -> str:
    if kind == 'columns' and layout.tags == 'auto' and len(fields) != width:
      raise UserError(
        f'{place(path, number)} has {len(fields)} columns; expected {width} as in the first line: '
        'fix it, or set data.tags to the column of the tags'
      )
    at = column if column >= 0 else len(fields) + column
    return fields[at] if 0 <= at < len(fields) and at != word else ''

  return tag_of


def _conllu_tag_reader(layout: SentenceLayout, kind: str, path: str) -> _TagReader:
  """Reads the tags of CoNLL-U. A word without the key in MISC has the tag ''."""
  key = layout.auto if layout.tags == 'auto' else layout.tags
  if not key:
    raise UserError(
      f'{shown(path)} is CoNLL-U, which can have tags of entities in the column MISC; set '
      'data.tags to their key'
    )
  column = {'upos': 3, 'xpos': 4}.get(key.lower())
  if key.lstrip('-').isdigit():
    column = int(key)
    if not -_CONLLU_COLUMNS <= column < _CONLLU_COLUMNS:
      raise UserError(
        f'data.tags is {column}, and CoNLL-U has ten columns; expected upos, xpos or a key of the '
        'column MISC'
      )
  prefix = f'{key}='

  def tag_of(fields: list[str], width: int, number: int) -> str:
    if len(fields) != _CONLLU_COLUMNS:
      raise UserError(
        f'{place(path, number)} has {len(fields)} columns; expected the ten of CoNLL-U'
      )
    if column is not None:
      return fields[column]
    items = (item for item in fields[9].split('|') if item.startswith(prefix))
    return next((item.removeprefix(prefix) for item in items), '')

  return tag_of


def sentences_of_records(
  records: Iterable[tuple[int, dict[str, Any]]], path: str, layout: SentenceLayout
) -> list[Sentence]:
  """Sentences of objects with words and a tag per word, or with a text and entities in it.

  The words are in the field `layout.text`, else `tokens` or another usual one. A string with a list
  of tags is split at white space, any other by `offsets.word_spans`. The tags are in the field
  `layout.label`, in one of `layout.fields`, or `tags`; they are names, or integers that
  `layout.names` names. Entities are as `offsets.given_entities` reads them.

  Args:
    records: line numbers and objects.
    path: of the file, for messages.
    layout: names of the fields.

  Raises:
    UserError: there is no sentence, or an object is malformed.
  """
  sentences = [_sentence_of_record(number, record, path, layout) for number, record in records]
  if not sentences:
    raise UserError(f'{shown(path)} has no sentences; expected at least one')
  return sentences


def _sentence_of_record(
  number: int, record: dict[str, Any], path: str, layout: SentenceLayout
) -> Sentence:
  where = place(path, number)
  text, label = text_field(record, layout), tag_field(record, layout)
  if text is None:
    raise UserError(
      f'{where} has no field {layout.text!r}; its fields are {named(record)}; set data.text to one '
      'of them'
    )
  words, tags = record[text], None if label is None else record[label]
  name = str(record.get('id', ''))
  if isinstance(words, str) and (tags is None or offsets.are_entities(tags)):
    return _sentence_of_text(words, tags, where, (path, number, name))
  words = words.split() if isinstance(words, str) else words
  if not _is_list_of(words, str):
    raise UserError(
      f'{where} has no list of strings in its field {text!r}; expected one such as ["one", "two"]'
    )
  if tags is not None:
    tags = _tag_names(tags, layout, f'{where} has in its field {label!r}')
  if tags is not None and len(tags) != len(words):
    raise UserError(f'{where} has {len(tags)} tags for {len(words)} words; fix it')
  return Sentence(
    tuple(words), None if tags is None else tuple(tags), path, (number,) * len(words), name
  )


def text_field(record: Mapping[str, Any], layout: SentenceLayout) -> str | None:
  """The field of an object that has the words or the text; None where there is none."""
  names: tuple[str, ...] = (layout.text, *_TEXT_FIELDS)
  # A set may have each sentence both as text and as words.
  if layout.text == SentenceLayout.text and isinstance(record.get('text'), str):
    tags = tag_field(record, layout)
    if 'tokens' in record and (tags is None or _is_list_of(record[tags], str | int)):
      names = ('tokens', *names)
  return next((name for name in names if name in record), None)


def tag_field(record: Mapping[str, Any], layout: SentenceLayout) -> str | None:
  """The field of an object that has the tags or entities; None where there is none."""
  names = [name for name in (layout.label, *layout.fields, *_TAG_FIELDS) if name in record]
  if layout.label == SentenceLayout.label:  # a set may also have a label of the sentence
    names.sort(key=lambda name: not isinstance(record[name], list))
  return names[0] if names else None


def _sentence_of_text(
  text: str, given: tables.JsonValue, where: str, origin: tuple[str, int, str]
) -> Sentence:
  """A sentence of a text, with the tags in IOB2 of the entities in it; None: they are not known."""
  path, number, name = origin
  spans = offsets.word_spans(text)
  tags, widened = None, 0
  if given is not None:
    found = offsets.given_entities(given, text, where)
    words, widened = offsets.entities_of_words(found, spans, text, where)
    tags = tuple(tag_schemes.IOB2.encoded(words, len(spans)))
  return Sentence(
    tuple(text[start:end] for start, end in spans),
    tags,
    path,
    (number,) * len(spans),
    name,
    text=text,
    offsets=tuple(spans),
    widened=widened,
  )


def _tag_names(tags: tables.JsonValue, layout: SentenceLayout, where: str) -> list[str]:
  """The tags of a sentence, by name.

  Args:
    tags: as in the file.
    layout: has the names of integers.
    where: the start of a sentence about a mistake.
  """
  if _is_list_of(tags, str) and not layout.names:
    return list(tags)
  if not _is_list_of(tags, str | int):
    missing = isinstance(tags, list) and any(map(tables.is_missing, tags))
    raise UserError(
      f'{where} {"a tag that is null or NaN" if missing else "no list of tags"}; expected one tag '
      'per word such as ["B-PER", "O"], or integers'
    )
  if not layout.names and not layout.plain_integers:
    raise UserError(
      f'{where} integers; set data.label_names to the names of the tags in their order, such as '
      'O,B-PER,I-PER'
    )
  return [_tag_name(tag, layout, where) for tag in tags]


def _tag_name(tag: str | int, layout: SentenceLayout, where: str) -> str:
  text = str(tag)
  if not layout.names or not text.lstrip('-').isdecimal():
    return text
  if not 0 <= int(text) < len(layout.names):
    raise UserError(
      f'{where} the tag {text}; expected 0 to {len(layout.names) - 1}, as data.label_names has '
      f'{len(layout.names)} names'
    )
  return layout.names[int(text)]


def _with_names(sentence: Sentence, layout: SentenceLayout) -> Sentence:
  """A sentence of columns with the names of tags that are integers."""
  tags = [
    _tag_name(tag, layout, f'{place(sentence.path, line)} has')
    for tag, line in zip(sentence.tags or (), sentence.lines, strict=True)
  ]
  return sentence._replace(tags=tuple(tags))


def _is_list_of(value: tables.JsonValue, kind: type | types.UnionType) -> bool:
  return isinstance(value, list) and all(
    isinstance(item, kind) and not isinstance(item, bool) for item in value
  )


def plain_sentences(lines: Sequence[str], path: str) -> list[Sentence]:
  """One sentence per line, its words as `offsets.word_spans` finds them; no blank lines."""
  return [
    _sentence_of_text(line, None, '', (path, number, ''))
    for number, line in enumerate(lines, 1)
    if not line.isspace() and line
  ]


def to_columns(sentences: Iterable[Sentence], predicted: Iterable[Sequence[str]]) -> bytes:
  """Lines `word gold predicted`, a blank line after each sentence, as conlleval reads them.

  Lines are `word predicted` for sentences without tags. White space inside a word becomes _, as it
  would start another column.

  Args:
    sentences: in order.
    predicted: the tags of each sentence.
  """
  lines: list[str] = []
  for sentence, tags in zip(sentences, predicted, strict=True):
    words = ['_'.join(word.split()) or '_' for word in sentence.tokens]
    columns = [column for column in (words, sentence.tags, list(tags)) if column]
    lines += [' '.join(row) for row in zip(*columns, strict=True)]
    lines.append('')
  return '\n'.join([*lines, '']).encode()


def _is_object(line: str) -> bool:
  try:
    return isinstance(_value(line, 'it'), dict)
  except json_reader.InvalidJson:
    return False


def _value(line: str, where: str) -> tables.JsonValue:
  return tables.parse_json(line, where)


def _json_records(lines: Sequence[str], path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  for number, line in enumerate(lines, 1):
    if line.strip():
      record = _value(line, place(path, number))
      if not isinstance(record, dict):
        raise UserError(f'{place(path, number)} is not a JSON object; fix it')
      yield number, record

"""Sentences of words with a tag each: columns as of CoNLL's shared tasks, IOB2 with numbered words, CoNLL-U, JSON; and writing columns."""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from electra_jax.data.corpus.readers import named
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import tables
from electra_jax.finetune.tasks.tables import place, shown

FORMATS = ('auto', 'conll', 'conllu', 'tsv', 'jsonl', 'json')
UNTAGGED = '_'  # stands in CoNLL-U, and in test files of others, where there is no tag

_NUMBERED, _RANGE = re.compile(r'[1-9]\d*'), re.compile(r'\d+[-.]\d+')
# Where words are not numbered, a word may be a #: a comment begins a sentence and says what it is.
_COMMENT = re.compile(r'# ?(?:\S+ = |(?:id|sent_id|text|newdoc|newpar)(?: |$))')
_ID = re.compile(r'# ?(?:sent_id =|id =?) ?(\S+)')
_CONLLU_COLUMNS = 10
_LOOK = 200  # lines that layout is told from


class Sentence(NamedTuple):
  """Words, their tags, and where they are from."""

  tokens: tuple[str, ...]
  tags: tuple[str, ...] | None  # None: there are none
  path: str
  lines: tuple[int, ...]  # of each word, counted from 1
  id: str = ''
  repaired: int = 0  # tags that were others in the file, for breaking IOB2


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where words and tags are. `tags`: conll: a column counted from 0, -1 the last; conllu: upos, xpos or a MISC key; text, label: of JSON.

  `auto`: what tags is for CoNLL-U unless told; '' where it must be.
  """

  format: str = 'auto'
  tags: str = 'auto'
  text: str = 'text'
  label: str = 'label'
  auto: str = 'upos'

  def __post_init__(self):
    if self.format not in FORMATS:
      raise UserError(
        f'data.format is {self.format!r}, and tags are read from {", ".join(FORMATS[1:])}; name one of them, or auto'
      )


def read_sentences(path: str, layout: Layout) -> list[Sentence]:
  """The sentences of a file, plain or compressed, an address, or '-' for standard input.

  Layout goes by the file's name, else by what is in it: `tsv` and `txt` are columns.

  Raises:
    UserError: it cannot be read, is not UTF-8, holds no sentence, or a line is broken.
  """
  kind = tables.format_of(path) if layout.format == 'auto' else layout.format
  if kind == 'csv':
    raise UserError(
      f'{shown(path)} is CSV, which has no words with a tag each; give CoNLL columns, CoNLL-U or JSON lines'
    )
  if kind in ('jsonl', 'json'):
    return of_records(
      ((row.line, row.values) for row in tables.read_table(path, kind)), path, layout
    )
  return of_lines(tables.read_lines(path), path, layout, 'conllu' if kind == 'conllu' else None)


def of_lines(
  lines: Sequence[str], path: str, layout: Layout, kind: str | None = None
) -> list[Sentence]:
  """The sentences in lines of columns; `kind` as of `kind_of`, None to tell it from the lines."""
  kind = kind or kind_of(lines)
  if kind == 'jsonl':
    return of_records(_records(lines, path), path, layout)
  word = 0 if kind == 'columns' else 1
  tag_of = _conllu_tag(layout, path) if kind == 'conllu' else _column_tag(layout, kind, path)
  sentences, tokens, tags, numbers, name, width = [], [], [], [], '', None

  def end():
    nonlocal tokens, tags, numbers, name
    if tokens:
      sentences.append(Sentence(tuple(tokens), tuple(tags), path, tuple(numbers), name))
    tokens, tags, numbers, name = [], [], [], ''

  for number, line in enumerate(lines, 1):
    if not line.strip(' \t'):
      end()
      continue
    if line[0] == '#' and (word == 1 or (not tokens and _COMMENT.match(line))):
      name = found[1] if (found := _ID.match(line)) else name
      continue
    fields = columns(line)
    if word == 0 and fields[0] == '-DOCSTART-':
      end()
      continue
    if word == 1 and _RANGE.fullmatch(
      fields[0]
    ):  # words that are written as one, and words left out
      continue
    width = width or len(fields)
    if word == 1 and not _NUMBERED.fullmatch(fields[0]):
      raise UserError(
        f'{place(path, number)} begins with {fields[0]!r}, where words are numbered; mend it, or set data.format'
      )
    if len(fields) <= word or not fields[word]:
      raise UserError(f'{place(path, number)} has no word; mend it')
    tokens.append(fields[word])
    tags.append(tag_of(fields, width, number))
    numbers.append(number)
  end()
  if not sentences:
    raise UserError(f'{shown(path)} holds no sentences; give a file with at least one')
  found = {tag for sentence in sentences for tag in sentence.tags}
  if not found - {'', UNTAGGED}:
    return [sentence._replace(tags=None) for sentence in sentences]
  if '' not in found:
    return sentences
  if kind == 'conllu':
    return [
      sentence._replace(tags=tuple(tag or 'O' for tag in sentence.tags)) for sentence in sentences
    ]
  number = next(
    number
    for sentence in sentences
    for number, tag in zip(sentence.lines, sentence.tags, strict=True)
    if not tag
  )
  raise UserError(
    f'{place(path, number)} has no tag, where other words have one; mend it, or name the column with data.tags'
  )


def columns(line: str) -> list[str]:
  """Fields between tabs, or where there is no tab between spaces. Other white space, as of no-break spaces, is part of a word."""
  line = line.rstrip(' \t')
  if ' ' not in line:
    return line.split('\t')
  return (
    [field.strip(' ') for field in line.split('\t')]
    if '\t' in line
    else [field for field in line.split(' ') if field]
  )


def kind_of(lines: Sequence[str]) -> str:
  """'conllu' (ten columns), 'numbered' (columns after a number that counts the words of a sentence), 'jsonl', or 'columns'."""
  expected, most, kind = 1, 1, 'numbered'
  for line in lines[:_LOOK]:
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


def _column_tag(layout, kind, path):
  """A function of a row's fields, the first row's number of fields, and the line: the tag, '' where there is none."""
  if layout.tags != 'auto':
    try:
      column = int(layout.tags)
    except ValueError:
      raise UserError(
        f'data.tags is {layout.tags!r}, and {shown(path)} has columns without names; count them from 0, -1 for the last'
      ) from None
  else:
    column = 2 if kind == 'numbered' else -1
  word = 1 if kind == 'numbered' else 0

  def tag(fields, width, number):
    if kind == 'columns' and layout.tags == 'auto' and len(fields) != width:
      raise UserError(
        f'{place(path, number)} has {len(fields)} columns, and the first word {width}; mend it, or name the column with data.tags'
      )
    at = column if column >= 0 else len(fields) + column
    return fields[at] if 0 <= at < len(fields) and at != word else ''

  return tag


def _conllu_tag(layout, path):
  """The same for CoNLL-U. A word that lacks the key of MISC has the tag O, unless all do."""
  key = layout.auto if layout.tags == 'auto' else layout.tags
  if not key:
    raise UserError(
      f'{shown(path)} is CoNLL-U, which has tags of entities in the column MISC if at all; name the key with data.tags'
    )
  column = {'upos': 3, 'xpos': 4}.get(key.lower())
  if key.lstrip('-').isdigit():
    column = int(key)
    if not -_CONLLU_COLUMNS <= column < _CONLLU_COLUMNS:
      raise UserError(
        f'data.tags is {column}, and CoNLL-U has ten columns; name upos, xpos or a key of the column MISC'
      )
  prefix = f'{key}='

  def tag(fields, width, number):
    if len(fields) != _CONLLU_COLUMNS:
      raise UserError(
        f'{place(path, number)} has {len(fields)} columns, and CoNLL-U has ten; mend it'
      )
    if column is not None:
      return fields[column]
    return next(
      (item.removeprefix(prefix) for item in fields[9].split('|') if item.startswith(prefix)), ''
    )

  return tag


def of_records(
  records: Iterable[tuple[int, dict[str, Any]]], path: str, layout: Layout
) -> list[Sentence]:
  """Sentences of JSON objects with a list of words and one of tags, or none; words may be text, cut at white space.

  The words are under `layout.text`, else `tokens`; tags under `layout.label`, else `tags`.
  """
  sentences = []
  for number, record in records:
    where = place(path, number)
    text = next((name for name in (layout.text, 'tokens', 'text') if name in record), None)
    if text is None:
      raise UserError(
        f'{where} has no field {layout.text!r}; its fields are {named(record)}; name one with data.text'
      )
    label = next((name for name in (layout.label, 'tags') if name in record), None)
    tokens, tags = record[text], record.get(label)
    tokens = tokens.split() if isinstance(tokens, str) else tokens
    for name, value in ((text, tokens), (label, tags)):
      if not (isinstance(value, list) and all(isinstance(item, str) for item in value)) and not (
        name == label and value is None
      ):
        raise UserError(
          f'{where} has no list of texts in its field {name!r}; give one, as in ["one", "two"]'
        )
    if tags is not None and len(tags) != len(tokens):
      raise UserError(f'{where} has {len(tags)} tags for {len(tokens)} words; mend it')
    name = record.get('id', '')
    sentences.append(
      Sentence(
        tuple(tokens),
        None if tags is None else tuple(tags),
        path,
        (number,) * len(tokens),
        str(name),
      )
    )
  if not sentences:
    raise UserError(f'{shown(path)} holds no sentences; give a file with at least one')
  return sentences


def plain(lines: Sequence[str], path: str) -> list[Sentence]:
  """A sentence a line, its words between white space. Blank lines are none."""
  found = [(number, line.split()) for number, line in enumerate(lines, 1)]
  return [
    Sentence(tuple(words), None, path, (number,) * len(words)) for number, words in found if words
  ]


def to_columns(sentences: Iterable[Sentence], predicted: Iterable[Sequence[str]]) -> bytes:
  """Lines `word gold predicted`, a blank one after each sentence, as conlleval reads them; `word predicted` where there are no tags.

  White space inside a word becomes _, as it would begin another column.
  """
  lines = []
  for sentence, tags in zip(sentences, predicted, strict=True):
    words = ['_'.join(word.split()) or '_' for word in sentence.tokens]
    lines += [
      ' '.join(row) for row in zip(*filter(None, (words, sentence.tags, list(tags))), strict=True)
    ] + ['']
  return '\n'.join([*lines, '']).encode()


def _is_object(line):
  try:
    return isinstance(json.loads(line), dict)
  except ValueError:
    return False


def _records(lines, path):
  for number, line in enumerate(lines, 1):
    if line.strip():
      if not _is_object(line):
        raise UserError(f'{place(path, number)} is not a JSON object; mend it')
      yield number, json.loads(line)

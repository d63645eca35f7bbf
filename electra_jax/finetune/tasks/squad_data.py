"""Questions on contexts: SQuAD's JSON, prepared TFDS datasets, and tables of one's own; every answer found in its context."""

import json
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from electra_jax import file_access
from electra_jax.data.corpus import readers
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import prepared, tables

# Of the folder that SQuAD is kept in.
VERSIONS = {'squad1': 'v1.1', 'squad2': 'v2.0'}
_TFDS = {'train': 'train', 'dev': 'validation', 'test': 'test'}


class Columns(NamedTuple):
  """Names of a table's columns."""

  question: str = 'question'
  context: str = 'context'
  answers: str = 'answers'


class Question(NamedTuple):
  """A question on a text.

  Attributes:
    id: of the data, or its number.
    answers: any of them is right; () where the context has no answer, None where nobody says.
    starts: of each answer, its first character in the context.
    mended: how many of the starts were told otherwise.
  """

  id: str
  question: str
  context: str
  answers: tuple[str, ...] | None
  starts: tuple[int, ...]
  mended: int


def places(name: str, data: Any) -> dict[str, str]:
  """Where the parts of a task are: a file or `tfds:NAME;split=SPLIT` for each of train, dev and test that there is.

  Args:
    name: squad1, squad2 or span.
    data: config.data: source, a folder with files named as `train-v1.1.json` or `train.json`, or `tfds:squad`; and train, dev
      and test, which go first.

  Raises:
    UserError: the source has none of the files, or several for one part.
  """
  named = {
    split: getattr(data, split) for split in ('train', 'dev', 'test') if getattr(data, split, '')
  }
  source = getattr(data, 'source', '')
  if not source:
    found = {}
  elif name not in VERSIONS:
    raise UserError(
      f'the task {name!r} reads files of yours: name them in config.data.train and config.data.dev, and leave '
      'config.data.source empty'
    )
  elif source.startswith(prepared.PREFIX):
    location, semicolon, options = source.partition(';')
    there = prepared.splits(source)
    found = {
      split: f'{location};split={theirs}{semicolon}{options}'
      for split, theirs in _TFDS.items()
      if theirs in there
    }
  else:
    found = {split: file for split in _TFDS if (file := _in_folder(source, split, VERSIONS[name]))}
    if not found:
      raise UserError(
        f'{source!r} holds no train-{VERSIONS[name]}.json or dev-{VERSIONS[name]}.json; name the folder that does, '
        'or files in config.data.train and config.data.dev'
      )
  return found | named


def read_questions(
  place: str, table_format: str, columns: Columns, labelled: bool
) -> list[Question]:
  """The questions of a file or a prepared dataset, in order.

  Args:
    place: a file ('-': standard input) or `tfds:NAME;split=SPLIT`.
    table_format: auto, tsv, csv, jsonl or json.
    columns: of a table. Its answers are a text, in JSON also a list of texts, or both lists of SQuAD, `text` and `answer_start`.
      A column `answer_start` says where they begin, else it is where they first occur. A column `id` names the questions.
    labelled: questions without answers are ones that have none; else, where a table has no such column, nobody says.

  Raises:
    UserError: the file cannot be read or is no such table, an answer is not in its context, or two questions have the same id.
  """
  if place.startswith(prepared.PREFIX):
    return _checked(_of_rows(prepared.read(place), place, columns, labelled), place)
  text = tables.read_text(place)
  found_format = tables.format_of(place) if table_format == 'auto' else table_format
  document = _document(text, place, found_format)
  if document is not None:
    return _checked(_of_document(document, place), place)
  if found_format not in tables.FORMATS:
    first = text.split('\n', 1)[0].removesuffix('\r').split('\t')
    if text.lstrip().startswith('{'):
      found_format = 'jsonl'
    elif {columns.question, columns.context} <= set(first):
      found_format = 'tsv'
    elif len(first) == 2 and found_format in ('', 'txt'):
      rows = tables.parse_table(text, place, 'tsv', columns=columns[:2], header=False)
      return _checked(_of_rows(rows, place, columns, False), place)
    else:
      raise UserError(
        f'{tables.shown(place)} is neither a table with the columns {columns.question!r} and {columns.context!r}, '
        'nor JSON, nor lines with a question, a tab and a context; give one of them'
      )
  rows = tables.parse_table(text, place, found_format)
  if found_format in ('tsv', 'csv'):  # the header is what lacks a column; of JSON each row may
    fields = ('data.text', 'data.pair', 'data.label')
    for column, field in list(zip(columns, fields, strict=True))[: 3 if labelled else 2]:
      tables.need([column], list(rows[0].values), place, field=field)
  return _checked(_of_rows(rows, place, columns, labelled), place)


def _in_folder(folder, split, version):
  """The file of a part, or None."""
  for name in (f'{split}-{version}.json', f'{split}.json'):
    for suffix in ('', *file_access.COMPRESSIONS):
      if file_access.exists(path := file_access.join(folder, name + suffix)):
        return path
  found = file_access.glob(file_access.join(folder, f'{split}-{version}*.json*'))
  if len(found) > 1:
    raise UserError(
      f'{folder!r} holds {readers.named(found)}; name one of them in config.data.{split}'
    )
  return found[0] if found else None


def _document(text, place, found_format):
  """SQuAD's JSON, where a text is that; None for tables."""
  if found_format not in ('json', '', 'txt') or not text.lstrip().startswith('{'):
    return None
  try:
    document = json.loads(text)
  except ValueError as error:
    if found_format != 'json':  # JSON lines, may be
      return None
    line = getattr(error, 'lineno', 1)
    raise UserError(
      f'{tables.place(place, line)} is not JSON ({file_access.reason(error)}); mend it'
    ) from None
  if isinstance(document.get('data'), list):
    return document['data']
  if found_format == 'json':
    raise UserError(
      f'{tables.shown(place)} is not as SQuAD has it: it has no list "data"; set data.format=jsonl where each line is '
      'an object'
    )
  return None


def _of_document(articles, place):
  for i, article in enumerate(articles, 1):
    where, j, k = f'article {i} of {tables.shown(place)}', 0, 0
    try:
      for j, paragraph in enumerate(article['paragraphs'], 1):  # noqa: B007 - read in `except`
        k, context = 0, _text(paragraph['context'])
        for k, question in enumerate(paragraph['qas'], 1):  # noqa: B007 - read in `except`
          answers = question.get('answers')
          if question.get('is_impossible'):
            answers = []
          name = str(question['id'])
          which = f'the question {name!r} of {tables.shown(place)}'
          yield _question(name, _text(question['question']), context, answers, None, which)
    except (KeyError, TypeError, AttributeError) as error:
      within = ''.join(
        f'{name} {number} of ' for name, number in (('question', k), ('paragraph', j)) if number
      )
      lacks = (
        f'no {error.args[0]!r} there'
        if isinstance(error, KeyError)
        else 'a value is of another kind'
      )
      raise UserError(f'{within}{where} is not as SQuAD has it: {lacks}; mend it') from None


def _text(value):
  if not isinstance(value, str):
    raise TypeError
  return value


def _of_rows(rows: Iterable[tables.Row], place, columns, labelled):
  for number, row in enumerate(rows, 1):
    values = row.values
    tables.need(columns[:2], list(values), place, row.line)
    answers = values.get(columns.answers, [] if labelled else None)
    if answers is None and columns.answers in values or answers == '':
      answers = []
    starts = values.get('answer_start')
    name = values.get('id')
    yield _question(
      str(number if name in (None, '') else name),
      tables.text_value(place, row, columns.question),
      tables.text_value(place, row, columns.context),
      answers,
      None if starts == '' else starts,
      'the question ' + (f'{name!r} ' if name else '') + f'of {tables.place(place, row.line)}',
    )


def _question(name, question, context, answers, starts, which):
  """A question whose answers, in any of the ways to write them, are found in its context; `which` it is, for a complaint."""
  if answers is None:
    return Question(name, question, context, None, (), 0)
  if isinstance(answers, dict):  # SQuAD by columns, as TFDS has it
    answers, starts = answers.get('text', []), answers.get('answer_start', starts)
  if not isinstance(answers, list):
    answers = [answers]
  if not isinstance(starts, list):
    starts = [starts] * len(answers)
  if len(starts) != len(answers):
    raise UserError(
      f'{which} has {len(answers)} answers and {len(starts)} places where they start; mend it'
    )
  texts, found, mended = [], [], 0
  for answer, start in zip(answers, starts, strict=True):
    if isinstance(answer, dict):
      answer, start = answer.get('text'), answer.get('answer_start', start)
    if isinstance(answer, int | float):
      answer = json.dumps(answer)
    if not isinstance(answer, str):
      raise UserError(f'{which} has an answer that is no text; mend it')
    if not answer.strip():
      continue
    try:
      told = None if start is None else int(start)
    except (ValueError, TypeError):
      raise UserError(
        f'{which} has an answer that starts at {start!r}, which is no number; mend it'
      ) from None
    where = find(context, answer, told)
    if where is None:
      answer = answer.strip()
      where = find(context, answer, told)
    if where is None:
      raise UserError(
        f'{which} has the answer {textwrap.shorten(answer, 80, placeholder="...")!r}, which is not in its context; '
        'mend it, letter by letter as the context has it'
      )
    texts.append(answer)
    found.append(where)
    mended += told is not None and told != where
  return Question(name, question, context, tuple(texts), tuple(found), mended)


def find(context: str, answer: str, start: int | None) -> int | None:
  """Where an answer is in its context: at `start`, or as near to it as it occurs, or at first; None where it is not."""
  if start is None or start < 0 or not answer:
    where = context.find(answer)
    return where if where >= 0 else None
  if context.startswith(answer, start):
    return start
  before, after = context.rfind(answer, 0, start + len(answer)), context.find(answer, start)
  near = [where for where in (before, after) if where >= 0]
  return min(near, key=lambda where: abs(where - start)) if near else None


def _checked(questions: Iterable[Question], place: str) -> list[Question]:
  found, seen = list(questions), set()
  for question in found:
    if question.id in seen:
      raise UserError(
        f'{tables.shown(place)} has two questions with the id {question.id!r}; give each its own'
      )
    seen.add(question.id)
  if not found:
    raise UserError(f'{tables.shown(place)} holds no questions; give one that does')
  return found


def check_answers(questions: Sequence[Question], place: str, each: bool) -> None:
  """Raises UserError for a question of which nobody says the answer, or, where `each` must have one, without it; and if none has."""
  for question in questions:
    which = f'the question {question.id!r} of {tables.shown(place)}'
    if question.answers is None:
      raise UserError(
        f'{which} says nothing of answers; give "answers", empty where there are none'
      )
    if each and not question.answers:
      raise UserError(f'{which} has no answer, and squad1 has none such; use the task squad2')
  if not any(question.answers for question in questions):
    raise UserError(f'no question of {tables.shown(place)} has an answer; give some that do')

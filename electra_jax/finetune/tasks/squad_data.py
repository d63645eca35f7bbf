"""Questions on contexts: SQuAD's JSON, prepared TFDS datasets, and tables.

Every answer is located in its context.
"""

import json
import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from electra_jax import file_access, json_reader
from electra_jax.config.finetuning import TaskDataConfig
from electra_jax.data.corpus import readers
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import arrow_tables, prepared, tables

_BAD_SHOWN = 10  # answers in one message
_TFDS_SPLITS = {'train': 'train', 'dev': 'validation', 'test': 'test'}


class QuestionColumns(NamedTuple):
  """Names of a table's columns."""

  question: str = 'question'
  context: str = 'context'
  answers: str = 'answers'

  def among(self, present: Collection[str]) -> 'QuestionColumns':
    """These columns, or those of SQuAD instead of defaults of config.data that a table lacks."""
    usual = {TaskDataConfig.text: ('question',), TaskDataConfig.label: ('answers', 'answer')}
    found = (
      next((other for other in (name, *usual.get(name, ())) if other in present), name)
      for name in self
    )
    return QuestionColumns(*found)


class Question(NamedTuple):
  """A question on a text.

  Attributes:
    id: in the data, or its number.
    question: its text.
    context: the text that has the answer.
    answers: the correct answers; () where the context has none, None where they are not known.
    starts: the first character of each answer in the context; -1 where it is not in it.
    moved: number of answers that start elsewhere than the data states.
    loose: number of answers whose white space or Unicode composition differs from the context's.
    line: of the table that it is from, counted from 1; 0 for others.
  """

  id: str
  question: str
  context: str
  answers: tuple[str, ...] | None
  starts: tuple[int, ...]
  moved: int
  loose: int = 0
  line: int = 0

  @property
  def bad_answers(self) -> tuple[str, ...]:
    """The answers that are not in the context."""
    pairs = zip(self.answers or (), self.starts, strict=True) if self.starts else ()
    return tuple(answer for answer, start in pairs if start < 0)

  def without_bad_answers(self) -> 'Question | None':
    """The question with the answers that are in its context; None where none of several is."""
    kept = [i for i, start in enumerate(self.starts) if start >= 0]
    if len(kept) == len(self.starts):
      return self
    answers = tuple((self.answers or ())[i] for i in kept)
    starts = tuple(self.starts[i] for i in kept)
    return self._replace(answers=answers, starts=starts) if kept else None


def question_files(name: str, version: str, data: TaskDataConfig) -> dict[str, str]:
  """Where the splits of a task are: a file or `tfds:NAME;split=SPLIT` for each that exists.

  Args:
    name: of the task.
    version: of SQuAD, as file names have it: 'v1.1' or 'v2.0'; '' for user tables.
    data: config.data: source, a folder with files named `train-v1.1.json` or `train.json`, or
      `tfds:squad`; and train, dev and test, which have precedence.

  Raises:
    UserError: the source has none of the files, or several for one split.
  """
  named = {split: path for split in _TFDS_SPLITS if (path := getattr(data, split))}
  if not data.source:
    return named
  if not version:
    return tables.split_files(name, data)
  if data.source.startswith(prepared.PREFIX):
    location, semicolon, options = data.source.partition(';')
    there = prepared.prepared_splits(data.source)
    found = {
      split: f'{location};split={theirs}{semicolon}{options}'
      for split, theirs in _TFDS_SPLITS.items()
      if theirs in there
    }
    return found | named
  found = {
    split: path for split in _TFDS_SPLITS if (path := _in_folder(data.source, split, version))
  }
  if not found:
    raise UserError(
      f'{data.source!r} has no train-{version}.json or dev-{version}.json; set config.data.source '
      'to the folder of these files, or config.data.train and config.data.dev to files'
    )
  return found | named


def _in_folder(folder: str, split: str, version: str) -> str | None:
  """The file of a split; None where there is none."""
  for name in (f'{split}-{version}.json', f'{split}.json'):
    for suffix in ('', *file_access.COMPRESSIONS):
      path = file_access.join(folder, name + suffix)
      if file_access.exists(path):
        return path
  pattern = file_access.escape(folder)
  found = file_access.glob(file_access.join(pattern, f'{split}-{version}*.json*'))
  if len(found) > 1:
    raise UserError(
      f'{folder!r} has {readers.named(found)}; set config.data.{split} to one of them'
    )
  return found[0] if found else None


#### Reading ####


def read_questions(
  place: str,
  table_format: str,
  columns: QuestionColumns,
  labeled: bool,
  found_columns: list[QuestionColumns] | None = None,
) -> list[Question]:
  """The questions of a file or a prepared dataset, in order.

  Answers that are not in their contexts are kept, see `check_answers`.

  Args:
    place: a file ('-': standard input) or `tfds:NAME;split=SPLIT`.
    table_format: auto, tsv, csv, jsonl or json.
    columns: of a table. Its answers are a text, in JSON also a list of texts, or the two lists of
      SQuAD, `text` and `answer_start`. A column `answer_start` has the answers' first characters;
      otherwise the first occurrence is used. A column `id` names the questions.
    labeled: whether questions without answers have none; else, where a table has no column of
      answers, they are not known.
    found_columns: receives the columns of a table that are read.

  Raises:
    UserError: the file cannot be read or is not such a table, or two questions have the same id.
  """
  if place.startswith(prepared.PREFIX):
    rows = prepared.read_prepared(place)
    return _checked(_of_rows(rows, place, columns, labeled), place)
  if arrow_tables.is_arrow_data(place, table_format):
    return _of_table(tables.read_arrow(place), place, columns, labeled, found_columns)
  text = tables.read_file_text(place)
  found_format = tables.format_from_name(place) if table_format == 'auto' else table_format
  document = _squad_document(text, place, found_format)
  if document is not None:
    return _checked(_of_document(document, place), place)
  if found_format not in tables.FORMATS:
    first = tables.first_fields(text)
    if text.lstrip().startswith('{'):
      found_format = 'jsonl'
    elif set(columns.among(first)[:2]) <= set(first):
      found_format = 'tsv'
    elif len(first) == 2 and found_format in ('', 'txt'):
      rows = tables.parse_table(text, place, 'tsv', columns=columns[:2], header=False)
      return _checked(_of_rows(rows, place, columns, labeled=False), place)
    else:
      raise UserError(
        f'{tables.shown(place)} has no known format; expected a table with the columns '
        f'{columns.question!r} and {columns.context!r}, JSON, or lines of a question and a context '
        'separated by a tab'
      )
  rows = tables.parse_table(text, place, found_format)
  if found_format in ('tsv', 'csv'):  # rows of JSON are checked one by one
    fields = ('data.text', 'data.pair', 'data.label')
    known = columns.among(rows[0].values)
    for column, field in list(zip(known, fields, strict=True))[: 3 if labeled else 2]:
      tables.require_columns([column], list(rows[0].values), place, field=field)
  return _of_table(rows, place, columns, labeled, found_columns)


def _of_table(
  rows: Sequence[tables.Row],
  place: str,
  columns: QuestionColumns,
  labeled: bool,
  found_columns: list[QuestionColumns] | None,
) -> list[Question]:
  if found_columns is not None:
    found_columns.append(columns.among(rows[0].values))
  return _checked(_of_rows(rows, place, columns, labeled), place)


def _squad_document(text: str, place: str, found_format: str) -> list[Any] | None:
  """The articles of a text that is SQuAD's JSON; None for tables."""
  if found_format not in ('json', '', 'txt') or not text.lstrip().startswith('{'):
    return None
  try:
    document = tables.parse_json(text, tables.shown(place))
  except json_reader.InvalidJson as error:
    if found_format != 'json':  # it may be JSON lines
      return None
    raise json_reader.InvalidJson(
      tables.place(place, error.line), error.reason, 'fix it', error.line
    ) from None
  articles = document.get('data')
  if isinstance(articles, list):
    return articles
  if found_format == 'json':
    raise UserError(
      f'{tables.shown(place)} is not SQuAD\'s JSON, as it has no list "data"; set '
      'data.format=jsonl if each line is an object'
    )
  return None


def _of_document(articles: Sequence[Any], place: str) -> Iterator[Question]:
  for i, article in enumerate(articles, 1):
    where = f'article {i} of {tables.shown(place)}'
    j, k = 0, 0  # paragraph and question, for the message of an error
    try:
      for j, paragraph in enumerate(article['paragraphs'], 1):  # noqa: B007 - read in `except`
        k, context = 0, _checked_text(paragraph['context'])
        for k, entry in enumerate(paragraph['qas'], 1):  # noqa: B007 - read in `except`
          yield _of_entry(entry, context, place)
    except (KeyError, TypeError, AttributeError) as error:
      counted = (('question', k), ('paragraph', j))
      within = ''.join(f'{name} {number} of ' for name, number in counted if number)
      why = 'a value has another type'
      if isinstance(error, KeyError):
        why = f'it lacks {error.args[0]!r}'
      raise UserError(f"{within}{where} does not follow SQuAD's format: {why}; fix it") from None


def _of_entry(entry: Mapping[str, Any], context: str, place: str) -> Question:
  """A question of SQuAD's JSON."""
  answers = [] if entry.get('is_impossible') else entry.get('answers')
  name = str(entry['id'])
  which = f'the question {name!r} of {tables.shown(place)}'
  return _located(name, _checked_text(entry['question']), context, _Given(answers, None, which))


def _checked_text(value: tables.JsonValue) -> str:
  if not isinstance(value, str):
    raise TypeError
  return value


def _of_rows(
  rows: Iterable[tables.Row], place: str, columns: QuestionColumns, labeled: bool
) -> Iterator[Question]:
  for number, row in enumerate(rows, 1):
    values = row.values
    names = columns.among(values)
    tables.require_columns(names[:2], list(values), place, row.line)
    answers = values.get(names.answers, [] if labeled else None)
    if names.answers in values and (answers == '' or not isinstance(answers, str)):
      answers = [] if tables.is_missing(answers) else answers
    starts = values.get('answer_start')
    name = values.get('id')
    quoted = f'{name!r} ' if name else ''
    which = f'the question {quoted}of {tables.place(place, row.line)}'
    located = _located(
      str(number if name in (None, '') else name),
      tables.text_value(place, row, names.question),
      tables.text_value(place, row, names.context),
      _Given(answers, None if starts == '' else starts, which),
    )
    yield located._replace(line=row.line)


#### Answers in their contexts ####


class _Given(NamedTuple):
  """Answers as a file has them.

  Attributes:
    answers: None where they are not known.
    starts: of the answers, in one of several forms.
    which: the question, for messages.
  """

  answers: Any
  starts: Any
  which: str


def _located(name: str, question: str, context: str, given: _Given) -> Question:
  """A question with its answers located in its context."""
  answers, starts, which = given
  if answers is None:
    return Question(name, question, context, None, (), 0)
  if isinstance(answers, dict):  # SQuAD by columns, as in TFDS
    answers, starts = answers.get('text', []), answers.get('answer_start', starts)
  if not isinstance(answers, list):
    answers = [answers]
  if not isinstance(starts, list):
    starts = [starts] * len(answers)
  if len(starts) != len(answers):
    raise UserError(f'{which} has {len(answers)} answers and {len(starts)} of their starts; fix it')
  texts: list[str] = []
  found: list[int] = []
  moved = loose = 0
  for answer, start in zip(answers, starts, strict=True):
    text, stated = _answer_and_start(answer, start, which)
    if not text.strip():
      continue
    where = answer_position(context, text, stated)
    if where is None:
      text = text.strip()
      where = answer_position(context, text, stated)
    if where is None and (span := equivalent_span(context, text, stated)):
      where, text = span[0], context[slice(*span)]
      loose += 1
    texts.append(text)
    found.append(-1 if where is None else where)
    moved += stated is not None and where is not None and stated != where
  return Question(name, question, context, tuple(texts), tuple(found), moved, loose)


def _answer_and_start(
  answer: tables.JsonValue, start: tables.JsonValue, which: str
) -> tuple[str, int | None]:
  """The text of an answer and its start as stated; None for none."""
  if isinstance(answer, dict):
    answer, start = answer.get('text'), answer.get('answer_start', start)
  if isinstance(answer, int | float) and not tables.is_missing(answer):
    answer = json.dumps(answer)
  if not isinstance(answer, str):
    raise UserError(f'{which} has an answer that is not text; fix it')
  if not answer.strip():
    return answer, None
  try:
    return answer, None if start is None else int(start)
  except (ValueError, TypeError, OverflowError):
    raise UserError(
      f'{which} has an answer that starts at {start!r}; expected a character number'
    ) from None


def answer_position(context: str, answer: str, start: int | None) -> int | None:
  """Where an answer is in its context.

  Args:
    context: the text.
    answer: a part of it.
    start: where the data states that it starts; None for no statement.

  Returns:
    `start`, or the occurrence closest to it, or the first occurrence; None for no occurrence.
  """
  if start is None or start < 0 or not answer:
    where = context.find(answer)
    return where if where >= 0 else None
  if context.startswith(answer, start):
    return start
  before, after = context.rfind(answer, 0, start + len(answer)), context.find(answer, start)
  near = [where for where in (before, after) if where >= 0]
  return min(near, key=lambda where: abs(where - start)) if near else None


def equivalent_span(context: str, answer: str, start: int | None) -> tuple[int, int] | None:
  """Where an answer is in its context up to white space and Unicode composition.

  Texts are compared in the canonical decomposition (NFD), in which composed and decomposed
  characters are equal, with each run of white space as one space.

  Args:
    context: the text.
    answer: a part of it.
    start: where the data states that it starts; None for no statement.

  Returns:
    The first character, and the one after the last, of the occurrence closest to `start`, or of the
    first one; None for no occurrence. Characters are never divided.
  """
  text, sources = _decomposed(context)
  wanted = _decomposed(answer)[0].strip()
  found: list[tuple[int, int]] = []
  at = text.find(wanted) if wanted else -1
  while at >= 0:
    end = at + len(wanted)
    before = sources[at - 1] if at else -1
    after = sources[end] if end < len(text) else len(context)
    if before != sources[at] and after != sources[end - 1]:
      marks = end < len(text) and unicodedata.combining(text[end])
      if not marks:
        found.append((sources[at], after if after < len(context) else len(context)))
    at = text.find(wanted, at + 1)
  if not found:
    return None
  first, last = min(found, key=lambda span: abs(span[0] - (start or 0)))
  return first, first + len(context[first:last].rstrip())


def _decomposed(text: str) -> tuple[str, list[int]]:
  """A text in NFD with single spaces, and the index in `text` of each of its characters."""
  pairs: list[tuple[str, int]] = []
  marks: list[tuple[int, str, int]] = []  # since the last character that is no mark
  for i, character in enumerate(text):
    if character.isspace():
      character = ' '
    for part in unicodedata.normalize('NFD', character):
      if order := unicodedata.combining(part):
        marks.append((order, part, i))
        continue
      pairs += [(mark, at) for _, mark, at in sorted(marks, key=lambda mark: mark[0])]
      marks = []
      if part != ' ' or not pairs or pairs[-1][0] != ' ':
        pairs.append((part, i))
  pairs += [(mark, at) for _, mark, at in sorted(marks, key=lambda mark: mark[0])]
  return ''.join(part for part, _ in pairs), [at for _, at in pairs]


#### Checks ####


def _checked(questions: Iterable[Question], place: str) -> list[Question]:
  found = list(questions)
  seen: set[str] = set()
  for question in found:
    if question.id in seen:
      raise UserError(
        f'{tables.shown(place)} has two questions with the id {question.id!r}; make the ids unique'
      )
    seen.add(question.id)
  if not found:
    raise UserError(f'{tables.shown(place)} has no questions; expected at least one')
  return found


def listed_bad_answers(questions: Iterable[Question]) -> str:
  """The first answers that are not in their contexts, with their questions, and how many others."""
  found = [
    f'{textwrap.shorten(answer, 60, placeholder="...")!r} of the question {question.id!r}'
    + (f' on line {question.line}' if question.line else '')
    for question in questions
    for answer in question.bad_answers
  ]
  more = f' and {len(found) - _BAD_SHOWN:,} more' if len(found) > _BAD_SHOWN else ''
  return ', '.join(found[:_BAD_SHOWN]) + more


def check_answers(
  questions: Sequence[Question], place: str, each: bool, drop: bool = False
) -> None:
  """Checks the answers of labeled questions.

  Args:
    questions: of a split.
    place: which they were read from, for messages.
    each: whether each question must have an answer.
    drop: whether answers may be missing in their contexts.

  Raises:
    UserError: the answers of a question are not known, some are not in their contexts, it has none
      though `each` requires one, or no question has an answer.
  """
  bad = sum(len(question.bad_answers) for question in questions)
  if bad and not drop:
    what = 'an answer that is not in its context' if bad == 1 else f'{bad:,} answers that are not'
    where = '' if bad == 1 else ' in their contexts'
    raise UserError(
      f'{tables.shown(place)} has {what}{where}: '
      f'{listed_bad_answers(questions)}; expected the text of the context, up to white space and '
      'Unicode composition: fix them, or set data.bad_answers=drop to leave them out of training'
    )
  for question in questions:
    which = f'the question {question.id!r} of {tables.shown(place)}'
    if question.answers is None:
      raise UserError(f'{which} has no "answers"; expected a list, empty for no answer')
    if each and not question.answers:
      raise UserError(f'{which} has no answer, which squad1 requires; use --config.task=squad2')
  if not any(question.answers for question in questions):
    raise UserError(f'no question of {tables.shown(place)} has an answer; expected some')

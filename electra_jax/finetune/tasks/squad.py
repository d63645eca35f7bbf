"""Questions whose answers are spans of a text: SQuAD 1.1 and 2.0, and user tables (`span`)."""

import collections
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from electra_jax.config.finetuning import TaskDataConfig
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune.report_blocks import Blocks
from electra_jax.finetune.tasks import question_reports, squad_data, squad_metrics
from electra_jax.finetune.tasks.probabilities import sigmoid
from electra_jax.finetune.tasks.squad_data import Question, QuestionColumns
from electra_jax.finetune.tasks.task import (
  ChooseDev,
  Features,
  Options,
  Outputs,
  SplitKey,
  TaskDefaults,
  TaskRecipe,
  parted,
  plain_text,
)
from electra_jax.finetune.tasks.text_rows import window_starts
from electra_jax.finetune.tasks.text_task import no_data

# Tokens of a context that a row must have room for. With fewer, a text would become hundreds of
# rows.
SMALLEST_WINDOW = 8
_SETTINGS = ('max_question', 'stride', 'max_answer', 'n_best')
_DESCRIBED = ('name', 'unanswerable', *_SETTINGS, 'threshold')


class Window(NamedTuple):
  """The part of the context that a row has.

  Attributes:
    start: the row's first token of the context.
    spans: int32 [tokens, 2], the characters of the context that each token stands for.
  """

  start: int
  spans: np.ndarray


class Answer(NamedTuple):
  """A span of a context, `context[start:end]`, with its log-probability."""

  text: str
  start: int
  end: int
  score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquadSpec:
  """A kind of question answering; see `task.TaskSpec`.

  Attributes:
    version: of SQuAD, as file names have it; '' for user tables.
    tfds: the TFDS dataset, for messages.
    unanswerable: whether there may be questions without an answer; None: as the data has them.
    each_has_answer: whether each question must have an answer.
  """

  version: str = ''
  tfds: str = ''
  unanswerable: bool | None = None
  each_has_answer: bool = False
  head: str = 'span'
  fixed_labels: bool = False
  published_metric: str = ''

  def open(self, name: str, data: TaskDataConfig, options: Options = None) -> 'SquadTask':
    """Opens the task with the data of a config.

    Args:
      name: of the task.
      data: config.data: source, train, dev and test as `squad_data.question_files` reads them,
        format; text, pair (context where it is '') and label, the columns of a user table;
        max_question, stride, max_answer and n_best.
      options: none.

    Raises:
      UserError: there is no data, a setting is below 1, or the user tables are malformed.
    """
    files = squad_data.question_files(name, self.version, data)
    if not self.version and 'train' not in files:
      raise UserError(f'the task {name!r} has no training data; set config.data.train to a file')
    if not files:
      raise UserError(
        f'the task {name!r} has no data; set config.data.source to its folder, or to {self.tfds}'
      )
    return self._on_files(name, data, files)

  def define(
    self, name: str, data: TaskDataConfig, options: Options, labels: tuple[str, ...]
  ) -> 'SquadTask':
    """The task for a model of another program; there are no labels. See `task.TaskSpec`."""
    has_data = any((data.source, data.train, data.dev, data.test))
    files = squad_data.question_files(name, self.version, data) if has_data else {}
    return self._on_files(name, data, files)

  def restore(self, description: Mapping[str, Any], options: Options = None) -> 'SquadTask':
    """The task of a description, without data."""
    fields = {name: description[name] for name in _DESCRIBED}
    fields['answer_units'] = description.get('answer_units', 'words')
    columns = QuestionColumns(*description['columns'])
    return SquadTask(spec=self, columns=columns, splits=(), load=None, **fields)

  def _on_files(self, name: str, data: TaskDataConfig, files: Mapping[str, str]) -> 'SquadTask':
    """The task with the splits that are in these files."""
    settings = {field: getattr(data, field) for field in _SETTINGS}
    for field, value in settings.items():
      if value < 1:
        raise UserError(f'config.data.{field} is {value}; expected at least 1')
    columns = QuestionColumns()
    if not self.version:
      columns = QuestionColumns(data.text, data.pair or 'context', data.label)
    cache: dict[str, list[Question]] = {}
    found: dict[str, str] = {}

    def load(split: str) -> list[Question]:
      if split not in cache:
        labeled = split != 'test'
        read: list[QuestionColumns] = []
        questions = squad_data.read_questions(files[split], data.format, columns, labeled, read)
        if labeled:
          drop = data.bad_answers == 'drop'
          squad_data.check_answers(questions, files[split], self.each_has_answer, drop)
        if split == 'train' and read:
          names = zip(('question', 'context', 'answers'), read[0], strict=True)
          found['columns'] = 'columns: ' + ', '.join(f'{what} {name!r}' for what, name in names)
        if listed := squad_data.listed_bad_answers(questions):
          found[split] = f'{split}: answers that are not in their contexts: {listed}'
        if split == 'train':
          questions, found[split] = _usable(questions, found.get(split, ''))
        cache[split] = questions
      return cache[split]

    splits = tuple(split for split in ('train', 'dev', 'test') if split in files)
    unanswerable = self.unanswerable
    if unanswerable is None:
      labeled = [question for split in splits if split != 'test' for question in load(split)]
      unanswerable = any(not question.answers for question in labeled)
    return SquadTask(
      name=name,
      spec=self,
      splits=splits,
      unanswerable=unanswerable,
      columns=columns,
      load=load,
      found=found,
      answer_units=self._answer_units(data.answer_units),
      **settings,
    )

  def _answer_units(self, given: str) -> str:
    """What F1 counts; the official scripts of SQuAD count words."""
    return 'words' if given == 'auto' and self.version else given


SQUAD1 = SquadSpec(version='v1.1', tfds='tfds:squad', unanswerable=False, each_has_answer=True)
SQUAD2 = SquadSpec(version='v2.0', tfds='tfds:squad/v2.0', unanswerable=True)
SPAN = SquadSpec()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquadTask(TaskDefaults):
  """Question answering; see `task.Task`.

  Attributes:
    name: as in config.task.
    spec: the kind of task.
    splits: the splits that have data.
    unanswerable: whether there may be questions without an answer.
    max_question: tokens of a question at most.
    stride: tokens from one window on a context to the next.
    max_answer: tokens of an answer at most.
    n_best: number of candidate answers.
    threshold: questions with higher null odds get no answer. Null odds are the log-odds that there
      is no answer, in the window where they are lowest, since one window with an answer is enough
      (as in the original program, finetune/qa/qa_metrics.py). At 0 both are equally likely; `score`
      returns the best threshold for the dev set, which `tuned` sets.
    columns: of tables.
    answer_units: what F1 counts, see `squad_metrics.units_of`.
    found: what was found in the data, by split.
    load: the questions of a split; None for a task that was restored without its data.
  """

  name: str
  spec: SquadSpec
  splits: tuple[str, ...]
  unanswerable: bool
  max_question: int
  stride: int
  max_answer: int
  n_best: int
  threshold: float = 0.0
  columns: QuestionColumns = QuestionColumns()
  answer_units: str = 'words'
  found: dict[str, str] = dataclasses.field(default_factory=dict, repr=False, compare=False)
  load: Callable[[str], list[Question]] | None = None
  head: str = 'span'
  labels: tuple[str, ...] = ()
  recipe: TaskRecipe = TaskRecipe(epochs=2.0, max_length=512)

  @property
  def metric(self) -> str:
    """F1, with unanswerable questions at its best threshold."""
    return 'best_f1' if self.unanswerable else 'f1'

  @property
  def notes(self) -> Sequence[str]:
    """The columns, and answers that are not in their contexts, of the splits that were read."""
    return tuple(filter(None, self.found.values()))

  @property
  def paired(self) -> bool:
    """Rows hold a question and a part of its context."""
    return True

  def tuned(self, metrics: Mapping[str, float]) -> 'SquadTask':
    """The task with the threshold that is best for the dev set, according to its metrics there."""
    threshold = metrics.get('best_f1_thresh')
    if threshold is None:
      return self
    return dataclasses.replace(self, threshold=float(threshold))

  def labeled(self, split: str, features: Features) -> bool:
    """Whether a split is for development: rows do not show whether answers are known."""
    return split.startswith('dev')

  def examples(self, split: str) -> Sequence[Question]:
    """The questions of a split, read once."""
    if split not in self.splits or self.load is None:
      raise no_data(self.name, split, self.splits)
    return self.load(split)

  def split_off(self, choose: ChooseDev) -> 'SquadTask':
    """The task with some training questions as dev, all questions on a context on one side."""
    questions = self.examples('train')
    keys = [SplitKey(plain_text(question.context)) for question in questions]
    parts = parted(questions, choose(keys))
    load = self.load
    assert load is not None  # `examples` has used it
    others = tuple(split for split in self.splits if split != 'train')
    return dataclasses.replace(
      self,
      splits=('train', 'dev', *others),
      load=lambda split: parts[split] if split in parts else load(split),
    )

  def read(self, path: str) -> Sequence[Question]:
    """Questions of a file in any format of `squad_data.read_questions`."""
    return squad_data.read_questions(path, 'auto', self.columns, labeled=False)

  def features(
    self, examples: Sequence[Question], tokenizer: Tokenizer, max_length: int
  ) -> tuple[Features, dict[str, int]]:
    """Rows `[CLS] question [SEP] window [SEP]`: windows that cover each context.

    An answer is the target of each window that contains all of it. The original program labels all
    other windows like their question: start and end at [CLS], and impossible only if the question
    is (finetune/qa/qa_tasks.py). Here they are impossible, since that is true of them, and since
    the lowest odds of a question's windows decide. Of several answers the first is the target, as
    in the original.
    """
    contexts = list(dict.fromkeys(example.context for example in examples))
    encoded = dict(zip(contexts, tokenizer.encode_with_offsets(contexts), strict=True))
    questions = tokenizer.encode_arrays([example.question for example in examples])
    rows = _WindowRows(tokenizer, max_length)
    counts: collections.Counter[str] = collections.Counter()
    for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
      ids, spans = encoded[example.context]
      counts[f'questions cut to {self.max_question} tokens'] += len(question) > self.max_question
      counts['answers that start elsewhere than stated'] += example.moved
      counts['answers that match up to white space or Unicode composition'] += example.loose
      question = question[: self.max_question]
      room = max_length - len(question) - 2 - tokenizer.separators
      if room < min(SMALLEST_WINDOW, len(ids)):
        raise UserError(
          f'config.max_length is {max_length}, which leaves {max(room, 0)} tokens for the text '
          f'beside a question of {len(question)} tokens; raise config.max_length, or lower '
          'config.data.max_question'
        )
      first, last = answer_tokens(example, spans)
      counts['answers that the tokenizer has no token for'] += bool(example.answers) and first < 0
      long = first >= 0 and last - first + 1 > self.max_answer
      counts[f'answers longer than data.max_answer, {self.max_answer} tokens'] += long
      windows = window_starts(len(ids), room, self.stride)
      whole = False
      for start in windows:
        part = slice(start, start + room)
        holds = start <= first and last < start + room
        whole |= holds
        answer = (first - start, last - start) if holds else None
        rows.add(number, question, ids[part], spans[part], answer)
      counts[f'further windows on texts longer than {max_length} tokens'] += len(windows) - 1
      counts['answers that no window holds whole'] += first >= 0 and not whole
    return rows.features(), dict(+counts)

  def texts(
    self, examples: Sequence[Question], features: Features, tokenizer: Tokenizer
  ) -> list[tuple[str, int]]:
    """See `task.HasTexts`; each context once, which is in windows as a whole."""
    contexts = dict.fromkeys(example.context for example in examples)
    questions = [(example.question, self.max_question) for example in examples]
    return [*((context, sys.maxsize) for context in contexts), *questions]

  #### Answers ####

  def answers(
    self, examples: Sequence[Question], features: Features, outputs: Outputs
  ) -> tuple[list[list[Answer]], np.ndarray]:
    """The best answers of each question.

    An answer has at most `max_answer` tokens of one window. Of the same text in several windows the
    likeliest is kept. The original program accepts a start only from the window where most context
    surrounds it, and so loses answers that extend beyond that window.

    Args:
      examples: the questions.
      features: their rows.
      outputs: of the model, for these rows.

    Returns:
      For each question its best answers, not empty and of different texts, the best first; and the
      null odds, float64 [questions].
    """
    if not examples:
      return [], np.zeros(0)
    bounds = np.searchsorted(features.examples, np.arange(len(examples) + 1))
    found = [
      self._best(example.context, features.notes, np.arange(bounds[i], bounds[i + 1]), outputs)
      for i, example in enumerate(examples)
    ]
    odds = np.asarray(outputs['impossible'], np.float64)
    return found, np.minimum.reduceat(odds, bounds[:-1])

  def _best(
    self, context: str, notes: Sequence[Window], rows: np.ndarray, outputs: Outputs
  ) -> list[Answer]:
    """At most n_best answers of a question, from the beams of its rows."""
    start, end = outputs['start_index'][rows][:, :, None], outputs['end_index'][rows]
    start_scores = outputs['start_log_probs'][rows][:, :, None].astype(np.float64)
    scores = start_scores + outputs['end_log_probs'][rows]
    offset = np.array([notes[row].start for row in rows])[:, None, None]
    length = np.array([len(notes[row].spans) for row in rows])[:, None, None]
    inside = (start >= offset) & (end < offset + length) & np.isfinite(scores)
    candidates = np.flatnonzero(inside & (end >= start) & (end < start + self.max_answer))
    order = candidates[np.argsort(-scores.ravel()[candidates], kind='stable')]
    window, begin, _ = np.unravel_index(order, scores.shape)
    spans = zip(
      rows[window].tolist(),
      (start - offset)[window, begin, 0].tolist(),
      (end - offset).ravel()[order].tolist(),
      scores.ravel()[order].tolist(),
      strict=True,
    )
    found: dict[str, Answer] = {}
    for row, first, last, score in spans:
      answer = _answer(context, notes[row].spans, first, last, score)
      if answer and answer.text not in found:
        found[answer.text] = answer
        if len(found) == self.n_best:
          break
    return list(found.values()) or _any_answer(context, notes, rows, outputs)

  def score(
    self, split: str, examples: Sequence[Question], features: Features, outputs: Outputs
  ) -> dict[str, float]:
    """Metrics of the official scripts, of the questions whose answers are known.

    With unanswerable questions, `exact`, `f1` and their parts use the task's threshold, `best_f1`
    and `best_exact` the best thresholds for these questions, `best_f1_thresh` and
    `best_exact_thresh`.
    """
    answers, odds = self.answers(examples, features, outputs)
    known = [(i, e.answers) for i, e in enumerate(examples) if e.answers is not None]
    if not known:
      return {}
    indices = [i for i, _ in known]
    best = [_best_text(answers[i]) for i in indices]
    return self._metrics(best, [correct for _, correct in known], odds[indices])

  def report(self, examples: Sequence[Question], features: Features, outputs: Outputs) -> Blocks:
    """See `report_blocks.HasReport`."""
    found: list[question_reports.AnsweredQuestion] = []
    candidates, odds = self.answers(examples, features, outputs)
    none = sigmoid(odds) if self.unanswerable else np.zeros(len(examples))
    for i, (example, answers) in enumerate(zip(examples, candidates, strict=True)):
      if example.answers is None:
        continue
      answer, span, probability = '', None, float(none[i])
      if answers and not self._refuses(odds[i]):
        shares = np.exp([one.score - answers[0].score for one in answers])
        answer, span = answers[0].text, (answers[0].start, answers[0].end)
        probability = float((1 - none[i]) / shares.sum())
      exact, overlap = squad_metrics.scores(
        [answer], [example.answers], 2 if self.unanswerable else 1, self.answer_units
      )
      found.append(
        question_reports.AnsweredQuestion(
          example.id,
          example.question,
          example.context,
          example.answers,
          example.starts,
          answer,
          span,
          probability,
          float(exact[0]),
          float(overlap[0]),
        )
      )
    return question_reports.answer_report(found, self.unanswerable)

  def _metrics(
    self, predictions: Sequence[str], correct: Sequence[Sequence[str]], odds: np.ndarray
  ) -> dict[str, float]:
    if not self.unanswerable:
      return squad_metrics.version_1(predictions, correct, self.answer_units)
    metrics = squad_metrics.version_2(predictions, correct, odds, self.threshold, self.answer_units)
    for name in ('best_exact_thresh', 'best_f1_thresh'):
      # The official script returns 0 where it is best to answer nothing. That is right for
      # probabilities, but log-odds can be below 0.
      if metrics[name] == 0 and not (odds == 0).any():
        metrics[name] = float(odds.min()) - 1
    return metrics

  def predictions(
    self, examples: Sequence[Question], features: Features, outputs: Outputs
  ) -> list[dict[str, Any]]:
    """`answer` with its position and probability, null odds, and the best answers.

    The answer is '' for none. Probabilities are relative to the best answers.
    """
    found: list[dict[str, Any]] = []
    answers_of, odds_of = self.answers(examples, features, outputs)
    for example, answers, odds in zip(examples, answers_of, odds_of, strict=True):
      shares = np.exp([answer.score - answers[0].score for answer in answers])
      total = shares.sum() or 1
      best = [
        {'text': answer.text, 'probability': float(share), 'start': answer.start, 'end': answer.end}
        for answer, share in zip(answers, shares / total, strict=True)
      ]
      given: dict[str, Any] = {'text': '', 'probability': None, 'start': None, 'end': None}
      if best and not self._refuses(odds):
        given = best[0]
      one = {'id': example.id, 'question': example.question, 'answer': given['text']}
      one |= {name: given[name] for name in ('probability', 'start', 'end')}
      if self.unanswerable:
        one['null_odds'] = float(odds)
      found.append(one | {'n_best': best})
    return found

  def submission(
    self, split: str, examples: Sequence[Question], features: Features, outputs: Outputs
  ) -> dict[str, bytes]:
    """predictions.json, by question.

    With unanswerable questions it has '' for odds above the threshold. There are also
    null_odds.json, and best_answers.json with an answer to every question, for which the official
    script (`--na-prob-file null_odds.json`) finds the best thresholds.
    """
    if not self.spec.version:
      return {}
    answers, odds = self.answers(examples, features, outputs)
    names = [example.id for example in examples]
    best = [_best_text(candidates) for candidates in answers]
    if not self.unanswerable:
      return {'predictions.json': _json_object(names, best)}
    given = ['' if self._refuses(one) else text for text, one in zip(best, odds, strict=True)]
    return {
      'predictions.json': _json_object(names, given),
      'null_odds.json': _json_object(names, odds.tolist()),
      'best_answers.json': _json_object(names, best),
    }

  def _refuses(self, odds: float) -> bool:
    return self.unanswerable and odds > self.threshold

  def constant(self) -> dict[str, float]:
    """Metrics of the most frequent training answer, which is '' where many questions have none."""
    train, dev = self.examples('train'), self.examples('dev')
    first = (example.answers[0] if example.answers else '' for example in train)
    answer = collections.Counter(first).most_common(1)[0][0]
    odds = np.full(len(dev), self.threshold)
    return self._metrics([answer] * len(dev), [example.answers or () for example in dev], odds)

  def describe(self) -> dict[str, Any]:
    """What `SquadSpec.restore` reads, for JSON."""
    described = {name: getattr(self, name) for name in _DESCRIBED}
    return described | {'columns': list(self.columns), 'answer_units': self.answer_units}


def _usable(questions: Sequence[Question], listed: str) -> tuple[list[Question], str]:
  """The questions to train on, without answers that are not in their contexts, and a note.

  A question without any such answer is left out: it has an answer, though not in its context.
  """
  kept = [usable for question in questions if (usable := question.without_bad_answers())]
  left_out = len(questions) - len(kept)
  if not listed:
    return kept, ''
  if not kept:
    raise UserError(f'no training question is left; {listed}')
  left = f'{left_out:,} question{"s" * (left_out != 1)} left out of training'
  return kept, f'{listed}; {left}'


#### Rows ####


class _WindowRows:
  """Collects rows of a question and a window."""

  def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
    self._cls = np.array([tokenizer.cls_id], np.int32)
    self._sep = np.array([tokenizer.sep_id], np.int32)
    self._between = np.repeat(self._sep, tokenizer.separators)
    self._token_ids: list[np.ndarray] = []
    self._allowed: list[np.ndarray] = []
    self._owners: list[int] = []
    self._notes: list[Window] = []
    self._starts: list[int] = []
    self._ends: list[int] = []

  def add(
    self,
    owner: int,
    question: np.ndarray,
    ids: np.ndarray,
    spans: np.ndarray,
    answer: tuple[int, int] | None,
  ) -> None:
    """Adds a row.

    Args:
      owner: index of the question.
      question: its token ids.
      ids: token ids of the window.
      spans: int32 [tokens, 2], characters of these tokens.
      answer: first and last token of the answer in the window; None where it has none.
    """
    row = np.concatenate([self._cls, question, self._between, ids, self._sep])
    offset = len(question) + 1 + len(self._between)
    allowed = np.zeros(len(row), np.int32)
    allowed[0] = allowed[offset:-1] = 1
    first, last = (offset + answer[0], offset + answer[1]) if answer else (0, 0)
    self._token_ids.append(row)
    self._allowed.append(allowed)
    self._owners.append(owner)
    self._notes.append(Window(offset, spans))
    self._starts.append(first)
    self._ends.append(last)

  def features(self) -> Features:
    """All rows."""
    starts = np.array(self._starts, np.int32)
    targets = {
      'start': starts,
      'end': np.array(self._ends, np.int32),
      'impossible': (starts == 0).astype(np.float32),
      'allowed': self._allowed,
    }
    return Features(self._token_ids, targets, np.array(self._owners, np.int32), self._notes)


def answer_tokens(question: Question, spans: np.ndarray) -> tuple[int, int]:
  """First and last token of the first answer.

  Args:
    question: with its answers.
    spans: int32 [tokens, 2], characters of the tokens of the context.

  Returns:
    (-1, -1) where there is no answer, or no token stands for any part of it.
  """
  if not question.answers or question.starts[0] < 0:
    return -1, -1
  start, end = question.starts[0], question.starts[0] + len(question.answers[0])
  tokens = np.flatnonzero((spans[:, 0] < end) & (spans[:, 1] > start) & (spans[:, 0] < spans[:, 1]))
  return (int(tokens[0]), int(tokens[-1])) if len(tokens) else (-1, -1)


#### Answers ####


def _answer(context: str, spans: np.ndarray, first: int, last: int, score: float) -> Answer | None:
  """The answer from one token of a window to another; None where it is white space."""
  start, end = int(spans[first, 0]), int(spans[last, 1])
  text = context[start:end]
  stripped = text.strip()
  if not stripped:
    return None
  start += len(text) - len(text.lstrip())
  return Answer(stripped, start, start + len(stripped), score)


def _any_answer(
  context: str, notes: Sequence[Window], rows: np.ndarray, outputs: Outputs
) -> list[Answer]:
  """An answer of one token, for beams without a valid answer.

  It is the likeliest start, or else the first token that is not white space.
  """
  inside: list[tuple[float, int, int]] = []  # log-probability, row, token
  others: list[tuple[float, int, int]] = []
  for row in rows.tolist():
    tokens = len(notes[row].spans)
    others += [(-math.inf, row, token) for token in range(tokens)]
    beam = zip(outputs['start_log_probs'][row], outputs['start_index'][row], strict=True)
    for log_prob, start in beam:
      token = int(start) - notes[row].start
      if 0 <= token < tokens and math.isfinite(log_prob):
        inside.append((float(log_prob), row, token))
  for log_prob, row, token in sorted(inside, reverse=True) + others:
    if answer := _answer(context, notes[row].spans, token, token, max(log_prob, -1e9)):
      return [answer]
  return []


def _best_text(answers: Sequence[Answer]) -> str:
  return answers[0].text if answers else ''


def _json_object(names: Iterable[str], values: Iterable[Any]) -> bytes:
  return (json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False) + '\n').encode()

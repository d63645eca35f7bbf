"""Questions whose answers are spans of a text: SQuAD 1.1 and 2.0, and one's own, as finetune/tasks/task.py has tasks."""

import collections
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from electra_jax.data.corpus import readers
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import squad_data, squad_metrics
from electra_jax.finetune.tasks.squad_data import Columns, Question
from electra_jax.finetune.tasks.task import Features, Outputs, Recipe

# Tokens of a context that a row has room for at the least; with fewer, a text would become hundreds of rows.
SMALLEST_WINDOW = 8
_DESCRIBED = ('name', 'unanswerable', 'max_question', 'stride', 'max_answer', 'n_best', 'threshold')


class Window(NamedTuple):
  """Where a row's part of the context is.

  Attributes:
    start: the row's first token of the context.
    spans: int32 [tokens, 2], the characters of the context that each of them stands for.
  """

  start: int
  spans: np.ndarray


class Answer(NamedTuple):
  """A span of a context, `context[start:end]`, with its log-probability."""

  text: str
  start: int
  end: int
  score: float


@dataclasses.dataclass(frozen=True)
class SquadTask:
  """squad1, squad2 or span: see `task.Task`.

  Attributes:
    unanswerable: whether there may be questions without an answer.
    threshold: questions get no answer whose null odds are higher. Null odds are the log-odds that there is none, of the window
      where they are lowest, since one window that holds an answer is enough (as in the original, finetune/qa/qa_metrics.py). 0
      is as likely as not; the best one for the dev set is what `score` tells and `with_threshold` takes.
    max_question, stride, max_answer: tokens of a question, from one window to the next, and of an answer.
    n_best: answers that are weighed up.
    columns: of tables.
    load: the questions of a part.
  """

  name: str
  metric: str
  splits: tuple[str, ...]
  unanswerable: bool
  max_question: int
  stride: int
  max_answer: int
  n_best: int
  threshold: float = 0.0
  columns: Columns = Columns()
  load: Callable[[str], list[Question]] | None = None
  head: str = 'span'
  labels: tuple[str, ...] = ()
  recipe: Recipe = Recipe(epochs=2.0, max_length=512)

  def with_threshold(self, value: float) -> 'SquadTask':
    """The task with another threshold, as `score` told the best one, which `describe` keeps."""
    return dataclasses.replace(self, threshold=float(value))

  def examples(self, split: str) -> Sequence[Question]:
    if split not in self.splits:
      raise UserError(
        f'there is no {split} data for the task {self.name!r}; it has {readers.named(self.splits)}; '
        f'name a file in config.data.{split if split in ("train", "dev", "test") else "source"}'
      )
    return self.load(split)

  def read(self, path: str) -> Sequence[Question]:
    return squad_data.read_questions(path, 'auto', self.columns, labelled=False)

  def features(
    self, examples: Sequence[Question], tokenizer: Tokenizer, max_length: int
  ) -> tuple[Features, dict[str, int]]:
    """[CLS] question [SEP] window [SEP], for windows of each context that hold all of its tokens.

    An answer is the target of each window that holds it whole. The original labels all other windows by their question: start
    and end at [CLS], and not impossible unless the question is (finetune/qa/qa_tasks.py). Here they are impossible, since that
    is what is true of them, and what the lowest odds of a question's windows ask for. Of several answers the first one is
    learned, as there.
    """
    contexts = list(dict.fromkeys(example.context for example in examples))
    encoded = dict(zip(contexts, tokenizer.encode_with_offsets(contexts), strict=True))
    questions = tokenizer.encode_arrays([example.question for example in examples])
    cls, sep = np.array([tokenizer.cls_id], np.int32), np.array([tokenizer.sep_id], np.int32)
    token_ids, allowed, owners, notes = [], [], [], []
    starts, ends = [], []
    counts = collections.Counter()
    for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
      ids, spans = encoded[example.context]
      counts[f'questions cut to {self.max_question} tokens'] += len(question) > self.max_question
      counts['answers that start elsewhere than told'] += example.mended
      question = question[: self.max_question]
      offset = len(question) + 2
      room = max_length - offset - 1
      if room < min(SMALLEST_WINDOW, len(ids)):
        raise UserError(
          f'max_length={max_length} leaves {max(room, 0)} tokens for the text beside a question of {len(question)}; '
          'raise config.max_length, or lower config.data.max_question'
        )
      first, last = answer_tokens(example, spans)
      counts['answers that the tokenizer has no token for'] += bool(example.answers) and first < 0
      whole = False
      windows = list(window_starts(len(ids), room, self.stride))
      for start in windows:
        part = slice(start, start + room)
        token_ids.append(np.concatenate([cls, question, sep, ids[part], sep]))
        may = np.zeros(len(token_ids[-1]), np.int32)
        may[0] = may[offset:-1] = 1
        allowed.append(may)
        owners.append(number)
        notes.append(Window(offset, spans[part]))
        holds = start <= first and last < start + room
        whole |= holds
        starts.append(offset + first - start if holds else 0)
        ends.append(offset + last - start if holds else 0)
      counts[f'further windows on texts longer than {max_length} tokens'] += len(windows) - 1
      counts['answers that no window holds whole'] += first >= 0 and not whole
    starts, ends = np.array(starts, np.int32), np.array(ends, np.int32)
    targets = {
      'start': starts,
      'end': ends,
      'impossible': (starts == 0).astype(np.float32),
      'allowed': allowed,
    }
    return Features(token_ids, targets, np.array(owners, np.int32), notes), dict(+counts)

  def answers(
    self, examples: Sequence[Question], features: Features, outputs: Outputs
  ) -> tuple[list[list[Answer]], np.ndarray]:
    """Of each question its best answers, none empty and no two of one text, the best first, and null odds, float64 [questions].

    An answer is at most `max_answer` tokens of one window, as the context has them. Of the same text in several windows the
    likeliest counts. The original takes a start from the one window alone where most context is around it, and so loses answers
    that go beyond that window.
    """
    if not examples:
      return [], np.zeros(0)
    bounds = np.searchsorted(features.examples, np.arange(len(examples) + 1))
    found = []
    for number, example in enumerate(examples):
      rows = range(bounds[number], bounds[number + 1])
      found.append(self._best(example.context, features.notes, rows, outputs))
    return found, np.minimum.reduceat(np.asarray(outputs['impossible'], np.float64), bounds[:-1])

  def _best(self, context, notes, rows, outputs):
    """At most n_best answers of a question, from the beams of its rows."""
    rows = np.array(rows)
    start, end = outputs['start_index'][rows][:, :, None], outputs['end_index'][rows]
    scores = (
      outputs['start_log_probs'][rows][:, :, None].astype(np.float64)
      + outputs['end_log_probs'][rows]
    )
    offset = np.array([notes[row].start for row in rows])[:, None, None]
    length = np.array([len(notes[row].spans) for row in rows])[:, None, None]
    inside = (start >= offset) & (end < offset + length) & np.isfinite(scores)
    candidates = np.flatnonzero(inside & (end >= start) & (end < start + self.max_answer))
    order = candidates[np.argsort(-scores.ravel()[candidates], kind='stable')]
    window, begin, _ = np.unravel_index(order, scores.shape)
    first, last = (start - offset)[window, begin, 0], (end - offset).ravel()[order]
    found = {}
    for row, i, j, score in zip(
      rows[window].tolist(),
      first.tolist(),
      last.tolist(),
      scores.ravel()[order].tolist(),
      strict=True,
    ):
      answer = _answer(context, notes[row].spans, i, j, score)
      if answer and answer.text not in found:
        found[answer.text] = answer
        if len(found) == self.n_best:
          break
    return list(found.values()) or _anything(context, notes, rows, outputs)

  def score(
    self, split: str, examples: Sequence[Question], features: Features, outputs: Outputs
  ) -> dict[str, float]:
    """Figures of the official scripts; questions that nobody says the answer of are left out. With unanswerable questions,
    `exact`, `f1` and their parts go by the task's threshold, `best_f1` and `best_exact` by the best ones for these questions,
    `best_f1_thresh` and `best_exact_thresh`."""
    answers, odds = self.answers(examples, features, outputs)
    told = [i for i, example in enumerate(examples) if example.answers is not None]
    if not told:
      return {}
    return self._figures(
      [_text(answers[i]) for i in told], [examples[i].answers for i in told], odds[told]
    )

  def _figures(self, predictions, right, odds):
    if not self.unanswerable:
      return squad_metrics.version_1(predictions, right)
    figures = squad_metrics.version_2(predictions, right, odds, self.threshold)
    for name in ('best_exact_thresh', 'best_f1_thresh'):
      # So the script says that it is best to answer nothing, of probabilities; log-odds go below 0.
      if figures[name] == 0 and not (odds == 0).any():
        figures[name] = float(odds.min()) - 1
    return figures

  def predictions(
    self, examples: Sequence[Question], features: Features, outputs: Outputs
  ) -> list[dict]:
    """`answer`, '' for none, with its place in the context, its share of probability among the best, these, and null odds."""
    found = []
    for example, answers, odds in zip(
      examples, *self.answers(examples, features, outputs), strict=True
    ):
      shares = (
        np.exp([answer.score - answers[0].score for answer in answers]) if answers else np.zeros(0)
      )
      best = [
        {'text': answer.text, 'probability': float(share), 'start': answer.start, 'end': answer.end}
        for answer, share in zip(answers, shares / (shares.sum() or 1), strict=True)
      ]
      given = (
        best[0]
        if best and not self._refuses(odds)
        else {'text': '', 'probability': None, 'start': None, 'end': None}
      )
      said = {'id': example.id, 'question': example.question, 'answer': given['text']}
      said |= {name: given[name] for name in ('probability', 'start', 'end')}
      found.append(
        said | ({'null_odds': float(odds)} if self.unanswerable else {}) | {'n_best': best}
      )
    return found

  def submission(
    self, split: str, examples: Sequence[Question], features: Features, outputs: Outputs
  ) -> dict[str, bytes]:
    """predictions.json, by question. With unanswerable questions '' where the threshold says so, with null_odds.json;
    best_answers.json has an answer to every question, which the official script (`--na-prob-file null_odds.json`) finds the
    best thresholds for."""
    if self.name not in squad_data.VERSIONS:
      return {}
    answers, odds = self.answers(examples, features, outputs)
    names, best = [example.id for example in examples], list(map(_text, answers))
    if not self.unanswerable:
      return {'predictions.json': _json(names, best)}
    given = ['' if self._refuses(one) else text for text, one in zip(best, odds, strict=True)]
    return {
      'predictions.json': _json(names, given),
      'null_odds.json': _json(names, odds.tolist()),
      'best_answers.json': _json(names, best),
    }

  def _refuses(self, odds):
    return self.unanswerable and odds > self.threshold

  def constant(self) -> dict[str, float]:
    """Of always giving the commonest answer of the training set, which is none where many questions have none."""
    train, dev = self.examples('train'), self.examples('dev')
    answer = collections.Counter(
      example.answers[0] if example.answers else '' for example in train
    ).most_common(1)[0][0]
    return self._figures(
      [answer] * len(dev), [example.answers for example in dev], np.full(len(dev), self.threshold)
    )

  def describe(self) -> dict:
    return {name: getattr(self, name) for name in _DESCRIBED} | {'columns': list(self.columns)}


def open_task(name: str, data: Any) -> SquadTask:
  """squad1, squad2, or span for one's own questions.

  Args:
    name: squad1, squad2 or span.
    data: config.data: source, train, dev and test as `squad_data.places` reads them, format, text, pair (context, where it is
      '') and label for the columns of span, max_question, stride, max_answer, n_best.

  Raises:
    UserError: there is no data, a number is too small, or, of span, anything that is wrong in it.
  """
  own, places = name not in squad_data.VERSIONS, squad_data.places(name, data)
  if not places or own and 'train' not in places:
    where = 'tfds:squad/v2.0' if name == 'squad2' else 'tfds:squad'
    raise UserError(
      f'the task {name!r} has no {"training " if own else ""}data; name '
      + ('a file in config.data.train' if own else f'its folder in config.data.source, or {where}')
    )
  return _on_places(name, data, places)


def define(name: str, data: Any, labels: tuple[str, ...]) -> SquadTask:
  """As tasks.define_task has it: a span has no labels."""
  named = any((data.source, data.train, data.dev, data.test))
  return _on_places(name, data, squad_data.places(name, data) if named else {})


def _on_places(name, data, places):
  """The task with the parts that are in these places."""
  for field in ('max_question', 'stride', 'max_answer', 'n_best'):
    if getattr(data, field) < 1:
      raise UserError(f'config.data.{field} is {getattr(data, field)}; it must be at least 1')
  own, read = name not in squad_data.VERSIONS, {}
  columns = Columns(data.text, data.pair or 'context', data.label) if own else Columns()

  def load(split):
    if split not in read:
      questions = squad_data.read_questions(
        places[split], data.format, columns, labelled=split != 'test'
      )
      if split != 'test':
        squad_data.check_answers(questions, places[split], each=name == 'squad1')
      read[split] = questions
    return read[split]

  splits = tuple(split for split in ('train', 'dev', 'test') if split in places)
  unanswerable = name == 'squad2'
  if own:
    unanswerable = any(
      not question.answers for split in splits if split != 'test' for question in load(split)
    )
  return _task(
    name,
    unanswerable,
    columns,
    splits,
    load,
    **{field: getattr(data, field) for field in ('max_question', 'stride', 'max_answer', 'n_best')},
  )


def restore(description: dict) -> SquadTask:
  """The task of what `describe` gave, without data."""
  return _task(
    **{name: description[name] for name in _DESCRIBED},
    columns=Columns(*description['columns']),
    splits=(),
    load=None,
  )


def _task(name, unanswerable, columns, splits, load, **fields):
  return SquadTask(
    name,
    'best_f1' if unanswerable else 'f1',
    splits,
    unanswerable,
    columns=columns,
    load=load,
    **fields,
  )


def window_starts(tokens: int, room: int, stride: int) -> range:
  """First tokens of the windows of at most `room` tokens that a text of `tokens` has.

  Each begins `stride` after the one before it, or half a window where that is less: any answer of half a window is whole in one.
  """
  step = min(stride, (room + 1) // 2)
  return range(0, max(1, math.ceil((tokens - room) / step) * step + 1), step)


def answer_tokens(question: Question, spans: np.ndarray) -> tuple[int, int]:
  """First and last token of the first answer; (-1, -1) where there is no answer, or no token stands for any of it.

  Args:
    spans: int32 [tokens, 2], of the context.
  """
  if not question.answers:
    return -1, -1
  start, end = question.starts[0], question.starts[0] + len(question.answers[0])
  tokens = np.flatnonzero((spans[:, 0] < end) & (spans[:, 1] > start) & (spans[:, 0] < spans[:, 1]))
  return (int(tokens[0]), int(tokens[-1])) if len(tokens) else (-1, -1)


def _answer(context, spans, first, last, score):
  """The answer from one token of a window to another, or None where they stand for nothing but white space."""
  start, end = int(spans[first, 0]), int(spans[last, 1])
  text = context[start:end]
  stripped = text.strip()
  if not stripped:
    return None
  start += len(text) - len(text.lstrip())
  return Answer(stripped, start, start + len(stripped), score)


def _anything(context, notes, rows, outputs):
  """An answer of one token where no beam has a whole one: at the likeliest start, or else the first token there is."""
  starts = [
    (float(log_prob), row, int(start) - notes[row].start)
    for row in rows.tolist()
    for log_prob, start in zip(
      outputs['start_log_probs'][row], outputs['start_index'][row], strict=True
    )
  ]
  inside = [
    (log_prob, row, token)
    for log_prob, row, token in starts
    if 0 <= token < len(notes[row].spans) and math.isfinite(log_prob)
  ]
  others = [
    (-math.inf, row, token) for row in rows.tolist() for token in range(len(notes[row].spans))
  ]
  for log_prob, row, token in sorted(inside, reverse=True) + others:
    if answer := _answer(context, notes[row].spans, token, token, max(log_prob, -1e9)):
      return [answer]
  return []


def _text(answers):
  return answers[0].text if answers else ''


def _json(names, values):
  return (json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False) + '\n').encode()

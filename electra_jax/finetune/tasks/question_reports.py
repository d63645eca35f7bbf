"""Reports about answers that are spans of a text."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from electra_jax.finetune import class_metrics
from electra_jax.finetune.report_blocks import (
  MISSED,
  RIGHT,
  WRONG,
  Blocks,
  Cell,
  ErrorList,
  ReportError,
  ReportTable,
  marked_text,
  unmarked_text,
  worst_first,
)

_LENGTHS = ((1, 1), (2, 2), (3, 5), (6, 10), (11, None))  # words of a given answer
_NONE = '(no answer)'


class AnsweredQuestion(NamedTuple):
  """A question with its given answers and the predicted one.

  Attributes:
    id: in the data.
    question: its text.
    context: the text.
    answers: given ones; () where there is none.
    starts: first character of each in the context, -1 where it is not in it.
    answer: the predicted one; '' for none.
    span: its characters in the context; None for none.
    probability: of the answer among the candidates, or of there being none.
    exact: 1 where it equals a given one.
    f1: of the best given one.
  """

  id: str
  question: str
  context: str
  answers: Sequence[str]
  starts: Sequence[int]
  answer: str
  span: tuple[int, int] | None
  probability: float
  exact: float
  f1: float


def answer_report(questions: Sequence[AnsweredQuestion], unanswerable: bool) -> Blocks:
  """Exact match and F1 by kind of question and answer, calibration and the worst answers.

  Args:
    questions: whose answers are known.
    unanswerable: whether there may be questions without an answer.
  """
  note = 'Of the probability of the answer among the candidates; right is an exact match.'
  if unanswerable:
    note = (
      'Of the probability of the answer among the candidates times that of there being one, or of '
      'there being none; right is an exact match.'
    )
  calibration = class_metrics.calibration(
    [q.probability for q in questions], [q.exact for q in questions], note=note
  )
  wrong = [(q.probability - q.f1, i) for i, q in enumerate(questions) if q.f1 < 1]
  errors = tuple(_answer_error(questions[i]) for i in worst_first(wrong))
  listed = f'{len(wrong):,} of {len(questions):,} have an F1 below 1; first those with a '
  return (
    *((_decision_table(questions),) if unanswerable else ()),
    _length_table(questions),
    calibration,
    ErrorList('errors', 'Worst errors', f'{listed}low F1 and a high probability.', errors),
  )


def _row(name: str, chosen: Sequence[AnsweredQuestion]) -> tuple[Cell, ...]:
  exact, f1 = ([getattr(q, field) for q in chosen] for field in ('exact', 'f1'))
  return (name, len(chosen), float(np.mean(exact)), float(np.mean(f1)))


def _length_table(questions: Sequence[AnsweredQuestion]) -> ReportTable:
  rows: list[tuple[Cell, ...]] = []
  lengths = [len(q.answers[0].split()) if q.answers else 0 for q in questions]
  groups = [('no answer', [q for q, n in zip(questions, lengths, strict=True) if not n])]
  for low, high in _LENGTHS:
    name = f'{low} or more words' if high is None else f'{low} to {high} words'
    name = f'{low} word{"s" * (low > 1)}' if high == low else name
    inside = [
      q for q, n in zip(questions, lengths, strict=True) if n >= low and (high is None or n <= high)
    ]
    groups.append((name, inside))
  rows = [_row(name, chosen) for name, chosen in groups if chosen]
  rows += [_row('all', questions)] if questions else []
  header = ('given answer', 'questions', 'exact match', 'F1')
  note = 'By the length of the first given answer.'
  return ReportTable('lengths', 'Per length of the answer', note, header, tuple(rows))


def _decision_table(questions: Sequence[AnsweredQuestion]) -> ReportTable:
  """Whether a question has an answer, as a decision between two classes."""
  gold = [int(bool(q.answers)) for q in questions]
  predicted = [int(bool(q.answer)) for q in questions]
  confusion = class_metrics.confusion_counts(gold, predicted, 2)
  counts = class_metrics.counts_of_confusion(confusion)
  return class_metrics.class_table(
    ('no answer', 'an answer'),
    counts,
    what='decision',
    title='Whether there is an answer',
    total='accuracy',
  )


def _answer_error(question: AnsweredQuestion) -> ReportError:
  facts: tuple[tuple[str, Cell], ...] = (
    ('question', question.id),
    ('given', ' / '.join(dict.fromkeys(question.answers)) or _NONE),
    ('predicted', question.answer or _NONE),
    ('probability', question.probability),
    ('F1', question.f1),
  )
  context = ('context', marked_text(question.context, _marked_answers(question)))
  return ReportError(facts, (unmarked_text(question.question, 'question'), context))


def _marked_answers(question: AnsweredQuestion) -> list[tuple[int, int, str, str]]:
  """The predicted answer and a given one, in the context: what both have, and what one has."""
  found = question.span or (0, 0)
  places = [
    (start, start + len(answer))
    for answer, start in zip(question.answers, question.starts, strict=False)
    if start >= 0
  ]
  places.sort(key=lambda place: min(place[1], found[1]) - max(place[0], found[0]), reverse=True)
  given = places[0] if places else (0, 0)
  spans = []
  for start, end in itertools.pairwise(sorted({*found, *given})):
    predicted, correct = (one[0] <= start < one[1] for one in (found, given))
    if predicted or correct:
      mark = RIGHT if predicted and correct else WRONG if predicted else MISSED
      spans.append((start, end, mark, ''))
  return spans

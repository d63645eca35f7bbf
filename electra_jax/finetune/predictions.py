"""What a fine-tuned run returns in Python: a frozen dataclass per prediction, and scores."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from electra_jax.finetune.report_blocks import Report
from electra_jax.finetune.tasks.task import Features, Task


@dataclasses.dataclass(frozen=True)
class LabelPrediction:
  """The label of a text or a pair.

  Attributes:
    label: the likeliest label.
    probability: its probability.
    probabilities: of all labels, in the order of the run's labels.
  """

  label: str
  probability: float
  probabilities: dict[str, float]


@dataclasses.dataclass(frozen=True)
class LabelsPrediction:
  """The labels of a text or a pair, of a task with any number of labels per text.

  Attributes:
    labels: those that apply.
    probabilities: of all labels, each by itself.
  """

  labels: tuple[str, ...]
  probabilities: dict[str, float]


@dataclasses.dataclass(frozen=True)
class ValuePrediction:
  """The value of a text or a pair, in the unit of the training data."""

  value: float


@dataclasses.dataclass(frozen=True)
class RankPrediction:
  """How well a passage fits its query.

  Attributes:
    score: between 0 and 1.
    rank: among the passages of the query that were given together, from 1.
  """

  score: float
  rank: int


@dataclasses.dataclass(frozen=True)
class TaggedWord:
  """A word and its tag.

  Attributes:
    word: its text.
    tag: the likeliest tag.
    probability: of the tag.
    start: first character of the word in the text that was given; None for words that were given
      one by one.
    end: the character after its last.
  """

  word: str
  tag: str
  probability: float
  start: int | None
  end: int | None


@dataclasses.dataclass(frozen=True)
class TaggedEntity:
  """An entity: consecutive words whose tags belong together.

  Attributes:
    type: of the entity, such as PER.
    text: its part of the text, or its words separated by spaces.
    probability: mean of its words' tags.
    words: indices of its first word and of the word after its last.
    start: first character in the text that was given; None for words that were given one by one.
    end: the character after its last.
  """

  type: str
  text: str
  probability: float
  words: tuple[int, int]
  start: int | None
  end: int | None


@dataclasses.dataclass(frozen=True)
class TagPrediction:
  """The words of a text with their tags, and the entities that the tags mark, if they mark any."""

  words: tuple[TaggedWord, ...]
  entities: tuple[TaggedEntity, ...]


@dataclasses.dataclass(frozen=True)
class ChoicePrediction:
  """The likeliest of several texts.

  Attributes:
    index: of the text, from 0.
    choice: the text.
    probabilities: of all texts.
  """

  index: int
  choice: str
  probabilities: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class AnswerSpan:
  """A part of the context, `context[start:end]`, with its probability among the best answers."""

  text: str
  start: int
  end: int
  probability: float


@dataclasses.dataclass(frozen=True)
class AnswerPrediction:
  """The answer to a question.

  Attributes:
    answer: its text; '' where the context has none.
    start: its first character in the context; None without an answer.
    end: the character after its last; None without an answer.
    probability: among `candidates`; None without an answer.
    candidates: the best answers, the best first, also where the context has none.
    null_odds: log-odds that the context has no answer; None where each question has one.
  """

  answer: str
  start: int | None
  end: int | None
  probability: float | None
  candidates: tuple[AnswerSpan, ...]
  null_odds: float | None


# Tasks of user code may predict something else, which is returned as their mapping.
Prediction: TypeAlias = (
  LabelPrediction
  | LabelsPrediction
  | ValuePrediction
  | ChoicePrediction
  | RankPrediction
  | TagPrediction
  | AnswerPrediction
  | Mapping[str, Any]
)


@dataclasses.dataclass(frozen=True)
class Score:
  """How well a run predicts labeled data.

  Attributes:
    metrics: of the task, as fractions, on the labeled examples.
    examples: number of examples.
    labeled: number of those with a label that the task has.
    unknown: labels that the task does not have, and how many examples have them. These examples are
      not scored.
    report: metrics per class, calibration, the worst errors and more, by the task.
  """

  metrics: dict[str, float]
  examples: int
  labeled: int
  unknown: dict[str, int]
  report: Report = dataclasses.field(repr=False, compare=False)


def typed_prediction(prediction: Mapping[str, Any], text: str | None = None) -> Prediction:
  """A prediction of `Task.predictions` as a dataclass.

  Args:
    prediction: as JSON has it.
    text: that was given as a whole, for the offsets of tags; None for words.
  """
  if 'choices' in prediction and 'choice' in prediction:
    probabilities = tuple(prediction['probabilities'])
    return ChoicePrediction(prediction['label'], prediction['choice'], probabilities)
  if 'probabilities' in prediction and 'label' in prediction:
    return LabelPrediction(
      prediction['label'], prediction['probability'], dict(prediction['probabilities'])
    )
  if 'probabilities' in prediction and 'labels' in prediction:
    return LabelsPrediction(tuple(prediction['labels']), dict(prediction['probabilities']))
  if 'tags' in prediction and 'tokens' in prediction:
    return _tags(prediction, text)
  if 'answer' in prediction and 'n_best' in prediction:
    return AnswerPrediction(
      prediction['answer'],
      prediction['start'],
      prediction['end'],
      prediction['probability'],
      tuple(AnswerSpan(**one) for one in prediction['n_best']),
      prediction.get('null_odds'),
    )
  if 'score' in prediction and 'rank' in prediction:
    return RankPrediction(prediction['score'], prediction['rank'])
  if 'value' in prediction:
    return ValuePrediction(prediction['value'])
  return prediction


def _tags(prediction: Mapping[str, Any], text: str | None) -> TagPrediction:
  tokens, tags = prediction['tokens'], prediction['tags']
  spans = offsets_of_words(tokens, text)
  words = tuple(
    TaggedWord(word, tag, probability, start, end)
    for word, tag, probability, (start, end) in zip(
      tokens, tags, prediction['probabilities'], spans, strict=True
    )
  )
  found = (_entity(entity, words, text) for entity in prediction.get('entities', ()))
  return TagPrediction(words, tuple(found))


def _entity(
  entity: Mapping[str, Any], words: Sequence[TaggedWord], text: str | None
) -> TaggedEntity:
  """An entity by words, or by characters of the text, as the task predicts it."""
  kind = entity.get('type', entity.get('label', ''))
  if 'label' in entity:
    inside = [
      i
      for i, word in enumerate(words)
      if word.start is not None
      and word.end is not None
      and word.start < entity['end']
      and word.end > entity['start']
    ]
    first, last = inside[0], inside[-1] + 1
  else:
    first, last = entity['start'], entity['end']
  of = words[first:last]
  start, end = of[0].start, of[-1].end
  whole = entity['text'] if text is None else text[start:end]
  probability = sum(word.probability for word in of) / len(of)
  return TaggedEntity(kind, whole, probability, (first, last), start, end)


def offsets_of_words(
  words: Sequence[str], text: str | None
) -> list[tuple[int, int] | tuple[None, None]]:
  """First character of each word of a text, and the character after its last.

  Args:
    words: parts of the text, in order, without overlap.
    text: that they are from; None where it is not known.
  """
  if text is None:
    return [(None, None)] * len(words)
  found: list[tuple[int, int] | tuple[None, None]] = []
  end = 0
  for word in words:
    start = text.index(word, end)
    end = start + len(word)
    found.append((start, end))
  return found


def count_labeled(task: Task, examples: Sequence[Any], features: Features) -> int:
  """The number of examples with a label, value, tags or answers that `Task.score` can use."""
  targets = features.targets
  rows: np.ndarray | list[bool]  # whether each row has one; a long text has several rows
  if 'label' in targets:
    rows = np.asarray(targets['label']) >= 0
  elif 'value' in targets:
    rows = np.isfinite(targets['value'])
  elif 'labels' in targets:
    rows = np.isfinite(targets['labels']).all(-1)
  elif 'choice' in targets:
    right = np.asarray(targets['choice']).reshape(-1, features.choices)
    return int((right == 1).any(-1).sum())
  elif 'tags' in targets:
    rows = [bool((tags >= 0).any()) for tags in targets['tags']]
  elif task.head == 'span':  # () is a known answer: there is none
    return sum(getattr(example, 'answers', None) is not None for example in examples)
  else:
    return len(examples) if task.labeled('dev', features) else 0
  return len(np.unique(features.examples[rows]))

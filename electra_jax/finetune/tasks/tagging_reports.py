"""Reports about a label per word: entities with their kinds of errors, or tags of words."""

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from electra_jax.finetune import class_metrics, entities
from electra_jax.finetune.report_blocks import (
  MISSED,
  RIGHT,
  WRONG,
  Blocks,
  Calibration,
  Cell,
  ErrorList,
  ReportError,
  ReportTable,
  TextPart,
  marked_text,
  shortened,
  worst_first,
)

NO_ENTITY = 'no entity'
_MOST_WORDS = 20  # of a table
_WORDS = 'Of the probability of the predicted tag of each word.'


class TaggedSentence(NamedTuple):
  """A sentence with given and predicted tags; those of entities are in IOB2.

  Attributes:
    name: of the sentence: its id, or its number from 1.
    tokens: its words.
    gold: given tags.
    predicted: predicted tags, as many.
    probabilities: of the predicted tags, float64 `[words]`.
    text: that the words are from; '' where only they are known.
    offsets: first character of each word in `text`, and the character after its last.
  """

  name: str
  tokens: Sequence[str]
  gold: Sequence[str]
  predicted: Sequence[str]
  probabilities: np.ndarray
  text: str = ''
  offsets: Sequence[tuple[int, int]] = ()


#### Entities ####


def entity_report(sentences: Sequence[TaggedSentence], types: Sequence[str]) -> Blocks:
  """Metrics per entity type, kinds of errors, confusion of types, calibration and worst sentences.

  Args:
    sentences: with tags in IOB2.
    types: of the task, in order; others that occur are added.
  """
  pairs = [(set(entities.entities(s.gold)), set(entities.entities(s.predicted))) for s in sentences]
  occurring = sorted({kind for both in pairs for spans in both for kind, _, _ in spans})
  names = list(dict.fromkeys([*types, *occurring]))
  table = class_metrics.class_table(
    names, _entity_counts(pairs, names), what='type', title='Per entity type'
  )
  confusion = _type_confusion(pairs, names)
  labels = [*names, NO_ENTITY]
  matrix = class_metrics.confusion_blocks(labels, confusion, 'entities')
  return (
    table,
    _kinds_of_errors(pairs),
    *matrix,
    _word_calibration(sentences),
    _worst_sentences(sentences, pairs),
  )


Spans = set[entities.Span]


def _entity_counts(
  pairs: Iterable[tuple[Spans, Spans]], names: Sequence[str]
) -> class_metrics.ClassCounts:
  counts: collections.Counter[tuple[str, str]] = collections.Counter()
  for gold, predicted in pairs:
    parts = (('correct', gold & predicted), ('predicted', predicted), ('given', gold))
    counts.update((part, kind) for part, spans in parts for kind, _, _ in spans)
  columns = (
    np.array([counts[part, name] for name in names], np.int64)
    for part in ('correct', 'predicted', 'given')
  )
  return class_metrics.ClassCounts(*columns)


def _type_confusion(pairs: Iterable[tuple[Spans, Spans]], names: Sequence[str]) -> np.ndarray:
  """Counts of types of spans with the same words; the last row and column are of no entity."""
  place = {name: i for i, name in enumerate(names)}
  counts = np.zeros((len(names) + 1, len(names) + 1), np.int64)
  for gold, predicted in pairs:
    given = {(start, end): place[kind] for kind, start, end in gold}
    found = {(start, end): place[kind] for kind, start, end in predicted}
    for span in given.keys() | found.keys():
      counts[given.get(span, -1), found.get(span, -1)] += 1
  return counts


def _kinds_of_errors(pairs: Iterable[tuple[Spans, Spans]]) -> ReportTable:
  """Each wrong entity by how it differs from what is given."""
  counts: collections.Counter[str] = collections.Counter()
  for gold, predicted in pairs:
    counts['right'] += len(gold & predicted)
    touched: Spans = set()
    for span in sorted(predicted - gold):
      overlapping = [one for one in gold - predicted if one[1] < span[2] and span[1] < one[2]]
      touched.update(overlapping)
      counts[_kind_of_error(span, overlapping)] += 1
    counts['missed'] += len(gold - predicted - touched)
  explained = (
    ('right', 'words and type'),
    ('type', 'the words of a given entity, another type'),
    ('boundary', 'overlaps a given entity of the same type'),
    ('type and boundary', 'overlaps a given entity of another type'),
    ('spurious', 'overlaps no wrong or missed entity'),
    ('missed', 'given, and no wrong entity overlaps it'),
  )
  rows: tuple[tuple[Cell, ...], ...] = tuple((k, counts[k], text) for k, text in explained)
  header = ('error', 'entities', 'meaning')
  return ReportTable(
    'kinds', 'Kinds of errors', 'Of predicted entities, and missed ones.', header, rows
  )


def _kind_of_error(span: entities.Span, overlapping: Sequence[entities.Span]) -> str:
  if not overlapping:
    return 'spurious'
  if any(one[1:] == span[1:] for one in overlapping):
    return 'type'
  return 'boundary' if any(one[0] == span[0] for one in overlapping) else 'type and boundary'


def _worst_sentences(
  sentences: Sequence[TaggedSentence], pairs: Sequence[tuple[Spans, Spans]]
) -> ErrorList:
  """Sentences with wrong entities; those whose wrong words the model is surest about come first."""
  badness = []
  for i, (sentence, (gold, predicted)) in enumerate(zip(sentences, pairs, strict=True)):
    if gold != predicted:
      badness.append((_surely_wrong(sentence), i))
  errors = []
  for i in worst_first(badness):
    sentence, (gold, predicted) = sentences[i], pairs[i]
    spans = [(*span[1:], RIGHT, span[0]) for span in gold & predicted]
    spans += [(*span[1:], WRONG, span[0]) for span in predicted - gold]
    spans += [(*span[1:], MISSED, span[0]) for span in gold - predicted]
    errors.append(_sentence_error(sentence, spans, len(gold ^ predicted), 'wrong entities'))
  note = (
    f'{len(badness):,} of {len(sentences):,} sentences have wrong entities; first those where the '
    'wrong tags have the highest probability.'
  )
  return ErrorList('errors', 'Worst errors', note, tuple(errors))


def _surely_wrong(sentence: TaggedSentence) -> float:
  """The sum of the probabilities of the wrong tags of a sentence."""
  wrong = [a != b for a, b in zip(sentence.gold, sentence.predicted, strict=True)]
  return float(np.asarray(sentence.probabilities)[np.array(wrong, bool)].sum())


def _sentence_error(
  sentence: TaggedSentence,
  spans: Iterable[tuple[int, int, str, str]],
  count: int,
  what: str,
) -> ReportError:
  """A sentence in which spans of words are marked.

  Where two overlap, the shorter ones of what is given are shown in a line below.

  Args:
    sentence: the sentence.
    spans: first word, the one after the last, mark and label.
    count: of errors.
    what: is counted.
  """
  text, offsets = sentence.text, sentence.offsets
  if not text:
    text, offsets = ' '.join(sentence.tokens), _joined_offsets(sentence.tokens)
  shown: list[tuple[int, int, str, str]] = []
  hidden: list[tuple[int, int, str, str]] = []
  done = 0
  for start, end, mark, label in sorted(spans, key=lambda s: (s[0], s[2] == MISSED, -s[1])):
    place = (offsets[start][0], offsets[end - 1][1], mark, label)
    (shown if start >= done else hidden).append(place)
    done = max(done, end)
  texts = [('', marked_text(text, shown))]
  if hidden:
    parts: list[TextPart] = []
    for first, last, mark, label in hidden:
      parts += [TextPart(text[first:last], mark, label), TextPart('  ')]
    texts.append(('also, overlapping', shortened(parts)))
  return ReportError((('sentence', sentence.name), (what, count)), tuple(texts))


def _joined_offsets(tokens: Sequence[str]) -> list[tuple[int, int]]:
  """Characters of words that are joined by single spaces."""
  found, start = [], 0
  for token in tokens:
    found.append((start, start + len(token)))
    start += len(token) + 1
  return found


def _word_calibration(sentences: Sequence[TaggedSentence]) -> Calibration:
  stated = np.concatenate([np.zeros(0), *(s.probabilities for s in sentences)])
  right = [a == b for s in sentences for a, b in zip(s.gold, s.predicted, strict=True)]
  return class_metrics.calibration(stated, right, note=_WORDS)


#### Tags ####


def word_report(sentences: Sequence[TaggedSentence], labels: Sequence[str]) -> Blocks:
  """Metrics per tag, confusion matrix, calibration, words and sentences that are wrong.

  Args:
    sentences: with their tags.
    labels: of the task, in order.
  """
  place = {label: i for i, label in enumerate(labels)}
  gold = [place[tag] for s in sentences for tag in s.gold]
  predicted = [place[tag] for s in sentences for tag in s.predicted]
  confusion = class_metrics.confusion_counts(gold, predicted, len(labels))
  counts = class_metrics.counts_of_confusion(confusion)
  return (
    class_metrics.class_table(labels, counts, what='tag', title='Per tag', total='accuracy'),
    *class_metrics.confusion_blocks(labels, confusion, 'words'),
    _word_calibration(sentences),
    _wrong_words(sentences),
    _wrong_sentences(sentences),
  )


def _wrong_words(sentences: Iterable[TaggedSentence]) -> ReportTable:
  """The words that are wrong most often, with the tags that are confused."""
  wrong: collections.Counter[str] = collections.Counter()
  seen: collections.Counter[str] = collections.Counter()
  tags: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  for sentence in sentences:
    for word, gold, predicted in zip(
      sentence.tokens, sentence.gold, sentence.predicted, strict=True
    ):
      seen[word] += 1
      if gold != predicted:
        wrong[word] += 1
        tags[word][f'{gold} as {predicted}'] += 1
  rows: list[tuple[Cell, ...]] = []
  for word, count in wrong.most_common(_MOST_WORDS):
    confused = ', '.join(f'{what} ({n})' for what, n in tags[word].most_common(3))
    rows.append((word, count, seen[word], confused))
  header = ('word', 'wrong', 'occurrences', 'given as predicted')
  return ReportTable('words', 'Words that are wrong most often', '', header, tuple(rows))


def _wrong_sentences(sentences: Sequence[TaggedSentence]) -> ErrorList:
  badness = [
    (_surely_wrong(s), i) for i, s in enumerate(sentences) if tuple(s.gold) != tuple(s.predicted)
  ]
  errors = []
  for i in worst_first(badness):
    sentence = sentences[i]
    tags = list(zip(sentence.gold, sentence.predicted, strict=True))
    spans = [(j, j + 1, WRONG, f'{b}, not {a}') for j, (a, b) in enumerate(tags) if a != b]
    errors.append(_sentence_error(sentence, spans, len(spans), 'wrong words'))
  note = (
    f'{len(badness):,} of {len(sentences):,} sentences have wrong tags; first those where these '
    'have the highest probability.'
  )
  return ErrorList('errors', 'Worst errors', note, tuple(errors))

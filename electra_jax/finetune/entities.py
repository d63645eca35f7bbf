"""Entities in sequences of tags: their spans, violations of IOB2, and precision, recall and F1."""

import collections
import re
from collections.abc import Iterable, Sequence

# The tags of IOB2, and those of IOBES, which also marks single (S) and last (E) words.
_IOB2 = re.compile('O|[BI]-.+')
_IOBES = re.compile('O|[BIES]-.+')

Span = tuple[str, int, int]  # type, first word, the word after the last


def entities(tags: Sequence[str]) -> list[Span]:
  """The entities of a sentence, read from any tags as conlleval and seqeval do.

  Source: conlleval (Tjong Kim Sang and Buchholz 2000).

  An I- tag after another type, or after O, starts an entity as a B- tag does. E- and S- tags of
  IOBES are read, too.
  """
  found: list[Span] = []
  start = 0
  kind: str | None = None  # of the entity that is not yet closed
  previous = 'O'
  for i, tag in enumerate(tags):
    mark, _, own = tag.partition('-')
    if kind is not None and (mark in 'OBS' or own != kind or previous in 'ES'):
      found.append((kind, start, i))
      kind = None
    if mark != 'O' and kind is None:
      start, kind = i, own
    previous = mark
  if kind is not None:
    found.append((kind, start, len(tags)))
  return found


def strict_entities(tags: Sequence[str]) -> list[Span]:
  """The entities of a sentence that follow IOB2, as in seqeval's strict mode.

  An I- tag that continues no entity is ignored.
  """
  found: list[Span] = []
  start = 0
  kind: str | None = None
  for i, tag in enumerate([*tags, 'O']):
    mark, _, own = tag.partition('-')
    if kind is not None and (mark != 'I' or own != kind):
      found.append((kind, start, i))
      kind = None
    if mark == 'B':
      start, kind = i, own
  return found


def is_entity_tag(tag: str) -> bool:
  """Whether a tag is O, B-TYPE or I-TYPE."""
  return _IOB2.fullmatch(tag) is not None


def first_fault(tags: Sequence[str]) -> int | None:
  """The index of the first tag that violates IOB2; None where there is none.

  Violations are tags other than O, B- and I-, and I- tags without a preceding tag of their type.
  """
  previous = 'O'
  for i, tag in enumerate(tags):
    if not is_entity_tag(tag) or (tag[0] == 'I' and previous[2:] != tag[2:]):
      return i
    previous = tag
  return None


def repaired(tags: Sequence[str]) -> list[str] | None:
  """The same entities in IOB2, from IOB1 or IOBES; None where a tag is not an entity tag."""
  if not all(map(_IOBES.fullmatch, tags)):
    return None
  result = ['O'] * len(tags)
  for kind, start, end in entities(tags):
    result[start:end] = [f'B-{kind}'] + [f'I-{kind}'] * (end - start - 1)
  return result


def entity_metrics(
  gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]], types: Iterable[str] = ()
) -> dict[str, float]:
  """Precision, recall and F1 of entities: correct where the type and both ends are.

  Args:
    gold: tags of each sentence.
    predicted: tags of each sentence, as many as `gold` has.
    types: entity types that get an F1 even where they do not occur: nan.

  Returns:
    Fractions: `precision`, `recall`, `f1` (micro averages, as in conlleval), `f1_strict` (of
    entities that follow IOB2) and `f1/TYPE`. As in conlleval and seqeval, a fraction with the
    denominator 0 is 0.

  Raises:
    ValueError: a sentence has more or fewer predicted tags than words.
  """
  counts: collections.Counter[object] = collections.Counter()
  strict: collections.Counter[object] = collections.Counter()
  for ours, theirs in zip(gold, predicted, strict=True):
    if len(ours) != len(theirs):
      raise ValueError(f'there are {len(theirs)} tags for {len(ours)} words.')
    _count_entities(counts, set(entities(ours)), set(entities(theirs)))
    _count_entities(strict, set(strict_entities(ours)), set(strict_entities(theirs)))
  found = {key[1] for key in counts if isinstance(key, tuple)}
  result = {
    'f1': _f1(counts['correct'], counts['gold'], counts['predicted']),
    'precision': _fraction(counts['correct'], counts['predicted']),
    'recall': _fraction(counts['correct'], counts['gold']),
    'f1_strict': _f1(strict['correct'], strict['gold'], strict['predicted']),
  }
  for kind in sorted(found | set(types)):
    parts = [counts[name, kind] for name in ('correct', 'gold', 'predicted')]
    result[f'f1/{kind}'] = _f1(*parts) if kind in found else float('nan')
  return result


def _count_entities(
  counts: 'collections.Counter[object]', gold: set[Span], predicted: set[Span]
) -> None:
  """Adds the entities of a sentence to the counts of all types and of each type."""
  for name, spans in (('gold', gold), ('predicted', predicted), ('correct', gold & predicted)):
    counts.update((name, kind) for kind, _, _ in spans)
    counts[name] += len(spans)


def _fraction(numerator: int, denominator: int) -> float:
  return numerator / denominator if denominator else 0.0


def _f1(correct: int, gold: int, predicted: int) -> float:
  return _fraction(2 * correct, gold + predicted)

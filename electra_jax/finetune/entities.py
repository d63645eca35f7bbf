"""Entities in tags: where they are, whether tags keep to IOB2, and precision, recall and F1 over whole entities."""

import collections
import re
from collections.abc import Iterable, Sequence

# What IOB2 has, and with single (S) and last (E) words marked, IOBES.
_IOB2, _ANY = re.compile('O|[BI]-.+'), re.compile('O|[BIES]-.+')

Span = tuple[str, int, int]  # type, first word, the word after the last


def entities(tags: Sequence[str]) -> list[Span]:
  """The entities of a sentence, as conlleval (Tjong Kim Sang and Buchholz 2000) and seqeval read any tags.

  An I of another type than the word before, or after O, begins an entity as a B would. E and S of IOBES count too.
  """
  found, start, kind, previous = [], 0, None, 'O'  # kind: of the entity that is open
  for i, tag in enumerate(tags):
    mark, _, own = tag.partition('-')
    if kind is not None and (mark in 'OBS' or own != kind or previous in 'ES'):
      found.append((kind, start, i))
      kind = None
    if mark != 'O' and kind is None:
      start, kind = i, own
    previous = mark
  return found + [(kind, start, len(tags))] * (kind is not None)


def strict_entities(tags: Sequence[str]) -> list[Span]:
  """The entities of a sentence that keep to IOB2, as seqeval's strict mode has them: an I that nothing begins is none."""
  found, start, kind = [], 0, None
  for i, tag in enumerate([*tags, 'O']):
    mark, _, own = tag.partition('-')
    if kind is not None and (mark != 'I' or own != kind):
      found.append((kind, start, i))
      kind = None
    if mark == 'B':
      start, kind = i, own
  return found


def is_entity_tag(tag: str) -> bool:
  """Whether it is O, or a type that begins (B-) or goes on (I-)."""
  return _IOB2.fullmatch(tag) is not None


def first_fault(tags: Sequence[str]) -> int | None:
  """The first word whose tag breaks IOB2: no O, B- or I-, or an I- that goes on with nothing of its type; None where all is well."""
  previous = 'O'
  for i, tag in enumerate(tags):
    if not is_entity_tag(tag) or (tag[0] == 'I' and previous[2:] != tag[2:]):
      return i
    previous = tag
  return None


def repaired(tags: Sequence[str]) -> list[str] | None:
  """The same entities in IOB2, of IOB1 and IOBES also; None where a tag is no entity's at all."""
  if not all(map(_ANY.fullmatch, tags)):
    return None
  mended = ['O'] * len(tags)
  for kind, start, end in entities(tags):
    mended[start:end] = [f'B-{kind}'] + [f'I-{kind}'] * (end - start - 1)
  return mended


def figures(
  gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]], types: Iterable[str] = ()
) -> dict[str, float]:
  """Precision, recall and F1 over the entities of all sentences: right where type and both ends are.

  Args:
    gold, predicted: tags of each sentence, as many of the one as of the other.
    types: to have a figure of their own even where neither side has one: nan.

  Returns: fractions `precision`, `recall`, `f1` (micro, as conlleval), `f1_strict` (of entities that keep to IOB2) and
    `f1/TYPE`. As in conlleval and seqeval a figure is 0 where there is nothing to divide by.
  """
  counts = {reader: collections.Counter() for reader in (entities, strict_entities)}
  for ours, theirs in zip(gold, predicted, strict=True):
    if len(ours) != len(theirs):
      raise ValueError(f'{len(theirs)} tags of {len(ours)} words.')
    for reader, count in counts.items():
      a, b = set(reader(ours)), set(reader(theirs))
      for name, spans in (('gold', a), ('predicted', b), ('right', a & b)):
        count.update((name, kind) for kind, _, _ in spans)
        count[name] += len(spans)
  count, strict = counts[entities], counts[strict_entities]

  def rate(a, b):
    return a / b if b else 0.0

  def f1(right, a, b):
    return rate(2 * right, a + b)

  found = {key[1] for key in count if isinstance(key, tuple)}
  result = {
    'f1': f1(count['right'], count['gold'], count['predicted']),
    'precision': rate(count['right'], count['predicted']),
    'recall': rate(count['right'], count['gold']),
    'f1_strict': f1(strict['right'], strict['gold'], strict['predicted']),
  }
  for kind in sorted(found | set(types)):
    parts = [count[name, kind] for name in ('right', 'gold', 'predicted')]
    result[f'f1/{kind}'] = f1(*parts) if kind in found else float('nan')
  return result

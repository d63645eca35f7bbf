"""The published schemes of tags of entities: which one data has, and conversion between them.

A tag is O, or the mark of a word's place in an entity and the entity's type. Schemes differ in
their marks (Ramshaw and Marcus 1995: IOB1; Tjong Kim Sang and Veenstra 1999: IOB2, IOE1, IOE2;
Ratinov and Roth 2009: BILOU), and data in how mark and type are joined. Inside, all tags are IOB2
as B-TYPE and I-TYPE.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from electra_jax.finetune import entities
from electra_jax.finetune.entities import Span

OUTSIDE = 'O'
UNTYPED = 'ENTITY'  # type of entities whose tags have none
AUTO = 'auto'

# Marks of all schemes as those of IOBES: begin, inside, end, single.
_MEANING = {
  'B': 'B',
  'I': 'I',
  'M': 'I',  # middle
  'E': 'E',
  'L': 'E',  # last
  'S': 'S',
  'U': 'S',  # unit
  'W': 'S',  # whole
}
# In this order the first that fits all tags is used: the mark first, then last.
_SEPARATORS = '-_:/|.'
# What is no type by itself: a mark, or what may be one joined to a type, or a number.
_NO_TYPE = re.compile(r'(?i:[a-z][-_:/|.].*|.*[-_:/|.][a-z]|.|[\W\d_]+)')


@dataclasses.dataclass(frozen=True)
class TagScheme:
  """A scheme of marks.

  Attributes:
    title: as publications write it.
    inside: of a word that needs no other mark.
    first: of an entity's first word; with `only_between` only directly after an entity of its type.
    last: of its last word; with `only_between` only directly before an entity of its type.
    single: of an entity's only word; '' where that has the mark of a first or a last word.
    only_between: see above.
  """

  title: str
  inside: str = 'I'
  first: str = ''
  last: str = ''
  single: str = ''
  only_between: bool = False

  @property
  def marks(self) -> set[str]:
    """All marks of the scheme."""
    return {self.inside, self.first, self.last, self.single} - {''}

  def marks_of(self, length: int, follows: bool, precedes: bool) -> list[str]:
    """The marks of an entity's words.

    Args:
      length: words.
      follows: whether an entity of its type ends directly before it.
      precedes: whether an entity of its type begins directly after it.
    """
    if length == 1 and self.single:
      return [self.single]
    marks = [self.inside] * length
    if self.last and (precedes or not self.only_between):
      marks[-1] = self.last
    if self.first and (follows or not self.only_between):
      marks[0] = self.first
    return marks


# In the order in which the first that fits is used.
SCHEMES = {
  'io': TagScheme('IO'),
  'iob2': TagScheme('IOB2', first='B'),
  'iob1': TagScheme('IOB1', first='B', only_between=True),
  'ioe2': TagScheme('IOE2', last='E'),
  'ioe1': TagScheme('IOE1', last='E', only_between=True),
  'iobes': TagScheme('IOBES', 'I', 'B', 'E', 'S'),
  'bilou': TagScheme('BILOU', 'I', 'B', 'L', 'U'),
  'bmes': TagScheme('BMES', 'M', 'B', 'E', 'S'),
  'bmewo': TagScheme('BMEWO', 'M', 'B', 'E', 'W'),
}


@dataclasses.dataclass(frozen=True)
class TagCoding:
  """A scheme, and how tags are written.

  Attributes:
    scheme: of SCHEMES.
    separator: between mark and type; '' for marks without types.
    mark_first: whether the mark precedes the type. False without a separator: types without marks,
      in IO.
  """

  scheme: str = 'iob2'
  separator: str = '-'
  mark_first: bool = True

  def describe(self) -> str:
    """The scheme and an example of a tag."""
    scheme = SCHEMES[self.scheme]
    example = self.tag(scheme.first or scheme.last or scheme.inside, 'TYPE')
    return f'{scheme.title}, as in {example}'

  def tag(self, mark: str, kind: str) -> str:
    """The tag of a mark and a type."""
    if not self.separator:
      return mark if self.mark_first else kind
    return self.separator.join((mark, kind) if self.mark_first else (kind, mark))

  def parts(self, tag: str) -> tuple[str, str] | None:
    """Mark and type of a tag; ('O', '') for O, None for other words."""
    if tag == OUTSIDE:
      return OUTSIDE, ''
    if self == TYPES:
      return 'I', tag
    if not self.separator:
      return (tag, UNTYPED) if tag in _MEANING else None
    if self.mark_first:
      mark, found, kind = tag.partition(self.separator)
    else:
      kind, found, mark = tag.rpartition(self.separator)
    return (mark, kind) if found and kind and mark in _MEANING else None

  def without(self, tags: Sequence[str], ignore: Collection[str]) -> tuple[str, ...]:
    """The tags with those of some types as O."""
    if not ignore:
      return tuple(tags)
    kinds = ((tag, self.parts(tag)) for tag in tags)
    return tuple(OUTSIDE if parts and parts[1] in ignore else tag for tag, parts in kinds)

  def spans(self, tags: Sequence[str]) -> list[Span]:
    """The entities of a sentence, read as conlleval and seqeval do; unknown tags are O."""
    if self == IOB2:
      return entities.entities(tags)
    found = [self.parts(tag) or (OUTSIDE, '') for tag in tags]
    return entities.entities([f'{_MEANING.get(mark, mark)}-{kind}' for mark, kind in found])

  def encoded(self, spans: Sequence[Span], length: int) -> list[str]:
    """The tags of a sentence.

    Args:
      spans: its entities, ascending.
      length: words.
    """
    scheme = SCHEMES[self.scheme]
    tags = [OUTSIDE] * length
    ends = {(kind, end) for kind, _, end in spans}
    starts = {(kind, start) for kind, start, _ in spans}
    for kind, start, end in spans:
      marks = scheme.marks_of(end - start, (kind, start) in ends, (kind, end) in starts)
      tags[start:end] = [self.tag(mark, kind) for mark in marks]
    return tags

  def fault(self, tags: Sequence[str]) -> int | None:
    """The index of the first tag that violates the scheme; None where there is none."""
    if self == IOB2:
      return entities.first_fault(tags)
    right = self.encoded(self.spans(tags), len(tags))
    return next((i for i, (a, b) in enumerate(zip(tags, right, strict=True)) if a != b), None)


IOB2 = TagCoding()
TYPES = TagCoding('io', '', mark_first=False)  # as in Few-NERD


class Detected(NamedTuple):
  """How the tags of some data are written.

  Attributes:
    coding: the one that most sentences follow.
    faults: number of distinct sequences of tags that violate it.
  """

  coding: TagCoding
  faults: int


def detect(
  sequences: Iterable[Sequence[str]],
  scheme: str = AUTO,
  ignore: Collection[str] = (),
  types_only: bool = False,
) -> Detected | None:
  """How tags are written; None where they are no tags of entities.

  The first way of joining that fits all tags is used: a mark before the type, else after it, joined
  by -, _, :, /, | or a dot; else marks without types, or types without marks beside O. Of the
  schemes with these marks the one that the fewest sequences violate is used, of several the first
  of SCHEMES. Tags of I and O only are therefore IO; B, E and S where no word is O are BMES, as in
  word segmentation.

  Args:
    sequences: the tags of sentences.
    scheme: of SCHEMES, the only one that is considered; 'auto' for all.
    ignore: types that count as O.
    types_only: whether tags may be types without marks.
  """
  distinct = {tuple(tags) for tags in sequences}
  tags = {tag for sequence in distinct for tag in sequence}
  style = _style(tags)
  if style is None and types_only and scheme in (AUTO, TYPES.scheme) and _are_types(tags):
    return Detected(TYPES, 0)
  if style is None:
    return None
  distinct = {style.without(sequence, ignore) for sequence in distinct}
  names = _names_with(style, tags)
  if scheme != AUTO:
    names = [scheme]
  elif OUTSIDE not in tags and 'bmes' in names:
    names.sort(key='bmes'.__ne__)
  best: Detected | None = None
  for name in names:
    coding = dataclasses.replace(style, scheme=name)
    faults = sum(coding.fault(sequence) is not None for sequence in distinct)
    if best is None or faults < best.faults:
      best = Detected(coding, faults)
    if not faults:
      break
  return best


def _are_types(tags: set[str]) -> bool:
  """Whether tags are O and types without marks."""
  types = tags - {OUTSIDE}
  return types < tags and bool(types) and not any(map(_NO_TYPE.fullmatch, types))


def coding_of_labels(labels: Iterable[str]) -> TagCoding | None:
  """How the labels of a model are written; None where they are no tags of entities."""
  tags = set(labels)
  style = _style(tags)
  if style is None:
    return None
  names = _names_with(style, tags)
  return dataclasses.replace(style, scheme=names[0]) if names else None


def _names_with(style: TagCoding, tags: Iterable[str]) -> list[str]:
  """Names of the schemes that have all marks of some tags."""
  marks = {parts[0] for tag in tags if (parts := style.parts(tag))} - {OUTSIDE}
  return [name for name, scheme in SCHEMES.items() if marks <= scheme.marks]


def _style(tags: set[str]) -> TagCoding | None:
  """How marks and types are joined in all tags; None where some tag has no mark."""
  if not tags - {OUTSIDE}:
    return None
  joined = [TagCoding('', each, first) for each in _SEPARATORS for first in (True, False)]
  for style in (*joined, TagCoding('', '')):
    if all(map(style.parts, tags)):
      return style
  return None

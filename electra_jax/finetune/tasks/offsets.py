"""Words and entities of raw text, by characters."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from electra_jax.errors import UserError
from electra_jax.finetune.entities import Span

JsonValue: TypeAlias = Any
Splitter: TypeAlias = Any  # tokenizers is imported only where it is used

_TYPE_FIELDS = ('label', 'type', 'entity_group', 'entity', 'tag')
_START_FIELDS = ('start', 'start_offset', 'begin')
_END_FIELDS = ('end', 'end_offset')

# The boundaries of Unicode's text segmentation (UAX #29, WB5 to WB13) with these differences: words
# are also split at apostrophes, as the Penn Treebank does; of scripts that are written without
# spaces and that it leaves to dictionaries, each character with its marks is a word.
_NO_SPACES = r'\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}'
_LETTER = rf'(?:(?![{_NO_SPACES}])[\p{{L}}\p{{N}}_])'
_PATTERNS = (
  rf'[{_NO_SPACES}]\p{{M}}*',
  r'(?:\p{Lu}\.){2,}',  # U.S.
  r'\p{Nd}+(?:[.,:/]\p{Nd}+)+',  # 3.5, 1,000, 12:30
  rf'{_LETTER}(?:{_LETTER}|[\p{{M}}\u200C\u200D])*',
  r"['’](?i:s|m|d|t|ll|re|ve)(?![\p{L}\p{N}])",  # John's
  r'[^\s]\p{M}*',
)


def word_spans(text: str) -> list[tuple[int, int]]:
  """First character of each word of a text, and the character after its last.

  White space is in no word. Each punctuation mark is a word.
  """
  return [span for _, span in _splitter().pre_tokenize_str(text)]


@functools.cache
def _splitter() -> Splitter:
  import tokenizers
  from tokenizers import pre_tokenizers

  pattern = tokenizers.Regex('|'.join(_PATTERNS))
  return pre_tokenizers.Split(pattern, behavior='removed', invert=True)


class CharacterSpan(NamedTuple):
  """An entity of a text: `text[start:end]`."""

  start: int
  end: int
  kind: str


def are_entities(value: JsonValue) -> bool:
  """Whether a field has entities of a text, rather than a tag per word."""
  if not isinstance(value, list):
    return False
  if not value:
    return True
  return all(_parts(item) is not None for item in value)


def given_entities(value: JsonValue, text: str, where: str) -> list[CharacterSpan]:
  """The entities of a field, ascending.

  Args:
    value: a list of objects with `start`, `end` and `label` (or `type`, `entity_group`), or of
      lists `[start, end, label]`.
    text: that they are in.
    where: the record, for messages.

  Raises:
    UserError: an entity is not a part of the text, or two overlap.
  """
  found: list[CharacterSpan] = []
  for item in value:
    parts = _parts(item)
    assert parts is not None  # as are_entities found
    start, end, kind = parts
    if not 0 <= start < end <= len(text):
      raise UserError(
        f'{where} has an entity from character {start} to {end}; expected a part of its text, '
        f'which has {len(text)} characters, with the end after the start'
      )
    found.append(CharacterSpan(start, end, kind))
  found = sorted(set(found))
  for one, other in zip(found, found[1:], strict=False):
    if other.start < one.end:
      raise UserError(
        f'{where} has two entities that overlap, {text[one.start : one.end]!r} and '
        f'{text[other.start : other.end]!r}; expected at most one entity per word: remove one'
      )
  return found


def _parts(item: JsonValue) -> tuple[int, int, str] | None:
  """Start, end and type of an entity; None where it is none."""
  if isinstance(item, dict):
    fields = (_START_FIELDS, _END_FIELDS, _TYPE_FIELDS)
    item = [next((item[name] for name in names if name in item), None) for names in fields]
  if not isinstance(item, list) or len(item) != 3:
    return None
  start, end, kind = item
  whole = all(isinstance(x, int) and not isinstance(x, bool) for x in (start, end))
  return (start, end, kind) if whole and isinstance(kind, str) and kind else None


def entities_of_words(
  found: Iterable[CharacterSpan], spans: Sequence[tuple[int, int]], text: str, where: str
) -> tuple[list[Span], int]:
  """Entities by words, and the number of those that were extended to whole words.

  Args:
    found: entities by characters, ascending.
    spans: of `word_spans`.
    text: that they are in.
    where: the record, for messages.

  Raises:
    UserError: an entity has no word, or two entities are in one word.
  """
  starts = np.array([start for start, _ in spans], np.int64)
  ends = np.array([end for _, end in spans], np.int64)
  result: list[Span] = []
  widened = 0
  for start, end, kind in found:
    first, last = int(np.searchsorted(ends, start, 'right')), int(np.searchsorted(starts, end))
    shown = repr(text[start:end])
    if first >= last:
      raise UserError(f'{where} has the entity {shown}, which has no word; remove it')
    if result and first < result[-1][2]:
      raise UserError(
        f'{where} has two entities in the word {text[starts[first] : ends[first]]!r}; expected at '
        'most one entity per word: remove one'
      )
    inside = text[starts[first] : start].strip() or text[end : ends[last - 1]].strip()
    widened += bool(inside)
    result.append((kind, first, last))
  return result, widened

"""What a tokenizer loses of a text, in characters: unknown, removed, changed and truncated ones.

Every character of a text has one fate:

- kept: a token stands for it as it is;
- unknown: it is part of a word or a stretch that became [UNK];
- removed: normalization leaves nothing of it, such as a combining mark that is stripped;
- case_folded: a token has it in another case;
- white_space: white space that became other white space or nothing, and other characters that
  became white space;
- changed: normalization made something else of it: a letter without its accent, a compatibility
  form, or a composed character;
- truncated: it is after the last token that is used.

All tokenizers are judged by the same code. It compares the part of the text that each token was
made from (`Tokenizer.encode_with_offsets`) with the text that the token stands for
(`Tokenizer.token_bytes`). A tokenizer without offsets is judged by what it decodes.
"""

import collections
import dataclasses
import difflib
import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.data.tokenizers.tokenizer_settings import NoOffsets

# Fates of the characters that are not kept, in the order in which they are reported.
FATES = ('unknown', 'removed', 'case_folded', 'white_space', 'changed', 'truncated')
# Length in characters of the parts of long texts that a sample consists of.
_STRETCH = 2000
_WHITE_SPACE = re.compile(r'\s')
# Different characters that are recorded for each fate, the most frequent ones.
MOST_EXAMPLES = 100
# Between a character and what became of it, in examples.
ARROW = '→'

# In the decoded text of a tokenizer without offsets: a noncharacter for [UNK].
_UNKNOWN = '\U0010ffff'
# Letters of the Turkish casing rules, which pair I with ı and İ with i.
_TURKISH = {'I': 'i', 'ı': 'i'}

# White space, text and white space that tokens stand for, and whether they are [UNK].
Output: TypeAlias = tuple[str, str, str, bool]
# (fate, character, what became of it) -> number.
Events: TypeAlias = collections.Counter[tuple[str, str, str]]


@dataclasses.dataclass
class CharacterLosses:
  """Numbers of characters by their fate.

  Attributes:
    characters: of all texts.
    unknown: those in [UNK].
    removed: those that normalization removes.
    case_folded: those in another case.
    white_space: white space that changed, and characters that became white space.
    changed: those that normalization changes in another way.
    truncated: those after the last token that is used.
    examples: fate -> character -> number. Of changed characters also what they became, as `É→é`.
  """

  characters: int = 0
  unknown: int = 0
  removed: int = 0
  case_folded: int = 0
  white_space: int = 0
  changed: int = 0
  truncated: int = 0
  examples: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)

  @property
  def kept(self) -> int:
    """Characters that tokens stand for as they are."""
    others: list[int] = [getattr(self, fate) for fate in FATES]
    return self.characters - sum(others)

  @property
  def lost(self) -> int:
    """Characters of which nothing remains: unknown and removed ones."""
    return self.unknown + self.removed

  @property
  def lost_share(self) -> float:
    """Lost characters per character that is not truncated."""
    return self.lost / max(1, self.characters - self.truncated)

  @property
  def truncated_share(self) -> float:
    """Truncated characters per character."""
    return self.truncated / max(1, self.characters)

  def most_frequent(self, fate: str, number: int = 10) -> list[tuple[str, int]]:
    """The most frequent examples of a fate, with their numbers."""
    return _most_frequent(self.examples.get(fate, {}), number)

  def add(self, other: 'CharacterLosses') -> None:
    """Adds the counts of other texts."""
    self.characters += other.characters
    for fate in FATES:
      setattr(self, fate, getattr(self, fate) + getattr(other, fate))
    for fate, examples in other.examples.items():
      total = collections.Counter(self.examples.get(fate, {}))
      total.update(examples)
      self.examples[fate] = dict(_most_frequent(total, MOST_EXAMPLES))

  def plain(self) -> dict[str, Any]:
    """The counts as JSON values."""
    return dataclasses.asdict(self)

  @classmethod
  def from_plain(cls, values: Mapping[str, Any]) -> 'CharacterLosses':
    """The counts from JSON values."""
    examples = {fate: dict(found) for fate, found in values['examples'].items()}
    counts = {name: values[name] for name in ('characters', *FATES)}
    return cls(**counts, examples=examples)


def count(
  tokenizer: Tokenizer,
  texts: Sequence[str],
  used: Sequence[int] | None = None,
  threads: int | None = 1,
) -> CharacterLosses:
  """Counts the characters of texts by their fates in a tokenizer.

  Args:
    tokenizer: of any kind.
    texts: any text.
    used: of each text, the number of its tokens that are used; the characters after them are
      truncated. None if all are used.
    threads: of the tokenizer, see `Tokenizer.encode_arrays`.
  """
  losses = CharacterLosses(characters=sum(map(len, texts)))
  events: Events = collections.Counter()
  limits: Sequence[int | None] = [None] * len(texts) if used is None else used
  try:
    encoded = tokenizer.encode_with_offsets(texts, threads)
    for text, limit, (ids, spans) in zip(texts, limits, encoded, strict=True):
      is_cut = limit is not None and limit < len(ids)
      end = int(spans[:limit, 1].max(initial=0)) if is_cut else len(text)
      losses.truncated += len(text) - end
      _judge(tokenizer, text, ids, spans, end, events)
  except NoOffsets:
    for text, limit in zip(texts, limits, strict=True):
      end = len(text)
      if limit is not None:  # about as many characters per token everywhere
        end = min(end, end * limit // max(1, len(tokenizer.encode(text))))
      losses.truncated += len(text) - end
      _judge_decoded(tokenizer, text[:end], events)
  examples: dict[str, collections.Counter[str]] = {}
  for (fate, character, target), number in events.items():
    setattr(losses, fate, getattr(losses, fate) + number)
    key = character if fate in ('unknown', 'removed') else f'{character}{ARROW}{target}'
    examples.setdefault(fate, collections.Counter())[key] += number
  losses.examples = {
    fate: dict(_most_frequent(examples[fate], MOST_EXAMPLES)) for fate in FATES if fate in examples
  }
  return losses


def sample_texts(texts: Sequence[str], characters: int) -> list[str]:
  """Texts, or parts of long ones, of about a number of characters together, evenly spaced.

  Parts begin and end at white space where it is near. Fewer characters are returned whole.

  Args:
    texts: any text.
    characters: number of characters to choose.
  """
  total = sum(map(len, texts))
  if total <= characters:
    return list(texts)
  chosen = []
  passed = 0
  taken = 0
  for text in texts:
    start = 0
    while start < len(text):
      end = _white_space_after(text, start + _STRETCH)
      passed += end - start
      # The part is taken if the number of characters is then nearer to the share passed.
      if 2 * (passed * characters // total - taken) >= end - start:
        chosen.append(text[start:end])
        taken += end - start
      start = end
  return chosen


def _white_space_after(text: str, start: int) -> int:
  """The place of the next white space; `start` where none is near, or the end of the text."""
  if start >= len(text):
    return len(text)
  found = _WHITE_SPACE.search(text, start, start + _STRETCH)
  return found.start() if found else start


def _most_frequent(examples: Mapping[str, int], number: int) -> list[tuple[str, int]]:
  return sorted(examples.items(), key=lambda item: (-item[1], item[0]))[:number]


#### By offsets ####


def _judge(
  tokenizer: Tokenizer, text: str, ids: np.ndarray, spans: np.ndarray, limit: int, events: Events
) -> None:
  """Adds the fates of the first `limit` characters of a text to `events`."""
  position = 0
  space = ''  # white space that tokens stand for since `position`
  for start, end, output in _groups(tokenizer, ids, spans):
    leading, core, trailing, is_unknown = output
    if not is_unknown and (text[start : start + 1].isspace() or text[end - 1 : end].isspace()):
      start, end = _stripped(text, start, end)
    if start >= end or start < position:
      if not core:
        space += leading
      continue
    if start >= limit:
      break
    if start > position or not position:
      gap = text[position:start]
      if gap != ' ' or not position:
        _judge_gap(gap, space + leading, tokenizer.keeps_spaces, events)
    source = text[start : min(end, limit)]
    if is_unknown:
      for character in source:
        events['unknown', character, ''] += 1
    elif source != core:
      for fate in _compared(source, core):
        events[fate] += 1
    space = trailing
    position = end
  if position < limit:
    _judge_gap(text[position:limit], space, tokenizer.keeps_spaces, events)


def _groups(
  tokenizer: Tokenizer, ids: np.ndarray, spans: np.ndarray
) -> Iterator[tuple[int, int, Output]]:
  """Tokens that share characters of the text, such as the bytes of one character, as one.

  Yields:
    (start, end, what they stand for).
  """
  if not len(ids):
    return
  outputs = tokenizer.token_outputs
  starts = spans[:, 0]
  ends = np.maximum.accumulate(spans[:, 1])
  is_empty = starts == spans[:, 1]
  # A group ends before a token that shares no character with it. White space has empty spans, all
  # at one place where it is several bytes.
  is_same_place = is_empty[1:] & is_empty[:-1] & (starts[1:] == starts[:-1])
  firsts = np.flatnonzero(
    np.append(True, ~is_same_place & ((starts[1:] >= ends[:-1]) | is_empty[1:]))
  )
  lasts = np.append(firsts[1:], len(ids))
  tokens = ids.tolist()
  for start, end, first, after in zip(
    starts[firsts].tolist(), ends[lasts - 1].tolist(), firsts.tolist(), lasts.tolist(), strict=True
  ):
    if after == first + 1:
      i = tokens[first]
      yield start, end, _output(outputs[i], i == tokenizer.unk_id)
    else:
      group = tokens[first:after]
      content = b''.join([outputs[i] for i in group])
      yield start, end, _output(content, tokenizer.unk_id in group)


@functools.lru_cache(maxsize=1 << 16)
def _output(content: bytes, is_unknown: bool) -> Output:
  """What tokens stand for, from its UTF-8."""
  text = content.decode('utf-8', 'replace')
  core = text.strip()
  leading = text[: len(text) - len(text.lstrip())]
  return leading, core, text[len(leading) + len(core) :], is_unknown


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
  """A span without white space around it."""
  while start < end and text[end - 1].isspace():
    end -= 1
  while start < end and text[start].isspace():
    start += 1
  return start, end


def _judge_gap(gap: str, space: str, keeps_spaces: bool, events: Events) -> None:
  """Adds the fates of characters between two tokens.

  Args:
    gap: the characters.
    space: the white space between the two in what the tokens stand for.
    keeps_spaces: whether that white space was in the text.
    events: is added to.
  """
  if gap == space:
    return
  left = list(space)
  rest = []
  for character in gap:
    if character in left:
      left.remove(character)
    else:
      rest.append(character)
  for character in rest:
    if character.isspace():
      events['white_space', character, left.pop(0) if left else ''] += 1
  for character in rest:
    if not character.isspace():
      if keeps_spaces and left:
        events['white_space', character, left.pop(0)] += 1
      else:
        events['removed', character, ''] += 1


#### The characters of a token ####


@functools.lru_cache(maxsize=1 << 16)
def _compared(source: str, target: str) -> tuple[tuple[str, str, str], ...]:
  """The fates of the characters of `source` that are not in `target` as they are.

  Characters are decomposed (NFKD), since a part of one, such as its accent, may be lost.

  Args:
    source: a part of a text.
    target: what became of it.
  """
  owners = [i for i, c in enumerate(source) for _ in unicodedata.normalize('NFKD', c)]
  parts = ''.join(unicodedata.normalize('NFKD', character) for character in source)
  found = ''.join(unicodedata.normalize('NFKD', character) for character in target)
  if unicodedata.normalize('NFKD', parts) == unicodedata.normalize('NFKD', found):
    return tuple(('changed', c, _composed(c, target)) for c in source if c not in target)
  missing = [0] * len(source)
  exchanged = [False] * len(source)
  became = [''] * len(source)
  matcher = difflib.SequenceMatcher(None, _folded(parts), _folded(found), autojunk=False)
  for tag, first, last, begin, end in matcher.get_opcodes():
    for place in range(first, last):
      owner = owners[place]
      if tag == 'equal':
        became[owner] += found[begin + place - first]
      elif tag == 'delete':
        missing[owner] += 1
      else:
        exchanged[owner] = True
        became[owner] += found[begin + place - first] if begin + place - first < end else ''
  fates = []
  for i, character in enumerate(source):
    size = len(unicodedata.normalize('NFKD', character))
    result = unicodedata.normalize('NFC', became[i])
    fate = _fate(character, result, missing[i] == size, bool(missing[i]) or exchanged[i])
    if fate:
      fates.append((fate, character, '' if fate == 'removed' else result))
  return tuple(fates)


def _fate(character: str, result: str, is_missing: bool, is_partial: bool) -> str:
  """The fate of a character; empty if it is kept.

  Args:
    character: of the text.
    result: what became of it.
    is_missing: whether no part of it was kept.
    is_partial: whether a part of it is missing, or became something else.
  """
  if is_missing:
    return 'white_space' if character.isspace() else 'removed'
  if result == character:
    return ''
  if character.isspace() or result.isspace():
    return 'white_space'
  if not result:
    return 'removed'
  is_turkish = character == 'İ' and result == 'i'
  if is_turkish or not is_partial and _folded(character) == _folded(result):
    is_same = unicodedata.normalize('NFKD', character) == unicodedata.normalize('NFKD', result)
    return 'changed' if is_same else 'case_folded'
  return 'changed'


def _folded(text: str) -> str:
  """A text of the same length that does not depend on case."""
  folded = text.casefold()
  if len(folded) != len(text):
    folded = ''.join(c if len(c.casefold()) > 1 else c.casefold() for c in text)
  return folded if 'ı' not in folded else folded.translate({ord('ı'): 'i'})


def _composed(character: str, target: str) -> str:
  """The character of an equivalent text that a character is a part of, or what it is made of."""
  parts = unicodedata.normalize('NFKD', character)
  return next((c for c in target if parts in unicodedata.normalize('NFKD', c)), parts)


#### By decoding ####


def _judge_decoded(tokenizer: Tokenizer, text: str, events: Events) -> None:
  """Adds the fates of the characters of a text, by lines, from what is decoded."""
  for line in text.splitlines(keepends=True):
    decoded = ''
    ordinary: list[int] = []
    for i in [*tokenizer.encode(line), tokenizer.unk_id]:
      if i != tokenizer.unk_id:
        ordinary.append(i)
        continue
      decoded += (tokenizer.decode_ordinary(ordinary) if ordinary else '') + _UNKNOWN
      ordinary = []
    _judge_line(line, decoded[:-1], events)


def _judge_line(line: str, decoded: str, events: Events) -> None:
  matcher = difflib.SequenceMatcher(None, _folded(line), _folded(decoded), autojunk=False)
  for tag, first, last, begin, end in matcher.get_opcodes():
    source = line[first:last]
    target = decoded[begin:end]
    if _UNKNOWN in target:
      for character in source:
        fate = 'white_space' if character.isspace() else 'unknown'
        events[fate, character, ''] += 1
    elif tag == 'delete' and source == ' ' and 0 < begin < len(decoded):
      pass  # words that are tokens
    elif source != target and source:
      for found in _compared(source, target):
        events[found] += 1

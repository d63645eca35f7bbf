"""SentencePiece's normalization by the normalizers of the `tokenizers` library.

A model's rules map strings to strings, and SentencePiece applies the longest rule that matches at
each place, from the left. `tokenizers` has `Precompiled` for the same table, but it works on
grapheme clusters: in a cluster of less than six bytes it maps the shortest prefix that has a rule
and drops the rest, and in longer ones it maps each character separately. The two agree on a
character that is a cluster by itself. Therefore strings that a rule of several characters matches
are first found by a regular expression that steps through the text as SentencePiece does. Then
every character is mapped separately. Then the strings are composed (NFC), with a separator where
nothing may be composed.
"""

import base64
import functools
import json
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from electra_jax import json_reader

Normalizer: TypeAlias = Any  # of the `tokenizers` library, which is imported where it is used

# Inserted into the text temporarily: pairs of noncharacters, which no text has.
_APART = '\U0001fffe\U0002fffe'
_TOGETHER = '\U0001fffe\U0003fffe'
# Most rules that get their own normalizer; every text passes through all of them.
MOST_EXTRA_RULES = 100
# Characters that extend a cluster and are not marks: zero-width joiners, half-width voiced sound
# marks.
_EXTENDING = '\u200c\u200d\uff9e\uff9f'


def parse_rules(charsmap: bytes) -> dict[str, str]:
  """Returns the rules, source -> target, of a precompiled charsmap.

  It holds a double-array trie of UTF-8 (by darts-clone) and the strings that the trie points to.
  """
  size = int.from_bytes(charsmap[:4], 'little')
  units = np.frombuffer(charsmap[4 : 4 + size], '<u4').tolist()
  strings = charsmap[4 + size :]

  children: dict[int, list[tuple[int, int]]] = {}  # base of a node -> (label, index) of each child
  for i, unit in enumerate(units):
    if not unit >> 31 and unit & 0xFF:
      children.setdefault(i ^ unit & 0xFF, []).append((unit & 0xFF, i))
  found = {}
  nodes = [(b'', _jump(units[0]))]
  while nodes:
    key, base = nodes.pop()
    for label, i in children.get(base, ()):
      longer = key + bytes([label])
      below = i ^ _jump(units[i])
      if units[i] >> 8 & 1:
        start = units[below] & 0x7FFFFFFF
        found[longer.decode()] = strings[start : strings.index(b'\0', start)].decode()
      nodes.append((longer, below))
  return found


def edited(charsmap: bytes, changes: Mapping[str, str | None]) -> bytes:
  """Returns a precompiled charsmap without the rules of some sources, or with other targets.

  Compiling all rules again takes seconds.

  Args:
    charsmap: the rules.
    changes: source that does not begin another one -> a source whose target it gets; None to have
      no rule. Sources without a rule are skipped.
  """
  size = int.from_bytes(charsmap[:4], 'little')
  units = np.frombuffer(charsmap[4 : 4 + size], '<u4').copy()
  for source, other in changes.items():
    place = _place(units, source)
    if place is None:
      continue
    # Bit 8: there is a rule. Bits 10 to 30: distance to the target, which other rules share.
    label = int(units[place]) & 0xFF
    model = None if other is None else _place(units, other)
    if model is None:
      units[place] = int(units[place]) & ~(1 << 8)
    else:
      target = model ^ _jump(int(units[model]))
      units[place] = (place ^ target) << 10 | 1 << 8 | label
  return charsmap[:4] + units.tobytes() + charsmap[4 + size :]


def _place(units: np.ndarray, source: str) -> int | None:
  """The unit of the last byte of a source in the trie; None if there is no rule for it."""
  place = 0
  below = _jump(int(units[0]))
  for byte in source.encode():
    place = below ^ byte
    if place >= len(units) or int(units[place]) & 0x800000FF != byte:
      return None
    below = place ^ _jump(int(units[place]))
  return place if int(units[place]) >> 8 & 1 else None


def _jump(unit: int) -> int:
  """The distance from a node of the trie to its children."""
  return unit >> 10 << ((unit & 1 << 9) >> 6)


@functools.lru_cache(maxsize=4)  # takes seconds, and most models have the same table
def make_normalizers(charsmap: bytes) -> list[Normalizer] | None:
  """Returns normalizers that apply the rules together; None where that is not possible.

  A text that has U+1FFFE next to U+2FFFE or U+3FFFE loses the two characters.
  """
  from tokenizers import Regex
  from tokenizers.normalizers import NFC, Replace

  if not charsmap:
    return []
  table = parse_rules(charsmap)
  several = {source: target for source, target in table.items() if len(source) > 1}
  extra = _extra_rules(table, several) if several else {}
  if extra is None:
    return None
  mapped = precompiled(charsmap)
  near = _continuing_characters(table, several, extra)

  def insert(separator: str, pattern: str) -> Normalizer:
    return Replace(Regex(pattern), separator)

  # Never at the beginning: `Precompiled` fails where a text begins with the separator.
  if not several:
    return [insert(_APART, f'(?<=[\\s\\S])(?={near})'), mapped, Replace(_APART, '')]
  step = f'(?>[\\s\\S](?!{near})|{_alternatives(several)}|[\\s\\S])'
  return [
    insert(_APART, f'\\G(?>(?:{step}(?!{near}))*){step}\\K(?={near})'),
    insert(_TOGETHER, f'(?<=[^{_APART[1]}])(?={near})'),
    mapped,
    Replace(_TOGETHER, ''),
    *(Replace(text, extra[text]) for text in sorted(extra, key=len, reverse=True)),
    NFC(),
    Replace(_APART, ''),
  ]


def _continuing_characters(
  table: dict[str, str], several: Collection[str], extra: Collection[str]
) -> str:
  """A character class of all characters that may continue a rule, a cluster or a composition.

  It includes unassigned characters, which the tables of the library may not know yet, and a line
  feed, which forms a cluster with a carriage return before it.

  Args:
    table: all rules.
    several: the sources of several characters.
    extra: the sources that get their own normalizer.
  """
  seconds = {character for source in (*several, *extra) for character in source[1:]}

  def begins_so(text: str) -> bool:
    return bool(text) and (text[0] in seconds or unicodedata.category(text[0])[0] == 'M')

  mapped = {source for source, target in table.items() if len(source) == 1 and begins_so(target)}
  joined = seconds | set(_EXTENDING) | mapped
  separators = _ranges({*_APART, *_TOGETHER})
  return f'[\\p{{M}}\\p{{Cn}}{_ranges(joined)}\\n&&[^{separators}]]'


def precompiled(charsmap: bytes) -> Normalizer:
  """Returns the normalizer `Precompiled` of the library, which it constructs only from JSON."""
  from tokenizers import Tokenizer, models

  content = base64.b64encode(charsmap).decode()
  description = {'type': 'Precompiled', 'precompiled_charsmap': content}
  holder = json_reader.parse(Tokenizer(models.WordPiece()).to_str(), 'an empty tokenizer')
  return Tokenizer.from_str(json.dumps(holder | {'normalizer': description})).normalizer


def _extra_rules(table: dict[str, str], several: dict[str, str]) -> dict[str, str] | None:
  """The rules of several characters whose result NFC does not give, as of a newer Unicode.

  Args:
    table: all rules.
    several: the rules with a source of several characters.

  Returns:
    Source, with each character mapped separately -> target. None where composing would change
    other characters, or there are too many such rules.
  """
  from tokenizers.normalizers import NFC

  every_character = (chr(point) for point in (*range(0xD800), *range(0xE000, 0x110000)))
  is_composed = functools.partial(unicodedata.is_normalized, 'NFC')
  if not all(map(is_composed, table.values())) or not all(
    is_composed(character) or character in table for character in every_character
  ):
    return None
  mapped = [''.join(table.get(character, character) for character in source) for source in several]
  if any('\n' in text for text in mapped):
    return None
  # In one call, since a line feed composes with nothing.
  composed = NFC().normalize_str('\n'.join(mapped)).split('\n')
  extra = {
    text: target
    for text, result, target in zip(mapped, composed, several.values(), strict=True)
    if result != target
  }
  return extra if len(extra) <= MOST_EXTRA_RULES else None


def _alternatives(sources: Iterable[str]) -> str:
  """A regular expression that matches the longest of some strings."""
  trie: dict[str, Any] = {}
  for source in sources:
    node = trie
    for character in source:
      node = node.setdefault(character, {})
    node[''] = {}
  return _expression(trie)


def _expression(node: dict[str, Any]) -> str:
  by_rest: dict[str, list[str]] = {}
  for character, below in node.items():
    if character:
      rest = _expression(below)
      group = rest and (f'(?:{rest})?' if '' in below else f'(?:{rest})')
      by_rest.setdefault(group, []).append(character)
  return '|'.join(f'[{_ranges(characters)}]{rest}' for rest, characters in by_rest.items())


def _ranges(characters: Iterable[str]) -> str:
  """The inside of a character class."""
  return ''.join(
    f'\\x{{{first:X}}}' + (f'-\\x{{{last:X}}}' if last > first else '')
    for first, last in runs(sorted(map(ord, characters)))
  )


def runs(points: list[int]) -> Iterator[tuple[int, int]]:
  """(first, last) of each run of consecutive numbers."""
  start = None
  for i, point in enumerate(points):
    start = point if start is None else start
    if i + 1 == len(points) or points[i + 1] != point + 1:
      yield start, point
      start = None

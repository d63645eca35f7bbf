"""SentencePiece's normalization by the means that `tokenizers` has.

A model's rules map strings to strings, and SentencePiece applies the longest that fits at each place, from the left. `tokenizers`
has `Precompiled` for the same table, which looks at whole clusters of characters instead: of one under six bytes it maps the
shortest beginning that has a rule and drops what follows, of longer ones each character alone. The two agree on a character that
stands alone. So here the strings that a rule of several characters covers are found first, by a regular expression that steps
through the text as SentencePiece does; then every character is mapped alone; and the several are composed (NFC), with something
put where nothing may be composed.
"""

import base64
import functools
import json
import unicodedata
from collections.abc import Iterable, Iterator

# What is put into the text for a while: noncharacters, in a pair that no text has.
_APART, _TOGETHER = '\U0001fffe\U0002fffe', '\U0001fffe\U0003fffe'
# Rules that get a normalizer each; every text goes through all of them.
MOST_LEFT_OVER = 100
# Characters that extend a cluster and are no marks: zero-width joiners, half-width voiced sound marks.
_EXTENDING = '\u200c\u200d\uff9e\uff9f'


def rules(charsmap: bytes) -> dict[str, str]:
  """What a precompiled charsmap maps: a double-array trie of UTF-8 (darts-clone's) and the strings that it points to."""
  import numpy as np

  size = int.from_bytes(charsmap[:4], 'little')
  units = np.frombuffer(charsmap[4 : 4 + size], '<u4').tolist()
  strings = charsmap[4 + size :]

  def jump(unit):
    return unit >> 10 << ((unit & 1 << 9) >> 6)

  children = {}  # by the base of a node: (label, index) of each
  for i, unit in enumerate(units):
    if not unit >> 31 and unit & 0xFF:
      children.setdefault(i ^ unit & 0xFF, []).append((unit & 0xFF, i))
  found, nodes = {}, [(b'', jump(units[0]))]
  while nodes:
    key, base = nodes.pop()
    for label, i in children.get(base, ()):
      longer, below = key + bytes([label]), i ^ jump(units[i])
      if units[i] >> 8 & 1:
        start = units[below] & 0x7FFFFFFF
        found[longer.decode()] = strings[start : strings.index(b'\0', start)].decode()
      nodes.append((longer, below))
  return found


@functools.lru_cache(maxsize=4)  # seconds of work, and most models have the same table
def normalizers(charsmap: bytes) -> list | None:
  """Normalizers of `tokenizers` that do together what the rules do, or None where they cannot.

  A text that holds U+1FFFE beside U+2FFFE or U+3FFFE loses the two.
  """
  from tokenizers import Regex
  from tokenizers.normalizers import NFC, Replace

  if not charsmap:
    return []
  table = rules(charsmap)
  several = {source: target for source, target in table.items() if len(source) > 1}
  left_over = _left_over(table, several) if several else {}
  if left_over is None:
    return None
  # The library makes one only when it reads one.
  precompiled = _from_json(
    {'type': 'Precompiled', 'precompiled_charsmap': base64.b64encode(charsmap).decode()}
  )
  seconds = {character for source in (*several, *left_over) for character in source[1:]}

  def starts(text):
    return text and (text[0] in seconds or unicodedata.category(text[0])[0] == 'M')

  joined = (
    seconds
    | set(_EXTENDING)
    | {source for source, target in table.items() if len(source) == 1 and starts(target)}
  )
  # Before all others, no rule, no cluster and no composition goes on: that is, before those that are no marks. What the library's
  # tables do not know yet may be one, and \n is for \r\n.
  near = f'[\\p{{M}}\\p{{Cn}}{_ranges(joined)}\\n&&[^{_ranges({*_APART, *_TOGETHER})}]]'

  def before(put, pattern):
    return Replace(Regex(pattern), put)

  # Never at the very beginning: `Precompiled` fails where a text begins with what was put there.
  if not several:
    return [before(_APART, f'(?<=[\\s\\S])(?={near})'), precompiled, Replace(_APART, '')]
  step = f'(?>[\\s\\S](?!{near})|{_alternatives(several)}|[\\s\\S])'
  return [
    before(_APART, f'\\G(?>(?:{step}(?!{near}))*){step}\\K(?={near})'),
    before(_TOGETHER, f'(?<=[^{_APART[1]}])(?={near})'),
    precompiled,
    Replace(_TOGETHER, ''),
    *(Replace(text, left_over[text]) for text in sorted(left_over, key=len, reverse=True)),
    NFC(),
    Replace(_APART, ''),
  ]


def _from_json(description: dict):
  from tokenizers import Tokenizer, models

  holder = json.loads(Tokenizer(models.WordPiece()).to_str())
  return Tokenizer.from_str(json.dumps(holder | {'normalizer': description})).normalizer


def _left_over(table: dict[str, str], several: dict[str, str]) -> dict[str, str] | None:
  """What the rules of several characters make of them and composing what each one is mapped to does not, as of a newer Unicode.

  None where composing would do harm.
  """
  from tokenizers.normalizers import NFC

  alone = (chr(point) for point in (*range(0xD800), *range(0xE000, 0x110000)))
  unchanged = functools.partial(unicodedata.is_normalized, 'NFC')
  if not all(map(unchanged, table.values())) or not all(
    unchanged(character) or character in table for character in alone
  ):
    return None
  one = [''.join(table.get(character, character) for character in source) for source in several]
  if any('\n' in text for text in one):
    return None
  made = (
    NFC().normalize_str('\n'.join(one)).split('\n')
  )  # in one call: a line break composes with nothing
  left = {
    text: target
    for text, composed, target in zip(one, made, several.values(), strict=True)
    if composed != target
  }
  return left if len(left) <= MOST_LEFT_OVER else None


def _alternatives(sources: Iterable[str]) -> str:
  """A regular expression of the longest of some strings that begins here."""
  trie = {}
  for source in sources:
    node = trie
    for character in source:
      node = node.setdefault(character, {})
    node[''] = {}
  return _expression(trie)


def _expression(node: dict) -> str:
  by_rest = {}
  for character, below in node.items():
    if character:
      rest = _expression(below)
      by_rest.setdefault(rest and (f'(?:{rest})?' if '' in below else f'(?:{rest})'), []).append(
        character
      )
  return '|'.join(f'[{_ranges(characters)}]{rest}' for rest, characters in by_rest.items())


def _ranges(characters: Iterable[str]) -> str:
  """The inside of a character class."""
  runs = _runs(sorted(map(ord, characters)))
  return ''.join(
    f'\\x{{{first:X}}}' + (f'-\\x{{{last:X}}}' if last > first else '') for first, last in runs
  )


def _runs(points: list[int]) -> Iterator[tuple[int, int]]:
  start = None
  for i, point in enumerate(points):
    start = point if start is None else start
    if i + 1 == len(points) or points[i + 1] != point + 1:
      yield start, point
      start = None

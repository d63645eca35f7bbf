"""SentencePiece's normalization by NFKC, in steps that programs in JavaScript have, too.

The usual rules of SentencePiece are those of NFKC with some exceptions, but they are applied to one
source after the other: marks are not put in order, and nothing is composed across the end of a
source. A separator is therefore inserted before each character that NFKC could compose or put
before another one, unless it is inside a source. Then NFKC maps every source to its target.

Regular expressions have literal characters, and only what both Oniguruma (in the library
`tokenizers`) and JavaScript have.
"""

import collections
import dataclasses
import functools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from electra_jax.data.tokenizers import charsmap, normalization

Normalizer: TypeAlias = Any  # of the `tokenizers` library, which is imported where it is used
Table: TypeAlias = dict[str, str]

# Inserted into the text temporarily: pairs of noncharacters, which no text has.
_APART = '\U0001fffe\U0002fffe'
_KEPT = '\U0001fffe\U0005fffe'
# Most rules and characters that get a normalizer of their own; every text passes through all.
_MOST_LACKING, _MOST_KEPT = 100, 8
_LONGEST_SOURCE = 4
_OUTSIDE = 0x10000  # the first character outside of the basic plane
# In JavaScript, `Precompiled` is NFKC whatever its rules, and changes these characters, too.
_CHANGED_IN_JAVASCRIPT = [
  chr(point)
  for first, last in (
    *((0x1, 0xC), (0xD, 0x1F), (0x7F, 0x7F), (0x8F, 0x8F), (0x9F, 0x9F), (0x1680, 0x1680)),
    *((0x200B, 0x200F), (0x2028, 0x2029), (0x2581, 0x2581), (0xFEFF, 0xFEFF), (0xFFFD, 0xFFFD)),
  )
  for point in range(first, last + 1)
]
_ESCAPED = '\\]^-['


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What is done besides NFKC.

  Attributes:
    several: rules with a source of several characters.
    lacking: rules that NFKC lacks, of newer versions of Unicode than the library has: those with
      sources of several characters, and of characters of the basic plane.
    outside: the same of characters outside of the basic plane.
    kept: characters that no step may change.
    removed: rules that remove a character or make it a space.
  """

  several: Table
  lacking: Table
  outside: Table
  kept: list[str]
  removed: Table


@functools.lru_cache(maxsize=4)  # takes seconds, and most models have the same table
def make_normalizers(rules: bytes) -> list[Normalizer] | None:
  """Returns normalizers that apply compiled rules; None where NFKC with exceptions does not.

  A text that has U+1FFFE next to U+2FFFE or U+5FFFE loses the two characters. Where sources that
  NFKC lacks overlap, the longest is taken, and not the first one.

  Args:
    rules: the precompiled charsmap of a SentencePiece model; empty for none.
  """
  if not rules:
    return []
  plan = _plan(charsmap.parse_rules(rules))
  return _steps(plan) if _is_exact(plan) else None


def _plan(table: Table) -> _Plan:
  several = {source: target for source, target in table.items() if len(source) > 1}
  single = {c: table.get(c, c) for c in {*table, *_mapped()} - several.keys()}
  others = {c: to for c, to in single.items() if _mapped().get(c, c) != to}
  replaced = {c: to for c, to in others.items() if to not in ('', ' ', c)}
  outside = {c: to for c, to in replaced.items() if ord(c) >= _OUTSIDE}
  sources = {source: ''.join(replaced.get(c, c) for c in source) for source in several}
  composed = _nfkc(sources.values())
  unknown = {s: to for s, to in several.items() if composed[sources[s]] != to}
  kept = {c for c, to in others.items() if to == c}
  if outside:
    kept |= {c for c in _CHANGED_IN_JAVASCRIPT if single.get(c, c) == c}
  return _Plan(
    several={s: to for s, to in several.items() if s not in unknown},
    lacking={c: to for c, to in replaced.items() if c not in outside} | unknown,
    outside=outside,
    kept=sorted(kept),
    removed={c: to for c, to in others.items() if to in ('', ' ')},
  )


def _is_exact(plan: _Plan) -> bool:
  """Whether the steps of a plan map every source to its target, and nothing else."""
  if len(plan.lacking) > _MOST_LACKING or len(plan.kept) > _MOST_KEPT:
    return False
  if any(len(source) > _LONGEST_SOURCE or '\n' in source for source in plan.several):
    return False
  made = {*''.join(plan.several.values()), *''.join(_mapped().values())}
  if made & plan.removed.keys():
    return False
  # A source that begins with a character that is inside another source is not looked for.
  inside = _inside_sources(plan.several)
  for source, target in plan.several.items():
    if source[0] in inside and ''.join(_mapped().get(c, c) for c in source) != target:
      return False
  # What replaces a character is continued by the same characters.
  rests = collections.defaultdict(set)
  for source in plan.several:
    rests[source[0]].add(source[1:])
  singles = ((c, to) for c, to in plan.lacking.items() if len(c) == 1)
  return all(rests[c] == (rests[to] if len(to) == 1 else set()) for c, to in singles)


def _steps(plan: _Plan) -> list[Normalizer]:
  from tokenizers import Regex
  from tokenizers.normalizers import NFKC, Replace

  names = {c: f'{_KEPT}{i}{_KEPT}' for i, c in enumerate(plan.kept)}
  steps: list[Normalizer] = []
  for source in sorted(plan.lacking, key=len, reverse=True):
    target = plan.lacking[source]
    steps.append(Replace(source, target + (_APART if len(target) > 1 else '')))
  steps += [Replace(c, name) for c, name in names.items()]
  steps.append(Replace(Regex(_places_apart(plan.several)), _APART))
  for target in sorted({*plan.removed.values()}):
    sources = (c for c, to in plan.removed.items() if to == target)
    steps.append(Replace(Regex(f'[{_ranges(sources)}]'), target))
  if plan.outside:
    steps.append(charsmap.precompiled(normalization.compile_rules(plan.outside)))
  steps += [NFKC(), Replace(_APART, '')]
  return steps + [Replace(name, c) for c, name in names.items()]


def _inside_sources(several: Table) -> set[str]:
  return {c for source in several for c in source[1:]}


def _places_apart(several: Table) -> str:
  """A regular expression of the places before characters that must not be composed."""
  inside = _inside_sources(several)
  marks = {c for c in map(chr, _points()) if unicodedata.category(c)[0] == 'M'}
  first = {c for c, to in _mapped().items() if to[0] in inside | marks}
  near = f'[\\p{{M}}{_ranges(inside | marks | first)}]'
  return f'(?<=[\\s\\S])(?={near})(?!{"|".join(_joined(several, inside))})'


def _joined(several: Table, inside: set[str]) -> Iterator[str]:
  """Regular expressions of the places inside the sources of rules.

  Each is a beginning of sources, looked behind, and the rest of them. Beginnings that have the same
  rests are written together.
  """
  for cut in range(1, _LONGEST_SOURCE):
    beginnings: dict[str, list[str]] = collections.defaultdict(list)  # by rest
    for source in sorted(several):
      if len(source) > cut and source[0] not in inside:
        beginnings[source[cut:]].append(source[:cut])
    rests: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
    for rest, found in beginnings.items():
      rests[tuple(found)].append(rest)
    for key, ends in rests.items():
      yield f'(?<={_alternatives(key)})(?:{_alternatives(ends)})'


def _alternatives(texts: Iterable[str]) -> str:
  """A regular expression that matches at the beginnings of any of some texts."""
  below: dict[str, list[str]] = collections.defaultdict(list)
  for text in sorted(texts):
    below[text[0]].append(text[1:])
  firsts: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
  for first, rests in below.items():
    firsts[() if '' in rests else tuple(rests)].append(first)  # the shortest text is enough
  parts = []
  for key, characters in firsts.items():
    group = _alternatives(key)
    parts.append(f'[{_ranges(characters)}]' + (f'(?:{group})' if '|' in group else group))
  return '|'.join(parts)


def _ranges(characters: Iterable[str]) -> str:
  """The inside of a character class."""

  def escaped(point: int) -> str:
    return f'\\{chr(point)}' if chr(point) in _ESCAPED else chr(point)

  return ''.join(
    escaped(first) + (f'-{escaped(last)}' if last > first else '')
    for first, last in charsmap.runs(sorted(map(ord, characters)))
  )


def _nfkc(texts: Iterable[str]) -> Mapping[str, str]:
  """Text -> its NFKC by the library, for texts without line feeds, which compose with nothing."""
  from tokenizers.normalizers import NFKC

  texts = list(texts)
  return dict(zip(texts, NFKC().normalize_str('\n'.join(texts)).split('\n'), strict=True))


@functools.cache
def _mapped() -> Mapping[str, str]:
  """The characters that NFKC changes -> what they become."""
  found = _nfkc(chr(point) for point in _points() if chr(point) != '\n')
  return {c: to for c, to in found.items() if c != to}


def _points() -> Iterator[int]:
  yield from range(0xD800)
  yield from range(0xE000, 0x110000)

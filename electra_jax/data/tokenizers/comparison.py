"""Numbers by which tokenizers are compared on a text."""

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Sequence

from electra_jax.data.tokenizers import character_losses
from electra_jax.data.tokenizers.character_losses import CharacterLosses
from electra_jax.data.tokenizers.tokenization import Tokenizer

# Scripts whose characters have another name in Unicode.
_SCRIPTS = {'CJK': 'Han', 'IDEOGRAPHIC': 'Han'}
_JOINERS = '\u200c\u200d'


@dataclasses.dataclass(frozen=True)
class Measures:
  """Sizes and losses of texts in a tokenizer.

  Attributes:
    size: of its vocabulary.
    characters: of the texts.
    tokens: of the texts.
    words: stretches of letters, marks and digits. In a script without spaces between words these
      are phrases.
    whole_words: those of them that are one token.
    losses: characters by what became of them.
    lines: of the texts.
    same_lines: those of them that are the same after encoding and decoding.
  """

  size: int
  characters: int
  tokens: int
  words: int
  whole_words: int
  losses: CharacterLosses
  lines: int
  same_lines: int

  @property
  def tokens_per_word(self) -> float:
    """Tokens of the texts per word."""
    return self.tokens / max(1, self.words)

  @property
  def tokens_per_character(self) -> float:
    """Tokens of the texts per character."""
    return self.tokens / max(1, self.characters)

  @property
  def whole_share(self) -> float:
    """Share of the words that are one token."""
    return self.whole_words / max(1, self.words)

  @property
  def round_trip(self) -> float:
    """Share of the lines that are the same after encoding and decoding."""
    return self.same_lines / max(1, self.lines)


def measure(tokenizer: Tokenizer, texts: Sequence[str]) -> Measures:
  """Measures a tokenizer on texts."""
  counts = collections.Counter(word for text in texts for word in words_of(text))
  words = list(counts)
  encoded = tokenizer.encode_arrays(words)
  whole = sum(
    counts[word]
    for word, ids in zip(words, encoded, strict=True)
    if len(ids) == 1 and ids[0] != tokenizer.unk_id
  )
  lines = [line for text in texts for line in text.splitlines() if line]
  rows = tokenizer.encode_arrays(lines)
  same = sum(tokenizer.decode(row) == line for line, row in zip(lines, rows, strict=True))
  return Measures(
    size=tokenizer.size,
    characters=sum(map(len, texts)),
    tokens=sum(map(len, rows)),
    words=counts.total(),
    whole_words=whole,
    losses=character_losses.count(tokenizer, texts, threads=None),
    lines=len(lines),
    same_lines=same,
  )


def words_of(text: str) -> list[str]:
  """The stretches of letters, marks, digits and joiners of a text."""
  marks = {c for c in set(text) if unicodedata.category(c)[0] == 'M'} | set(_JOINERS)
  inside = ''.join(re.escape(mark) for mark in sorted(marks))
  return re.findall(f'[^\\W_](?:[^\\W_]|[{inside}])*', text)


def scripts(texts: Sequence[str]) -> list[tuple[str, float]]:
  """The scripts of texts, each with its share of the letters and marks, the largest first."""
  characters: collections.Counter[str] = collections.Counter()
  for text in texts:
    characters.update(text)
  found: collections.Counter[str] = collections.Counter()
  for character, number in characters.items():
    if unicodedata.category(character)[0] in 'LM':
      name = unicodedata.name(character, 'UNKNOWN').split()[0].partition('-')[0]
      if name not in ('COMBINING', 'MODIFIER'):
        found[_SCRIPTS.get(name, name.capitalize())] += number
  total = max(1, found.total())
  return [(name, number / total) for name, number in found.most_common()]

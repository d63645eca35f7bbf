"""Rows of token ids as text for a terminal: words joined, controls escaped, lines wrapped.

Widths are estimated here and not by rich, whose width of a text is not the sum of the widths of its
parts, as wrapping requires.
"""

import itertools
import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from electra_jax.data.tokenizers.tokenization import Tokenizer

# Green, magenta and yellow for verdicts, cyan for a restored original; struck red for a token that
# was replaced.
STYLES = {
  'caught': '1;32',
  'missed': '1;35',
  'false alarm': '1;33',
  'original': '36',
  'replaced': '1',
  'was': '9;31',
  'dim': '2',
  'bold': '1',
}
# Format characters that some scripts and emoji require; they are harmless.
JOINERS = '\u200c\u200d'
# Marks without a space before or after them, for tokenizers that drop spaces.
CLOSING, OPENING = set(".,;:!?)]}%'’”-"), set("([{$'‘“-")

# A text and its style, a key of STYLES, or None.
StyledText: TypeAlias = tuple[str, str | None]
# Whether a space precedes the text, and the text in parts.
Atom: TypeAlias = tuple[bool, Sequence[StyledText]]


def escaped(text: str) -> str:
  """A text that cannot control a terminal.

  Control, format and separator characters are written as in Python.
  """

  def is_harmless(c: str) -> bool:
    return c in JOINERS or unicodedata.category(c) not in ('Cc', 'Cf', 'Cs', 'Co', 'Zl', 'Zp')

  return ''.join(c if is_harmless(c) else c.encode('unicode_escape').decode() for c in text)


def cells(text: str) -> int:
  """The approximate number of columns of a text in a terminal."""

  def width(c: str) -> int:
    if unicodedata.combining(c) or c in JOINERS:
      return 0
    return 2 if unicodedata.east_asian_width(c) in 'WF' else 1

  return sum(map(width, text))


def outer_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
  """Ids of the special tokens that are not text: all but [UNK]."""
  return tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id


def surface(tokenizer: Tokenizer, token_id: int) -> tuple[bool, str]:
  """Whether the token begins a word, and its text without the vocabulary's marks ('▁', '##')."""
  if token_id in outer_ids(tokenizer):
    return True, tokenizer.token(token_id)
  begins, text = tokenizer.surface(token_id)
  return begins, escaped(text)


def texts(
  tokenizer: Tokenizer, token_ids: np.ndarray, separate: np.ndarray
) -> list[tuple[bool, str]]:
  """Whether a space precedes each token of a text, and its text.

  Args:
    tokenizer: of the ids.
    token_ids: int [length].
    separate: bool [length], tokens that are shown one by one. Consecutive bytes among the others
      are joined to characters, and the first of them has the text.
  """
  result: list[tuple[bool, str]] = []
  for i, token_id in enumerate(map(int, token_ids)):
    begins, text = surface(tokenizer, token_id)
    if i and not tokenizer.keeps_spaces:
      begins = begins and text not in CLOSING and result[-1][1] not in OPENING
    after_special = i > 0 and int(token_ids[i - 1]) in outer_ids(tokenizer)
    if not text and separate[i]:
      text = escaped(tokenizer.token(token_id))
    result.append((begins or after_special, text))
  values = [
    None if alone else tokenizer.partial_bytes(int(token_id))
    for alone, token_id in zip(separate, token_ids, strict=True)
  ]
  for is_bytes, group in itertools.groupby(enumerate(values), lambda item: item[1] is not None):
    if is_bytes:
      run = list(group)
      first = run[0][0]
      content = b''.join(value for _, value in run if value is not None)
      result[first] = result[first][0], escaped(content.decode('utf-8', 'backslashreplace'))
      for i, _ in run[1:]:
        result[i] = False, ''
  return result


def joined(parts: Iterable[tuple[bool, str]]) -> str:
  """The result of `texts` as one text."""
  return ''.join(' ' * space + text for space, text in parts)


def pieces(tokenizer: Tokenizer, token_ids: np.ndarray) -> list[np.ndarray]:
  """Splits a row into its texts; the two texts of a pair are separate.

  Args:
    tokenizer: of the ids.
    token_ids: int [length].

  Returns:
    Positions of each text, with [CLS] and [SEP] and without padding.
  """
  real = np.flatnonzero(token_ids != tokenizer.pad_id)
  ids = token_ids[real]
  begins = (ids == tokenizer.cls_id) | np.append(False, ids == tokenizer.sep_id)[:-1]
  return [part for part in np.split(real, np.flatnonzero(begins)) if len(part)]


def percent(p: float, digits: int = 1) -> str:
  """A probability in percent, rounded down: only 1 is 100%, and nothing below a half is 50%."""
  least = 10.0**-digits
  cut = math.floor(round(float(p) * 100 / least, 9)) * least
  return '100%' if p >= 1 else f'<{least:.{digits}f}%' if cut < least else f'{cut:.{digits}f}%'


def paint(parts: Iterable[StyledText], color: bool) -> str:
  """Parts as one text, with or without the escape sequences of their styles."""
  return ''.join(
    f'\x1b[{STYLES[style]}m{text}\x1b[0m' if color and style and text else text
    for text, style in parts
  )


def padded(text: str, width: int, align: str = '<') -> str:
  """A text in exactly `width` columns, shortened with an ellipsis if it is longer.

  Args:
    text: without styles.
    width: in columns.
    align: '<' keeps the beginning of the text, '>' its end.
  """
  whole = text
  text = text[:width] if align == '<' else text[-width:]
  while text and (cells(text) > width or len(text) < len(whole) and cells(text) > width - 1):
    text = text[:-1] if align == '<' else text[1:]
  cut = '…' if len(text) < len(whole) else ''
  space = ' ' * (width - cells(text) - len(cut))
  return text + cut + space if align == '<' else space + cut + text


def wrapped(atoms: Iterable[Atom], width: int, color: bool) -> list[str]:
  """Lines of at most `width` columns; only words longer than a line are split."""
  words: list[list[tuple[int, str]]] = []
  for space, parts in atoms:
    if space or not words:
      words.append([])
    words[-1].append((sum(cells(text) for text, _ in parts), paint(parts, color)))
  lines = ['']
  used = 0
  for word in words:
    if used and used + 1 + sum(size for size, _ in word) > width:
      lines.append('')
      used = 0
    elif used:
      lines[-1] += ' '
      used += 1
    for size, text in word:
      if used and used + size > width:
        lines.append('')
        used = 0
      lines[-1] += text
      used += size
  return lines

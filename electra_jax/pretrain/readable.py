"""Rows of tokens as text that a person reads in a terminal: words joined, hostile characters escaped, lines wrapped."""

import itertools
import math
import re
import unicodedata

import numpy as np

# Green, magenta and yellow for verdicts, cyan for an original put back; struck red for a token that is no longer there.
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
JOINERS = (
  '\u200c\u200d'  # format characters that some scripts and emoji are written with; they do no harm
)
# Marks without a space before or after them: WordPiece does not say on which side one stands.
CLOSING, OPENING = set(".,;:!?)]}%'’”-"), set("([{$'‘“-")
BYTE = re.compile(r'<0x([0-9A-F]{2})>')  # SentencePiece's byte fallback


def escaped(text: str) -> str:
  """A text that does nothing to a terminal: control, format and separator characters are written as in Python."""

  def harmless(c):
    return c in JOINERS or unicodedata.category(c) not in ('Cc', 'Cf', 'Cs', 'Co', 'Zl', 'Zp')

  return ''.join(c if harmless(c) else c.encode('unicode_escape').decode() for c in text)


def cells(text: str) -> int:
  """Columns that a text takes in a terminal, nearly."""

  def width(c):
    return (
      0
      if unicodedata.combining(c) or c in JOINERS
      else 1 + (unicodedata.east_asian_width(c) in 'WF')
    )

  return sum(map(width, text))


def outer_ids(tokenizer) -> tuple[int, ...]:
  """The special tokens that are not text."""
  return tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id


def surface(tokenizer, token_id: int) -> tuple[bool, str]:
  """Does the token begin a word, and its text without the vocabulary's marks ('▁', '##')."""
  token = tokenizer.token(token_id)
  if token_id in outer_ids(tokenizer):
    return True, token
  if tokenizer.kind == 'wordpiece':
    begins, text = not token.startswith('##'), token.removeprefix('##')
  else:
    begins, text = token.startswith('▁'), token.removeprefix('▁').replace('▁', ' ')
  return begins, escaped(text)


def texts(tokenizer, token_ids, apart) -> list[tuple[bool, str]]:
  """Of each token of a piece: does a space precede it, and its text.

  Args:
    token_ids: int [length].
    apart: bool [length], the tokens that are looked at one by one. Of the others bytes are joined to characters, the
      text at the first of them.
  """
  result = []
  for i, token_id in enumerate(map(int, token_ids)):
    begins, text = surface(tokenizer, token_id)
    if i and tokenizer.kind == 'wordpiece':
      begins = begins and text not in CLOSING and result[-1][1] not in OPENING
    after_special = i > 0 and int(token_ids[i - 1]) in outer_ids(tokenizer)
    result.append(
      (begins or after_special, text or apart[i] and escaped(tokenizer.token(token_id)) or '')
    )
  byte = [
    tokenizer.kind == 'sentencepiece' and not alone and BYTE.fullmatch(text)
    for alone, (_, text) in zip(apart, result, strict=True)
  ]
  for are_bytes, run in itertools.groupby(range(len(result)), key=lambda i: bool(byte[i])):
    if are_bytes:
      first, *others = run
      content = bytes(int(byte[i][1], 16) for i in [first, *others])
      result[first] = result[first][0], escaped(content.decode('utf-8', 'backslashreplace'))
      for i in others:
        result[i] = False, ''
  return result


def joined(parts) -> str:
  """What `texts` returned, as one text."""
  return ''.join(' ' * space + text for space, text in parts)


def pieces(tokenizer, token_ids) -> list[np.ndarray]:
  """Positions of each piece of a row [length], [CLS] and [SEP] included, padding not; a pair of texts is two pieces."""
  real = np.flatnonzero(token_ids != tokenizer.pad_id)
  ids = token_ids[real]
  begins = (ids == tokenizer.cls_id) | np.append(False, ids == tokenizer.sep_id)[:-1]
  return [part for part in np.split(real, np.flatnonzero(begins)) if len(part)]


def percent(p: float, digits: int = 1) -> str:
  """A probability, cut and not rounded: nothing but 1 is 100%, and nothing below a half is 50%."""
  least = 10.0**-digits
  cut = math.floor(round(float(p) * 100 / least, 9)) * least
  return '100%' if p >= 1 else f'<{least:.{digits}f}%' if cut < least else f'{cut:.{digits}f}%'


def paint(parts, colour: bool) -> str:
  """Parts (text, style of STYLES or None) as one text, in colours or plain."""
  return ''.join(
    f'\x1b[{STYLES[style]}m{text}\x1b[0m' if colour and style and text else text
    for text, style in parts
  )


def padded(text: str, width: int, align: str = '<') -> str:
  """`text` in so many columns, cut with an ellipsis where it is longer; '>' keeps its end."""
  text, whole = text[:width] if align == '<' else text[-width:], text
  while text and (cells(text) > width or len(text) < len(whole) and cells(text) > width - 1):
    text = text[:-1] if align == '<' else text[1:]
  cut = '…' if len(text) < len(whole) else ''
  space = ' ' * (width - cells(text) - len(cut))
  return text + cut + space if align == '<' else space + cut + text


def wrapped(atoms, width: int, colour: bool) -> list[str]:
  """Lines of at most `width` columns from atoms (does a space precede it, its parts); only longer words are cut."""
  words = []
  for space, parts in atoms:
    if space or not words:
      words.append([])
    words[-1].append((sum(cells(text) for text, _ in parts), paint(parts, colour)))
  lines, used = [''], 0
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

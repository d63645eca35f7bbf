"""Long texts in parts, and texts in calls of a tokenizer library, which bounds its memory."""

import enum
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

# Characters. A longer text is encoded in parts, which bounds the memory of the tokenizer libraries.
LONG_TEXT = 100_000
# Characters per call of a library: `tokenizers` holds some hundred bytes per token during a call.
CALL_CHARACTERS = 1_000_000
# Where a long text may be split: white space for every kind of tokenizer.
_CUTS = ' \n\t\r\u3000'
_WORD_SPACE = re.compile(r'(?<=\w) (?=\w)')
_SURROGATES = re.compile('[\ud800-\udfff]')

Encoded = TypeVar('Encoded')


class Cut(enum.Enum):
  """How a long text is split at white space so that the parts have the ids of the whole text."""

  DROP_SPACE = 'drop'  # the white space at a cut stands for nothing
  KEEP_SPACE = 'keep'  # a part begins with the space before its first word
  NONE = 'none'  # the text is not split


def set_threads(threads: int | None) -> None:
  """Sets whether the `tokenizers` library starts threads: not for `threads` = 1."""
  # The library reads this variable at each call, and has no other setting. With 'false' it starts
  # no pool.
  wanted = 'false' if threads == 1 else 'true'
  if os.environ.get('TOKENIZERS_PARALLELISM') != wanted:
    os.environ['TOKENIZERS_PARALLELISM'] = wanted


def join_rows(rows: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
  """Ids and spans of the parts of a text as those of the text."""
  if len(rows) == 1:
    return rows[0]
  ids = [np.zeros(0, np.int32), *(ids for ids, _ in rows)]
  spans = [np.zeros((0, 2), np.int32), *(spans for _, spans in rows)]
  return np.concatenate(ids), np.concatenate(spans)


def without_surrogates(
  encode: Callable[[list[str], int | None], list[Encoded]], texts: list[str], threads: int | None
) -> list[Encoded]:
  """Encodes texts, with U+FFFD in place of each lone surrogate.

  Args:
    encode: of a tokenizer: `(texts, threads) -> results`.
    texts: to encode.
    threads: threads of the library; None for its default.
  """
  try:
    return encode(texts, threads)
  except (TypeError, RuntimeError, UnicodeError):  # what the libraries raise for lone surrogates
    clean = [_SURROGATES.sub('\ufffd', text) for text in texts]
    if clean == texts:
      raise
    return encode(clean, threads)


def calls(
  texts: Sequence[str], cut: Cut = Cut.DROP_SPACE
) -> Iterator[tuple[Sequence[int], Sequence[int], list[str]]]:
  """Groups texts, in parts of at most `LONG_TEXT` characters, into calls of a tokenizer library.

  Args:
    texts: any text.
    cut: how longer ones are split.

  Yields:
    (index of the text of each part, index of its first character, the parts).
  """
  if sum(map(len, texts)) <= LONG_TEXT:  # the usual case, without cost
    if texts:
      yield range(len(texts)), [0] * len(texts), list(texts)
    return
  owners: list[int] = []
  starts: list[int] = []
  parts: list[str] = []
  characters = 0
  for owner, text in enumerate(texts):
    for start, part in _parts(text, cut):
      owners.append(owner)
      starts.append(start)
      parts.append(part)
      characters += len(part)
      if characters >= CALL_CHARACTERS:
        yield owners, starts, parts
        owners = []
        starts = []
        parts = []
        characters = 0
  if parts:
    yield owners, starts, parts


def _parts(text: str, cut: Cut) -> Iterator[tuple[int, str]]:
  """(start, part) of parts of at most `LONG_TEXT` characters, see `Cut`."""
  if cut is Cut.DROP_SPACE:
    yield from _parts_between_spaces(text)
    return
  start = 0
  while cut is Cut.KEEP_SPACE and len(text) - start > LONG_TEXT:
    end = start + LONG_TEXT
    # A single space between two words; of more spaces some would be words by themselves.
    spaces = [space.start() for space in _WORD_SPACE.finditer(text, start + 1, end)]
    end = spaces[-1] if spaces else end
    yield start, text[start:end]
    start = end
  yield start, text[start:]


def _parts_between_spaces(text: str) -> Iterator[tuple[int, str]]:
  start = 0
  while len(text) - start > LONG_TEXT:
    end = start + LONG_TEXT
    cut = max(text.rfind(white, start + 1, end) for white in _CUTS)
    yield start, text[start : cut if cut > 0 else end]
    start = cut + 1 if cut > 0 else end
  yield start, text[start:]

"""Encodes texts word by word, each distinct word once.

Where a tokenizer treats every stretch between spaces by itself, as BERT's does, the tokens of a
text are those of its words. Most words of a corpus have occurred before, so that a table of words
is several times faster than the library.
"""

import threading
from collections.abc import Callable, Sequence

import numpy as np

LEAST_CHARACTERS = 20_000  # of a call, below which the library is called as it is
MOST_CHARACTERS = 1 << 24  # of the words that are kept


class WordCache:
  """A table of words and their tokens. Threads may share it."""

  def __init__(self, encode: Callable[[list[str]], Sequence[Sequence[int]]]) -> None:
    """Starts empty.

    Args:
      encode: gives the ids of texts without spaces and line feeds.
    """
    self._encode = encode
    self._lock = threading.Lock()
    self._clear()

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of texts, int32 `[tokens]` each."""
    words_of = [text.replace('\n', ' ').split(' ') for text in texts]
    with self._lock:
      self._add({word for words in words_of for word in words} - self._numbers.keys())
      find = self._numbers.__getitem__
      found = [
        self._tokens(np.fromiter(map(find, words), np.int64, len(words))) for words in words_of
      ]
      if self._characters > MOST_CHARACTERS:
        self._clear()
    return found

  def _clear(self) -> None:
    self._numbers: dict[str, int] = {}
    self._characters = 0
    self._sizes = np.zeros(0, np.int64)
    self._starts = np.zeros(0, np.int64)
    self._ids = np.zeros(0, np.int32)

  def _add(self, words: set[str]) -> None:
    """Adds words with their tokens."""
    if not words:
      return
    new = list(words)
    first = len(self._numbers)
    rows = self._encode(new)
    self._numbers.update(zip(new, range(first, first + len(new)), strict=True))
    self._characters += sum(map(len, new))
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    self._starts = np.concatenate([self._starts, len(self._ids) + np.cumsum(sizes) - sizes])
    self._sizes = np.concatenate([self._sizes, sizes])
    ids = np.fromiter((i for row in rows for i in row), np.int32, int(sizes.sum()))
    self._ids = np.concatenate([self._ids, ids])

  def _tokens(self, numbers: np.ndarray) -> np.ndarray:
    """The tokens of words, one after another."""
    sizes = self._sizes[numbers]
    ends = np.cumsum(sizes)
    places = np.repeat(self._starts[numbers] - ends + sizes, sizes)
    places += np.arange(len(places))
    found: np.ndarray = self._ids[places]
    return found

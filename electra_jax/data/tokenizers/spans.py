"""Spans, which are the characters of a text that tokens were made from."""

import unicodedata

import numpy as np


def without_white_space(text: str, spans: np.ndarray) -> np.ndarray:
  """Spans without the white space around them, in ascending order.

  Args:
    text: the text.
    spans: start and end of each token, int32 `[tokens, 2]`.

  Returns:
    int32 `[tokens, 2]`; a token of white space is empty.
  """
  if not len(spans):
    return spans
  start, end = spans.T
  white = np.array([character.isspace() for character in text], bool)
  if white.any():
    places = np.arange(len(text), dtype=np.int32)
    # From each place on, the first character that is not white space, and before it, the end of
    # the last one.
    after = np.append(np.where(white, len(text), places), len(text)).astype(np.int32)
    after = np.minimum.accumulate(after[::-1])[::-1]
    before = np.append(0, np.where(white, 0, places + 1)).astype(np.int32)
    before = np.maximum.accumulate(before)
    start = np.minimum(after[start], end)
    end = np.maximum(before[end], start)
  start = np.maximum.accumulate(start)
  return np.stack([start, np.maximum.accumulate(np.maximum(start, end))], axis=1)


def with_accents(text: str, spans: np.ndarray) -> np.ndarray:
  """Extends spans over stripped accents that are separate characters, to the token before them.

  Args:
    text: the text.
    spans: int32 `[tokens, 2]`; changed in place.
  """
  if text.isascii() or not len(spans):
    return spans
  points = np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)
  marks = [p for p in np.unique(points[points >= 0x300]) if unicodedata.category(chr(p)) == 'Mn']
  if marks:
    others = np.append(np.flatnonzero(~np.isin(points, marks)), len(text))
    # The first character at or after the end of each token that is not a mark.
    following = others[np.searchsorted(others, spans[:, 1])]
    next_start = np.append(spans[1:, 0], len(text))
    spans[:, 1] = np.maximum(spans[:, 1], np.minimum(following, next_start))
  return spans

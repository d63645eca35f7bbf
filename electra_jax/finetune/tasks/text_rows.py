"""Rows of token ids of texts and pairs: truncated, or windows of what is longer than a row."""

import math
from collections.abc import Sequence

import numpy as np

from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError


def truncated_first(first: int, second: int, room: int) -> int:
  """The length of the first text of a pair after truncation.

  The longer text loses its last tokens; of two equally long texts, the second does.

  Args:
    first: tokens of the first text.
    second: tokens of the second text.
    room: tokens of both texts at most; less than they have.
  """
  return min(first, max(room - second, (room + 1) // 2))


def token_rows(
  firsts: Sequence[str], seconds: Sequence[str] | None, tokenizer: Tokenizer, max_length: int
) -> tuple[list[np.ndarray], dict[str, int]]:
  """Rows int32 [length] of at most `max_length` tokens, and counts of what was truncated.

  Args:
    firsts: the texts.
    seconds: the second texts of pairs; None for rows of single texts.
    tokenizer: of the encoder.
    max_length: tokens of a row at most, special ones included.

  Raises:
    UserError: `max_length` leaves no room for text.
  """
  paired = seconds is not None
  room = max_length - (2 + tokenizer.separators if paired else 2)
  if room < 2:
    raise UserError(
      f'config.max_length is {max_length}, which leaves no room for text; expected at least 16'
    )
  cls, sep = np.array([tokenizer.cls_id], np.int32), np.array([tokenizer.sep_id], np.int32)
  between = np.repeat(sep, tokenizer.separators)
  first_ids = tokenizer.encode_arrays(list(firsts))
  second_ids = first_ids if seconds is None else tokenizer.encode_arrays(list(seconds))
  rows: list[np.ndarray] = []
  truncated, removed = 0, 0
  for first, second in zip(first_ids, second_ids, strict=True):
    total = len(first) + (len(second) if paired else 0)
    if total > room:
      truncated, removed = truncated + 1, removed + total - room
      keep = truncated_first(len(first), len(second), room) if paired else room
      first, second = first[:keep], second[: room - keep]
    rows.append(np.concatenate([cls, first, between, second, sep] if paired else [cls, first, sep]))
  if not truncated:
    return rows, {}
  return rows, {f'texts cut to {max_length} tokens': truncated, 'tokens cut off': removed}


def window_rows(
  firsts: Sequence[str],
  seconds: Sequence[str] | None,
  tokenizer: Tokenizer,
  max_length: int,
  stride: int,
) -> tuple[list[np.ndarray], np.ndarray, dict[str, int]]:
  """Rows int32 [length] of windows, the text of each, and counts of what was cut.

  Args:
    firsts: the texts.
    seconds: the second texts of pairs, which have the windows; None for single texts.
    tokenizer: of the encoder.
    max_length: tokens of a row at most, special ones included.
    stride: tokens from one window to the next at most.

  Raises:
    UserError: `max_length` leaves no room for text.
  """
  cls, sep = np.array([tokenizer.cls_id], np.int32), np.array([tokenizer.sep_id], np.int32)
  encoded = tokenizer.encode_arrays(list(firsts if seconds is None else seconds))
  half = (max_length - 2 - tokenizer.separators) // 2
  between = np.repeat(sep, tokenizer.separators)
  heads = [cls] * len(firsts)
  cut = 0
  if seconds is not None:
    first_ids = tokenizer.encode_arrays(list(firsts))
    cut = sum(max(0, len(first) - half) for first in first_ids)
    heads = [np.concatenate([cls, first[:half], between]) for first in first_ids]
  if max_length - 1 - len(heads[0] if heads else cls) < 2 or half < 2:
    raise UserError(
      f'config.max_length is {max_length}, which leaves no room for text; expected at least 16'
    )
  rows: list[np.ndarray] = []
  owners: list[int] = []
  for number, (head, ids) in enumerate(zip(heads, encoded, strict=True)):
    room = max_length - len(head) - 1
    for start in window_starts(len(ids), room, stride):
      rows.append(np.concatenate([head, ids[start : start + room], sep]))
      owners.append(number)
  counts = {
    f'further windows on texts longer than {max_length} tokens': len(rows) - len(firsts),
    'tokens of first texts cut off': cut,
  }
  shown = {name: count for name, count in counts.items() if count}
  return rows, np.array(owners, np.int32), shown


def window_starts(tokens: int, room: int, stride: int) -> range:
  """First tokens of the windows on a text.

  The next window starts `stride` tokens later, or half a window where that is less, so that any
  part of half a window is in one window as a whole.

  Args:
    tokens: of the text.
    room: tokens of a window at most.
    stride: tokens from one window to the next at most.
  """
  step = min(stride, (room + 1) // 2)
  return range(0, max(1, math.ceil((tokens - room) / step) * step + 1), step)

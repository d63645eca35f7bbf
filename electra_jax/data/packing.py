"""Documents' token ids to rows of one length, without losing a token."""

from collections.abc import Iterable, Iterator

import numpy as np

from electra_jax.config import UserError

MIN_PIECE = 8
MIN_ROW_LENGTH = 8


def pack(
  documents: Iterable[np.ndarray],
  row_length: int,
  cls_id: int,
  sep_id: int,
  pad_id: int,
  min_piece: int = MIN_PIECE,
) -> Iterator[np.ndarray]:
  """Packs documents into rows of pieces, each `[CLS] tokens [SEP]`, in order, padding after the last piece.

  A document is cut where the row ends and goes on in the next, so every token comes out once and in order. A cut leaves
  no piece shorter than `min_piece`, since a sliver has no context to learn from: where one would be left, the piece
  before it gives up tokens, or the whole of it waits for the next row. That padding is at most `2 * min_piece` tokens a
  document.

  Args:
    documents: integer arrays `[tokens]` without special tokens; empty ones give nothing.
    row_length: tokens a row.
    min_piece: the shortest piece, in tokens without [CLS] and [SEP], that a cut may leave.

  Yields:
    Rows, int32 `[row_length]`.

  Raises:
    UserError: rows too short to hold a piece.
  """
  check_row_length(row_length)
  min_piece = min(min_piece, (row_length - 2) // 2)
  row, used = np.full(row_length, pad_id, np.int32), 0
  for document in documents:
    document = np.asarray(document)
    start, remaining = 0, len(document)
    while remaining:
      take = _take(remaining, row_length - used - 2, min_piece)
      if take == 0:
        yield row
        row, used = np.full(row_length, pad_id, np.int32), 0
        continue
      row[used] = cls_id
      row[used + 1 : used + 1 + take] = document[start : start + take]
      row[used + 1 + take] = sep_id
      used += take + 2
      start += take
      remaining -= take
  if used:
    yield row


def check_row_length(row_length: int) -> None:
  """Raises UserError where rows are too short to hold pieces worth learning from."""
  if row_length < MIN_ROW_LENGTH:
    raise UserError(f'row_length is {row_length}; rows need {MIN_ROW_LENGTH} tokens at least')


def pieces(row: np.ndarray, cls_id: int, sep_id: int) -> list[np.ndarray]:
  """The pieces of a row, `[row_length]`, without their [CLS] and [SEP]."""
  starts = np.flatnonzero(row == cls_id)
  ends = np.flatnonzero(row == sep_id)
  return [row[start + 1 : end] for start, end in zip(starts, ends, strict=True)]


def _take(remaining: int, room: int, min_piece: int) -> int:
  """Tokens to put into a row that has room for `room`: 0 where the rest of the row is better left as padding."""
  if remaining <= room:
    return remaining
  take = min(room, remaining - min_piece)
  return take if take >= min_piece else 0

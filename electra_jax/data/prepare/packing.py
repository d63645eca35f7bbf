"""Makes rows of one length from token ids.

`pack` loses no token. `segment_pairs` makes the two-segment examples of the original program.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from electra_jax.errors import UserError

ROW_FORMATS = ('packed', 'segment_pair')
MIN_PIECE = 8
MIN_ROW_LENGTH = 8

# Constants of build_pretraining_dataset.py in google-research/electra.
ONE_SEGMENT = 0.1  # fraction of examples with one segment, like single sentences in classification
SHORT_TARGET = 0.05  # fraction of examples with a random target length
OVERFULL_FIRST = 0.5  # probability that a line overfills the first segment if it is the last there
SHORTEST_TARGET = 5


def pack(
  documents: Iterable[np.ndarray],
  row_length: int,
  cls_id: int,
  sep_id: int,
  pad_id: int,
  min_piece: int = MIN_PIECE,
  document_starts: list[int] | None = None,
) -> np.ndarray:
  """Packs documents into rows of pieces, each `[CLS] tokens [SEP]`, in order.

  A document is cut where a row ends and continues in the next, so every token occurs once and in
  order. Padding follows the last piece. A cut leaves no piece shorter than `min_piece`, because so
  short a piece has no context to learn from: the piece before it gives up tokens, or the whole
  piece moves to the next row. This pads at most `2 * min_piece` tokens per document.

  Args:
    documents: integer arrays `[tokens]` without special tokens; empty ones are skipped.
    row_length: tokens per row.
    cls_id: id of [CLS].
    sep_id: id of [SEP].
    pad_id: id of padding.
    min_piece: the least tokens of a piece after a cut, without [CLS] and [SEP].
    document_starts: the place of each document's first [CLS] in the concatenated rows is added.

  Returns:
    int32 `[rows, row_length]`.

  Raises:
    UserError: rows are too short to hold a piece.
  """
  check_row_length(row_length)
  min_piece = min(min_piece, (row_length - 2) // 2)
  documents = [np.asarray(document) for document in documents]
  piece_starts: list[int] = []  # place of each piece's [CLS] in the concatenated rows
  piece_sizes: list[int] = []  # tokens of each piece
  position = 0
  document_starts = [] if document_starts is None else document_starts
  for document in documents:
    remaining = len(document)
    first_piece = len(piece_starts)
    while remaining:
      take = _take(remaining, row_length - position % row_length - 2, min_piece)
      if take == 0:
        position += row_length - position % row_length
        continue
      piece_starts.append(position)
      piece_sizes.append(take)
      position += take + 2
      remaining -= take
    document_starts += piece_starts[first_piece : first_piece + 1]
  starts = np.array(piece_starts, np.int64)
  sizes = np.array(piece_sizes, np.int64)
  rows = np.full(-(-position // row_length) * row_length, pad_id, np.int32)
  if len(starts):
    rows[starts] = cls_id
    rows[starts + sizes + 1] = sep_id
    # Places of tokens of the text: those after a [CLS] and before its [SEP]. One byte each, since a
    # document may be very long.
    steps = np.zeros(len(rows) + 1, np.int8)
    steps[starts + 1] += 1
    steps[starts + sizes + 1] -= 1
    rows[np.cumsum(steps, dtype=np.int8)[:-1].view(bool)] = (
      documents[0] if len(documents) == 1 else np.concatenate(documents)
    )
  return rows.reshape(-1, row_length)


def segment_pairs(
  documents: Iterable[Sequence[np.ndarray]],
  row_length: int,
  cls_id: int,
  sep_id: int,
  pad_id: int,
  rng: np.random.Generator,
  counts: dict[str, int],
) -> Iterator[tuple[int, np.ndarray]]:
  """Makes rows `[CLS] first [SEP] second [SEP]` or `[CLS] first [SEP]`.

  As build_pretraining_dataset.py of google-research/electra does: lines of a document are collected
  up to the target length, which is that of the row, or random for a fraction `SHORT_TARGET` of the
  rows. Lines go to the first segment up to half of the target (all of them for a fraction
  `ONE_SEGMENT` of the rows) and the rest to the second. Tokens beyond the row are dropped, as
  there, but counted.

  Args:
    documents: for each document its lines, integer arrays `[tokens]` without special tokens.
    row_length: tokens per row.
    cls_id: id of [CLS].
    sep_id: id of [SEP].
    pad_id: id of padding.
    rng: the source of all random numbers, used in order.
    counts: `dropped_tokens` is added to.

  Yields:
    The index of the document and a row of it, int32 `[row_length]`.

  Raises:
    UserError: rows are too short to hold a piece.
  """
  check_row_length(row_length)
  target = row_length
  for index_of_document, lines in enumerate(documents):
    collected: list[np.ndarray] = []
    length = 0
    for index, line in enumerate(lines):
      collected.append(line)
      length += len(line)
      if length < target and index + 1 < len(lines):
        continue
      if length:
        first, second = _two_segments(collected, target, rng)
        kept_first = first[: row_length - 2]
        kept_second = second[: max(0, row_length - len(kept_first) - 3)]
        counts['dropped_tokens'] += len(first) + len(second) - len(kept_first) - len(kept_second)
        end = [kept_second, [sep_id]] if len(kept_second) else []
        ids = np.concatenate([[cls_id], kept_first, [sep_id], *end])
        row = np.full(row_length, pad_id, np.int32)
        row[: len(ids)] = ids
        yield index_of_document, row
        short = rng.random() < SHORT_TARGET
        target = int(rng.integers(SHORTEST_TARGET, row_length + 1)) if short else row_length
      collected = []
      length = 0


def _two_segments(
  lines: Iterable[np.ndarray], target: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """The lines of an example, distributed to its first and second segment."""
  most = np.inf if rng.random() < ONE_SEGMENT else (target - 3) // 2
  first: list[np.ndarray] = []
  second: list[np.ndarray] = []
  length = 0  # of the first
  for line in lines:
    fits = length + len(line) < most
    overfull = not second and length < most and rng.random() < OVERFULL_FIRST
    if not first or fits or overfull:
      first.append(line)
      length += len(line)
    else:
      second.append(line)
  nothing = np.zeros(0, np.int32)
  return (
    np.concatenate(first) if first else nothing,
    np.concatenate(second) if second else nothing,
  )


def check_row_length(row_length: int) -> None:
  """Checks that rows can hold pieces worth learning from.

  Raises:
    UserError: they are too short.
  """
  if row_length < MIN_ROW_LENGTH:
    raise UserError(f'row_length is {row_length}; expected at least {MIN_ROW_LENGTH} tokens.')


def row_pieces(row: np.ndarray, cls_id: int, sep_id: int) -> list[np.ndarray]:
  """The pieces of a row.

  Args:
    row: `[row_length]`.
    cls_id: id of [CLS].
    sep_id: id of [SEP].

  Returns:
    Arrays `[tokens]` without [CLS] and [SEP].
  """
  starts = np.flatnonzero(row == cls_id)
  ends = np.flatnonzero(row == sep_id)
  return [row[start + 1 : end] for start, end in zip(starts, ends, strict=True)]


def _take(remaining: int, room: int, min_piece: int) -> int:
  """Tokens to put into a row with room for `room`; 0 to pad the rest of the row."""
  if remaining <= room:
    return remaining
  take = min(room, remaining - min_piece)
  return take if take >= min_piece else 0

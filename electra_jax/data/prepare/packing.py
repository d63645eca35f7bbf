"""Documents' token ids to rows of one length: packed without losing a token, or the original's two-segment examples."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from electra_jax.errors import UserError

ROW_FORMATS = ('packed', 'segment_pair')
MIN_PIECE = 8
MIN_ROW_LENGTH = 8

# Of google-research/electra's build_pretraining_dataset.py.
ONE_SEGMENT = (
  0.1  # examples whose lines all go to the first segment, as single sentences do in classification
)
SHORT_TARGET = 0.05  # examples that aim at a random length
OVERFULL_FIRST = (
  0.5  # a line that overfills the first segment still goes there, where no second has begun
)
SHORTEST_TARGET = 5


def pack(
  documents: Iterable[np.ndarray],
  row_length: int,
  cls_id: int,
  sep_id: int,
  pad_id: int,
  min_piece: int = MIN_PIECE,
) -> np.ndarray:
  """Packs documents into rows of pieces, each `[CLS] tokens [SEP]`, in order, padding after the last piece.

  A document is cut where the row ends and goes on in the next, so every token comes out once and in order. A cut leaves
  no piece shorter than `min_piece`, since a sliver has no context to learn from: where one would be left, the piece
  before it gives up tokens, or the whole of it waits for the next row. That padding is at most `2 * min_piece` tokens a
  document.

  Args:
    documents: integer arrays `[tokens]` without special tokens; empty ones give nothing.
    row_length: tokens a row.
    min_piece: the shortest piece, in tokens without [CLS] and [SEP], that a cut may leave.

  Returns:
    Rows, int32 `[rows, row_length]`.

  Raises:
    UserError: rows too short to hold a piece.
  """
  check_row_length(row_length)
  min_piece = min(min_piece, (row_length - 2) // 2)
  documents = [np.asarray(document) for document in documents]
  starts, takes = [], []  # of each piece: where its [CLS] stands in the flat rows, and its tokens
  position = 0
  for document in documents:
    remaining = len(document)
    while remaining:
      take = _take(remaining, row_length - position % row_length - 2, min_piece)
      if take == 0:
        position += row_length - position % row_length
        continue
      starts.append(position)
      takes.append(take)
      position += take + 2
      remaining -= take
  starts, takes = np.array(starts, np.int64), np.array(takes, np.int64)
  rows = np.full(-(-position // row_length) * row_length, pad_id, np.int32)
  if len(starts):
    rows[starts], rows[starts + takes + 1] = cls_id, sep_id
    moved = (
      starts + 1 - (np.cumsum(takes) - takes)
    )  # from a token's place in the text to its place in the rows
    rows[np.arange(takes.sum()) + np.repeat(moved, takes)] = np.concatenate(documents)
  return rows.reshape(-1, row_length)


def segment_pairs(
  documents: Iterable[Sequence[np.ndarray]],
  row_length: int,
  cls_id: int,
  sep_id: int,
  pad_id: int,
  rng: np.random.Generator,
  counts: dict,
) -> Iterator[np.ndarray]:
  """Rows `[CLS] first [SEP] second [SEP]`, or `[CLS] first [SEP]`, as google-research/electra's builder makes them.

  Lines of a document are gathered until they reach the target length, which is the row's, or a random one for
  `SHORT_TARGET` of the rows. Lines then go to the first segment up to half of the target (all of them, for
  `ONE_SEGMENT` of the rows), and the rest to the second. What is longer than the row is cut off and lost, as there,
  but counted.

  Args:
    documents: for each document its lines, integer arrays `[tokens]` without special tokens.
    row_length: tokens a row.
    rng: all that is random is drawn from it, in order.
    counts: its 'dropped_tokens' grows by the tokens that were cut off.

  Yields:
    Rows, int32 `[row_length]`.

  Raises:
    UserError: rows too short to hold a piece.
  """
  check_row_length(row_length)
  target = row_length
  for lines in documents:
    gathered, length = [], 0
    for index, line in enumerate(lines):
      gathered.append(line)
      length += len(line)
      if length < target and index + 1 < len(lines):
        continue
      if length:
        first, second = _two_segments(gathered, target, rng)
        first, kept = first[: row_length - 2], len(first)
        second, kept = second[: max(0, row_length - len(first) - 3)], kept + len(second)
        counts['dropped_tokens'] += kept - len(first) - len(second)
        row = np.full(row_length, pad_id, np.int32)
        ids = np.concatenate(
          [[cls_id], first, [sep_id], *([second, [sep_id]] if len(second) else [])]
        )
        row[: len(ids)] = ids
        yield row
        target = (
          int(rng.integers(SHORTEST_TARGET, row_length + 1))
          if rng.random() < SHORT_TARGET
          else row_length
        )
      gathered, length = [], 0


def _two_segments(lines, target, rng):
  """The lines of an example, dealt to its first and second segment."""
  most = np.inf if rng.random() < ONE_SEGMENT else (target - 3) // 2
  segments, lengths = ([], []), [0, 0]
  for line in lines:
    fits = lengths[0] + len(line) < most
    overfull = not segments[1] and lengths[0] < most and rng.random() < OVERFULL_FIRST
    chosen = 0 if not segments[0] or fits or overfull else 1
    segments[chosen].append(line)
    lengths[chosen] += len(line)
  return [np.concatenate(segment) if segment else np.zeros(0, np.int32) for segment in segments]


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

"""The search for the largest batch that fits."""

from collections.abc import Callable
from typing import NamedTuple


class Attempt(NamedTuple):
  """What a batch did.

  Attributes:
    batch: rows.
    fits: whether its steps ran; False for a lack of memory.
    peak: bytes at most; None if it does not fit.
    held: bytes between steps.
    limit: bytes that there are; None if unknown.
  """

  batch: int
  fits: bool
  peak: int | None = None
  held: int | None = None
  limit: int | None = None


def expected_batch(attempt: Attempt) -> int | None:
  """Rows whose memory would be all there is, if what a step needs is in proportion to its rows.

  None where the memory of the attempt is unknown.
  """
  if attempt.peak is None or attempt.held is None or not attempt.limit:
    return None
  if attempt.peak <= attempt.held:
    return None
  per_row = (attempt.peak - attempt.held) / attempt.batch
  return int((attempt.limit - attempt.held) / per_row)


def largest_batch(
  attempt: Callable[[int], Attempt | None], start: int, most: int, step: int, close: float = 0.04
) -> tuple[int, int | None]:
  """The largest batch that was seen to fit, and the smallest that was not.

  Args:
    attempt: tries a number of rows; returns None to end the search.
    start: rows of the first attempt.
    most: rows that are not exceeded.
    step: attempts are multiples of it, `start` and `most` excepted.
    close: the search ends when both are closer than this fraction.

  Returns:
    Rows that fit, 0 if none was seen to; and rows that do not, None if all fit.
  """
  fits, fails, expected = 0, None, None
  batch = min(start, most)
  while batch > 0:
    found = attempt(batch)
    if found is None:
      break
    if found.fits:
      fits = batch
    else:
      fails = batch
    if fits >= most or fails is not None and fails - fits <= max(step, close * fails):
      break
    if fails is None:
      expected = expected_batch(found)
      more = int((1 - close) * expected) if expected else 2 * fits
      batch = min(most, max(fits + step, int((1 + close) * fits), more))
    else:
      batch = (fits + fails) // 2
      if expected:  # it is not far above what fits
        batch = max(batch, int((1 - 2 * close) * fails))
    batch = batch // step * step if step < batch < most else batch
    if batch in (fits, fails):
      break
  return fits, fails

"""Times an iterator of batches, in any environment: it imports only the standard library."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

LENGTH = 128
BATCH = 128


def resident() -> dict[str, float]:
  """Memory of this process in MB: anonymous memory and pages of files. Empty without /proc."""
  with contextlib.suppress(OSError):
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    return {
      line.split(':')[0]: int(line.split()[1]) / 1000
      for line in lines
      if line.startswith(('RssAnon', 'RssFile'))
    }
  return {}


def first_batch(make: Callable[[], Iterator[Any]]) -> tuple[float, Iterator[Any]]:
  """Seconds until an iterator has given its first batch, and the iterator."""
  start = time.perf_counter()
  iterator = make()
  batch = next(iterator)
  seconds = time.perf_counter() - start
  if batch.shape != (BATCH, LENGTH):
    raise ValueError(f'the batch has shape {batch.shape}; expected {(BATCH, LENGTH)}')
  return seconds, iterator


def timed(make: Callable[[], Iterator[Any]], seconds: float, warm: bool = True) -> dict[str, Any]:
  """Reads batches for some seconds.

  Args:
    make: makes an iterator of int32 `[BATCH, LENGTH]`.
    seconds: to read.
    warm: whether to make one before, for imports and one-time work.

  Returns:
    Tokens and rows per second, processor seconds per second, seconds to the first batch, resident
    memory before and after.
  """
  if warm:
    first_batch(make)
  first, iterator = first_batch(make)
  before = resident()
  count = 0
  processor = time.process_time()
  start = time.perf_counter()
  while time.perf_counter() - start < seconds:
    next(iterator)
    count += 1
  elapsed = time.perf_counter() - start
  used = time.process_time() - processor
  return {
    'tokens_per_second': count * BATCH * LENGTH / elapsed,
    'rows_per_second': count * BATCH / elapsed,
    'processor_share': used / elapsed,
    'first_batch': first,
    'before': before,
    'after': resident(),
  }

"""Batches as a function of (seed, step): which rows, in which order, and reading them ahead."""

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Iterator

import numpy as np

from electra_jax import console
from electra_jax.data.store.mixture import Mixture, mixture_rows
from electra_jax.data.store.permutation import in_pieces, permutation
from electra_jax.data.store.token_store import Store, evenly_spaced

READER = 'electra_jax batches'  # name of the NumPy reader's thread

Rows = slice | np.ndarray
ALL = slice(None)

_PIECE = 4096  # positions whose rows are computed at a time
_READ_AHEAD = 4
_FOREVER = 2**62


def batch_rows(
  step: int, batch_size: int, num_rows: int, seed: int, rows: Rows = ALL
) -> np.ndarray:
  """The rows of the batch of a step.

  Rows are numbered through the run: the i-th of a batch has the position `step * batch_size + i`.
  Each `num_rows` positions are an epoch with its own permutation. Every row therefore occurs once
  per epoch, and any step is found directly.

  Args:
    step: of the run.
    batch_size: rows of the global batch.
    num_rows: of the store.
    seed: of the run.
    rows: the rows of the batch to compute, a slice or ascending numbers.

  Returns:
    int64 `[batch_size]`, or one number for each of `rows`.
  """
  return in_pieces(step * batch_size + np.arange(batch_size)[rows], _PIECE, _piece, num_rows, seed)


def read_batch(
  data: Store | Mixture, step: int, batch_size: int, seed: int, rows: Rows = ALL
) -> np.ndarray:
  """Reads the batch of a step.

  Args:
    data: the rows.
    step: of the run.
    batch_size: rows of the global batch.
    seed: of the run.
    rows: the rows of the batch to read, a slice or ascending numbers.

  Returns:
    int32 `[batch_size, length]`, or a row for each of `rows`.
  """
  if isinstance(data, Mixture):
    sizes = tuple(store.rows for store in data.stores)
    return data.read(mixture_rows(step, batch_size, sizes, data.shares, seed, rows))
  return data.read(batch_rows(step, batch_size, data.rows, seed, rows))


def batches(
  data: Store | Mixture,
  batch_size: int,
  seed: int,
  first_step: int = 0,
  last_step: int | None = None,
  rows: Rows = ALL,
  use_tf: bool = False,
) -> Iterator[np.ndarray]:
  """The batches of steps `first_step` to `last_step - 1`, read ahead in the background.

  Args:
    data: the rows.
    batch_size: rows of the global batch. It may exceed the rows of the store; a batch then holds
      some of them more than once.
    seed: of the run.
    first_step: the first step to read.
    last_step: the step after the last; None for no end.
    rows: the rows of each batch that this process needs, a slice or ascending numbers; no others
      are read.
    use_tf: whether tf.data reads, or NumPy; both give the same batches.

  Returns:
    An iterator over int32 `[batch_size, length]`, or with a row for each of `rows`.
  """
  if data.rows == 0:
    raise ValueError(f'the token store {data.path} has no rows')

  def read(step: int) -> np.ndarray:
    return read_batch(data, int(step), batch_size, seed, rows)

  reader = _tf_batches if use_tf else _numpy_batches
  return reader(read, first_step, _FOREVER if last_step is None else last_step)


@functools.lru_cache(maxsize=64)
def _piece(number: int, num_rows: int, seed: int) -> np.ndarray:
  """Rows at `_PIECE` positions of the run."""
  position = number * _PIECE + np.arange(_PIECE, dtype=np.int64)
  return permutation(position % num_rows, num_rows, seed, position // num_rows)


def heldout_rows(num_rows: int, batch_size: int, limit: int | None = None) -> np.ndarray:
  """The rows of each held-out batch, ascending; numbers from `num_rows` on fill the last batch.

  Args:
    num_rows: of the store.
    batch_size: rows per batch.
    limit: the most rows, evenly spaced; None for all.

  Returns:
    int64 `[batches, batch_size]`.
  """
  chosen = evenly_spaced(num_rows, min(num_rows, limit or num_rows))
  filling = num_rows + np.arange(-len(chosen) % batch_size, dtype=np.int64)
  return np.concatenate([chosen, filling]).reshape(-1, batch_size)


def heldout_batches(
  data: Store | Mixture, batch_size: int, rows: Rows = ALL, limit: int | None = None
) -> Iterator[np.ndarray]:
  """Yields the rows of `heldout_rows`; rows of padding fill the last batch.

  Args:
    data: the held-out rows.
    batch_size: rows per batch.
    rows: the rows of each batch to read, a slice or ascending numbers.
    limit: see `heldout_rows`.

  Yields:
    int32 `[batch_size, length]`, or with a row for each of `rows`.
  """
  for batch_numbers in heldout_rows(data.rows, batch_size, limit):
    numbers = batch_numbers[rows]
    batch = np.full((len(numbers), data.length), data.pad_id, np.int32)
    real = numbers < data.rows
    batch[real] = data.read(numbers[real])
    yield batch


def _tf_batches(
  read: Callable[[int], np.ndarray], first_step: int, last_step: int
) -> Iterator[np.ndarray]:
  console.quiet_libraries()
  import tensorflow as tf

  with contextlib.suppress(RuntimeError):  # TensorFlow is initialized and has taken them already
    tf.config.set_visible_devices([], 'GPU')  # the accelerator's memory is JAX's
  failures = []

  def read_or_record(step: int) -> np.ndarray:
    try:
      return read(step)
    except Exception as error:
      failures.append(error)
      raise

  dataset = tf.data.Dataset.range(first_step, last_step)
  dataset = dataset.map(
    lambda step: tf.numpy_function(read_or_record, [step], tf.int32, stateful=False),
    num_parallel_calls=2,
    deterministic=True,
  )
  options = tf.data.Options()
  options.deterministic = True
  options.threading.private_threadpool_size = 2  # the other cores are for the step
  try:
    yield from dataset.with_options(options).prefetch(_READ_AHEAD).as_numpy_iterator()
  except tf.errors.OpError:
    if failures:  # the error itself, in place of TensorFlow's report of it
      raise failures[0] from None
    raise


def _numpy_batches(
  read: Callable[[int], np.ndarray], first_step: int, last_step: int
) -> Iterator[np.ndarray]:
  ready: queue.Queue[np.ndarray | Exception | None] = queue.Queue(_READ_AHEAD)
  stopped = threading.Event()

  def put(item: np.ndarray | Exception | None) -> None:
    while not stopped.is_set():
      try:
        return ready.put(item, timeout=0.1)
      except queue.Full:
        continue

  def work() -> None:
    try:
      for step in range(first_step, last_step):
        put(read(step))
        if stopped.is_set():
          return
      put(None)
    except Exception as error:  # raised in the thread that consumes the batches
      put(error)

  threading.Thread(target=work, name=READER, daemon=True).start()
  try:
    while (item := ready.get()) is not None:
      if isinstance(item, Exception):
        raise item
      yield item
  finally:
    stopped.set()

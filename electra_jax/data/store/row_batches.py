"""Batches as a function of (seed, step): which rows, in which order, and reading them ahead."""

import functools
import importlib.util
import queue
import threading
from collections.abc import Iterator

import numpy as np

from electra_jax import console
from electra_jax.data.store.mixture import Mixture, mixture_rows
from electra_jax.data.store.permutation import in_pieces, permutation
from electra_jax.data.store.token_store import Store, evenly

READER = 'electra_jax batches'  # the NumPy reader's thread

Rows = slice | np.ndarray
ALL = slice(None)

_PIECE = 4096  # positions whose rows are computed at once
_READ_AHEAD = 4
_FOREVER = 2**62


def batch_rows(
  step: int, batch_size: int, num_rows: int, seed: int, rows: Rows = ALL
) -> np.ndarray:
  """Rows of the batch of a step, or of those of its rows that are asked for: int64 `[batch_size or len(rows)]`.

  Rows are numbered through the run: the i-th of a batch is at `step * batch_size + i`, and each `num_rows` of them are
  an epoch with a permutation of its own. So every row comes once an epoch, and any step is found at once.
  """
  return in_pieces(step * batch_size + np.arange(batch_size)[rows], _PIECE, _piece, num_rows, seed)


def read_batch(
  data: Store | Mixture, step: int, batch_size: int, seed: int, rows: Rows = ALL
) -> np.ndarray:
  """The batch of a step, int32 `[batch_size, length]`; with `rows`, those of its rows, `[len(rows), length]`."""
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
  use_tf: bool | None = None,
) -> Iterator[np.ndarray]:
  """The batches of steps `first_step` to `last_step - 1`, read ahead in the background.

  Args:
    batch_size: rows of the global batch; may exceed the store's rows, then a batch holds some of them more than once.
    last_step: the step not to read any more; None goes on for ever.
    rows: the rows of each batch that this process needs, a slice or ascending numbers; no others are read.
    use_tf: tf.data or the NumPy reader, which give the very same batches; None takes tf.data where TensorFlow is
      installed.

  Yields:
    int32 `[batch_size or len(rows), length]`.
  """
  if data.rows == 0:
    raise ValueError(f'the token store {data.path} has no rows')
  if use_tf is None:
    use_tf = importlib.util.find_spec('tensorflow') is not None
  last_step = _FOREVER if last_step is None else last_step
  reader = _tf_batches if use_tf else _numpy_batches
  return reader(
    lambda step: read_batch(data, int(step), batch_size, seed, rows), first_step, last_step
  )


@functools.lru_cache(maxsize=64)
def _piece(number, num_rows, seed):
  """Rows at `_PIECE` positions of the run."""
  position = number * _PIECE + np.arange(_PIECE, dtype=np.int64)
  return permutation(position % num_rows, num_rows, seed, position // num_rows)


def heldout_rows(num_rows: int, batch_size: int, limit: int | None = None) -> np.ndarray:
  """Rows of each held-out batch, int64 `[batches, batch_size]`, ascending; numbers from `num_rows` on fill up the last.

  Args:
    limit: most rows, None for all; fewer than all are taken at even distances over the whole.
  """
  chosen = evenly(num_rows, min(num_rows, limit or num_rows))
  filling = num_rows + np.arange(-len(chosen) % batch_size, dtype=np.int64)
  return np.concatenate([chosen, filling]).reshape(-1, batch_size)


def heldout_batches(
  data: Store | Mixture, batch_size: int, rows: Rows = ALL, limit: int | None = None
) -> Iterator[np.ndarray]:
  """The rows of `heldout_rows`, int32 `[batch_size or len(rows), length]`; rows of padding fill up the last batch."""
  for numbers in heldout_rows(data.rows, batch_size, limit):
    numbers = numbers[rows]
    batch = np.full((len(numbers), data.length), data.pad_id, np.int32)
    real = numbers < data.rows
    batch[real] = data.read(numbers[real])
    yield batch


def _tf_batches(read, first_step, last_step):
  console.quiet_libraries()
  import tensorflow as tf

  try:
    tf.config.set_visible_devices([], 'GPU')  # the accelerator's memory is JAX's
  except RuntimeError:  # TensorFlow was in use before us and has them already
    pass
  failures = []

  def read_or_note(step):
    try:
      return read(step)
    except Exception as error:
      failures.append(error)
      raise

  dataset = tf.data.Dataset.range(first_step, last_step)
  dataset = dataset.map(
    lambda step: tf.numpy_function(read_or_note, [step], tf.int32, stateful=False),
    num_parallel_calls=2,
    deterministic=True,
  )
  options = tf.data.Options()
  options.deterministic = True
  options.threading.private_threadpool_size = 2  # leave the cores to the step
  try:
    yield from dataset.with_options(options).prefetch(_READ_AHEAD).as_numpy_iterator()
  except tf.errors.OpError:
    if failures:  # what went wrong itself, not TensorFlow's account of it
      raise failures[0] from None
    raise


def _numpy_batches(read, first_step, last_step):
  ready = queue.Queue(_READ_AHEAD)
  stopped = threading.Event()

  def put(item):
    while not stopped.is_set():
      try:
        return ready.put(item, timeout=0.1)
      except queue.Full:
        continue

  def work():
    try:
      for step in range(first_step, last_step):
        put(read(step))
        if stopped.is_set():
          return
      put(None)
    except Exception as error:  # handed to the reader of the batches
      put(error)

  threading.Thread(target=work, name=READER, daemon=True).start()
  try:
    while (item := ready.get()) is not None:
      if isinstance(item, Exception):
        raise item
      yield item
  finally:
    stopped.set()

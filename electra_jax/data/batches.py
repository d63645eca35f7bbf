"""Batches as a function of (seed, step): which rows, in which order, and reading them ahead."""

import importlib.util
import os
import queue
import threading
from collections.abc import Iterator

import numpy as np

from electra_jax.data.token_store import Store

READER = 'electra_jax batches'  # the NumPy reader's thread

_FEISTEL_ROUNDS = 8
_READ_AHEAD = 4
_FOREVER = 2**62


def permutation(index: np.ndarray, n: int, seed: int, epoch: int | np.ndarray) -> np.ndarray:
  """Where a pseudo-random permutation of 0..n-1 sends each index; no array of n is made.

  A Feistel network (Luby and Rackoff 1988) permutes the smallest power of two that holds n, and is applied again to
  what falls outside (cycle walking; Black and Rogaway 2002), on average at most twice a value.

  Args:
    index: integers in 0..n-1, any shape.
    n: how many there are, at least 1.
    seed: of the run.
    epoch: which permutation of the seed's, one for all or one an index.

  Returns:
    int64 array of index's shape.
  """
  index = np.asarray(index)
  values = np.atleast_1d(index).astype(np.uint64)
  shape = values.shape
  values = values.reshape(-1)
  epochs = np.broadcast_to(np.asarray(epoch, np.uint64), shape).reshape(-1)
  bits = max(2, (n - 1).bit_length())
  key = _mix(_mix(np.full_like(epochs, seed % 2**64)) + epochs)
  todo = np.arange(len(values))
  while len(todo):
    values[todo] = _feistel(values[todo], bits, key[todo])
    todo = todo[values[todo] >= n]
  return values.astype(np.int64).reshape(index.shape)


def batch_rows(step: int, batch_size: int, num_rows: int, seed: int) -> np.ndarray:
  """Rows of the batch of a step, int64 `[batch_size]`.

  Rows are numbered through the run: the i-th of a batch is at `step * batch_size + i`, and each `num_rows` of them are
  an epoch with a permutation of its own. So every row comes once an epoch, and any step is found at once.
  """
  position = step * batch_size + np.arange(batch_size, dtype=np.int64)
  return permutation(position % num_rows, num_rows, seed, position // num_rows)


def read_batch(store: Store, step: int, batch_size: int, seed: int, rows: slice = slice(None)) -> np.ndarray:
  """The batch of a step, int32 `[batch_size, length]`; with `rows`, those of its rows, `[len(rows), length]`."""
  return store.read(batch_rows(step, batch_size, store.rows, seed)[rows])


def batches(
  store: Store,
  batch_size: int,
  seed: int,
  first_step: int = 0,
  last_step: int | None = None,
  rows: slice = slice(None),
  use_tf: bool | None = None,
) -> Iterator[np.ndarray]:
  """The batches of steps `first_step` to `last_step - 1`, read ahead in the background.

  Args:
    batch_size: rows of the global batch; may exceed the store's rows, then a batch holds some of them more than once.
    last_step: the step not to read any more; None goes on for ever.
    rows: the rows of each batch that this process needs.
    use_tf: tf.data or the NumPy reader, which give the very same batches; None takes tf.data where TensorFlow is
      installed.

  Yields:
    int32 `[batch_size or len(rows), length]`.
  """
  if store.rows == 0:
    raise ValueError(f'the token store {store.path} has no rows')
  if use_tf is None:
    use_tf = importlib.util.find_spec('tensorflow') is not None
  last_step = _FOREVER if last_step is None else last_step
  reader = _tf_batches if use_tf else _numpy_batches
  return reader(lambda step: read_batch(store, int(step), batch_size, seed, rows), first_step, last_step)


def heldout_batches(store: Store, batch_size: int, rows: slice = slice(None)) -> Iterator[np.ndarray]:
  """All rows once, in order, int32 `[batch_size or len(rows), length]`; rows of padding fill up the last batch."""
  for start in range(0, store.rows, batch_size):
    batch = np.full((batch_size, store.length), store.pad_id, np.int32)
    block = store.read(np.arange(start, min(start + batch_size, store.rows)))
    batch[: len(block)] = block
    yield batch[rows]


def _tf_batches(read, first_step, last_step):
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  import tensorflow as tf

  try:
    tf.config.set_visible_devices([], 'GPU')  # the accelerator's memory is JAX's
  except RuntimeError:  # TensorFlow was in use before us and has them already
    pass
  dataset = tf.data.Dataset.range(first_step, last_step)
  dataset = dataset.map(
    lambda step: tf.numpy_function(read, [step], tf.int32, stateful=False),
    num_parallel_calls=2,
    deterministic=True,
  )
  options = tf.data.Options()
  options.deterministic = True
  options.threading.private_threadpool_size = 2  # leave the cores to the step
  return dataset.with_options(options).prefetch(_READ_AHEAD).as_numpy_iterator()


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


def _feistel(values, bits, key):
  """One pass of the network over values `[n]` of so many bits, uint64, with a key `[n]` each."""
  left_bits, right_bits = np.uint64(bits // 2), np.uint64(bits - bits // 2)
  left, right = values >> right_bits, values & _mask(right_bits)
  for i in range(_FEISTEL_ROUNDS):  # an even number of rounds, so the unequal halves end where they began
    scrambled = _mix(key + right * np.uint64(_FEISTEL_ROUNDS) + np.uint64(i))
    left, right = right, left ^ (scrambled & _mask(left_bits))
    left_bits, right_bits = right_bits, left_bits
  return (left << right_bits) | right


def _mask(bits):
  return (np.uint64(1) << bits) - np.uint64(1)


def _mix(values):
  """SplitMix64's increment and finaliser (Steele, Lea and Flood 2014), uint64 arrays that wrap around."""
  values = values + np.uint64(0x9E3779B97F4A7C15)
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))

"""Which rows make up a batch, and how long it is: a function of (seed, step), as in pretraining."""

import functools

import numpy as np

from electra_jax.data.store.permutation import derived_seed, permutation
from electra_jax.finetune.tasks.task import FILL, Features

SHORTEST = 16
# Batches whose rows are sorted by length together: enough for rows of like length, and few enough that epochs differ.
SORTED_TOGETHER = 64


def buckets(max_length: int, bucketed: bool = True) -> tuple[int, ...]:
  """Lengths that batches are padded to: powers of two from 16 on, and max_length; few, since each is compiled."""
  lengths = [SHORTEST]
  while lengths[-1] < max_length:
    lengths.append(2 * lengths[-1])
  return (*lengths[:-1], max_length) if bucketed else (max_length,)


def steps_per_epoch(rows: int, batch_size: int) -> int:
  """Every row comes once an epoch; the last batch may be short."""
  return -(-rows // batch_size)


class Epochs:
  """The batches of a trial: `rows(step)` are the rows of the batch of that step, the same however often and wherever it is asked for.

  In each epoch a permutation of the rows is cut into parts of SORTED_TOGETHER batches, each part is sorted by length and cut into
  batches, and the order of all batches is permuted. Unless bucketed, the permutation alone is cut into batches.
  """

  def __init__(self, features: Features, batch_size: int, seed: int, bucketed: bool = True):
    self._lengths = np.array([len(ids) for ids in features.token_ids])
    self._batch_size, self._seed, self._bucketed = batch_size, seed, bucketed
    self.steps = steps_per_epoch(len(features), batch_size)
    self._epoch = functools.lru_cache(maxsize=2)(self._epoch)

  def rows(self, step: int) -> np.ndarray:
    """int64 [batch_size or, in one batch of an epoch, fewer]."""
    return self._epoch(step // self.steps)[step % self.steps]

  def _epoch(self, epoch: int) -> list[np.ndarray]:
    count, size = len(self._lengths), self._batch_size
    order = permutation(np.arange(count), count, self._seed, epoch)
    if not self._bucketed:
      return [order[first : first + size] for first in range(0, count, size)]
    batches = []
    for first in range(0, count, size * SORTED_TOGETHER):
      part = order[first : first + size * SORTED_TOGETHER]
      part = part[np.argsort(self._lengths[part], kind='stable')]
      batches += [part[i : i + size] for i in range(0, len(part), size)]
    shuffled = permutation(
      np.arange(len(batches)), len(batches), derived_seed(self._seed, 1), epoch
    )
    return [batches[i] for i in shuffled]


def in_order(features: Features, batch_size: int) -> list[np.ndarray]:
  """Batches of all rows, each once, rows of like length together: for evaluation and prediction."""
  lengths = np.array([len(ids) for ids in features.token_ids], np.int64)
  order = np.argsort(lengths, kind='stable')
  return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def assemble(
  features: Features, rows: np.ndarray, batch_size: int, lengths: tuple[int, ...], pad_id: int
) -> dict[str, np.ndarray]:
  """A padded batch: `token_ids` int32 [batch_size, length], `weights` float32 [batch_size], 0 of rows that fill it up, and the targets.

  Args:
    features: of the task.
    rows: at most `batch_size` of their numbers.
    lengths: of `buckets`; the batch has the shortest that holds its rows.
    pad_id: what stands past a row's end.
  """
  longest = max((len(features.token_ids[row]) for row in rows), default=1)
  length = next(length for length in lengths if length >= longest)

  def padded(values, fill, dtype):
    out = np.full((batch_size, length), fill, dtype)
    for i, row in enumerate(rows):
      out[i, : len(values[row])] = values[row]
    return out

  batch = {
    'token_ids': padded(features.token_ids, pad_id, np.int32),
    'weights': (np.arange(batch_size) < len(rows)).astype(np.float32),
  }
  for name, values in features.targets.items():
    if name in FILL:
      batch[name] = padded(values, FILL[name], np.int32)
    else:
      batch[name] = np.zeros(batch_size, np.asarray(values).dtype)
      batch[name][: len(rows)] = np.asarray(values)[rows]
  return batch

"""The rows of each batch and the length they are padded to, as a function of (seed, step)."""

import functools

import numpy as np

from electra_jax.config import FinetuningConfig
from electra_jax.data.store.permutation import derived_seed, permutation
from electra_jax.finetune.tasks.task import TARGET_PADDING, Features
from electra_jax.training.length_batches import Shape, powers_of_two
from electra_jax.training.row_predictor import padded_rows

# Number of batches whose rows are sorted by length together: enough for rows of similar length, and
# few enough that epochs differ.
SORTED_TOGETHER = 64
# Lengths are multiplied by a random factor of up to e^0.2 in either direction before they are
# sorted. Otherwise the rows of a small set would meet the same rows in each epoch: of 2,500 rows in
# batches of 32, two of one batch met again in the next epoch in 34% of the cases; with it in 4%, at
# random in 1%. The batches have a tenth more tokens, padding included.
JITTER = 0.2


def buckets(max_length: int, bucketed: bool = True) -> tuple[int, ...]:
  """Lengths that batches are padded to: powers of two from 16, and max_length.

  They are few, since the step is compiled for each.

  Args:
    max_length: tokens per row at most.
    bucketed: whether there are shorter lengths than max_length.
  """
  return powers_of_two(max_length) if bucketed else (max_length,)


def steps_per_epoch(rows: int, batch_size: int) -> int:
  """Batches of an epoch, in which every row occurs once; the last batch may have fewer rows."""
  return -(-rows // batch_size)


class Epochs:
  """The batches of a trial.

  In each epoch a permutation of the rows is cut into parts of SORTED_TOGETHER batches, each part is
  sorted by length, up to JITTER, and cut into batches, and the order of all batches is permuted.
  Unless `bucketed`, the permutation is cut into batches directly.
  """

  def __init__(
    self,
    features: Features,
    batch_size: int,
    seed: int,
    bucketed: bool = True,
    jitter: float = JITTER,
  ) -> None:
    """Prepares the batches of a trial.

    Args:
      features: the training rows.
      batch_size: rows per step.
      seed: of the trial.
      bucketed: whether rows of similar length are batched together.
      jitter: the logarithm of the largest factor of a length; 0 as in version 0.1.0.
    """
    lengths = np.array([len(ids) for ids in features.token_ids])
    self._choices = features.choices
    self._lengths = lengths.reshape(-1, self._choices).max(-1) if len(lengths) else lengths
    self._batch_size = batch_size
    self._seed = seed
    self._bucketed = bucketed
    self._jitter = jitter
    self.steps = steps_per_epoch(len(self._lengths), batch_size)
    self._epoch = functools.lru_cache(maxsize=2)(self._batches_of_epoch)

  def rows(self, step: int) -> np.ndarray:
    """Row indices of the batch of a step: int64, `batch_size` or, once per epoch, fewer.

    With several choices per example the batch has that many times more rows, by example.
    """
    found = self._epoch(step // self.steps)[step % self.steps]
    if self._choices == 1:
      return found
    rows: np.ndarray = (found[:, None] * self._choices + np.arange(self._choices)).ravel()
    return rows

  def _batches_of_epoch(self, epoch: int) -> list[np.ndarray]:
    count, size = len(self._lengths), self._batch_size
    order = permutation(np.arange(count), count, self._seed, epoch)
    if not self._bucketed:
      return [order[first : first + size] for first in range(0, count, size)]
    keys = self._lengths
    if self._jitter:
      places = permutation(np.arange(count), count, derived_seed(self._seed, 2), epoch)
      keys = keys * np.exp(self._jitter * (2 * places / count - 1))
    batches: list[np.ndarray] = []
    for first in range(0, count, size * SORTED_TOGETHER):
      part = order[first : first + size * SORTED_TOGETHER]
      part = part[np.argsort(keys[part], kind='stable')]
      batches += [part[i : i + size] for i in range(0, len(part), size)]
    number = len(batches)
    shuffled = permutation(np.arange(number), number, derived_seed(self._seed, 1), epoch)
    return [batches[i] for i in shuffled]


def epochs_of(config: FinetuningConfig, features: Features, seed: int) -> Epochs:
  """The batches of a trial as its config orders them.

  Args:
    config: of the run.
    features: the training rows.
    seed: of the trial.
  """
  jitter = JITTER if config.batch_order == 'mixed' else 0.0
  return Epochs(features, config.batch_size, seed, config.bucketed, jitter)


def assemble(
  features: Features, rows: np.ndarray, batch_size: int, lengths: tuple[int, ...], pad_id: int
) -> dict[str, np.ndarray]:
  """A padded batch.

  Args:
    features: of the task.
    rows: indices of at most `batch_size` rows.
    batch_size: rows of the batch.
    lengths: of `buckets`; the batch has the shortest that its rows fit in.
    pad_id: token id after a row's end.

  Returns:
    `token_ids` int32 [batch_size, length], `weights` float32 [batch_size], 0 for padding rows, and
    the targets of `features`.
  """
  longest = max((len(features.token_ids[row]) for row in rows), default=1)
  length = next(length for length in lengths if length >= longest)

  shape = Shape(batch_size, length)
  batch = {
    'token_ids': padded_rows([features.token_ids[row] for row in rows], shape, pad_id),
    'weights': (np.arange(batch_size) < len(rows)).astype(np.float32),
  }
  for name, values in features.targets.items():
    if name in TARGET_PADDING:
      batch[name] = padded_rows([values[row] for row in rows], shape, TARGET_PADDING[name])
    else:
      array = np.asarray(values)
      batch[name] = np.zeros((batch_size, *array.shape[1:]), array.dtype)
      batch[name][: len(rows)] = array[rows]
  return batch

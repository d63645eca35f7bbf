"""Batches have each row once per epoch, similar lengths together, and depend on (seed, step)."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from electra_jax.config import FinetuningConfig
from electra_jax.data.store.permutation import derived_seed, permutation
from electra_jax.finetune.batches import (
  Epochs,
  assemble,
  buckets,
  epochs_of,
  steps_per_epoch,
)
from electra_jax.finetune.tasks.task import Features


def features(lengths):
  rng = np.random.default_rng(0)
  return Features(
    [np.concatenate([[2], rng.integers(5, 50, n - 2), [3]]).astype(np.int32) for n in lengths],
    {
      'label': rng.integers(0, 2, len(lengths)).astype(np.int32),
      'tags': [np.full(n, 1, np.int32) for n in lengths],
    },
    np.arange(len(lengths), dtype=np.int32),
    [None] * len(lengths),
  )


def test_buckets():
  assert (
    buckets(128) == (16, 32, 64, 128)
    and buckets(100) == (16, 32, 64, 100)
    and buckets(16) == (16,)
    and buckets(8) == (8,)
  )
  assert buckets(128, bucketed=False) == (128,)


@hypothesis.given(
  st.lists(st.integers(3, 60), min_size=1, max_size=300),
  st.integers(1, 9),
  st.booleans(),
  st.integers(0, 5),
)
def test_every_row_occurs_once_per_epoch(lengths, size, bucketed, seed):
  epochs = Epochs(features(lengths), size, seed, bucketed)
  assert epochs.steps == steps_per_epoch(len(lengths), size)
  for epoch in range(2):
    rows = np.concatenate(
      [epochs.rows(epoch * epochs.steps + step) for step in range(epochs.steps)]
    )
    assert sorted(rows) == list(range(len(lengths)))


def test_epochs_and_seeds_differ_and_steps_need_no_predecessors():
  made = features(np.random.default_rng(1).integers(3, 60, 500))
  epochs = Epochs(made, 16, 0)

  def order(e, first):
    return np.concatenate([e.rows(step) for step in range(first, first + e.steps)])

  assert not np.array_equal(order(epochs, 0), order(epochs, epochs.steps))
  assert not np.array_equal(order(epochs, 0), order(Epochs(made, 16, 1), 0))
  assert np.array_equal(Epochs(made, 16, 0).rows(77), epochs.rows(77))


def test_rows_of_similar_length_are_batched_together():
  lengths = np.random.default_rng(2).integers(3, 128, 4000)

  def padding(bucketed):
    epochs, made = Epochs(features(lengths), 16, 0, bucketed), buckets(128, bucketed)
    width = [
      next(n for n in made if n >= lengths[epochs.rows(i)].max()) for i in range(epochs.steps)
    ]
    return 16 * sum(width) / lengths.sum()

  assert padding(True) < 1.45 < 1.9 < padding(False)


def meetings(epochs, count):
  """How often two rows of a batch of the first epoch share one in the second."""
  batch_of = np.empty(count, int)
  for i in range(epochs.steps):
    batch_of[epochs.rows(epochs.steps + i)] = i
  pairs = [
    (batch_of[rows][:, None] == batch_of[rows]).sum() - len(rows)
    for rows in map(epochs.rows, range(epochs.steps))
  ]
  return sum(pairs) / (len(batch_of) * (len(epochs.rows(0)) - 1))


def test_the_rows_of_a_small_set_meet_other_rows_in_each_epoch():
  lengths = np.exp(np.random.default_rng(0).normal(4, 0.45, 1024)).astype(int).clip(5, 120)
  made = features(lengths)
  by_chance = meetings(Epochs(made, 32, 0, bucketed=False), 1024)
  assert meetings(Epochs(made, 32, 0), 1024) < 5 * by_chance
  assert meetings(Epochs(made, 32, 0, jitter=0.0), 1024) > 10 * by_chance


def test_a_run_of_version_0_1_0_keeps_the_order_of_its_rows():
  lengths = np.random.default_rng(1).integers(3, 60, 200)
  config = FinetuningConfig().replace({'batch_size': 8, 'batch_order': 'sorted'})
  epochs = epochs_of(config, features(lengths), 5)
  order = permutation(np.arange(200), 200, 5, 1)
  in_parts = order[np.argsort(lengths[order], kind='stable')].reshape(25, 8)
  expected = in_parts[permutation(np.arange(25), 25, derived_seed(5, 1), 1)]
  np.testing.assert_array_equal([epochs.rows(25 + i) for i in range(25)], expected)
  mixed = epochs_of(config.replace({'batch_order': 'mixed'}), features(lengths), 5)
  assert not np.array_equal([mixed.rows(25 + i) for i in range(25)], expected)


def test_a_short_batch_is_padded_with_rows_of_weight_0():
  made = features([5, 9, 20])
  batch = assemble(made, np.array([2, 0]), 4, (16, 32), pad_id=0)
  assert batch['token_ids'].shape == (4, 32) and list(batch['weights']) == [1, 1, 0, 0]
  assert (
    np.array_equal(batch['token_ids'][0, :20], made.token_ids[2])
    and not batch['token_ids'][0, 20:].any()
    and not batch['token_ids'][2:].any()
  )
  assert (batch['tags'][0, 20:] == -1).all() and (batch['tags'][2:] == -1).all()
  assert list(batch['label'][:2]) == [made.targets['label'][2], made.targets['label'][0]]


def test_a_row_longer_than_all_lengths_is_an_error():
  with pytest.raises(StopIteration):
    assemble(features([40]), np.array([0]), 1, (16, 32), 0)

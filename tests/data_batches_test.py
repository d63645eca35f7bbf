"""A batch is a function of (seed, step): every row once an epoch, any step at once, both readers the very same."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_jax.data import batches, token_store

LENGTH = 8


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  rows = np.arange(50 * LENGTH).reshape(50, LENGTH) + 1
  return token_store.write_store(tmp_path_factory.mktemp('store') / 'store', rows, LENGTH, 1000, 0, '', {})


@settings(deadline=None, max_examples=150)
@given(n=st.integers(1, 3000), seed=st.integers(-(2**40), 2**70), epoch=st.integers(0, 2**40))
def test_an_epoch_is_a_permutation_computed_index_by_index(n, seed, epoch):
  whole = batches.permutation(np.arange(n), n, seed, epoch)
  assert whole.dtype == np.int64
  assert np.array_equal(np.sort(whole), np.arange(n))
  some = np.random.default_rng(0).integers(0, n, 5)
  assert np.array_equal(batches.permutation(some, n, seed, epoch), whole[some])


def test_permutations_look_random():
  n = 20_000
  index = np.arange(n)
  first, next_epoch, next_seed = (batches.permutation(index, n, *key) for key in ((7, 0), (7, 1), (8, 0)))
  for a, b in ((first, index), (first, next_epoch), (first, next_seed), (next_epoch, next_seed)):
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.04
    assert (a == b).sum() < 10
  assert np.abs(np.diff(first)).mean() == pytest.approx(n / 3, rel=0.05)


def test_the_order_never_changes_between_versions():
  assert batches.batch_rows(5, 4, 1000, 42).tolist() == [798, 127, 867, 250]
  assert batches.batch_rows(505, 4, 1000, 42).tolist() == [951, 715, 303, 116]


def test_large_stores_and_late_steps_are_as_near():
  n = 10**12
  rows = batches.batch_rows(10**9, 4096, n, 1)
  assert rows.min() >= 0 and rows.max() < n and len(np.unique(rows)) == 4096


@settings(deadline=None, max_examples=50)
@given(num_rows=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 9))
def test_every_row_comes_once_an_epoch(num_rows, batch_size, seed):
  steps = -(-3 * num_rows // batch_size)
  rows = np.concatenate([batches.batch_rows(step, batch_size, num_rows, seed) for step in range(steps)])
  for epoch in range(3):
    assert np.array_equal(np.sort(rows[epoch * num_rows : (epoch + 1) * num_rows]), np.arange(num_rows))


def test_every_epoch_has_an_order_of_its_own():
  orders = {tuple(batches.batch_rows(epoch, 100, 100, 3)) for epoch in range(20)}
  assert len(orders) == 20


def test_slices_of_a_batch_make_it_up(store):
  whole = batches.read_batch(store, 11, 12, 3)
  assert whole.shape == (12, LENGTH) and whole.dtype == np.int32
  parts = [batches.read_batch(store, 11, 12, 3, slice(i, i + 4)) for i in (0, 4, 8)]
  assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize('use_tf', [False, True])
def test_readers_give_the_batches_of_their_steps(store, use_tf):
  if use_tf:
    pytest.importorskip('tensorflow')
  for batch_size, rows in ((12, slice(None)), (12, slice(4, 8)), (120, slice(None))):
    read = list(batches.batches(store, batch_size, 3, 1_000_000, 1_000_020, rows, use_tf=use_tf))
    assert len(read) == 20
    for step, batch in enumerate(read, 1_000_000):
      assert isinstance(batch, np.ndarray) and batch.dtype == np.int32
      assert np.array_equal(batch, batches.read_batch(store, step, batch_size, 3, rows))
  assert list(batches.batches(store, 4, 3, 5, 5, use_tf=use_tf)) == []
  endless = batches.batches(store, 4, 3, 2, use_tf=use_tf)
  assert np.array_equal(next(iter(endless)), batches.read_batch(store, 2, 4, 3))


def test_the_reader_thread_ends_with_its_iterator(store):
  before = set(threading.enumerate())
  iterator = batches.batches(store, 4, 3, use_tf=False)
  next(iterator)
  (reader,) = (thread for thread in threading.enumerate() if thread not in before and thread.name == batches.READER)
  iterator.close()
  reader.join(timeout=30)
  assert not reader.is_alive()


def test_an_error_of_the_reader_reaches_who_reads(store, monkeypatch):
  def broken(self, indices):
    raise OSError('the disk is gone')

  monkeypatch.setattr(token_store.Store, 'read', broken)
  with pytest.raises(OSError, match='the disk is gone'):
    list(batches.batches(store, 4, 3, 0, 2, use_tf=False))


def test_held_out_rows_come_once_in_order_with_rows_of_padding_after(store):
  read = list(batches.heldout_batches(store, 16))
  assert [batch.shape for batch in read] == [(16, LENGTH)] * 4
  together = np.concatenate(read)
  assert np.array_equal(together[:50], store.read(np.arange(50)))
  assert not together[50:].any()
  parts = [np.concatenate(list(batches.heldout_batches(store, 16, rows))) for rows in (slice(0, 8), slice(8, 16))]
  assert sum(map(len, parts)) == 64


def test_an_empty_store_is_refused(tmp_path):
  empty = token_store.write_store(tmp_path / 'store', [], LENGTH, 1000, 0, '', {})
  with pytest.raises(ValueError, match='has no rows'):
    batches.batches(empty, 4, 0)

"""A batch is a function of (seed, step): every row occurs once per epoch, with both readers."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_jax.data.store import row_batches, token_store
from electra_jax.errors import UserError

LENGTH = 8


def _store(path, rows, first=1, **fields):
  """Rows of ids that identify the row: row i is all `first` + i."""
  fields = {'length': LENGTH, 'vocab_size': 5000, 'pad_id': 0, 'tokenizer_fingerprint': ''} | fields
  blocks = [np.repeat(np.arange(first, first + rows)[:, None], fields['length'], 1)]
  return token_store.write_store(path, blocks, **fields, facts={})


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  return _store(tmp_path_factory.mktemp('store') / 'store', 50)


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  """Stores of 50, 7 and 300 rows; together their ids are 1 to 357."""
  folder = tmp_path_factory.mktemp('three')
  return tuple(
    _store(folder / str(rows), rows, first) for rows, first in ((50, 1), (7, 51), (300, 58))
  )


@pytest.fixture
def rows_read(monkeypatch):
  """A list to which the number of rows of every Store.read is added."""
  counts = []
  read = token_store.Store.read
  monkeypatch.setattr(
    token_store.Store, 'read', lambda self, rows: counts.append(len(rows)) or read(self, rows)
  )
  return counts


@settings(deadline=None, max_examples=150)
@given(n=st.integers(1, 3000), seed=st.integers(-(2**40), 2**70), epoch=st.integers(0, 2**40))
def test_an_epoch_is_a_permutation_computed_index_by_index(n, seed, epoch):
  whole = row_batches.permutation(np.arange(n), n, seed, epoch)
  assert whole.dtype == np.int64
  assert np.array_equal(np.sort(whole), np.arange(n))
  some = np.random.default_rng(0).integers(0, n, 5)
  assert np.array_equal(row_batches.permutation(some, n, seed, epoch), whole[some])


def test_permutations_look_random():
  n = 20_000
  index = np.arange(n)
  first, next_epoch, next_seed = (
    row_batches.permutation(index, n, *key) for key in ((7, 0), (7, 1), (8, 0))
  )
  for a, b in ((first, index), (first, next_epoch), (first, next_seed), (next_epoch, next_seed)):
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.04
    assert (a == b).sum() < 10
  assert np.abs(np.diff(first)).mean() == pytest.approx(n / 3, rel=0.05)


def test_the_order_does_not_change_between_versions():
  assert row_batches.batch_rows(5, 4, 1000, 42).tolist() == [798, 127, 867, 250]
  assert row_batches.batch_rows(505, 4, 1000, 42).tolist() == [951, 715, 303, 116]


def test_large_stores_and_late_steps_are_computed_directly():
  n = 10**12
  rows = row_batches.batch_rows(10**9, 4096, n, 1)
  assert rows.min() >= 0 and rows.max() < n and len(np.unique(rows)) == 4096


@settings(deadline=None, max_examples=50)
@given(num_rows=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 9))
def test_every_row_occurs_once_per_epoch(num_rows, batch_size, seed):
  steps = -(-3 * num_rows // batch_size)
  rows = np.concatenate(
    [row_batches.batch_rows(step, batch_size, num_rows, seed) for step in range(steps)]
  )
  for epoch in range(3):
    assert np.array_equal(
      np.sort(rows[epoch * num_rows : (epoch + 1) * num_rows]), np.arange(num_rows)
    )


def test_every_epoch_has_its_own_order():
  orders = {tuple(row_batches.batch_rows(epoch, 100, 100, 3)) for epoch in range(20)}
  assert len(orders) == 20


def test_slices_of_a_batch_add_up_to_it(store):
  whole = row_batches.read_batch(store, 11, 12, 3)
  assert whole.shape == (12, LENGTH) and whole.dtype == np.int32
  parts = [row_batches.read_batch(store, 11, 12, 3, slice(i, i + 4)) for i in (0, 4, 8)]
  assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize('rows', [[0, 1, 2], [1, 5, 11], [11]])
def test_only_requested_rows_are_read(store, three, rows_read, rows):
  for data in (store, row_batches.Mixture(three, (1, 1, 2))):
    whole = row_batches.read_batch(data, 83, 12, 3)
    rows_read.clear()
    part = row_batches.read_batch(data, 83, 12, 3, np.array(rows))
    assert np.array_equal(part, whole[rows]) and sum(rows_read) == len(rows)


def test_any_step_is_read_without_earlier_ones(store, three, rows_read):
  for data in (store, row_batches.Mixture(three, (1, 1, 2))):
    for use_tf in (False, True):
      if use_tf:
        pytest.importorskip('tensorflow')
      for step in (0, 1_000_000, 10**12):
        rows_read.clear()
        (batch,) = row_batches.batches(data, 12, 3, step, step + 1, use_tf=use_tf)
        assert len(batch) == sum(rows_read) == 12


@pytest.mark.parametrize('use_tf', [False, True])
def test_readers_give_the_batches_of_their_steps(store, use_tf):
  if use_tf:
    pytest.importorskip('tensorflow')
  for batch_size, rows in ((12, slice(None)), (12, slice(4, 8)), (120, slice(None))):
    read = list(
      row_batches.batches(store, batch_size, 3, 1_000_000, 1_000_020, rows, use_tf=use_tf)
    )
    assert len(read) == 20
    for step, batch in enumerate(read, 1_000_000):
      assert isinstance(batch, np.ndarray) and batch.dtype == np.int32
      assert np.array_equal(batch, row_batches.read_batch(store, step, batch_size, 3, rows))
  assert list(row_batches.batches(store, 4, 3, 5, 5, use_tf=use_tf)) == []
  endless = row_batches.batches(store, 4, 3, 2, use_tf=use_tf)
  assert np.array_equal(next(iter(endless)), row_batches.read_batch(store, 2, 4, 3))


def test_the_reader_thread_ends_with_its_iterator(store):
  before = set(threading.enumerate())
  iterator = row_batches.batches(store, 4, 3, use_tf=False)
  next(iterator)
  (reader,) = (
    thread
    for thread in threading.enumerate()
    if thread not in before and thread.name == row_batches.READER
  )
  iterator.close()
  reader.join(timeout=30)
  assert not reader.is_alive()


@pytest.mark.parametrize('use_tf', [False, True])
def test_an_error_of_the_reader_is_raised_unchanged(store, monkeypatch, use_tf):
  if use_tf:
    pytest.importorskip('tensorflow')

  def broken(self, indices):
    raise UserError('the disk is gone')

  monkeypatch.setattr(token_store.Store, 'read', broken)
  with pytest.raises(UserError, match='^the disk is gone$'):
    list(row_batches.batches(store, 4, 3, 0, 2, use_tf=use_tf))


def test_held_out_rows_occur_once_in_order_before_padding(store):
  read = list(row_batches.heldout_batches(store, 16))
  assert [batch.shape for batch in read] == [(16, LENGTH)] * 4
  together = np.concatenate(read)
  assert np.array_equal(together[:50], store.read(np.arange(50)))
  assert not together[50:].any()


@pytest.mark.parametrize('limit', [1, 16, 17, 49, 50, 51, None])
def test_limited_held_out_rows_are_evenly_spaced(store, limit, rows_read):
  together = np.concatenate(list(row_batches.heldout_batches(store, 16, limit=limit)))
  count = min(limit or 50, 50)
  assert len(together) == -(-count // 16) * 16 and sum(rows_read) == count
  numbers = together[:count, 0] - 1
  assert not together[count:].any()
  steps = np.diff(numbers)
  assert (steps > 0).all() and (count == 1 or steps.max() - steps.min() <= 1)
  assert numbers[0] < 50 / count and numbers[-1] >= 50 - 1 - 50 / count
  parts = [
    np.concatenate(list(row_batches.heldout_batches(store, 16, rows, limit)))
    for rows in ([0, 1, 5], np.arange(6, 16))
  ]
  assert np.array_equal(
    parts[0], together.reshape(-1, 16, LENGTH)[:, [0, 1, 5]].reshape(-1, LENGTH)
  )
  assert np.array_equal(parts[1], together.reshape(-1, 16, LENGTH)[:, 6:].reshape(-1, LENGTH))


def test_an_empty_store_is_refused(tmp_path):
  empty = _store(tmp_path / 'store', 0)
  with pytest.raises(ValueError, match='has no rows'):
    row_batches.batches(empty, 4, 0)


#### Mixtures ####


@settings(deadline=None, max_examples=40)
@given(
  sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4).flatmap(
    lambda sizes: st.tuples(
      st.just(sizes), st.lists(st.floats(0.01, 1), min_size=len(sizes), max_size=len(sizes))
    )
  ),
  seed=st.integers(-5, 2**65),
  first=st.integers(0, 10**9),
)
def test_a_mixture_keeps_its_proportions_in_every_thousand(sizes, seed, first):
  sizes, weights = sizes
  mix = row_batches.Mixture(tuple(_Sized(size) for size in sizes), tuple(weights))
  exact = 1000 * np.array(weights) / sum(weights)
  assert sum(mix.shares) == 1000 and np.abs(np.array(mix.shares) - exact).max() < 1
  rows = row_batches.mixture_rows(first, 1000, tuple(sizes), mix.shares, seed)
  sources = np.searchsorted(np.cumsum(sizes), rows, side='right')
  assert np.bincount(sources, minlength=len(sizes)).tolist() == list(mix.shares)


@settings(deadline=None, max_examples=25)
@given(
  sizes=st.lists(st.integers(1, 120), min_size=1, max_size=3),
  batch_size=st.integers(30, 1300),
  seed=st.integers(0, 9),
)
def test_every_row_of_a_mixture_occurs_once_per_epoch_of_its_store(sizes, batch_size, seed):
  shares = {1: (1000,), 2: (700, 300), 3: (1, 333, 666)}[len(sizes)]
  steps = -(-3000 // batch_size)
  run = np.concatenate(
    [
      row_batches.mixture_rows(step, batch_size, tuple(sizes), shares, seed)
      for step in range(steps)
    ]
  )
  first = 0
  for size in sizes:
    own = run[(run >= first) & (run < first + size)] - first
    for epoch in range(len(own) // size):
      assert np.array_equal(np.sort(own[epoch * size : (epoch + 1) * size]), np.arange(size))
    rest = own[len(own) // size * size :]
    assert len(np.unique(rest)) == len(rest)
    first += size
  assert first > run.max()


def test_stores_of_equal_size_have_different_orders():
  run = row_batches.mixture_rows(0, 1000, (100, 100), (500, 500), 3)
  one, other = run[run < 100], run[run >= 100] - 100
  assert (one == other).mean() < 0.05
  deals = {tuple(row_batches.mixture_rows(step, 1000, (1, 1), (500, 500), 3)) for step in range(10)}
  assert len(deals) == 10


def test_a_mixture_of_one_store_is_that_store(store):
  one = row_batches.Mixture((store,), (0.3,))
  for step in (0, 7, 83, 10**9):
    assert np.array_equal(
      row_batches.read_batch(one, step, 12, 5), row_batches.read_batch(store, step, 12, 5)
    )


def test_the_order_of_a_mixture_does_not_change_between_versions():
  assert row_batches.mixture_rows(5, 6, (1000, 50), (600, 400), 42).tolist() == [
    127,
    1013,
    1027,
    867,
    1036,
    250,
  ]
  assert row_batches.mixture_rows(166, 6, (1000, 50), (600, 400), 42).tolist() == [
    924,
    421,
    1012,
    297,
    782,
    293,
  ]


@pytest.mark.parametrize('use_tf', [False, True])
def test_readers_give_the_batches_of_a_mixture(three, use_tf):
  if use_tf:
    pytest.importorskip('tensorflow')
  mix = row_batches.Mixture(three, (5, 1, 2))
  every = np.arange(1, 358)
  read = list(row_batches.batches(mix, 70, 3, 10, 20, use_tf=use_tf))
  rows = np.concatenate(
    [row_batches.mixture_rows(step, 70, (50, 7, 300), (625, 125, 250), 3) for step in range(10, 20)]
  )
  assert np.array_equal(np.concatenate(read)[:, 0], every[rows])
  parts = [
    list(row_batches.batches(mix, 70, 3, 10, 20, rows, use_tf=use_tf))
    for rows in (np.arange(35), np.arange(35, 70))
  ]
  assert np.array_equal(np.concatenate(parts, axis=1), np.stack(read))


def test_a_mixture_has_the_properties_of_its_stores(three):
  mix = row_batches.Mixture(three, (5, 1, 2))
  assert (mix.rows, mix.length, mix.pad_id, mix.vocab_size) == (357, LENGTH, 0, 5000)
  assert mix.tokens == 357 * LENGTH and mix.weights == (0.625, 0.125, 0.25)
  assert np.array_equal(mix.read(np.array([356, 0, 50, 49]))[:, 0], [357, 1, 51, 50])
  assert np.array_equal(
    np.concatenate(list(row_batches.heldout_batches(mix, 7)))[:, 0], np.arange(1, 358)
  )
  for outside in (-1, 357):
    with pytest.raises(IndexError, match='are 0..356'):
      mix.read(np.array([outside]))


def test_identity_covers_stores_and_weights(three, tmp_path):
  same = tuple(
    _store(tmp_path / str(rows), rows, first) for rows, first in ((50, 1), (7, 51), (300, 58))
  )
  mix = row_batches.Mixture(three, (5, 1, 2))
  assert mix.identity == row_batches.Mixture(same, (50, 10, 20)).identity
  others = [
    row_batches.Mixture(three, (5, 1, 1)),
    row_batches.Mixture(three[::-1], (5, 1, 2)),
    row_batches.Mixture(three[:2], (5, 1)),
    row_batches.Mixture((*three[:2], _store(tmp_path / 'other', 300, 59)), (5, 1, 2)),
  ]
  assert len({mix.identity, *(other.identity for other in others)}) == 5


def test_the_entropy_of_a_mixture_is_that_of_a_runs_rows(tmp_path):
  # Half of the rows read are all 1 and half all 2 or 3, for any sizes of the stores.
  one, two = _store(tmp_path / 'one', 1), _store(tmp_path / 'two', 2, first=2)
  mix = row_batches.Mixture((one, two), (1, 1))
  assert np.isclose(mix.unigram_entropy(), 0.5 * np.log(2) + 2 * 0.25 * np.log(4), rtol=1e-12)
  assert np.isclose(mix.unigram_entropy(left_out=(1,)), np.log(2), rtol=1e-12)


def test_stores_that_cannot_be_mixed_are_named(three, tmp_path):
  for weights, complaint in [
    ((1, 0, 1), 'the weight of .*7 is 0; expected a number above 0'),
    ((1, -2, 1), 'the weight of .*7 is -2; expected'),
    ((1, 1, float('nan')), 'the weight of .*300 is nan; expected'),
    ((1, 1, float('inf')), 'the weight of .*300 is inf; expected'),
    ((1, 1e-4, 1), r'the weight of .*7 is 5e-05 of all, less than one row in 1,000'),
  ]:
    with pytest.raises(UserError, match=complaint):
      row_batches.Mixture(three, weights)
  with pytest.raises(UserError, match='empty has no rows to mix'):
    row_batches.Mixture((*three, _store(tmp_path / 'empty', 0)), (1, 1, 1, 1))
  for fields, complaint in [
    ({'length': 9}, 'their length is 8 and 9'),
    ({'tokenizer_fingerprint': 'x'}, "their tokenizer fingerprint is '' and 'x'"),
    ({'vocab_size': 6000}, 'their vocab size is 5000 and 6000'),
    ({'pad_id': 1}, 'their pad id is 0 and 1'),
  ]:
    with pytest.raises(UserError, match=complaint):
      row_batches.Mixture((*three, _store(tmp_path / complaint, 5, **fields)), (1, 1, 1, 1))


class _Sized:
  """The attributes of a store that a mixture uses."""

  path, length, pad_id, vocab_size, tokenizer_fingerprint = 'store', LENGTH, 0, 5000, ''

  def __init__(self, rows):
    self.rows = rows

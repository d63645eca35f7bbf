"""Packing loses no token, keeps their order, and pads little."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_jax.data.prepare import packing
from electra_jax.errors import UserError

PAD, CLS, SEP = 0, 2, 3
LENGTHS = st.lists(st.integers(0, 300), max_size=30)


def _documents(lengths):
  """Documents of distinct tokens, so that a lost, doubled or moved one is noticed."""
  ends = np.cumsum([0, *lengths])
  return [np.arange(start, end) + 10 for start, end in itertools.pairwise(ends)]


def _pack(documents, row_length, **kwargs):
  return list(packing.pack(documents, row_length, CLS, SEP, PAD, **kwargs))


@settings(deadline=None, max_examples=200)
@given(lengths=LENGTHS, row_length=st.integers(8, 80), min_piece=st.integers(1, 20))
def test_every_token_occurs_once_and_in_order(lengths, row_length, min_piece):
  documents = _documents(lengths)
  rows = _pack(documents, row_length, min_piece=min_piece)
  pieces = [piece for row in rows for piece in packing.row_pieces(row, CLS, SEP)]
  assert np.array_equal(np.concatenate([[], *pieces]), np.concatenate([[], *documents]))
  ends = set(np.cumsum(lengths))
  for piece in pieces:
    assert len(piece), 'no empty piece'
    start, end = piece[0] - 10, piece[-1] - 9
    assert not ends & set(range(start + 1, end)), 'a piece spans two documents'
    whole = (start == 0 or start in ends) and end in ends
    assert whole or len(piece) >= min(min_piece, (row_length - 2) // 2), 'a sliver'


@settings(deadline=None, max_examples=100)
@given(lengths=LENGTHS, row_length=st.integers(8, 80))
def test_rows_are_pieces_and_then_padding(lengths, row_length):
  for row in _pack(_documents(lengths), row_length):
    assert row.shape == (row_length,) and row.dtype == np.int32
    used = int((row != PAD).sum())
    assert used and not row[used:].any(), 'padding is only at the end'
    assert row[0] == CLS and row[used - 1] == SEP
    starts, ends = np.flatnonzero(row == CLS), np.flatnonzero(row == SEP)
    assert np.array_equal(starts[1:], ends[:-1] + 1), (
      'each piece starts where the previous one ends'
    )


@settings(deadline=None, max_examples=100)
@given(lengths=LENGTHS, row_length=st.integers(18, 80))
def test_padding_is_bounded(lengths, row_length):
  rows = _pack(_documents(lengths), row_length)
  padding = sum(int((row == PAD).sum()) for row in rows[:-1])
  assert padding <= 2 * packing.MIN_PIECE * sum(map(bool, lengths))


@pytest.mark.parametrize('row_length', [64, 128, 256, 512])
def test_padding_is_below_one_percent_on_documents_as_long_as_the_samples(row_length):
  rng = np.random.default_rng(0)
  rows = np.stack(_pack(_documents(rng.integers(1_500, 15_000, 60)), row_length))
  assert (rows == PAD).mean() < 0.01


def test_no_documents_give_no_rows():
  assert _pack([], 16) == []
  assert _pack([np.array([], int)], 16) == []


def test_rows_too_short_are_refused():
  with pytest.raises(UserError, match='row_length is 7; expected at least 8'):
    _pack([np.arange(5)], 7)

"""Two-segment rows follow the original program, depend on a seed, and count dropped tokens."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_jax.data.prepare import packing

PAD, CLS, SEP = 0, 2, 3
DOCUMENTS = st.lists(st.lists(st.integers(0, 60), max_size=12), max_size=12)


def documents_of(lengths):
  """Documents of lines of distinct tokens, so that a lost, doubled or moved one is noticed."""
  numbers = iter(range(10, 10**6))
  return [
    [np.array([next(numbers) for _ in range(n)], np.int32) for n in lines] for lines in lengths
  ]


def rows_of(documents, row_length, seed=0):
  counts = collections.Counter()
  rng = np.random.default_rng(seed)
  made = packing.segment_pairs(documents, row_length, CLS, SEP, PAD, rng, counts)
  return [row for _, row in made], counts['dropped_tokens']


def segments(row):
  """First and second segment of a row; the second is None where there is none."""
  used = row[row != PAD]
  assert (
    used[0] == CLS and used[-1] == SEP and (used == CLS).sum() == 1 and not row[len(used) :].any()
  )
  parts = np.split(used, np.flatnonzero(used == SEP) + 1)[:-1]
  assert len(parts) in (1, 2)
  return parts[0][1:-1], parts[1][:-1] if len(parts) == 2 else None


@given(lengths=DOCUMENTS, row_length=st.integers(8, 64), seed=st.integers(0, 5))
def test_every_token_is_in_the_rows_in_order_or_counted_as_dropped(lengths, row_length, seed):
  documents = documents_of(lengths)
  rows, dropped = rows_of(documents, row_length, seed)
  kept = np.concatenate([[]] + [part for row in rows for part in segments(row) if part is not None])
  total = sum(map(sum, lengths))
  assert len(kept) + dropped == total
  assert len(np.unique(kept)) == len(kept) and np.isin(kept, np.arange(10, 10 + total)).all()
  for row in rows:
    for part in segments(row):
      assert part is None or (np.diff(part) > 0).all(), 'lines keep their order in a segment'


@given(lengths=DOCUMENTS, seed=st.integers(0, 5))
def test_no_row_holds_two_documents(lengths, seed):
  documents = documents_of(lengths)
  owner = {int(token): i for i, lines in enumerate(documents) for line in lines for token in line}
  for row in rows_of(documents, 32, seed)[0]:
    assert (
      len({owner[int(token)] for part in segments(row) if part is not None for token in part}) == 1
    )


def many(line, lines=40_000, row_length=64, seed=1):
  """Rows of a long document of lines of one length."""
  return rows_of([[np.full(line, 7, np.int32)] * lines], row_length, seed)


def test_the_probabilities_are_those_of_the_original():
  rows, _ = many(line=4)
  rows = rows[1:-1]
  shares = [segments(row) for row in rows]
  lengths = np.array(
    [len(first) + (0 if second is None else len(second)) for first, second in shares]
  )
  sigma = 4 / np.sqrt(len(rows))
  # One in twenty has a random target length from 5 to 64, which lines of four round to 8 to 60.
  # Full rows are cut from 64 to 61.
  short = (lengths < 60).mean()
  expected_short = 0.05 * (56 - 5 + 1) / 60  # targets up to 56 give rows of 56 tokens and fewer
  assert short == pytest.approx(expected_short, abs=0.22 * sigma)
  single = np.mean([second is None for first, second in shares])
  # One in ten has one segment, and so do rows whose target is too short for a second one.
  assert 0.1 - 0.3 * sigma < single < 0.1 + 0.02 + 0.3 * sigma
  # The first segment's target is (64 - 3) // 2 = 30 tokens: seven lines fit below it (28), and an
  # eighth is added half of the time.
  full = [
    len(first)
    for (first, second), n in zip(shares, lengths, strict=True)
    if n == 61 and second is not None
  ]
  assert set(full) == {28, 32}
  assert np.mean(np.array(full) == 32) == pytest.approx(0.5, abs=0.5 * sigma)


def test_lines_longer_than_the_row_are_cut_and_counted():
  rows, dropped = rows_of([[np.arange(10, 110)], [np.arange(200, 210)]], 32)
  assert [len(segments(row)[0]) for row in rows] == [30, 10] and dropped == 70


def test_the_seed_decides_the_rows():
  documents = documents_of([[9, 4, 30, 2, 11, 5, 8] * 20] * 3)
  first, again, other = (np.stack(rows_of(documents, 32, seed)[0]) for seed in (0, 0, 1))
  assert np.array_equal(first, again)
  assert first.shape != other.shape or not np.array_equal(first, other)


def test_empty_lines_and_documents_give_nothing():
  assert rows_of([[], [np.zeros(0, np.int32)]], 32) == ([], 0)

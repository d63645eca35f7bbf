"""Masks: exact counts, no duplicates, no special tokens; they depend on (seed, step, row) only."""

import dataclasses
import fractions

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import CLS, MASK, PAD, SEP, UNK, packed_rows

from electra_jax.model.randomness import row_keys
from electra_jax.pretrain import masking
from electra_jax.pretrain.objectives.parts import mask_rows
from electra_jax.pretrain.objectives.settings import Settings

BATCH, LENGTH = 6, 40
# Rows of more than 34 maskable tokens reach the cap.
SETTINGS = Settings(mask_rate=0.25, max_predictions=8)
GOOGLE = dataclasses.replace(SETTINGS, google=True)
SPECIAL = (PAD, CLS, SEP, MASK)


@jax.jit
def _draw(ids, seed, step):
  keys = row_keys(seed, step, jnp.arange(len(ids)))
  return mask_rows(SETTINGS, ids, keys)['masks'], mask_rows(GOOGLE, ids, keys)['masks']


def draw(ids, seed=0, step=0):
  """The masks of both settings."""
  return jax.tree.map(np.asarray, _draw(ids, seed, step))


# Rows of tokens in any order, and packed rows; some have nothing to mask, some are only padding.
any_rows = arrays.arrays(
  np.int32, (BATCH, LENGTH), elements=st.integers(0, 20), fill=st.sampled_from((*SPECIAL, UNK, 9))
)
sensible_rows = st.builds(
  packed_rows,
  st.just(BATCH),
  st.just(LENGTH),
  st.just(60),
  seed=st.integers(0, 10_000),
  empty_rows=st.integers(0, 2),
)
rows = st.one_of(any_rows, sensible_rows)
seeds = st.integers(0, 2**31 - 1)


def chosen(masks):
  """(row, position) of the slots in use."""
  return [
    (row, masks.positions[row, slot]) for row, slot in zip(*np.nonzero(masks.weights), strict=True)
  ]


@hypothesis.given(rows, seeds)
def test_special_tokens_and_padding_are_never_chosen_and_never_changed(ids, seed):
  special = np.isin(ids, SPECIAL)
  for masks in draw(ids, seed):
    assert set(np.unique(masks.weights)) <= {0, 1}
    assert not any(special[where] for where in chosen(masks))
    assert np.array_equal(masks.token_ids[special], ids[special])


@hypothesis.given(rows, seeds)
def test_counts_are_exact(ids, seed):
  masks, google = draw(ids, seed)
  for row, maskable in enumerate((~np.isin(ids, SPECIAL)).sum(1)):
    expected = min(8, max(1, round(fractions.Fraction(1, 4) * int(maskable)))) if maskable else 0
    assert masks.weights[row].sum() == expected
    real = int((ids[row] != PAD).sum())
    assert google.weights[row].sum() == (
      min(8, max(1, round(fractions.Fraction(1, 4) * real))) if maskable else 0
    )


@pytest.mark.parametrize('rate', ['0.15', '0.25'])
def test_halves_round_to_even_in_float32_at_every_length(rate):
  count = np.arange(1, 1025)
  maskable = jnp.asarray(np.arange(1024) < count[:, None])
  slots = masking.max_predictions(float(rate), 1024)
  settings = Settings(mask_rate=float(rate), max_predictions=slots)
  keys = row_keys(0, 0, jnp.arange(1024))
  masks = masking.choose(settings, jnp.full((1024, 1024), 9), maskable, keys)
  number = np.asarray(masks.weights).sum(1)
  product = np.float32(rate) * count.astype(np.float32)  # as in the original
  assert np.array_equal(number, np.maximum(np.round(product), 1))
  for n, drawn in zip(count, number, strict=True):  # a nearest integer of the exact product
    assert abs(drawn - fractions.Fraction(rate) * int(n)) <= fractions.Fraction(1, 2) or drawn == 1


@hypothesis.given(rows, seeds)
def test_no_position_is_drawn_twice_without_google(ids, seed):
  masks, _ = draw(ids, seed)
  assert len(set(chosen(masks))) == len(chosen(masks))


def test_google_counts_all_tokens_but_padding_of_any_id():
  settings = dataclasses.replace(GOOGLE, pad_id=7)
  ids = np.full((1, LENGTH), 7, np.int32)
  ids[0, :20] = [CLS, *range(10, 28), SEP]
  masked = jax.jit(lambda ids: mask_rows(settings, ids, row_keys(0, 0, jnp.arange(1))))
  masks = masked(ids)['masks']
  assert masks.weights.sum() == 5 and masks.positions.max() < 19


def test_google_draws_with_replacement():
  ids = packed_rows(BATCH, LENGTH, 60)
  assert any(
    len(set(chosen(google))) < len(chosen(google))
    for google in (draw(ids, seed)[1] for seed in range(10))
  )


@hypothesis.given(rows, seeds)
def test_the_generator_reads_mask_or_the_token_at_chosen_positions_and_the_token_elsewhere(
  ids, seed
):
  for masks in draw(ids, seed):
    expected = ids.copy()
    for row, position in chosen(masks):
      assert masks.token_ids[row, position] in (MASK, ids[row, position])
      expected[row, position] = masks.token_ids[row, position]
    assert np.array_equal(masks.token_ids, expected)


@hypothesis.given(
  arrays.arrays(np.int32, (BATCH, LENGTH), elements=st.integers(0, 99)),
  arrays.arrays(np.int32, (BATCH, 8), elements=st.integers(0, LENGTH - 1)),
  arrays.arrays(np.int32, (BATCH, 8), elements=st.integers(0, 99)),
  arrays.arrays(np.float32, (BATCH, 8), elements=st.sampled_from([0.0, 1.0])),
)
def test_duplicate_positions_get_the_integer_mean_and_weight_zero_is_ignored(
  ids, positions, values, weights
):
  expected = ids.copy()
  for row in range(BATCH):
    for position in set(positions[row]):
      there = values[row][(positions[row] == position) & (weights[row] > 0)]
      if there.size:
        expected[row, position] = there.sum() // there.size
  assert np.array_equal(_write(ids, positions, values, weights), expected)


_write = jax.jit(masking.write_tokens)


@pytest.fixture(scope='module')
def many():
  """A row of 2 special tokens, 30 maskable ones and 8 of padding; its masks, drawn 4,000 times."""
  row = np.array([CLS, *range(10, 40), SEP, *[PAD] * 8], np.int32)
  return row, draw(np.tile(row, (4000, 1)), seed=11)


def test_85_percent_of_the_chosen_positions_are_masked(many):
  row, (masks, _) = many
  positions, used = masks.positions, masks.weights > 0
  shown = np.take_along_axis(masks.token_ids, positions, 1)[used]
  assert scipy.stats.binomtest(int((shown == MASK).sum()), shown.size, 0.85).pvalue > 1e-4
  assert np.array_equal(shown[shown != MASK], row[positions[used]][shown != MASK])


def test_maskable_positions_are_equally_likely_in_every_slot(many):
  _, (masks, google) = many
  for drawn in (masks, google):
    for slots in (slice(0, 8), slice(0, 1)):
      count = np.bincount(drawn.positions[:, slots][drawn.weights[:, slots] > 0], minlength=LENGTH)
      assert count[0] == count[31:].sum() == 0
      assert scipy.stats.chisquare(count[1:31]).pvalue > 1e-4


def test_masks_depend_only_on_seed_step_and_row():
  ids = packed_rows(BATCH, LENGTH, 60, empty_rows=1)
  one_row = jax.jit(
    lambda ids, seed, step, row: mask_rows(SETTINGS, ids[None], row_keys(seed, step, row[None]))[
      'masks'
    ]
  )
  whole, _ = draw(ids, seed=5, step=7)
  for row in range(BATCH):  # with other rows in the batch, or without
    single = one_row(ids[row], 5, 7, np.int32(row))
    for ours, theirs in zip(single, whole, strict=True):
      assert np.array_equal(ours[0], theirs[row])
  same = one_row(ids[0], 5, 7, np.int32(0))
  for seed, step, row in ((6, 7, 0), (5, 8, 0), (5, 7, 1)):
    assert not np.array_equal(one_row(ids[0], seed, step, np.int32(row)).positions, same.positions)


def test_uniform_masks_equal_recorded_ones():
  """Recorded before version 0.1.0: runs of older versions continue with the same masks."""
  masks, google = draw(packed_rows(BATCH, LENGTH, 60, empty_rows=1), seed=5, step=7)
  assert masks.positions[:2].tolist() == [[13, 1, 7, 33, 8, 23, 6, 15], [10, 8, 2, 11, 9, 4, 1, 3]]
  assert google.positions[:2].tolist() == [
    [13, 25, 18, 20, 17, 20, 28, 5],
    [10, 2, 11, 2, 7, 11, 9, 2],
  ]
  assert (masks.weights[:2].sum(1).tolist(), google.weights[:2].sum(1).tolist()) == ([8, 2], [8, 3])
  assert masks.token_ids[1, :13].tolist() == [
    CLS,
    31,
    28,
    27,
    6,
    SEP,
    CLS,
    40,
    MASK,
    38,
    MASK,
    26,
    SEP,
  ]
  assert google.token_ids[1, :13].tolist() == [
    CLS,
    31,
    MASK,
    27,
    6,
    SEP,
    CLS,
    40,
    19,
    38,
    MASK,
    MASK,
    SEP,
  ]


def test_slots_for_masks_are_those_of_the_original_program():
  # Small, base and large of Clark et al. 2020.
  published = {(0.15, 128): 19, (0.15, 512): 79, (0.25, 512): 130}
  assert {key: masking.max_predictions(*key) for key in published} == published
  assert masking.max_predictions(0.15, 4) == 1

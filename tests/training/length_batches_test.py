"""Batches of prediction hold each row once, with little padding, in few programs."""

import collections

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from electra_jax.training import partitioning
from electra_jax.training.length_batches import (
  BatchPlanner,
  Shape,
  powers_of_two,
  program_tokens,
  rounded_up,
)
from electra_jax.training.row_predictor import RowPredictor


def planner(longest=128, **fields):
  return BatchPlanner(
    powers_of_two(longest), **{'tokens': 2048, 'program': 9_000.0, 'shards': 1} | fields
  )


def shapes(planned):
  return collections.Counter(batch.shape for batch in planned)


def padding(planned, lengths):
  return 1 - sum(lengths) / sum(batch.shape.rows * batch.shape.length for batch in planned)


@hypothesis.given(
  st.lists(st.lists(st.integers(1, 128), max_size=80), min_size=1, max_size=4),
  st.sampled_from([1, 8]),
  st.booleans(),
  st.booleans(),
)
def test_every_row_is_in_one_batch_that_holds_it(calls, shards, between, remember):
  made = planner(shards=shards, between=between, remember=remember)
  for lengths in map(np.array, calls):
    planned = made.plan(lengths)
    rows = np.concatenate([batch.rows for batch in planned]) if planned else np.zeros(0)
    assert sorted(rows) == list(range(len(lengths)))
    for rows, shape in planned:
      assert len(rows) <= shape.rows and shape.rows % shards == 0
      assert lengths[rows].max() <= shape.length <= 128
      assert shape.rows == shards or shape.rows * shape.length <= 2048 * shards
      assert between or shape.length in powers_of_two(128)


class Searching(BatchPlanner):
  """A planner that compares all shapes for a single row, too."""

  def _row_that_fits(self, length):
    return None


@hypothesis.given(
  st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=3), max_size=60),
  st.sampled_from([46, 50, 64]),
)
def test_a_single_row_whose_shape_is_compiled_has_the_plan_of_the_search(calls, longest):
  fields = {'tokens': 2048, 'program': 40.0}
  made, other = (kind(powers_of_two(longest), **fields) for kind in (BatchPlanner, Searching))
  for lengths in calls:
    lengths = np.minimum(np.array(lengths), longest)
    plans = [[(rows.tolist(), shape) for rows, shape in one.plan(lengths)] for one in (made, other)]
    assert plans[0] == plans[1]
  assert (made.compiled, made._wasted) == (other.compiled, other._wasted)


def test_texts_that_come_one_by_one_take_a_program_per_power_of_two():
  made = planner()
  for length in [14, 9, 16, 20, 31, 100, 17, 3, 128, 64] * 3:
    ((rows, shape),) = made.plan(np.array([length]))
    assert list(rows) == [0] and shape.rows == 1
    assert shape.length < 2 * max(length, 9) or shape.length == 16
  assert made.compiled == {Shape(1, length) for length in (16, 32, 64, 128)}


def test_few_texts_do_not_wait_for_a_program_and_use_those_there_are():
  made = planner()
  made.plan(np.array([20]))
  assert shapes(made.plan(np.array([18, 19, 30]))) == {Shape(1, 32): 3}
  assert len(made.compiled) == 1


def test_calls_that_repeat_come_to_little_padding_in_a_bounded_number_of_programs():
  lengths = np.clip(np.random.default_rng(0).lognormal(3, 0.5, 2_000).astype(int), 3, 128)
  made = planner(program=program_tokens('cpu', 2.2e6))
  found = [padding(made.plan(lengths), lengths) for _ in range(8)]
  assert 0.2 < found[0] < 0.4  # each program must be worth its compilation
  assert found[-1] < 0.12 and len(made.compiled) <= 24
  last = set(made.compiled)
  made.plan(lengths)
  assert made.compiled == last


def test_one_large_call_is_worth_many_programs():
  lengths = np.clip(np.random.default_rng(0).lognormal(3, 0.5, 100_000).astype(int), 3, 128)
  assert padding(planner().plan(lengths), lengths) < 0.1


def test_the_cost_is_the_least_of_all_choices_of_two_lengths():
  lengths = np.array([10] * 40 + [25] * 8 + [60] * 2)
  made = planner(64, program=200.0, between=False)
  chosen = shapes(made.plan(lengths))

  def cost(of):
    batches = sum(count * (shape.rows * shape.length + 48) for shape, count in of.items())
    return batches + 200 * len(of)

  def options(count, length):
    size = 1
    while size < 2 * count and size * length <= 2048:
      yield Shape(size, length), -(-count // size)
      size *= 2

  cuts = ([(40, 16), (8, 32), (2, 64)], [(48, 32), (2, 64)], [(40, 16), (10, 64)], [(50, 64)])
  best = np.inf
  for buckets in cuts:
    total = sum(min(cost({shape: n}) for shape, n in options(*bucket)) for bucket in buckets)
    best = min(best, total)
  assert cost(chosen) == best


def test_without_memory_equal_rows_have_equal_batches():
  made, lengths = planner(remember=False), np.arange(3, 100)
  first = made.plan(lengths)
  made.plan(np.array([50] * 400))
  assert [(b.shape, *b.rows) for b in made.plan(lengths)] == [(b.shape, *b.rows) for b in first]


def test_lengths():
  assert powers_of_two(100) == (16, 32, 64, 100) and powers_of_two(8) == (8,)
  assert [rounded_up(n) for n in (1, 8, 9, 64, 65, 127, 129, 500)] == [
    *(4, 8, 12, 64, 72, 128, 144, 512)
  ]
  assert len({rounded_up(n) for n in range(1, 513)}) == 40


@pytest.mark.parametrize('devices', [1, 8])
def test_outputs_belong_to_their_rows(devices):
  mesh = partitioning.make_mesh(jax.devices()[:devices])

  @jax.jit
  def sums(params, batch):
    real = batch['token_ids'] != 0
    weights = batch['weight'] * real
    return {'sum': (batch['token_ids'] * weights).sum(1) + params, 'ids': batch['token_ids']}

  rng = np.random.default_rng(0)
  rows = [rng.integers(1, 50, n).astype(np.int32) for n in (3, 17, 40, 9, 9, 16, 25)]
  weights = [rng.integers(1, 5, len(row)).astype(np.int32) for row in rows]
  made = planner(64, shards=devices)
  found = {}
  for numbers, outputs in RowPredictor(sums, made, 0, mesh).batches(7, rows, {'weight': weights}):
    for number, total, ids in zip(numbers, outputs['sum'], outputs['ids'], strict=True):
      found[int(number)] = int(total)
      np.testing.assert_array_equal(ids[: len(rows[number])], rows[number])
  assert [found[i] for i in range(len(rows))] == [
    int((row * weight).sum()) + 7 for row, weight in zip(rows, weights, strict=True)
  ]

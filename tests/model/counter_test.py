"""Dropout from counters: bits of a reference, statistics of masks, and no influence of a mesh."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from electra_jax.config import ModelConfig
from electra_jax.config.declarations import fields_of
from electra_jax.model import counter
from electra_jax.model.dropout import DropoutSettings, dropout, fold_in
from electra_jax.model.randomness import row_keys

RATE = 0.1
COUNTER = DropoutSettings('counter')


def reference(keys, head, query, position, site, rate) -> bool:
  """Whether one element is kept, with Python's integers."""
  low = 2**32 - 1

  def mix(x):
    x = (x ^ x >> 16) * 0x7FEB352D & low
    x = (x ^ x >> 15) * 0x846CA68B & low
    return x ^ x >> 16

  key = 0
  for word in (*map(int, jax.random.key_data(keys)), site, *head):
    key = mix((key * 0x9E3779B9 + word + 1) & low)
  state = mix((query * 0x9E3779B9 + key) & low)
  bits = mix((state + position * 0x85EBCA77) & low)
  bits ^= bits >> 16  # undoes the last shift of mix, which the compare does without
  return bits - (bits >> 31 << 32) >= round(rate * 2**32) - 2**31


@pytest.mark.parametrize('shape', [(2, 3, 4, 5), (6, 7), (9,)])
def test_masks_equal_a_reference_in_python(shape):
  keys = row_keys(3, 1, jnp.arange(2))
  ours = np.asarray(counter.mask(keys, shape, 2, 0.3))
  for row, *index in itertools.product(range(2), *map(range, shape)):
    *head, query, position = [0, *index] if len(index) == 1 else index
    assert ours[(row, *index)] == reference(keys[row], head, query, position, 2, 0.3)


@functools.cache
def masks(rate=RATE, layers=2, heads=6, length=512):
  """Dropped elements, `[layers * rows, heads, length, length]`, of two layers of two rows."""
  keys = row_keys(0, 0, jnp.arange(2))
  draw = jax.jit(
    lambda layer: ~counter.mask(fold_in(keys, layer), (heads, length, length), 1, rate)
  )
  return np.concatenate([draw(layer) for layer in range(1, layers + 1)])


def z(first, second, rate=RATE) -> float:
  """Standard deviations from 0 of the covariance of two masks."""
  product = (first - np.float32(rate)) * (second - np.float32(rate))
  return abs(product.sum(dtype=np.float64)) / (rate * (1 - rate)) / product.size**0.5


@pytest.mark.parametrize('rate', [0.05, 0.1, 0.5])
def test_the_mean_is_the_rate(rate):
  dropped = masks(rate, layers=1, heads=4, length=256)
  assert abs(dropped.mean() - rate) < 4.5 * (rate * (1 - rate) / dropped.size) ** 0.5


@pytest.mark.parametrize('axis', [0, 1, 2, 3], ids=['row or layer', 'head', 'query', 'key'])
def test_neighbors_are_not_correlated(axis):
  dropped = np.moveaxis(masks(), axis, 0)
  for lag in (lag for lag in (1, 2, 3, 4, 8, 64, 256) if lag < len(dropped)):
    assert z(dropped[lag:], dropped[:-lag]) < 4.5, lag


def test_drops_per_query_and_per_key_vary_as_independent_ones():
  dropped = masks()
  for axis in (2, 3):
    variance = dropped.sum(axis).var() / (512 * RATE * (1 - RATE))
    assert abs(variance - 1) < 4.5 * (2 * 512 / dropped.size) ** 0.5


def test_squares_of_four_elements_have_the_frequencies_of_independent_ones():
  """A chi-squared test of the 16 patterns of 2 x 2 elements, 15 degrees of freedom."""
  a = masks().astype(np.int8)
  pattern = (
    a[..., ::2, ::2] + 2 * a[..., 1::2, ::2] + 4 * a[..., ::2, 1::2] + 8 * a[..., 1::2, 1::2]
  )
  found = np.bincount(pattern.ravel(), minlength=16)
  ones = np.array([bin(p).count('1') for p in range(16)])
  expected = pattern.size * RATE**ones * (1 - RATE) ** (4 - ones)
  assert ((found - expected) ** 2 / expected).sum() < 45


def test_the_test_of_neighbors_detects_a_hash_with_one_product(monkeypatch):
  monkeypatch.setattr(counter, '_MULTIPLIERS', (counter._MULTIPLIERS[0], np.uint32(1)))
  dropped = np.moveaxis(masks.__wrapped__(), 3, 0)
  assert max(z(dropped[lag:], dropped[:-lag]) for lag in (1, 2, 4, 8, 64)) > 10


def test_rows_steps_seeds_layers_and_sites_have_masks_of_their_own():
  def draw(seed=0, step=0, row=0, layer=1, site=1):
    keys = fold_in(row_keys(seed, step, jnp.arange(row, row + 1)), layer)
    return np.asarray(counter.mask(keys, (128, 128), site, 0.5))

  others = [draw(seed=1), draw(step=1), draw(row=1), draw(layer=2), draw(site=2)]
  for one, other in itertools.combinations([draw(), *others], 2):
    assert z(one, other, 0.5) < 4.5


def test_a_mesh_changes_no_bit():
  keys = row_keys(0, 0, jnp.arange(8))
  x = jnp.ones((8, 4, 16, 16))
  expected = dropout(x, 0.3, keys, 1, COUNTER)
  for shape in ((8, 1), (2, 4)):
    mesh = jax.make_mesh(shape, ('data', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    found = jax.jit(
      lambda x, keys: dropout(x, 0.3, keys, 1, COUNTER),
      out_shardings=NamedSharding(mesh, PartitionSpec('data', 'tensor')),
    )(x, keys)
    np.testing.assert_array_equal(found, expected)


def test_new_runs_use_it_and_older_ones_keep_theirs():
  declared = fields_of(ModelConfig)['dropout_generator'].declaration
  assert ModelConfig().dropout_generator == 'counter' and declared.before == 'hash'

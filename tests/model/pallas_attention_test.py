"""Our own attention kernel computes what XLA's attention computes, with the same dropout."""

import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import same_training, tiny_electra, train_steps
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

from electra_jax.model import counter, kernels, pallas_attention, pallas_blocks
from electra_jax.model.attention import AttentionSettings, attention
from electra_jax.model.encoder import Encoder, Inputs
from electra_jax.model.kernel_choice import KERNELS
from electra_jax.model.pallas_attention import KernelSettings
from electra_jax.model.pallas_blocks import Blocks, blocks_of
from electra_jax.model.randomness import row_keys

RULES = (('batch', ('data', 'fsdp')), ('heads', 'tensor'), ('embed', 'fsdp'))


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
  monkeypatch.setattr(kernels, 'INTERPRET', True)


def arrays(batch=3, length=64, heads=2, size=16, dtype=jnp.float32):
  """Queries, keys, values, weights of the outputs in a loss, and segment ids.

  The last row is one document, the first has documents and padding, and the second is padding.
  """
  rng = np.random.default_rng(0)
  found = [jnp.asarray(rng.standard_normal((batch, length, heads, size)), dtype) for _ in range(4)]
  index = np.arange(length)
  ids = np.where(index < length // 4 * 3, 1 + (index >= length // 3), 0)[None].repeat(batch, 0)
  ids[1:2] = 0
  ids[2:] = 1
  return *found, jnp.asarray(ids, jnp.int32)


def results(kernel, given, is_global=None, reach=9, rate=0.1):
  """Outputs and the gradients of queries, keys and values."""
  *inputs, weights, segment_ids = given
  settings = AttentionSettings(kernel, reach, dropout_rate=rate)
  keys = row_keys(1, 2, jnp.arange(len(segment_ids)))

  def loss(query, key, value):
    out = attention(query, key, value, segment_ids, is_global, settings, keys)
    return (out * weights).sum(dtype=jnp.float32), out

  gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*inputs)
  return out, *gradients


def close(ours, theirs, tolerance=1e-5):
  for mine, other in zip(ours, theirs, strict=True):
    mine, other = np.asarray(mine, np.float32), np.asarray(other, np.float32)
    assert np.isfinite(mine).all()
    np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize(
  'sizes, options',
  [
    ({}, {}),
    ({}, {'rate': 0.0}),
    ({'heads': 3, 'size': 32, 'batch': 2}, {'rate': 0.5}),
    ({'length': 72}, {'is_global': False}),
    ({'length': 128, 'size': 128, 'heads': 1}, {'is_global': True}),
    ({'length': 256, 'batch': 1}, {'is_global': False, 'reach': 300}),
    ({'length': 768, 'batch': 1, 'heads': 1}, {}),
    ({'length': 1024, 'batch': 1, 'heads': 1}, {'is_global': False, 'reach': 70}),
    ({'length': 1024, 'batch': 1, 'heads': 1}, {'is_global': False, 'reach': 600, 'rate': 0.0}),
  ],
  ids=str,
)
def test_it_agrees_with_xla(sizes, options):
  """Packed and padded rows, heads of several sizes, windows, and rows of several blocks."""
  given = arrays(**sizes)
  close(results('pallas', given, **options), results('xla', given, **options))


def test_it_agrees_in_bfloat16():
  given = arrays(dtype=jnp.bfloat16)
  exact = results('xla', [x.astype(jnp.float32) for x in given[:4]] + [given[4]])
  ours = results('pallas', given)
  assert all(x.dtype == jnp.bfloat16 for x in ours)
  close(ours, exact, tolerance=0.02)


@pytest.mark.parametrize('change', ['segments', 'padding', 'window', 'rate', 'step'])
def test_the_comparison_detects_what_is_ignored(change, monkeypatch):
  *given, segment_ids = arrays(batch=2, length=64, heads=1)
  local = False if change == 'window' else None
  expected = results('xla', (*given, segment_ids), is_global=local)
  ids = {'segments': jnp.minimum(segment_ids, 1), 'padding': jnp.maximum(segment_ids, 1)}
  if change == 'step':
    monkeypatch.setattr(counter, '_STEP', np.uint32(0x9E3779BB))
  ours = results(
    'pallas',
    (*given, ids.get(change, segment_ids)),
    is_global=None,
    rate=0.0 if change == 'rate' else 0.1,
  )
  for mine, other in zip(ours, expected, strict=True):
    with pytest.raises(AssertionError):
      close([mine], [other])


def attend(computation, query, key, value, ids, keys, heads=None):
  """The kernel without a mesh, for arrays `[batch, heads, head_size, length]`."""
  heads = jnp.arange(query.shape[1]) if heads is None else heads
  return pallas_attention.attend(computation, query, key, value, ids, keys, heads)


@pytest.mark.parametrize('length', [64, 128])
def test_both_passes_have_the_mask_of_xla_bit_for_bit(length):
  """Of equal scores all probabilities are 1 / length, and unit vectors as values read them."""
  rate, batch, heads = 0.3, 2, 3
  shape = batch, heads, length, length
  keys = row_keys(0, 0, jnp.arange(batch))
  expected = np.asarray(counter.mask(keys, (heads, length, length), 1, rate))
  unit = jnp.broadcast_to(jnp.eye(length), shape)
  ids = jnp.ones((batch, length), jnp.int32)
  words = counter.row_keys(keys, 1)

  def of_value(value):
    zeros = jnp.zeros(shape)
    return attend(KernelSettings(rate, interpret=True), zeros, zeros, value, ids, words)

  out, pullback = jax.vjp(of_value, unit)  # [.., key, query]
  (gradient,) = pullback(unit)  # [.., query, key]
  np.testing.assert_array_equal(out.swapaxes(2, 3) != 0, expected)
  np.testing.assert_array_equal(gradient != 0, expected)
  np.testing.assert_allclose(out[out != 0], 1 / (1 - rate) / length, rtol=1e-6)


def test_gradients_equal_finite_differences():
  query, key, value, weights, ids = arrays(batch=2, length=24, size=8)
  keys = row_keys(3, 1, jnp.arange(2))
  settings = AttentionSettings('pallas', 5, dropout_rate=0.2)

  @jax.jit
  def loss(*inputs):
    return (attention(*inputs, ids, False, settings, keys) * weights).sum()

  inputs = query, key, value
  gradients = jax.grad(loss, (0, 1, 2))(*inputs)
  rng = np.random.default_rng(2)
  for place, gradient in enumerate(gradients):
    direction = jnp.asarray(rng.standard_normal(gradient.shape), jnp.float32)

    def moved(by, place=place, direction=direction):
      changed = list(inputs)
      changed[place] += by * direction
      return loss(*changed)

    slope = (moved(0.02) - moved(-0.02)) / 0.04
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=2e-3)


@pytest.mark.parametrize(
  'blocks', [Blocks(1, 1, 128, 256), Blocks(2, 2, 128, 256), Blocks(1, 2, 256, 256)], ids=str
)
def test_blocks_change_nothing_but_rounding(blocks, monkeypatch):
  given = arrays(batch=2, length=256)
  expected = results('xla', given)
  monkeypatch.setattr(pallas_blocks, 'blocks_of', lambda *_: blocks)
  close(results('pallas', given), expected)


def test_it_agrees_in_memory_that_is_simulated(monkeypatch):
  """With copies to and from blocks, fresh memory full of NaN, and bounds that are checked."""
  given = arrays(batch=2, length=256, heads=1, size=8)
  expected = results('xla', given, is_global=False)
  monkeypatch.setattr(pallas_blocks, 'blocks_of', lambda *_: Blocks(1, 1, 128, 256))
  monkeypatch.setattr(kernels, 'INTERPRET', pltpu.InterpretParams())
  close(results('pallas', given, is_global=False), expected)


def also_long(*values):
  """The first value in make test, the others in make test-long."""
  first, *others = values
  return [first, *(pytest.param(value, marks=pytest.mark.long) for value in others)]


@pytest.mark.parametrize('shape', also_long((2, 2, 2), (8, 1, 1), (1, 2, 4)))
def test_a_mesh_changes_no_bit(shape, monkeypatch):
  monkeypatch.setattr(pallas_blocks, '_UNITS', 1)  # short programs
  given = arrays(batch=8, length=32, heads=4, size=8)
  expected = results('pallas', given)
  mesh = jax.make_mesh(shape, ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    found = results('pallas', given)
  spec = jax.sharding.PartitionSpec(('data', 'fsdp'), None, 'tensor')
  assert found[0].sharding.is_equivalent_to(jax.sharding.NamedSharding(mesh, spec), 4)
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_blocks_divide_the_arrays_and_stay_small():
  for batch, heads, length, reach in itertools.product(
    (1, 6, 31), (1, 4, 12), (8, 64, 128, 320, 512, 640, 768, 1024), (None, 1, 64, 500)
  ):
    assert not KERNELS['pallas'].lengths(length)
    shape = batch, heads, 64, length
    blocks = blocks_of(shape, reach)
    steps = blocks.grid(shape)
    assert (blocks.rows * steps[0], blocks.heads * steps[1]) == (batch, heads)
    assert blocks.queries * steps[2] == length
    assert blocks.rows * blocks.heads * blocks.queries * blocks.keys <= 1024 * 512
    if blocks.keys < length:  # a window around the queries
      assert blocks.keys >= blocks.queries + 2 * reach


@pytest.mark.parametrize(
  'family, remat, sizes',
  [
    ('electra', 'dots', {'devices': 1}),
    pytest.param('modern', 'none', {'devices': 1}, marks=pytest.mark.long),
    pytest.param('electra', 'full', {'devices': 8}, marks=pytest.mark.long),
    pytest.param('modern', 'none', {'devices': 8, 'fsdp': 2, 'tensor': 2}, marks=pytest.mark.long),
  ],
)
def test_training_with_it_equals_training_with_xla(family, remat, sizes, monkeypatch):
  """Whole steps with dropout everywhere, local layers, recomputation, and on meshes."""
  monkeypatch.setattr(pallas_blocks, '_UNITS', 1)
  ours = train_steps(family, micro_batches=1, attention='pallas', remat=remat, **sizes)
  same_training(ours, train_steps(family, devices=1, micro_batches=1))


@pytest.mark.parametrize('remat, times', [('none', 1), ('dots', 1), ('full', 2)])
def test_the_forward_pass_is_recomputed_only_where_nothing_is_kept(remat, times, monkeypatch):
  """With remat 'dots', outputs and logarithms are kept beside the products."""
  monkeypatch.setattr(kernels, 'INTERPRET', False)
  model = tiny_electra(dropout=0.1, attention='pallas', remat=remat).discriminator_config
  encoder = Encoder(model)
  rows = jax.ShapeDtypeStruct((2, 16), jnp.int32)
  embedded = jax.ShapeDtypeStruct((2, 16, 16), jnp.float32)
  shapes = jax.eval_shape(
    lambda x, ids: nn.unbox(encoder.init(jax.random.key(0), x, Inputs(ids, ids, ids, ids))),
    embedded,
    rows,
  )

  def loss(params, embedded, ids):
    keys = row_keys(0, 0, jnp.arange(2))
    return encoder.apply(params, embedded, Inputs(ids, ids, ids, ids), keys).sum()

  lowered = jax.jit(jax.grad(loss)).trace(shapes, embedded, rows).lower(lowering_platforms=('tpu',))
  text = lowered.as_text()
  calls = re.findall(r'(%\d+):\d = stablehlo.custom_call.*kernel_name = "(\w+)"', text)
  # What is not used of the recomputed program is still there; XLA removes it.
  used = [name for result, name in calls if text.count(f'{result}#')]
  assert sorted(used) == ['attention_backward'] + ['attention_forward'] * times

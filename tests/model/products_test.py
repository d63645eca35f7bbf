"""Products in the form for bfloat16 instructions of CPUs, beside products in the plain form."""

import os
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import micro_run
import numpy as np
import pytest
from conftest import packed_rows
from jax.sharding import AxisType

from electra_jax.config import ModelConfig
from electra_jax.model.attention import AttentionSettings, attention, rotary_tables
from electra_jax.model.electra import GeneratorHead
from electra_jax.model.encoder import Encoder, dense, packed_inputs
from electra_jax.model.products import ProductSettings, batched_product, product
from electra_jax.training.encoders import encoder_config

PLAIN, ROW_MAJOR = ProductSettings(), ProductSettings(row_major=True)
TRANSPOSES = ProductSettings(transposes=True)


def arrays(*shapes, dtype=jnp.bfloat16):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def with_gradients(function, *inputs):
  """Output and gradients of a weighted sum of it, float32."""
  out = jax.jit(function)(*inputs)
  weights = jnp.asarray(np.random.default_rng(1).standard_normal(out.shape), jnp.float32)

  def weighted_sum(*inputs):
    return jnp.sum(weights * function(*inputs).astype(jnp.float32))

  gradients = jax.jit(jax.grad(weighted_sum, tuple(range(len(inputs)))))(*inputs)
  return [np.asarray(x, np.float32) for x in (out, *gradients)]


def assert_close(found, expected, tolerance):
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize(
  ('form', 'dtype'),
  [(ROW_MAJOR, jnp.bfloat16), (TRANSPOSES, jnp.bfloat16), (TRANSPOSES, jnp.float32)],
)
@pytest.mark.parametrize('transposed', [False, True])
@pytest.mark.parametrize('widths', [(16, 40), (40, 16)])
def test_a_dense_product_and_its_gradients_are_those_of_the_plain_form(
  widths, transposed, form, dtype
):
  x, kernel = arrays((24, widths[0]), widths[::-1] if transposed else widths, dtype=dtype)
  kernel = kernel.astype(jnp.float32)

  def of(settings):
    return with_gradients(
      lambda x, kernel: product(x, kernel.T if transposed else kernel, settings), x, kernel
    )

  assert_close(of(form), of(PLAIN), 1e-6)


def test_a_product_that_keeps_the_axes_is_that_of_flat_matrices():
  x, kernel = arrays((2, 12, 16), (16, 40))
  flat = with_gradients(
    lambda x, k: product(x.reshape(24, 16), k, PLAIN).reshape(2, 12, 40), x, kernel
  )
  assert_close(with_gradients(lambda x, k: product(x, k, PLAIN), x, kernel), flat, 1e-6)


@pytest.mark.parametrize(('platform', 'flat'), [('cpu', True), ('gpu', True), ('tpu', False)])
def test_dense_layers_keep_the_axes_of_rows_and_positions_on_tpus(platform, flat):
  config = encoder_config(ModelConfig(attention='xla'), 100, 16, 'float32', platform)
  layer = dense(config, 40, ('embed', 'mlp'), 'layer')
  x = jax.ShapeDtypeStruct((2, 12, 16), jnp.float32)
  text = str(jax.make_jaxpr(lambda x: layer.init_with_output(jax.random.key(0), x)[0])(x))
  assert ('f32[24,40]' in text) == flat


def head_of(platform):
  """The generator's head, as it is computed on a platform."""
  model = ModelConfig(attention='xla', hidden_size=16, embedding_size=8, vocab_multiple=8)
  return GeneratorHead(encoder_config(model, 60, 16, 'float32', platform), 8)


@pytest.mark.parametrize(('platform', 'flat'), [('cpu', True), ('gpu', True), ('tpu', False)])
def test_logits_keep_the_axes_of_rows_and_predictions_on_tpus(platform, flat):
  head = head_of(platform)
  shapes = [jax.ShapeDtypeStruct(x, jnp.float32) for x in ((2, 3, 16), (64, 8))]
  text = str(jax.make_jaxpr(lambda *x: head.init_with_output(jax.random.key(0), *x)[0])(*shapes))
  assert ('f32[6,64]' in text) == flat


def test_logits_and_their_gradients_are_the_same_in_both_forms():
  hidden, words = (x.astype(jnp.float32) for x in arrays((2, 3, 16), (64, 8)))
  params = nn.unbox(head_of('cpu').init(jax.random.key(0), hidden, words))
  weights = jnp.where(jnp.arange(64) < 60, jnp.cos(jnp.arange(64.0)), 0)

  def of(platform):
    def loss(params, hidden, words):
      logits = head_of(platform).apply(params, hidden, words)
      return (logits * weights).sum(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
      params, hidden, words
    )
    return [logits[..., :60], *jax.tree.leaves(gradients)]

  found = of('tpu')
  assert all(np.abs(x).max() > 0 for x in found)
  assert_close(found, of('cpu'), 1e-6)


@pytest.mark.parametrize(('summed', 'form'), [(0, 'bmn,bnk->bmk'), (1, 'bmn,bkn->bmk')])
def test_batched_products_and_their_gradients_are_those_of_einsum(summed, form):
  x, y = arrays((3, 5, 7), (3, 7, 4) if summed == 0 else (3, 4, 7))
  found = with_gradients(lambda x, y: batched_product(x, y, summed), x, y)
  wide = x.astype(jnp.float32), y.astype(jnp.float32)
  expected = with_gradients(lambda x, y: jnp.einsum(form, x, y, precision='highest'), *wide)
  assert_close(found, expected, 0.01)  # the incoming gradient is rounded to bfloat16


def test_attention_and_its_gradients_are_those_of_the_plain_form():
  inputs = arrays(*[(2, 16, 3, 8)] * 3)
  segments = jnp.asarray([[1] * 7 + [2] * 9, [1] * 12 + [0] * 4], jnp.int32)

  def of(settings):
    settings = AttentionSettings('xla', 0, products=settings)
    return with_gradients(lambda *qkv: attention(*qkv, segments, None, settings), *inputs)

  assert_close(of(ROW_MAJOR), of(PLAIN), 0.02)


@pytest.mark.parametrize(
  ('form', 'mark'), [(ROW_MAJOR, 'LayoutConstraint'), (TRANSPOSES, 'optimization_barrier')]
)
def test_arrays_that_are_split_over_devices_keep_the_plain_form(form, mark):
  x, kernel = arrays((16, 8), (8, 8))
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  with jax.set_mesh(mesh):
    text = jax.jit(jax.grad(lambda k: product(x, k, form).sum())).lower(kernel).as_text()
  assert mark not in text
  text = jax.jit(jax.grad(lambda k: product(x, k, form).sum())).lower(kernel).as_text()
  assert mark in text


@pytest.mark.parametrize(
  ('dtype', 'platform', 'expected'),
  [('bfloat16', 'cpu', True), ('float32', 'cpu', False), ('bfloat16', 'tpu', False)],
)
def test_only_bfloat16_on_cpus_has_the_form(dtype, platform, expected):
  found = encoder_config(ModelConfig(), 100, 16, dtype, platform)
  assert found.products.row_major == expected


def test_a_loop_over_layers_stacks_bfloat16_arrays_as_integers():
  model = ModelConfig(num_layers=7, hidden_size=16, embedding_size=16, intermediate_size=32)
  config = encoder_config(model, 60, 8, 'bfloat16', 'cpu')
  assert (config.scan_unroll, config.remat) == (1, 'dots')
  encoder, inputs = Encoder(config), packed_inputs(packed_rows(2, 8, 60), 0, 2, 3)
  embedded = jax.ShapeDtypeStruct((2, 8, 16), jnp.float32)
  params = nn.unbox(jax.eval_shape(encoder.init, jax.random.key(0), embedded, inputs))

  def loss(params, embedded):
    return jnp.square(encoder.apply(params, embedded, inputs).astype(jnp.float32)).mean()

  text = jax.jit(jax.grad(loss)).lower(params, embedded).as_text()
  stacked = re.findall(r'stablehlo\.dynamic_update_slice.*tensor<7x[0-9x]*x(\w+)>$', text, re.M)
  assert set(stacked) == {'f32', 'ui16'}


def test_rotary_tables_in_memory_are_the_same_bits():
  positions = jnp.asarray([[0, 1, 2, 0, 1, 500]], jnp.int32)
  for found, expected in zip(
    jax.jit(rotary_tables, static_argnums=(1, 2, 3))(positions, 8, 1e4, True),
    jax.jit(rotary_tables, static_argnums=(1, 2, 3))(positions, 8, 1e4, False),
    strict=True,
  ):
    np.testing.assert_array_equal(found, expected)


def test_sines_of_positions_are_computed_once_on_a_cpu_and_not_in_each_layer():
  model = ModelConfig(
    family='modern',
    num_layers=3,
    hidden_size=16,
    embedding_size=16,
    intermediate_size=32,
    num_heads=2,
  )
  encoder = Encoder(encoder_config(model, 60, 8, 'float32', 'cpu'))
  inputs = packed_inputs(packed_rows(2, 8, 60), 0, 2, 3)
  embedded = jnp.zeros((2, 8, 16))
  params = nn.unbox(jax.eval_shape(encoder.init, jax.random.key(0), embedded, inputs))
  compiled = jax.jit(lambda p, x: encoder.apply(p, x, inputs)).lower(params, embedded).compile()
  sines = re.findall(r' = f32\[[\d,]*\]\S* sine\(', compiled.as_text())
  assert 1 <= len(sines) <= 2  # of global and of local layers


@pytest.mark.long
@pytest.mark.parametrize('isa', ['', '--xla_cpu_max_isa=AVX2'])
@pytest.mark.parametrize('family', ['electra', 'modern', 'deberta-v2'])
def test_training_in_bfloat16_runs_with_all_optimizations(family, isa, tmp_path):
  argv = micro_run.arguments(tmp_path / 'run', f'--config.model.family={family}')
  argv += ['--config.dtype=bfloat16', '--config.steps=2', '--config.compilation_cache=']
  environment = {name: x for name, x in os.environ.items() if name != 'XLA_FLAGS'}
  environment |= {'JAX_PLATFORMS': 'cpu'} | ({'XLA_FLAGS': isa} if isa else {})
  # With the optimizations of XLA that other tests switch off.
  command = [sys.executable, '-m', 'electra_jax.main', *argv, '--config.optimizer.warmup_steps=1']
  done = subprocess.run(
    command, cwd=micro_run.ROOT, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert micro_run.last_step(tmp_path / 'run') == 2

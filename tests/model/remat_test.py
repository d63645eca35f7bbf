"""The backward pass recomputes what config.model.remat states, and holds as much less memory."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import packed_rows

from electra_jax.config import ModelConfig
from electra_jax.model.config import EncoderConfig
from electra_jax.model.encoder import Encoder, Inputs, packed_inputs
from electra_jax.training.encoders import encoder_config

ROWS, LENGTH, HIDDEN = 8, 64, 32
CARRY = ROWS * LENGTH * HIDDEN * 4  # bytes of the hidden states between two layers


def encoder(remat, layers, family='electra', **fields) -> Encoder:
  """An encoder as a run on CPU computes it."""
  sizes = {'hidden_size': HIDDEN, 'embedding_size': HIDDEN, 'num_heads': 2, 'local_window': 8}
  model = ModelConfig(
    family=family, num_layers=layers, remat=remat, intermediate_size=64, **sizes | fields
  )
  return Encoder(encoder_config(model, 60, LENGTH, 'float32', 'cpu'))


def lowered(of: Encoder):
  """The gradient of a loss of the hidden states, with dropout, and the shapes of its arguments."""
  inputs = packed_inputs(packed_rows(ROWS, LENGTH, 60), 0, 2, 3)
  embedded = jax.ShapeDtypeStruct((ROWS, LENGTH, HIDDEN), jnp.float32)
  shapes = jax.eval_shape(of.init, jax.random.key(0), embedded, inputs)

  def loss(params, embedded, inputs: Inputs):
    keys = jax.random.split(jax.random.key(0), ROWS)
    return jnp.square(of.apply(params, embedded, inputs, keys)).mean()

  gradient = jax.jit(jax.grad(loss))
  return gradient.lower(nn.unbox(shapes), embedded, inputs), inputs


@functools.cache
def compiled(remat, layers, family='electra'):
  return lowered(encoder(remat, layers, family))[0].compile()


def held(remat, layers) -> int:
  """Bytes that the compiled gradient holds beside its arguments and results."""
  return compiled(remat, layers).memory_analysis().temp_size_in_bytes


# So few layers that they are unrolled without remat.
@pytest.mark.parametrize('layers', [3, pytest.param(6, marks=pytest.mark.long)])
def test_full_holds_what_passes_between_layers_and_dots_the_products_too(layers):
  none, dots, full = (held(remat, layers) for remat in ('none', 'dots', 'full'))
  assert full < dots < none
  # The layer that is being recomputed is held as a whole: the share of the others counts.
  assert full < (0.75 if layers == 3 else 0.5) * none


def test_a_layer_more_holds_one_hidden_state_more():
  more = (held('full', 6) - held('full', 3)) / 3
  assert CARRY <= more < 2 * CARRY < (held('none', 6) - held('none', 3)) / 3


@functools.cache
def products(remat, unroll) -> tuple[int, int]:
  """Products and barriers of a gradient before the compiler changes it."""
  # Products in the form for CPUs have barriers of their own.
  fields = vars(encoder(remat, 3).config) | {'scan_unroll': unroll, 'for_cpu': False}
  text = lowered(Encoder(EncoderConfig(**fields)))[0].as_text()
  return text.count('dot_general'), text.count('optimization_barrier')


def test_dots_recomputes_no_dense_layer_and_full_recomputes_all():
  none, dots, full = (products(remat, 1)[0] for remat in ('none', 'dots', 'full'))
  # A layer has six dense layers, and two products of attention without weights.
  assert (dots - none, full - none) == (2, 8)


def test_unrolled_layers_are_kept_apart_from_what_is_recomputed():
  # Without barriers XLA would replace what is recomputed by the equal values of the forward pass.
  assert products('full', 3)[1] > 0
  assert products('full', 2)[1] > 0  # the remaining layer is not in the loop
  assert products('full', 1)[1] == 0


def test_on_a_cpu_layers_are_not_unrolled_with_remat():
  # Its compiler removes barriers.
  assert encoder('none', 3).config.scan_unroll == 3
  assert encoder('full', 3).config.scan_unroll == 1
  assert encoder('dots', 3, scan_unroll=3).config.scan_unroll == 1
  on_tpu = encoder_config(
    ModelConfig(remat='full', scan_unroll=3, attention='xla'), 60, LENGTH, 'float32', 'tpu'
  )
  assert on_tpu.scan_unroll == 3


def test_by_default_tpus_and_loops_on_a_cpu_recompute_all_but_products():
  def chosen(platform, **fields):
    model = ModelConfig(attention='xla', **fields)
    return encoder_config(model, 60, LENGTH, 'float32', platform).remat

  assert chosen('cpu', num_layers=12) == chosen('cpu', num_layers=6, scan_unroll=2) == 'dots'
  assert chosen('cpu', num_layers=6) == chosen('cpu', num_layers=7, scan_unroll=2) == 'none'
  assert chosen('tpu', num_layers=12) == chosen('tpu', num_layers=6, scan_unroll=6) == 'dots'
  assert chosen('cpu', num_layers=12, remat='none') == chosen('gpu', num_layers=12) == 'none'
  assert chosen('tpu', num_layers=12, remat='none') == 'none'


@pytest.mark.parametrize(
  'family, layers', [('electra', 3), pytest.param('modern', 2, marks=pytest.mark.long)]
)
def test_remat_does_not_change_gradients(family, layers):
  of = encoder('none', layers, family)
  inputs = packed_inputs(packed_rows(ROWS, LENGTH, 60), 0, 2, 3)
  rng = np.random.default_rng(0)
  embedded = rng.standard_normal((ROWS, LENGTH, HIDDEN)).astype(np.float32)
  shapes = nn.unbox(jax.eval_shape(of.init, jax.random.key(0), embedded, inputs))
  params = jax.tree.map(
    lambda x: rng.standard_normal(x.shape).astype(np.float32) * HIDDEN**-0.5, shapes
  )
  plain, *others = (
    jax.device_get(compiled(remat, layers, family)(params, embedded, inputs))
    for remat in (('none', 'dots', 'full') if family == 'electra' else ('none', 'dots'))
  )
  for ours in others:
    for (path, a), b in zip(
      jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(plain), strict=True
    ):
      np.testing.assert_allclose(
        a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-6), err_msg=jax.tree_util.keystr(path)
      )

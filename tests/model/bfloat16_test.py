"""In bfloat16 no scalar, no long sum, and by default no residual stream of `modern` is rounded."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import packed_rows, random_params, tiny_electra

from electra_jax.model.config import EncoderConfig
from electra_jax.model.dropout import DropoutSettings, dropout
from electra_jax.model.encoder import Encoder, packed_inputs

SUMS = ('reduce_sum', 'cumsum', 'reduce_window_sum')


@pytest.mark.parametrize('rate', [0.05, 0.1, 0.3])
def test_dropout_keeps_the_mean(rate):
  x = jax.random.uniform(jax.random.key(0), (8, 1 << 15), jnp.float32, 0.5, 2.0)
  x = x.astype(jnp.bfloat16)
  keys = jax.random.split(jax.random.key(1), 8)

  def scale(settings):
    y = np.asarray(dropout(x, rate, keys, 0, settings), np.float64)
    kept = y != 0
    return y[kept].sum() / np.asarray(x, np.float64)[kept].sum() * (1 - rate)

  assert abs(scale(DropoutSettings()) - 1) < 1e-4
  assert dropout(x, rate, keys, 0, DropoutSettings()).dtype == jnp.bfloat16
  # As in version 0.1.0 the factor itself is rounded, by up to 0.2%.
  factor = float(jnp.bfloat16(1 / (1 - rate))) * (1 - rate)
  assert abs(scale(DropoutSettings(scale='dtype')) - factor) < 3e-4 < abs(factor - 1)


def test_dropout_in_float32_does_not_depend_on_the_type_of_the_scale():
  x = jax.random.normal(jax.random.key(0), (4, 100))
  keys = jax.random.split(jax.random.key(1), 4)
  ours, before = (dropout(x, 0.1, keys, 0, DropoutSettings(scale=s)) for s in ('float32', 'dtype'))
  np.testing.assert_array_equal(ours, before)


def equations(jaxpr):
  """All equations of a jaxpr, those of inner jaxprs included."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.core.jaxprs_in_params(equation.params):
      yield from equations(inner)


def is_rounded(value) -> bool:
  """Whether a bfloat16 scalar uses many bits of its mantissa, as numbers that were rounded do."""
  mantissa = np.frexp(float(value))[0] * 2**8
  return bool(np.isfinite(mantissa) and mantissa % 16)


def rounded_to_bfloat16(closed) -> list[str]:
  """Sums over axes in bfloat16, and scalars that were rounded to it."""
  found = [
    str(x) for x in closed.consts if x.dtype == jnp.bfloat16 and not x.ndim and is_rounded(x)
  ]
  for equation in equations(closed.jaxpr):
    of = equation.invars[0].aval if equation.invars else None
    if equation.primitive.name in SUMS and of.dtype == jnp.bfloat16:
      found.append(str(equation))
    for value in equation.invars:
      literal = isinstance(value, jax.extend.core.Literal)
      if literal and value.aval.dtype == jnp.bfloat16 and is_rounded(value.val):
        found.append(str(equation))
  return found


@pytest.mark.parametrize(
  'family, scale', [('electra', 'float32'), ('modern', 'float32'), ('electra', 'dtype')]
)
def test_no_scalar_and_no_sum_of_a_step_is_rounded(family, scale):
  model = tiny_electra(family, dropout=0.1, dtype=jnp.bfloat16, dropout_scale=scale)
  positions = jnp.broadcast_to(jnp.arange(5), (4, 5))

  def loss(params, ids):
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = packed_inputs(ids, 0, 2, 3)
    generator = model.apply({'params': params}, inputs, positions, keys, method='generator_logits')
    verdicts = model.apply({'params': params}, inputs, keys, method='discriminator_logits')
    assert generator.dtype == verdicts.dtype == jnp.float32
    return jnp.square(generator[..., :60]).mean() + jnp.square(verdicts).mean()

  found = jax.make_jaxpr(jax.grad(loss))(random_params(model), packed_rows(4, 32, 60))
  assert bool(rounded_to_bfloat16(found)) == (scale == 'dtype')


def test_the_default_residual_stream_is_float32_in_modern_only():
  def dtype(**fields):
    return EncoderConfig(dtype=jnp.bfloat16, **fields).residual_dtype

  assert dtype() == dtype(family='modern', residual='dtype') == jnp.bfloat16
  assert dtype(family='modern') == dtype(residual='float32') == jnp.float32


def test_a_float32_residual_stream_is_closer_to_a_float32_encoder():
  family = 'modern'
  sizes = {'hidden_size': 32, 'embedding_size': 32, 'num_heads': 2, 'intermediate_size': 64}
  sizes |= {'num_layers': 12, 'vocab_size': 60, 'dropout': 0.0, 'attention_dropout': 0.0}
  exact = EncoderConfig(family=family, **sizes)
  inputs = packed_inputs(packed_rows(4, 32, 60), 0, 2, 3)
  embedded = jax.random.normal(jax.random.key(0), (4, 32, 32))
  params = jax.jit(Encoder(exact).init)(jax.random.key(1), embedded, inputs)

  def hidden(**fields):
    config = EncoderConfig(family=family, **sizes | fields)
    found = jax.jit(Encoder(config).apply)(params, embedded, inputs)
    assert found.dtype == config.dtype
    return np.asarray(found, np.float32)

  def error(residual):
    return np.abs(hidden(dtype=jnp.bfloat16, residual=residual) - hidden()).mean()

  assert error('float32') < 0.7 * error('dtype')

"""The gradient of the vocabulary's bias is the sum over positions, in time linear in tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.model import electra

ROWS, TOKENS = 24, 50


def loss(add, flat, bias, weights):
  return (weights * jnp.tanh(add(flat, bias))).sum()


def test_values_and_gradients_are_those_of_an_addition():
  rng = np.random.default_rng(0)
  flat, bias, weights = (
    jnp.asarray(rng.standard_normal(shape), jnp.float32)
    for shape in ((ROWS, TOKENS), (TOKENS,), (ROWS, TOKENS))
  )
  found = jax.value_and_grad(loss, (1, 2))(electra._with_bias, flat, bias, weights)
  expected = jax.value_and_grad(loss, (1, 2))(jnp.add, flat, bias, weights)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), found, expected)


def test_a_cpu_sums_by_a_product_and_other_devices_do_not():
  def gradient(flat, bias):
    return jax.grad(lambda bias: loss(electra._with_bias, flat, bias, 1.0))(bias)

  traced = jax.jit(gradient).trace(jnp.ones((ROWS, TOKENS)), jnp.ones(TOKENS))
  texts = {
    platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in ('cpu', 'tpu')
  }
  assert 'dot_general' in texts['cpu'] and 'dot_general' not in texts['tpu']

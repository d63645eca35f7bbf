"""Random bits and Gumbel noise equal those of JAX, and samples are their argmax."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from electra_jax.model import randomness
from electra_jax.model.randomness import row_keys
from electra_jax.pretrain import pretrain_step, replacement
from electra_jax.pretrain.objectives.settings import Settings

SHAPE = (3, 515)


def by_row(draw):
  keys = row_keys(5, 11, jnp.arange(4))
  return keys, jax.vmap(lambda key: draw(key, SHAPE))(keys)


def test_bits_equal_those_of_jax():
  keys, theirs = by_row(jax.random.bits)
  np.testing.assert_array_equal(
    jax.jit(lambda keys: randomness.threefry_bits(keys, SHAPE))(keys), theirs
  )


def test_gumbel_noise_equals_that_of_jax():
  keys, theirs = by_row(jax.random.gumbel)
  np.testing.assert_allclose(
    jax.jit(lambda keys: randomness.gumbel(keys, SHAPE))(keys), theirs, rtol=1e-6, atol=1e-6
  )


@pytest.mark.parametrize('vocab', [7, 128, 384, 1000])
def test_argmax_by_blocks_equals_argmax_and_resolves_ties_to_the_first(vocab):
  scores = np.random.default_rng(0).integers(0, 40, (5, 3, vocab)).astype(np.float32)  # many ties
  np.testing.assert_array_equal(jax.jit(replacement.argmax)(scores), scores.argmax(-1))


@pytest.mark.parametrize(('platform', 'blocks'), [('cpu', True), ('tpu', False), ('cuda', False)])
def test_only_cpus_find_the_argmax_by_blocks(platform, blocks):
  scores = jax.ShapeDtypeStruct((2, 3, 256), np.float32)
  lowered = jax.jit(replacement.argmax).trace(scores).lower(lowering_platforms=(platform,))
  assert ('2x3x2x128' in lowered.as_text()) == blocks


def test_a_sample_is_the_argmax_of_logits_plus_noise_of_jax():
  keys, noise = by_row(jax.random.gumbel)
  logits = jax.random.normal(jax.random.key(1), noise.shape)
  np.testing.assert_array_equal(
    jax.jit(lambda logits, keys: replacement.sample(logits, keys, temperature=0.5))(logits, keys),
    jnp.argmax(logits + 0.5 * noise, -1),
  )


def test_the_keys_of_a_step_follow_from_seed_step_and_rows():
  def loss(params, context):
    return jnp.sum(params['discriminator']), {'keys': jax.random.key_data(context.batch)}

  objective = types.SimpleNamespace(
    examples=lambda settings, token_ids, keys: keys,
    counts=lambda settings, examples: {},
    loss=loss,
  )
  optimizer = optax.sgd(0.1)
  state = pretrain_step.fresh_state(optimizer, {'discriminator': jnp.zeros(3)})
  computation = pretrain_step.Computation(None, objective, Settings(), seed=7)
  step = jax.jit(pretrain_step.make_train_step(computation, optimizer))
  for number in range(3):
    state, sums = step(state, {'token_ids': jnp.zeros((4, 8), jnp.int32)})
    expected = jax.random.key_data(row_keys(7, number, jnp.arange(4)))
    assert np.array_equal(sums['keys'], expected)

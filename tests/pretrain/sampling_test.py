"""Samples follow the generator's softmax, labels mark changed tokens, samples have no gradient."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import xla_flags
from conftest import packed_rows, random_params, tiny_electra

from electra_jax.model.randomness import row_keys
from electra_jax.pretrain import masking, replacement
from electra_jax.pretrain.objectives.electra import OBJECTIVE
from electra_jax.pretrain.objectives.parts import LossContext, mask_rows
from electra_jax.pretrain.objectives.settings import Settings

LOGITS = np.array([1.5, -0.5, 0.0, 2.0, -3.0, 0.7])
ROWS, DRAWS = 40, 1000
MANY = jnp.asarray(np.tile(LOGITS, (ROWS, DRAWS, 1)), jnp.float32)


def draws(temperature, disallow=None, seed=0, logits=MANY):
  keys = masking.stream(row_keys(seed, 0, jnp.arange(len(logits))), masking.GUMBEL)
  return np.asarray(replacement.sample(logits, keys, temperature=temperature, disallow=disallow))


def fits(samples, probabilities):
  """The chi-square test's p-value."""
  return scipy.stats.chisquare(
    np.bincount(samples.ravel(), minlength=len(LOGITS)), probabilities * samples.size
  ).pvalue


@pytest.mark.parametrize('temperature', [1.0, 0.5, 2.0])
def test_sample_frequencies_follow_the_softmax_at_the_temperature(temperature):
  samples = draws(temperature)
  assert fits(samples, scipy.special.softmax(LOGITS / temperature)) > 1e-4
  at_another = scipy.special.softmax(LOGITS / (1.1 * temperature))
  assert fits(samples, at_another) < 1e-4


def test_draws_of_rows_and_positions_are_independent():
  samples = draws(1.0)
  expected = scipy.special.softmax(LOGITS).max()
  for first, second in ((samples[:-1], samples[1:]), (samples[:, :-1], samples[:, 1:])):
    both = ((first == 3) & (second == 3)).sum()
    assert scipy.stats.binomtest(int(both), first.size, expected**2).pvalue > 1e-4


def test_a_traced_temperature_gives_the_same_samples():
  assert np.array_equal(draws(0.5), draws(jnp.float32(0.5)))


@pytest.mark.parametrize('temperature', [0, 0.0, np.float32(0), 1e-6])
def test_temperature_zero_is_the_argmax(temperature):
  assert (draws(temperature) == LOGITS.argmax()).all()


@pytest.mark.parametrize('temperature', [0, 1.0, 5.0])
def test_disallowed_tokens_are_never_drawn(temperature):
  disallow = np.tile(np.arange(DRAWS, dtype=np.int32) % len(LOGITS), (ROWS, 1))
  samples = draws(temperature, disallow=jnp.asarray(disallow))
  assert (samples != disallow).all()
  if temperature == 1.0:  # the others keep their proportions
    counts = np.delete(np.bincount(samples[disallow == 3], minlength=len(LOGITS)), 3)
    assert (
      scipy.stats.chisquare(
        counts, scipy.special.softmax(np.delete(LOGITS, 3)) * counts.sum()
      ).pvalue
      > 1e-4
    )


SETTINGS = Settings(mask_rate=0.5, max_predictions=16)


@pytest.fixture(scope='module')
def drawn():
  """Examples, the generator's logits, samples at a very high temperature and at 1."""
  model = tiny_electra()
  masked = jax.jit(lambda ids: mask_rows(SETTINGS, ids, row_keys(0, 0, jnp.arange(8))))
  examples = masked(packed_rows(8, 32, 60, empty_rows=1))

  @jax.jit
  def run(params, examples):
    shown = examples['inputs']._replace(token_ids=examples['masks'].token_ids)
    logits = model.apply(
      {'params': params}, shown, examples['masks'].positions, method='generator_logits'
    )
    keys = masking.stream(examples['keys'], masking.GUMBEL)
    return (
      logits,
      replacement.sample(logits, keys, temperature=1e6),
      replacement.sample(logits, keys, temperature=1.0),
    )

  return model, random_params(model), examples, *run(random_params(model), examples)


def test_padding_of_the_vocabulary_is_never_sampled(drawn):
  _, _, _, logits, samples, _ = drawn
  assert logits.shape[-1] == 64 and len(np.unique(samples)) > 40
  assert samples.max() < 60
  assert np.allclose(jax.nn.softmax(logits)[..., :60].sum(-1), 1)


_corrupt = jax.jit(replacement.corrupt)
_masks = {
  google: jax.jit(
    lambda ids, seed, google=google: mask_rows(
      dataclasses.replace(SETTINGS, google=google), ids, row_keys(seed, 0, jnp.arange(len(ids)))
    )['masks']
  )
  for google in (False, True)
}


@hypothesis.given(st.integers(0, 1000), st.booleans())
def test_only_masked_positions_change_and_a_sample_equal_to_the_original_is_labeled_original(
  seed, google
):
  rng = np.random.default_rng(seed)
  # Four different tokens, so that samples often equal the original.
  ids = packed_rows(6, 32, 9, seed=seed, empty_rows=seed % 2)
  masks = jax.device_get(_masks[google](ids, seed))
  samples = rng.integers(5, 9, masks.positions.shape).astype(np.int32)
  corrupted, labels = jax.device_get(_corrupt(ids, masks, samples))
  masked = np.zeros(ids.shape, bool)
  for row, slot in zip(*np.nonzero(masks.weights), strict=True):
    position = masks.positions[row, slot]
    masked[row, position] = True
    there = samples[row][(masks.positions[row] == position) & (masks.weights[row] > 0)]
    assert corrupted[row, position] == there.sum() // there.size
    assert labels[row, position] == (corrupted[row, position] != ids[row, position])
  assert np.array_equal(corrupted[~masked], ids[~masked]) and not labels[~masked].any()


def test_no_gradient_passes_through_a_sample(drawn):
  model, params, examples, _, _, samples = drawn
  counts = OBJECTIVE.counts(SETTINGS, examples)

  @functools.partial(jax.jit, compiler_options=xla_flags.FUSED)
  def gradients(params, samples):
    settings = dataclasses.replace(SETTINGS, generator_weight=0.0)

    def loss(params, samples):
      context = LossContext(settings, model, examples, counts, train=False, samples=samples)
      return OBJECTIVE.loss(params, context)[0]

    return jax.grad(loss)(params, None), jax.grad(loss)(params, samples)

  drawing, given = gradients(params, samples)
  for part in ('generator', 'generator_head'):
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(drawing[part]))
  # The shared embeddings have the gradient of the discriminator's loss only.
  for (path, ours), theirs in zip(
    jax.tree_util.tree_leaves_with_path(drawing), jax.tree.leaves(given), strict=True
  ):
    close = 1e-6 * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=close, err_msg=jax.tree_util.keystr(path))
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(drawing['embeddings']))

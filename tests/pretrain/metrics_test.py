"""Metrics equal scikit-learn's, add up over batches, and detect a collapsed discriminator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from electra_jax.pretrain import metrics
from electra_jax.training.update_step import tower_norms

BINS = metrics.NONLINEAR


def verdicts(seed, rate=0.15, apart=1.0, shape=(16, 64)):
  """Logits, labels and weights [batch, length]; replaced tokens score `apart` higher."""
  rng = np.random.default_rng(seed)
  labels = (rng.random(shape) < rate).astype(np.float32)
  logits = (2 * rng.standard_normal(shape) + apart * labels - 1).astype(np.float32)
  return logits, labels, (rng.random(shape) < 0.8).astype(np.float32)


def sums_of(logits, labels, weights, bins=BINS, seed=0):
  """The sums of a batch with these verdicts and some generator."""
  rng = np.random.default_rng(seed)
  generated = rng.standard_normal((len(logits), 5, 9)).astype(np.float32)
  original, samples = rng.integers(0, 9, (2, len(logits), 5))
  mask_weights = (rng.random((len(logits), 5)) < 0.7).astype(np.float32)
  losses = rng.random((len(logits), 5)).astype(np.float32) * mask_weights
  verdict_losses = (np.logaddexp(0, logits) - logits * labels) * weights

  def arrays(*values):
    return map(jnp.asarray, values)

  summing = metrics.Summing(bins)
  sums = metrics.generator_sums(*arrays(generated, original, mask_weights, losses), summing)
  sums |= {'sampled_correct': ((samples == original) * mask_weights).sum()} | metrics.verdict_sums(
    *arrays(logits, labels, weights, verdict_losses), summing
  )
  return jax.device_get(sums), {
    'generator_loss': losses.sum() / mask_weights.sum(),
    'sampled_accuracy': (samples == original)[mask_weights > 0].mean(),
    'generator_accuracy': (generated.argmax(-1) == original)[mask_weights > 0].mean(),
  }


def scikit(logits, labels, weights):
  scores, truth = (x[weights > 0].astype(np.float64) for x in (logits, labels))
  called = scores >= 0
  return {
    'auc': sklearn.metrics.roc_auc_score(truth, scores),
    'average_precision': sklearn.metrics.average_precision_score(truth, scores),
    'discriminator_accuracy': sklearn.metrics.accuracy_score(truth, called),
    'replaced_rate': truth.mean(),
    'precision': sklearn.metrics.precision_score(truth, called),
    'recall': sklearn.metrics.recall_score(truth, called),
    'discriminator_loss': sklearn.metrics.log_loss(truth, 1 / (1 + np.exp(-scores))),
    'constant_loss': sklearn.metrics.log_loss(truth, np.full(truth.shape, truth.mean())),
  }


def edges(bins):
  """The edges of bins, from -16 to 16, by their description."""
  if not bins.nonlinear:
    return np.linspace(-16, 16, bins.number + 1)
  upper = 0.5 * np.sinh(np.linspace(0, np.arcsinh(32), bins.number // 2 + 1))
  return np.concatenate([-upper[::-1], upper[1:]])


def within_bins(logits, bins):
  """Each logit moved to the middle of its bin, so that the histogram loses nothing."""
  ends = edges(bins)
  place = np.clip(np.searchsorted(ends, logits, 'right') - 1, 0, bins.number - 1)
  return ((ends[place] + ends[place + 1]) / 2).astype(np.float32)


@pytest.mark.parametrize(
  'bins',
  [metrics.UNIFORM_TRAINING, metrics.UNIFORM_EVALUATION, metrics.NONLINEAR],
  ids=['uniform 512', 'uniform 4096', 'nonlinear'],
)
@pytest.mark.parametrize('apart', [-1.0, 0.0, 2.0])
def test_metrics_equal_scikit_learn(bins, apart):
  logits, labels, weights = verdicts(0, apart=apart)
  logits = within_bins(logits, bins)
  sums, generator = sums_of(logits, labels, weights, bins)
  found, expected = metrics.compute(sums), generator | scikit(logits, labels, weights)
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, rel=1e-6), name


def test_bins_change_ranking_little_and_other_metrics_not_at_all():
  logits, labels, weights = verdicts(1)
  found, expected = (
    metrics.compute(sums_of(logits, labels, weights)[0]),
    scikit(logits, labels, weights),
  )
  for name in ('discriminator_accuracy', 'precision', 'recall', 'replaced_rate', 'constant_loss'):
    assert found[name] == pytest.approx(expected[name], rel=1e-12), name
  assert found['auc'] == pytest.approx(expected['auc'], abs=5e-4)
  assert found['average_precision'] == pytest.approx(expected['average_precision'], abs=5e-3)


def test_the_sign_of_a_tiny_logit_counts():
  logits = np.array([[-1e-7, -1e-12, 0.0, 1e-12, 1e-7, -40.0, 40.0]], np.float32)
  for bins in (metrics.UNIFORM_TRAINING, metrics.NONLINEAR):
    ones = np.ones_like(logits)
    counts = np.asarray(metrics.histogram(logits, ones, ones, metrics.Summing(bins)))
    middle = bins.number // 2
    assert counts[1, :middle].sum() == 3 and counts[1, middle:].sum() == 4
    assert counts[1, 0] == counts[1, -1] == 1  # the outer bins are open


@pytest.mark.parametrize('center', [0.0, -1.73])
def test_narrow_logits_are_ranked_as_well_as_wide_ones(center):
  # As of a discriminator that begins to learn: all logits are near 0, or near the log-odds of 15%.
  logits, labels, weights = verdicts(4, apart=2.0)
  logits = (center + 0.02 * logits).astype(np.float32)
  expected = scikit(logits, labels, weights)['auc']
  assert expected > 0.7
  for bins, error in ((metrics.NONLINEAR, 2e-3), (metrics.UNIFORM_TRAINING, 0.3)):
    found = metrics.compute(sums_of(logits, labels, weights, bins)[0])['auc']
    assert found == pytest.approx(expected, abs=error)
  assert found < expected - 0.01  # of 512 equal bins


def test_groups_of_rows_are_added_up_apart():
  logits, labels, weights = verdicts(5)
  groups = np.random.default_rng(0).integers(0, 3, len(logits))
  losses = np.logaddexp(0, logits) * weights

  def verdict_sums(arrays, groups=None):
    summing = metrics.Summing(groups=groups, count=0 if groups is None else 4)
    return metrics.verdict_sums(*arrays, summing)

  found = jax.jit(verdict_sums)((logits, labels, weights, losses), groups)
  assert {len(x) for x in found.values()} == {4} and not found['scores'][3].any()
  for group in range(3):
    mine = np.flatnonzero(groups == group)
    expected = jax.jit(verdict_sums)([x[mine] for x in (logits, labels, weights, losses)])
    np.testing.assert_array_equal(found['scores'][group], expected['scores'])
    np.testing.assert_allclose(
      found['discriminator_loss'][group], expected['discriminator_loss'], rtol=1e-5
    )


def test_sums_add_up_over_batches():
  parts = [verdicts(seed, apart=0.5) for seed in range(3)]
  every = [sums_of(*part, seed=seed)[0] for seed, part in enumerate(parts)]
  added = metrics.compute(jax.tree.map(lambda *x: sum(x), *every))
  together = scikit(
    *map(
      np.concatenate,
      zip(*[(within_bins(logits, BINS), *rest) for logits, *rest in parts], strict=True),
    )
  )
  for name, value in together.items():
    if name != 'discriminator_loss':  # uses the logits, not the middles of their bins
      assert added[name] == pytest.approx(value, rel=1e-9), name
  # With a leading axis metrics are arrays.
  stacked = metrics.compute(jax.tree.map(lambda *x: np.stack(x), *every))
  for i, sums in enumerate(every):
    for name, value in metrics.compute(sums).items():
      assert stacked[name][i] == pytest.approx(value, rel=1e-12), name


def test_constant_loss_is_that_of_the_best_constant_predictor():
  for rate in (0.03, 0.15, 0.5):
    guesses = np.linspace(1e-4, 1 - 1e-4, 9999)
    best = -(rate * np.log(guesses) + (1 - rate) * np.log(1 - guesses))
    assert metrics.binary_entropy(rate) == pytest.approx(best.min(), rel=1e-6)
    assert guesses[best.argmin()] == pytest.approx(rate, abs=1e-4)
  assert metrics.binary_entropy(np.array([0.0, 1.0])) == pytest.approx([0, 0], abs=1e-9)


def test_with_one_label_only_ranking_is_undefined():
  logits, labels, weights = verdicts(2)
  found = metrics.compute(sums_of(logits, np.zeros_like(labels), weights)[0])
  assert {name for name, value in found.items() if np.isnan(value)} == {
    'auc',
    'average_precision',
  }
  nothing = metrics.compute(sums_of(logits, labels, np.zeros_like(weights))[0])
  assert all(
    np.isnan(nothing[name])
    for name in ('discriminator_loss', 'discriminator_accuracy', 'replaced_rate')
  )


def collapsed(logits, labels, weights):
  return metrics.answers_original(metrics.compute(sums_of(logits, labels, weights)[0]))


def test_a_discriminator_that_answers_original_is_detected():
  logits, labels, weights = verdicts(3, apart=0.0, shape=(64, 128))
  assert collapsed(logits - 9, labels, weights)  # all "original", in random order
  assert not collapsed(logits, labels, weights)  # random, but it answers "replaced" at times
  logits, labels, weights = verdicts(3, apart=1.0, shape=(64, 128))
  assert not collapsed(logits - 9, labels, weights)  # all "original", but ranked well
  assert not collapsed(logits - 9, 0 * labels, weights)  # no token was replaced


def test_norms_of_towers_include_their_heads():
  tree = {
    'embeddings': {'word': jnp.full((2, 2), 1.0)},
    'discriminator': {'a': jnp.full(4, 3.0)},
    'generator_embeddings': {'word': jnp.full(5, 2.0)},
    'generator': {'a': jnp.full(3, 2.0)},
    'generator_head': {'b': jnp.full(1, 2.0)},
  }
  assert {name: float(norm) for name, norm in tower_norms(tree).items()} == pytest.approx(
    {'embeddings': 2.0, 'generator': 6.0, 'discriminator': 6.0, 'all': 76**0.5}
  )

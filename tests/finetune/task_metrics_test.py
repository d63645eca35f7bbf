"""Metrics of labels and values equal those of scikit-learn and SciPy, on random and edge cases."""

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as reference
from scipy import stats

from electra_jax.finetune import task_metrics

EDGES = {
  'one class in gold': ([1, 1, 1, 1], [0, 1, 1, 0]),
  'one class predicted': ([0, 1, 0, 1], [1, 1, 1, 1]),
  'one class in both': ([1, 1], [1, 1]),
  'no positive at all': ([0, 0, 0], [0, 0, 0]),
  'all wrong': ([0, 1], [1, 0]),
  'a single example, right': ([1], [1]),
  'a single example, wrong': ([0], [1]),
  'classes apart': ([0, 0, 1], [2, 3, 2]),
}


def agree(gold, predicted, positive=1):
  gold, predicted = np.asarray(gold), np.asarray(predicted)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    ours = (
      task_metrics.accuracy(gold, predicted),
      task_metrics.macro_f1(gold, predicted),
      task_metrics.matthews(gold, predicted),
      task_metrics.f1(gold, predicted, positive),
    )
    theirs = (
      reference.accuracy_score(gold, predicted),
      reference.f1_score(gold, predicted, average='macro'),
      reference.matthews_corrcoef(gold, predicted),
      reference.f1_score(gold == positive, predicted == positive),
    )
  np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize('classes', [2, 3, 7])
def test_random_labels(classes):
  rng = np.random.default_rng(classes)
  for examples in (2, 5, 100, 5000):
    gold = rng.integers(classes, size=examples)
    agree(gold, np.where(rng.random(examples) < 0.6, gold, rng.integers(classes, size=examples)))
    agree(gold, rng.permutation(gold), positive=0)


@pytest.mark.parametrize('edge', EDGES)
def test_edge_cases_of_labels(edge):
  agree(*EDGES[edge])


def test_matthews_does_not_overflow_on_the_largest_tasks():
  gold = np.repeat([0, 1], 200_000)
  predicted = np.roll(gold, 1_000)
  assert task_metrics.matthews(gold, predicted) == pytest.approx(
    reference.matthews_corrcoef(gold, predicted), rel=1e-12
  )


@pytest.mark.parametrize(
  'make',
  [
    lambda rng, n: (rng.normal(size=n), rng.normal(size=n)),
    lambda rng, n: (rng.integers(6, size=n), rng.integers(4, size=n)),  # ties in both
    lambda rng, n: (rng.integers(3, size=n) * 1.0, rng.normal(size=n).astype(np.float32)),
    lambda rng, n: (x := rng.normal(size=n), 3 - 2 * x),
    lambda rng, n: (x := rng.normal(size=n), 1e-200 * x),
    lambda rng, n: (x := rng.normal(size=n), 1e8 + x),
  ],
)
def test_correlations(make):
  for seed, examples in enumerate((3, 4, 10, 1000)):
    gold, predicted = make(np.random.default_rng(seed + 1), examples)
    if len(set(gold)) > 1 and len(set(predicted)) > 1:
      assert task_metrics.pearson(gold, predicted) == pytest.approx(
        stats.pearsonr(gold, predicted)[0], rel=1e-9
      )
      assert task_metrics.spearman(gold, predicted) == pytest.approx(
        stats.spearmanr(gold, predicted)[0], rel=1e-9
      )


@pytest.mark.parametrize(
  'gold, predicted',
  [
    ([1.0, 2.0, 3.0], [0.1, 0.1, 0.1]),
    ([2.0, 2.0], [1.0, 3.0]),
    ([1.0, 2.0, math.nan], [1.0, 2.0, 3.0]),
    ([1.0, 2.0, 3.0], [1.0, math.nan, 3.0]),
  ],
)
def test_undefined_correlations_are_nan_as_in_scipy(gold, predicted):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    assert math.isnan(stats.pearsonr(gold, predicted)[0]) and math.isnan(
      stats.spearmanr(gold, predicted)[0]
    )
    assert math.isnan(task_metrics.pearson(gold, predicted)) and math.isnan(
      task_metrics.spearman(gold, predicted)
    )


def test_a_single_pair_has_no_correlation():
  assert math.isnan(task_metrics.pearson([1.0], [2.0])) and math.isnan(
    task_metrics.spearman([1.0], [2.0])
  )


def test_mean_squared_error():
  gold, predicted = np.random.default_rng(0).normal(size=(2, 50))
  assert task_metrics.mse(gold, predicted) == pytest.approx(
    reference.mean_squared_error(gold, predicted)
  )
  assert math.isnan(task_metrics.mse([1.0, math.nan], [1.0, 1.0]))


def test_metrics_of_no_examples_are_nan():
  empty = np.zeros(0, np.int64)
  for metric in (
    task_metrics.accuracy,
    task_metrics.f1,
    task_metrics.macro_f1,
    task_metrics.matthews,
    task_metrics.pearson,
    task_metrics.spearman,
    task_metrics.mse,
  ):
    assert math.isnan(metric(empty, empty))

"""Metrics of classification and regression in NumPy. All are fractions, and nan of no examples.

Labels and values are array-likes of shape [examples].
"""

import numpy as np
from numpy.typing import ArrayLike


def accuracy(gold: ArrayLike, predicted: ArrayLike) -> float:
  """Fraction of examples that are correct."""
  gold, predicted = np.asarray(gold), np.asarray(predicted)
  return float(np.mean(gold == predicted)) if len(gold) else np.nan


def f1(gold: ArrayLike, predicted: ArrayLike, positive: object = 1) -> float:
  """Harmonic mean of precision and recall of one class (GLUE: of class 1).

  0 where neither the labels nor the predictions contain the class.
  """
  golds, predictions = np.asarray(gold) == positive, np.asarray(predicted) == positive
  if not len(golds):
    return np.nan
  both = float((golds & predictions).sum())
  return 2 * both / max(float(golds.sum() + predictions.sum()), 1.0)


def macro_f1(gold: ArrayLike, predicted: ArrayLike) -> float:
  """Mean F1 of the classes that occur in the labels or the predictions."""
  gold, predicted = np.asarray(gold), np.asarray(predicted)
  classes = np.union1d(gold, predicted)
  return float(np.mean([f1(gold, predicted, i) for i in classes])) if len(gold) else np.nan


def matthews(gold: ArrayLike, predicted: ArrayLike) -> float:
  """Matthews' correlation for any number of classes (Gorodkin 2004, R_K).

  0 where the labels or the predictions contain a single class.
  """
  gold, predicted = np.asarray(gold), np.asarray(predicted)
  if not len(gold):
    return np.nan
  classes, indices = np.unique(np.concatenate([gold, predicted]), return_inverse=True)
  n, k = len(gold), len(classes)
  pairs = np.bincount(indices[:n] * k + indices[n:], minlength=k * k)
  counts = pairs.reshape(k, k).astype(np.float64)
  golds, predictions = counts.sum(1), counts.sum(0)
  covariance = np.trace(counts) * n - golds @ predictions
  spread = (n * n - golds @ golds) * (n * n - predictions @ predictions)
  return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(gold: ArrayLike, predicted: ArrayLike) -> float:
  """Pearson's correlation; nan for constant or nan values, or fewer than two."""
  x, y = np.asarray(gold, np.float64), np.asarray(predicted, np.float64)
  if len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
    return np.nan
  if (x == x[0]).all() or (y == y[0]).all():
    return np.nan
  x, y = x - x.mean(), y - y.mean()
  x, y = x / np.abs(x).max(), y / np.abs(y).max()  # squares of tiny values would underflow
  return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1.0, 1.0))


def spearman(gold: ArrayLike, predicted: ArrayLike) -> float:
  """Spearman's correlation: Pearson's of the ranks, where equal values share their mean rank.

  nan where Pearson's correlation is.
  """
  x, y = np.asarray(gold, np.float64), np.asarray(predicted, np.float64)
  if np.isnan(x).any() or np.isnan(y).any():
    return np.nan
  return pearson(_ranks(x), _ranks(y))


def mse(gold: ArrayLike, predicted: ArrayLike) -> float:
  """Mean squared error, in the square of the values' unit."""
  x, y = np.asarray(gold, np.float64), np.asarray(predicted, np.float64)
  return float(np.mean(np.square(x - y))) if len(x) else np.nan


def multilabel_f1(gold: ArrayLike, predicted: ArrayLike) -> tuple[float, float]:
  """Micro and macro F1 of several labels per example, as in scikit-learn.

  Args:
    gold: bool [examples, labels].
    predicted: bool [examples, labels].

  Returns:
    F1 of all decisions together, and the mean of the F1 of each label, which is 0 for a label that
    neither the examples nor the predictions have.
  """
  golds, predictions = np.asarray(gold, bool), np.asarray(predicted, bool)
  if not len(golds):
    return np.nan, np.nan
  both = (golds & predictions).sum(0).astype(np.float64)
  total = (golds.sum(0) + predictions.sum(0)).astype(np.float64)
  return (
    float(2 * both.sum() / max(total.sum(), 1)),
    float(np.mean(2 * both / np.maximum(total, 1))),
  )


def average_precision(gold: ArrayLike, scores: ArrayLike) -> float:
  """Average precision of a ranking: precision at each recall, weighted by the recall gained.

  As in scikit-learn, without interpolation; equal scores are one step. nan without positives.

  Args:
    gold: bool [examples].
    scores: float [examples], larger for positive.
  """
  golds, values = np.asarray(gold, bool), np.asarray(scores, np.float64)
  if not golds.any():
    return np.nan
  order = np.argsort(-values, kind='stable')
  last = np.append(np.diff(values[order]) != 0, True)  # of equal scores
  hits = np.cumsum(golds[order])[last]
  precision = hits / (np.flatnonzero(last) + 1)
  return float(np.sum(np.diff(hits, prepend=0) * precision) / golds.sum())


def ndcg(gold: ArrayLike, scores: ArrayLike, most: int) -> float:
  """Normalized discounted cumulative gain of the first `most` of a ranking.

  The gain is the grade, as in trec_eval and scikit-learn; equal scores share the mean of their
  gains (McSherry and Najork 2008). nan without a grade above 0.

  Args:
    gold: grades, 0 or more, float [examples].
    scores: float [examples], larger for relevant.
    most: examples that count.
  """
  grades, values = np.asarray(gold, np.float64), np.asarray(scores, np.float64)
  discounts = 1 / np.log2(np.arange(len(grades)) + 2)
  discounts[most:] = 0
  best = float(np.sort(grades)[::-1] @ discounts)
  if not best:
    return np.nan
  _, group, counts = np.unique(-values, return_inverse=True, return_counts=True)
  means = np.bincount(group, grades) / counts
  return float(np.repeat(means, counts) @ discounts) / best


def reciprocal_rank(gold: ArrayLike, scores: ArrayLike) -> float:
  """One divided by the rank of the first relevant example; nan without any.

  Among equal scores relevant examples are last.

  Args:
    gold: bool [examples].
    scores: float [examples], larger for relevant.
  """
  golds, values = np.asarray(gold, bool), np.asarray(scores, np.float64)
  if not golds.any():
    return np.nan
  best = values[golds].max()
  before = (values > best) | ((values == best) & ~golds)
  return 1 / (1 + float(before.sum()))


def mean_average_precision(gold: ArrayLike, scores: ArrayLike) -> float:
  """Mean of the average precision of the labels that some example has; nan without any.

  Args:
    gold: bool [examples, labels].
    scores: float [examples, labels].
  """
  golds, values = np.asarray(gold, bool), np.asarray(scores, np.float64)
  found = [average_precision(golds[:, i], values[:, i]) for i in np.flatnonzero(golds.any(0))]
  return float(np.mean(found)) if found else np.nan


def best_f1_threshold(gold: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
  """The best F1 of the decisions `score >= threshold`, and the threshold.

  The threshold is in the middle between two scores; of equally good ones the highest is taken.

  Args:
    gold: bool, of any shape.
    scores: float of the same shape, 0 to 1.
  """
  golds, values = np.asarray(gold, bool).ravel(), np.asarray(scores, np.float64).ravel()
  if not golds.any():
    return (0.0, 1.0) if len(golds) else (np.nan, 0.5)
  order = np.argsort(-values, kind='stable')
  ordered = values[order]
  chosen = np.flatnonzero(np.append(np.diff(ordered) != 0, True)) + 1
  found = 2 * np.cumsum(golds[order])[chosen - 1] / (chosen + golds.sum())
  best = int(np.argmax(found))
  following = ordered[chosen[best]] if chosen[best] < len(ordered) else 0.0
  return float(found[best]), float((ordered[chosen[best] - 1] + following) / 2)


def _ranks(values: np.ndarray) -> np.ndarray:
  _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
  ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[places]
  return ranks

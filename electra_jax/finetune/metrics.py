"""Figures of classification and regression, NumPy alone. All are fractions, and nan of no examples."""

import numpy as np


def accuracy(gold, predicted) -> float:
  """Share of examples that are right. gold, predicted: [examples]."""
  return float(np.mean(np.asarray(gold) == np.asarray(predicted))) if len(gold) else np.nan


def f1(gold, predicted, positive=1) -> float:
  """Harmonic mean of precision and recall of one class (GLUE's F1: of class 1); 0 where neither gold nor predictions have it."""
  gold, predicted = np.asarray(gold) == positive, np.asarray(predicted) == positive
  return (
    2 * float((gold & predicted).sum()) / max(float(gold.sum() + predicted.sum()), 1.0)
    if len(gold)
    else np.nan
  )


def macro_f1(gold, predicted) -> float:
  """Mean F1 of the classes that gold or predictions have."""
  classes = np.union1d(gold, predicted)
  return float(np.mean([f1(gold, predicted, i) for i in classes])) if len(gold) else np.nan


def matthews(gold, predicted) -> float:
  """Matthews' correlation, of any number of classes (Gorodkin 2004, R_K); 0 where gold or predictions have one class alone."""
  if not len(gold):
    return np.nan
  classes, indices = np.unique(np.concatenate([gold, predicted]), return_inverse=True)
  n, k = len(gold), len(classes)
  counts = (
    np.bincount(indices[:n] * k + indices[n:], minlength=k * k).reshape(k, k).astype(np.float64)
  )
  golds, predictions = counts.sum(1), counts.sum(0)
  covariance = np.trace(counts) * n - golds @ predictions
  spread = (n * n - golds @ golds) * (n * n - predictions @ predictions)
  return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(gold, predicted) -> float:
  """Pearson's correlation; nan where gold or predictions are all the same, fewer than two, or hold a nan."""
  x, y = np.asarray(gold, np.float64), np.asarray(predicted, np.float64)
  if (
    len(x) < 2
    or not (np.isfinite(x).all() and np.isfinite(y).all())
    or (x == x[0]).all()
    or (y == y[0]).all()
  ):
    return np.nan
  x, y = x - x.mean(), y - y.mean()
  x, y = x / np.abs(x).max(), y / np.abs(y).max()  # tiny ones would vanish when squared
  return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1.0, 1.0))


def spearman(gold, predicted) -> float:
  """Spearman's correlation: Pearson's of the ranks, equal values sharing the mean of theirs; nan where Pearson's is."""
  if (
    np.isnan(np.asarray(gold, np.float64)).any()
    or np.isnan(np.asarray(predicted, np.float64)).any()
  ):
    return np.nan
  return pearson(_ranks(gold), _ranks(predicted))


def mse(gold, predicted) -> float:
  """Mean squared error, in the square of the values' unit."""
  return (
    float(np.mean(np.square(np.asarray(gold, np.float64) - np.asarray(predicted, np.float64))))
    if len(gold)
    else np.nan
  )


def _ranks(values):
  _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[places]

"""Probabilities of outputs and outputs of probabilities, in NumPy, float64."""

from collections.abc import Iterable, Sequence

import numpy as np

from electra_jax.finetune.tasks.task import Features, Outputs

_TINY = np.finfo(np.float64).tiny


def softmax(logits: np.ndarray) -> np.ndarray:
  """Probabilities of logits, over the last axis."""
  x = np.asarray(logits, np.float64)
  shares = np.exp(x - x.max(-1, keepdims=True))
  found: np.ndarray = shares / shares.sum(-1, keepdims=True)
  return found


def sigmoid(logits: np.ndarray) -> np.ndarray:
  """Probabilities of log-odds."""
  found: np.ndarray = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
  return found


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
  """Logits whose softmax are the probabilities."""
  found: np.ndarray = np.log(np.maximum(probabilities, _TINY))
  return found


def log_odds(probabilities: np.ndarray) -> np.ndarray:
  """Log-odds of probabilities."""
  least = np.finfo(np.float64).eps
  p = np.clip(probabilities, least, 1 - least)
  odds: np.ndarray = np.log(p / (1 - p))
  return odds


#### Averages of several models ####


def averaged(head: str, logistic: bool, features: Features, outputs: Sequence[Outputs]) -> Outputs:
  """The outputs of an ensemble, whose probabilities are the means of those of its models.

  Classification, choice and tagging: means of the probabilities of labels, choices, and labels of
  each token. Multi-label, and regression on log-odds: means of each probability. Other regression:
  means of the values. Spans: means of the probabilities of spans, where a span that is not in the
  beam of a model counts as 0 there, and of the log-odds that there is no answer.

  Args:
    head: of model.heads.KINDS.
    logistic: regression: whether values are log-odds.
    features: the rows.
    outputs: of each model for these rows, see tasks/task.py.
  """
  if head == 'span':
    return _averaged_spans(outputs)
  if head == 'tagging':
    rows = zip(*(one['logits'] for one in outputs), strict=True)
    return {'logits': [log_probabilities(_mean(map(softmax, row))) for row in rows]}
  if head == 'choice':
    real = np.asarray(features.targets['choice']).reshape(-1, features.choices) != -1
    values = (np.where(real, one['value'].reshape(real.shape), -np.inf) for one in outputs)
    return {'value': log_probabilities(_mean(map(softmax, values))).ravel()}
  if head == 'regression':
    given = [np.asarray(one['value'], np.float64) for one in outputs]
    return {'value': log_odds(_mean(map(sigmoid, given))) if logistic else _mean(given)}
  logits = [one['logits'] for one in outputs]
  if head == 'multilabel':
    return {'logits': log_odds(_mean(map(sigmoid, logits)))}
  return {'logits': log_probabilities(_mean(map(softmax, logits)))}


def _mean(arrays: Iterable[np.ndarray]) -> np.ndarray:
  found: np.ndarray = np.mean(list(arrays), axis=0)
  return found


def _averaged_spans(outputs: Sequence[Outputs]) -> Outputs:
  """Spans as a beam of starts with one end each, the likeliest first."""
  spans, shares = [], []  # of each model, [rows, beam x beam]
  longest = 1 + max(int(one['end_index'].max(initial=0)) for one in outputs)
  for one in outputs:
    starts, ends = one['start_index'].astype(np.int64)[:, :, None], one['end_index']
    scores = one['start_log_probs'].astype(np.float64)[:, :, None] + one['end_log_probs']
    spans.append((starts * longest + ends).reshape(len(scores), -1))
    shares.append(np.exp(scores).reshape(len(scores), -1) / len(outputs))
  kept = spans[0].shape[1] if spans else 0
  all_spans, all_shares = np.concatenate(spans, 1), np.concatenate(shares, 1)
  found = np.zeros((len(all_spans), kept), np.int64)
  total = np.zeros((len(all_spans), kept))
  for row, (of_row, share) in enumerate(zip(all_spans, all_shares, strict=True)):
    distinct, places = np.unique(of_row, return_inverse=True)
    sums = np.bincount(places, share)
    best = np.argsort(-sums, kind='stable')[:kept]
    found[row, : len(best)], total[row, : len(best)] = distinct[best], sums[best]
  with np.errstate(divide='ignore'):
    scores = np.maximum(np.log(total), -1e9)  # as of what is not in a beam
  return {
    'start_index': found // longest,
    'start_log_probs': scores,
    'end_index': (found % longest)[:, :, None],
    'end_log_probs': np.zeros((*found.shape, 1)),
    'impossible': _mean(np.asarray(one['impossible'], np.float64) for one in outputs),
  }

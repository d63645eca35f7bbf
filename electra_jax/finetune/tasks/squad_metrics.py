"""Exact match and F1 of answers, as the official scripts of SQuAD 1.1 and 2.0 define them.

Sources: Rajpurkar et al. 2016 and 2018. Values are fractions here, percentages in the scripts.
"""

import collections
import re
import string
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)  # ASCII only: curly quotes are kept


def normalize(text: str) -> str:
  """A text as answers are compared.

  Lower case, without punctuation, then without articles, words separated by single spaces.
  """
  return ' '.join(_ARTICLES.sub(' ', text.lower().translate(_NO_PUNCTUATION)).split())


def word_overlap_f1(prediction: str, answer: str, version: int) -> float:
  """Harmonic mean of precision and recall over words, counted with their multiplicity.

  Where a text has no words after normalization, 2.0 gives 1 if both have none; 1.1 gives 0.

  Args:
    prediction: an answer.
    answer: a correct answer.
    version: 1 or 2.
  """
  predicted, wanted = normalize(prediction).split(), normalize(answer).split()
  if version == 2 and not (predicted and wanted):
    return float(predicted == wanted)
  common = (collections.Counter(predicted) & collections.Counter(wanted)).total()
  if not common:
    return 0.0
  precision, recall = common / len(predicted), common / len(wanted)
  return 2 * precision * recall / (precision + recall)


def scores(
  predictions: Sequence[str], answers: Sequence[Sequence[str]], version: int
) -> tuple[np.ndarray, np.ndarray]:
  """Exact match and F1 of each question with the best of its answers, float64 [questions].

  Args:
    predictions: one answer per question; '' for none.
    answers: the correct answers of each question. In 2.0 those that are empty after normalization
      are ignored, and the correct answer of a question without answers is ''. In 1.1 each question
      has at least one.
    version: 1 or 2.
  """
  exact, overlap = np.zeros(len(predictions)), np.zeros(len(predictions))
  for i, (prediction, correct) in enumerate(zip(predictions, answers, strict=True)):
    if version == 2:
      correct = [answer for answer in correct if normalize(answer)] or ['']
    exact[i] = max(normalize(prediction) == normalize(answer) for answer in correct)
    overlap[i] = max(word_overlap_f1(prediction, answer, version) for answer in correct)
  return exact, overlap


def best_threshold(
  scores: np.ndarray, predictions: Sequence[str], answerable: np.ndarray, null_odds: np.ndarray
) -> tuple[float, float]:
  """The best mean score of all thresholds on `null_odds`, and the threshold.

  Questions with odds above the threshold get no answer. As in the official script, every position
  in the order of the odds is tried, even between equal odds, which no threshold separates. The
  first best one is returned; 0 where it is best to answer nothing.

  Args:
    scores: of the predictions, float64 [questions].
    predictions: one per question; '' costs nothing where there is no answer.
    answerable: bool [questions].
    null_odds: float [questions], larger for no answer.
  """
  order = np.argsort(null_odds, kind='stable')
  wrong = -np.array([bool(prediction) for prediction in predictions], float)
  gains = np.where(answerable, scores, wrong)[order]
  totals = np.cumsum(np.append(float(np.sum(~answerable)), gains))
  best = int(np.argmax(totals))
  return float(totals[best]) / len(scores), float(null_odds[order[best - 1]]) if best else 0.0


def version_1(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
  """`exact` and `f1` of SQuAD 1.1; arguments as in `scores`."""
  exact, overlap = scores(predictions, answers, version=1)
  return {'exact': float(exact.mean()), 'f1': float(overlap.mean())}


def version_2(
  predictions: Sequence[str],
  answers: Sequence[Sequence[str]],
  null_odds: ArrayLike,
  threshold: float,
) -> dict[str, float]:
  """Metrics of SQuAD 2.0.

  Args:
    predictions: the best answer of each question, whatever its odds.
    answers: the correct answers; empty where the question has none.
    null_odds: float [questions], larger for no answer.
    threshold: questions with higher odds get no answer, except in the metrics of the best
      thresholds.

  Returns:
    `exact` and `f1`; the same for questions with (`HasAns_`) and without an answer (`NoAns_`),
    where there are any; and `best_exact`, `best_exact_thresh`, `best_f1`, `best_f1_thresh`, of the
    thresholds that are best on these questions.
  """
  answerable, odds = np.array([bool(correct) for correct in answers]), np.asarray(null_odds, float)
  raw = dict(zip(('exact', 'f1'), scores(predictions, answers, version=2), strict=True))
  groups = (
    ('', np.ones(len(answers), bool)),
    ('HasAns_', answerable),
    ('NoAns_', ~answerable),
  )
  metrics: dict[str, float] = {}
  for prefix, chosen in groups:
    for name, values in raw.items():
      if chosen.any():
        given = np.where(odds > threshold, ~answerable, values)
        metrics[prefix + name] = float(given[chosen].mean())
  for name, values in raw.items():
    best, at = best_threshold(values, predictions, answerable, odds)
    metrics[f'best_{name}'] = best
    metrics[f'best_{name}_thresh'] = at
  return metrics

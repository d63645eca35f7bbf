"""Exact match and F1 of answers, as the official scripts of SQuAD 1.1 and 2.0 define them (Rajpurkar et al. 2016, 2018).

Figures are fractions here, percentages there.
"""

import collections
import re
import string
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_NO_PUNCTUATION = str.maketrans(
  '', '', string.punctuation
)  # of ASCII alone, so that curly quotes and dashes stay


def normalize(text: str) -> str:
  """A text as answers are compared: lower case, without punctuation, then without articles, single blanks between words."""
  return ' '.join(_ARTICLES.sub(' ', text.lower().translate(_NO_PUNCTUATION)).split())


def f1(prediction: str, answer: str, version: int) -> float:
  """The harmonic mean of precision and recall over words, each counted as often as both have it.

  Where either has no words after normalization, 2.0 gives 1 if both have none; 1.1 gives 0 even then.
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
  """Exact match and F1 of each question, float64 [questions], with the best of its answers.

  Args:
    predictions: an answer a question; '' for none.
    answers: what is right, of each question. In 2.0 those that normalization leaves nothing of do not count, and a question
      without any is one whose right answer is ''. In 1.1 each question has one at least.
    version: 1 or 2.
  """
  exact, overlap = np.zeros(len(predictions)), np.zeros(len(predictions))
  for i, (prediction, right) in enumerate(zip(predictions, answers, strict=True)):
    if version == 2:
      right = [answer for answer in right if normalize(answer)] or ['']
    exact[i] = max(normalize(prediction) == normalize(answer) for answer in right)
    overlap[i] = max(f1(prediction, answer, version) for answer in right)
  return exact, overlap


def best_threshold(
  scores: np.ndarray, predictions: Sequence[str], answerable: np.ndarray, null_odds: np.ndarray
) -> tuple[float, float]:
  """The best mean score that some threshold on `null_odds` gives, and that threshold: a question with higher odds gets no answer.

  Every place in the order of the odds is tried, also between equal ones, where no threshold can be: the best of those is what
  the official script reports. The first best one counts; 0 where answering nothing is best.

  Args:
    scores: of the predictions as they are, float64 [questions].
    predictions: of each question; '' costs nothing where there is no answer.
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
  """`exact` and `f1` as of SQuAD 1.1."""
  exact, overlap = scores(predictions, answers, version=1)
  return {'exact': float(exact.mean()), 'f1': float(overlap.mean())}


def version_2(
  predictions: Sequence[str],
  answers: Sequence[Sequence[str]],
  null_odds: Sequence[float],
  threshold: float,
) -> dict[str, float]:
  """Figures of SQuAD 2.0.

  Args:
    predictions: the best answer of each question, whatever its odds.
    answers: what is right; empty where the question has no answer.
    null_odds: float [questions], larger for no answer.
    threshold: questions with higher odds get no answer in all figures but those of the best thresholds.

  Returns:
    `exact`, `f1`; the same for questions with (`HasAns_`) and without an answer (`NoAns_`), where there are any; and
    `best_exact`, `best_exact_thresh`, `best_f1`, `best_f1_thresh`, of the thresholds that are best on these very questions.
  """
  answerable, null_odds = np.array([bool(right) for right in answers]), np.asarray(null_odds, float)
  raw = dict(zip(('exact', 'f1'), scores(predictions, answers, version=2), strict=True))
  figures = {}
  for prefix, chosen in (
    ('', np.ones(len(answers), bool)),
    ('HasAns_', answerable),
    ('NoAns_', ~answerable),
  ):
    for name, values in raw.items():
      if chosen.any():
        figures[prefix + name] = float(
          np.where(null_odds > threshold, ~answerable, values)[chosen].mean()
        )
  for name, values in raw.items():
    figures[f'best_{name}'], figures[f'best_{name}_thresh'] = best_threshold(
      values, predictions, answerable, null_odds
    )
  return figures

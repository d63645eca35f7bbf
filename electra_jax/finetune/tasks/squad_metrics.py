"""Exact match and F1 of answers, as the official scripts of SQuAD 1.1 and 2.0 define them.

Sources: Rajpurkar et al. 2016 and 2018. Values are fractions here, percentages in the scripts.
"""

import collections
import functools
import re
import string
import sys
import unicodedata
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


# Scripts that are written without spaces between words; each of their characters is a unit.
_NO_SPACES = (
  (0x0E00, 0x0EFF),  # Thai, Lao
  (0x0F00, 0x0FFF),  # Tibetan
  (0x1000, 0x109F),  # Myanmar
  (0x1780, 0x17FF),  # Khmer
  (0x3040, 0x30FF),  # Hiragana, Katakana
  (0x31F0, 0x31FF),  # Katakana extensions
  (0x3400, 0x4DBF),  # Han
  (0x4E00, 0x9FFF),
  (0xA9E0, 0xA9FF),  # Myanmar extensions
  (0xAA60, 0xAA7F),
  (0xF900, 0xFAFF),  # Han, compatibility
  (0xFF66, 0xFF9D),  # Katakana, half-width
  (0x20000, 0x3FFFF),  # Han
)
_UNITS_OF_SCRIPTS = re.compile(
  ''.join(['([', *(f'{chr(a)}-{chr(b)}' for a, b in _NO_SPACES), '])'])
)


def units_of(text: str, units: str) -> list[str]:
  """The parts of an answer that F1 counts.

  Args:
    text: the answer.
    units: 'words': words after `normalize`, as the official scripts of SQuAD count. 'auto': the
      same, but in a text with a script without spaces (Chinese, Japanese, Thai, Lao, Khmer,
      Myanmar, Tibetan) each character of such a script is a word, and punctuation of all scripts is
      removed, as in the script of MLQA (Lewis et al. 2020). 'characters': each character is a word.
  """
  if units == 'words' or units == 'auto' and not _UNITS_OF_SCRIPTS.search(text):
    return normalize(text).split()
  spaced = _UNITS_OF_SCRIPTS.sub(r' \1 ', text)
  text = normalize(spaced.translate(_all_punctuation()))
  return text.split() if units == 'auto' else [*text.replace(' ', '')]


@functools.cache
def _all_punctuation() -> dict[int, None]:
  characters = map(chr, range(sys.maxunicode + 1))
  return {ord(c): None for c in characters if unicodedata.category(c).startswith('P')}


def word_overlap_f1(prediction: str, answer: str, version: int, units: str = 'words') -> float:
  """Harmonic mean of precision and recall over words, counted with their multiplicity.

  Where a text has no words after normalization, 2.0 gives 1 if both have none; 1.1 gives 0.

  Args:
    prediction: an answer.
    answer: a correct answer.
    version: 1 or 2.
    units: of `units_of`.
  """
  predicted, wanted = units_of(prediction, units), units_of(answer, units)
  if version == 2 and not (predicted and wanted):
    return float(predicted == wanted)
  common = (collections.Counter(predicted) & collections.Counter(wanted)).total()
  if not common:
    return 0.0
  precision, recall = common / len(predicted), common / len(wanted)
  return 2 * precision * recall / (precision + recall)


def scores(
  predictions: Sequence[str], answers: Sequence[Sequence[str]], version: int, units: str = 'words'
) -> tuple[np.ndarray, np.ndarray]:
  """Exact match and F1 of each question with the best of its answers, float64 [questions].

  Args:
    predictions: one answer per question; '' for none.
    answers: the correct answers of each question. In 2.0 those that are empty after normalization
      are ignored, and the correct answer of a question without answers is ''. In 1.1 each question
      has at least one.
    version: 1 or 2.
    units: of `units_of`.
  """
  exact, overlap = np.zeros(len(predictions)), np.zeros(len(predictions))
  for i, (prediction, correct) in enumerate(zip(predictions, answers, strict=True)):
    if version == 2:
      correct = [answer for answer in correct if units_of(answer, units)] or ['']
    exact[i] = max(units_of(prediction, units) == units_of(answer, units) for answer in correct)
    overlap[i] = max(word_overlap_f1(prediction, answer, version, units) for answer in correct)
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


def version_1(
  predictions: Sequence[str], answers: Sequence[Sequence[str]], units: str = 'words'
) -> dict[str, float]:
  """`exact` and `f1` of SQuAD 1.1; arguments as in `scores`."""
  exact, overlap = scores(predictions, answers, 1, units)
  return {'exact': float(exact.mean()), 'f1': float(overlap.mean())}


def version_2(
  predictions: Sequence[str],
  answers: Sequence[Sequence[str]],
  null_odds: ArrayLike,
  threshold: float,
  units: str = 'words',
) -> dict[str, float]:
  """Metrics of SQuAD 2.0.

  Args:
    predictions: the best answer of each question, whatever its odds.
    answers: the correct answers; empty where the question has none.
    null_odds: float [questions], larger for no answer.
    threshold: questions with higher odds get no answer, except in the metrics of the best
      thresholds.
    units: of `units_of`.

  Returns:
    `exact` and `f1`; the same for questions with (`HasAns_`) and without an answer (`NoAns_`),
    where there are any; and `best_exact`, `best_exact_thresh`, `best_f1`, `best_f1_thresh`, of the
    thresholds that are best on these questions.
  """
  answerable, odds = np.array([bool(correct) for correct in answers]), np.asarray(null_odds, float)
  raw = dict(zip(('exact', 'f1'), scores(predictions, answers, 2, units), strict=True))
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

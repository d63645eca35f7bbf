"""How much the answers of a model differ between examples, by which collapsed trials are found."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from electra_jax.finetune.tasks.task import Features, Outputs

# Names of the statistics, as in metrics.jsonl.
SAME_ANSWER = 'same_answer'
SAME_TARGET = 'same_target'
DEVIATION = 'answer_deviation'
STATISTICS = (SAME_ANSWER, SAME_TARGET, DEVIATION)

# A collapsed network still has some noise. Answers are the same where fewer differ from the most
# frequent one, and values where their standard deviation is a smaller share of the targets'.
_OTHER_ANSWERS = 0.02
_SPREAD = 0.05


def answer_statistics(head: str, features: Features, outputs: Outputs) -> dict[str, float]:
  """Statistics of the answers to labeled rows.

  Args:
    head: of model.heads.KINDS.
    features: the rows.
    outputs: of the model for these rows, see finetune/tasks/task.py.

  Returns:
    `same_answer`, the share of the most frequent answer, and `same_target`, that of the most
    frequent label, over rows (classification, span) or words (tagging). Regression:
    `answer_deviation`, the standard deviation of the values over that of the targets; multi-label:
    the same of probabilities over labels, as a root mean square of all labels. {} where no row has
    a target, or all targets are equal.
  """
  targets = features.targets
  if head == 'multilabel':
    return _deviation_of_labels(targets['labels'], outputs['logits'])
  if head == 'regression':
    known = np.isfinite(targets['value'])
    values = np.asarray(outputs['value'], np.float64)[known]
    expected = np.asarray(targets['value'], np.float64)[known]
    if len(expected) < 2 or not expected.std():
      return {}
    return {DEVIATION: float(values.std() / expected.std())}
  answers, labels = _discrete(head, targets, outputs)
  if not len(labels) or (labels == labels[0]).all():
    return {}
  return {SAME_ANSWER: _largest_share(answers), SAME_TARGET: _largest_share(labels)}


def _deviation_of_labels(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
  known = np.isfinite(labels).all(-1)
  spread = np.asarray(labels, np.float64)[known]
  if len(spread) < 2 or not spread.std(0).any():
    return {}
  probabilities = 1 / (1 + np.exp(-np.asarray(logits, np.float64)[known]))
  return {DEVIATION: float(np.sqrt(probabilities.var(0).mean() / spread.var(0).mean()))}


def _discrete(
  head: str, targets: Mapping[str, Any], outputs: Outputs
) -> tuple[np.ndarray, np.ndarray]:
  """Answers and targets as integers, of what has a target."""
  if head == 'classification':
    labels = np.asarray(targets['label'])
    return np.argmax(outputs['logits'], -1)[labels >= 0], labels[labels >= 0]
  if head == 'tagging':
    chosen = [np.argmax(logits, -1) for logits in outputs['logits']]
    pairs = list(zip(chosen, targets['tags'], strict=True))
    none = np.zeros(0, np.int64)
    return (
      np.concatenate([none, *(answer[tags >= 0] for answer, tags in pairs)]),
      np.concatenate([none, *(tags[tags >= 0] for _, tags in pairs)]),
    )
  start, end = outputs['start_index'][:, 0], outputs['end_index'][:, 0, 0]
  refused = np.asarray(outputs['impossible']) > 0
  longest = 1 + max(np.max(x, initial=0) for x in (start, end, targets['start'], targets['end']))
  answers = np.where(refused, -1, start.astype(np.int64) * longest + end)
  spans = np.asarray(targets['start'], np.int64) * longest + targets['end']
  return answers, np.where(np.asarray(targets['impossible']) > 0.5, -1, spans)


def _largest_share(values: np.ndarray) -> float:
  return float(np.unique(values, return_counts=True)[1].max() / len(values))


def all_the_same(statistics: Mapping[str, float | None]) -> bool | None:
  """Whether a model gives the same answer to nearly everything; None where this is not known.

  At most 2% of the answers differ, and fewer than half as many as among the targets; or values
  have less than 5% of the standard deviation of the targets.

  Args:
    statistics: of `answer_statistics`.
  """
  deviation, share = statistics.get(DEVIATION), statistics.get(SAME_ANSWER)
  if deviation is not None:
    return deviation < _SPREAD
  same_target = statistics.get(SAME_TARGET)
  if share is None or same_target is None:
    return None
  return 1 - share < min(_OTHER_ANSWERS, (1 - same_target) / 2)

"""Tables of metrics per class, confusion matrices and calibration, of predictions in NumPy.

Tests compare them with scikit-learn and seqeval.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from electra_jax.finetune.report_blocks import Calibration, Cell, ConfusionMatrix, ReportTable

BINS = 10  # of a reliability diagram, of equal width
MOST_CLASSES = 40  # of a confusion matrix
_MOST_CONFUSED = 15
_LEAST = np.finfo(np.float64).tiny

CLASS_HEADER = ('precision', 'recall', 'F1', 'support')


class ClassCounts(NamedTuple):
  """Numbers of decisions about each class, int64 `[classes]` each.

  Attributes:
    correct: predicted and given.
    predicted: predicted.
    given: given in the data.
  """

  correct: np.ndarray
  predicted: np.ndarray
  given: np.ndarray


def confusion_counts(gold: ArrayLike, predicted: ArrayLike, classes: int) -> np.ndarray:
  """Counts int64 `[classes, classes]`, of given classes by row and predicted ones by column."""
  pairs = np.asarray(gold, np.int64) * classes + np.asarray(predicted, np.int64)
  counts: np.ndarray = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
  return counts


def counts_of_confusion(confusion: np.ndarray) -> ClassCounts:
  """The decisions about each class of a confusion matrix."""
  return ClassCounts(np.diag(confusion), confusion.sum(0), confusion.sum(1))


def precision_recall_f1(counts: ClassCounts) -> np.ndarray:
  """Precision, recall and F1 of each class, float64 `[classes, 3]`; 0 where the denominator is."""
  correct, predicted, given = (np.asarray(part, np.float64) for part in counts)
  return np.stack(
    [
      correct / np.maximum(predicted, 1),
      correct / np.maximum(given, 1),
      2 * correct / np.maximum(predicted + given, 1),
    ],
    -1,
  )


def class_table(
  labels: Sequence[str],
  counts: ClassCounts,
  *,
  what: str = 'label',
  title: str = 'Per class',
  total: str = 'micro average',
  note: str = '',
) -> ReportTable:
  """Precision, recall, F1 and support per class, with their averages.

  Averages are over the classes that are given or predicted, as in scikit-learn and seqeval. The
  others have no values.

  Args:
    labels: names of the classes.
    counts: of each class.
    what: title of the column of names.
    title: of the table.
    total: name of the average over all decisions.
    note: below the title.
  """
  values = precision_recall_f1(counts)
  occurs = (counts.given + counts.predicted) > 0
  rows: list[tuple[Cell, ...]] = []
  for label, one, support, known in zip(labels, values, counts.given, occurs, strict=True):
    shown: list[Cell] = [float(x) if known else None for x in one]
    rows.append((label, *shown, int(support)))
  whole = ClassCounts(*(np.sum(part, keepdims=True) for part in counts))
  support = int(whole.given[0])
  rows.append((total, *map(float, precision_recall_f1(whole)[0]), support))
  if occurs.any():
    weights = counts.given / max(1, support)
    rows.append(('macro average', *map(float, values[occurs].mean(0)), support))
    rows.append(('weighted average', *map(float, weights @ values), support))
  return ReportTable('classes', title, note, (what, *CLASS_HEADER), tuple(rows))


def confusion_blocks(
  labels: Sequence[str], confusion: np.ndarray, what: str = 'examples'
) -> tuple[ConfusionMatrix | ReportTable, ...]:
  """A confusion matrix, unless there are very many classes, and the pairs that are confused most.

  Args:
    labels: names of the classes.
    confusion: of `confusion_counts`.
    what: is counted.
  """
  found: list[ConfusionMatrix | ReportTable] = []
  if len(labels) <= MOST_CLASSES:
    counts = tuple(tuple(map(int, row)) for row in confusion)
    note = f'Rows are given labels, columns predicted ones; numbers of {what}.'
    names = tuple(labels)
    found.append(ConfusionMatrix('confusion', 'Confusion matrix', note, names, names, counts))
  if len(labels) > 3:
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None, kind='stable')[:_MOST_CONFUSED]
    rows: list[tuple[Cell, ...]] = []
    for given, predicted in zip(*np.unravel_index(order, wrong.shape), strict=True):
      if count := int(wrong[given, predicted]):
        share = count / int(confusion[given].sum())
        rows.append((labels[given], labels[predicted], count, share))
    header = ('given', 'predicted', what, 'share of the given label')
    found.append(ReportTable('confused', 'Confused most', '', header, tuple(rows)))
  return tuple(found)


def calibration(
  confidences: ArrayLike, right: ArrayLike, *, note: str = '', losses: ArrayLike = ()
) -> Calibration:
  """A reliability diagram and the expected calibration error (Guo et al. 2017, section 2).

  Bins have equal width, and a confidence at an edge is in the lower bin, as there and in
  scikit-learn's `calibration_curve`.

  Args:
    confidences: probabilities of what was predicted, `[predictions]`.
    right: whether it is right, `[predictions]`.
    note: of the block.
    losses: negative log-likelihoods of what is right, in nats; () where they are not known.
  """
  stated, correct = np.asarray(confidences, np.float64), np.asarray(right, np.float64)
  edges = np.linspace(0, 1, BINS + 1)
  which = np.searchsorted(edges[1:-1], stated)
  bins = tuple(
    (
      float(edges[i]),
      float(edges[i + 1]),
      float(stated[which == i].mean()),
      float(correct[which == i].mean()),
      int((which == i).sum()),
    )
    for i in range(BINS)
    if (which == i).any()
  )
  block = Calibration('calibration', 'Calibration', note, bins)
  values: list[tuple[str, Cell]] = [('expected calibration error', block.expected_error)]
  if len(stated):
    values += [('mean probability', float(stated.mean())), ('right', float(correct.mean()))]
  if len(losses := np.asarray(losses, np.float64)):
    values.append(('negative log-likelihood, nats', float(losses.mean())))
  return Calibration(block.name, block.title, note, bins, tuple(values))


def negative_log(probabilities: ArrayLike) -> np.ndarray:
  """Negative natural logarithms; those of 0 are large, not infinite."""
  logs: np.ndarray = -np.log(np.maximum(np.asarray(probabilities, np.float64), _LEAST))
  return logs


def finite_or_none(value: float) -> float | None:
  """A number, or None where it is nan or infinite."""
  return float(value) if math.isfinite(value) else None

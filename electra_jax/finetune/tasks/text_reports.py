"""Reports about texts with a label, several labels, a value, a rank, or a choice among texts."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from electra_jax.finetune import class_metrics, task_metrics
from electra_jax.finetune.report_blocks import (
  MISSED,
  RIGHT,
  WORST,
  WRONG,
  Blocks,
  Cell,
  ErrorList,
  ReportError,
  ReportTable,
  Scatter,
  TextPart,
  shortened,
  unmarked_text,
  worst_first,
)
from electra_jax.finetune.tasks.probabilities import sigmoid, softmax

MOST_POINTS = 2000  # of a scatter
_PARTS = 5  # of the range of given values
_LABEL_CALIBRATION = 'Of the probability of the predicted label; ten bins of equal width.'


class TextExample(Protocol):
  """What reports read of an example of `text_task`."""

  @property
  def id(self) -> Any:  # noqa: ANN401  any value of JSON
    """As in the file; None where it has none."""

  @property
  def first(self) -> str:
    """The text."""

  @property
  def second(self) -> str | None:
    """The second text of a pair."""

  @property
  def target(self) -> Any:  # noqa: ANN401  by the task
    """A label's index, a value, or indices of labels."""


def _texts(example: TextExample) -> tuple[tuple[str, tuple[TextPart, ...]], ...]:
  """The one or two texts of an example."""
  if example.second is None:
    return (unmarked_text(example.first),)
  return unmarked_text(example.first, 'first'), unmarked_text(example.second, 'second')


def _named(index: int, example: TextExample) -> tuple[str, Cell]:
  """How an error names its example: by the id in the data, else by its number from 1."""
  return ('example', index + 1) if example.id is None else ('id', str(example.id))


#### One label ####


def label_report(
  labels: Sequence[str], examples: Sequence[TextExample], logits: np.ndarray, chosen: np.ndarray
) -> Blocks:
  """Metrics per class, confusion matrix, calibration and worst errors of a classification.

  Args:
    labels: of the task.
    examples: their targets are indices of labels, -1 for none.
    logits: float `[examples, labels]`.
    chosen: indices of the predicted labels `[examples]`.
  """
  gold = np.array([example.target for example in examples], np.int64)
  known = np.flatnonzero(gold >= 0)
  probabilities = softmax(logits)[known]
  right, given = np.asarray(chosen)[known], gold[known]
  rows = np.arange(len(known))
  stated, losses = (
    probabilities[rows, right],
    class_metrics.negative_log(probabilities[rows, given]),
  )
  confusion = class_metrics.confusion_counts(given, right, len(labels))
  wrong = [(float(losses[i]), int(i)) for i in np.flatnonzero(given != right)]
  errors = []
  for i in worst_first(wrong):
    example = examples[known[i]]
    facts = (
      _named(int(known[i]), example),
      ('given', labels[given[i]]),
      ('its probability', float(probabilities[i, given[i]])),
      ('predicted', labels[right[i]]),
      ('probability', float(stated[i])),
    )
    errors.append(ReportError(facts, _texts(example)))
  note = _error_note(len(wrong), len(known), 'the loss is highest')
  return (
    class_metrics.class_table(
      labels, class_metrics.counts_of_confusion(confusion), total='accuracy'
    ),
    *class_metrics.confusion_blocks(labels, confusion),
    class_metrics.calibration(stated, given == right, note=_LABEL_CALIBRATION, losses=losses),
    ErrorList('errors', 'Worst errors', note, tuple(errors)),
  )


def _error_note(wrong: int, examples: int, which: str) -> str:
  shown = f'; shown are {min(wrong, WORST)}, where {which}' if wrong else ''
  return f'{wrong:,} of {examples:,} are wrong{shown}.'


#### Several labels ####


def labels_report(
  labels: Sequence[str],
  examples: Sequence[TextExample],
  gold: np.ndarray,
  probabilities: np.ndarray,
  threshold: float,
) -> Blocks:
  """Metrics and thresholds per label, calibration and worst errors of a multi-label classification.

  Args:
    labels: of the task.
    examples: of the task.
    gold: float `[examples, labels]`, 1 for each label of an example; nan where not known.
    probabilities: float `[examples, labels]`.
    threshold: from which a label is predicted.
  """
  known = np.flatnonzero(np.isfinite(gold).all(-1))
  given, scores = gold[known] > 0, probabilities[known]
  predicted = scores >= threshold
  counts = class_metrics.ClassCounts((given & predicted).sum(0), predicted.sum(0), given.sum(0))
  of_truth = np.where(given, scores, 1 - scores)
  losses = class_metrics.negative_log(of_truth)
  wrong = [(float(losses[i].sum()), int(i)) for i in np.flatnonzero((given != predicted).any(-1))]
  errors = [
    _labels_error(labels, int(known[i]), examples[known[i]], given[i], scores[i], predicted[i])
    for i in worst_first(wrong)
  ]
  note = f'At the threshold {threshold:.3f}, for which the best micro F1 on dev was chosen.'
  return (
    class_metrics.class_table(labels, counts, note=note, title='Per label'),
    _thresholds(labels, given, scores),
    class_metrics.calibration(
      scores.ravel(),
      given.ravel(),
      note='Of the probability of each label: the share of texts that have it.',
      losses=losses.ravel(),
    ),
    ErrorList(
      'errors',
      'Worst errors',
      _error_note(len(wrong), len(known), 'the loss is highest'),
      tuple(errors),
    ),
  )


def _labels_error(
  labels: Sequence[str],
  index: int,
  example: TextExample,
  given: np.ndarray,
  scores: np.ndarray,
  predicted: np.ndarray,
) -> ReportError:
  parts: list[TextPart] = []
  for i in map(int, np.flatnonzero(given | predicted)):
    mark = RIGHT if given[i] and predicted[i] else MISSED if given[i] else WRONG
    parts += [TextPart(labels[i], mark, f'{scores[i]:.2f}'), TextPart('  ')]
  return ReportError((_named(index, example),), (*_texts(example), ('labels', tuple(parts))))


def _thresholds(labels: Sequence[str], given: np.ndarray, scores: np.ndarray) -> ReportTable:
  rows: list[tuple[Cell, ...]] = []
  for i, label in enumerate(labels):
    best, at = task_metrics.best_f1_threshold(given[:, i], scores[:, i])
    precision = task_metrics.average_precision(given[:, i], scores[:, i])
    known = bool(given[:, i].any())
    rows.append(
      (
        label,
        class_metrics.finite_or_none(precision),
        best if known else None,
        at if known else None,
      )
    )
  header = ('label', 'average precision', 'best F1', 'its threshold')
  note = 'The thresholds are best for these examples, and so optimistic about others.'
  return ReportTable('thresholds', 'Thresholds', note, header, tuple(rows))


#### Values ####


def value_report(
  examples: Sequence[TextExample], gold: np.ndarray, predicted: np.ndarray
) -> Blocks:
  """Errors of a regression: their size, by part of the range, a scatter, and the worst ones.

  Args:
    examples: of the task.
    gold: given values, float64 `[examples]`; nan where not known.
    predicted: values, float64 `[examples]`.
  """
  known = np.flatnonzero(np.isfinite(gold))
  given, values = gold[known], np.asarray(predicted, np.float64)[known]
  residuals = values - given
  errors = []
  for i in worst_first((float(abs(x)), i) for i, x in enumerate(residuals)):
    example = examples[known[i]]
    facts = (
      _named(int(known[i]), example),
      ('given', float(given[i])),
      ('predicted', float(values[i])),
      ('residual', float(residuals[i])),
    )
    errors.append(ReportError(facts, _texts(example)))
  chosen = np.linspace(0, len(known) - 1, min(len(known), MOST_POINTS)).astype(int)
  note = f'Of {len(known):,} examples.'
  if len(chosen) < len(known):
    note = f'{len(chosen):,} of {len(known):,} examples.'
  scatter = Scatter(
    'scatter',
    'Predicted and given values',
    note,
    tuple(map(float, given[chosen])),
    tuple(map(float, values[chosen])),
  )
  return (
    _residual_table(given, residuals),
    *_parts_of_range(given, residuals),
    scatter,
    ErrorList('errors', 'Worst errors', 'The largest residuals.', tuple(errors)),
  )


def _residual_table(given: np.ndarray, residuals: np.ndarray) -> ReportTable:
  spread = float(np.square(given - given.mean()).sum()) if len(given) else 0.0
  explained = 1 - float(np.square(residuals).sum()) / spread if spread else None
  rows: tuple[tuple[Cell, ...], ...] = ()
  if len(residuals):
    sizes = np.abs(residuals)
    rows = (
      ('mean absolute error', float(sizes.mean())),
      ('median absolute error', float(np.median(sizes))),
      ('root mean square error', float(np.sqrt(np.square(residuals).mean()))),
      ('largest error', float(sizes.max())),
      ('mean residual (predicted minus given)', float(residuals.mean())),
      ('coefficient of determination', explained),
    )
  return ReportTable('residuals', 'Residuals', '', ('statistic', 'value'), rows)


def _parts_of_range(given: np.ndarray, residuals: np.ndarray) -> tuple[ReportTable, ...]:
  """Residuals by part of the range of given values."""
  if len(given) < 2 or given.min() == given.max():
    return ()
  edges = np.linspace(given.min(), given.max(), _PARTS + 1)
  part = np.searchsorted(edges[1:-1], given)
  rows: list[tuple[Cell, ...]] = []
  for i in range(_PARTS):
    inside = residuals[part == i]
    if len(inside):
      name = f'{edges[i]:.3g} to {edges[i + 1]:.3g}'
      size = float(np.abs(inside).mean())
      rows.append((name, len(inside), float(inside.mean()), size))
  header = ('given value', 'examples', 'mean residual', 'mean absolute error')
  note = 'A model that shrinks to the mean is above low values and below high ones.'
  return (ReportTable('range', 'Residuals by given value', note, header, tuple(rows)),)


#### Ranking ####


def ranking_report(
  queries: Sequence[tuple[str, Sequence[int]]],
  examples: Sequence[TextExample],
  scores: np.ndarray,
) -> Blocks:
  """How well the passages of each query are ranked, and the queries with the worst ranking.

  Args:
    queries: text of each query, and the indices of its examples.
    examples: pairs of a query and a passage with a grade, nan for none.
    scores: log-odds of relevance, float `[examples]`.
  """
  found: list[tuple[float, int, list[int]]] = []
  for number, (_, members) in enumerate(queries):
    ranked = [i for i in members if not np.isnan(examples[i].target)]
    ranked.sort(key=lambda i: -scores[i])
    grades = np.array([examples[i].target for i in ranked])
    if (grades > 0).any():
      value = task_metrics.ndcg(grades, scores[ranked], 10)
      found.append((value, number, ranked))
  values = np.array([value for value, _, _ in found])
  firsts = [
    next(r for r, i in enumerate(ranked, 1) if examples[i].target > 0) for *_, ranked in found
  ]
  imperfect = [(1 - value, i) for i, (value, _, _) in enumerate(found) if value < 1]
  errors = [
    _query_error(queries[found[i][1]][0], examples, scores, found[i][2], found[i][0])
    for i in worst_first(imperfect)
  ]
  note = f'{len(imperfect):,} of {len(found):,} queries are not ranked perfectly.'
  return (
    _query_table(values, np.array(firsts)),
    ErrorList('errors', 'Worst queries', note, tuple(errors)),
  )


def _query_table(values: np.ndarray, firsts: np.ndarray) -> ReportTable:
  rows: list[tuple[Cell, ...]] = [('queries with a relevant passage', len(values))]
  if len(values):
    quantiles = zip((0.1, 0.25, 0.5), ('10%', '25%', '50%'), strict=True)
    rows += [
      (f'nDCG at 10, {name} quantile', float(np.quantile(values, q))) for q, name in quantiles
    ]
    rows += [
      (f'a relevant passage among the first {most}', float((firsts <= most).mean()))
      for most in (1, 3, 10)
    ]
  return ReportTable('queries', 'Queries', '', ('statistic', 'value'), tuple(rows))


def _query_error(
  query: str,
  examples: Sequence[TextExample],
  scores: np.ndarray,
  ranked: Sequence[int],
  value: float,
) -> ReportError:
  """A query with its first passage, and the relevant passage that is ranked highest."""
  best = next(rank for rank, i in enumerate(ranked) if examples[i].target > 0)
  shown = dict.fromkeys((0, best))
  texts = []
  for rank in shown:
    example = examples[ranked[rank]]
    score = sigmoid(scores[ranked[rank]])
    title = f'rank {rank + 1}, score {score:.3f}, relevance {example.target:g}'
    texts.append(unmarked_text(example.second or '', title))
  facts = (('nDCG at 10', value), ('first relevant', f'rank {best + 1} of {len(ranked)}'))
  return ReportError(facts, (unmarked_text(query, 'query'), *texts))


#### Choices ####


def choice_report(
  texts: Sequence[str],
  choices: Sequence[Sequence[str]],
  targets: Sequence[int],
  shares: Sequence[np.ndarray],
) -> Blocks:
  """Accuracy by the place of the right choice, calibration and worst errors of multiple choice.

  Args:
    texts: of the examples.
    choices: of each example.
    targets: index of the right choice, -1 where not known.
    shares: probabilities of the choices.
  """
  known = [i for i, target in enumerate(targets) if target >= 0]
  chosen = [int(np.argmax(shares[i])) for i in known]
  gold = [targets[i] for i in known]
  stated = [float(shares[i].max()) for i in known]
  losses = class_metrics.negative_log([shares[i][targets[i]] for i in known])
  most = max((len(choices[i]) for i in known), default=0)
  counts = class_metrics.counts_of_confusion(class_metrics.confusion_counts(gold, chosen, most))
  right = np.array(gold) == np.array(chosen)
  wrong = [(float(losses[i]), int(i)) for i in np.flatnonzero(~right)]
  errors = []
  for i in worst_first(wrong):
    number = known[i]
    listed = tuple(
      plain_choice(choice, j, shares[number], targets[number])
      for j, choice in enumerate(choices[number])
    )
    facts: tuple[tuple[str, Cell], ...] = (('example', number + 1), ('loss', float(losses[i])))
    errors.append(ReportError(facts, (unmarked_text(texts[number]), *listed)))
  note = _error_note(len(wrong), len(known), 'the loss is highest')
  return (
    class_metrics.class_table(
      [str(i + 1) for i in range(most)],
      counts,
      what='place of the right choice',
      title='By place',
      total='accuracy',
      note='A model that reads the choices does not prefer a place.',
    ),
    class_metrics.calibration(
      stated, right, note='Of the probability of the chosen text.', losses=losses
    ),
    ErrorList('errors', 'Worst errors', note, tuple(errors)),
  )


def plain_choice(
  choice: str, place: int, shares: np.ndarray, target: int
) -> tuple[str, tuple[TextPart, ...]]:
  """A choice with its probability, marked where it is given or chosen."""
  mark = MISSED if place == target else WRONG if place == int(np.argmax(shares)) else ''
  return f'{place + 1}: {shares[place]:.3f}', shortened([TextPart(choice, mark)])

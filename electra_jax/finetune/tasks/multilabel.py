"""Any number of labels per text or pair: the task `multilabel` on user tables."""

import ast
import collections
import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from electra_jax.config.finetuning import TaskDataConfig
from electra_jax.errors import UserError
from electra_jax.finetune import task_metrics
from electra_jax.finetune.report_blocks import Blocks
from electra_jax.finetune.tasks import tables, text_reports
from electra_jax.finetune.tasks.probabilities import sigmoid
from electra_jax.finetune.tasks.task import Features, Outputs, SplitKey
from electra_jax.finetune.tasks.text import TableTask, detected_columns
from electra_jax.finetune.tasks.text_task import (
  Example,
  Target,
  TextColumns,
  examples_of_rows,
  first_present,
  missing_label,
)

_SEPARATORS = '|;,'
# Arrays of NumPy have no commas: ['a' 'b'], [0 1 1], [0. 1.].
_PRINTED_ITEM = re.compile(r"""'[^']*'|"[^"]*"|\d+\.?|True|False""")
_PRINTED_ARRAY = re.compile(
  rf'\[\s*(?:(?:{_PRINTED_ITEM.pattern})\s+)+(?:{_PRINTED_ITEM.pattern})\s*\]'
)
# Texts such as [a, b]; a list of numbers is Python's, too.
_UNQUOTED_LIST = re.compile(r"""\[(?=[^\]]*[^\d\s,.\]])[^\[\]'"]+(?:,[^\[\]'"]+)*\]""")
_YES = ('1', 'true', 'yes')
_NO = ('0', 'false', 'no')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabel(TableTask):
  """Several labels, or none, per text or pair.

  A table has them as lists of names or of integers, as lists or objects of a 0 or 1 per label, as
  text with separators, as lists in text, or in several columns of 0 and 1.

  Attributes:
    separator: between labels in text; 'auto' until the training data decides.
    label_columns: columns of 0 and 1, one per label; () for one column of all labels.
    indicators: whether a list has a 0 or 1 per label.
    threshold: the probability from which a label is predicted; `tuned` sets the best for dev.
  """

  head: ClassVar[str] = 'multilabel'
  metric: ClassVar[str] = 'best_micro_f1'
  described: ClassVar[tuple[str, ...]] = (
    *TableTask.described,
    'separator',
    'label_columns',
    'indicators',
    'threshold',
  )

  separator: str = 'auto'
  label_columns: tuple[str, ...] = ()
  indicators: bool = False
  threshold: float = 0.5

  #### Tables ####

  @classmethod
  def columns_of(cls, data: TaskDataConfig, present: Collection[str]) -> tuple[TextColumns, str]:
    """See the base class. data.label may name several columns."""
    names = _names(data.label)
    columns, described = detected_columns(data.replace({'label': names[0]}), present)
    if len(names) > 1:
      described = f'{described.rpartition(", ")[0]}, labels {", ".join(map(repr, names))}'
    return columns, described

  @classmethod
  def settings_of(cls, data: TaskDataConfig) -> dict[str, Any]:
    """See the base class."""
    names = _names(data.label)
    return super().settings_of(data) | {
      'separator': data.label_separator,
      'label_columns': tuple(names) if len(names) > 1 else (),
    }

  def fitted(self, rows: list[tables.Row], path: str) -> Self:
    """The task with its labels and how they are written, from the training data."""
    if self.label_columns:
      task = dataclasses.replace(self, labels=self.label_columns)
      examples_of_rows(task, rows, path, required=True)
      return task
    values = [self._value(row, path) for row in rows]
    task = dataclasses.replace(
      self, separator=self._separator_of(values), indicators=self._are_indicators(values)
    )
    found: collections.Counter[str] = collections.Counter()
    empty = 0
    for row in rows:
      names = task.names_in(row, path)
      if names is None:
        raise missing_label(row, path, self.columns.target[0])
      found.update(names)
      empty += not names
    known = {name for value in values if isinstance(value, dict) for name in value}
    labels = self.label_names or tuple(sorted(known | set(found)))
    if unknown := sorted(set(found) - set(labels)):
      raise UserError(
        f'{tables.shown(path)} has the label {unknown[0]!r}, which data.label_names lacks; '
        'expected integers or its names'
      )
    if len(labels) < 2:
      raise UserError(
        f'{tables.shown(path)} has {len(labels) or "no"} label{"s" * (not labels)}; expected at '
        'least two different ones'
      )
    several = sum(found.values()) / len(rows)
    notes = (*self.notes, f'{several:.1f} labels per text; {empty:,} texts have none')
    if any(isinstance(value, str) and task.separator in value for value in values):
      notes = (*notes, f'labels separated by {task.separator!r}')
    return dataclasses.replace(task, labels=labels, notes=notes)

  def _value(self, row: tables.Row, path: str) -> tables.JsonValue:
    names = self.columns.target
    return row.values[first_present(names, row.values, path, row.line, 'data.label')]

  def _separator_of(self, values: Sequence[tables.JsonValue]) -> str:
    if self.separator != 'auto':
      return self.separator
    texts = [v for v in values if isinstance(v, str) and isinstance(_list_in_text(v), str)]
    return next((mark for mark in _SEPARATORS if any(mark in text for text in texts)), ',')

  def _are_indicators(self, values: Sequence[tables.JsonValue]) -> bool:
    """Whether all lists have a 0 or 1 per label, rather than the integers of labels."""
    read = [_list_in_text(value) if isinstance(value, str) else value for value in values]
    lists = [value for value in read if isinstance(value, list)]
    lengths = {len(value) for value in lists}
    items = [item for value in lists for item in value]
    if len(lengths) != 1 or not all(
      isinstance(x, bool | int | float) and x in (0, 1) for x in items
    ):
      return False
    if self.label_names:
      return lengths == {len(self.label_names)}
    # Two or more integers of labels that are 0 or 1 would name both in each row, or repeat one.
    return lengths != {1} or any(isinstance(item, bool | float) for item in items)

  def names_in(self, row: tables.Row, path: str) -> list[str] | None:
    """The names of a row's labels; None where they are missing.

    Raises:
      UserError: a label is not accepted.
    """
    if self.label_columns:
      return self._names_of_columns(row, path)
    value = self._value(row, path)
    if isinstance(value, str) and not value.strip():
      return []
    if tables.is_missing(value):
      return None
    if isinstance(value, dict):
      return _names_of_decisions(value, path, row.line)
    where = f'{tables.place(path, row.line)} has'
    if isinstance(value, str):
      value = _list_in_text(value)
    if isinstance(value, str):
      mark = self._separator_of([value])
      items: list[Any] = [part.strip() for part in value.split(mark)]
      if '' in items:
        raise UserError(f'{where} an empty label in {value!r}; fix it, or set data.label_separator')
    else:
      items = value if isinstance(value, list) else [value]
    if any(isinstance(item, list | dict) or tables.is_missing(item) for item in items):
      raise UserError(f'{where} labels of which one is missing or no text; expected names')
    if self.indicators:
      return self._names_of_indicators(items, where)
    try:
      return list(dict.fromkeys(self.label_name(tables.label_text(item)) for item in items))
    except ValueError as error:
      raise UserError(f'{where} {error}') from None

  def _names_of_columns(self, row: tables.Row, path: str) -> list[str] | None:
    tables.require_columns(self.label_columns, list(row.values), path, row.line, 'data.label')
    decisions = {name: row.values[name] for name in self.label_columns}
    return _names_of_decisions(decisions, path, row.line)

  def _names_of_indicators(self, items: Sequence[Any], where: str) -> list[str]:
    names = self.labels or self.label_names or tuple(map(str, range(len(items))))
    decisions = [_decision(item) for item in items]
    if len(items) != len(names) or None in decisions:
      raise UserError(f'{where} {list(items)!r}; expected a 0 or 1 for each of {len(names)} labels')
    return [name for name, decision in zip(names, decisions, strict=True) if decision]

  def row_target(self, row: tables.Row, path: str, column: str) -> Target:
    """Indices of the labels of a row, ascending; None where they are missing."""
    names = self.names_in(row, path)
    if names is None:
      return None
    try:
      return tuple(sorted(map(self.label_index, names)))
    except ValueError as error:
      raise UserError(f'{tables.place(path, row.line)} has {error}') from None

  def unknown_labels(self, row: tables.Row, path: str, column: str) -> list[str]:
    """See the base class."""
    try:
      names = self.names_in(row, path) or []
    except UserError:  # it is malformed
      names = []
    unknown = [name for name in names if name not in self.labels]
    return unknown or super().unknown_labels(row, path, column)

  def missing_column(self, row: tables.Row, column: str) -> str:
    """See the base class: of several columns the first without a value."""
    missing = (name for name in self.label_columns if tables.is_missing(row.values.get(name)))
    return next(missing, column)

  @property
  def no_target(self) -> Target:
    """The target of an example without one."""
    return None

  def split_key(self, example: Example) -> SplitKey:
    """The key of a training example, with all of its labels."""
    return super().split_key(example)._replace(labels=tuple(example.target))

  #### Rows, metrics and predictions ####

  def targets_of(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """`labels` of the examples; see `task.Features`."""
    found = np.zeros((len(examples), len(self.labels)), np.float32)
    for i, example in enumerate(examples):
      if example.target is None:
        found[i] = np.nan
      else:
        found[i, list(example.target)] = 1
    return {'labels': found}

  def score(
    self, split: str, examples: Sequence[Example], features: Features, outputs: Outputs
  ) -> dict[str, float]:
    """Metrics of the examples with known labels.

    Returns:
      micro_f1, macro_f1 and subset_accuracy (all labels correct) at the task's threshold, map (mean
      average precision of the labels), best_micro_f1 and best_threshold, where it is reached.
    """
    return self._metrics(examples, _probabilities(self.pooled(features, outputs)))

  def _metrics(self, examples: Sequence[Example], probabilities: np.ndarray) -> dict[str, float]:
    labels = self.targets_of(examples)['labels']
    known = np.isfinite(labels).all(-1)
    gold, scores = labels[known] > 0, probabilities[known]
    predicted = scores >= self.threshold
    micro, macro = task_metrics.multilabel_f1(gold, predicted)
    best, threshold = task_metrics.best_f1_threshold(gold, scores)
    return {
      'best_micro_f1': best,
      'best_threshold': threshold,
      'micro_f1': micro,
      'macro_f1': macro,
      'subset_accuracy': float((gold == predicted).all(-1).mean()) if len(gold) else np.nan,
      'map': task_metrics.mean_average_precision(gold, scores),
    }

  def tuned(self, metrics: Mapping[str, float]) -> Self:
    """The task with the threshold that is best for the dev set, according to its metrics there."""
    threshold = metrics.get('best_threshold')
    return self if threshold is None else dataclasses.replace(self, threshold=float(threshold))

  def report(self, examples: Sequence[Example], features: Features, outputs: Outputs) -> Blocks:
    """See `report_blocks.HasReport`."""
    gold = self.targets_of(examples)['labels']
    probabilities = _probabilities(self.pooled(features, outputs))
    return text_reports.labels_report(self.labels, examples, gold, probabilities, self.threshold)

  def constant(self) -> dict[str, float]:
    """Metrics on dev where each text has the labels' frequencies in training as probabilities."""
    frequencies = self.targets_of(self.examples('train'))['labels'].mean(0, dtype=np.float64)
    dev = self.examples('dev')
    return self._metrics(dev, np.tile(frequencies, (len(dev), 1)))

  def predictions(
    self, examples: Sequence[Example], features: Features, outputs: Outputs
  ) -> list[dict[str, Any]]:
    """The text, its `labels`, and the `probabilities` of all labels."""
    found: list[dict[str, Any]] = []
    probabilities = _probabilities(self.pooled(features, outputs))
    for i, (example, row) in enumerate(zip(examples, probabilities, strict=True)):
      one = self.shown_example(i, example)
      pairs = zip(self.labels, row.tolist(), strict=True)
      one['labels'] = [
        name for name, p in zip(self.labels, row, strict=True) if p >= self.threshold
      ]
      found.append(one | {'probabilities': dict(pairs)})
    return found


MULTILABEL = MultiLabel


def _names(label: str) -> list[str]:
  """The columns that data.label names."""
  return [name.strip() for name in label.split(',') if name.strip()] or [label]


def _names_of_decisions(
  decisions: Mapping[str, tables.JsonValue], path: str, line: int
) -> list[str] | None:
  """The labels with the value 1; None where a value is missing."""
  found: list[str] = []
  for name, value in decisions.items():
    if tables.is_missing(value):
      return None
    decision = _decision(value)
    if decision is None:
      raise UserError(
        f'{tables.place(path, line)} has {value!r} in its column {name!r}; expected 0 or 1'
      )
    if decision:
      found.append(name)
  return found


def _list_in_text(value: str) -> str | list[Any]:
  """The list that a text writes as JSON, Python or NumPy do, or without quotes; else the text."""
  text = value.strip()
  if not (text.startswith('[') and text.endswith(']')):
    return value
  if _PRINTED_ARRAY.fullmatch(text):  # Python would join its strings
    return [ast.literal_eval(item) for item in _PRINTED_ITEM.findall(text)]
  if _UNQUOTED_LIST.fullmatch(text):
    return [item.strip() for item in text[1:-1].split(',')]
  try:
    found = ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return value
  return found if isinstance(found, list) else value


def _decision(value: tables.JsonValue) -> bool | None:
  """Whether a value is 1 or 0; None for others."""
  text = str(value).strip().lower().removesuffix('.0')
  if text in _YES:
    return True
  return False if text in _NO else None


def _probabilities(outputs: Outputs) -> np.ndarray:
  """Of each label, float64 [rows, labels]."""
  return sigmoid(outputs['logits'])

"""Classification and regression of texts and pairs: what GLUE's tasks and user tables share."""

import collections
import dataclasses
import functools
import gc
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias

import numpy as np

from electra_jax.data.corpus import readers
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import task_metrics
from electra_jax.finetune.report_blocks import Blocks
from electra_jax.finetune.tasks import arrow_tables, probabilities, tables, text_reports
from electra_jax.finetune.tasks.task import (
  ChooseDev,
  Features,
  Options,
  Outputs,
  SplitKey,
  TaskDefaults,
  TaskRecipe,
  parted,
  plain_text,
)
from electra_jax.finetune.tasks.text_rows import token_rows, window_rows

METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
  'accuracy': task_metrics.accuracy,
  'f1': task_metrics.f1,
  'macro_f1': task_metrics.macro_f1,
  'matthews': task_metrics.matthews,
  'pearson': task_metrics.pearson,
  'spearman': task_metrics.spearman,
  'mse': task_metrics.mse,
}
Target: TypeAlias = Any  # see Example
IDS = ('id', 'idx', 'index', 'guid')
_CORRELATIONS = ('pearson', 'spearman')


class Example(NamedTuple):
  """A text or a pair of texts.

  Attributes:
    id: as in the file; None where it has none.
    first: the text.
    second: the second text of a pair, else None.
    target: classification: the label's index, -1 for none; regression: the value, nan for none;
      multi-label: the indices of the labels, None where they are not known.
  """

  id: Any
  first: str
  second: str | None
  target: Target


class TextColumns(NamedTuple):
  """Names that the columns of a table may have; the first one that is present is used.

  Attributes:
    first: of the text.
    second: of the second text; () for tasks of single texts.
    target: of the label or value.
    id: of the example.
  """

  first: tuple[str, ...]
  second: tuple[str, ...]
  target: tuple[str, ...]
  id: tuple[str, ...] = IDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTask(TaskDefaults):
  """A task with one label or value per text or pair; see `task.Task`.

  Class attributes describe the kind of task, fields an open task.

  Attributes:
    name: as in config.task.
    columns: of its tables.
    labels: of classification, in the order of the logits.
    splits: the splits that have data.
    low: regression: the value that is scaled to 0.
    high: regression: the value that is scaled to 1.
    options: of the task, in the dataclass that is registered with it; None for no options.
    label_names: names of labels that are integers, see config.data.label_names.
    notes: see `task.Task`.
    long_texts: 'cut' texts that are longer than a row, or read 'windows' of them.
    stride: tokens from one window to the next.
    window_pooling: 'mean' or 'max' over the windows of a text.
    load: reads the examples of a split; None for a task that was restored without its data.
  """

  head: ClassVar[str] = 'classification'
  metric: ClassVar[str] = 'accuracy'
  # The metrics that `score` computes, of METRICS.
  metric_names: ClassVar[tuple[str, ...]] = ('accuracy',)
  recipe: ClassVar[TaskRecipe] = TaskRecipe()
  # Whether config.data names the columns.
  configured_columns: ClassVar[bool] = True
  # Whether training sees each pair in both orders.
  swap: ClassVar[bool] = False

  name: str
  columns: TextColumns
  labels: tuple[str, ...] = ()
  splits: tuple[str, ...] = ()
  low: float = 0.0
  high: float = 1.0
  options: Options = None
  label_names: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()
  long_texts: str = 'cut'
  stride: int = 128
  window_pooling: str = 'mean'
  load: Callable[[Any, str], list[Example]] | None = None
  _cache: dict[str, list[Example]] = dataclasses.field(
    default_factory=dict, compare=False, repr=False
  )

  #### What a kind of task may override ####

  def parse_target(self, word: str) -> int | float:
    """The target of an example.

    Args:
      word: the label or value as the file has it.

    Returns:
      The label's index, or the value in its own unit.

    Raises:
      ValueError: the word is not accepted; its message follows 'line 1 of the file FILE has '.
    """
    if self.head == 'classification':
      return self.label_index(word)
    try:
      value = float(word)
    except ValueError:
      value = math.nan
    if not math.isfinite(value):
      raise ValueError(
        f'the value {word!r}; expected a number (data.label names the column of the values)'
      )
    return value

  def label_index(self, word: str) -> int:
    """The index of a label; raises ValueError as `parse_target` does."""
    name = self.label_name(word)
    index = self._indices.get(name, self._plain_indices.get(tables.plain_label(name)))
    if index is None:
      raise ValueError(f'the label {name!r}; expected one of {readers.named(self.labels)}')
    return index

  def label_name(self, word: str) -> str:
    """The name of a label, which may be an integer; raises ValueError as `parse_target` does."""
    number = tables.plain_label(word)
    if not self.label_names or not number.lstrip('-').isdecimal():
      return word
    if not 0 <= int(number) < len(self.label_names):
      raise ValueError(
        f'the label {word}; expected 0 to {len(self.label_names) - 1}, as data.label_names has '
        f'{len(self.label_names)} names'
      )
    return self.label_names[int(number)]

  def row_target(self, row: tables.Row, path: str, column: str) -> Target:
    """The target in a row of a table; None where it is missing.

    Args:
      row: of the table.
      path: of the table, for messages.
      column: of the targets.

    Raises:
      UserError: the target is not accepted.
    """
    word = target_text(row, path, column)
    if word is None:
      return None
    try:
      return self.parse_target(word)
    except ValueError as error:
      raise UserError(f'{tables.place(path, row.line)} has {error}') from None

  def unknown_labels(self, row: tables.Row, path: str, column: str) -> list[str]:
    """The labels in a row that the task does not have; arguments as of `row_target`."""
    return [str(row.values[column])]

  def missing_column(self, row: tables.Row, column: str) -> str:
    """The column in which the target of a row is missing, for messages.

    Args:
      row: of the table.
      column: of the targets.
    """
    return column

  @property
  def no_target(self) -> Target:
    """The target of an example without one."""
    return -1 if self.head == 'classification' else math.nan

  def answers(self, outputs: Outputs) -> np.ndarray:
    """The predicted targets [examples]: indices of the likeliest labels, or values."""
    if self.head == 'classification':
      likeliest: np.ndarray = np.argmax(outputs['logits'], -1)
      return likeliest
    values: np.ndarray = np.asarray(outputs['value'], np.float64) * (self.high - self.low)
    return values + self.low

  def measure(self, split: str, gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Metrics of a split.

    Args:
      split: its name.
      gold: the targets of labeled examples [examples].
      predicted: of `answers`, for these examples.
    """
    return {name: METRICS[name](gold, predicted) for name in self.metric_names}

  def with_mean(self, split: str, metrics: dict[str, float]) -> dict[str, float]:
    """Adds metrics that are computed from other metrics."""
    return metrics

  def table_rows(self, text: str, path: str) -> list[tables.Row] | None:
    """The rows of a file in a special format; None for tables and plain lines."""
    return None

  #### What `task.Task` requires ####

  @property
  def paired(self) -> bool:
    """Whether rows hold two texts."""
    return bool(self.columns.second)

  @functools.cached_property
  def _indices(self) -> dict[str, int]:
    return {**self.synonyms, **{label: i for i, label in enumerate(self.labels)}}

  @functools.cached_property
  def _plain_indices(self) -> dict[str, int]:
    """Indices by `tables.plain_label`, without those that several labels share."""
    plain = [tables.plain_label(label) for label in self.labels]
    return {name: i for i, name in enumerate(plain) if plain.count(name) == 1}

  def examples(self, split: str) -> Sequence[Example]:
    """The examples of a split, read once; with swapped pairs for training."""
    found = self._unswapped(split)
    if self.swap and split == 'train':
      found = found + [
        example._replace(first=example.second or '', second=example.first) for example in found
      ]
    return found

  def _unswapped(self, split: str) -> list[Example]:
    if split not in self.splits or self.load is None:
      raise no_data(self.name, split, self.splits)
    if split not in self._cache:
      collecting = gc.isenabled()
      gc.disable()  # it would visit all rows again and again
      try:
        self._cache[split] = self.load(self, split)
      finally:
        if collecting:
          gc.enable()
    return self._cache[split]

  def split_off(self, choose: ChooseDev) -> Self:
    """The task with some training examples as dev; see `task.SplitsOffDev`."""
    examples = self._unswapped('train')
    parts = parted(examples, choose([self.split_key(example) for example in examples]))
    others = tuple(split for split in self.splits if split != 'train')
    return dataclasses.replace(
      self, splits=('train', 'dev', *others), _cache={**self._cache, **parts}
    )

  def split_key(self, example: Example) -> SplitKey:
    """The key of a training example: equal texts or pairs are a group, labels keep their shares."""
    texts = [plain_text(text) for text in (example.first, example.second) if text is not None]
    labels = (example.target,) if self.head == 'classification' else ()
    return SplitKey(tuple(sorted(texts) if self.swap else texts), labels)

  def read(self, path: str) -> Sequence[Example]:
    """Examples of a table, or of plain lines: one text, or two separated by a tab."""
    return examples_of_rows(self, self._rows_of(path), path, required=False)

  def read_labeled(self, path: str) -> tuple[Sequence[Example], collections.Counter[str]]:
    """Examples as of `read`, and the labels that the task does not have; see `task.Task`."""
    unknown: collections.Counter[str] = collections.Counter()
    rows = self._rows_of(path)
    return examples_of_rows(self, rows, path, required=False, unknown=unknown), unknown

  def _rows_of(self, path: str) -> list[tables.Row]:
    if arrow_tables.is_arrow_data(path):
      return tables.read_arrow(path)
    text = tables.read_file_text(path)
    rows = self.table_rows(text, path)
    return _rows_of_any_format(self, text, path) if rows is None else rows

  def features(
    self, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
  ) -> tuple[Features, dict[str, int]]:
    """Rows `[CLS] text [SEP]` or `[CLS] first [SEP] second [SEP]`, of at most `max_length` tokens.

    Longer texts are truncated, or become several rows, each with the target of its text. Windows of
    a pair are on the second text, beside the first, which has half of a row at most.
    """
    firsts = [example.first for example in examples]
    seconds = [example.second or '' for example in examples] if self.paired else None
    if self.long_texts == 'windows':
      rows, owners, counts = window_rows(firsts, seconds, tokenizer, max_length, self.stride)
    else:
      rows, counts = token_rows(firsts, seconds, tokenizer, max_length)
      owners = np.arange(len(rows), dtype=np.int32)
    targets = {name: values[owners] for name, values in self.targets_of(examples).items()}
    return Features(rows, targets, owners, [None] * len(rows)), counts

  def texts(
    self, examples: Sequence[Example], features: Features, tokenizer: Tokenizer
  ) -> list[tuple[str, int]]:
    """See `task.HasTexts`. Windows hold all of a single or second text."""
    rows = np.flatnonzero(np.diff(features.examples, prepend=-1))
    found = []
    for example, row in zip(examples, rows, strict=True):
      ends = np.flatnonzero(features.token_ids[row] == tokenizer.sep_id)  # no text has this token
      kept = [(example.first, int(ends[0]) - 1)]
      if self.paired:
        kept.append((example.second or '', int(ends[-1] - ends[0]) - tokenizer.separators))
      if self.long_texts == 'windows':
        kept[-1] = (kept[-1][0], sys.maxsize)
      found += kept
    return found

  def pooled(self, features: Features | None, outputs: Outputs) -> Outputs:
    """Outputs of examples, from those of their rows.

    The mean of logits is that of the probabilities they stand for.
    """
    if features is None or self.long_texts == 'cut' or not len(features):
      return outputs
    starts = np.flatnonzero(np.diff(features.examples, prepend=-1))
    sizes = np.diff(np.append(starts, len(features)))

    def over_windows(values: np.ndarray) -> np.ndarray:
      if self.window_pooling == 'max':
        found: np.ndarray = np.maximum.reduceat(values, starts)
        return found
      sums = np.add.reduceat(values, starts)
      return sums / sizes.reshape(-1, *[1] * (values.ndim - 1))

    if self.head == 'regression':
      return {'value': over_windows(np.asarray(outputs['value'], np.float64))}
    logits = np.asarray(outputs['logits'], np.float64)
    if self.window_pooling == 'max':
      return {'logits': over_windows(logits)}
    if self.head == 'multilabel':
      return {'logits': probabilities.log_odds(over_windows(probabilities.sigmoid(logits)))}
    means = over_windows(probabilities.softmax(logits))
    return {'logits': probabilities.log_probabilities(means)}

  def targets_of(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """The targets of the examples, one per example; see `task.Features`."""
    found = [example.target for example in examples]
    if self.head == 'classification':
      return {'label': np.array(found, np.int32)}
    values = (np.array(found, np.float64) - self.low) / (self.high - self.low)
    return {'value': values.astype(np.float32)}

  def score(
    self, split: str, examples: Sequence[Example], features: Features, outputs: Outputs
  ) -> dict[str, float]:
    """Metrics of the examples that have a target."""
    answers = self.answers(self.pooled(features, outputs))
    return self.with_mean(split, self._measured(split, examples, answers))

  def _measured(
    self, split: str, examples: Sequence[Example], answers: np.ndarray
  ) -> dict[str, float]:
    gold = np.array([example.target for example in examples], np.float64)
    known = gold >= 0 if self.head == 'classification' else ~np.isnan(gold)
    gold, answers = gold[known], np.asarray(answers)[known]
    if self.head == 'classification':
      gold = gold.astype(np.int64)
    return self.measure(split, gold, answers)

  def report(self, examples: Sequence[Example], features: Features, outputs: Outputs) -> Blocks:
    """See `report_blocks.HasReport`."""
    outputs = self.pooled(features, outputs)
    answers = self.answers(outputs)
    if self.head == 'classification':
      return text_reports.label_report(self.labels, examples, outputs['logits'], answers)
    gold = np.array([example.target for example in examples], np.float64)
    return text_reports.value_report(examples, gold, answers)

  def constant(self) -> dict[str, float]:
    """Metrics on dev of the most frequent label, or the mean value, of the training data.

    A constant does not rank examples, so that correlations are 0 and not nan.
    """
    targets = [example.target for example in self.examples('train')]
    answer: float
    if self.head == 'classification':
      answer = max(range(len(self.labels)), key=collections.Counter(targets).__getitem__)
    else:
      answer = float(np.mean(targets))
    dev = self.examples('dev')
    metrics = self._measured('dev', dev, np.full(len(dev), answer))
    for name in _CORRELATIONS:
      if dev and math.isnan(metrics.get(name, 0.0)):
        metrics[name] = 0.0
    return self.with_mean('dev', metrics)

  def predictions(
    self, examples: Sequence[Example], features: Features, outputs: Outputs
  ) -> list[dict[str, Any]]:
    """The text, and `value`, or `label` with its `probability` and all `probabilities`."""
    outputs = self.pooled(features, outputs)
    answers = self.answers(outputs)
    if self.head == 'classification':
      shares = probabilities.softmax(outputs['logits'])
    found: list[dict[str, Any]] = []
    for i, example in enumerate(examples):
      one = self.shown_example(i, example)
      if self.head == 'regression':
        one['value'] = float(answers[i])
      else:
        one['label'] = self.labels[answers[i]]
        one['probability'] = float(shares[i, answers[i]])
        one['probabilities'] = dict(zip(self.labels, shares[i].tolist(), strict=True))
      found.append(one)
    return found

  def shown_example(self, index: int, example: Example) -> dict[str, Any]:
    """The part of a prediction that shows its example."""
    shown: dict[str, Any] = {'index': index}
    if example.id is not None:
      shown['id'] = example.id
    shown['text'] = example.first
    if example.second is not None:
      shown['pair'] = example.second
    return shown

  def describe(self) -> dict[str, Any]:
    """What `restored_fields` reads."""
    columns = {name: list(names) for name, names in self.columns._asdict().items()}
    return {
      'name': self.name,
      'labels': list(self.labels),
      'low': self.low,
      'high': self.high,
      'columns': columns,
      'label_names': list(self.label_names),
    }


def no_data(name: str, split: str, splits: Collection[str]) -> UserError:
  """The error for a split that a task has no data for."""
  field = split if split in ('train', 'dev', 'test') else 'source'
  return UserError(
    f'the task {name!r} has no {split} data; it has {readers.named(splits)}: set '
    f'config.data.{field}'
  )


#### Examples of tables ####


def examples_of_rows(
  task: TextTask,
  rows: Iterable[tables.Row],
  path: str,
  required: bool,
  unknown: collections.Counter[str] | None = None,
) -> list[Example]:
  """Rows of a table as examples, checked.

  Args:
    task: which the examples are of.
    rows: of the table.
    path: of the table, for messages.
    required: whether each example must have a target.
    unknown: counts labels that the task does not have, whose examples have no target; None: such a
      label is an error.

  Raises:
    UserError: a column is missing, a text is not a string, or a target is missing or not accepted.
  """
  reader = _RowReader(task, path, required, unknown)
  return [reader.example(row) for row in rows]


class _RowReader:
  """Reads the rows of one table as examples."""

  def __init__(
    self,
    task: TextTask,
    path: str,
    required: bool,
    unknown: collections.Counter[str] | None = None,
  ) -> None:
    self._task = task
    self._path = path
    self._required = required
    self._unknown = unknown
    fields = ('data.text', 'data.pair', 'data.label')
    self._fields = fields if task.configured_columns else ('', '', '')
    self._names: Collection[str] | None = None

  def _find_columns(self, row: tables.Row) -> None:
    """Finds the columns among those of a row. Rows of JSON may have different columns."""
    names, columns = row.values.keys(), self._task.columns
    self._names = names
    self._first = first_present(columns.first, names, self._path, row.line, self._fields[0])
    self._second = None
    if columns.second:
      self._second = first_present(columns.second, names, self._path, row.line, self._fields[1])
    self._target = next((name for name in columns.target if name in names), None)
    if self._required and self._target is None:
      first_present(columns.target, names, self._path, row.line, self._fields[2])
    self._id = next((name for name in columns.id if name in names), None)

  def example(self, row: tables.Row) -> Example:
    """The example of a row."""
    if row.values.keys() != self._names:
      self._find_columns(row)
    target = self._target_of(row)
    return Example(
      row.values[self._id] if self._id else None,
      self._text(row, self._first),
      self._text(row, self._second) if self._second else None,
      target,
    )

  def _target_of(self, row: tables.Row) -> Target:
    target = None
    if self._target is not None:
      try:
        target = self._task.row_target(row, self._path, self._target)
      except UserError:
        if self._unknown is None or self._task.head == 'regression':
          raise
        self._unknown.update(self._task.unknown_labels(row, self._path, self._target))
        return self._task.no_target
    if target is None and self._required:
      column = self._task.missing_column(row, self._target or '')
      raise missing_label(row, self._path, column)
    return self._task.no_target if target is None else target

  def _text(self, row: tables.Row, column: str) -> str:
    value = row.values[column]
    return value if isinstance(value, str) else tables.text_value(self._path, row, column)


def first_present(
  candidates: Sequence[str], present: Collection[str], path: str, line: int | None, field: str
) -> str:
  """The first of several names of a column that is present.

  Args:
    candidates: names of the column.
    present: names of the columns there are.
    path: of the table, for the message.
    line: of the row; None for the table.
    field: the config field that names the column, or '', for the message.

  Raises:
    UserError: none is present.
  """
  for name in candidates:
    if name in present:
      return name
  tables.require_columns(candidates[:1], list(present), path, line, field)
  raise AssertionError('require_columns raises for a column that is not present')


def target_text(row: tables.Row, path: str, column: str) -> str | None:
  """The label or value of a row as text; None where it is missing, see `tables.is_missing`."""
  value = row.values[column]
  if tables.is_missing(value):
    return None
  if isinstance(value, list):
    raise UserError(
      f'{tables.place(path, row.line)} has a list in its column {column!r}; expected one label: '
      'set config.task=multilabel if a text has several labels'
    )
  if not isinstance(value, str | bool | int | float):
    tables.text_value(path, row, column)  # raises: it is an object
  return tables.label_text(value)


def missing_label(row: tables.Row, path: str, column: str) -> UserError:
  """The error for a row whose label is missing."""
  value = row.values.get(column)
  what = 'empty' if value in ('', [], None) or str(value).isspace() else str(value)
  what = 'null' if value is None else what
  return UserError(
    f'{tables.place(path, row.line)} has no label: its column {column!r} is {what}; set it, or '
    'remove the line'
  )


def _rows_of_any_format(task: TextTask, text: str, path: str) -> list[tables.Row]:
  """Rows of a table, or of plain lines."""
  table_format = tables.format_from_name(path)
  if table_format not in tables.FORMATS:
    first, columns = tables.first_fields(text), task.columns
    needed = [names for names in (columns.first, columns.second) if names]
    if text.lstrip().startswith('{'):
      table_format = 'jsonl'
    elif all(set(names) & set(first) for names in needed):
      table_format = 'tsv'
    else:
      return _plain_rows(task, text, path)
  return tables.parse_table(text, path, table_format)


def _plain_rows(task: TextTask, text: str, path: str) -> list[tables.Row]:
  lines = [line.removesuffix('\r') for line in text.removesuffix('\n').split('\n')] if text else []
  if not lines:
    raise UserError(f'{tables.shown(path)} is empty; expected one text per line')
  first = task.columns.first[0]
  if not task.columns.second:
    return [tables.Row(number, {first: line}) for number, line in enumerate(lines, 1)]
  second = task.columns.second[0]
  rows: list[tables.Row] = []
  for number, line in enumerate(lines, 1):
    parts = line.split('\t')
    if len(parts) != 2:
      raise UserError(
        f'{tables.place(path, number)} has {len(parts)} fields; expected two texts separated by a '
        f'tab, for the task {task.name!r}'
      )
    rows.append(tables.Row(number, {first: parts[0], second: parts[1]}))
  return rows

"""Classification and regression of the user's own tables: `classification` and `regression`.

Tasks of user code derive from `TableTask`, as these two do; docs/extending.md has an example.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from electra_jax.config.declarations import to_plain
from electra_jax.config.finetuning import TaskDataConfig
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import prepared, tables
from electra_jax.finetune.tasks.task import Options
from electra_jax.finetune.tasks.text_task import (
  Example,
  TextColumns,
  TextTask,
  examples_of_rows,
  first_present,
  no_data,
  target_text,
)

SPLITS = ('train', 'dev', 'test')


class TableTask(TextTask):
  """A task on tables that config.data names; the class itself is the spec (`task.TaskSpec`).

  A subclass sets `head`, `metric` and `metric_names`, and overrides what differs: usually
  `parse_target`, `answers`, `measure` or `value_range`. Options are in `self.options`.
  """

  fixed_labels: ClassVar[bool] = False
  published_metric: ClassVar[str] = ''

  @classmethod
  def open(cls, name: str, data: TaskDataConfig, options: Options) -> Self:
    """Opens the task with the files of config.data.

    Args:
      name: under which the task is registered.
      data: config.data: train, dev, test (files, or `tfds:NAME;split=SPLIT`), format, text, pair
        and label.
      options: of the task; None for no options.

    Raises:
      UserError: there is no training file, or it is malformed.
    """
    files = _files(name, data)
    if 'train' not in files:
      raise no_data(name, 'train', files)
    columns = _columns(data)
    rows = _read_rows(files['train'], data.format, columns, needs_target=True)

    def load(task: Self, split: str) -> list[Example]:
      found = rows
      if split != 'train':
        found = _read_rows(files[split], data.format, columns, needs_target=split == 'dev')
      return examples_of_rows(task, found, files[split], required=split != 'test')

    task = cls(name=name, columns=columns, splits=tuple(files), options=options, load=load)
    return task.fitted(rows, files['train'])

  @classmethod
  def define(
    cls, name: str, data: TaskDataConfig, options: Options, labels: tuple[str, ...]
  ) -> Self:
    """The task for a model of another program, with its labels; see `task.TaskSpec`."""
    files = _files(name, data)
    columns = _columns(data)

    def load(task: Self, split: str) -> list[Example]:
      rows = _read_rows(files[split], data.format, columns, needs_target=split != 'test')
      return examples_of_rows(task, rows, files[split], required=split != 'test')

    task = cls(
      name=name, columns=columns, labels=labels, splits=tuple(files), options=options, load=load
    )
    low, high = task.value_range() or (0.0, 1.0)
    return dataclasses.replace(task, low=low, high=high)

  @classmethod
  def restore(cls, description: Mapping[str, Any], options: Options) -> Self:
    """The task of a description, without data."""
    columns = {name: tuple(names) for name, names in description['columns'].items()}
    return cls(
      name=description['name'],
      columns=TextColumns(**columns),
      labels=tuple(description['labels']),
      low=description['low'],
      high=description['high'],
      options=options,
    )

  def describe(self) -> dict[str, Any]:
    """What `restore` reads, for JSON."""
    options = {} if self.options is None else {'options': to_plain(self.options)}
    return super().describe() | options

  def value_range(self) -> tuple[float, float] | None:
    """Regression: the lowest and the highest value; None for those of the training data."""
    return None

  def fitted(self, rows: list[tables.Row], path: str) -> Self:
    """The task with its labels, or its range of values, from the training data.

    Args:
      rows: of the training data.
      path: of the training data, for messages.

    Raises:
      UserError: the training data has fewer than two labels or values, or one is missing.
    """
    if self.head == 'classification':
      return dataclasses.replace(self, labels=self._labels_of(rows, path))
    values = [example.target for example in examples_of_rows(self, rows, path, required=True)]
    low, high = self.value_range() or (float(min(values)), float(max(values)))
    if low == high:
      raise UserError(
        f'{tables.shown(path)} has a single value, {low:g}; expected at least two different values'
      )
    return dataclasses.replace(self, low=low, high=high)

  def _labels_of(self, rows: list[tables.Row], path: str) -> tuple[str, ...]:
    found: set[str] = set()
    for row in rows:
      column = first_present(self.columns.target, row.values, path, row.line, 'data.label')
      label = target_text(row, path, column)
      if not label:
        raise UserError(
          f'{tables.place(path, row.line)} has no label; training examples must have one'
        )
      found.add(label)
    if len(found) < 2:
      raise UserError(
        f'{tables.shown(path)} has a single label, {min(found)!r}; expected at least two'
      )
    return tuple(sorted(found))


class Classification(TableTask):
  """One of several labels per text or pair."""

  head: ClassVar[str] = 'classification'
  metric: ClassVar[str] = 'accuracy'
  metric_names: ClassVar[tuple[str, ...]] = ('accuracy', 'macro_f1', 'matthews')


class Regression(TableTask):
  """A number per text or pair."""

  head: ClassVar[str] = 'regression'
  metric: ClassVar[str] = 'spearman'
  metric_names: ClassVar[tuple[str, ...]] = ('pearson', 'spearman', 'mse')


CLASSIFICATION = Classification
REGRESSION = Regression


def _files(name: str, data: TaskDataConfig) -> dict[str, str]:
  """The file of each split that is named."""
  if data.source:
    raise UserError(
      f'config.data.source is {data.source!r}, and the task {name!r} reads files; set '
      'config.data.train and config.data.dev, and leave config.data.source empty'
    )
  return {split: path for split in SPLITS if (path := getattr(data, split))}


def _columns(data: TaskDataConfig) -> TextColumns:
  return TextColumns((data.text,), (data.pair,) if data.pair else (), (data.label,))


def _read_rows(
  path: str, table_format: str, columns: TextColumns, needs_target: bool
) -> list[tables.Row]:
  """Rows of a file or a TFDS dataset."""
  if path.startswith(prepared.PREFIX):
    rows, known_format = prepared.read_prepared(path), ''
  else:
    rows = tables.read_table(path, table_format)
    known_format = tables.format_from_name(path) if table_format == 'auto' else table_format
  # Each row of JSON has other columns, which are checked row by row.
  if known_format not in ('jsonl', 'json'):
    wanted = {
      'data.text': columns.first,
      'data.pair': columns.second,
      'data.label': columns.target if needs_target else (),
    }
    for field, names in wanted.items():
      if names:
        first_present(names, rows[0].values, path, None, field)
  return rows

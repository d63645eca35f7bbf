"""Classification and regression of the user's own tables: `classification` and `regression`.

Tasks of user code derive from `TableTask`, as these two do; docs/extending.md has an example.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
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
  missing_label,
  no_data,
  target_text,
)


class TableTask(TextTask):
  """A task on tables that config.data names; the class itself is the spec (`task.TaskSpec`).

  A subclass sets `head`, `metric` and `metric_names`, and overrides what differs: usually
  `parse_target`, `answers`, `measure` or `value_range`. Options are in `self.options`.
  """

  fixed_labels: ClassVar[bool] = False
  published_metric: ClassVar[str] = ''
  # Further fields of a subclass that `restore` needs.
  described: ClassVar[tuple[str, ...]] = ('long_texts', 'stride', 'window_pooling')

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
    files = tables.split_files(name, data)
    if 'train' not in files:
      raise no_data(name, 'train', files)
    rows = _read_rows(files['train'], data.format)
    columns, field_columns = cls.columns_of(data, rows[0].values)
    _check_columns(rows, files['train'], data.format, columns, needs_target=True)

    def load(task: Self, split: str) -> list[Example]:
      found = rows
      if split != 'train':
        found = _read_rows(files[split], data.format)
        _check_columns(found, files[split], data.format, columns, needs_target=split == 'dev')
      return examples_of_rows(task, found, files[split], required=split != 'test')

    task = cls(
      name=name,
      columns=columns,
      splits=tuple(files),
      options=options,
      label_names=tables.label_names(data.label_names),
      notes=(f'columns: {field_columns}',),
      load=load,
      **cls.settings_of(data),
    )
    return task.fitted(rows, files['train'])

  @classmethod
  def columns_of(cls, data: TaskDataConfig, present: Collection[str]) -> tuple[TextColumns, str]:
    """The columns of a table, and how they are described.

    Args:
      data: config.data.
      present: names of the columns of the training data; () where they are not known.
    """
    return detected_columns(data, present)

  @classmethod
  def settings_of(cls, data: TaskDataConfig) -> dict[str, Any]:
    """Further fields of the task, from config.data."""
    if data.stride < 1:
      raise UserError(f'config.data.stride is {data.stride}; expected at least 1')
    return {name: getattr(data, name) for name in ('long_texts', 'stride', 'window_pooling')}

  @classmethod
  def define(
    cls, name: str, data: TaskDataConfig, options: Options, labels: tuple[str, ...]
  ) -> Self:
    """The task for a model of another program, with its labels; see `task.TaskSpec`."""
    files = tables.split_files(name, data)
    columns, _ = cls.columns_of(data, ())

    def load(task: Self, split: str) -> list[Example]:
      rows = _read_rows(files[split], data.format)
      _check_columns(rows, files[split], data.format, columns, needs_target=split != 'test')
      return examples_of_rows(task, rows, files[split], required=split != 'test')

    task = cls(
      name=name,
      columns=columns,
      labels=labels,
      splits=tuple(files),
      options=options,
      label_names=tables.label_names(data.label_names),
      load=load,
      **cls.settings_of(data),
    )
    low, high = task.value_range() or (0.0, 1.0)
    return dataclasses.replace(task, low=low, high=high)

  @classmethod
  def restore(cls, description: Mapping[str, Any], options: Options) -> Self:
    """The task of a description, without data."""
    columns = {name: tuple(names) for name, names in description['columns'].items()}
    more = {name: description[name] for name in cls.described if name in description}
    return cls(
      name=description['name'],
      columns=TextColumns(**columns),
      labels=tuple(description['labels']),
      low=description['low'],
      high=description['high'],
      options=options,
      label_names=tuple(description.get('label_names', ())),
      **{name: tuple(v) if isinstance(v, list) else v for name, v in more.items()},
    )

  def describe(self) -> dict[str, Any]:
    """What `restore` reads, for JSON."""
    options = {} if self.options is None else {'options': to_plain(self.options)}
    more = {name: getattr(self, name) for name in self.described}
    return super().describe() | options | more

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
      if label is None:
        raise missing_label(row, path, column)
      try:
        found.add(self.label_name(label))
      except ValueError as error:
        raise UserError(f'{tables.place(path, row.line)} has {error}') from None
    if self.label_names:
      if unknown := sorted(found - set(self.label_names)):
        raise UserError(
          f'{tables.shown(path)} has the label {unknown[0]!r}, which data.label_names lacks; '
          'expected integers or its names'
        )
      return self.label_names
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


# Usual names of columns, which are used where config.data has the defaults and the table lacks
# them: of the text, with the second text where that is a column too, and of labels and values.
_TEXTS = {
  'sentence1': 'sentence2',
  'premise': 'hypothesis',
  'question1': 'question2',
  'text1': 'text2',
  'text_a': 'text_b',
  'sentence': '',
  'content': '',
  'review': '',
  'document': '',
  'tweet': '',
}
_TARGETS = ('labels', 'target', 'class', 'category', 'score', 'rating', 'stars')


def detected_columns(data: TaskDataConfig, present: Collection[str]) -> tuple[TextColumns, str]:
  """The columns that config.data names, or usual ones, and how they are described.

  Args:
    data: config.data.
    present: names of the columns of the training data; () where they are not known.
  """
  first, second, target = data.text, data.pair, data.label
  if first == TaskDataConfig.text and first not in present:
    first = next((name for name in _TEXTS if name in present), first)
    if first != data.text and not second and _TEXTS[first] in present:
      second = _TEXTS[first]
  if target == TaskDataConfig.label and target not in present:
    target = next((name for name in _TARGETS if name in present), target)
  described = [f'text {first!r}', f'pair {second!r}' if second else '', f'label {target!r}']
  columns = TextColumns(
    tuple(dict.fromkeys((first, data.text))),
    (second,) if second else (),
    tuple(dict.fromkeys((target, data.label))),
  )
  return columns, ', '.join(filter(None, described))


def _read_rows(path: str, table_format: str) -> list[tables.Row]:
  """Rows of a file or a TFDS dataset."""
  if path.startswith(prepared.PREFIX):
    return prepared.read_prepared(path)
  return tables.read_table(path, table_format)


def _check_columns(
  rows: Sequence[tables.Row],
  path: str,
  table_format: str,
  columns: TextColumns,
  needs_target: bool,
) -> None:
  """Checks the columns of a table. Each row of JSON has other columns, which are checked later."""
  if path.startswith(prepared.PREFIX):
    table_format = ''
  elif table_format == 'auto':
    table_format = tables.format_from_name(path)
  if table_format in ('jsonl', 'json'):
    return
  wanted = {
    'data.text': columns.first,
    'data.pair': columns.second,
    'data.label': columns.target if needs_target else (),
  }
  for field, names in wanted.items():
    if names:
      first_present(names, rows[0].values, path, None, field)

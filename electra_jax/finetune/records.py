"""Examples from data in memory: texts, pairs, mappings, rows of data frames.

They are read as a file of JSON lines is, with the same checks and messages.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from electra_jax.errors import UserError
from electra_jax.finetune.tasks.tables import whole_characters
from electra_jax.finetune.tasks.task import Task
from electra_jax.finetune.tasks.text_task import Example, TextTask

# Texts, pairs, lists of words, mappings, or a data frame.
Data: TypeAlias = Any
Value: TypeAlias = Any  # an item, or a value of it
# What callers may name their values -> the part of an example. Those of transformers' pipelines are
# among them.
_ALIASES = {
  'text': 0,
  'sentence': 0,
  'sentence1': 0,
  'question': 0,
  'tokens': 0,
  'words': 0,
  'text_pair': 1,
  'pair': 1,
  'sentence2': 1,
  'context': 1,
  'label': 2,
  'labels': 2,
  'value': 2,
  'tags': 2,
  'answers': 2,
  'answer': 2,
}


def as_items(data: Data, words: bool = False) -> list[Any]:
  """The items of data: its rows as mappings for a data frame or a mapping of columns.

  Args:
    data: as of `FineTunedRun.predict`.
    words: whether a mapping of lists may be one sentence, with a list of its words.

  Raises:
    UserError: it is nothing of this, or has two columns of the same name.
  """
  if isinstance(data, str):
    return [data]
  if isinstance(data, Mapping):
    return _rows_of_columns(data) if _has_columns(data, words) else [data]
  if hasattr(data, 'to_dicts'):  # polars
    return list(data.to_dicts())
  if hasattr(data, 'columns') and hasattr(data, 'to_dict'):  # pandas
    if repeated := [name for name in data.columns if list(data.columns).count(name) > 1]:
      raise UserError(f'the data has two columns named {repeated[0]!r}; rename one.')
    # pandas has integers beside missing values as floats: 1 would be the label '1.0'.
    typed = data.convert_dtypes() if hasattr(data, 'convert_dtypes') else data
    return list(typed.to_dict('records'))
  if not isinstance(data, Iterable):
    raise UserError(
      f'the data is {data!r}; expected a text, or a list of texts, pairs or mappings, or a data '
      'frame.'
    )
  return list(data)


def _has_columns(data: Mapping[Any, Value], words: bool) -> bool:
  """Whether a mapping has a list per column, such as a part of a `datasets.Dataset`."""
  if not data or not all(map(_is_list, data.values())):
    return False
  return not words or any(_is_list(item) for column in data.values() for item in column)


def _is_list(value: Value) -> bool:
  return hasattr(value, '__len__') and not isinstance(value, str | bytes | Mapping)


def _rows_of_columns(data: Mapping[Any, Value]) -> list[Any]:
  lengths = {name: len(column) for name, column in data.items()}
  if len(set(lengths.values())) > 1:
    raise UserError(f'the columns of the data have the lengths {lengths}; expected a single one.')
  return [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]


def field_names(task: Task) -> tuple[str, str, str]:
  """The fields of JSON lines that a task reads its text, second text and target from."""
  columns: Any = getattr(task, 'columns', None)
  if isinstance(task, TextTask):
    second = task.columns.second
    return task.columns.first[0], second[0] if second else '', task.columns.target[0]
  if task.head == 'span' and columns is not None:
    return columns.question, columns.context, columns.answers
  if task.head == 'choice' and columns is not None:
    return columns.text, '', columns.label
  layout: Any = getattr(task, 'layout', None)
  if layout is not None:
    return layout.text, '', layout.label
  return 'text', 'pair', 'label'


def as_records(items: Sequence[Any], names: tuple[str, str, str]) -> list[dict[str, Any]]:
  """Items as JSON objects with the fields that a task reads.

  Args:
    items: of `as_items`: texts, pairs (tuples), lists of words or mappings.
    names: of `field_names`. Where a mapping lacks one of them, a usual name in its place is used,
      such as text, text_pair, question, context, tokens, label or tags.

  Raises:
    UserError: an item is something else.
  """
  return [_record(number, item, names) for number, item in enumerate(items, 1)]


def _record(number: int, item: Value, names: tuple[str, str, str]) -> dict[str, Any]:
  first, second, _ = names
  if isinstance(item, str):
    if second:
      raise UserError(
        f'record {number} is a single text; expected a pair ({first}, {second}), such as '
        "('one', 'two')."
      )
    return {first: whole_characters(item)}
  if isinstance(item, Mapping):
    record = {str(name): whole_characters(_plain(value)) for name, value in item.items()}
    for name in list(record):
      part = _ALIASES.get(name)
      if part is not None and names[part] and names[part] not in record:
        record[names[part]] = record.pop(name)
    return record
  values = whole_characters(_plain(item))
  if second and isinstance(values, list) and len(values) == 2:
    return {first: values[0], second: values[1]}
  if not second and isinstance(values, list) and all(isinstance(word, str) for word in values):
    return {first: values}
  expected = f'a pair ({first}, {second})' if second else 'a text'
  raise UserError(f'record {number} is {item!r}; expected {expected} or a mapping.')


def _plain(value: Value) -> Value:
  """A value as JSON has it: arrays as lists, missing values of data frames as null."""
  if isinstance(value, str | bool | int) or value is None:
    return value
  if hasattr(value, 'tolist'):  # arrays and scalars of NumPy
    return _plain(value.tolist())
  if isinstance(value, float):
    return None if math.isnan(value) else value
  if isinstance(value, Mapping):
    return {str(name): _plain(one) for name, one in value.items()}
  if isinstance(value, Iterable):
    return [_plain(one) for one in value]
  return None if type(value).__name__ in ('NAType', 'NaTType') else str(value)


@contextlib.contextmanager
def as_file(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  """The path of a file of JSON lines with these records; errors name records, not the file.

  Raises:
    UserError: there is no record, or what is raised inside.
  """
  if not records:
    raise UserError('the data has no records; expected at least one.')
  with tempfile.TemporaryDirectory(prefix='electra_jax_') as folder:
    path = pathlib.Path(folder) / 'records.jsonl'
    write(path, records)
    try:
      yield str(path)
    except UserError as error:
      text = re.sub(rf'line (\d+) of the file {str(path)!r}', r'record \1', str(error))
      raise UserError(text.replace(f'the file {str(path)!r}', 'the data')) from None


def write(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
  """Writes records as JSON lines."""
  lines = [json.dumps(record) + '\n' for record in records]
  pathlib.Path(path).write_text(''.join(lines), 'utf-8')


def texts_as_examples(task: Task, items: Sequence[Any]) -> list[Example] | None:
  """Examples of a task of single texts, at once; None for other tasks or items."""
  if not isinstance(task, TextTask) or task.paired:
    return None
  if not all(isinstance(item, str) for item in items):
    return None
  return [Example(None, text, None, task.no_target) for text in items]

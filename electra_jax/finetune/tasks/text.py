"""Classification and regression of single texts and pairs, and one's own data in tables. GLUE's tasks are made of them too."""

import collections
import dataclasses
import gc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from electra_jax.data.corpus import readers
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import metrics
from electra_jax.finetune.tasks import prepared, tables
from electra_jax.finetune.tasks.task import Features, Outputs, Recipe

FIGURES = {
  'accuracy': metrics.accuracy,
  'f1': metrics.f1,
  'macro_f1': metrics.macro_f1,
  'matthews': metrics.matthews,
  'pearson': metrics.pearson,
  'spearman': metrics.spearman,
  'mse': metrics.mse,
}
GLUE = 'glue'  # the mean of a GLUE task's figures

# Figures of one's own tasks, and the one that runs are compared by.
_OWN = {
  'classification': (('accuracy', 'macro_f1', 'matthews'), 'accuracy'),
  'regression': (('pearson', 'spearman', 'mse'), 'spearman'),
}
IDS = ('id', 'idx', 'index', 'guid')


class Example(NamedTuple):
  """One text or pair. `target` is the label's place in the task's labels, -1 for none, or the value, nan for none."""

  id: Any  # as the file has it; None where it has none
  first: str
  second: str | None
  target: int | float


class Columns(NamedTuple):
  """Names that the columns of a table may have, the first one found counts; an empty `second` is for single texts."""

  first: tuple[str, ...]
  second: tuple[str, ...]
  target: tuple[str, ...]
  id: tuple[str, ...] = IDS


@dataclasses.dataclass(frozen=True)
class TextTask:
  """A task that says one thing of a text or a pair; what it has is told in task.py.

  Attributes:
    columns: of its tables.
    low, high: regression: values that become 0 and 1.
    words: further names of labels, as some sources write them, to their places.
    figures: names of what `score` gives, by split; of '' for splits that are not named.
    swap: whether training sees each pair both ways.
    site_files: names of the submission files, by split; their labels or values are written as the site wants them.
    layout: reads the rows of a person's file from its text and path; None: as a table or plain lines.
    load: reads the examples of a split; None where a task was restored, without its data.
  """

  name: str
  head: str
  labels: tuple[str, ...]
  metric: str
  recipe: Recipe
  splits: tuple[str, ...]
  columns: Columns
  figures: Mapping[str, tuple[str, ...]]
  low: float = 0.0
  high: float = 1.0
  words: Mapping[str, int] = dataclasses.field(default_factory=dict)
  swap: bool = False
  site_files: Mapping[str, str] = dataclasses.field(default_factory=dict)
  layout: Callable[[str, str], list[tables.Row] | None] | None = None
  load: Callable[['TextTask', str], list[Example]] | None = None
  _read: dict[str, list[Example]] = dataclasses.field(
    default_factory=dict, compare=False, repr=False
  )

  def examples(self, split: str) -> Sequence[Example]:
    if split not in self.splits:
      raise UserError(
        f'there is no {split} data for the task {self.name!r}; it has {readers.named(self.splits)}; '
        f'name a file in config.data.{split if split in ("train", "dev", "test") else "source"}'
      )
    if split not in self._read:
      collecting = gc.isenabled()
      gc.disable()  # it would go over all rows again and again
      try:
        self._read[split] = self.load(self, split)
      finally:
        if collecting:
          gc.enable()
    found = self._read[split]
    if self.swap and split == 'train':
      found = found + [
        example._replace(first=example.second, second=example.first) for example in found
      ]
    return found

  def read(self, path: str) -> Sequence[Example]:
    rows = _rows_of_anything(self, tables.read_text(path), path)
    return examples_of(self, rows, path, targets='where told')

  def features(
    self, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
  ) -> tuple[Features, dict[str, int]]:
    paired = bool(self.columns.second)
    room = max_length - (3 if paired else 2)
    if room < 2:
      raise UserError(f'max_length={max_length} leaves no room for text; give at least 16')
    cls, sep = np.array([tokenizer.cls_id], np.int32), np.array([tokenizer.sep_id], np.int32)
    firsts = tokenizer.encode_arrays([example.first for example in examples])
    seconds = (
      tokenizer.encode_arrays([example.second for example in examples]) if paired else firsts
    )
    rows, cut_rows, cut_tokens = [], 0, 0
    for first, second in zip(firsts, seconds, strict=True):
      total = len(first) + (len(second) if paired else 0)
      if total > room:
        cut_rows, cut_tokens = cut_rows + 1, cut_tokens + total - room
        keep = kept(len(first), len(second), room) if paired else room
        first, second = first[:keep], second[: room - keep]
      rows.append(np.concatenate([cls, first, sep, second, sep] if paired else [cls, first, sep]))
    targets = [example.target for example in examples]
    if self.head == 'classification':
      targets = {'label': np.array(targets, np.int32)}
    else:
      targets = {
        'value': ((np.array(targets, np.float64) - self.low) / (self.high - self.low)).astype(
          np.float32
        )
      }
    counts = (
      {f'texts cut to {max_length} tokens': cut_rows, 'tokens cut off': cut_tokens}
      if cut_rows
      else {}
    )
    return Features(rows, targets, np.arange(len(rows), dtype=np.int32), [None] * len(rows)), counts

  def score(
    self, split: str, examples: Sequence[Example], features: Features, outputs: Outputs
  ) -> dict[str, float]:
    return self._figures(split, examples, self._answers(outputs))

  def _figures(self, split, examples, answers, undefined=math.nan):
    """Figures of labelled examples; `undefined` stands for a correlation that is none."""
    gold = np.array([example.target for example in examples], np.float64)
    told = gold >= 0 if self.head == 'classification' else ~np.isnan(gold)
    gold, answers = gold[told], np.asarray(answers)[told]
    if self.head == 'classification':
      gold = gold.astype(np.int64)
    names = self.figures.get(split, self.figures[''])
    found = {name: FIGURES[name](gold, answers) for name in names if name != GLUE}
    if len(gold):
      found = {
        name: undefined if math.isnan(value) and name in ('pearson', 'spearman') else value
        for name, value in found.items()
      }
    if GLUE in names:
      found[GLUE] = float(np.mean(list(found.values())))
    return found

  def _answers(self, outputs):
    """Places of the likeliest labels, or values in their own unit."""
    if self.head == 'classification':
      return np.argmax(outputs['logits'], -1)
    return np.asarray(outputs['value'], np.float64) * (self.high - self.low) + self.low

  def predictions(
    self, examples: Sequence[Example], features: Features, outputs: Outputs
  ) -> list[dict]:
    answers = self._answers(outputs)
    if self.head == 'classification':
      logits = np.asarray(outputs['logits'], np.float64)
      shares = np.exp(logits - logits.max(-1, keepdims=True))
      shares /= shares.sum(-1, keepdims=True)
    found = []
    for i, example in enumerate(examples):
      said = (
        {'index': i} | ({} if example.id is None else {'id': example.id}) | {'text': example.first}
      )
      if example.second is not None:
        said['pair'] = example.second
      if self.head == 'regression':
        said['value'] = float(answers[i])
      else:
        said |= {
          'label': self.labels[answers[i]],
          'probability': float(shares[i, answers[i]]),
          'probabilities': dict(zip(self.labels, shares[i].tolist(), strict=True)),
        }
      found.append(said)
    return found

  def submission(
    self, split: str, examples: Sequence[Example], features: Features, outputs: Outputs
  ) -> dict[str, bytes]:
    if split not in self.site_files:
      return {}
    answers = self._answers(outputs)
    if self.head == 'regression':
      answers = [f'{value:.3f}' for value in np.clip(answers, self.low, self.high)]
    else:
      answers = [self.labels[place] for place in answers]
    lines = [
      f'{i}\t{answer}\n' for i, answer in enumerate(answers)
    ]  # the site counts from 0 in the order of its file
    return {self.site_files[split]: ('index\tprediction\n' + ''.join(lines)).encode()}

  def constant(self) -> dict[str, float]:
    """Figures of the training set's most frequent label, or mean value, on dev. It ranks nothing, so correlations are 0, not nan."""
    targets = [example.target for example in self.examples('train')]
    if self.head == 'classification':
      answer = max(range(len(self.labels)), key=collections.Counter(targets).__getitem__)
    else:
      answer = float(np.mean(targets))
    dev = self.examples('dev')
    return self._figures('dev', dev, np.full(len(dev), answer), undefined=0.0)

  def describe(self) -> dict:
    return {
      'name': self.name,
      'labels': list(self.labels),
      'low': self.low,
      'high': self.high,
      'columns': {name: list(names) for name, names in self.columns._asdict().items()},
    }


def open_task(name: str, data: Any) -> TextTask:
  """`classification` or `regression` of one's own files.

  Args:
    name: classification or regression.
    data: config.data: train, dev, test (files, or `tfds:NAME;split=SPLIT`), format, text, pair, label.

  Raises:
    UserError: no training file, or anything wrong in it, a sentence each.
  """
  places = _places(name, data)
  if 'train' not in places:
    raise UserError(f'the task {name!r} has no training data; name a file in config.data.train')
  columns = Columns((data.text,), (data.pair,) if data.pair else (), (data.label,))
  rows = _rows(places['train'], data.format, columns, needs_target=True)

  def load(task, split):
    found = (
      rows
      if split == 'train'
      else _rows(places[split], data.format, columns, needs_target=split == 'dev')
    )
    return examples_of(
      task, found, places[split], targets='where told' if split == 'test' else 'all'
    )

  task = _own(name, columns, tuple(places), load)
  if task.head == 'classification':
    words = [_target_word(row, places['train'], columns) for row in rows]
    for row, word in zip(rows, words, strict=True):
      if not word:
        raise UserError(
          f'{tables.place(places["train"], row.line)} has no label; training examples need one'
        )
    task = dataclasses.replace(task, labels=tuple(sorted(set(words))))
    if len(task.labels) < 2:
      raise UserError(
        f'{tables.shown(places["train"])} has one label alone, {task.labels[0]!r}, so there is nothing to learn; '
        'give at least two'
      )
    return task
  values = [example.target for example in examples_of(task, rows, places['train'], targets='all')]
  if min(values) == max(values):
    raise UserError(
      f'{tables.shown(places["train"])} has one value alone, {values[0]:g}, so there is nothing to learn; '
      'give different ones'
    )
  return dataclasses.replace(task, low=min(values), high=max(values))


def _places(name, data):
  """The file of each part that is named."""
  if getattr(data, 'source', ''):
    raise UserError(
      f'the task {name!r} reads files of yours: name them in config.data.train and config.data.dev, and leave '
      'config.data.source empty'
    )
  return {
    split: getattr(data, split) for split in ('train', 'dev', 'test') if getattr(data, split, '')
  }


def define(name: str, data: Any, labels: tuple[str, ...]) -> TextTask:
  """As tasks.define_task has it: the model's labels, or values in the unit that it gives them in."""
  places = _places(name, data)
  columns = Columns((data.text,), (data.pair,) if data.pair else (), (data.label,))

  def load(task, split):
    rows = _rows(places[split], data.format, columns, needs_target=split != 'test')
    return examples_of(
      task, rows, places[split], targets='where told' if split == 'test' else 'all'
    )

  return dataclasses.replace(_own(name, columns, tuple(places), load), labels=labels)


def restore(description: dict) -> TextTask:
  """The task of what `describe` gave, without data."""
  columns = Columns(**{name: tuple(names) for name, names in description['columns'].items()})
  return dataclasses.replace(
    _own(description['name'], columns, (), None),
    labels=tuple(description['labels']),
    low=description['low'],
    high=description['high'],
  )


def examples_of(
  task: TextTask, rows: Iterable[tables.Row], path: str, targets: str
) -> list[Example]:
  """Rows as examples, checked.

  Args:
    path: where they are from, for complaints.
    targets: 'all' must have one, or 'where told'.

  Raises:
    UserError: a column is missing, a text is none, a label is unknown or missing, a value is no number.
  """
  found, places = [], dict(task.words) | {label: i for i, label in enumerate(task.labels)}
  fields = ('', '', '') if task.site_files else ('data.text', 'data.pair', 'data.label')
  none = -1 if task.head == 'classification' else math.nan
  names = None
  for row in rows:
    values = row.values
    if values.keys() != names:  # of tables all rows have the same; of JSON each may have its own
      names = values.keys()
      first = _column(task.columns.first, names, path, row.line, fields[0])
      second = (
        _column(task.columns.second, names, path, row.line, fields[1])
        if task.columns.second
        else None
      )
      target = next((name for name in task.columns.target if name in names), None)
      if targets == 'all' and target is None:
        _column(task.columns.target, names, path, row.line, fields[2])
      identity = next((name for name in task.columns.id if name in names), None)
    word = None if target is None else _word(row, path, target)
    goal = (
      none if not word else places.get(word) if task.labels else _number(word, task, path, row.line)
    )
    if not word and targets == 'all':
      raise UserError(
        f'{tables.place(path, row.line)} has nothing in its column {target!r}; give it a label, or take '
        'the line out'
      )
    if goal is None:
      raise UserError(
        f'{tables.place(path, row.line)} has the label {word!r}, which '
        + (
          'the training data have not'
          if task.load and not task.site_files
          else f'the task {task.name!r} has not'
        )
        + f'; labels are {readers.named(task.labels)}'
      )
    texts = [
      values[column] if isinstance(values[column], str) else tables.text_value(path, row, column)
      for column in (first, second)
      if column
    ]
    found.append(
      Example(values[identity] if identity else None, texts[0], texts[1] if second else None, goal)
    )
  return found


def kept(first: int, second: int, room: int) -> int:
  """Tokens of the first text that stay where both make more than `room`: the longer one loses its last, of equals the second."""
  return min(first, max(room - second, (room + 1) // 2))


def _own(name, columns, splits, load):
  figures, metric = _OWN[name]
  return TextTask(name, name, (), metric, Recipe(), splits, columns, {'': figures}, load=load)


def _rows(path, table_format, columns, needs_target):
  """Rows of one's own file or TFDS dataset."""
  if path.startswith(prepared.PREFIX):
    rows, in_json = prepared.read(path), False
  else:
    rows = tables.read_table(path, table_format)
    in_json = (tables.format_of(path) if table_format == 'auto' else table_format) in (
      'jsonl',
      'json',
    )
  if (
    not in_json
  ):  # the table is what lacks a column; of JSON each row may, which is told with its line
    wanted = {
      'data.text': columns.first,
      'data.pair': columns.second,
      'data.label': columns.target if needs_target else (),
    }
    for field, names in wanted.items():
      if names:
        _column(names, rows[0].values, path, None, field)
  return rows


def _rows_of_anything(task, text, path):
  """Rows of a table, of plain lines with a text each, or of lines with a pair between tabs."""
  if task.layout and (rows := task.layout(text, path)) is not None:
    return rows
  table_format = tables.format_of(path)
  if table_format not in tables.FORMATS:
    first = text.split('\n', 1)[0].removesuffix('\r').split('\t')
    if text.lstrip().startswith('{'):
      table_format = 'jsonl'
    elif all(
      set(names) & set(first) for names in (task.columns.first, task.columns.second) if names
    ):
      table_format = 'tsv'
    else:
      return _plain_rows(task, text, path)
  return tables.parse_table(text, path, table_format)


def _plain_rows(task, text, path):
  lines = [line.removesuffix('\r') for line in text.removesuffix('\n').split('\n')] if text else []
  if not lines:
    raise UserError(f'{tables.shown(path)} is empty; give a text a line')
  if not task.columns.second:
    return [
      tables.Row(number, {task.columns.first[0]: line}) for number, line in enumerate(lines, 1)
    ]
  rows = []
  for number, line in enumerate(lines, 1):
    parts = line.split('\t')
    if len(parts) != 2:
      raise UserError(
        f'{tables.place(path, number)} has {len(parts)} fields where the task {task.name!r} wants two texts with a '
        'tab between'
      )
    rows.append(
      tables.Row(number, {task.columns.first[0]: parts[0], task.columns.second[0]: parts[1]})
    )
  return rows


def _column(candidates, present, path, line, field):
  """The first of some names that is there. Raises UserError where none is."""
  for name in candidates:
    if name in present:
      return name
  tables.need(candidates[:1], list(present), path, line, field)


def _word(row, path, column):
  value = row.values[column]
  return (
    value.strip()
    if isinstance(value, str)
    else None
    if value is None
    else tables.text_value(path, row, column).strip()
  )


def _target_word(row, path, columns):
  return _word(row, path, _column(columns.target, row.values, path, row.line, 'data.label'))


def _number(word, task, path, line):
  try:
    value = float(word)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise UserError(
      f'{tables.place(path, line)} has {word!r} where a number is wanted; mend it, or name another column with '
      'data.label'
    )
  if task.site_files and not task.low <= value <= task.high:
    raise UserError(
      f'{tables.place(path, line)} has the value {word}, outside of {task.low:g} to {task.high:g}; mend it'
    )
  return value

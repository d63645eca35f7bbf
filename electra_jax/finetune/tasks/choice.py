"""Multiple choice: which of several texts fits a text. The task `choice` on user tables."""

import collections
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from electra_jax.config.finetuning import TaskDataConfig
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import task_metrics
from electra_jax.finetune.report_blocks import Blocks
from electra_jax.finetune.tasks import tables, text_reports, text_rows, text_task
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

# In COPA 'question' is cause or effect, and in SWAG 'sent1' lacks how the endings begin.
_TEXTS = ('text', 'premise', 'startphrase', 'question', 'context', 'ctx', 'sentence', 'sent1')
_CHOICES = ('choices', 'options', 'endings', 'answers')
_NUMBERED = ('choice', 'ending', 'option', 'answer', 'alternative')
_LABELS = ('label', 'answer', 'correct', 'gold')
NONE = -1.0  # target of a row that fills up the choices of an example


class ChoiceExample(NamedTuple):
  """A text and what may follow it.

  Attributes:
    id: as in the file; None where it has none.
    text: of the question.
    choices: at least two texts.
    target: index of the right one, -1 where it is not known.
  """

  id: Any
  text: str
  choices: tuple[str, ...]
  target: int


class ChoiceColumns(NamedTuple):
  """Columns of a table: of the text, of the choices (one of lists, or several), of the label."""

  text: str
  choices: tuple[str, ...]
  label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(TaskDefaults):
  """Multiple choice; see `task.Task`. The class itself is the spec (`task.TaskSpec`).

  Each choice is a row `[CLS] text [SEP] choice [SEP]` with one logit. The loss is the cross-entropy
  over the choices of an example.

  Attributes:
    name: as in config.task.
    columns: of tables.
    splits: the splits that have data.
    most: the largest number of choices in the training data.
    notes: see `task.Task`.
    load: reads the examples of a split; None for a task that was restored without its data.
  """

  head: ClassVar[str] = 'choice'
  metric: ClassVar[str] = 'accuracy'
  recipe: ClassVar[TaskRecipe] = TaskRecipe()
  labels: ClassVar[tuple[str, ...]] = ()

  name: str
  columns: ChoiceColumns
  splits: tuple[str, ...] = ()
  most: int = 2
  notes: tuple[str, ...] = ()
  load: Callable[[str], list[ChoiceExample]] | None = None

  @classmethod
  def open(cls, name: str, data: TaskDataConfig, options: Options) -> Self:
    """Opens the task with the files of config.data.

    Args:
      name: of the task.
      data: config.data: train, dev and test; text, pair (the column of the choices, or several
        separated by commas) and label (of the right choice: its index from 0, a letter, its text).
      options: none.

    Raises:
      UserError: there is no training file, or it is malformed.
    """
    if 'train' not in tables.split_files(name, data):
      raise text_task.no_data(name, 'train', tables.split_files(name, data))
    task = cls.define(name, data, options, ())
    most = max(len(example.choices) for example in task.examples('train'))
    return dataclasses.replace(task, most=most)

  @classmethod
  def define(
    cls, name: str, data: TaskDataConfig, options: Options, labels: tuple[str, ...]
  ) -> Self:
    """The task for a model of another program; there are no labels. See `task.TaskSpec`."""
    files = tables.split_files(name, data)
    first = tables.read_table(files['train'], data.format)[0].values if 'train' in files else {}
    columns = _columns(data, first)
    cache: dict[str, list[ChoiceExample]] = {}

    def load(split: str) -> list[ChoiceExample]:
      if split not in cache:
        rows = tables.read_table(files[split], data.format)
        cache[split] = [_example(row, files[split], columns, split != 'test') for row in rows]
      return cache[split]

    shown = ', '.join(map(repr, columns.choices))
    note = f'columns: text {columns.text!r}, choices {shown}, label {columns.label!r}'
    notes = (note,) if files else ()
    return cls(name=name, columns=columns, splits=tuple(files), notes=notes, load=load)

  @classmethod
  def restore(cls, description: Mapping[str, Any], options: Options) -> Self:
    """The task of a description, without data."""
    text, choices, label = description['columns']
    columns = ChoiceColumns(text, tuple(choices), label)
    return cls(name=description['name'], columns=columns, most=description['most'])

  def describe(self) -> dict[str, Any]:
    """What `restore` reads, for JSON."""
    return {'name': self.name, 'columns': list(self.columns), 'most': self.most}

  @property
  def paired(self) -> bool:
    """Rows hold a text and a choice."""
    return True

  def examples(self, split: str) -> Sequence[ChoiceExample]:
    """The examples of a split, read once."""
    if split not in self.splits or self.load is None:
      raise text_task.no_data(self.name, split, self.splits)
    return self.load(split)

  def split_off(self, choose: ChooseDev) -> Self:
    """The task with some training examples as dev, all choices of equal texts on one side."""
    examples = self.examples('train')
    parts = parted(examples, choose([SplitKey(plain_text(one.text)) for one in examples]))
    load = self.load
    assert load is not None  # `examples` has used it
    others = tuple(split for split in self.splits if split != 'train')
    return dataclasses.replace(
      self,
      splits=('train', 'dev', *others),
      load=lambda split: parts[split] if split in parts else load(split),
    )

  def read(self, path: str) -> Sequence[ChoiceExample]:
    """Examples of a table, with or without labels."""
    rows = tables.read_table(path)
    return [_example(row, path, self.columns, required=False) for row in rows]

  def features(
    self, examples: Sequence[ChoiceExample], tokenizer: Tokenizer, max_length: int
  ) -> tuple[Features, dict[str, int]]:
    """Rows of all choices. Each example has as many, the last of them may be empty fillers."""
    count = max([self.most, *(len(example.choices) for example in examples)])
    texts: list[str] = []
    choices: list[str] = []
    targets: list[float] = []
    for example in examples:
      for i in range(count):
        exists = i < len(example.choices)
        choice = example.choices[i] if exists else ''
        texts.append(example.text if exists else '')
        choices.append(choice)
        right = np.nan if example.target < 0 else float(i == example.target)
        targets.append(right if exists else NONE)
    rows, counts = text_rows.token_rows(texts, choices, tokenizer, max_length)
    owners = np.repeat(np.arange(len(examples), dtype=np.int32), count)
    features = Features(
      rows, {'choice': np.array(targets, np.float32)}, owners, [None] * len(rows), choices=count
    )
    return features, counts

  def labeled(self, split: str, features: Features) -> bool:
    """Whether the right choice of all examples is known."""
    return not bool(np.isnan(features.targets['choice']).any())

  def score(
    self, split: str, examples: Sequence[ChoiceExample], features: Features, outputs: Outputs
  ) -> dict[str, float]:
    """`accuracy` of the examples whose right choice is known."""
    chosen = [int(np.argmax(p)) for p in self._probabilities(examples, features, outputs)]
    return _accuracy(examples, chosen)

  def _probabilities(
    self, examples: Sequence[ChoiceExample], features: Features, outputs: Outputs
  ) -> list[np.ndarray]:
    """Of the choices of each example."""
    logits = np.asarray(outputs['value'], np.float64).reshape(-1, features.choices)
    found: list[np.ndarray] = []
    for example, row in zip(examples, logits, strict=True):
      shares = np.exp(row[: len(example.choices)] - row[: len(example.choices)].max())
      found.append(shares / shares.sum())
    return found

  def report(
    self, examples: Sequence[ChoiceExample], features: Features, outputs: Outputs
  ) -> Blocks:
    """See `report_blocks.HasReport`."""
    return text_reports.choice_report(
      [example.text for example in examples],
      [example.choices for example in examples],
      [example.target for example in examples],
      self._probabilities(examples, features, outputs),
    )

  def constant(self) -> dict[str, float]:
    """Accuracy on dev of the choice that is right most often in training, by its index."""
    targets = collections.Counter(example.target for example in self.examples('train'))
    most = targets.most_common(1)[0][0]
    dev = self.examples('dev')
    return _accuracy(dev, [min(most, len(example.choices) - 1) for example in dev])

  def predictions(
    self, examples: Sequence[ChoiceExample], features: Features, outputs: Outputs
  ) -> list[dict[str, Any]]:
    """The text, its choices, the `label` (index) of the likeliest one, and `probabilities`."""
    result: list[dict[str, Any]] = []
    found = self._probabilities(examples, features, outputs)
    for i, (example, shares) in enumerate(zip(examples, found, strict=True)):
      one: dict[str, Any] = {'index': i} | ({} if example.id is None else {'id': example.id})
      best = int(np.argmax(shares))
      one |= {'text': example.text, 'choices': list(example.choices), 'label': best}
      result.append(one | {'choice': example.choices[best], 'probabilities': shares.tolist()})
    return result


CHOICE = Choice


def _accuracy(examples: Sequence[ChoiceExample], chosen: Sequence[int]) -> dict[str, float]:
  known = [i for i, example in enumerate(examples) if example.target >= 0]
  gold = [examples[i].target for i in known]
  return {'accuracy': task_metrics.accuracy(gold, [chosen[i] for i in known])}


#### Tables ####


def _columns(data: TaskDataConfig, present: Collection[str]) -> ChoiceColumns:
  """The columns that config.data names, or else usual ones."""

  def chosen(given: str, default: str, names: Sequence[str]) -> str:
    if given != default or given in present:
      return given
    return next((name for name in names if name in present), names[0])

  choices = tuple(name.strip() for name in data.pair.split(',') if name.strip())
  if not choices:
    numbered = [
      tuple(sorted(name for name in present if name.rstrip('0123456789') == stem and name != stem))
      for stem in _NUMBERED
    ]
    lists = next(((name,) for name in _CHOICES if name in present), ())
    choices = lists or max(numbered, key=len, default=()) or _CHOICES[:1]
  return ChoiceColumns(
    chosen(data.text, TaskDataConfig.text, _TEXTS),
    choices,
    chosen(data.label, TaskDataConfig.label, _LABELS),
  )


def _example(row: tables.Row, path: str, columns: ChoiceColumns, required: bool) -> ChoiceExample:
  values, where = row.values, tables.place(path, row.line)
  for names, field in (((columns.text,), 'data.text'), (columns.choices, 'data.pair')):
    tables.require_columns(names, list(values), path, row.line, field)
  if len(columns.choices) > 1:
    choices = [
      tables.text_value(path, row, name)
      for name in columns.choices
      if values[name] not in (None, '')
    ]
  else:
    given = values[columns.choices[0]]
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
      raise UserError(
        f'{where} has no list of texts in its column {columns.choices[0]!r}; expected one, or set '
        'data.pair to several columns separated by commas'
      )
    choices = given
  if len(choices) < 2:
    raise UserError(f'{where} has {len(choices)} choices; expected at least two')
  label = values.get(columns.label)
  if tables.is_missing(label):
    if required:
      raise text_task.missing_label(row, path, columns.label)
    target = -1
  else:
    target = _index(str(label).strip(), choices)
    if target < 0:
      raise UserError(
        f'{where} has the label {label!r}; expected the number of one of its {len(choices)} '
        'choices from 0, a letter from A, or its text'
      )
  name = next((values[key] for key in text_task.IDS if key in values), None)
  return ChoiceExample(name, tables.text_value(path, row, columns.text), tuple(choices), target)


def _index(label: str, choices: Sequence[str]) -> int:
  """The index of the right choice; -1 where the label names none."""
  if label in choices:
    return list(choices).index(label)
  if len(label) == 1 and label.upper() in 'ABCDEFGHIJ':
    number = ord(label.upper()) - ord('A')
  else:
    label = tables.plain_label(label)
    number = int(label) if label.isascii() and label.isdecimal() else -1
  return number if number < len(choices) else -1

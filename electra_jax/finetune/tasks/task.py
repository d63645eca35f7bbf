"""What a task provides to the fine-tuning programs.

`registry.TASKS` maps the name of a task to its spec (`TaskSpec`). A spec opens the task with its
data. The open task (`Task`) has examples, rows for the model, metrics and predictions. The programs
do not branch on names of tasks.
"""

import collections
import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

import numpy as np

from electra_jax.config.declarations import Config
from electra_jax.config.finetuning import TaskDataConfig
from electra_jax.data.tokenizers.tokenization import Tokenizer

Options: TypeAlias = Config | None  # of a registered task

# Padding of the targets that have one value per token. Targets with one value per row are padded
# with 0.
TARGET_PADDING = {'tags': -1, 'allowed': 0}


@dataclasses.dataclass(frozen=True)
class TaskRecipe:
  """Settings of training that a config may leave to the task.

  Source: Clark et al. 2020, appendix B, and configure_finetuning.py of the original program.

  Attributes:
    epochs: passes over the training data.
    max_length: tokens per row at most, [CLS] and [SEP] included.
  """

  epochs: float = 3.0
  max_length: int = 128


@dataclasses.dataclass(frozen=True)
class Features:
  """Rows for the model, of different lengths; `batches.assemble` pads them.

  Attributes:
    token_ids: int32 [length] for each row: [CLS] text [SEP], or [CLS] first [SEP] second [SEP].
      Tokens after the first [SEP] have token type 1.
    targets: what the head predicts, by name:
      classification: `label` int32 [rows], -1 where there is none.
      multilabel: `labels` float32 [rows, labels], 1 for each of a row's labels; nan where they are
        not known.
      regression: `value` float32 [rows], scaled so that the training range is [0, 1]; nan where
        there is none.
      choice: `choice` float32 [rows], 1 for the right choice of an example and 0 for others, nan
        where it is not known, -1 for rows that only fill up its choices.
      tagging: `tags`, a list of int32 [length]: the word's label at its first token, -1 elsewhere.
      span: `start`, `end` int32 [rows], first and last token of the answer, 0 and 0 ([CLS]) where
        the row holds none; `impossible` float32 [rows], 1 where it holds none; `allowed`, a list of
        int32 [length], 1 where an answer may start or end, [CLS] included.
    examples: int32 [rows], ascending: the index of the example that each row is part of. A long
      context makes several rows.
    notes: for each row, what the task needs to interpret outputs, such as character offsets.
    choices: rows per example, which are in one training batch, for the choice head.
  """

  token_ids: list[np.ndarray]
  targets: dict[str, Any]
  examples: np.ndarray
  notes: list[Any]
  choices: int = 1

  def __len__(self) -> int:
    return len(self.token_ids)


# The model's outputs for features, in the order of the rows: float32 and int32 arrays by name.
#   classification, multilabel: `logits` [rows, labels]
#   regression, choice: `value` [rows]
#   tagging: `logits`, a list of [length, labels]
#   span: `start_log_probs`, `start_index` [rows, beam]; `end_log_probs`, `end_index`
#     [rows, beam, beam]: for the i-th likeliest start, the likeliest ends given it; `impossible`
#     [rows]: log-odds that the row holds no answer
Outputs = dict[str, Any]


class Task(Protocol):
  """An open task. `TaskDefaults` implements the parts that most tasks share.

  A `split` is 'train', 'dev', 'test' or another name that the task defines.
  """

  @property
  def name(self) -> str:
    """As in config.task."""

  @property
  def head(self) -> str:
    """Of model.heads.KINDS."""

  @property
  def labels(self) -> tuple[str, ...]:
    """In the order of the logits; () for regression and span."""

  @property
  def metric(self) -> str:
    """The metric of `score` that trials are compared by; larger is better."""

  @property
  def recipe(self) -> TaskRecipe:
    """The default settings of training."""

  @property
  def splits(self) -> tuple[str, ...]:
    """The splits that have data."""

  @property
  def paired(self) -> bool:
    """Whether rows hold two texts."""

  @property
  def max_answer(self) -> int:
    """Tokens of an answer at most, for the span head."""

  @property
  def low(self) -> float:
    """The value that is scaled to 0, for the regression head."""

  @property
  def high(self) -> float:
    """The value that is scaled to 1, for the regression head."""

  @property
  def synonyms(self) -> Mapping[str, int]:
    """Further names of labels and the label's index."""

  @property
  def logistic(self) -> bool:
    """Whether the values of the regression head are log-odds, trained by binary cross-entropy."""

  @property
  def notes(self) -> Sequence[str]:
    """Phrases about what was detected in the data, for the start of a run."""

  def examples(self, split: str) -> Sequence[Any]:
    """The examples of a split, checked. 'train' includes augmented examples (swapped pairs).

    Raises:
      UserError: the data is missing or malformed.
    """

  def read(self, path: str) -> Sequence[Any]:
    """Examples of a user's file, labeled or not, in any format that the task reads.

    Args:
      path: '-' for standard input.

    Raises:
      UserError: the file cannot be read or is malformed.
    """

  def read_labeled(self, path: str) -> tuple[Sequence[Any], collections.Counter[str]]:
    """Examples as of `read`, and the labels that the task does not have, which are no error.

    Returns:
      The examples; those with such a label have none. And the number of examples by such a label.
    """

  def features(
    self, examples: Sequence[Any], tokenizer: Tokenizer, max_length: int
  ) -> tuple[Features, dict[str, int]]:
    """Rows of at most `max_length` tokens.

    Returns:
      The rows, and counts of what was truncated or skipped, keyed by a short description.
    """

  def score(
    self, split: str, examples: Sequence[Any], features: Features, outputs: Outputs
  ) -> dict[str, float]:
    """Metrics of labeled examples, as fractions (0.912, not 91.2); nan where undefined."""

  def labeled(self, split: str, features: Features) -> bool:
    """Whether `score` can be computed for a split."""

  def predictions(
    self, examples: Sequence[Any], features: Features, outputs: Outputs
  ) -> list[dict[str, Any]]:
    """One JSON object per example, in order."""

  def submission(
    self, split: str, examples: Sequence[Any], features: Features, outputs: Outputs
  ) -> dict[str, bytes]:
    """Files for the task's evaluation site or script, name -> content; {} where it has none."""

  def submission_folder(self, split: str) -> str:
    """The folder for the files of `submission`, inside the folder of predictions."""

  def constant(self) -> dict[str, float]:
    """Metrics on dev of a constant answer: the most frequent label, or the mean, of train."""

  def tuned(self, metrics: Mapping[str, float]) -> 'Task':
    """The task with the settings that are best for the dev set, according to its metrics there."""

  def describe(self) -> dict[str, Any]:
    """What `TaskSpec.restore` needs to make the task again without its data, for JSON."""


@runtime_checkable
class HasTexts(Protocol):
  """A task whose texts are checked for characters that the tokenizer loses."""

  def texts(
    self, examples: Sequence[Any], features: Features, tokenizer: Tokenizer
  ) -> list[tuple[str, int]]:
    """The texts of examples, each with the number of its tokens that are in the rows.

    Args:
      examples: of the task.
      features: the rows of the examples.
      tokenizer: that made the rows.
    """


class SplitKey(NamedTuple):
  """How an example counts where dev is split off the training data.

  Attributes:
    group: examples of one group are on one side, such as equal texts or questions on one context.
    labels: indices of its labels, whose shares dev has, too; () for none.
  """

  group: Hashable
  labels: tuple[int, ...] = ()


# From the keys of the training examples to the indices of those that become dev.
ChooseDev: TypeAlias = Callable[[Sequence[SplitKey]], np.ndarray]


@runtime_checkable
class SplitsOffDev(Protocol):
  """A task that can make some of its training examples its dev data."""

  def split_off(self, choose: ChooseDev) -> Task:
    """The task without dev data, with some of the training examples as dev.

    Args:
      choose: which ones.
    """


E = TypeVar('E')


def parted(examples: Sequence[E], dev: np.ndarray) -> dict[str, list[E]]:
  """The examples of train and dev.

  Args:
    examples: all of them.
    dev: indices of those of dev.
  """
  chosen = set(dev.tolist())
  return {
    'train': [example for i, example in enumerate(examples) if i not in chosen],
    'dev': [examples[i] for i in sorted(chosen)],
  }


def plain_text(text: str) -> str:
  """A text without differences of case and white space, by which equal texts are found."""
  return ' '.join(text.split()).casefold()


class TaskSpec(Protocol):
  """A kind of task, as registry.TASKS holds it. Subclasses of `TableTask` are specs, too."""

  @property
  def head(self) -> str:
    """Of model.heads.KINDS."""

  @property
  def fixed_labels(self) -> bool:
    """Whether the labels are defined by the task, not read from its data."""

  @property
  def published_metric(self) -> str:
    """The metric that counts in the GLUE average of the results table; '' for other tasks."""

  def open(self, name: str, data: TaskDataConfig, options: Options) -> Task:
    """Opens the task with its data.

    Args:
      name: under which the spec is registered.
      data: config.data.
      options: config.task_options, as the dataclass that is registered; None for no options.

    Raises:
      UserError: there is no data, or it is malformed.
    """

  def define(
    self, name: str, data: TaskDataConfig, options: Options, labels: tuple[str, ...]
  ) -> Task:
    """The task for a model that was trained by another program; data may be missing.

    Args:
      name: under which the spec is registered.
      data: config.data.
      options: as in `open`.
      labels: of the model, in the order of its logits; a task with fixed labels ignores them.

    Raises:
      UserError: the task cannot have these labels, or data that is named cannot be read.
    """

  def restore(self, description: Mapping[str, Any], options: Options) -> Task:
    """The task of a description that `Task.describe` returned, without data."""


class TaskDefaults:
  """The parts of `Task` that most tasks share."""

  name: str  # of the subclass
  fixed_labels: ClassVar[bool] = False
  published_metric: ClassVar[str] = ''

  max_answer = 1
  low = 0.0
  high = 1.0
  logistic: ClassVar[bool] = False

  @property
  def notes(self) -> Sequence[str]:
    """None."""
    return ()

  @property
  def paired(self) -> bool:
    """Whether rows hold two texts: they do not."""
    return False

  @property
  def synonyms(self) -> Mapping[str, int]:
    """Further names of labels and the label's index."""
    return {}

  def read(self, path: str) -> Sequence[Any]:
    """Examples of a file, which each task defines."""
    raise NotImplementedError

  def read_labeled(self, path: str) -> tuple[Sequence[Any], collections.Counter[str]]:
    """The examples of `read`; all labels are known."""
    return self.read(path), collections.Counter()

  def labeled(self, split: str, features: Features) -> bool:
    """Whether all rows have a label or value, or any word has a tag."""
    targets = features.targets
    if 'label' in targets:
      return bool((np.asarray(targets['label']) >= 0).all())
    for name in ('value', 'labels'):
      if name in targets:
        return bool(np.isfinite(targets[name]).all())
    return 'tags' not in targets or any((tags >= 0).any() for tags in targets['tags'])

  def submission(
    self, split: str, examples: Sequence[Any], features: Features, outputs: Outputs
  ) -> dict[str, bytes]:
    """No files."""
    return {}

  def submission_folder(self, split: str) -> str:
    """A folder per task and split."""
    return f'{self.name}.{split}'

  def constant(self) -> dict[str, float]:
    """No metrics of a constant answer."""
    return {}

  def tuned(self, metrics: Mapping[str, float]) -> Self:
    """The task as it is."""
    return self

"""What a task is to the fine-tuning programs: examples, features for the model, figures, predictions.

Each family of tasks is a file beside this one with a frozen dataclass that has what `Task` lists. The programs know no task by name.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from electra_jax.data.tokenizers.tokenization import Tokenizer

# What a position past a row's end holds of a target that has one value a token; targets of one value a row are padded with 0.
FILL = {'tags': -1, 'allowed': 0}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a task is trained with unless the config says otherwise (Clark et al. 2020, appendix B, and the original's configure_finetuning.py)."""

  epochs: float = 3.0
  max_length: int = 128  # tokens of a row at most, [CLS] and [SEP] included


@dataclasses.dataclass(frozen=True)
class Features:
  """Rows for the model, ragged; batches pad them.

  Attributes:
    token_ids: int32 [length] of each row: [CLS] text [SEP], or [CLS] first [SEP] second [SEP]. What follows the first [SEP] is of type 1.
    targets: what the head learns, by name:
      classification: `label` int32 [rows], -1 where there is none.
      regression: `value` float32 [rows], in [0, 1] over the training range; nan where there is none.
      tagging: `tags` a list of int32 [length]: the word's label at its first token, -1 elsewhere.
      span: `start`, `end` int32 [rows], tokens of the answer, both included, 0 and 0 ([CLS]) where the row holds none;
        `impossible` float32 [rows], 1 where it holds none; `allowed` a list of int32 [length], 1 where an answer may begin or end,
        [CLS] included.
    examples: int32 [rows], ascending: which of the examples each row is of. Long contexts make several.
    notes: of each row, what the task needs to make sense of outputs, such as character offsets.
  """

  token_ids: list[np.ndarray]
  targets: dict[str, Any]
  examples: np.ndarray
  notes: list

  def __len__(self) -> int:
    return len(self.token_ids)


# What the model says of features, in their order, float32 and int32 arrays by name, as fine-tuning and prediction hand them to a task:
#   classification: `logits` [rows, labels]
#   regression: `value` [rows]
#   tagging: `logits`, a list of [length, labels]
#   span: `start_log_probs`, `start_index` [rows, beam]; `end_log_probs`, `end_index` [rows, beam, beam]: of the i-th likeliest start the
#     likeliest ends given it; `impossible` [rows]: log-odds that the row holds no answer
Outputs = dict[str, Any]


class Task(Protocol):
  """One task, its data opened. All of its attributes and methods; `split` is 'train', 'dev', 'test' or a task's own further name.

  Attributes:
    name: as config.task has it.
    head: classification, regression, tagging or span.
    labels: of classification and tagging, in the order of the logits; () otherwise.
    metric: the figure of `score` that runs are compared by; larger is better.
    recipe: what it is trained with by default.
    splits: names of the parts there are data for.
  """

  name: str
  head: str
  labels: tuple[str, ...]
  metric: str
  recipe: Recipe
  splits: tuple[str, ...]

  def examples(self, split: str) -> Sequence[Any]:
    """The examples of a part, read and checked. 'train' has what is added to it (swapped pairs). Raises UserError for broken data."""

  def read(self, path: str) -> Sequence[Any]:
    """Examples of a person's file ('-': standard input), with or without labels, in any layout that the task reads. Raises UserError."""

  def features(
    self, examples: Sequence[Any], tokenizer: Tokenizer, max_length: int
  ) -> tuple[Features, dict[str, int]]:
    """Rows of at most `max_length` tokens, and counts of what was cut off or left out, by a few plain words each."""

  def score(
    self, split: str, examples: Sequence[Any], features: Features, outputs: Outputs
  ) -> dict[str, float]:
    """Figures of labelled examples, by name, as fractions (0.912, not 91.2); nan where one is undefined."""

  def predictions(
    self, examples: Sequence[Any], features: Features, outputs: Outputs
  ) -> list[dict]:
    """One JSON object an example, in order."""

  def submission(
    self, split: str, examples: Sequence[Any], features: Features, outputs: Outputs
  ) -> dict[str, bytes]:
    """Files for the task's own evaluation site or script, name -> content; {} where it has none."""

  def constant(self) -> dict[str, float]:
    """What always giving the training set's most frequent (or mean) answer scores on dev, for the figures that say so."""

  def describe(self) -> dict:
    """All that `restore` of the same file needs to make the task again without its data, as JSON has it."""

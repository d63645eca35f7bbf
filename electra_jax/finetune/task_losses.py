"""Characters of a task's examples that the tokenizer loses, or that rows are too short for."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from electra_jax.config import FinetuningConfig
from electra_jax.console import say
from electra_jax.data.tokenizers import character_losses, loss_report
from electra_jax.data.tokenizers.character_losses import CharacterLosses
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.finetune.tasks.task import Features, HasTexts, Task

# Characters of the examples that are compared with their tokens.
SAMPLE = 300_000


class Split(NamedTuple):
  """A part of a task's data.

  Attributes:
    examples: the examples, of the task's own type.
    features: rows for the model.
    counts: what was truncated or skipped, by a short description; None where it was not counted.
    losses: characters that the tokenizer loses; None where they were not counted.
  """

  examples: Sequence[Any]
  features: Features
  counts: Mapping[str, int] | None = None
  losses: CharacterLosses | None = None


def count_losses(
  task: Task, examples: Sequence[Any], features: Features, tokenizer: Tokenizer
) -> CharacterLosses:
  """Counts what is lost of examples, in a sample of them where they are many.

  Args:
    task: the task. One of user code without the method `texts` has nothing counted.
    examples: of the task.
    features: their rows.
    tokenizer: that made the rows.
  """
  if not isinstance(task, HasTexts):
    return CharacterLosses()
  texts = task.texts(examples, features, tokenizer)
  total = sum(len(text) for text, _ in texts)
  if total > SAMPLE:
    chosen = np.linspace(0, len(texts) - 1, max(1, SAMPLE * len(texts) // total)).astype(int)
    texts = [texts[i] for i in chosen]
  return character_losses.count(
    tokenizer, [text for text, _ in texts], [used for _, used in texts], threads=None
  )


def report_losses(
  config: FinetuningConfig,
  task: Task,
  name: str,
  split: Split,
  tokenizer: Tokenizer,
) -> CharacterLosses:
  """Prints what is lost of a split, and returns it.

  Args:
    config: of the run.
    task: the task.
    name: of the split.
    split: its examples and rows.
    tokenizer: that made the rows.

  Raises:
    UserError: much is lost, and `config.allow_loss` is not set.
  """
  losses = count_losses(task, split.examples, split.features, tokenizer)
  what = f'the {name} data of {task.name}'
  if losses.characters:
    say('', f'{name}: of {losses.characters:,} characters {loss_report.loss_summary(losses)}')
  if not config.allow_loss:
    check_model_losses(losses, what, '--config.allow_loss=True')
  for warning in model_loss_warnings(losses, what):
    say('warning', warning, always=True)
  return losses


def model_loss_warnings(losses: CharacterLosses, what: str) -> list[str]:
  """Sentences about lost and truncated characters; empty where these are few.

  Args:
    losses: of `count_losses`.
    what: of which text.
  """
  return loss_report.loss_sentences(losses, what, loss_report.OTHER_MODEL)


def check_model_losses(losses: CharacterLosses, what: str, flag: str) -> None:
  """Refuses text of which much is lost.

  Args:
    losses: of `count_losses`.
    what: of which text.
    flag: that continues anyway.

  Raises:
    UserError: see `loss_report.require_kept`.
  """
  loss_report.require_kept(losses, what, loss_report.OTHER_MODEL, flag)

"""The parts of a task's data that a run trains and evaluates on, as rows for the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from electra_jax.config import FinetuningConfig
from electra_jax.console import say
from electra_jax.data.store.permutation import permutation
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import task_losses
from electra_jax.finetune.task_losses import Split
from electra_jax.finetune.tasks.task import Task

SAMPLE = 64  # examples by which a part counts as labeled, before all of it is tokenized


def length_limit(config: FinetuningConfig, task: Task) -> int:
  """Most tokens of a row: config.max_length, or the task's default."""
  return config.max_length or task.recipe.max_length


def training_split(config: FinetuningConfig, task: Task, tokenizer: Tokenizer) -> Split:
  """Tokenizes the training examples of a task, or some of them by config.train_examples."""
  examples = task.examples('train')
  if 0 < config.train_examples < len(examples):
    chosen = np.sort(permutation(np.arange(config.train_examples), len(examples), config.seed, 0))
    examples = [examples[i] for i in chosen]
    say('', f'{config.train_examples:,} of the training examples, by config.train_examples')
  return _tokenized(config, task, tokenizer, 'train', examples)


def evaluation_splits(
  config: FinetuningConfig, task: Task, tokenizer: Tokenizer
) -> Mapping[str, Split]:
  """Tokenizes the parts that trials are evaluated on: 'dev', and others that are labeled."""
  splits = {'dev': _tokenized(config, task, tokenizer, 'dev', task.examples('dev'))}
  for name in task.splits:
    if name in ('train', 'dev'):
      continue
    examples = task.examples(name)
    sample, _ = task.features(examples[:SAMPLE], tokenizer, length_limit(config, task))
    if not task.labeled(name, sample):
      continue
    split = _tokenized(config, task, tokenizer, name, examples)
    if task.labeled(name, split.features):
      splits[name] = split
  return splits


def _tokenized(
  config: FinetuningConfig,
  task: Task,
  tokenizer: Tokenizer,
  name: str,
  examples: Sequence[Any],
) -> Split:
  """Tokenizes examples, and prints what was truncated or left out."""
  features, notes = task.features(examples, tokenizer, length_limit(config, task))
  if len(features) == 0:
    raise UserError(f'the {name} data of {task.name} has no rows; expected at least one.')
  counted = ', '.join(f'{count:,} {what}' for what, count in notes.items() if count)
  if counted:
    say('', f'{name}: {counted}')
  split = Split(examples, features, notes)
  losses = task_losses.report_losses(config, task, name, split, tokenizer)
  return split._replace(losses=losses)

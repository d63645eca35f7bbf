"""The side of the Hugging Face Trainer in benchmarks/finetuning.py.

It reads the same examples as our side, and does all else with transformers: tokenizer, rows, model,
training and predictions.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from electra_jax.finetune.tasks.task import Task
from electra_jax.training.schedules import WarmupDecay

# Names that configs of transformers have for dropout in the encoder, and in the head.
ENCODER_DROPOUT = (
  'hidden_dropout_prob',
  'attention_probs_dropout_prob',
  'embedding_dropout',
  'mlp_dropout',
  'attention_dropout',
)
MAX_ANSWER = 30
N_BEST = 20
IGNORED = -100  # a label that has no loss

Rows = list[dict[str, Any]]
Tokenizer = transformers.PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Settings that both sides share.

  Attributes:
    rate: learning rate, times linear warm-up and linear decay from the first step, see WarmupDecay.
    seed: of head, order and dropout.
    epochs: passes over the training examples.
    batch_size: rows per step.
    max_length: tokens of a row, at most.
    warmup: fraction of the steps.
    weight_decay: decoupled, not applied to biases and norms.
    dropout: of the encoder's layers and attention probabilities, and of the head.
    stride: questions: tokens that two windows on a context share (here), or from one window to the
      next (our side).
  """

  rate: float
  seed: int
  epochs: float
  batch_size: int = 16
  max_length: int = 128
  warmup: float = 0.1
  weight_decay: float = 0.01
  dropout: float = 0.1
  stride: int = 48


@dataclasses.dataclass(frozen=True)
class Kind:
  """How the Trainer treats tasks of one kind of head.

  Attributes:
    model: the class of the model.
    collator: pads the rows of a batch.
    rows: `(task, examples, tokenizer, recipe) -> rows`, with labels.
    predictions: `(task, examples, rows, logits) -> one prediction per example`.
  """

  model: Any
  collator: Any
  rows: Callable[..., Rows]
  predictions: Callable[..., list[Any]]


class _Trainer(transformers.Trainer):
  """The Trainer with our schedule; its own decays from the end of the warm-up."""

  def create_scheduler(
    self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
  ) -> torch.optim.lr_scheduler.LRScheduler:
    """The rates of `WarmupDecay`, where the Trainer has not made its scheduler yet."""
    if self.lr_scheduler is None:
      warmup = self.args.get_warmup_steps(num_training_steps)
      factor = WarmupDecay(1.0, warmup, num_training_steps)
      self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer or self.optimizer, lambda step: float(factor(step))
      )
    return self.lr_scheduler


def train_and_predict(
  encoder: pathlib.Path, task: Task, splits: Mapping[str, Sequence[Any]], recipe: Recipe
) -> dict[str, list[Any]]:
  """Fine-tunes an encoder with the Trainer.

  Args:
    encoder: folder of the encoder for transformers.
    task: of electra_jax, whose labels and kind of head are used.
    splits: examples of the task: 'train', and others to predict.
    recipe: the settings.

  Returns:
    Predictions by split: indices of labels, values, lists of tags, or answers.
  """
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  transformers.set_seed(recipe.seed)
  torch.set_num_threads(1)
  kind = KINDS[task.head]
  tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
  rows = {name: kind.rows(task, examples, tokenizer, recipe) for name, examples in splits.items()}
  trainer = _Trainer(
    model=_model(encoder, task, kind, recipe),
    args=_arguments(recipe, len(rows['train'])),
    data_collator=kind.collator(tokenizer),
    train_dataset=_for_model(rows['train']),
  )
  trainer.train()
  found = {}
  for name, examples in splits.items():
    if name != 'train':
      logits = trainer.predict(_for_model(rows[name])).predictions
      found[name] = kind.predictions(task, examples, rows[name], logits)
  return found


def _model(
  encoder: pathlib.Path, task: Task, kind: Kind, recipe: Recipe
) -> transformers.PreTrainedModel:
  """The encoder with a new head."""
  config = transformers.AutoConfig.from_pretrained(encoder)
  for name in ENCODER_DROPOUT:
    if hasattr(config, name):
      setattr(config, name, recipe.dropout)
  config.classifier_dropout = recipe.dropout
  config.num_labels = 2 if task.head == 'span' else max(len(task.labels), 1)
  model = kind.model.from_config(config)
  # Not from_pretrained of the whole model, which would also take a head that the folder has.
  pretrained = transformers.AutoModel.from_pretrained(encoder, config=config).state_dict()
  missing = model.base_model.load_state_dict(pretrained, strict=False).missing_keys
  if missing:
    raise ValueError(f'{encoder} lacks {missing}; expected an encoder of {type(model).__name__}.')
  return model


def _arguments(recipe: Recipe, rows: int) -> transformers.TrainingArguments:
  """The Trainer's arguments, all of those that our config has a counterpart of."""
  steps = int(-(-rows // recipe.batch_size) * recipe.epochs)
  return transformers.TrainingArguments(
    output_dir='unused',
    per_device_train_batch_size=recipe.batch_size,
    per_device_eval_batch_size=64,
    num_train_epochs=recipe.epochs,
    learning_rate=recipe.rate,
    warmup_steps=int(recipe.warmup * steps),
    optim='adamw_torch',
    weight_decay=recipe.weight_decay,
    adam_beta2=0.999,
    adam_epsilon=1e-8,
    max_grad_norm=1.0,
    seed=recipe.seed,
    save_strategy='no',
    logging_strategy='no',
    report_to='none',
    disable_tqdm=True,
    use_cpu=True,
    remove_unused_columns=False,
  )


def _for_model(rows: Rows) -> Rows:
  """The parts of rows that the model takes."""
  return [{name: x for name, x in row.items() if not name.startswith('_')} for row in rows]


#### Texts ####


def _text_rows(task: Task, examples: Sequence[Any], tokenizer: Tokenizer, recipe: Recipe) -> Rows:
  """Rows of texts or pairs, with the index of the label, or the value in [0, 1]."""
  rows = []
  for example in examples:
    row = dict(
      tokenizer(example.first, example.second, truncation=True, max_length=recipe.max_length)
    )
    row['labels'] = example.target
    if task.head == 'regression':
      row['labels'] = (example.target - task.low) / (task.high - task.low)
    rows.append(row)
  return rows


def _label_predictions(
  task: Task, examples: Sequence[Any], rows: Rows, logits: np.ndarray
) -> list[int]:
  return np.asarray(logits).argmax(-1).tolist()


def _value_predictions(
  task: Task, examples: Sequence[Any], rows: Rows, logits: np.ndarray
) -> list[float]:
  return np.asarray(logits)[:, 0].tolist()


#### Tags ####


def _tag_rows(task: Task, examples: Sequence[Any], tokenizer: Tokenizer, recipe: Recipe) -> Rows:
  """Rows of words; the first token of each has the label. Longer sentences are several rows."""
  index = {label: i for i, label in enumerate(task.labels)}
  rows = []
  for number, example in enumerate(examples):
    encoded = tokenizer(
      list(example.tokens),
      is_split_into_words=True,
      truncation=True,
      max_length=recipe.max_length,
      return_overflowing_tokens=True,
    )
    last = -1
    for part, ids in enumerate(encoded['input_ids']):
      first = []  # the word that begins at each token
      for word in encoded.word_ids(part):
        begins = word is not None and word > last
        first.append(word if begins else None)
        last = max(last, word) if begins else last
      labels = [IGNORED if word is None else index[example.tags[word]] for word in first]
      rows.append({'input_ids': ids, 'labels': labels, '_example': number, '_words': first})
      rows[-1]['attention_mask'] = [1] * len(ids)
  return rows


def _tag_predictions(
  task: Task, examples: Sequence[Any], rows: Rows, logits: np.ndarray
) -> list[list[str]]:
  tags = [[task.labels[0]] * len(example.tokens) for example in examples]
  for row, scores in zip(rows, np.asarray(logits), strict=True):
    for word, best in zip(row['_words'], scores.argmax(-1), strict=False):
      if word is not None:
        tags[row['_example']][word] = task.labels[best]
  return tags


#### Questions ####


def _span_rows(task: Task, examples: Sequence[Any], tokenizer: Tokenizer, recipe: Recipe) -> Rows:
  """Windows on the contexts, with the tokens of the first answer, or [CLS] where they lack it."""
  rows = []
  for number, example in enumerate(examples):
    encoded = tokenizer(
      example.question,
      example.context,
      truncation='only_second',
      max_length=recipe.max_length,
      stride=recipe.stride,
      padding='max_length',
      return_overflowing_tokens=True,
      return_offsets_mapping=True,
    )
    begin, end = example.starts[0], example.starts[0] + len(example.answers[0])
    for part in range(len(encoded['input_ids'])):
      sides = encoded.sequence_ids(part)
      offsets = [
        tuple(span) if side == 1 else None
        for span, side in zip(encoded['offset_mapping'][part], sides, strict=True)
      ]
      start = [i for i, span in enumerate(offsets) if span and span[0] <= begin < span[1]]
      last = [i for i, span in enumerate(offsets) if span and span[0] < end <= span[1]]
      inside = bool(start and last)
      row = {
        name: encoded[name][part]
        for name in ('input_ids', 'attention_mask', 'token_type_ids')
        if name in encoded
      }
      row['start_positions'] = start[0] if inside else 0
      row['end_positions'] = last[0] if inside else 0
      rows.append(row | {'_example': number, '_offsets': offsets})
  return rows


def _span_predictions(
  task: Task, examples: Sequence[Any], rows: Rows, logits: tuple[np.ndarray, np.ndarray]
) -> list[str]:
  """The span of the highest sum of both logits, of the best starts and ends of all windows."""
  best = [(-np.inf, '')] * len(examples)
  for row, starts, ends in zip(rows, *logits, strict=True):
    context, offsets = examples[row['_example']].context, row['_offsets']
    for start in np.argsort(-starts)[:N_BEST]:
      for end in np.argsort(-ends)[:N_BEST]:
        if not (offsets[start] and offsets[end] and 0 <= end - start < MAX_ANSWER):
          continue
        score = float(starts[start] + ends[end])
        if score > best[row['_example']][0]:
          best[row['_example']] = score, context[offsets[start][0] : offsets[end][1]]
  return [text for _, text in best]


KINDS = {
  'classification': Kind(
    transformers.AutoModelForSequenceClassification,
    transformers.DataCollatorWithPadding,
    _text_rows,
    _label_predictions,
  ),
  'regression': Kind(
    transformers.AutoModelForSequenceClassification,
    transformers.DataCollatorWithPadding,
    _text_rows,
    _value_predictions,
  ),
  'tagging': Kind(
    transformers.AutoModelForTokenClassification,
    transformers.DataCollatorForTokenClassification,
    _tag_rows,
    _tag_predictions,
  ),
  'span': Kind(
    transformers.AutoModelForQuestionAnswering,
    transformers.DataCollatorWithPadding,
    _span_rows,
    _span_predictions,
  ),
}

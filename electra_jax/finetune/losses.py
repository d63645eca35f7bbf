"""The loss of each head, as sums that are divided by counts over the global batch."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

_LOWEST = -1e9  # logit of rows that fill up the choices of an example
IMPOSSIBLE_WEIGHT = 0.5  # answerable_weight in the original's configure_finetuning.py


@dataclasses.dataclass(frozen=True)
class LossSettings:
  """Settings of the losses.

  Attributes:
    impossible_weight: span: weight of the loss of whether there is an answer.
    label_smoothing: classification: probability that is spread over all labels.
    class_weights: classification: the weight of each label; () for equal ones.
    choices: choice: rows per example.
    logistic: regression: whether values are log-odds, with binary cross-entropy as the loss.
    row_average: `loss_denominator` of the training set per row, see `training_denominator`; 0: the
      loss of a batch is divided by `loss_denominator` of the batch.
  """

  impossible_weight: float = IMPOSSIBLE_WEIGHT
  label_smoothing: float = 0.0
  class_weights: tuple[float, ...] = ()
  logistic: bool = False
  choices: int = 1
  row_average: float = 0.0


DEFAULTS = LossSettings()


def loss_denominator(
  head: str, batch: Mapping[str, jax.Array], settings: LossSettings = DEFAULTS
) -> jax.Array:
  """What the sum of the losses of some rows is divided by for their mean, float32 scalar.

  It is the number of tokens with a tag, of examples with a known choice, of rows with a label,
  labels or a value, or of all rows (span). With class weights it is the sum of the weights of the
  labels.

  Args:
    head: of model.heads.KINDS.
    batch: the targets of `tasks.task.Features`, padded, and `weights` float32 [batch]: 1 for a
      row, 0 for padding of the batch.
    settings: of the losses.
  """
  weights = _loss_weights(head, batch, settings)
  if settings.class_weights:
    weights = weights * _weights_of(batch['label'], settings)
  return weights.sum()


def training_denominator(
  head: str, batch: Mapping[str, jax.Array], settings: LossSettings = DEFAULTS
) -> jax.Array:
  """What the sum of the losses of a training batch is divided by, float32 scalar.

  It is the number of rows times `row_average`. So each token of tagging, and each unit of class
  weights, has the same weight in an epoch of full batches, whichever rows are batched together.
  With the mean over the batch, a token in a batch of short sentences has a larger weight than one
  in a batch of long sentences.

  Args:
    head: as in `loss_denominator`.
    batch: as in `loss_denominator`.
    settings: of the losses.
  """
  if not settings.row_average:
    return loss_denominator(head, batch, settings)
  return batch['weights'].astype(jnp.float32).sum() * settings.row_average


def head_loss(
  head: str,
  outputs: Mapping[str, jax.Array],
  batch: Mapping[str, jax.Array],
  settings: LossSettings = DEFAULTS,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  """The loss of a head, as in the original program (finetune/*/*_tasks.py).

  Classification and tagging: cross-entropy. Choice: cross-entropy over an example's choices.
  Multi-label: the mean over labels of the binary cross-entropies. Regression: squared error of
  values scaled to [0, 1] (`logistic`: binary cross-entropy). Span: the mean of the cross-entropies
  of start and end, plus `impossible_weight` times the cross-entropy of whether there is an answer.
  Start and end of a row without an answer are [CLS].

  Label smoothing and class weights of classification are those of PyTorch's CrossEntropyLoss: with
  smoothing e of K labels and the weights w, the loss of label y is (1 - e) w_y (-log p_y) plus
  e / K times the sum of w_c (-log p_c) over labels c, divided by the sum of w_y; in training by
  `training_denominator`.

  The original's loss of tagging is the sum over each sentence, averaged over rows. That of training
  is proportional to it, so tokens weigh the same; see `training_denominator`. It is of the size of
  a mean over tokens, which the clipping of gradients expects.

  Args:
    head: as in `loss_denominator`.
    outputs: of model.heads.FineTuned.training.
    batch: as in `loss_denominator`.
    settings: of the losses.

  Returns:
    The sum of the losses, `loss_denominator`, and sums for the training metrics, all float32
    scalars: `loss`, `count` (with class weights also `loss_weight`, the sum of the weights), and
    `correct` or `start_loss`, `start_correct`, `end_loss`, `end_correct`, and where the head
    predicts it `impossible_loss` and `impossible_correct`. The end is predicted given the correct
    start.
  """
  weights = _loss_weights(head, batch, settings)
  if head in ('classification', 'tagging'):
    target = jnp.maximum(batch['label' if head == 'classification' else 'tags'], 0)
    losses, correct = _cross_entropy(outputs['logits'], target)
    if settings.class_weights or settings.label_smoothing:
      losses = _smoothed_cross_entropy(outputs['logits'], target, settings)
    terms = {'loss': losses, 'correct': correct}
  elif head == 'choice':
    right = batch['choice'].reshape(-1, settings.choices)
    logits = outputs['value'].reshape(-1, settings.choices)
    logits = jnp.where(right < 0, _LOWEST, logits)  # rows that fill up the choices
    losses, correct = _cross_entropy(logits, jnp.argmax(right == 1, -1))
    terms = {'loss': losses, 'correct': correct}
  elif head == 'multilabel':
    terms = _multilabel_terms(outputs['logits'], batch['labels'])
  elif head == 'regression':
    # nan stands for a missing value, and nan times a weight of 0 is nan.
    target = jnp.where(weights > 0, batch['value'], outputs['value'])
    losses = jnp.square(outputs['value'] - target)
    if settings.logistic:
      target = jnp.where(weights > 0, batch['value'], 0)
      losses = optax.sigmoid_binary_cross_entropy(outputs['value'], target)
    terms = {'loss': losses}
  elif head == 'span':
    terms = span_terms(outputs, batch, settings.impossible_weight)
  else:
    raise ValueError(
      f'head is {head!r}; expected classification, multilabel, regression, choice, tagging or span.'
    )
  sums = {name: (values * weights).sum() for name, values in terms.items()}
  sums['count'] = weights.sum()
  denominator = loss_denominator(head, batch, settings)
  if settings.class_weights:
    sums['loss_weight'] = denominator
  return sums['loss'], denominator, sums


def span_terms(
  outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], impossible_weight: float
) -> dict[str, jax.Array]:
  """The terms of the span head's loss, float32 [batch] each, of which `loss` is the sum.

  Args:
    outputs: of model.heads.FineTuned.training.
    batch: `start`, `end` and `impossible`, see `tasks.task.Features`.
    impossible_weight: see `LossSettings`.
  """
  (start, start_correct), (end, end_correct) = (
    _cross_entropy(outputs[f'{side}_logits'], batch[side]) for side in ('start', 'end')
  )
  terms = {
    'loss': (start + end) / 2,
    'start_loss': start,
    'start_correct': start_correct,
    'end_loss': end,
    'end_correct': end_correct,
  }
  # Heads in the style of transformers have no such output: [CLS] as start and end means no answer.
  if 'impossible' in outputs:
    impossible = optax.sigmoid_binary_cross_entropy(outputs['impossible'], batch['impossible'])
    terms['loss'] = terms['loss'] + impossible_weight * impossible
    correct = (outputs['impossible'] > 0) == (batch['impossible'] > 0.5)
    terms |= {'impossible_loss': impossible, 'impossible_correct': correct.astype(jnp.float32)}
  return terms


def _loss_weights(head: str, batch: Mapping[str, jax.Array], settings: LossSettings) -> jax.Array:
  """1 where the loss counts, else 0.

  float32 [batch], for tagging [batch, length], for choice [batch / choices].
  """
  weights = batch['weights'].astype(jnp.float32)
  if head == 'choice':
    right = batch['choice'].reshape(-1, settings.choices)
    return weights.reshape(-1, settings.choices)[:, 0] * (right == 1).any(-1)
  if head == 'classification':
    return weights * (batch['label'] >= 0)
  if head == 'multilabel':
    return weights * jnp.isfinite(batch['labels']).all(-1)
  if head == 'regression':
    return weights * jnp.isfinite(batch['value'])
  if head == 'tagging':
    return weights[:, None] * (batch['tags'] >= 0)
  return weights


def _multilabel_terms(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
  """Loss, and whether all labels are correct at the threshold 0.5, float32 [batch] each."""
  labels = jnp.nan_to_num(labels)  # of rows without labels, which have the weight 0
  losses = optax.sigmoid_binary_cross_entropy(logits, labels).mean(-1)
  correct = ((logits > 0) == (labels > 0.5)).all(-1)
  return {'loss': losses, 'correct': correct.astype(jnp.float32)}


def _weights_of(labels: jax.Array, settings: LossSettings) -> jax.Array:
  """The weights of the classes of labels, float32 of their shape."""
  return jnp.asarray(settings.class_weights, jnp.float32)[jnp.maximum(labels, 0)]


def _smoothed_cross_entropy(
  logits: jax.Array, labels: jax.Array, settings: LossSettings
) -> jax.Array:
  """Cross-entropy with label smoothing and class weights, see `head_loss`; float32 [batch]."""
  classes = logits.shape[-1]
  weights = jnp.asarray(settings.class_weights or (1.0,) * classes, jnp.float32)
  right = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
  smoothing = settings.label_smoothing
  target = (1 - smoothing) * right + smoothing / classes
  return -(target * weights * jax.nn.log_softmax(logits)).sum(-1)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Loss, and whether the likeliest class is correct.

  Args:
    logits: float32 [..., classes].
    labels: int32 [...].

  Returns:
    Two arrays float32 [...].
  """
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return losses, (logits.argmax(-1) == labels).astype(jnp.float32)

"""The loss of each head, as sums that are divided by counts over the global batch."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

IMPOSSIBLE_WEIGHT = 0.5  # answerable_weight in the original's configure_finetuning.py


def loss_denominator(head: str, batch: Mapping[str, jax.Array]) -> jax.Array:
  """What the loss of a batch is divided by, float32 scalar.

  It is the number of tokens with a tag, or of rows with a label or value, or of all rows (span).

  Args:
    head: of model.heads.KINDS.
    batch: the targets of `tasks.task.Features`, padded, and `weights` float32 [batch]: 1 for a
      row, 0 for padding of the batch.
  """
  return _loss_weights(head, batch).sum()


def head_loss(
  head: str,
  outputs: Mapping[str, jax.Array],
  batch: Mapping[str, jax.Array],
  impossible_weight: float = IMPOSSIBLE_WEIGHT,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  """The loss of a head, as in the original program (finetune/*/*_tasks.py).

  Classification and tagging: cross-entropy. Regression: squared error of values scaled to [0, 1].
  Span: the mean of the cross-entropies of start and end, plus `impossible_weight` times the
  cross-entropy of whether there is an answer. Start and end of a row without an answer are [CLS].

  One difference: the loss of tagging is a mean over tokens, where the original sums over each
  sentence, so that long sentences do not dominate the clipping of gradients.

  Args:
    head: as in `loss_denominator`.
    outputs: of model.heads.FineTuned.training.
    batch: as in `loss_denominator`.
    impossible_weight: span: weight of the loss of whether there is an answer.

  Returns:
    The sum of the losses, `loss_denominator`, and sums for the training metrics, all float32
    scalars: `loss`, `count`, and `correct` or `start_loss`, `start_correct`, `end_loss`,
    `end_correct`, and where the head predicts it `impossible_loss` and `impossible_correct`. The
    end is predicted given the correct start.
  """
  weights = _loss_weights(head, batch)
  if head in ('classification', 'tagging'):
    target = batch['label' if head == 'classification' else 'tags']
    losses, correct = _cross_entropy(outputs['logits'], jnp.maximum(target, 0))
    terms = {'loss': losses, 'correct': correct}
  elif head == 'regression':
    # nan stands for a missing value, and nan times a weight of 0 is nan.
    error = jnp.where(weights > 0, outputs['value'] - batch['value'], 0)
    terms = {'loss': jnp.square(error)}
  elif head == 'span':
    terms = _span_terms(outputs, batch, impossible_weight)
  else:
    raise ValueError(f'head is {head!r}; expected classification, regression, tagging or span.')
  sums = {name: (values * weights).sum() for name, values in terms.items()}
  sums['count'] = weights.sum()
  return sums['loss'], sums['count'], sums


def _span_terms(
  outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], impossible_weight: float
) -> dict[str, jax.Array]:
  """The terms of the span head's loss, float32 [batch] each."""
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


def _loss_weights(head: str, batch: Mapping[str, jax.Array]) -> jax.Array:
  """1 where the loss counts, else 0: float32 [batch], for tagging [batch, length]."""
  weights = batch['weights'].astype(jnp.float32)
  if head == 'classification':
    return weights * (batch['label'] >= 0)
  if head == 'regression':
    return weights * jnp.isfinite(batch['value'])
  if head == 'tagging':
    return weights[:, None] * (batch['tags'] >= 0)
  return weights


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

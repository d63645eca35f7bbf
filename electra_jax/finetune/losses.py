"""What fine-tuning minimises, a head at a time, as sums to be divided by counts over the global batch."""

import jax.numpy as jnp
import optax

IMPOSSIBLE_WEIGHT = 0.5  # answerable_weight in the original's configure_finetuning.py


def count(kind: str, batch: dict):
  """What the loss of a batch is divided by, float32: tokens that have a tag, or rows that have a label or a value, or all rows (span).

  Args:
    kind: of model.heads.KINDS.
    batch: the targets of finetune/tasks/task.py, padded, and `weights` float32 [batch]: 1 of a row, 0 of one that fills the batch.
  """
  return _labelled(kind, batch).sum()


def loss(kind: str, outputs: dict, batch: dict, impossible_weight: float = IMPOSSIBLE_WEIGHT):
  """Losses as in the original (finetune/*/*_tasks.py): cross-entropy; squared error of values in [0, 1]; of a span the mean of start's
  and end's cross-entropy, plus `impossible_weight` times that of whether there is an answer.

  A row without an answer is no exception: its start and end are [CLS], and it counts as any other. The one difference: tags
  are averaged over tokens, not summed up in each sentence, so that a long sentence does not weigh on the clipping of gradients.

  Args:
    kind, batch: as in `count`.
    outputs: of model.heads.FineTuned.training.

  Returns: the sum of the losses, `count`, and sums for the figures, all float32 scalars: `loss`, `count`, and `correct` or `start_loss`,
    `start_correct`, `end_loss`, `end_correct`, and where the head tells it `impossible_loss`, `impossible_correct`. The end is given the true start.
  """
  weights = _labelled(kind, batch)
  if kind in ('classification', 'tagging'):
    target = batch['label' if kind == 'classification' else 'tags']
    losses, correct = _cross_entropy(outputs['logits'], jnp.maximum(target, 0))
    sums = {'loss': losses, 'correct': correct}
  elif kind == 'regression':
    # nan stands for no value, and nan times a weight of 0 is nan.
    error = jnp.where(weights > 0, outputs['value'] - batch['value'], 0)
    sums = {'loss': jnp.square(error)}
  elif kind == 'span':
    (start, start_correct), (end, end_correct) = (
      _cross_entropy(outputs[f'{side}_logits'], batch[side]) for side in ('start', 'end')
    )
    sums = {
      'loss': (start + end) / 2,
      'start_loss': start,
      'start_correct': start_correct,
      'end_loss': end,
      'end_correct': end_correct,
    }
    if (
      'impossible' in outputs
    ):  # not in the style of `transformers`, where [CLS] as start and end is no answer, and that is learned above
      impossible = optax.sigmoid_binary_cross_entropy(outputs['impossible'], batch['impossible'])
      sums |= {
        'loss': sums['loss'] + impossible_weight * impossible,
        'impossible_loss': impossible,
        'impossible_correct': ((outputs['impossible'] > 0) == (batch['impossible'] > 0.5)).astype(
          jnp.float32
        ),
      }
  else:
    raise ValueError(f'no loss is known of {kind!r}')
  sums = {name: (values * weights).sum() for name, values in sums.items()} | {
    'count': weights.sum()
  }
  return sums['loss'], sums['count'], sums


def _labelled(kind, batch):
  """1 where the loss counts, float32 [batch], of tagging [batch, length]."""
  weights = batch['weights'].astype(jnp.float32)
  if kind == 'classification':
    return weights * (batch['label'] >= 0)
  if kind == 'regression':
    return weights * jnp.isfinite(batch['value'])
  if kind == 'tagging':
    return weights[:, None] * (batch['tags'] >= 0)
  return weights


def _cross_entropy(logits, labels):
  """float32 [..., classes], int32 [...] -> losses and whether the likeliest class is right, float32 [...]."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return losses, (logits.argmax(-1) == labels).astype(jnp.float32)

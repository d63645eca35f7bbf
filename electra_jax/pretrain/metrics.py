"""Training and evaluation metrics, computed from sums.

Sums add up over steps, micro-batches and devices, so metrics of any set of rows are exact.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from electra_jax.pretrain.replacement import argmax

Sums: TypeAlias = dict[str, jax.Array]
HostSums: TypeAlias = Mapping[str, Any]  # arrays, with or without a leading axis
Value: TypeAlias = Any  # a float, or an array [resamples]

_LARGEST_LOGIT = 16.0  # the outer bins begin there
_LINEAR_LOGITS = 0.5  # bins are about equally wide below it, and grow in proportion above it


class Bins(NamedTuple):
  """The bins of a histogram of logits. Zero is an edge, and the outer bins are open.

  Attributes:
    number: even.
    nonlinear: whether bins are narrow around 0 and grow outwards, by asinh(logit / 0.5); otherwise
      they are equal over [-16, 16].
  """

  number: int
  nonlinear: bool = True


NONLINEAR = Bins(4096)  # 0.001 wide at 0, 0.004 at the log-odds of 15%, 0.03 at the ends
UNIFORM_TRAINING = Bins(512, nonlinear=False)
UNIFORM_EVALUATION = Bins(4096, nonlinear=False)


def bins_of(kind: str, train: bool) -> Bins:
  """The bins of config.logit_bins; uniform ones differ between training and evaluation."""
  if kind == 'nonlinear':
    return NONLINEAR
  return UNIFORM_TRAINING if train else UNIFORM_EVALUATION


@dataclasses.dataclass(frozen=True)
class Summing:
  """How the rows of a batch are added up.

  Attributes:
    bins: of histograms of logits.
    groups: int32 [batch], the group of each row; None to add up all rows.
    count: the number of groups.
  """

  bins: Bins = NONLINEAR
  groups: jax.Array | None = None
  count: int = 0

  def total(self, values: jax.Array) -> jax.Array:
    """The sum of values [batch, ...]: a scalar, or [count] by the groups of the rows."""
    if self.groups is None:
      return values.sum()
    per_row = values.reshape(len(values), -1).sum(1)
    return jnp.zeros(self.count, per_row.dtype).at[self.groups].add(per_row)


class Column(NamedTuple):
  """A column of the training log.

  Attributes:
    title: header of the column.
    width: width in characters.
    format: format of the values, such as '.3f'.
  """

  title: str
  width: int
  format: str


class Metric(NamedTuple):
  """How a metric is displayed.

  Attributes:
    title: in tables of evaluation and of reports.
    column: of the training log; None for none.
  """

  title: str
  column: Column | None = None


# In the order of tables and columns.
METRICS = {
  'generator_loss': Metric('generator loss', Column('gen loss', 9, '.3f')),
  'generator_accuracy': Metric('generator accuracy', Column('acc', 5, '.0%')),
  'sampled_accuracy': Metric('sampled accuracy'),
  'prediction_loss': Metric("the main tower's prediction loss", Column('pred loss', 9, '.3f')),
  'prediction_accuracy': Metric("the main tower's prediction accuracy"),
  'discriminator_loss': Metric('discriminator loss', Column('disc loss', 10, '.4f')),
  'constant_loss': Metric("constant predictor's loss", Column('constant', 9, '.4f')),
  'gain': Metric('gain over the constant predictor'),
  'discriminator_accuracy': Metric('discriminator accuracy'),
  'auc': Metric('area under the ROC curve', Column('auc', 6, '.3f')),
  'average_precision': Metric('average precision', Column('ap', 6, '.3f')),
  'average_precision_gain': Metric('gain over chance (replaced rate)'),
  'precision': Metric('precision'),
  'recall': Metric('recall', Column('recall', 7, '.3f')),
  'replaced_rate': Metric('replaced rate'),
  'total_loss': Metric('total loss'),
  'reference_ap': Metric('reference: average precision'),
  'reference_unigram_ap': Metric('reference: that without context'),
  'reference_auc': Metric('reference: area under the ROC curve'),
  'reference_unigram_auc': Metric('reference: that without context'),
  'reference_gain': Metric('reference: gain over the constant'),
  'reference_rate': Metric('reference: replaced rate'),
}


def histogram(
  logits: jax.Array, labels: jax.Array, weights: jax.Array, summing: Summing
) -> jax.Array:
  """Counts of the discriminator's logits by label.

  An edge lies at 0, so accuracy, precision and recall are exact, while ranking metrics count pairs
  inside one bin as ties.

  Args:
    logits: [batch, length].
    labels: [batch, length], 1 for a replaced token.
    weights: [batch, length], 0 for a token that does not count.
    summing: bins and groups.

  Returns:
    int32 [2, bins], row 0 original and row 1 replaced; with groups [groups, 2, bins].
  """
  return _counts(bin_numbers(logits, summing.bins), labels, weights, summing)


def bin_numbers(logits: jax.Array, bins: Bins) -> jax.Array:
  """The bin of each logit, int32 of the same shape."""
  # By magnitude, so that the sign of a tiny logit is not lost in a sum.
  half = bins.number // 2
  magnitude = jnp.minimum(jnp.abs(logits.astype(jnp.float32)), _LARGEST_LOGIT)
  if bins.nonlinear:
    scale = half / np.arcsinh(_LARGEST_LOGIT / _LINEAR_LOGITS)
    place = jnp.arcsinh(magnitude / _LINEAR_LOGITS) * np.float32(scale)
  else:
    place = magnitude * (half / _LARGEST_LOGIT)
    # Bins contain their lower edge, which is the larger magnitude of a negative logit.
    place = jnp.where(logits < 0, jnp.ceil(place) - 1, place)
  step = jnp.clip(jnp.floor(place), 0, half - 1).astype(jnp.int32)
  return jnp.where(logits >= 0, half + step, half - 1 - step)


def _counts(
  numbers: jax.Array, labels: jax.Array, weights: jax.Array, summing: Summing
) -> jax.Array:
  """Counts of bin numbers [batch, length] by label, as `histogram` returns them."""
  bins = summing.bins.number
  place = numbers + bins * labels.astype(jnp.int32)
  shape: tuple[int, ...] = (2, bins)
  if summing.groups is not None:
    shape = (summing.count, 2, bins)
    place += 2 * bins * summing.groups[:, None]
  return (
    jnp.zeros(np.prod(shape), jnp.int32)
    .at[place.reshape(-1)]
    .add(weights.astype(jnp.int32).reshape(-1))
    .reshape(shape)
  )


def generator_sums(
  logits: jax.Array,
  original: jax.Array,
  mask_weights: jax.Array,
  losses: jax.Array,
  summing: Summing,
) -> Sums:
  """Sums of the generator's predictions. Counts are int32, so that they stay exact.

  Args:
    logits: [batch, predictions, vocab].
    original: int32 [batch, predictions], the masked tokens.
    mask_weights: [batch, predictions], 0 for an empty slot.
    losses: [batch, predictions] or [batch, length], 0 where there is no prediction.
    summing: groups of rows.
  """
  masked = mask_weights.astype(jnp.int32)
  return {
    'generator_loss': summing.total(losses),
    'generator_correct': summing.total((argmax(logits) == original) * masked),
    'masked': summing.total(masked),
  }


def verdict_sums(
  verdicts: jax.Array, labels: jax.Array, where: jax.Array, losses: jax.Array, summing: Summing
) -> Sums:
  """Sums of the discriminator's verdicts.

  Args:
    verdicts: log-odds [batch, length].
    labels: [batch, length], 1 for a replaced token.
    where: [batch, length], the tokens that count.
    losses: [batch, length], 0 elsewhere.
    summing: bins of the histogram of verdicts, and groups of rows.
  """
  return {
    'discriminator_loss': summing.total(losses),
    'scores': histogram(verdicts, labels, where, summing),
  }


def reference_sums(
  verdicts: jax.Array, ranks: jax.Array, labels: jax.Array, where: jax.Array, summing: Summing
) -> Sums:
  """Sums of the discriminator's verdicts on the reference corruption, see reference.py.

  Args:
    verdicts: log-odds [batch, length].
    ranks: int32 [batch, length], the place of the displayed token in the order of the best
      classifier without context, less than the number of bins.
    labels: [batch, length], 1 for a replaced token.
    where: bool [batch, length], the tokens that count.
    summing: bins and groups.
  """
  losses = optax.sigmoid_binary_cross_entropy(verdicts, labels) * where
  return {
    'reference_loss': summing.total(losses),
    'reference_scores': histogram(verdicts, labels, where, summing),
    'reference_unigram_scores': _counts(ranks, labels, where, summing),
  }


def prediction_sums(
  losses: jax.Array, correct: jax.Array, where: jax.Array, summing: Summing
) -> Sums:
  """Sums of the main tower's predictions of tokens.

  Args:
    losses: [batch, positions], 0 where there is no prediction.
    correct: [batch, positions], whether the prediction is right.
    where: [batch, positions], the positions that count.
    summing: groups of rows.
  """
  where = where.astype(jnp.int32)
  return {
    'prediction_loss': summing.total(losses),
    'prediction_correct': summing.total(correct * where),
    'predicted': summing.total(where),
  }


def ranking(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The area under the ROC curve and the average precision of histograms.

  Average precision is the sum over thresholds of (recall gained) x (precision), as scikit-learn
  defines it.

  Args:
    scores: [..., 2, bins], see histogram.

  Returns:
    Two arrays [...], nan where a label is missing.
  """
  scores = np.asarray(scores, np.float64)[..., ::-1]  # from the surest "replaced" down
  negatives = scores[..., 0, :]
  positives = scores[..., 1, :]
  above_n, above_p = np.cumsum(negatives, -1), np.cumsum(positives, -1)
  total_n, total_p = above_n[..., -1], above_p[..., -1]
  with np.errstate(invalid='ignore', divide='ignore'):
    pairs = ((above_p - positives) * negatives + 0.5 * positives * negatives).sum(-1)
    auc = pairs / (total_n * total_p)
    precision = np.where(above_n + above_p > 0, above_p / np.maximum(above_n + above_p, 1), 0.0)
    average_precision = (positives * precision).sum(-1) / total_p
  return np.where(total_n > 0, auc, np.nan), average_precision


def binary_entropy(rate: Value) -> np.ndarray:
  """Entropy in nats: the loss of the constant predictor that always answers `rate`."""
  rate = np.clip(np.asarray(rate, np.float64), 1e-12, 1 - 1e-12)
  result: np.ndarray = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
  return result


def compute(sums: HostSums) -> dict[str, Value]:
  """Metrics by name.

  Losses are in nats per token. `constant_loss` is that of the best constant predictor: a
  discriminator is of use only below it. The discriminator's metrics are nan without judged tokens.

  Args:
    sums: added up over rows; with a leading axis, metrics are arrays. Metrics whose sums are
      missing are left out.
  """
  s = {name: np.asarray(value, np.float64) for name, value in sums.items()}
  masked = np.maximum(s['masked'], 1)
  found: dict[str, Value] = {
    'generator_loss': s['generator_loss'] / np.maximum(s.get('candidates', s['masked']), 1),
    'generator_accuracy': s['generator_correct'] / masked,
  }
  if 'sampled_correct' in s:
    found['sampled_accuracy'] = s['sampled_correct'] / masked
  if 'predicted' in s:
    predicted = np.maximum(s['predicted'], 1)
    found |= {
      'prediction_loss': s['prediction_loss'] / predicted,
      'prediction_accuracy': s['prediction_correct'] / predicted,
    }
  if 'scores' in s:
    found |= _verdict_metrics(s['discriminator_loss'], s['scores'])
  return found


def _verdict_metrics(loss: np.ndarray, scores: np.ndarray) -> dict[str, Value]:
  """Metrics of a discriminator from the sum of its losses [...] and histograms [..., 2, bins]."""
  tokens, replaced = scores.sum((-2, -1)), scores[..., 1, :].sum(-1)
  middle = scores.shape[-1] // 2
  called, hits = scores[..., middle:].sum((-2, -1)), scores[..., 1, middle:].sum(-1)
  auc, average_precision = ranking(scores)
  some = np.where(tokens > 0, tokens, np.nan)
  return {
    'discriminator_loss': loss / some,
    'constant_loss': binary_entropy(replaced / some),
    'discriminator_accuracy': (tokens - called - replaced + 2 * hits) / some,
    'auc': auc,
    'average_precision': average_precision,
    'precision': hits / np.maximum(called, 1) + 0 * some,
    'recall': hits / np.maximum(replaced, 1) + 0 * some,
    'replaced_rate': replaced / some,
  }


def reference_metrics(sums: HostSums) -> dict[str, Value]:
  """Metrics on the reference corruption from sums of `reference_sums`; none if there are none.

  `reference_unigram_ap` and `reference_unigram_auc` are those of the best classifier that sees only
  the displayed token: whatever a discriminator scores above them is due to context.
  """
  if 'reference_scores' not in sums:
    return {}
  s = {name: np.asarray(sums[name], np.float64) for name in sums if name.startswith('reference_')}
  found = _verdict_metrics(s['reference_loss'], s['reference_scores'])
  unigram_auc, unigram_ap = ranking(s['reference_unigram_scores'])
  return {
    'reference_ap': found['average_precision'],
    'reference_unigram_ap': unigram_ap,
    'reference_auc': found['auc'],
    'reference_unigram_auc': unigram_auc,
    'reference_gain': found['constant_loss'] - found['discriminator_loss'],
    'reference_rate': found['replaced_rate'],
  }


def with_gains(values: Mapping[str, Value]) -> dict[str, Value]:
  """Metrics, and those of the discriminator less what a constant predictor or chance scores."""
  found = dict(values)
  if 'auc' in values:
    found['gain'] = values['constant_loss'] - values['discriminator_loss']
    found['average_precision_gain'] = values['average_precision'] - values['replaced_rate']
  return found


def answers_original(values: Mapping[str, Value]) -> bool:
  """Whether the discriminator answers "original" everywhere and ranks no better than chance."""
  return bool(
    values.get('replaced_rate', 0) > 0 and values['recall'] < 1e-3 and not values['auc'] > 0.55
  )

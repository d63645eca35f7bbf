"""The figures that say whether it learns, all made from sums, so that they add over steps, micro-batches and devices."""

import jax.numpy as jnp
import numpy as np

from electra_jax.pretrain.replacement import argmax

TRAIN_BINS, EVAL_BINS = 512, 4096
_LARGEST_LOGIT = 16.0


def histogram(logits, labels, weights, bins: int):
  """Counts of the discriminator's logits by label: int32 [2, bins], row 0 original and row 1 replaced.

  Bins are equal over [-16, 16], the outer ones open; an edge lies at 0, so that accuracy, precision and recall are exact, while the area under
  the curve counts pairs inside one bin as ties. logits, labels, weights: [batch, length]; weight 0 is left out.
  """
  # Halves are added after the floor: a tiny negative logit would be lost in a sum with 16.
  place = jnp.floor(logits * (bins / (2 * _LARGEST_LOGIT))) + bins // 2
  place = jnp.clip(place, 0, bins - 1).astype(jnp.int32) + bins * labels.astype(jnp.int32)
  return (
    jnp.zeros(2 * bins, jnp.int32)
    .at[place.reshape(-1)]
    .add(weights.astype(jnp.int32).reshape(-1))
    .reshape(2, bins)
  )


def generator_sums(logits, original, mask_weights, losses):
  """Sums over a batch of what the generator predicts, as a dict; counts are int32, so that they stay exact.

  logits [batch, predictions, vocab]; original, mask_weights and losses [batch, predictions], losses zero where the weight is.
  """
  masked = mask_weights.astype(jnp.int32)
  return {
    'generator_loss': losses.sum(),
    'generator_correct': ((argmax(logits) == original) * masked).sum(),
    'masked': masked.sum(),
  }


def verdict_sums(verdicts, labels, where, losses, bins: int):
  """The same of the discriminator's verdicts, all [batch, length]; `where` says which count, losses are zero elsewhere."""
  return {'discriminator_loss': losses.sum(), 'scores': histogram(verdicts, labels, where, bins)}


def prediction_sums(losses, correct, where):
  """The same of what the main tower predicts: losses, whether right, and whether it counts, all of one shape."""
  where = where.astype(jnp.int32)
  return {
    'prediction_loss': losses.sum(),
    'prediction_correct': (correct * where).sum(),
    'predicted': where.sum(),
  }


def ranking(scores):
  """Area under the ROC curve, and average precision, of histograms [..., 2, bins]: two arrays [...], nan without both labels.

  Average precision is the sum over thresholds of (recall gained) x (precision), as scikit-learn defines it.
  """
  scores = np.asarray(scores, np.float64)[..., ::-1]  # from the surest "replaced" down
  negatives, positives = scores[..., 0, :], scores[..., 1, :]
  above_n, above_p = np.cumsum(negatives, -1), np.cumsum(positives, -1)
  total_n, total_p = above_n[..., -1], above_p[..., -1]
  with np.errstate(invalid='ignore', divide='ignore'):
    pairs = ((above_p - positives) * negatives + 0.5 * positives * negatives).sum(-1)
    auc = pairs / (total_n * total_p)
    precision = np.where(above_n + above_p > 0, above_p / np.maximum(above_n + above_p, 1), 0.0)
    average_precision = (positives * precision).sum(-1) / total_p
  return np.where(total_n > 0, auc, np.nan), average_precision


def entropy(rate):
  """Of a coin in nats: the loss of the constant predictor that always answers `rate`."""
  rate = np.clip(np.asarray(rate, np.float64), 1e-12, 1 - 1e-12)
  return -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))


def figures(sums) -> dict[str, float]:
  """The named figures of an objective's sums, over whatever was added up (a leading axis gives arrays).

  Losses in nats a token. `constant_loss` is the best constant predictor's: the discriminator knows something only below it. What
  the objective has no sums of is left out; the discriminator's are nan while it judges nothing.
  """
  s = {name: np.asarray(value, np.float64) for name, value in sums.items()}
  masked = np.maximum(s['masked'], 1)
  found = {
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
  return found | (_of_verdicts(s['discriminator_loss'], s['scores']) if 'scores' in s else {})


def _of_verdicts(loss, scores) -> dict:
  tokens, replaced = scores.sum((-2, -1)), scores[..., 1, :].sum(-1)
  middle = scores.shape[-1] // 2
  called, hits = scores[..., middle:].sum((-2, -1)), scores[..., 1, middle:].sum(-1)
  auc, average_precision = ranking(scores)
  some = np.where(tokens > 0, tokens, np.nan)
  return {
    'discriminator_loss': loss / some,
    'constant_loss': entropy(replaced / some),
    'discriminator_accuracy': (tokens - called - replaced + 2 * hits) / some,
    'auc': auc,
    'average_precision': average_precision,
    'precision': hits / np.maximum(called, 1) + 0 * some,
    'recall': hits / np.maximum(replaced, 1) + 0 * some,
    'replaced_rate': replaced / some,
  }


def collapsed(figures: dict[str, float]) -> bool:
  """Has the discriminator settled on "original": of replaced tokens none found, and no ranking better than chance?"""
  return bool(
    figures.get('replaced_rate', 0) > 0 and figures['recall'] < 1e-3 and not figures['auc'] > 0.55
  )

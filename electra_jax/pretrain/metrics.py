"""The figures that say whether it learns, all made from sums, so that they add over steps, micro-batches and devices."""

import jax.numpy as jnp
import numpy as np

from electra_jax.pretrain.replacement import argmax

TRAIN_BINS, EVAL_BINS = 512, 4096
_LARGEST_LOGIT = 16.0
OF_DISCRIMINATOR = ('discriminator_loss', 'constant_loss', 'discriminator_accuracy', 'auc', 'average_precision', 'precision', 'recall', 'replaced_rate')


def histogram(logits, labels, weights, bins: int):
  """Counts of the discriminator's logits by label: int32 [2, bins], row 0 original and row 1 replaced.

  Bins are equal over [-16, 16], the outer ones open; an edge lies at 0, so that accuracy, precision and recall are exact, while the area under
  the curve counts pairs inside one bin as ties. logits, labels, weights: [batch, length]; weight 0 is left out.
  """
  # Halves are added after the floor: a tiny negative logit would be lost in a sum with 16.
  place = jnp.floor(logits * (bins / (2 * _LARGEST_LOGIT))) + bins // 2
  place = jnp.clip(place, 0, bins - 1).astype(jnp.int32) + bins * labels.astype(jnp.int32)
  return jnp.zeros(2 * bins, jnp.int32).at[place.reshape(-1)].add(weights.astype(jnp.int32).reshape(-1)).reshape(2, bins)


def electra_sums(logits, original, samples, mask_weights, losses, verdicts, labels, real, verdict_losses, bins):
  """Sums over a batch, as a dict; counts are int32, so that they stay exact. Arguments as in objectives/electra.py."""
  masked = mask_weights.astype(jnp.int32)
  return {
      'generator_loss': losses.sum(),
      'generator_correct': ((argmax(logits) == original) * masked).sum(),
      'sampled_correct': ((samples == original) * masked).sum(),
      'masked': masked.sum(),
      'discriminator_loss': verdict_losses.sum(),
      'scores': histogram(verdicts, labels, real, bins),
  }


def ranking(scores):
  """Area under the ROC curve, and average precision, of histograms [..., 2, bins]: two arrays [...], nan without both labels.

  Average precision is the sum over thresholds of (recall gained) x (precision), as scikit-learn defines it.
  """
  scores = np.asarray(scores, np.float64)[..., ::-1]                      # from the surest "replaced" down
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
  """The named figures of electra_sums, over whatever was added up (a leading axis gives arrays).

  Losses in nats a token. `constant_loss` is the best constant predictor's: the discriminator knows something only below it.
  """
  s = {name: np.asarray(value, np.float64) for name, value in sums.items()}
  scores = s['scores']
  tokens, replaced = scores.sum((-2, -1)), scores[..., 1, :].sum(-1)
  middle = scores.shape[-1] // 2
  called, hits = scores[..., middle:].sum((-2, -1)), scores[..., 1, middle:].sum(-1)
  masked, some = np.maximum(s['masked'], 1), np.maximum(tokens, 1)
  auc, average_precision = ranking(scores)
  return {
      'generator_loss': s['generator_loss'] / masked,
      'generator_accuracy': s['generator_correct'] / masked,
      'sampled_accuracy': s['sampled_correct'] / masked,
      'discriminator_loss': s['discriminator_loss'] / some,
      'constant_loss': entropy(replaced / some),
      'discriminator_accuracy': (tokens - called - replaced + 2 * hits) / some,
      'auc': auc,
      'average_precision': average_precision,
      'precision': hits / np.maximum(called, 1),
      'recall': hits / np.maximum(replaced, 1),
      'replaced_rate': replaced / some,
  }


def collapsed(figures: dict[str, float]) -> bool:
  """Has the discriminator settled on "original": of replaced tokens none found, and no ranking better than chance?"""
  return bool(figures['replaced_rate'] > 0 and figures['recall'] < 1e-3 and not figures['auc'] > 0.55)

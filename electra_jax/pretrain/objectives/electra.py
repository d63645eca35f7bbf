"""Replaced token detection: the generator's masked language modelling + the discriminator's verdict on every token.

Clark et al. 2020, section 3.1: minimise L_MLM + 50 L_Disc over both towers, no gradient through the samples.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from electra_jax.model.encoder import packed_inputs
from electra_jax.pretrain import masking, metrics, replacement


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of the objective: rates and weights as in Clark et al. 2020, table 6, and the ids of the special tokens."""
  mask_rate: float = 0.15
  mask_share: float = 0.85
  max_predictions: int = 19
  temperature: float = 1.0
  disallow_correct: bool = False
  generator_weight: float = 1.0
  discriminator_weight: float = 50.0
  google: bool = False
  pad_id: int = 0
  cls_id: int = 2
  sep_id: int = 3
  mask_id: int = 4


def examples(settings: Settings, token_ids, keys):
  """Rows of token ids [batch, length] and their keys -> what both towers read, a dict of arrays with `batch` first."""
  inputs = packed_inputs(token_ids, settings.pad_id, settings.cls_id, settings.sep_id)
  token_ids = inputs.token_ids
  special = [settings.pad_id, settings.cls_id, settings.sep_id, settings.mask_id]
  maskable = ~jnp.isin(token_ids, jnp.array(special))
  masks = masking.choose(token_ids, maskable, masking.stream(keys, masking.MASKING), rate=settings.mask_rate,
                         slots=settings.max_predictions, mask_id=settings.mask_id, mask_share=settings.mask_share,
                         google=settings.google, pad_id=settings.pad_id)
  return {'inputs': inputs, 'masks': masks, 'keys': keys}


def counts(settings: Settings, batch):
  """What the losses divide by, over the whole global batch: masks and non-padding tokens, at least 1 each."""
  tokens = (batch['inputs'].token_ids != settings.pad_id).sum(dtype=jnp.int32)
  return {'masked': jnp.maximum(batch['masks'].weights.sum(), 1.0), 'tokens': jnp.maximum(tokens, 1)}


def loss(settings: Settings, model, params, batch, counts, *, train: bool, bins: int = metrics.TRAIN_BINS, samples=None, alone: bool = False):
  """The batch's share of the global loss, and the sums that the figures are made from.

  Args:
    settings: see Settings.
    model: model.electra.Electra.
    params: its parameters.
    batch: of `examples`, whole or a micro-batch.
    counts: of `counts`, over the global batch: losses are global sums over global counts.
    train: with dropout.
    bins: of the histogram of the discriminator's logits.
    samples: int32 [batch, predictions] to use in place of the generator's, for parity tests.
    alone: of the generator alone; the discriminator's sums are zero.

  Returns: scalar; dict of sums with one entry a row [batch, ...], see pretrain/metrics.py.
  """
  inputs, masks, keys = batch['inputs'], batch['masks'], batch['keys']
  dropout_keys = masking.stream(keys, masking.DROPOUT) if train else None
  original = jnp.take_along_axis(inputs.token_ids, masks.positions, axis=1)
  variables = {'params': params}

  # Generator: cross-entropy at the masked positions.
  logits = model.apply(variables, inputs._replace(token_ids=masks.token_ids), masks.positions, dropout_keys,
                       method='generator_logits')                                     # [batch, predictions, vocab]
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, original) * masks.weights
  generator_loss = losses.sum() / counts['masked']

  # Sample, without gradient.
  if samples is None:
    samples = replacement.sample(logits, masking.stream(keys, masking.GUMBEL), temperature=settings.temperature,
                                 disallow=original if settings.disallow_correct else None)
  corrupted, labels = replacement.corrupt(inputs.token_ids, masks, samples)

  if alone:
    none = jnp.zeros(inputs.token_ids.shape, jnp.float32)
    sums = metrics.electra_sums(logits, original, samples, masks.weights, losses, none, labels, none, none, bins)
    return settings.generator_weight * generator_loss, jax.lax.stop_gradient(sums)

  # Discriminator: every token that is not padding, special ones included.
  verdicts = model.apply(variables, inputs._replace(token_ids=corrupted), dropout_keys, method='discriminator_logits')
  real = (inputs.token_ids != settings.pad_id).astype(jnp.float32)
  verdict_losses = optax.sigmoid_binary_cross_entropy(verdicts, labels) * real
  discriminator_loss = verdict_losses.sum() / counts['tokens']

  total = settings.generator_weight * generator_loss + settings.discriminator_weight * discriminator_loss
  sums = metrics.electra_sums(logits, original, samples, masks.weights, losses, verdicts, labels, real, verdict_losses, bins)
  return total, jax.lax.stop_gradient(sums)

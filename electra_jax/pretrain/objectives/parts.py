"""What objectives are combined from: masked examples, the generator's samples, the discriminator.

All arrays of a batch have its rows first. Losses are global: sums over rows, divided by counts over
the global batch, so that they and their gradients add up over micro-batches and devices.
"""

import dataclasses
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax

from electra_jax.model.electra import Electra
from electra_jax.model.encoder import Inputs, packed_inputs
from electra_jax.pretrain import masking, metrics, replacement
from electra_jax.pretrain.objectives.settings import Settings

Params: TypeAlias = Any  # a tree of arrays
Batch: TypeAlias = dict[str, Any]  # what mask_rows returns
Sums: TypeAlias = dict[str, jax.Array]  # what metrics are computed from, see pretrain/metrics.py


@dataclasses.dataclass(frozen=True)
class LossContext:
  """What a loss is computed from, apart from the parameters.

  Attributes:
    settings: the objective's.
    model: both towers and their heads.
    batch: rows, masked: a global batch, or a micro-batch of it.
    counts: what losses are divided by, of the global batch, see `Objective.counts`.
    train: whether there is dropout.
    groups: int32 [batch], groups of rows whose sums are kept apart; None for sums over all rows.
    num_groups: the number of groups.
    samples: int32 [batch, predictions], to use in place of the generator's samples; for tests that
      compare with other programs.
  """

  settings: Settings
  model: Electra
  batch: Batch
  counts: dict[str, jax.Array]
  train: bool
  groups: jax.Array | None = None
  num_groups: int = 0
  samples: jax.Array | None = None

  @property
  def summing(self) -> metrics.Summing:
    """How sums for metrics are added up. An objective takes its own sums with `summing.total`."""
    bins = metrics.bins_of(self.settings.logit_bins, self.train)
    return metrics.Summing(bins, self.groups, self.num_groups)

  @property
  def inputs(self) -> Inputs:
    """What an encoder reads, with the original tokens: int32 arrays [batch, length]."""
    inputs: Inputs = self.batch['inputs']
    return inputs

  @property
  def masks(self) -> masking.Masks:
    """The masked positions."""
    masks: masking.Masks = self.batch['masks']
    return masks

  def inputs_with(self, token_ids: jax.Array) -> Inputs:
    """What an encoder reads, with other tokens, int32 [batch, length]."""
    return self.inputs._replace(token_ids=token_ids)

  def original_tokens(self) -> jax.Array:
    """int32 [batch, predictions]: the tokens at the masked positions."""
    return jnp.take_along_axis(self.inputs.token_ids, self.masks.positions, axis=1)

  def keys(self, stream: int) -> jax.Array:
    """The rows' random keys for masking.MASKING, GUMBEL or DROPOUT: [batch]."""
    return masking.stream(self.batch['keys'], stream)

  def dropout_keys(self) -> jax.Array | None:
    """The rows' keys for dropout, [batch]; None where there is no dropout."""
    return self.keys(masking.DROPOUT) if self.train else None

  def apply(self, params: Params, *args: jax.Array | Inputs | None, method: str) -> jax.Array:
    """Calls a method of the model, such as 'generator_logits'."""
    return cast(jax.Array, self.model.apply({'params': params}, *args, method=method))


class MaskedPrediction(NamedTuple):
  """The generator's prediction of the masked tokens.

  Attributes:
    loss: scalar, the batch's share of the mean cross-entropy.
    logits: float32 [batch, predictions, vocab].
    original: int32 [batch, predictions], the masked tokens.
    sums: see metrics.generator_sums.
  """

  loss: jax.Array
  logits: jax.Array
  original: jax.Array
  sums: Sums


class Proposal(NamedTuple):
  """The generator's loss, and rows with its samples. No gradient passes through tokens and labels.

  Attributes:
    loss: scalar, the batch's share of the generator's loss.
    sums: see metrics.generator_sums.
    original: int32 [batch, predictions], the tokens at the masked positions.
    corrupted: int32 [batch, length], what the main tower reads.
    labels: float32 [batch, length], 1 where a token was replaced.
  """

  loss: jax.Array
  sums: Sums
  original: jax.Array
  corrupted: jax.Array
  labels: jax.Array


def mask_rows(settings: Settings, token_ids: jax.Array, keys: jax.Array) -> Batch:
  """Draws the masked positions of rows.

  Args:
    settings: of the objective.
    token_ids: int [batch, length].
    keys: one random key per row [batch].

  Returns:
    What an objective computes on: `inputs`, `masks` and `keys`.
  """
  inputs = packed_inputs(token_ids, settings.pad_id, settings.cls_id, settings.sep_id)
  maskable = ~jnp.isin(inputs.token_ids, jnp.array(settings.special_ids))
  masks = masking.choose(
    settings, inputs.token_ids, maskable, masking.stream(keys, masking.MASKING)
  )
  return {'inputs': inputs, 'masks': masks, 'keys': keys}


def count_tokens(settings: Settings, batch: Batch) -> dict[str, jax.Array]:
  """Counts masked positions and tokens that are not padding, at least 1 each."""
  tokens = non_padding(settings, batch).sum(dtype=jnp.int32)
  return {
    'masked': jnp.maximum(batch['masks'].weights.sum(), 1.0),
    'tokens': jnp.maximum(tokens, 1),
  }


def non_padding(settings: Settings, batch: Batch) -> jax.Array:
  """Where a row has tokens, bool [batch, length]: False at padding."""
  token_ids: jax.Array = batch['inputs'].token_ids
  return token_ids != settings.pad_id


def masked_positions(batch: Batch) -> jax.Array:
  """The positions drawn for masking, bool [batch, length], also those that kept their token."""
  masks = batch['masks']
  nowhere = jnp.zeros(batch['inputs'].token_ids.shape, jnp.int32)
  return (
    masking.write_tokens(nowhere, masks.positions, jnp.ones_like(masks.positions), masks.weights)
    > 0
  )


def predict_masked(params: Params, context: LossContext) -> MaskedPrediction:
  """Masked language modeling by the generator: cross-entropy at the masked positions.

  Of an objective with one tower that tower is the generator.
  """
  masks, original = context.masks, context.original_tokens()
  logits = context.apply(
    params,
    context.inputs_with(masks.token_ids),
    masks.positions,
    context.dropout_keys(),
    method='generator_logits',
  )
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, original) * masks.weights
  return MaskedPrediction(
    losses.sum() / context.counts['masked'],
    logits,
    original,
    metrics.generator_sums(logits, original, masks.weights, losses, context.summing),
  )


def propose(params: Params, context: LossContext) -> Proposal:
  """`predict_masked`, and samples of the generator at the masked positions.

  Source: Clark et al. 2020, section 3.1.
  """
  settings, masks = context.settings, context.masks
  prediction = predict_masked(params, context)
  original, samples = prediction.original, context.samples
  if samples is None:
    samples = replacement.sample(
      prediction.logits,
      context.keys(masking.GUMBEL),
      temperature=settings.temperature,
      disallow=original if settings.disallow_correct else None,
    )
  corrupted, labels = replacement.corrupt(context.inputs.token_ids, masks, samples)
  sums = prediction.sums | {'sampled_correct': count_correct(samples, original, context)}
  return Proposal(prediction.loss, sums, original, corrupted, labels)


def count_correct(samples: jax.Array, original: jax.Array, context: LossContext) -> jax.Array:
  """The number of samples that equal the original token, both int32 [batch, predictions]."""
  return context.summing.total((samples == original) * context.masks.weights.astype(jnp.int32))


def verdict_logits(params: Params, context: LossContext, token_ids: jax.Array) -> jax.Array:
  """The discriminator's log-odds that tokens were replaced: float32 [batch, length].

  Args:
    params: of the model.
    context: see LossContext.
    token_ids: int32 [batch, length], what the discriminator reads.
  """
  return context.apply(
    params, context.inputs_with(token_ids), context.dropout_keys(), method='discriminator_logits'
  )


def verdict_losses(verdicts: jax.Array, labels: jax.Array, where: jax.Array) -> jax.Array:
  """The binary cross-entropy of log-odds, 0 where `where` is False; all are [batch, length]."""
  losses: jax.Array = optax.sigmoid_binary_cross_entropy(verdicts, labels) * where
  return losses


def judge(
  params: Params, context: LossContext, proposal: Proposal, where: jax.Array
) -> tuple[jax.Array, Sums]:
  """Replaced token detection by the discriminator.

  Args:
    params: of the model.
    context: see LossContext.
    proposal: what the discriminator reads, and its labels.
    where: bool [batch, length], the tokens that count.

  Returns:
    The sum of the binary cross-entropy, and the sums for its metrics.
  """
  verdicts = verdict_logits(params, context, proposal.corrupted)
  losses = verdict_losses(verdicts, proposal.labels, where)
  sums = metrics.verdict_sums(verdicts, proposal.labels, where, losses, context.summing)
  return losses.sum(), sums

"""Electric: an energy of every token given all others, learned by telling it from noise (Clark et al. 2020b).

The generator is the noise distribution q: two towers, one a side, predict each token from all the others, and learn to by
cross-entropy over every token that may be masked. Tokens drawn from q stand at the chosen positions. The discriminator's output is
the energy E(x)_t of each token, and exp(-E(x)_t) stands for the probability of the token given the others, without normalisation.
Whether a token is noise is then a matter of two densities and of how many were drawn,

  log-odds of noise = E(x)_t + log q(x_t | all others, before noise) + log(mask_rate / (1 - mask_rate)),

and the loss is their binary cross-entropy over every token that is not padding. No gradient passes through q or the noise.
"""

import jax
import jax.numpy as jnp
import optax

from electra_jax.pretrain import masking, metrics, replacement
from electra_jax.pretrain.objectives import common
from electra_jax.pretrain.objectives.chunked import token_log_probabilities
from electra_jax.pretrain.objectives.common import Proposal, Settings, chosen, dropout_keys, real
from electra_jax.pretrain.objectives.common import examples as examples
from electra_jax.pretrain.objectives.electra import HEADS as HEADS
from electra_jax.pretrain.objectives.electra import LOSSES as LOSSES


def counts(settings: Settings, batch):
  """As of all objectives, and what the generator's loss divides by: all tokens that may be masked, at least 1."""
  return common.counts(settings, batch) | {
    'candidates': jnp.maximum(candidates(settings, batch).sum(dtype=jnp.int32), 1)
  }


def candidates(settings: Settings, batch):
  """bool [batch, length]: the tokens that may be masked."""
  return ~jnp.isin(
    batch['inputs'].token_ids,
    jnp.array([settings.pad_id, settings.cls_id, settings.sep_id, settings.mask_id]),
  )


def propose(
  settings: Settings, model, params, batch, counts, *, train: bool, samples=None
) -> Proposal:
  """The generator's loss, over all candidates, and noise from it at the chosen positions, labelled so also where it equals the original."""
  return _noise(settings, model, params, batch, counts, train=train, samples=samples)[0]


def loss(
  settings: Settings,
  model,
  params,
  batch,
  counts,
  *,
  train: bool,
  bins: int = metrics.TRAIN_BINS,
  samples=None,
):
  """As electra.loss, but the figures are to be read so:

  A token drawn from q counts as replaced also where it equals the original, since distributions are told apart and not tokens
  (`sampled_accuracy` says how many do). Verdicts are the log-odds above, q included: where energies say no more than q does, the loss
  is the constant predictor's or more. The generator reads no [MASK]: its loss is over all candidates, its accuracy at the chosen ones.
  """
  proposal, odds = judged(settings, model, params, batch, counts, train=train, samples=samples)
  where = real(settings, batch)  # special tokens included
  losses = optax.sigmoid_binary_cross_entropy(odds, proposal.labels) * where
  total = (
    settings.generator_weight * proposal.loss
    + settings.discriminator_weight * losses.sum() / counts['tokens']
  )
  return total, jax.lax.stop_gradient(
    proposal.sums | metrics.verdict_sums(odds, proposal.labels, where, losses, bins)
  )


def judged(settings: Settings, model, params, batch, counts, *, train: bool, samples=None):
  """`propose`, and the log-odds that each token of its corrupted rows is noise, float32 [batch, length]. Arguments as of loss."""
  proposal, log_q = _noise(settings, model, params, batch, counts, train=train, samples=samples)
  energies = model.apply(
    {'params': params},
    batch['inputs']._replace(token_ids=proposal.corrupted),
    dropout_keys(batch, train),
    method='discriminator_logits',
  )
  return proposal, energies + log_q + jnp.log(settings.mask_rate / (1 - settings.mask_rate))


def _noise(settings, model, params, batch, counts, *, train, samples):
  """`propose`, and log q of the tokens that the discriminator reads, float32 [batch, length], without gradient."""
  inputs, masks = batch['inputs'], batch['masks']
  original = jnp.take_along_axis(inputs.token_ids, masks.positions, axis=1)
  states = model.apply(
    {'params': params}, inputs, dropout_keys(batch, train), method='cloze_states'
  )  # of the row as it is

  def logits_of(states):
    return model.apply({'params': params}, states, method='cloze_logits')

  logits = jax.lax.stop_gradient(
    logits_of(jnp.take_along_axis(states, masks.positions[:, :, None], axis=1))
  )
  if samples is None:
    samples = replacement.sample(
      logits, masking.stream(batch['keys'], masking.GUMBEL), temperature=1.0
    )
  corrupted, _ = replacement.corrupt(inputs.token_ids, masks, samples)

  # Of the original tokens it is learned, of those that stand there now it is known.
  log_q = token_log_probabilities(
    logits_of,
    states,
    jnp.stack([inputs.token_ids, corrupted], axis=-1),
    chunk=settings.max_predictions,
  )
  where = candidates(settings, batch)
  losses = -log_q[..., 0] * where
  sums = metrics.generator_sums(logits, original, masks.weights, losses) | {
    'candidates': where.sum(dtype=jnp.int32)
  }
  sums['sampled_correct'] = ((samples == original) * masks.weights.astype(jnp.int32)).sum()
  proposal = Proposal(
    losses.sum() / counts['candidates'],
    sums,
    original,
    corrupted,
    chosen(batch).astype(jnp.float32),
  )
  return proposal, jax.lax.stop_gradient(log_q[..., 1])

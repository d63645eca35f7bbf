"""Electric (Clark et al. 2020b): energies of tokens by noise-contrastive estimation.

The generator is the noise distribution q. It consists of two towers, one for each side, which
predict every token from all others, trained by cross-entropy over every token that may be masked.
Tokens drawn from q replace those at the chosen positions. The discriminator's output is the energy
E(x)_t of each token: exp(-E(x)_t) is the unnormalized probability of the token given the others.
Two densities and the noise rate decide whether a token is noise:

  log-odds of noise = E(x)_t + log q(x_t | all others, before noise)
                      + log(mask_rate / (1 - mask_rate)).

The loss is the binary cross-entropy of these log-odds over every token that is not padding. No
gradient passes through q or the noise.
"""

import jax
import jax.numpy as jnp
import optax

from electra_jax.model.electra import Electra
from electra_jax.pretrain import masking, metrics, replacement
from electra_jax.pretrain.objectives import parts
from electra_jax.pretrain.objectives.chunked import token_log_probabilities
from electra_jax.pretrain.objectives.objective import Objective
from electra_jax.pretrain.objectives.parts import Batch, LossContext, Params, Proposal, Sums
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.training import flops


class Electric(Objective):
  """Noise-contrastive estimation of the energy of every token; see the module.

  Its metrics differ from electra's in three ways. A token drawn from q is labeled as replaced also
  where it equals the original, since the loss compares distributions; `sampled_accuracy` is the
  fraction of such draws. Verdicts are the log-odds above, which include q: where the energies add
  no information to q, the loss is that of the constant predictor or higher. The generator reads no
  [MASK]: its loss is over all tokens that may be masked, its accuracy at the chosen positions.
  """

  losses = {
    'generator_loss': 'generator_weight',
    'discriminator_loss': 'discriminator_weight',
  }
  heads = ('generator_head', 'discriminator_head')
  description = (
    'Electric (Clark et al. 2020b): energies of tokens, trained by noise-contrastive estimation'
  )
  two_tower_generator = True

  def counts(self, settings: Settings, batch: Batch) -> dict[str, jax.Array]:
    """See Objective.counts; `candidates` are the tokens that may be masked, at least 1."""
    counts = super().counts(settings, batch)
    found = candidates(settings, batch).sum(dtype=jnp.int32)
    return counts | {'candidates': jnp.maximum(found, 1)}

  def propose(self, params: Params, context: LossContext) -> Proposal:
    """See Objective.propose; noise is labeled as replaced also where it equals the original."""
    return _noise(params, context)[0]

  def verdicts(self, params: Params, context: LossContext) -> tuple[Proposal, jax.Array]:
    """See Objective.verdicts; the log-odds that each token is noise."""
    settings = context.settings
    proposal, log_q = _noise(params, context)
    energies = parts.verdict_logits(params, context, proposal.corrupted)
    return proposal, energies + log_q + jnp.log(settings.mask_rate / (1 - settings.mask_rate))

  def reference_verdicts(
    self, params: Params, context: LossContext, token_ids: jax.Array, noise: jax.Array
  ) -> jax.Array:
    """See Objective.reference_verdicts; the module's formula, with the unigram distribution as q.

    Energies do not depend on q, so no generator is needed.
    """
    return parts.verdict_logits(params, context, token_ids) + noise

  def loss(self, params: Params, context: LossContext) -> tuple[jax.Array, Sums]:
    """See Objective.loss."""
    settings, (proposal, odds) = context.settings, self.verdicts(params, context)
    where = parts.non_padding(settings, context.batch)  # special tokens included
    losses = optax.sigmoid_binary_cross_entropy(odds, proposal.labels) * where
    total = (
      settings.generator_weight * proposal.loss
      + settings.discriminator_weight * losses.sum() / context.counts['tokens']
    )
    sums = metrics.verdict_sums(odds, proposal.labels, where, losses, context.summing)
    return total, jax.lax.stop_gradient(proposal.sums | sums)

  def generator_flops(self, settings: Settings, model: Electra, length: int) -> list[flops.Part]:
    """See Objective.generator_flops.

    Every position is predicted, and those of the noise a second time to draw from.
    """
    g = model.generator_config
    head = flops.cloze_head_flops(g, length)
    drawn = flops.cloze_head_flops(g, settings.max_predictions)
    return [flops.Part(g, head, drawn=drawn), flops.Part(g, 0)]


def candidates(settings: Settings, batch: Batch) -> jax.Array:
  """The tokens that may be masked, bool [batch, length]."""
  return ~jnp.isin(batch['inputs'].token_ids, jnp.array(settings.special_ids))


def _noise(params: Params, context: LossContext) -> tuple[Proposal, jax.Array]:
  """`propose`, and log q of the tokens that the discriminator reads.

  Returns:
    The proposal; float32 [batch, length], without gradient.
  """
  settings, masks = context.settings, context.masks
  token_ids, original = context.inputs.token_ids, context.original_tokens()
  # The generator reads the rows as they are: no tower sees the token that it predicts.
  states = context.apply(params, context.inputs, context.dropout_keys(), method='cloze_states')

  def logits_of(states: jax.Array) -> jax.Array:
    return context.apply(params, states, method='cloze_logits')

  logits = jax.lax.stop_gradient(
    logits_of(jnp.take_along_axis(states, masks.positions[:, :, None], axis=1))
  )
  samples = context.samples
  if samples is None:
    samples = replacement.sample(logits, context.keys(masking.GUMBEL), temperature=1.0)
  corrupted, _ = replacement.corrupt(token_ids, masks, samples)

  # The generator is trained on the original tokens; the log-odds need those that are read.
  log_q = token_log_probabilities(
    logits_of,
    states,
    jnp.stack([token_ids, corrupted], axis=-1),
    chunk=settings.max_predictions,
  )
  where = candidates(settings, context.batch)
  losses = -log_q[..., 0] * where
  sums = metrics.generator_sums(logits, original, masks.weights, losses, context.summing) | {
    'candidates': context.summing.total(where.astype(jnp.int32)),
    'sampled_correct': parts.count_correct(samples, original, context),
  }
  loss = losses.sum() / context.counts['candidates']
  labels = parts.masked_positions(context.batch).astype(jnp.float32)
  proposal = Proposal(loss, sums, original, corrupted, labels)
  return proposal, jax.lax.stop_gradient(log_q[..., 1])


OBJECTIVE = Electric()

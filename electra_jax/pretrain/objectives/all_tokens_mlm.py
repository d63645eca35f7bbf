"""All-Tokens MLM (Clark et al. 2020, section 3.4)."""

import jax
import jax.numpy as jnp

from electra_jax.pretrain import metrics
from electra_jax.pretrain.objectives import parts
from electra_jax.pretrain.objectives.chunked import token_log_probabilities
from electra_jax.pretrain.objectives.objective import Objective
from electra_jax.pretrain.objectives.parts import LossContext, Params, Sums
from electra_jax.pretrain.objectives.settings import Settings


class AllTokensMLM(Objective):
  """Prediction of every token by the main tower, on the generator's samples, with a copy mechanism.

  The probability of a token is D [it is the input token] + (1 - D) softmax, where D is the
  probability to copy the input token. D is 1 minus the discriminator head's probability of
  "replaced", so verdicts have the meaning that they have in electra.
  """

  losses = {'generator_loss': 'generator_weight', 'prediction_loss': 'prediction_weight'}
  heads = ('generator_head', 'discriminator_head', 'predictor_head')
  description = (
    'All-Tokens MLM (Clark et al. 2020): a generator fills masked tokens, and the main tower '
    'predicts every token or copies it'
  )

  def predicted_positions(self, settings: Settings, length: int) -> int:
    """See Objective.predicted_positions."""
    return length

  def loss(self, params: Params, context: LossContext) -> tuple[jax.Array, Sums]:
    """See Objective.loss; the main tower's cross-entropy is over every token that is not padding.

    `prediction_accuracy` is the fraction of tokens that get more than half of the probability.
    """
    settings, proposal = context.settings, self.propose(params, context)
    hidden = context.apply(
      params,
      context.inputs_with(proposal.corrupted),
      context.dropout_keys(),
      method='hidden_states',
    )
    verdicts = context.apply(params, hidden, context.inputs.positions, method='verdicts')
    log_softmax = token_log_probabilities(
      lambda hidden: context.apply(params, hidden, method='predictions'),
      hidden,
      context.inputs.token_ids[..., None],
      chunk=settings.max_predictions,
    )[..., 0]
    copied = jnp.where(proposal.labels > 0, -jnp.inf, jax.nn.log_sigmoid(-verdicts))
    log_probabilities = jnp.logaddexp(copied, jax.nn.log_sigmoid(verdicts) + log_softmax)
    where = parts.non_padding(settings, context.batch)
    losses = -log_probabilities * where
    total = (
      settings.generator_weight * proposal.loss
      + settings.prediction_weight * losses.sum() / context.counts['tokens']
    )
    sums = metrics.prediction_sums(losses, log_probabilities > jnp.log(0.5), where, context.summing)
    verdict_losses = parts.verdict_losses(verdicts, proposal.labels, where)
    sums |= metrics.verdict_sums(verdicts, proposal.labels, where, verdict_losses, context.summing)
    return total, jax.lax.stop_gradient(proposal.sums | sums)


OBJECTIVE = AllTokensMLM()

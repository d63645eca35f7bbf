"""Replace MLM (Clark et al. 2020, section 3.4)."""

import jax
import jax.numpy as jnp
import optax

from electra_jax.pretrain import metrics
from electra_jax.pretrain.objectives.objective import Objective
from electra_jax.pretrain.objectives.parts import LossContext, Params, Sums


class ReplaceMLM(Objective):
  """Masked language modeling by the main tower, on samples of the generator in place of [MASK].

  The paper measures with it how much of ELECTRA's gain is due to inputs without [MASK].
  """

  losses = {'generator_loss': 'generator_weight', 'prediction_loss': 'prediction_weight'}
  heads = ('generator_head', 'predictor_head')
  description = (
    'Replace MLM (Clark et al. 2020): a generator fills masked tokens, and the main tower predicts '
    'the original tokens'
  )

  def loss(self, params: Params, context: LossContext) -> tuple[jax.Array, Sums]:
    """See Objective.loss; both losses are the cross-entropy at the masked positions."""
    settings, masks = context.settings, context.masks
    proposal = self.propose(params, context)
    logits = context.apply(
      params,
      context.inputs_with(proposal.corrupted),
      masks.positions,
      context.dropout_keys(),
      method='predictor_logits',
    )
    losses = (
      optax.softmax_cross_entropy_with_integer_labels(logits, proposal.original) * masks.weights
    )
    total = (
      settings.generator_weight * proposal.loss
      + settings.prediction_weight * losses.sum() / context.counts['masked']
    )
    correct = jnp.argmax(logits, -1) == proposal.original
    sums = metrics.prediction_sums(losses, correct, masks.weights, context.summing)
    return total, jax.lax.stop_gradient(proposal.sums | sums)


OBJECTIVE = ReplaceMLM()

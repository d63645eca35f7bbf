"""Replaced token detection (Clark et al. 2020, section 3.1)."""

import jax

from electra_jax.pretrain.objectives import parts
from electra_jax.pretrain.objectives.objective import Objective
from electra_jax.pretrain.objectives.parts import LossContext, Params, Sums


class ReplacedTokenDetection(Objective):
  """Masked language modeling by the generator, and a verdict of the discriminator on every token.

  The loss is L_MLM + 50 L_Disc over the parameters of both towers, with no gradient through the
  generator's samples.
  """

  losses = {
    'generator_loss': 'generator_weight',
    'discriminator_loss': 'discriminator_weight',
  }
  heads = ('generator_head', 'discriminator_head')
  description = (
    'replaced token detection (Clark et al. 2020): a generator fills masked tokens, and the '
    'discriminator predicts for every token whether it was replaced'
  )

  def judged_tokens(self, context: LossContext) -> jax.Array:
    """Where the discriminator has a loss, bool [batch, length]; special tokens are included."""
    return parts.non_padding(context.settings, context.batch)

  def loss(self, params: Params, context: LossContext) -> tuple[jax.Array, Sums]:
    """See Objective.loss."""
    settings, proposal = context.settings, self.propose(params, context)
    verdict_loss, sums = parts.judge(params, context, proposal, self.judged_tokens(context))
    total = (
      settings.generator_weight * proposal.loss
      + settings.discriminator_weight * verdict_loss / context.counts['tokens']
    )
    return total, jax.lax.stop_gradient(proposal.sums | sums)


OBJECTIVE = ReplacedTokenDetection()

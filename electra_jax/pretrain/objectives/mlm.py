"""Masked language modeling (Devlin et al. 2019)."""

import jax

from electra_jax.pretrain.objectives import parts
from electra_jax.pretrain.objectives.objective import Objective
from electra_jax.pretrain.objectives.parts import LossContext, Params, Sums


class MaskedLanguageModeling(Objective):
  """Masked language modeling by one tower of full size; no generator, no discriminator.

  Masks are those of the other objectives: 85% of the chosen tokens become [MASK], the others stay
  (Clark et al. 2020, section 3.1).
  """

  losses = {'generator_loss': 'generator_weight'}
  heads = ('generator_head',)
  description = (
    'masked language modeling (Devlin et al. 2019): one tower predicts the masked tokens'
  )
  one_tower = True

  def loss(self, params: Params, context: LossContext) -> tuple[jax.Array, Sums]:
    """See Objective.loss."""
    prediction = parts.predict_masked(params, context)
    loss = context.settings.generator_weight * prediction.loss
    return loss, jax.lax.stop_gradient(prediction.sums)


OBJECTIVE = MaskedLanguageModeling()

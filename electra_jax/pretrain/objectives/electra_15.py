"""ELECTRA 15% (Clark et al. 2020, section 3.4)."""

import jax
import jax.numpy as jnp

from electra_jax.pretrain.objectives import parts
from electra_jax.pretrain.objectives.electra import ReplacedTokenDetection
from electra_jax.pretrain.objectives.parts import Batch, LossContext
from electra_jax.pretrain.objectives.settings import Settings


class MaskedTokenDetection(ReplacedTokenDetection):
  """As electra, with the discriminator's loss and metrics at the masked positions only.

  The paper compares the two to measure the gain of a loss over all tokens.
  """

  description = (
    'replaced token detection (Clark et al. 2020): a generator fills masked tokens, and the '
    'discriminator predicts for the masked tokens whether they were replaced'
  )

  def counts(self, settings: Settings, batch: Batch) -> dict[str, jax.Array]:
    """See Objective.counts; `tokens` are those at the masked positions."""
    counts = super().counts(settings, batch)
    tokens = parts.masked_positions(batch).sum(dtype=jnp.int32)
    return counts | {'tokens': jnp.maximum(tokens, 1)}

  def judged_tokens(self, context: LossContext) -> jax.Array:
    """The masked positions, bool [batch, length]."""
    return parts.masked_positions(context.batch)


OBJECTIVE = MaskedTokenDetection()

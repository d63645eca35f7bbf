"""ELECTRA 15%: as electra, but the discriminator's loss comes from the masked positions alone (Clark et al. 2020, section 3.4).

It tests what there is to gain from learning from all tokens rather than from a few.
"""

import jax

from electra_jax.pretrain import metrics
from electra_jax.pretrain.objectives import common
from electra_jax.pretrain.objectives.common import Settings, chosen, judge, propose
from electra_jax.pretrain.objectives.common import examples as examples
from electra_jax.pretrain.objectives.electra import HEADS as HEADS
from electra_jax.pretrain.objectives.electra import LOSSES as LOSSES


def counts(settings: Settings, batch):
  """As of all objectives, but the tokens judged are those at the masked positions."""
  return common.counts(settings, batch) | {
    'tokens': jax.numpy.maximum(chosen(batch).sum(dtype='int32'), 1)
  }


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
  """As electra.loss; the discriminator's figures are over the masked positions too, so its constant predictor is another."""
  proposal = propose(settings, model, params, batch, counts, train=train, samples=samples)
  verdict_loss, sums = judge(model, params, batch, proposal, chosen(batch), bins, train=train)
  total = (
    settings.generator_weight * proposal.loss
    + settings.discriminator_weight * verdict_loss / counts['tokens']
  )
  return total, jax.lax.stop_gradient(proposal.sums | sums)

"""Replaced token detection: the generator's masked language modelling + the discriminator's verdict on every token.

Clark et al. 2020, section 3.1: minimise L_MLM + 50 L_Disc over both towers, no gradient through the samples.
"""

import jax

from electra_jax.pretrain import metrics
from electra_jax.pretrain.objectives.common import Settings, judge, propose, real
from electra_jax.pretrain.objectives.common import counts as counts
from electra_jax.pretrain.objectives.common import examples as examples

LOSSES = {
  'generator_loss': 'generator_weight',
  'discriminator_loss': 'discriminator_weight',
}  # figure -> its weight in Settings
HEADS = ('generator_head', 'discriminator_head')  # of model.electra.Electra


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

  Returns: scalar; dict of sums, see pretrain/metrics.py.
  """
  proposal = propose(settings, model, params, batch, counts, train=train, samples=samples)
  # Every token that is not padding, special ones included.
  verdict_loss, sums = judge(
    model, params, batch, proposal, real(settings, batch), bins, train=train
  )
  total = (
    settings.generator_weight * proposal.loss
    + settings.discriminator_weight * verdict_loss / counts['tokens']
  )
  return total, jax.lax.stop_gradient(proposal.sums | sums)

"""Masked language modelling (Devlin et al. 2019): one tower of full size, which is kept; no generator, no discriminator.

Masks are those of the other objectives: of the chosen tokens 85% become [MASK] and the rest stay (Clark et al. 2020, section 3.1).
"""

import jax

from electra_jax.pretrain import metrics
from electra_jax.pretrain.objectives.common import Settings, predict_masked
from electra_jax.pretrain.objectives.common import counts as counts
from electra_jax.pretrain.objectives.common import examples as examples

LOSSES = {'generator_loss': 'generator_weight'}
HEADS = (
  'generator_head',
)  # the tower stands in the generator's place, with sharing 'all', and is named `discriminator`: what is kept


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
  """As electra.loss; `bins` and `samples` are not heeded."""
  del bins, samples
  loss, _, _, sums = predict_masked(model, params, batch, counts, train=train)
  return settings.generator_weight * loss, jax.lax.stop_gradient(sums)

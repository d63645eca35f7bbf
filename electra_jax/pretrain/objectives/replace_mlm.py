"""Replace MLM: the main tower predicts the masked tokens, but reads the generator's samples in the place of [MASK].

Clark et al. 2020, section 3.4: it tests how much of ELECTRA's gain comes from never showing [MASK] to the tower that is kept.
"""

import jax
import jax.numpy as jnp
import optax

from electra_jax.pretrain import metrics
from electra_jax.pretrain.objectives.common import Settings, dropout_keys, propose
from electra_jax.pretrain.objectives.common import counts as counts
from electra_jax.pretrain.objectives.common import examples as examples

LOSSES = {'generator_loss': 'generator_weight', 'prediction_loss': 'prediction_weight'}
HEADS = ('generator_head', 'predictor_head')


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
  """As electra.loss: the generator's cross-entropy + the main tower's, both at the masked positions."""
  del bins
  proposal = propose(settings, model, params, batch, counts, train=train, samples=samples)
  masks, inputs = batch['masks'], batch['inputs']._replace(token_ids=proposal.corrupted)
  logits = model.apply(
    {'params': params},
    inputs,
    masks.positions,
    dropout_keys(batch, train),
    method='predictor_logits',
  )
  losses = (
    optax.softmax_cross_entropy_with_integer_labels(logits, proposal.original) * masks.weights
  )
  total = (
    settings.generator_weight * proposal.loss
    + settings.prediction_weight * losses.sum() / counts['masked']
  )
  sums = metrics.prediction_sums(losses, jnp.argmax(logits, -1) == proposal.original, masks.weights)
  return total, jax.lax.stop_gradient(proposal.sums | sums)

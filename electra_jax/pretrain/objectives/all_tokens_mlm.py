"""All-Tokens MLM: the main tower reads the generator's samples and predicts every token, with an explicit copy mechanism.

Clark et al. 2020, section 3.4: a token's probability is D [it stands there] + (1 - D) softmax, D the probability to copy what stands
there. D is one minus the discriminator head's probability of "replaced", so that its verdicts can be read as electra's are.
"""

import jax
import jax.numpy as jnp

from electra_jax.pretrain import metrics
from electra_jax.pretrain.objectives.chunked import token_log_probabilities
from electra_jax.pretrain.objectives.common import (
  Settings,
  dropout_keys,
  propose,
  real,
  verdict_losses,
)
from electra_jax.pretrain.objectives.common import counts as counts
from electra_jax.pretrain.objectives.common import examples as examples

LOSSES = {'generator_loss': 'generator_weight', 'prediction_loss': 'prediction_weight'}
HEADS = ('generator_head', 'discriminator_head', 'predictor_head')


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
  """As electra.loss: the generator's cross-entropy + the main tower's over every token that is not padding.

  `prediction_accuracy` is the share of tokens that get more than half of the probability.
  """
  proposal = propose(settings, model, params, batch, counts, train=train, samples=samples)
  inputs, variables = batch['inputs'], {'params': params}
  hidden = model.apply(
    variables,
    inputs._replace(token_ids=proposal.corrupted),
    dropout_keys(batch, train),
    method='hidden_states',
  )
  verdicts = model.apply(
    variables, hidden, method='verdicts'
  )  # [batch, length], log-odds of "replaced"
  log_softmax = token_log_probabilities(
    lambda hidden: model.apply(variables, hidden, method='predictions'),
    hidden,
    inputs.token_ids[..., None],
    chunk=settings.max_predictions,
  )[..., 0]
  copied = jnp.where(proposal.labels > 0, -jnp.inf, jax.nn.log_sigmoid(-verdicts))
  log_probabilities = jnp.logaddexp(copied, jax.nn.log_sigmoid(verdicts) + log_softmax)
  where = real(settings, batch)
  losses = -log_probabilities * where
  total = (
    settings.generator_weight * proposal.loss
    + settings.prediction_weight * losses.sum() / counts['tokens']
  )
  sums = metrics.prediction_sums(losses, log_probabilities > jnp.log(0.5), where)
  sums |= metrics.verdict_sums(
    verdicts, proposal.labels, where, verdict_losses(verdicts, proposal.labels, where), bins
  )
  return total, jax.lax.stop_gradient(proposal.sums | sums)

"""A pretraining objective of user code: electra with the focal loss for the discriminator."""

import dataclasses

import jax

from electra_jax import registry
from electra_jax.config import default_config, with_arguments
from electra_jax.config.declarations import Config, field
from electra_jax.pretrain import metrics
from electra_jax.pretrain.objectives import parts
from electra_jax.pretrain.objectives.objective import Objective


@dataclasses.dataclass(frozen=True)
class FocalOptions(Config):
  """Options, as config.objective.options."""

  gamma: float = field(2.0, 'Exponent that down-weights easy tokens; 0: cross-entropy.', at_least=0)


class FocalTokenDetection(Objective):
  """Replaced token detection with the focal loss (Lin et al. 2017, equation 4)."""

  losses = {'generator_loss': 'generator_weight', 'discriminator_loss': 'discriminator_weight'}
  heads = ('generator_head', 'discriminator_head')
  description = 'replaced token detection with the focal loss'

  def loss(self, params, context):
    settings = context.settings
    proposal, verdicts = self.verdicts(params, context)
    where = parts.non_padding(settings, context.batch)
    losses = parts.verdict_losses(verdicts, proposal.labels, where)
    p_wrong = jax.nn.sigmoid(verdicts * (1 - 2 * proposal.labels))
    losses = p_wrong**settings.options.gamma * losses
    total = (
      settings.generator_weight * proposal.loss
      + settings.discriminator_weight * losses.sum() / context.counts['tokens']
    )
    sums = metrics.verdict_sums(verdicts, proposal.labels, where, losses, context.summing)
    return total, jax.lax.stop_gradient(proposal.sums | sums)


registry.OBJECTIVES.register(
  'focal', FocalTokenDetection(), help='electra with the focal loss', options=FocalOptions
)


def get_config(arguments=''):
  """A run of a few seconds on a CPU."""
  c = default_config()
  c.name = 'focal'
  c.objective.name = 'focal'
  c.objective.options = {'gamma': 1.0}
  c.data.vocab_size = 300
  c.sequence_length = 32
  c.batch_size = 8
  c.steps = 30
  c.model.update(
    family='modern',
    hidden_size=32,
    embedding_size=32,
    num_layers=1,
    num_heads=2,
    intermediate_size=64,
    layer_norm_eps=1e-5,
    global_every=1,
    vocab_multiple=8,
  )
  c.generator.hidden_fraction = 0.5
  c.optimizer.update(learning_rate=1e-3, warmup_steps=2)
  c.log_every = 3
  c.save_every = 10
  c.eval_every = 10
  c.eval_rows = 16
  c.eval_batch_size = 8
  return with_arguments(c, arguments)

"""A run with the optimizer Lion (Chen et al. 2023), which this config file registers.

python -m electra_jax.main --config=my_run.py --config.optimizer.options.momentum_dtype=bfloat16
"""

import dataclasses

import jax.numpy as jnp
import optax

from electra_jax import registry
from electra_jax.config import Config, default_config, with_arguments
from electra_jax.config.declarations import field
from electra_jax.training.optimizers import (
  OptimizerSettings,
  OptimizerSpec,
  add_weight_decay,
  clip_gradients,
  scale_by_rates,
)


@dataclasses.dataclass(frozen=True)
class LionOptions(Config):
  """Options of Lion, under config.optimizer.options."""

  momentum_dtype: str = field('float32', 'Type of the momentum.', choices=('float32', 'bfloat16'))


def lion(settings: OptimizerSettings) -> optax.GradientTransformation:
  """Lion: the sign of an interpolation of momentum and gradient, with decoupled weight decay."""
  o = settings.config
  dtype = jnp.dtype(settings.options.momentum_dtype)
  return optax.chain(
    clip_gradients(settings),
    optax.scale_by_lion(o.b1, o.b2, mu_dtype=dtype),
    add_weight_decay(o.weight_decay),
    scale_by_rates(settings.rates),
  )


registry.OPTIMIZERS.register('lion', OptimizerSpec(lion), help='Lion', options=LionOptions)


def get_config(arguments: str = ''):
  """A small modern encoder; Lion takes a lower rate and a higher weight decay than AdamW."""
  c = default_config()
  c.name = 'lion'
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
  c.optimizer.update(name='lion', learning_rate=2e-4, warmup_steps=2, b2=0.99, weight_decay=0.1)
  c.optimizer.options = {'momentum_dtype': 'float32'}
  c.micro_batches = 1
  c.log_every, c.save_every, c.eval_every, c.eval_rows, c.eval_batch_size = 3, 5, 10, 16, 8
  return with_arguments(c, arguments)

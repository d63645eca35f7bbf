"""The micro run in two phases with different rows, batches and learning rates, with LAMB."""

from electra_jax.config import with_arguments
from tests.configs import micro


def get_config(arguments=''):
  c = micro.get_config()
  c.name = 'micro_phases'
  c.phases = (
    {
      'steps': 12,
      'sequence_length': 32,
      'batch_size': 8,
      'optimizer.learning_rate': 1e-3,
      'optimizer.warmup_steps': 2,
    },
    {
      'steps': 9,
      'sequence_length': 64,
      'batch_size': 6,
      'optimizer.learning_rate': 5e-4,
      'optimizer.warmup_steps': 3,
    },
  )
  c.steps = 21
  c.save_every = 4
  c.eval_every = 8
  c.optimizer.name = 'lamb'
  return with_arguments(c, arguments)

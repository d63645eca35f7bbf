"""A fine-tuning run of seconds: for tests of the command line."""

from electra_jax.finetune.config import default_config


def get_config():
  c = default_config()
  c.name, c.task = 'finetune_micro', 'cola'
  c.batch_size, c.eval_batch_size, c.max_length, c.epochs, c.num_trials = 8, 8, 32, 2.0, 2
  c.bucketed = False
  c.optimizer.learning_rate = 3e-3
  # Lines, looks at the dev set and saves fall on different steps.
  c.log_every, c.save_every, c.eval_every = 3, 2, 0.5
  return c

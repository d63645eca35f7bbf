"""A fine-tuning run of a few seconds, for tests."""

from electra_jax.finetune.config import default_config


def get_config():
  c = default_config()
  c.name = 'finetune_micro'
  c.task = 'cola'
  c.batch_size = 8
  c.eval_batch_size = 8
  c.max_length = 32
  c.epochs = 2.0
  c.num_trials = 2
  c.bucketed = False
  c.optimizer.learning_rate = 3e-3
  # Logging, evaluation and saving fall on different steps.
  c.log_every = 3
  c.save_every = 2
  c.eval_every = 0.5
  return c

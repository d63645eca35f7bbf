"""The smallest run that has every part, for tests: a few seconds on a CPU core."""

from electra_jax.config import default_config, with_arguments


def get_config(arguments=''):
  c = default_config()
  c.name = 'micro'
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
  c.micro_batches = 1
  # Logging and saving fall on different steps, so that running sums must be in the checkpoints.
  c.log_every = 3
  c.save_every = 5
  c.eval_every = 10
  c.eval_rows = 16
  c.eval_batch_size = 8
  return with_arguments(c, arguments)

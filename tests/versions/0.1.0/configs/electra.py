"""A pretraining run of the electra family: WordPiece, text files, shared embeddings, a schedule."""

from electra_jax.config import default_config


def get_config():
  c = default_config()
  c.name = 'electra'
  c.data.update(source='corpus.txt', tokenizer='wordpiece', vocab_size=160, heldout_fraction=0.1)
  c.data.update(cache='cache', reader='numpy', workers=1)
  c.update(sequence_length=32, batch_size=8, steps=24, micro_batches=2)
  c.model.update(
    hidden_size=16,
    embedding_size=8,
    num_layers=2,
    num_heads=2,
    intermediate_size=32,
    max_positions=48,
    vocab_multiple=8,
  )
  c.generator.hidden_fraction = 0.5
  c.objective.schedules.mask_rate = ('linear', 0.1, 0.3)
  # With the default epsilon, an update whose gradient is only rounding has a random sign.
  c.optimizer.update(learning_rate=1e-3, warmup_steps=3, eps=1e-4)
  c.update(log_every=3, eval_every=6, save_every=6, keep=1, eval_rows=16, eval_batch_size=8)
  c.compilation_cache = ''
  return c

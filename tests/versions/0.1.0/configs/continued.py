"""Training that continues from the exported modern run, on the token store."""

from electra_jax.config import default_config


def get_config():
  c = default_config()
  c.update(name='continued', init='hf:exports/modern')
  c.data.update(store='store', cache='cache', reader='numpy', workers=1)
  c.update(sequence_length=32, batch_size=8, steps=4, micro_batches=1)
  c.model.vocab_multiple = 8
  c.optimizer.update(learning_rate=1e-3, warmup_steps=2, eps=1e-4)
  c.update(log_every=2, eval_every=4, save_every=4, keep=1, eval_rows=16, eval_batch_size=8)
  c.compilation_cache = ''
  return c

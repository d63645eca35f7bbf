"""What --mode=prepare makes the token store from: a unigram tokenizer on the corpus."""

from electra_jax.config import default_config


def get_config():
  c = default_config()
  c.name = 'store'
  c.data.update(source='corpus.txt', vocab_size=160, heldout_fraction=0.1, cache='cache', workers=1)
  c.update(sequence_length=32, batch_size=8, steps=24)
  c.optimizer.warmup_steps = 2
  return c

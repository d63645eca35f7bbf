"""A pretraining run of the modern family: a token store, two phases, LAMB, two learning rates."""

from electra_jax.config import default_config


def get_config():
  c = default_config()
  c.name = 'modern'
  c.data.update(store='store', cache='cache', reader='numpy', workers=1)
  c.update(sequence_length=32, batch_size=8, steps=24, micro_batches=1)
  c.phases = (
    {'steps': 14, 'batch_size': 8, 'optimizer.learning_rate': 2e-3, 'optimizer.warmup_steps': 2},
    {'steps': 10, 'batch_size': 6, 'optimizer.learning_rate': 1e-3, 'optimizer.warmup_steps': 3},
  )
  c.model.update(
    family='modern',
    hidden_size=16,
    embedding_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=24,
    layer_norm_eps=1e-5,
    global_every=2,
    local_window=8,
    vocab_multiple=8,
  )
  c.generator.update(hidden_fraction=1.0, layers_fraction=0.5)  # transformers can express it
  c.sharing = 'none'
  c.optimizer.update(name='lamb', learning_rate=2e-3, warmup_steps=2, eps=1e-4)
  c.optimizer.update(generator_learning_rate=1e-3, bias_correction=True)
  c.update(log_every=3, eval_every=6, save_every=6, keep=1, eval_rows=16, eval_batch_size=8)
  c.compilation_cache = ''
  return c

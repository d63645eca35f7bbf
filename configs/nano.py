"""1.2 million parameters, to compare objectives on a laptop's CPU; the base of configs/sweeps/.

  python -m electra_jax.main --config=configs/nano.py --config.data.source='text/*.txt.xz'

Of the modern family, cased, with rows of 64 tokens and a generator of half the width. On one core
of an AMD EPYC 1.3 million tokens of electra (8e12 FLOPs) take 5 min 20 s, as do 1.7 million tokens
of mlm. Batches are small, since at this size the number of updates decides. With a
learning rate of 1e-3 the discriminator becomes better than the constant predictor within a million
tokens; with 2e-3 it hardly does, while mlm is best there (docs/results.md).
"""

import ml_collections

from electra_jax.config import default_config, with_arguments


def get_config(arguments: str = '') -> ml_collections.ConfigDict:
  """The config; `arguments` are those after the colon of --config=FILE:name=value,...."""
  c = default_config()
  c.name = 'nano'
  c.data.vocab_size = 4_096
  c.sequence_length = 64
  c.batch_size = 16
  c.steps = 1_280
  c.model.update(
    family='modern',
    hidden_size=128,
    embedding_size=128,
    num_layers=4,
    num_heads=4,
    intermediate_size=256,
    layer_norm_eps=1e-5,
    global_every=1,
    dropout=0.0,
    attention_dropout=0.0,
  )
  c.generator.hidden_fraction = 0.5
  c.optimizer.update(learning_rate=1e-3, warmup_steps=100, b2=0.98, bias_correction=True)
  c.log_every = 100
  c.eval_every = 500
  c.save_every = 500
  c.keep = 1
  return with_arguments(c, arguments)

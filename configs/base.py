"""ELECTRA-Base as published (Clark et al. 2020, table 6): 110 M parameters in the discriminator, rows of 512.

  python -m electra_jax.main --config=configs/base.py --config.data.source='corpus/*.txt.gz'

Meant for 8 GPUs or a v5e-16 slice. The published run saw 100 billion tokens in 4 days on 16 TPU v3 and reached 85.1 on GLUE's
development sets (table 1). On a laptop it starts, and says what a step costs; for steps of seconds:

  python -m electra_jax.main --config=configs/base.py:batch=4,seq=128,steps=100,warmup=10
"""

from electra_jax.config import default_config, with_arguments


def get_config(arguments=''):
  c = default_config()
  c.name = 'base'
  c.sequence_length, c.batch_size, c.steps = 512, 256, 766_000
  c.model.update(hidden_size=768, embedding_size=768, num_heads=12, intermediate_size=3072)
  c.generator.hidden_fraction = 1 / 3
  c.optimizer.learning_rate = 2e-4
  return with_arguments(c, arguments)

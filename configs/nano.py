"""1.2 million parameters, for comparing objectives on a laptop's CPU: what configs/sweeps/ varies.

  python -m electra_jax.main --config=configs/nano.py --config.data.source='text/*.txt.xz'

Of the modern family, cased, rows of 64, a generator of half the width. On one core of an AMD EPYC 1.3 million tokens of electra (8e12 FLOPs) take 5 min 20 s, of mlm
1.7 million. Small batches: at this size the number of updates decides. With its rate of 1e-3 the discriminator leaves the constant predictor
behind within a million tokens; at 2e-3 it hardly does, while mlm is best there (docs/results.md).
"""

from electra_jax.config import default_config, with_arguments


def get_config(arguments=''):
  c = default_config()
  c.name = 'nano'
  c.data.vocab_size = 4_096
  c.sequence_length, c.batch_size, c.steps = 64, 16, 1_280
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
  c.log_every, c.eval_every, c.save_every, c.keep = 100, 500, 500, 1
  return with_arguments(c, arguments)

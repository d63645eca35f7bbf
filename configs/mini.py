"""Two million parameters, for an hour or two on a laptop's CPU; docs/results.md fine-tunes it.

  python -m electra_jax.main --config=configs/mini.py --config.data.source='text/*.txt.xz'

Of the modern family, cased, with rows of 128 tokens. One tower serves as generator and
discriminator, as in the paper's ablation (section 3.2): with so small a budget one tower that is
trained twice as much does better than two.
"""

import ml_collections

from electra_jax.config import default_config, with_arguments


def get_config(arguments: str = '') -> ml_collections.ConfigDict:
  """The config; `arguments` are those after the colon of --config=FILE:name=value,...."""
  c = default_config()
  c.name = 'mini'
  c.data.vocab_size = 8_192
  c.sequence_length = 128
  c.batch_size = 32
  c.steps = 3_000
  c.model.update(
    family='modern',
    hidden_size=128,
    embedding_size=128,
    num_layers=6,
    num_heads=4,
    intermediate_size=256,
    layer_norm_eps=1e-5,
    global_every=1,
    dropout=0.0,
    attention_dropout=0.0,
  )
  c.generator.update(hidden_fraction=1.0, layers_fraction=1.0)
  c.sharing = 'all'
  c.optimizer.update(learning_rate=2e-3, warmup_steps=300, b2=0.98, bias_correction=True)
  c.log_every = 100
  c.eval_every = 500
  c.save_every = 500
  c.keep = 20
  return with_arguments(c, arguments)

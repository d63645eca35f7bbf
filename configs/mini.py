"""Two million parameters, an hour or two on a laptop's CPU: the encoder that docs/results.md fine-tunes.

  python -m electra_jax.main --config=configs/mini.py --config.data.source='text/*.txt.xz'

Of the modern family, cased, rows of 128. One tower serves as generator and discriminator, as in the paper's ablation (section 3.2),
since a budget this small teaches one tower twice more than two towers once.
"""

from electra_jax.config import default_config, with_arguments


def get_config(arguments=''):
  c = default_config()
  c.name = 'mini'
  c.data.vocab_size = 8_192
  c.sequence_length, c.batch_size, c.steps = 128, 32, 3_000
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
  c.log_every, c.eval_every, c.save_every, c.keep = 100, 500, 500, 20
  return with_arguments(c, arguments)

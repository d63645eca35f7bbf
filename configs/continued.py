"""Go on from weights that are there, on one's own text: published ones, or those of a run.

  python -m electra_jax.main --config=configs/continued.py --config.init=hf:FOLDER --config.data.source=text.txt

FOLDER holds a model of transformers, or `discriminator` and `generator` with one each; tf:CHECKPOINT and a run's folder will do too. Sizes,
sharing and vocabulary are its own. For ELECTRA-Base on one GPU or a v5e-4; a smaller model takes a higher rate (5e-4 for small), and more
memory more rows. docs/continued.md has the rest: a generator that is missing, new words, longer rows.
"""

from electra_jax.config import default_config, with_arguments


def get_config(arguments=''):
  c = default_config()
  c.name = 'continued'
  c.data.tokenizer = 'init'
  c.sequence_length, c.batch_size, c.steps = 128, 256, 20_000
  # Half the published peak: far enough from the first optimum to learn the new text, near enough not to forget the old.
  c.optimizer.update(learning_rate=1e-4, warmup_steps=1_000)
  c.eval_every = c.save_every = 1_000
  return with_arguments(c, arguments)

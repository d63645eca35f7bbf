r"""Continue pretraining from existing weights on another corpus.

  python -m electra_jax.main --config=configs/continued.py --config.init=hf:FOLDER \
      --config.data.source=text.txt

FOLDER holds a model of transformers, or `discriminator` and `generator` with one each;
tf:CHECKPOINT and the folder of a run are accepted too. Sizes, sharing and vocabulary are those of
the weights. Meant for ELECTRA-Base on one GPU or a v5e-4 slice; a smaller model takes a higher
learning rate (5e-4 for Small), and more memory allows more rows. docs/continued.md describes what
to do where the generator is missing, the corpus has new words or the rows are longer.
"""

import ml_collections

from electra_jax.config import default_config, with_arguments


def get_config(arguments: str = '') -> ml_collections.ConfigDict:
  """The config; `arguments` are those after the colon of --config=FILE:name=value,...."""
  c = default_config()
  c.name = 'continued'
  c.data.tokenizer = 'init'
  c.sequence_length = 128
  c.batch_size = 256
  c.steps = 20_000
  # Half the published peak: enough to learn the new text, and not so much as to forget the old.
  c.optimizer.update(learning_rate=1e-4, warmup_steps=1_000)
  c.eval_every = c.save_every = 1_000
  return with_arguments(c, arguments)

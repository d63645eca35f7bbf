"""A segmenter of user code: words of Thai, which is written without spaces, by a list of words."""

import re

from electra_jax import registry
from electra_jax.config import default_config, with_arguments

# A real list has tens of thousands; libraries such as PyThaiNLP, jieba or MeCab have them.
WORDS = ('มนุษย์', 'ทั้งหลาย', 'เกิด', 'มา', 'มี', 'อิสระ')
LONGEST_FIRST = sorted(WORDS, key=len, reverse=True)
THAI_WORD = re.compile('|'.join([*LONGEST_FIRST, '[\u0e00-\u0e7f]', '[^\u0e00-\u0e7f]+']))


def thai_words(text):
  """The words of a text in their order; what is not Thai remains as it is."""
  return THAI_WORD.findall(text)


thai_words.version = 1  # raise it when the function begins to give other words

registry.SEGMENTERS.register('thai', thai_words, help='Thai, by the longest word of a list')


def get_config(arguments=''):
  """A run of a few seconds on a CPU."""
  c = default_config()
  c.name = 'thai'
  c.data.tokenizer = 'wordpiece'
  c.data.segmenter = 'thai'
  c.data.vocab_size = 300
  c.sequence_length = 32
  c.batch_size = 8
  c.steps = 30
  c.model.update(
    family='modern',
    hidden_size=32,
    embedding_size=32,
    num_layers=1,
    num_heads=2,
    intermediate_size=64,
    layer_norm_eps=1e-5,
    global_every=1,
    vocab_multiple=8,
  )
  c.generator.hidden_fraction = 0.5
  c.optimizer.update(learning_rate=1e-3, warmup_steps=2)
  c.log_every, c.eval_every, c.eval_rows, c.eval_batch_size = 3, 10, 16, 8
  return with_arguments(c, arguments)

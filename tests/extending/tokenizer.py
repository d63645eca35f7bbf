"""A tokenizer of user code: one token per character, lower-cased or not."""

import collections
import dataclasses

import numpy as np

from electra_jax import registry
from electra_jax.config import default_config, with_arguments
from electra_jax.config.declarations import Config, field
from electra_jax.data.tokenizers.tokenization import SPECIAL_TOKENS, Tokenizer


@dataclasses.dataclass(frozen=True)
class CharacterOptions(Config):
  """Options, as config.data.tokenizer_options."""

  lowercase: bool = field(True, 'Lower-case the text.')


class CharacterTokenizer(Tokenizer):
  """One token per character; characters outside the vocabulary are [UNK]."""

  kind = 'characters'  # the name that it is registered under
  notation = 'A token is one character.'

  def __init__(self, files, source, options):
    characters = files['characters.txt'].decode()
    super().__init__(files, [*SPECIAL_TOKENS, *characters], options=options)

  @classmethod
  def train(cls, sample, settings):
    counts = collections.Counter(' ')
    for line in sample.lines:
      counts.update(cls._normalized(line, settings.options))
    frequent = sorted(counts, key=lambda character: (-counts[character], character))
    chosen = frequent[: settings.vocab_size - len(SPECIAL_TOKENS)]
    return {'characters.txt': ''.join(sorted(chosen)).encode()}

  @staticmethod
  def _normalized(text, options):
    text = ' '.join(text.split())
    return text.lower() if options.lowercase else text

  def encode_short(self, texts, threads):
    ids = self.ordinary_ids
    return [
      np.array([ids.get(c, self.unk_id) for c in self._normalized(text, self.options)], np.int32)
      for text in texts
    ]

  def decode_ordinary(self, ids):
    return ''.join(self.tokens[i] for i in ids)

  # Optional: for masking of whole words, and for `AutoTokenizer` of transformers.

  def compute_word_starts(self):
    return np.array([not token.isalnum() for token in self.tokens])

  def to_pipeline(self):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    ids = {token: i for i, token in enumerate(self.tokens)}
    pipeline = Tokenizer(models.WordLevel(ids, unk_token='[UNK]'))
    steps = [normalizers.Replace(Regex(r'\s+'), ' '), normalizers.Strip()]
    steps += [normalizers.Lowercase()] if self.options.lowercase else []
    pipeline.normalizer = normalizers.Sequence(steps)
    pipeline.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated')
    pipeline.decoder = decoders.Fuse()
    return pipeline


registry.TOKENIZERS.register(
  'characters', CharacterTokenizer, help='one token per character', options=CharacterOptions
)


def get_config(arguments=''):
  """A run of a few seconds on a CPU."""
  c = default_config()
  c.name = 'characters'
  c.data.tokenizer = 'characters'
  c.data.tokenizer_options = {'lowercase': False}
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

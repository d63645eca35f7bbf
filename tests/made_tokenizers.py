"""Tokenizers for tests: texts that they are trained on, and models as other projects train them."""

import functools
import io
import lzma

from electra_jax.data.corpus import corpora
from electra_jax.data.tokenizers import tokenization


def sample_text(characters, start=0):
  """Text of the bundled corpus."""
  return lzma.open(corpora.SAMPLE_PATH, 'rt', encoding='utf-8').read(start + characters)[start:]


@functools.cache
def documents():
  """The first documents of the bundled corpus."""
  return sample_text(150_000).split('\n\n')


def train(texts, expected_characters=None, **settings):
  """A tokenizer trained on texts, with fields of TokenizerSettings."""
  settings = tokenization.TokenizerSettings(**settings)
  return tokenization.train_tokenizer(texts, settings, expected_characters)


def sentencepiece_model(lines, **settings):
  """The model file that SentencePiece trains with its own defaults, as other projects use it."""
  import sentencepiece

  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=model,
    **{'vocab_size': 300, 'hard_vocab_limit': False, 'minloglevel': 2} | settings,
  )
  return model.getvalue()

"""A segmenter of user code decides where words begin, for every kind of tokenizer."""

import pathlib
import pickle
import sys

import foreign_tokenizers
import made_tokenizers
import numpy as np
import pytest

from electra_jax import registry
from electra_jax.data.tokenizers import segmenters, tokenization
from electra_jax.errors import UserError
from electra_jax.interop import tokenizer_files

EXAMPLE = pathlib.Path(__file__).parents[1] / 'extending' / 'segmenter.py'
TEXT = 'มนุษย์ทั้งหลายเกิดมามีอิสระ The old, มี'
WORDS = ['มนุษย์', 'ทั้งหลาย', 'เกิด', 'มา', 'มี', 'อิสระ', 'The', 'old', ',', 'มี']


@pytest.fixture(autouse=True)
def plugin():
  registry.load_plugins([EXAMPLE])
  yield
  registry.SEGMENTERS._entries.clear()
  for name, module in list(sys.modules.items()):
    if getattr(module, '__file__', None) == str(EXAMPLE):
      del sys.modules[name]


def train(kind, **settings):
  texts = [*made_tokenizers.documents()[:8], *[TEXT] * 8]
  return made_tokenizers.train(texts, kind=kind, vocab_size=420, segmenter='thai', **settings)


def words(tokenizer, text):
  """The text of each word, by word starts and offsets."""
  ((ids, spans),) = tokenizer.encode_with_offsets([text])
  assert ids.tolist() == tokenizer.encode(text)
  starts = tokenizer.word_starts[ids]
  starts[0] = True
  first = np.flatnonzero(starts)
  last = np.append(first[1:], len(ids)) - 1
  return [
    text[spans[a, 0] : spans[b, 1]]
    for a, b in zip(first, last, strict=True)
    if spans[a, 0] < spans[b, 1]
  ]


@pytest.mark.parametrize('kind', tuple(registry.TOKENIZERS))
def test_words_are_those_of_the_segmenter(kind, tmp_path):
  tokenizer = train(kind, byte_fallback=kind == 'unigram')
  assert words(tokenizer, TEXT) == WORDS
  tokenizer.save(tmp_path)
  for other in (tokenization.load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
    assert words(other, TEXT) == WORDS and other.fingerprint == tokenizer.fingerprint


def test_an_existing_tokenizer_gets_a_segmenter(tmp_path):
  folder = foreign_tokenizers.write('xlm_roberta', tmp_path / 'xlm')
  plain = tokenization.load_tokenizer(folder)
  tokenizer = plain.with_segmenter('thai')
  assert words(tokenizer, TEXT) == WORDS and len(words(plain, TEXT)) > len(WORDS)
  assert tokenizer.fingerprint != plain.fingerprint
  tokenizer.save(tmp_path / 'saved')
  assert tokenization.load_tokenizer(tmp_path / 'saved').fingerprint == tokenizer.fingerprint


def test_offsets_are_those_of_the_original_text():
  tokenizer = train('wordpiece')
  text = f'  {TEXT}  x'
  for ids, spans in tokenizer.encode_with_offsets([text, '', 'a']):
    assert len(ids) == len(spans)
  ((ids, spans),) = tokenizer.encode_with_offsets([text])
  joined = ''.join(text[a:b] for a, b in spans)
  assert joined == ''.join(text.split()) and (np.diff(spans[:, 0]) > 0).all()


def test_without_the_segmenter_a_tokenizer_is_not_opened(tmp_path):
  train('wordpiece').save(tmp_path)
  registry.SEGMENTERS._entries.clear()
  with pytest.raises(UserError, match="segmenter 'thai', which is not registered; set --plugins"):
    tokenization.load_tokenizer(tmp_path)
  registry.SEGMENTERS.register('thai', str.split)
  with pytest.raises(UserError, match="'thai' has version 0, .* made with version 1"):
    tokenization.load_tokenizer(tmp_path)


def test_words_that_are_not_those_of_the_text_are_refused():
  for wrong in (lambda text: ['other'], lambda text: ['The', 'cat'], lambda text: [text, text]):
    with pytest.raises(UserError, match='expected the words of the text in their order'):
      segmenters.separated('The old cat', wrong)
  assert segmenters.separated('The old cat', str.split)[0] == 'The old cat'
  assert segmenters.separated('ab', lambda text: [])[0] == 'ab'


def test_an_unknown_segmenter_is_refused():
  with pytest.raises(UserError, match="config.data.segmenter is 'tai'.*did you mean 'thai'"):
    segmenters.segmenter_record('tai')
  registry.SEGMENTERS._entries.clear()
  with pytest.raises(UserError, match='expected one that the config file registers'):
    segmenters.segmenter_record('thai')


def test_an_export_says_that_words_must_be_separated(capsys):
  tokenizer_files.files(train('wordpiece'), 64, True)
  assert 'transformers does not run the segmenter' in capsys.readouterr().out

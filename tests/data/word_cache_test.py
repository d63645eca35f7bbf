"""Encoding word by word gives the ids of the library, and each word is encoded once."""

import functools
import unicodedata

import made_tokenizers
import numpy as np
import pytest

from electra_jax.data.corpus import corpora
from electra_jax.data.tokenizers import word_cache


@pytest.fixture(scope='module')
def texts():
  return [text for text, _ in zip(corpora.read_documents('sample'), range(40), strict=False)]


SETTINGS = [
  {'lowercase': True},
  {'lowercase': False},
  {'lowercase': True, 'strip_accents': False, 'normalization': 'nfc'},
  {'lowercase': True, 'casing': 'turkish', 'normalization': 'nfkc'},
  {'normalization': 'auto'},
]


@pytest.fixture(scope='module', params=SETTINGS, ids=str)
def tokenizer(request, texts):
  return made_tokenizers.train(texts, kind='wordpiece', vocab_size=2000, **request.param)


@functools.cache  # for all settings
def odd_text(seed, length=30_000):
  """Characters of all kinds: spaces, controls, marks, joiners, scripts, surrogate-free."""
  rng = np.random.default_rng(seed)
  usual = np.array([ord(c) for c in 'abcdeéABC   \n\n.,!-'])
  odd = rng.integers(1, 0x11000, 400)
  marks = np.array([0x301, 0x308, 0x200D, 0x200B, 0xA0, 0x3000, 0x85, 0x1C, 0x1D, 9, 13, 0x130])
  codes = rng.choice(np.concatenate([np.repeat(usual, 40), odd, np.repeat(marks, 8)]), length)
  return ''.join(chr(c) for c in codes if unicodedata.category(chr(c)) != 'Cs')


def library(tokenizer, texts):
  return [np.array(ids, np.int32) for ids in tokenizer._encode(list(texts))]


def same(found, expected):
  return len(found) == len(expected) and all(map(np.array_equal, found, expected))


def test_the_ids_are_those_of_the_library(tokenizer, texts):
  assert sum(map(len, texts)) > word_cache.LEAST_CHARACTERS
  assert same(tokenizer.encode_short(texts, 1), library(tokenizer, texts))
  for seed in range(8):
    odd = [odd_text(seed), '', ' ', 'x' * 300, odd_text(seed + 100, 10)]
    assert same(tokenizer.encode_short(odd, 1), library(tokenizer, odd)), seed
  assert all(ids.dtype == np.int32 for ids in tokenizer.encode_short(texts, 1))


def test_each_word_is_encoded_once_and_the_table_is_bounded(monkeypatch):
  asked = []

  def encode(words):
    asked.extend(words)
    return [[len(word)] * (len(word) > 0) for word in words]

  cache = word_cache.WordCache(encode)
  assert [ids.tolist() for ids in cache.encode(['a bb\na', 'bb  ccc'])] == [[1, 2, 1], [2, 3]]
  assert [ids.tolist() for ids in cache.encode(['ccc a', ''])] == [[3, 1], []]
  assert sorted(asked) == ['', 'a', 'bb', 'ccc']
  monkeypatch.setattr(word_cache, 'MOST_CHARACTERS', 10)
  cache.encode(['long words are not kept'])
  assert cache.encode(['a'])[0].tolist() == [1] and asked.count('a') == 2

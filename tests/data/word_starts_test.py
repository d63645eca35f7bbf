"""Word starts: which tokens begin a word, in vocabularies of every kind."""

import functools
import json
import pathlib
import pickle
import re

import made_tokenizers
import numpy as np
import pytest

from electra_jax import registry
from electra_jax.data.tokenizers import tokenization
from electra_jax.errors import UserError

BERT = pathlib.Path(__file__).parents[3] / 'shared/data/vocab/bert-base-uncased.txt'


@functools.cache
def trained(kind, **options):
  return made_tokenizers.train(made_tokenizers.documents(), kind=kind, vocab_size=600, **options)


def words(tokenizer, text):
  """Ids of each word of a text, by `word_starts`."""
  found = []
  for i in tokenizer.encode(text):
    if tokenizer.word_starts[i] or not found:
      found.append([])
    found[-1].append(i)
  return found


def spelled(tokenizer, text):
  return [' '.join(tokenizer.token(i) for i in word) for word in words(tokenizer, text)]


def check_words_of_bert(tokenizer):
  pipeline = tokenizer.to_pipeline()
  several = 0
  for text in made_tokenizers.documents()[:20]:
    normalized = pipeline.normalizer.normalize_str(text)
    expected = [word for word, _ in pipeline.pre_tokenizer.pre_tokenize_str(normalized)]
    found = words(tokenizer, text)
    assert len(found) == len(expected) > 30
    for ids, word in zip(found, expected, strict=True):
      assert (
        ids == [tokenizer.unk_id]
        or ''.join(tokenizer.token(i).removeprefix('##') for i in ids) == word
      )
      several += len(ids) > 1
  assert several > 100


def test_wordpieces_without_hashes_begin_words():
  check_words_of_bert(trained('wordpiece'))


@pytest.mark.skipif(not BERT.exists(), reason='needs ../shared/data/vocab')
def test_word_starts_of_the_published_bert_vocabulary():
  tokenizer = tokenization.load_tokenizer(BERT)
  check_words_of_bert(tokenizer)
  assert spelled(tokenizer, "Unaffordable, isn't it? 東京 [MASK]") == [
    'una ##ff ##ord ##able',
    ',',
    'isn',
    "'",
    't',
    'it',
    '?',
    '東',
    '京',
    '[',
    'mask',
    ']',
  ]
  assert (tokenizer.size, int((~tokenizer.word_starts).sum())) == (30522, 5828)


@pytest.mark.parametrize('kind', ['unigram', 'bpe'])
def test_sentencepieces_after_a_space_or_with_punctuation_begin_words(kind):
  tokenizer, plain, several = trained(kind), 0, 0
  for text in made_tokenizers.documents()[:20]:
    ((ids, spans),) = tokenizer.encode_with_offsets([text])
    first = np.flatnonzero(tokenizer.word_starts[ids])
    after = np.append(first[1:], len(ids))
    seen = spans[:, 0] < spans[:, 1]  # not a single space
    found = {
      (spans[a:b][seen[a:b]].min(initial=10**6), spans[b - 1, 1]): b - a
      for a, b in zip(first, after, strict=True)
    }
    assert first[0] == 0
    for word in re.finditer(r'(?<!\S)[A-Za-z]+(?!\S)', text):  # only letters between spaces
      several += found[word.span()] > 1
      plain += 1
    for word in re.finditer(r'(?<!\S)([(\"])([A-Za-z]+)([.,)])(?!\S)', text):  # marks at both ends
      assert word.span(3) in found and (word.start(), word.end(2)) in found
  assert plain > 1000 and several > 300
  assert (
    spelled(tokenizer, '(see)')[-1] == ')'
    and spelled(tokenizer, "don't")[-1].replace(' ', '') == "'t"
  )


@pytest.mark.parametrize(
  'text, expected',
  [
    ('ï', ['▁ <0xC3> <0xAF>']),  # a Latin letter
    ('न', ['▁ <0xE0> <0xA4> <0xA8>']),  # Devanagari is written with spaces
    ('日本', ['▁', '<0xE6> <0x97> <0xA5>', '<0xE6> <0x9C> <0xAC>']),  # Chinese is not
    ('“😀', ['▁', '<0xE2> <0x80> <0x9C>', '<0xF0> <0x9F> <0x98> <0x80>']),
  ],
)
def test_the_first_byte_of_a_character_decides(text, expected):
  assert spelled(trained('unigram', byte_fallback=True), text) == expected


def other_model(**options):
  """A small SentencePiece model with usual names and ids of special tokens."""
  lines = [
    'the cat sat on the mat',
    '日本語 の 文章 を 読 む',
    '東京 に 行 く',
    'สวัส ดี คน',
    'मेरा नाम नहीं',
    '한국어 사람',
  ] * 20
  return made_tokenizers.sentencepiece_model(
    lines,
    vocab_size=90,
    character_coverage=1.0,
    pad_id=0,
    unk_id=1,
    bos_id=-1,
    eos_id=-1,
    pad_piece='<pad>',
    unk_piece='<unk>',
    control_symbols=['[CLS]', '[SEP]', '[MASK]'],
    num_threads=1,
    **options,
  )


def test_each_piece_of_a_script_without_spaces_begins_a_word(tmp_path):
  (tmp_path / 'spiece.model').write_bytes(other_model(user_defined_symbols=['<sep>', 'zz']))
  tokenizer = tokenization.load_tokenizer(tmp_path)
  starts = dict(zip(tokenizer.tokens, tokenizer.word_starts.tolist(), strict=True))
  assert starts['<sep>'] and starts['▁'] and not starts['zz'] and not starts['<unk>']
  characters = [token for token in tokenizer.tokens if len(token) == 1]
  for character in characters:
    assert starts[character] == (character in '▁日本語の文章を読む東京に行くสวสดคน'), (
      character
    )  # not the vowel signs ั ิ ा
  assert {'日', 'の', 'ส', 'ั', 'ा', '한', 'c'} <= set(characters)
  assert len(spelled(tokenizer, 'q')) == 1  # the unknown, with its space


def test_a_model_with_spaces_after_words_is_refused(tmp_path):
  (tmp_path / 'spiece.model').write_bytes(other_model(treat_whitespace_as_suffix=True))
  tokenizer = tokenization.load_tokenizer(tmp_path)
  tokenizer.encode('the cat')  # supported
  with pytest.raises(UserError, match='space of a word at its end.*uniform'):
    _ = tokenizer.word_starts


@pytest.mark.parametrize('kind', tuple(registry.TOKENIZERS))
def test_word_starts_survive_saving_and_pickling(kind, tmp_path):
  tokenizer = trained(kind)
  tokenizer.save(tmp_path)
  for other in (tokenization.load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
    assert np.array_equal(other.word_starts, tokenizer.word_starts)
  assert (
    tokenizer.word_starts.shape == (600,)
    and tokenizer.word_starts.dtype == bool
    and tokenizer.word_starts is tokenizer.word_starts
  )
  with pytest.raises(ValueError, match='read-only'):
    tokenizer.word_starts[0] = True


@pytest.mark.parametrize('kind', ['unigram', 'wordpiece'])
def test_added_words_begin_words_and_added_insides_do_not(kind):
  more = trained(kind).with_words(['electra', '##trax'])
  assert more.word_starts[600:].tolist() == [True, False]
  assert np.array_equal(more.word_starts[:600], trained(kind).word_starts)


def test_tokens_that_transformers_added_begin_words(tmp_path):
  trained('wordpiece').save(tmp_path)
  settings = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  settings['added_tokens_decoder'] = {'600': {'content': '<ent>', 'special': False}}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
  (tmp_path / 'SHA256SUMS').unlink()  # accepts the change
  tokenizer = tokenization.load_tokenizer(tmp_path)
  assert tokenizer.word_starts.shape == (601,) and tokenizer.word_starts[600]
  assert spelled(tokenizer, 'the <ent>.') == ['the', '<ent>', '.']

"""Which tokens begin a word: those that begin the words of a text, for vocabularies of every kind and of others."""

import functools
import io
import json
import lzma
import pathlib
import pickle
import re

import numpy as np
import pytest

from electra_jax.data.corpus import corpora
from electra_jax.data.tokenizers import tokenization, vocabulary, wordpiece_tokenizer
from electra_jax.errors import UserError

BERT = pathlib.Path(__file__).parents[3] / 'shared/data/vocab/bert-base-uncased.txt'


@functools.cache
def texts():
  return lzma.open(corpora.SAMPLE_PATH, 'rt', encoding='utf-8').read(150_000).split('\n\n')


@functools.cache
def trained(kind, **options):
  return tokenization.train_tokenizer(texts(), kind=kind, vocab_size=600, **options)


def words(tokenizer, text):
  """Ids of each word of a text, as the table has them."""
  found = []
  for i in tokenizer.encode(text):
    if tokenizer.word_starts[i] or not found:
      found.append([])
    found[-1].append(i)
  return found


def spelled(tokenizer, text):
  return [' '.join(tokenizer.token(i) for i in word) for word in words(tokenizer, text)]


def wordpieces_are_the_words_of_bert(tokenizer):
  cut = wordpiece_tokenizer.pipeline(tokenizer.files)
  several = 0
  for text in texts()[:20]:
    expected = [
      word for word, _ in cut.pre_tokenizer.pre_tokenize_str(cut.normalizer.normalize_str(text))
    ]
    found = words(tokenizer, text)
    assert len(found) == len(expected) > 30
    for ids, word in zip(found, expected, strict=True):
      assert (
        ids == [tokenizer.unk_id]
        or ''.join(tokenizer.token(i).removeprefix('##') for i in ids) == word
      )
      several += len(ids) > 1
  assert several > 100


def test_of_wordpieces_those_without_hashes():
  wordpieces_are_the_words_of_bert(trained('wordpiece'))


@pytest.mark.skipif(not BERT.exists(), reason='needs ../shared/data/vocab')
def test_of_the_published_vocabulary():
  tokenizer = tokenization.load_tokenizer(BERT)
  wordpieces_are_the_words_of_bert(tokenizer)
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
def test_of_sentencepieces_what_follows_a_space_and_what_begins_with_a_mark(kind):
  tokenizer, plain, several = trained(kind), 0, 0
  for text in texts()[:20]:
    ((ids, spans),) = tokenizer.encode_with_offsets([text])
    first = np.flatnonzero(tokenizer.word_starts[ids])
    after = np.append(first[1:], len(ids))
    seen = spans[:, 0] < spans[:, 1]  # a space alone is nothing
    found = {
      (spans[a:b][seen[a:b]].min(initial=10**6), spans[b - 1, 1]): b - a
      for a, b in zip(first, after, strict=True)
    }
    assert first[0] == 0
    for word in re.finditer(
      r'(?<!\S)[A-Za-z]+(?!\S)', text
    ):  # letters between spaces: all of it, and no more
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
def test_of_bytes_the_first_of_a_character_that_begins_words(text, expected):
  assert spelled(trained('unigram', byte_fallback=True), text) == expected


def other_model(**options):
  """A small SentencePiece model with the names and ids of others."""
  import sentencepiece

  lines = [
    'the cat sat on the mat',
    '日本語 の 文章 を 読 む',
    '東京 に 行 く',
    'สวัส ดี คน',
    'मेरा नाम नहीं',
    '한국어 사람',
  ] * 20
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=model,
    vocab_size=90,
    model_type='unigram',
    hard_vocab_limit=False,
    character_coverage=1.0,
    pad_id=0,
    unk_id=1,
    bos_id=-1,
    eos_id=-1,
    pad_piece='<pad>',
    unk_piece='<unk>',
    control_symbols=['[CLS]', '[SEP]', '[MASK]'],
    minloglevel=2,
    num_threads=1,
    **options,
  )
  return model.getvalue()


def test_scripts_without_spaces_and_pieces_of_others(tmp_path):
  (tmp_path / 'spiece.model').write_bytes(other_model(user_defined_symbols=['<sep>', 'zz']))
  tokenizer = tokenization.load_tokenizer(tmp_path)
  starts = dict(zip(tokenizer.tokens, tokenizer.word_starts.tolist(), strict=True))
  assert starts['<sep>'] and starts['▁'] and not starts['zz'] and not starts['<unk>']
  characters = [token for token in tokenizer.tokens if len(token) == 1]
  for character in characters:
    assert starts[character] == (character in '▁日本語の文章を読む東京に行くสวสดคน'), (
      character
    )  # and not the vowel signs ั ิ ा
  assert {'日', 'の', 'ส', 'ั', 'ा', '한', 'c'} <= set(characters)
  assert len(spelled(tokenizer, 'q')) == 1  # the unknown, with its space


def test_a_model_with_the_spaces_after_its_words_is_refused(tmp_path):
  (tmp_path / 'spiece.model').write_bytes(other_model(treat_whitespace_as_suffix=True))
  tokenizer = tokenization.load_tokenizer(tmp_path)
  tokenizer.encode('the cat')  # which is good enough for all else
  with pytest.raises(UserError, match='space of a word at its end.*uniform'):
    _ = tokenizer.word_starts


@pytest.mark.parametrize('kind', tokenization.KINDS)
def test_the_table_is_the_same_wherever_the_tokenizer_goes(kind, tmp_path):
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
def test_words_that_are_added_begin_words_and_parts_of_words_do_not(kind):
  more = vocabulary.extended(trained(kind), ['electra', '##trax'])
  assert more.word_starts[600:].tolist() == [True, False]
  assert np.array_equal(more.word_starts[:600], trained(kind).word_starts)


def test_tokens_that_transformers_added_begin_words(tmp_path):
  trained('wordpiece').save(tmp_path)
  settings = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  settings['added_tokens_decoder'] = {'600': {'content': '<ent>', 'special': False}}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
  tokenizer = tokenization.load_tokenizer(tmp_path)
  assert tokenizer.word_starts.shape == (601,) and tokenizer.word_starts[600]
  assert spelled(tokenizer, 'the <ent>.') == ['the', '<ent>', '.']

"""Tokenizers: text in, ids out and back, special tokens kept apart, the same model every time, mistakes named."""

import pickle
import re

import pytest

from electra_jax.config import UserError
from electra_jax.data import corpora, tokenizers


@pytest.fixture(scope='module')
def texts():
  return [document for document, _ in zip(corpora.documents('sample'), range(12), strict=False)]


@pytest.fixture(scope='module')
def tokenizer(texts):
  return tokenizers.train_sentencepiece(texts, 600)


def test_special_tokens_have_the_first_ids(tokenizer):
  assert tokenizer.tokens[:5] == ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
  ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
  assert ids == tokenizer.special_ids == (0, 1, 2, 3, 4)
  assert tokenizer.size == len(tokenizer.tokens) == len(set(tokenizer.tokens)) == 600


def test_english_comes_back_as_it_went_in(tokenizer):
  for text in ('The old man had listed hundreds of truths.', 'He said: "1,234.50 (or so) [sic] <b> {x} ~ ^ \\ | @ #"'):
    ids = tokenizer.encode(text)
    assert tokenizer.unk_id not in ids
    assert tokenizer.decode(ids) == text


def test_literal_special_tokens_are_text(tokenizer):
  text = '[CLS] one [MASK] two [SEP] [PAD] [UNK] <s> </s> <unk> <pad>'
  ids = tokenizer.encode(text)
  assert not set(ids) & set(tokenizer.special_ids)
  assert tokenizer.decode(ids) == text


def test_decode_writes_special_tokens_and_leaves_padding_out(tokenizer):
  ids = [tokenizer.cls_id, *tokenizer.encode('the man'), tokenizer.mask_id, tokenizer.sep_id, *[tokenizer.pad_id] * 2]
  assert tokenizer.decode(ids) == '[CLS] the man [MASK] [SEP]'
  assert tokenizer.decode(ids, special_tokens=False) == 'the man'
  assert tokenizer.token(tokenizer.mask_id) == '[MASK]'


@pytest.mark.parametrize('text', ['', ' ', '\n\t\n', '\0', 'a\0b', '☃', 'x' * 100_000, '日本\u2028\u3000', '\u2060'])
def test_odd_text_encodes(tokenizer, text):
  ids = tokenizer.encode(text)
  assert all(0 <= i < tokenizer.size and (i == tokenizer.unk_id or i not in tokenizer.special_ids) for i in ids)
  tokenizer.decode(ids)


def test_a_batch_encodes_as_its_texts_do(tokenizer, texts):
  assert tokenizer.encode_batch(texts[:4]) == [tokenizer.encode(text) for text in texts[:4]]
  assert tokenizer.encode_batch([]) == []


def test_training_again_gives_the_same_model(tokenizer, texts):
  again = tokenizers.train_sentencepiece(iter(texts), 600)
  assert again.fingerprint == tokenizer.fingerprint
  assert tokenizers.train_sentencepiece(texts[:-1], 600).fingerprint != tokenizer.fingerprint


def test_save_and_load(tokenizer, texts, tmp_path):
  tokenizer.save(tmp_path / 'new' / 'folder')
  for loaded in (tokenizers.load_tokenizer(tmp_path / 'new' / 'folder'), pickle.loads(pickle.dumps(tokenizer))):
    assert loaded.fingerprint == tokenizer.fingerprint and loaded.tokens == tokenizer.tokens
    assert loaded.encode(texts[0]) == tokenizer.encode(texts[0])


def test_large_vocabularies_fall_back_to_bytes(monkeypatch, texts):
  monkeypatch.setattr(tokenizers, 'BYTE_FALLBACK_FROM', 900)
  large = tokenizers.train_sentencepiece(texts, 900)
  text = 'snow ☃ 日本'
  assert large.unk_id not in large.encode(text)
  assert large.decode(large.encode(text)) == text


def test_progress_is_shown(texts, capsys):
  tokenizers.train_sentencepiece(texts[:2], 300)
  out = capsys.readouterr().out
  assert 'training SentencePiece, 300 tokens' in out
  assert re.search(r'learned 300 tokens from \d+ lines', out)


def test_long_and_odd_lines_are_learned_from(texts):
  line = 'xylophonist ' * 3000
  trained = tokenizers.train_sentencepiece([line, 'x' * 20_000, 'a\0b', *texts[:2]], 500)
  assert '▁xylophonist' in trained.tokens, 'SentencePiece would have dropped a line so long'


def test_no_part_of_a_long_line_is_lost():
  for line in ('word ' * 5000, 'é' * 9000, 'a' * 999 + ' ' + 'b' * 5000, ' ' * 4000 + 'x', ''):
    parts = list(tokenizers._short(line))
    assert ''.join(parts).strip() == line.strip()
    assert all(len(part.encode()) <= tokenizers.TRAINING_SENTENCE_BYTES for part in parts)


def test_a_vocabulary_larger_than_the_corpus_supports_names_the_largest(texts):
  with pytest.raises(UserError, match='vocab_size is 30000, more than this corpus supports') as caught:
    tokenizers.train_sentencepiece(texts[:1], 30_000)
  largest = int(re.search(r'(\d+) is the largest that would do', str(caught.value))[1])
  assert tokenizers.train_sentencepiece(texts[:1], largest).size == largest


def test_other_mistakes_are_named(texts, tmp_path):
  with pytest.raises(UserError, match='vocab_size is 3; .* need 128 at least'):
    tokenizers.train_sentencepiece(texts, 3)
  with pytest.raises(UserError, match="too few for this corpus's characters"):
    tokenizers.train_sentencepiece([''.join(map(chr, range(0x4E00, 0x5000))) * 5, *texts[:1]], 200)
  with pytest.raises(UserError, match='too small to train a tokenizer on'):
    tokenizers.train_sentencepiece(['hello'], 1000)
  with pytest.raises(UserError, match='from the reader'):
    tokenizers.train_sentencepiece(_broken(texts), 300)
  with pytest.raises(UserError, match='no tokenizer in'):
    tokenizers.load_tokenizer(tmp_path)
  (tmp_path / 'tokenizer.model').write_bytes(b'not a model')
  with pytest.raises(UserError, match='not a SentencePiece model or is damaged'):
    tokenizers.load_tokenizer(tmp_path)


def _broken(texts):
  yield texts[0]
  raise UserError('from the reader')

"""Training a tokenizer: the same texts give the same one anywhere, large corpora are sampled, mistakes named."""

import lzma
import os
import random
import re
import string
import subprocess
import sys

import pytest

from electra_jax.data.corpus import corpora
from electra_jax.data.tokenizers import sentencepiece_tokenizer, tokenization, training_sample
from electra_jax.errors import UserError

KINDS = tokenization.KINDS
PRINTABLE = ''.join(c for c in string.printable if not c.isspace())


@pytest.fixture(scope='module')
def texts():
  return lzma.open(corpora.SAMPLE_PATH, 'rt', encoding='utf-8').read(150_000).split('\n\n')


def test_any_process_and_number_of_threads_learns_the_same():
  code = """if True:
    import lzma
    from electra_jax.data.corpus import corpora
    from electra_jax.data.tokenizers import tokenization
    texts = lzma.open(corpora.SAMPLE_PATH, 'rt', encoding='utf-8').read(150_000).split('\\n\\n')
    made = [tokenization.train_tokenizer(texts, kind=kind, vocab_size=1000) for kind in tokenization.KINDS]
    print(*(tokenizer.fingerprint for tokenizer in made))
  """
  seen = set()
  for threads, seed in (('1', '1'), ('2', '2'), ('5', '3')):
    environment = os.environ | {'RAYON_NUM_THREADS': threads, 'PYTHONHASHSEED': seed}
    done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    seen.add(done.stdout.splitlines()[-1])
  assert len(seen) == 1 and len(set(seen.pop().split())) == len(KINDS)


@pytest.mark.parametrize('kind', KINDS)
def test_other_texts_or_settings_give_another(kind, texts):
  made = [
    tokenization.train_tokenizer(*arguments, kind=kind, vocab_size=size).fingerprint
    for arguments, size in (((iter(texts),), 500), ((texts[:-1],), 500), ((texts,), 501))
  ]
  assert len(set(made)) == 3
  if kind == 'wordpiece':

    def train(**settings):
      return tokenization.train_tokenizer(texts, kind=kind, vocab_size=500, **settings).fingerprint

    assert made[0] == train() == train(lowercase=True, strip_accents=True)
    others = [
      {'strip_accents': False},
      {'lowercase': False},
      {'lowercase': False, 'strip_accents': True},
    ]
    assert len({train(), *(train(**settings) for settings in others)}) == 4


@pytest.mark.parametrize('lowercase', [True, False])
def test_a_wordpiece_vocabulary_has_all_printable_ascii_alone_and_inside_words(texts, lowercase):
  tokenizer = tokenization.train_tokenizer(
    texts, kind='wordpiece', vocab_size=500, lowercase=lowercase
  )
  assert tokenizer.tokens[:5] == tokenization.SPECIAL_TOKENS
  characters = set(PRINTABLE.lower() if lowercase else PRINTABLE)
  assert characters <= set(tokenizer.tokens) and {f'##{c}' for c in characters} <= set(
    tokenizer.tokens
  )
  assert tokenizer.unk_id not in tokenizer.encode(
    ' '.join(a + b for a in PRINTABLE for b in PRINTABLE)
  )
  assert len(set(tokenizer.tokens)) == tokenizer.size == 500
  assert {'the', '##ing'} <= set(tokenizer.tokens)


def test_characters_that_are_never_inside_a_word_have_one_token(texts):
  texts = [*texts, '日本語 — čeština ' * 200]
  tokenizer = tokenization.train_tokenizer(texts, kind='wordpiece', vocab_size=500, lowercase=False)
  assert {'日', '—', 'č', '##š'} <= set(tokenizer.tokens) and not {'##日', '##—'} & set(
    tokenizer.tokens
  )


def test_byte_fallback_goes_by_size_unless_said(monkeypatch, texts):
  monkeypatch.setattr(sentencepiece_tokenizer, 'BYTE_FALLBACK_FROM', 900)
  text = 'snow ☃ 日本'
  for kind, size, asked, expected in (
    ('unigram', 900, None, True),
    ('unigram', 899, None, False),
    ('bpe', 900, None, True),
    ('bpe', 899, True, True),
    ('bpe', 900, False, False),
  ):
    tokenizer = tokenization.train_tokenizer(
      texts[:4], kind=kind, vocab_size=size, byte_fallback=asked
    )
    ids = tokenizer.encode(text)
    assert (tokenizer.unk_id not in ids and tokenizer.decode(ids) == text) is expected


def test_progress_is_shown(texts, capsys):
  for kind, name in (
    ('unigram', 'SentencePiece unigram'),
    ('bpe', 'SentencePiece BPE'),
    ('wordpiece', 'WordPiece'),
  ):
    tokenization.train_tokenizer(texts, kind=kind, vocab_size=300, expected_characters=150_000)
    out = capsys.readouterr().out
    assert f'training {name}, 300 tokens' in out
    assert re.search(r'learned 300 tokens from \d+ lines, 0.1 million characters, in ', out)


def test_long_and_odd_lines_are_learned_from(texts):
  line = 'xylophonist ' * 3000
  odd = [line, 'x' * 20_000, 'a\0b', 'lone \ud800 surrogate', *texts[:2]]
  assert '▁xylophonist' in tokenization.train_tokenizer(odd, vocab_size=500).tokens, (
    'SentencePiece drops a line so long'
  )
  assert 'xylophonist' in tokenization.train_tokenizer(odd, kind='wordpiece', vocab_size=400).tokens


def test_no_part_of_a_long_line_is_lost():
  for line in ('word ' * 5000, 'é' * 9000, 'a' * 999 + ' ' + 'b' * 5000, ' ' * 4000 + 'x', ''):
    parts = list(training_sample.short_lines(line))
    assert ''.join(parts).strip() == line.strip()
    assert all(len(part.encode()) <= training_sample.LINE_BYTES for part in parts)


# Large corpora ################################################################


def test_a_corpus_within_the_limit_is_taken_whole(texts):
  sample = training_sample.take_sample(texts)
  lines = [line for text in texts for line in text.split('\n')]
  assert sample.lines == [part for line in lines for part in training_sample.short_lines(line)]
  assert sample.characters == sample.characters_read == sum(map(len, sample.lines))
  assert sample.lines_read == len(sample.lines)


def test_of_a_larger_corpus_lines_are_chosen_by_their_text_alone(monkeypatch, texts):
  whole = training_sample.take_sample(texts)
  monkeypatch.setattr(training_sample, 'TRAINING_CHARACTERS', 20_000)
  sample = training_sample.take_sample(texts)
  assert 5_000 < sample.characters <= 20_000 and sample.characters == sum(map(len, sample.lines))
  assert (sample.lines_read, sample.characters_read) == (whole.lines_read, whole.characters_read)
  shuffled = random.Random(0).sample(whole.lines, len(whole.lines))
  assert sorted(training_sample.take_sample(shuffled).lines) == sorted(sample.lines)
  assert set(training_sample.take_sample(texts, seed=1).lines) != set(sample.lines)
  places = [whole.lines.index(line) for line in sample.lines]
  assert (
    places == sorted(places)
    and min(places) < len(whole.lines) // 5
    and max(places) > 4 * len(whole.lines) // 5
  )


def test_a_few_lines_again_and_again_are_still_learned_from(monkeypatch):
  monkeypatch.setattr(training_sample, 'TRAINING_CHARACTERS', 1000)
  assert training_sample.take_sample(['the same line'] * 1000).lines


def test_how_much_was_learned_from_is_said(monkeypatch, texts, capsys):
  monkeypatch.setattr(training_sample, 'TRAINING_CHARACTERS', 100_000)
  tokenization.train_tokenizer(texts, kind='wordpiece', vocab_size=300)
  out = capsys.readouterr().out
  assert re.search(
    r'learned 300 tokens from \d+ lines, 0.1 million of 0.1 million characters, in ', out
  )


# Mistakes #####################################################################


@pytest.mark.parametrize('kind', KINDS)
def test_a_vocabulary_larger_than_the_corpus_supports_names_the_largest(kind, texts):
  with pytest.raises(
    UserError, match='vocab_size is 30000, more than this corpus supports'
  ) as caught:
    tokenization.train_tokenizer(texts[:1], kind=kind, vocab_size=30_000)
  largest = int(re.search(r'(\d+) is the largest that would do', str(caught.value))[1])
  assert tokenization.train_tokenizer(texts[:1], kind=kind, vocab_size=largest).size == largest


@pytest.mark.parametrize('kind', KINDS)
def test_a_vocabulary_too_small_names_what_would_do(kind, texts):
  many = [''.join(map(chr, range(0x4E00, 0x5000))) * 5, *texts[:1]]
  with pytest.raises(UserError, match="too few for this corpus's characters") as caught:
    tokenization.train_tokenizer(many, kind=kind, vocab_size=200)
  enough = int(re.search(r'use (\d+) or more', str(caught.value))[1])
  assert tokenization.train_tokenizer(many, kind=kind, vocab_size=enough).size == enough
  with pytest.raises(
    UserError, match='vocab_size is 3; .* need 128 at least|vocab_size is 3, too few'
  ):
    tokenization.train_tokenizer(texts, kind=kind, vocab_size=3)


@pytest.mark.parametrize('kind', KINDS)
def test_other_mistakes_are_named(kind, texts):
  for nothing in ([], ['', ' \n\n'], ['\0']):
    with pytest.raises(UserError, match='too small to train a tokenizer on'):
      tokenization.train_tokenizer(nothing, kind=kind, vocab_size=1000)
  with pytest.raises(UserError, match='from the reader'):
    tokenization.train_tokenizer(broken(texts), kind=kind, vocab_size=300)
  with pytest.raises(
    UserError, match="the tokenizer kind 'words' is not known; use one of unigram, bpe, wordpiece"
  ):
    tokenization.train_tokenizer(texts, kind='words', vocab_size=300)


def test_a_corpus_of_a_word_is_too_small():
  with pytest.raises(UserError, match='too small to train a tokenizer on'):
    tokenization.train_tokenizer(['hello'], vocab_size=1000)


def broken(texts):
  yield texts[0]
  raise UserError('from the reader')

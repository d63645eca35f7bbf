"""Training a tokenizer: reproducible anywhere, sampling of large corpora, errors."""

import os
import random
import re
import string
import subprocess
import sys

import made_tokenizers
import pytest

from electra_jax import registry
from electra_jax.data.tokenizers import sentencepiece_tokenizer, tokenization, training_sample
from electra_jax.errors import UserError

KINDS = tuple(registry.TOKENIZERS)
PRINTABLE = ''.join(c for c in string.printable if not c.isspace())


@pytest.fixture(scope='module')
def texts():
  return made_tokenizers.documents()


def test_training_does_not_depend_on_process_or_threads():
  code = """if True:
    import made_tokenizers
    from electra_jax import registry
    texts = made_tokenizers.documents()
    made = [made_tokenizers.train(texts, kind=k, vocab_size=1000) for k in registry.TOKENIZERS]
    print(*(tokenizer.fingerprint for tokenizer in made))
  """
  seen = set()
  for threads, seed in (('1', '1'), ('2', '2'), ('5', '3')):
    environment = os.environ | {
      'RAYON_NUM_THREADS': threads,
      'PYTHONHASHSEED': seed,
      'PYTHONPATH': os.pathsep.join(sys.path),
    }
    done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    seen.add(done.stdout.splitlines()[-1])
  assert len(seen) == 1 and len(set(seen.pop().split())) == len(KINDS)


@pytest.mark.parametrize('kind', KINDS)
def test_other_texts_or_settings_give_another_tokenizer(kind, texts):
  made = [
    made_tokenizers.train(*arguments, kind=kind, vocab_size=size).fingerprint
    for arguments, size in (((iter(texts),), 500), ((texts[:-1],), 500), ((texts,), 501))
  ]
  assert len(set(made)) == 3
  if kind == 'wordpiece':

    def train(**settings):
      return made_tokenizers.train(texts, kind=kind, vocab_size=500, **settings).fingerprint

    assert made[0] == train() == train(lowercase=True, strip_accents=True)
    others = [
      {'strip_accents': False},
      {'lowercase': False},
      {'lowercase': False, 'strip_accents': True},
    ]
    assert len({train(), *(train(**settings) for settings in others)}) == 4


@pytest.mark.parametrize('lowercase', [True, False])
def test_a_wordpiece_vocabulary_has_printable_ascii_as_words_and_inside_words(texts, lowercase):
  tokenizer = made_tokenizers.train(texts, kind='wordpiece', vocab_size=500, lowercase=lowercase)
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
  tokenizer = made_tokenizers.train(texts, kind='wordpiece', vocab_size=500, lowercase=False)
  assert {'日', '—', 'č', '##š'} <= set(tokenizer.tokens) and not {'##日', '##—'} & set(
    tokenizer.tokens
  )


def test_byte_fallback_depends_on_the_size_by_default(monkeypatch, texts):
  monkeypatch.setattr(sentencepiece_tokenizer, 'BYTE_FALLBACK_FROM', 900)
  text = 'snow ☃ 日本'
  for kind, size, asked, expected in (
    ('unigram', 900, None, True),
    ('unigram', 899, None, False),
    ('bpe', 900, None, True),
    ('bpe', 899, True, True),
    ('bpe', 900, False, False),
  ):
    tokenizer = made_tokenizers.train(texts[:4], kind=kind, vocab_size=size, byte_fallback=asked)
    ids = tokenizer.encode(text)
    assert (tokenizer.unk_id not in ids and tokenizer.decode(ids) == text) is expected


def test_progress_is_shown(texts, capsys):
  for kind, name in (
    ('unigram', 'SentencePiece unigram'),
    ('bpe', 'SentencePiece BPE'),
    ('wordpiece', 'WordPiece'),
  ):
    made_tokenizers.train(texts, kind=kind, vocab_size=300, expected_characters=150_000)
    out = capsys.readouterr().out
    assert f'training {name}, 300 tokens' in out
    assert re.search(r'learned 300 tokens from \d+ lines, 0.1 million characters, in ', out)


def test_long_and_unusual_lines_are_used(texts):
  line = 'xylophonist ' * 3000
  odd = [line, 'x' * 20_000, 'a\0b', 'lone \ud800 surrogate', *texts[:2]]
  assert '▁xylophonist' in made_tokenizers.train(odd, vocab_size=500).tokens, (
    'SentencePiece skips so long a line'
  )
  assert 'xylophonist' in made_tokenizers.train(odd, kind='wordpiece', vocab_size=400).tokens


def test_short_lines_contain_all_of_a_long_line():
  for line in ('word ' * 5000, 'é' * 9000, 'a' * 999 + ' ' + 'b' * 5000, ' ' * 4000 + 'x', ''):
    parts = list(training_sample.short_lines(line))
    assert ''.join(parts).strip() == line.strip()
    assert all(len(part.encode()) <= training_sample.LINE_BYTES for part in parts)


#### Large corpora ####


def test_a_corpus_within_the_limit_is_used_completely(texts):
  sample = training_sample.take_sample(texts)
  lines = [line for text in texts for line in text.split('\n')]
  assert sample.lines == [part for line in lines for part in training_sample.short_lines(line)]
  assert sample.characters == sample.characters_read == sum(map(len, sample.lines))
  assert sample.lines_read == len(sample.lines)


def test_lines_of_a_larger_corpus_are_chosen_by_their_text(monkeypatch, texts):
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


def test_few_distinct_lines_of_a_large_corpus_are_used(monkeypatch):
  monkeypatch.setattr(training_sample, 'TRAINING_CHARACTERS', 1000)
  assert training_sample.take_sample(['the same line'] * 1000).lines


def test_the_size_of_the_sample_is_set_and_reported(texts, capsys):
  made_tokenizers.train(texts, kind='wordpiece', vocab_size=300, characters=100_000)
  out = capsys.readouterr().out
  assert re.search(
    r'learned 300 tokens from \d+ lines, 0.1 million of 0.1 million characters, in ', out
  )


#### Errors ####


@pytest.mark.parametrize('kind', KINDS)
def test_the_error_for_too_large_a_vocabulary_states_the_largest_size(kind, texts):
  with pytest.raises(
    UserError, match='vocab_size is 30000, more than this corpus supports'
  ) as caught:
    made_tokenizers.train(texts[:1], kind=kind, vocab_size=30_000)
  largest = int(re.search(r'at most (\d+)', str(caught.value))[1])
  assert made_tokenizers.train(texts[:1], kind=kind, vocab_size=largest).size == largest


def test_byte_level_bpe_has_room_for_all_bytes(texts):
  with pytest.raises(UserError, match='vocab_size is 260; expected at least 261'):
    made_tokenizers.train(texts, kind='byte_level_bpe', vocab_size=260)
  tokenizer = made_tokenizers.train(texts[:1], kind='byte_level_bpe', vocab_size=261)
  text = '\n 日本 e\u0301\t😀'
  assert len(tokenizer.encode(text)) == len(text.encode())
  assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'byte_level_bpe'])
def test_the_error_for_too_small_a_vocabulary_states_a_sufficient_size(kind, texts):
  many = [''.join(map(chr, range(0x4E00, 0x5000))) * 5, *texts[:1]]
  with pytest.raises(UserError, match="too few for this corpus's characters") as caught:
    made_tokenizers.train(many, kind=kind, vocab_size=200)
  enough = int(re.search(r'expected (\d+) or more', str(caught.value))[1])
  assert made_tokenizers.train(many, kind=kind, vocab_size=enough).size == enough
  with pytest.raises(
    UserError, match='vocab_size is 3; expected at least 128|vocab_size is 3, too few'
  ):
    made_tokenizers.train(texts, kind=kind, vocab_size=3)


@pytest.mark.parametrize('kind', KINDS)
def test_other_mistakes_are_refused(kind, texts):
  for nothing in ([], ['', ' \n\n'], ['\0']):
    with pytest.raises(UserError, match='too small to train a tokenizer on'):
      made_tokenizers.train(nothing, kind=kind, vocab_size=1000)
  with pytest.raises(UserError, match='from the reader'):
    made_tokenizers.train(broken(texts), kind=kind, vocab_size=300)
  with pytest.raises(
    UserError,
    match="'words', which is not a registered tokenizer; expected one of unigram, bpe, wordpiece",
  ):
    made_tokenizers.train(texts, kind='words', vocab_size=300)


def test_a_corpus_of_one_word_is_too_small():
  with pytest.raises(UserError, match='too small to train a tokenizer on'):
    made_tokenizers.train(['hello'], vocab_size=1000)


def broken(texts):
  yield texts[0]
  raise UserError('from the reader')

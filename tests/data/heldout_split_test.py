"""Documents are cut where there are too few to hold some out; each source has held-out rows."""

import dataclasses
import unicodedata

import made_tokenizers
import numpy as np
import pytest

from electra_jax.data.corpus import corpora
from electra_jax.data.prepare import blocks, heldout_split, packing, preparation, workers
from electra_jax.data.prepare.recipe import CorpusRecipe

WORDS = 'the quick brown fox jumps over a lazy dog'.split()


def prose(words, seed=0, separator=' '):
  rng = np.random.default_rng(seed)
  return separator.join(rng.choice(WORDS, words))


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  made_tokenizers.train(
    [prose(500, seed) for seed in range(20)], kind='wordpiece', vocab_size=150
  ).save(folder)
  return folder


def recipe(source, tokenizer, **fields):
  return CorpusRecipe(str(source), row_length=32, tokenizer=str(tokenizer), **fields)


def never_held_out(documents, fraction=0.05):
  """Documents of which the hash holds out none."""
  return [text for text in documents if not corpora.is_held_out(text, fraction)]


def decide(path, fraction=0.05, **fields):
  sources = corpora.parse_sources(str(path), 'blank_line')
  return heldout_split.decide_split(sources, corpora.groups(sources), fraction, 'refuse')


def split_of(path, split):
  found = {'train': [], 'heldout': []}
  sources = corpora.parse_sources(str(path), 'blank_line')
  for group in corpora.groups(sources):
    for text in corpora.documents(group):
      for name, part in split.parts(group.source_index, text):
        found[name].append(part)
  return found


def write(path, documents):
  path.write_text('\n\n'.join(documents))
  return path


def test_a_corpus_that_the_hash_splits_is_not_cut(tmp_path):
  path = write(tmp_path / 'a.txt', [prose(20, seed) for seed in range(200)])
  assert not decide(path).cuts and not decide(path).describe()
  found = split_of(path, decide(path))
  assert all(corpora.is_held_out(text, 0.05) for text in found['heldout'])


@pytest.mark.parametrize('fraction', [0.0001, 0.05, 0.5, 0.97])
def test_one_document_gives_its_end(tmp_path, fraction):
  text = prose(20_000, separator='\n').replace('\n', ' ', 10)
  path = write(tmp_path / 'a.txt', [text])
  found = split_of(path, decide(path, fraction))
  (train,), (held,) = found['train'], found['heldout']
  assert train + held == text and train.endswith('\n')
  assert len(held) == pytest.approx(max(fraction * len(text), 256), abs=30)


def test_long_documents_give_their_ends_and_short_ones_are_trained_on(tmp_path):
  long = never_held_out([prose(3000, seed) for seed in range(1, 9)])
  documents = [long[0], 'short', long[1]]
  path = write(tmp_path / 'a.txt', documents)
  split = decide(path)
  found = split_of(path, split)
  assert len(found['heldout']) == 2 and 'short' in found['train']
  assert split.describe()[0].startswith('the end of 2 documents')
  share = sum(map(len, found['heldout'])) / sum(map(len, documents))
  assert 0.05 <= share < 0.06


@pytest.mark.parametrize('number', [2, 3, 10])
def test_of_few_short_documents_the_last_are_held_out(tmp_path, number):
  documents = never_held_out([prose(12, seed) for seed in range(30)])[:number]
  path = write(tmp_path / 'a.txt', documents)
  found = split_of(path, decide(path))
  held = len(found['heldout'])
  assert found == {'train': documents[:-held], 'heldout': documents[-held:]} and held < number
  assert sum(map(len, found['heldout'])) <= 256 + len(documents[-held]) or held == 1


@pytest.mark.parametrize('text', ['a few words are here', prose(30)])
def test_one_short_document_is_cut_too(tmp_path, text):
  path = write(tmp_path / 'a.txt', [text])
  found = split_of(path, decide(path))
  assert ''.join(found['train'] + found['heldout']) == text and found['train'] and found['heldout']


def test_equal_documents_are_one(tmp_path):
  path = write(tmp_path / 'a.txt', [prose(60)] * 10)
  found = split_of(path, decide(path))
  assert len(found['train']) == len(found['heldout']) == 10


def test_where_all_would_be_held_out_some_are_trained_on(tmp_path):
  documents = [t for t in (prose(30, seed) for seed in range(100)) if corpora.is_held_out(t, 0.5)]
  path = write(tmp_path / 'a.txt', documents[:4])
  found = split_of(path, decide(path, 0.5))
  assert len(found['train']) == len(found['heldout']) == 2


def test_a_cut_does_not_separate_a_letter_from_its_marks(tmp_path):
  text = 'กำลังที่นี้' * 2000  # Thai, without spaces
  assert any(unicodedata.category(c) == 'Mn' for c in text)
  for fraction in (0.05, 0.0501, 0.0502, 0.0503, 0.0504):
    path = write(tmp_path / 'a.txt', [text])
    (held,) = split_of(path, decide(path, fraction))['heldout']
    assert unicodedata.category(held[0])[0] != 'M'


def test_each_source_of_a_mixture_has_held_out_rows(tmp_path, tokenizer):
  write(tmp_path / 'many.txt', [prose(20, seed) for seed in range(200)])
  write(tmp_path / 'one.txt', [prose(3000, 5)])
  source = f'{tmp_path}/many.txt;weight=2, {tmp_path}/one.txt;weight=1'
  assert list(decide(source).cuts) == [1]
  made = preparation.prepare_corpus(recipe(source, tokenizer), cache=tmp_path)
  assert all(part.rows for part in made.heldout_sources)
  together = f'{tmp_path}/many.txt, {tmp_path}/one.txt'
  assert not decide(together).cuts, 'without weights it is one corpus'


def test_a_source_may_state_its_own_fraction(tmp_path, tokenizer):
  for name in 'ab':
    write(tmp_path / f'{name}.txt', [prose(20, seed + ord(name)) for seed in range(300)])
  source = f'{tmp_path}/a.txt;weight=1;heldout=0.5, {tmp_path}/b.txt;weight=1;heldout=0'
  made = preparation.prepare_corpus(recipe(source, tokenizer), cache=tmp_path)
  a, b = made.facts['sources']
  assert 100 < made.facts['heldout']['documents'] < 200 and b['documents'] == 300
  assert a['documents'] + made.facts['heldout']['documents'] == 300 and b['heldout_rows'] == 0
  other = preparation.prepare_corpus(
    recipe(source.replace('0.5', '0.2'), tokenizer), cache=tmp_path
  )
  assert other.path != made.path


@pytest.mark.parametrize('processes', [1, 2])
def test_cut_documents_lose_no_token_for_any_number_of_processes(
  tmp_path, tokenizer, monkeypatch, processes
):
  monkeypatch.setattr(workers, 'SMALL_BYTES', 0)
  monkeypatch.setattr(blocks, 'BLOCK_CHARACTERS', 5_000)
  documents = never_held_out([prose(2000, seed) for seed in range(3)])
  path = write(tmp_path / 'a.txt', documents)
  made = preparation.prepare_corpus(recipe(path, tokenizer), cache=tmp_path, processes=processes)
  split = decide(path)
  for store, name in ((made.train, 'train'), (made.heldout, 'heldout')):
    rows = store.read(np.arange(store.rows))
    pieces = [
      piece
      for row in rows
      for piece in packing.row_pieces(row, made.tokenizer.cls_id, made.tokenizer.sep_id)
    ]
    expected = made.tokenizer.encode_batch(split_of(path, split)[name])
    assert np.array_equal(np.concatenate(pieces), np.concatenate(expected))
  assert len(made.heldout.document_starts()) == len(documents)


def test_nothing_is_held_out_where_the_fraction_is_zero(tmp_path, tokenizer):
  path = write(tmp_path / 'a.txt', [prose(100)])
  made = preparation.prepare_corpus(recipe(path, tokenizer, heldout_fraction=0.0), cache=tmp_path)
  assert made.heldout is None and made.facts['train']['documents'] == 1
  assert dataclasses.asdict(decide(path, 0.0)) == {'fractions': (0.0,), 'cuts': {}}


def test_a_tokenizer_is_not_trained_on_what_is_cut_off(tmp_path):
  text = prose(3000) + '\n' + 'zebra ' * 100
  path = write(tmp_path / 'a.txt', [text])
  made = preparation.prepare_corpus(
    CorpusRecipe(
      str(path), row_length=32, vocab_size=150, tokenizer='wordpiece', heldout_fraction=0.04
    ),
    cache=tmp_path,
  )
  assert 'zebra' not in made.tokenizer.tokens

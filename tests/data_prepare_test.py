"""A corpus is prepared once, whole documents held out, nothing lost; other runs find the same; mistakes are named."""

import os
import subprocess
import sys

import numpy as np
import pytest

from electra_jax.config import UserError
from electra_jax.data import corpora, packing, prepare, tokenizers

SETTINGS = dict(vocab_size=400, row_length=32, heldout_fraction=0.2)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """Thirty documents of a few paragraphs, two odd ones among them."""
  texts = [document[:1500] for document, _ in zip(corpora.documents('sample'), range(30), strict=False)]
  texts[3] = '\u200b'  # encodes to nothing
  texts[4] = '[MASK] stands [CLS] here [SEP] as text'
  path = tmp_path_factory.mktemp('corpus') / 'text.txt'
  path.write_text('\n\n'.join(texts))
  return path


@pytest.fixture(scope='module')
def prepared(corpus, tmp_path_factory):
  return prepare.prepare(corpus, cache=tmp_path_factory.mktemp('cache'), **SETTINGS)


def _pieces(store, tokenizer):
  rows = store.read(np.arange(store.rows))
  return [piece for row in rows for piece in packing.pieces(row, tokenizer.cls_id, tokenizer.sep_id)]


def test_every_token_of_every_document_is_in_the_rows_of_its_split(corpus, prepared):
  documents = list(corpora.documents(corpus))
  for store, held in ((prepared.train, False), (prepared.heldout, True)):
    texts = [text for text in documents if corpora.is_held_out(text, 0.2) == held]
    expected = [i for ids in prepared.tokenizer.encode_batch(texts) for i in ids]
    assert texts and np.array_equal(np.concatenate(_pieces(store, prepared.tokenizer)), expected)


def test_special_tokens_stand_only_where_packing_puts_them(prepared):
  tokenizer = prepared.tokenizer
  for store in (prepared.train, prepared.heldout):
    pieces = np.concatenate(_pieces(store, tokenizer))
    assert not np.isin(pieces, [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]).any()


def test_the_facts_are_true(corpus, prepared):
  documents = list(corpora.documents(corpus))
  train, heldout = prepared.facts['train'], prepared.facts['heldout']
  assert train['documents'] + heldout['documents'] == len(documents) == 30
  assert train['empty_documents'] + heldout['empty_documents'] == 1
  assert train['characters'] + heldout['characters'] == sum(map(len, documents))
  assert heldout['documents'] == sum(corpora.is_held_out(text, 0.2) for text in documents)
  for store, facts in ((prepared.train, train), (prepared.heldout, heldout)):
    rows = store.read(np.arange(store.rows))
    assert facts['rows'] == store.rows == len(rows)
    assert facts['padding_share'] == pytest.approx((rows == prepared.tokenizer.pad_id).mean())
    assert facts['unknown_tokens'] == (rows == prepared.tokenizer.unk_id).sum()
    assert store.manifest['vocab_size'] == prepared.tokenizer.size == 400
    assert store.tokenizer_fingerprint == prepared.tokenizer.fingerprint


def test_a_later_run_reuses_all_of_it(corpus, prepared, monkeypatch, capsys):
  monkeypatch.setattr(tokenizers, 'train_sentencepiece', None)
  monkeypatch.setattr(corpora, 'documents', None)
  again = prepare.prepare(corpus, cache=prepared.path.parents[1], **SETTINGS)
  assert again.path == prepared.path and again.facts == prepared.facts
  assert again.tokenizer.fingerprint == prepared.tokenizer.fingerprint
  assert 'as prepared before' in capsys.readouterr().out


def test_other_rows_reuse_the_tokenizer(corpus, prepared, monkeypatch):
  monkeypatch.setattr(tokenizers, 'train_sentencepiece', None)
  other = prepare.prepare(corpus, cache=prepared.path.parents[1], **(SETTINGS | {'row_length': 64}))
  assert other.path != prepared.path and other.train.length == 64
  assert other.tokenizer.fingerprint == prepared.tokenizer.fingerprint


def test_other_settings_or_text_are_prepared_anew(corpus, prepared, tmp_path):
  cache = prepared.path.parents[1]
  copy = tmp_path / 'text.txt'
  copy.write_bytes(corpus.read_bytes())
  paths = {prepared.path}
  for source, change in ((copy, {}), (corpus, {'vocab_size': 300}), (corpus, {'heldout_fraction': 0.3})):
    paths.add(prepare.prepare(source, cache=cache, **(SETTINGS | change)).path)
  copy.write_text(corpus.read_text() + '\n\nOne more document.')
  paths.add(prepare.prepare(copy, cache=cache, **SETTINGS).path)
  assert len(paths) == 5


def test_a_given_tokenizer_is_used(corpus, prepared, tmp_path, monkeypatch):
  monkeypatch.setattr(tokenizers, 'train_sentencepiece', None)
  given = prepare.prepare(corpus, cache=tmp_path, tokenizer=prepared.tokenizer, **(SETTINGS | {'vocab_size': 9}))
  assert given.tokenizer.fingerprint == prepared.tokenizer.fingerprint
  assert np.array_equal(given.train.matrix, prepared.train.matrix)


def test_nothing_held_out_where_none_is_asked_for(corpus, prepared, tmp_path):
  change = {'heldout_fraction': 0.0, 'tokenizer': prepared.tokenizer}
  whole = prepare.prepare(corpus, cache=tmp_path, **(SETTINGS | change))
  assert whole.heldout is None and whole.facts['train']['documents'] == 30


def test_what_a_killed_run_left_is_cleared_and_never_read(corpus, prepared, tmp_path):
  left = tmp_path / 'rows' / f'.{prepared.path.name}.1.partial'
  (left / 'train').mkdir(parents=True)
  again = prepare.prepare(corpus, cache=tmp_path, **SETTINGS)
  assert again.path.name == prepared.path.name and not left.exists()
  assert np.array_equal(again.train.matrix, prepared.train.matrix)


def test_a_failed_run_leaves_nothing(corpus, tmp_path):
  cache = tmp_path / 'cache'
  broken = tmp_path / 'text.txt'
  broken.write_bytes(corpus.read_bytes() + b'\n\n\xff\n')
  with pytest.raises(UserError, match='not UTF-8'):
    prepare.prepare(broken, cache=cache, **SETTINGS)
  assert [path for path in cache.rglob('*') if path.is_file() and path.suffix != '.lock'] == []


def test_two_processes_at_once_make_it_together(corpus, prepared, tmp_path):
  call = f'prepare({str(corpus)!r}, cache={str(tmp_path)!r}, **{SETTINGS})'
  command = f'from electra_jax.data.prepare import prepare; {call}'
  environment = os.environ | {'PYTHONPATH': os.getcwd()}
  children = [subprocess.Popen([sys.executable, '-c', command], env=environment) for _ in range(2)]
  assert [child.wait(timeout=120) for child in children] == [0, 0]
  made = [path.name for path in (tmp_path / 'rows').iterdir() if not path.name.startswith('.')]
  assert made == [prepared.path.name]
  assert not list(tmp_path.rglob('*.partial'))
  again = prepare.prepare(corpus, cache=tmp_path, **SETTINGS)
  assert np.array_equal(again.train.matrix, prepared.train.matrix), 'the same in every process'


def test_damage_in_the_cache_is_named(corpus, prepared, tmp_path):
  made = prepare.prepare(corpus, cache=tmp_path, tokenizer=prepared.tokenizer, **SETTINGS)
  content = (made.path / 'facts.json').read_text()
  (made.path / 'facts.json').write_text(content[:20])
  with pytest.raises(UserError, match='damaged: no readable facts.json'):
    prepare.prepare(corpus, cache=tmp_path, tokenizer=prepared.tokenizer, **SETTINGS)
  (made.path / 'facts.json').write_text(content)
  tokenizers.train_sentencepiece([corpus.read_text()], 300).save(made.path / 'tokenizer')
  with pytest.raises(UserError, match='is not the one that made its rows'):
    prepare.prepare(corpus, cache=tmp_path, tokenizer=prepared.tokenizer, **SETTINGS)


def _message(source, cache, **change):
  with pytest.raises(UserError) as caught:
    prepare.prepare(source, cache=cache, **(SETTINGS | change))
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_mistakes_are_named(corpus, tmp_path):
  single = tmp_path / 'single.txt'
  single.write_text('One document alone, with no blank line.\n' * 200)
  few = _message(single, tmp_path)
  assert 'too few documents' in few and 'of 1 leaves' in few and 'heldout_fraction 0.2' in few
  empty = tmp_path / 'empty.txt'
  empty.write_text('')
  assert 'the corpus is empty' in _message(empty, tmp_path)
  assert 'does not exist' in _message(tmp_path / 'none.txt', tmp_path)
  assert '100000, more than this corpus supports' in _message(corpus, tmp_path, vocab_size=100_000)
  assert 'row_length is 4' in _message(corpus, tmp_path, row_length=4)
  assert 'heldout_fraction is 1.5' in _message(corpus, tmp_path, heldout_fraction=1.5)
  assert "document_format is 'word'" in _message(corpus, tmp_path, document_format='word')
  assert 'cannot be written' in _message(corpus, single)


def test_the_bundled_sample_wastes_less_than_one_percent(prepared, tmp_path):
  for row_length in (64, 512):
    made = prepare.prepare('sample', vocab_size=1, row_length=row_length, cache=tmp_path, tokenizer=prepared.tokenizer)
    assert made.facts['train']['padding_share'] < 0.01 and made.facts['heldout']['padding_share'] < 0.01
    assert made.facts['train']['empty_documents'] == 0

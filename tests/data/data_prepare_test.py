"""A corpus is prepared once and completely; later runs reuse it; errors are one sentence."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from electra_jax import file_access
from electra_jax.data.corpus import corpora
from electra_jax.data.prepare import blocks, finished, packing, preparation, workers
from electra_jax.data.prepare.recipe import CorpusRecipe
from electra_jax.data.tokenizers import tokenization
from electra_jax.errors import UserError
from electra_jax.folder_lock import FolderInUse, FolderLock


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """Thirty documents of a few paragraphs, of which two are unusual."""
  texts = [
    document[:1500]
    for document, _ in zip(corpora.read_documents('sample'), range(30), strict=False)
  ]
  texts[3] = '\u200b'  # encodes to nothing
  texts[4] = '[MASK] stands [CLS] here [SEP] as text'
  path = tmp_path_factory.mktemp('corpus') / 'text.txt'
  path.write_text('\n\n'.join(texts))
  return str(path)


@pytest.fixture(scope='module')
def recipe(corpus):
  return CorpusRecipe(corpus, row_length=32, vocab_size=400, heldout_fraction=0.2)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(scope='module')
def prepared(recipe, cache):
  return preparation.prepare_corpus(recipe, cache=cache)


@pytest.fixture(scope='module')
def tokenizer_folder(prepared):
  return file_access.join(prepared.path, 'tokenizer')


def _all(store):
  return store.read(np.arange(store.rows))


def _pieces(store, tokenizer):
  return [
    piece
    for row in _all(store)
    for piece in packing.row_pieces(row, tokenizer.cls_id, tokenizer.sep_id)
  ]


def _refused(recipe, **where):
  with pytest.raises(UserError) as caught:
    preparation.prepare_corpus(recipe, **where)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_every_token_of_every_document_is_in_the_rows_of_its_split(corpus, prepared):
  documents = list(corpora.read_documents(corpus))
  for store, held in ((prepared.train, False), (prepared.heldout, True)):
    texts = [text for text in documents if corpora.is_held_out(text, 0.2) == held]
    expected = [i for ids in prepared.tokenizer.encode_batch(texts) for i in ids]
    assert texts and np.array_equal(np.concatenate(_pieces(store, prepared.tokenizer)), expected)


def test_only_packing_adds_special_tokens(prepared):
  tokenizer = prepared.tokenizer
  for store in (prepared.train, prepared.heldout):
    pieces = np.concatenate(_pieces(store, tokenizer))
    assert not np.isin(
      pieces, [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    ).any()


def test_the_counts_are_right(corpus, prepared):
  documents = list(corpora.read_documents(corpus))
  train, heldout = prepared.facts['train'], prepared.facts['heldout']
  assert train['documents'] + heldout['documents'] == len(documents) == 30
  assert train['empty_documents'] + heldout['empty_documents'] == 1
  assert train['characters'] + heldout['characters'] == sum(map(len, documents))
  assert heldout['documents'] == sum(corpora.is_held_out(text, 0.2) for text in documents)
  for store, facts in ((prepared.train, train), (prepared.heldout, heldout)):
    rows = _all(store)
    assert facts['rows'] == store.rows == len(rows)
    assert facts['padding_share'] == pytest.approx((rows == prepared.tokenizer.pad_id).mean())
    assert facts['unknown_tokens'] == (rows == prepared.tokenizer.unk_id).sum()
    assert (
      facts['tokens'] == store.tokens
      and facts['dropped_tokens'] == facts['duplicate_documents'] == 0
    )
    assert store.vocab_size == prepared.tokenizer.size == 400
    assert store.tokenizer_fingerprint == prepared.tokenizer.fingerprint
  longest = max(documents, key=lambda text: len(prepared.tokenizer.encode(text)))
  tokens, beginning = max(train['longest'][0], heldout['longest'][0])
  assert tokens == len(prepared.tokenizer.encode(longest)) and ' '.join(longest.split()).startswith(
    beginning.strip()
  )
  report = pathlib.Path(prepared.path, 'report.md').read_text()
  for number in (
    f'{train["text_tokens"]:,}',
    f'{heldout["rows"]:,}',
    ' 0 (0.000%) ',
    f'{tokens:,}',
  ):
    assert number in report


def test_no_unfinished_work_remains(prepared):
  assert sorted(file_access.listing(prepared.path)) == [
    'facts.json',
    'heldout',
    'report.md',
    'tokenizer',
    'train',
  ]


def test_a_later_run_reuses_everything(recipe, prepared, cache, monkeypatch, capsys):
  monkeypatch.setattr(tokenization, 'train_tokenizer', None)
  monkeypatch.setattr(corpora, 'documents', None)
  again = preparation.prepare_corpus(recipe, cache=cache)
  assert again.path == prepared.path and again.facts == prepared.facts
  assert again.tokenizer.fingerprint == prepared.tokenizer.fingerprint
  assert 'as prepared before' in capsys.readouterr().out


def test_other_rows_reuse_the_tokenizer(recipe, prepared, cache, monkeypatch):
  monkeypatch.setattr(tokenization, 'train_tokenizer', None)
  other = preparation.prepare_corpus(dataclasses.replace(recipe, row_length=64), cache=cache)
  assert other.path != prepared.path and other.train.length == 64
  assert other.tokenizer.fingerprint == prepared.tokenizer.fingerprint


def test_other_settings_or_text_are_prepared_again(recipe, prepared, cache, tmp_path):
  copy = tmp_path / 'text.txt'
  copy.write_bytes(pathlib.Path(recipe.source).read_bytes())
  paths = {prepared.path}
  for change in (
    {'source': str(copy)},
    {'vocab_size': 300},
    {'heldout_fraction': 0.3},
    {'tokenizer': 'bpe'},
  ):
    paths.add(preparation.prepare_corpus(dataclasses.replace(recipe, **change), cache=cache).path)
  copy.write_text(copy.read_text() + '\n\nOne more document.')
  paths.add(
    preparation.prepare_corpus(dataclasses.replace(recipe, source=str(copy)), cache=cache).path
  )
  assert len(paths) == 6


def test_a_given_tokenizer_is_used(recipe, prepared, tokenizer_folder, tmp_path, monkeypatch):
  monkeypatch.setattr(tokenization, 'train_tokenizer', None)
  given = preparation.prepare_corpus(
    dataclasses.replace(recipe, tokenizer=tokenizer_folder, vocab_size=9), cache=tmp_path
  )
  assert given.tokenizer.fingerprint == prepared.tokenizer.fingerprint
  assert (
    given.train.identity == prepared.train.identity
    and given.heldout.identity == prepared.heldout.identity
  )


def test_wordpiece_is_trained_and_stored(recipe, cache, tmp_path):
  made = preparation.prepare_corpus(dataclasses.replace(recipe, tokenizer='wordpiece'), cache=cache)
  assert made.tokenizer.kind == 'wordpiece' and made.tokenizer.size == 400
  assert np.array_equal(
    np.concatenate(_pieces(made.heldout, made.tokenizer)),
    np.concatenate(
      [
        made.tokenizer.encode(text)
        for text in corpora.read_documents(recipe.source)
        if corpora.is_held_out(text, 0.2)
      ]
    ),
  )
  assert pathlib.Path(made.path, 'tokenizer', 'vocab.txt').read_text().split('\n')[:5] == list(
    tokenization.SPECIAL_TOKENS
  )


def test_no_document_is_held_out_for_a_fraction_of_0(recipe, tokenizer_folder, tmp_path):
  whole = preparation.prepare_corpus(
    dataclasses.replace(recipe, heldout_fraction=0.0, tokenizer=tokenizer_folder), cache=tmp_path
  )
  assert whole.heldout is None and whole.facts['train']['documents'] == 30


def test_segment_pairs_have_a_seed_and_count_dropped_tokens(
  recipe, tokenizer_folder, tmp_path, capsys
):
  pairs = dataclasses.replace(recipe, row_format='segment_pair', tokenizer=tokenizer_folder)
  first = preparation.prepare_corpus(pairs, cache=tmp_path)
  other = preparation.prepare_corpus(dataclasses.replace(pairs, seed=1), cache=tmp_path)
  assert first.train.identity != other.train.identity
  facts, t = first.facts['train'], first.tokenizer
  rows = _all(first.train)
  assert (
    (rows[:, 0] == t.cls_id).all()
    and ((rows == t.cls_id).sum(1) == 1).all()
    and set((rows == t.sep_id).sum(1)) == {1, 2}
  )
  assert (
    facts['dropped_tokens'] > 0
    and facts['text_tokens']
    == facts['dropped_tokens'] + np.isin(rows, [t.pad_id, t.cls_id, t.sep_id], invert=True).sum()
  )
  assert 'cut off by segment_pair' in capsys.readouterr().out


def test_padding_is_below_one_percent_on_the_bundled_corpus(tokenizer_folder, tmp_path):
  for row_length in (64, 512):
    facts = preparation.prepare_corpus(
      CorpusRecipe('sample', row_length=row_length, tokenizer=tokenizer_folder), cache=tmp_path
    ).facts
    rows = facts['train']['rows'] + facts['heldout']['rows']
    assert 1 - (facts['train']['tokens'] + facts['heldout']['tokens']) / (rows * row_length) < 0.01
    assert facts['heldout']['padding_share'] < 0.02


def test_sources_with_weights_have_a_store_each(
  recipe, prepared, cache, tokenizer_folder, tmp_path, monkeypatch
):
  for name, part in (('a', slice(0, 20)), ('b', slice(20, 30))):
    (tmp_path / f'{name}.txt').write_text(
      '\n\n'.join(list(corpora.read_documents(recipe.source))[part])
    )

  def source(a, b):
    return f'{tmp_path}/a.txt;weight={a}, {tmp_path}/b.txt;weight={b}'

  mixed = dataclasses.replace(recipe, source=source(3, 1), tokenizer=tokenizer_folder)
  first = preparation.prepare_corpus(mixed, cache=tmp_path)
  assert first.train.weights == (0.75, 0.25) and first.facts['stores'] == [
    'train-00',
    'train-01',
    'heldout',
  ]
  assert [store.rows for store in first.train.stores] == [
    entry['rows'] for entry in first.facts['sources']
  ]
  assert first.train.rows == first.facts['train']['rows']
  monkeypatch.setattr(corpora, 'documents', None)
  other = preparation.prepare_corpus(
    dataclasses.replace(mixed, source=source(1, 1)), cache=tmp_path
  )
  assert other.path == first.path and other.train.weights == (0.5, 0.5), (
    'rows stay, only the mixing changes'
  )


def test_near_duplicates_are_dropped_and_counted(
  recipe, prepared, tokenizer_folder, tmp_path, monkeypatch
):
  monkeypatch.setattr(blocks, 'BLOCK_CHARACTERS', 5_000)
  texts = list(corpora.read_documents(recipe.source))
  once, twice = tmp_path / 'once.txt', tmp_path / 'twice.txt'
  once.write_text('\n\n'.join(texts[5:]))
  twice.write_text(
    '\n\n'.join([*texts[5:], *(text.replace('the ', 'the ', 1) + ' End.' for text in texts[5:])])
  )
  first = preparation.prepare_corpus(
    dataclasses.replace(recipe, source=str(once), tokenizer=tokenizer_folder, near_duplicates=0.7),
    cache=tmp_path,
  )
  both = preparation.prepare_corpus(
    dataclasses.replace(recipe, source=str(twice), tokenizer=tokenizer_folder, near_duplicates=0.7),
    cache=tmp_path,
  )
  assert (
    first.facts['train']['duplicate_documents'] + first.facts['heldout']['duplicate_documents'] == 0
  )
  assert (
    both.facts['train']['duplicate_documents'] + both.facts['heldout']['duplicate_documents'] == 25
  )
  for split in ('train', 'heldout'):
    assert both.facts[split]['text_tokens'] == first.facts[split]['text_tokens']


def test_a_prepared_corpus_at_an_address_is_read_through_the_cache(
  recipe, prepared, tokenizer_folder, tmp_path
):
  address = 'memory://bucket/corpora/thirty'
  made = preparation.prepare_corpus(
    dataclasses.replace(recipe, tokenizer=tokenizer_folder),
    cache=tmp_path / 'maker',
    output=address,
  )
  assert sorted(file_access.listing(address)) == [
    'facts.json',
    'heldout',
    'report.md',
    'tokenizer',
    'train',
  ]
  opened = preparation.open_prepared(address, tmp_path / 'reader')
  assert not list((tmp_path / 'reader').rglob('*.bin')), 'nothing is fetched before it is read'
  assert np.array_equal(_all(opened.train), _all(prepared.train)) and opened.facts == made.facts
  assert len(list((tmp_path / 'reader').rglob('*.bin'))) == 1, 'the held-out rows were not read'


def test_of_two_preparations_at_one_address_the_second_waits_and_uses_the_rows(
  recipe, prepared, tokenizer_folder, tmp_path, monkeypatch
):
  given = dataclasses.replace(recipe, tokenizer=tokenizer_folder)
  address = 'memory://bucket/two'
  original, others, said, found = blocks.make_rows, [], threading.Event(), []

  def second():
    found.append(preparation.prepare_corpus(given, cache=tmp_path / 'second', output=address))

  def make_rows(*args):
    if not others:
      others.append(threading.Thread(target=second, daemon=True))
      others[0].start()
      assert said.wait(60), 'the second process reports that it waits'
    return original(*args)

  monkeypatch.setattr(finished, '_REMOTE_POLL', 0.01)
  monkeypatch.setattr(
    finished.console, 'say', lambda label, *_, **__: said.set() if label == 'waiting' else None
  )
  monkeypatch.setattr(blocks, 'make_rows', make_rows)
  made = preparation.prepare_corpus(given, cache=tmp_path / 'first', output=address)
  others[0].join(60)
  assert len(others) == 1 and found[0].train.identity == made.train.identity
  assert made.train.identity == prepared.train.identity
  assert preparation.open_prepared(address, tmp_path).heldout.read(np.arange(3)).shape == (3, 32)


def test_workers_write_to_an_address(recipe, prepared, tokenizer_folder, tmp_path, monkeypatch):
  monkeypatch.setattr(workers, 'SMALL_BYTES', 0)
  given = dataclasses.replace(recipe, tokenizer=tokenizer_folder)
  made = preparation.prepare_corpus(
    given, cache=tmp_path, output=f'file://{tmp_path}/out', processes=2
  )
  assert np.array_equal(_all(made.train), _all(prepared.train))
  assert preparation.open_prepared(tmp_path / 'out').heldout.identity == prepared.heldout.identity


def test_the_folder_of_a_user_is_not_changed(recipe, prepared, tokenizer_folder, tmp_path):
  mine = tmp_path / 'mine'
  mine.mkdir()
  (mine / 'thesis.tex').write_text('years of work')
  assert 'is not empty and not a prepared corpus' in _refused(recipe, cache=tmp_path, output=mine)
  given = dataclasses.replace(recipe, tokenizer=tokenizer_folder)
  preparation.prepare_corpus(given, cache=tmp_path, output=tmp_path / 'out')
  assert 'holds another corpus' in _refused(
    dataclasses.replace(given, row_length=16), cache=tmp_path, output=tmp_path / 'out'
  )
  assert (
    preparation.prepare_corpus(given, cache=tmp_path, output=tmp_path / 'out').train.identity
    == prepared.train.identity
  )
  assert (mine / 'thesis.tex').read_text() == 'years of work'


def test_a_failed_run_removes_only_its_own_files(recipe, tokenizer_folder, tmp_path, monkeypatch):
  def meanwhile(*_):
    (tmp_path / 'out' / 'notes.txt').write_text('mine')
    raise UserError('something is wrong')

  monkeypatch.setattr(preparation, '_write_store', meanwhile)
  assert 'something is wrong' in _refused(
    dataclasses.replace(recipe, tokenizer=tokenizer_folder), cache=tmp_path, output=tmp_path / 'out'
  )
  assert file_access.listing(tmp_path / 'out') == ['notes.txt']


@pytest.mark.parametrize('processes', [1, 2])
def test_a_failed_run_leaves_no_file(recipe, tokenizer_folder, tmp_path, monkeypatch, processes):
  monkeypatch.setattr(blocks, 'BLOCK_CHARACTERS', 5_000)
  monkeypatch.setattr(workers, 'SMALL_BYTES', 0)
  broken = tmp_path / 'text.txt'
  broken.write_bytes(pathlib.Path(recipe.source).read_bytes() * 10 + b'\n\n\xff\n')
  for tokenizer in (
    'unigram',
    tokenizer_folder,
  ):  # the error is found in training, and while rows are made
    assert 'not UTF-8' in _refused(
      dataclasses.replace(recipe, source=str(broken), tokenizer=tokenizer),
      cache=tmp_path / 'cache',
      processes=processes,
    )
    assert [
      path for path in (tmp_path / 'cache').rglob('*') if path.is_file() and path.suffix != '.lock'
    ] == []


def test_a_full_disk_keeps_finished_work(recipe, prepared, tokenizer_folder, tmp_path, monkeypatch):
  given = dataclasses.replace(recipe, tokenizer=tokenizer_folder)
  with monkeypatch.context() as patch:
    patch.setattr(
      os,
      'fsync',
      lambda _: (
        (_ for _ in ()).throw(OSError(28, 'No space left on device'))
        if file_access.exists(tmp_path / 'out' / '.work' / 'groups')
        and not file_access.exists(tmp_path / 'full')
        and (tmp_path / 'out' / 'train').exists()
        else None
      ),
    )
    assert 'No space left on device' in _refused(given, cache=tmp_path, output=tmp_path / 'out')
  assert file_access.listing(tmp_path / 'out' / '.work' / 'rows')
  monkeypatch.setattr(blocks, 'worker_tokenizer', None)  # no row is made again
  assert (
    preparation.prepare_corpus(given, cache=tmp_path, output=tmp_path / 'out').train.identity
    == prepared.train.identity
  )


def test_another_tokenizer_in_the_same_folder_is_noticed(recipe, tokenizer_folder, tmp_path):
  out = tmp_path / 'out'
  preparation.prepare_corpus(
    dataclasses.replace(recipe, tokenizer=tokenizer_folder), cache=tmp_path, output=out
  )
  file_access.remove(out)
  made = preparation.prepare_corpus(
    dataclasses.replace(recipe, tokenizer='wordpiece'), cache=tmp_path, output=out
  )
  text = next(
    text for text in corpora.read_documents(recipe.source) if not corpora.is_held_out(text, 0.2)
  )
  assert (
    _pieces(made.train, made.tokenizer)[0].tolist()
    == made.tokenizer.encode(text)[: len(_pieces(made.train, made.tokenizer)[0])]
  )


def test_text_that_changes_while_it_is_read_is_refused(
  recipe, tokenizer_folder, tmp_path, monkeypatch
):
  path = tmp_path / 'text.txt'
  path.write_bytes(pathlib.Path(recipe.source).read_bytes())
  original = preparation._write_store

  def changing(*args):
    original(*args)
    path.write_bytes(path.read_bytes() + b'\n\nmore\n')

  monkeypatch.setattr(preparation, '_write_store', changing)
  assert 'changed while it was read' in _refused(
    dataclasses.replace(recipe, source=str(path), tokenizer=tokenizer_folder), cache=tmp_path
  )


@pytest.mark.parametrize('written', ['{0}/out/', '{0}/./out', '~/out', 'out'])
def test_folders_are_found_in_any_spelling(
  recipe, prepared, tokenizer_folder, tmp_path, monkeypatch, written
):
  monkeypatch.setenv('HOME', str(tmp_path))
  given = dataclasses.replace(recipe, tokenizer=tokenizer_folder)
  monkeypatch.chdir(tmp_path)
  made = preparation.prepare_corpus(given, cache='~/cache', output=written.format(tmp_path))
  assert made.train.identity == prepared.train.identity
  assert (
    preparation.open_prepared(tmp_path / 'out').facts
    == preparation.open_prepared(written.format(tmp_path)).facts
    == made.facts
  )
  assert sorted(name for name in file_access.listing(tmp_path) if not name.startswith('.')) == [
    'out'
  ]


@pytest.mark.long
def test_a_line_of_fifty_megabytes(tokenizer_folder, tmp_path):
  path = tmp_path / 'long.txt'
  line = ' '.join(' '.join(text.split()) for text in corpora.read_documents('sample'))[:5_000_000]
  path.write_text(' '.join([line] * 10) + '\n\n' + '\n\n'.join(f'document {n}' for n in range(100)))
  made = preparation.prepare_corpus(
    CorpusRecipe(str(path), row_length=128, tokenizer=tokenizer_folder), cache=tmp_path
  )
  tokenizer, facts = made.tokenizer, made.facts['train']
  assert facts['longest'][0][0] == pytest.approx(10 * len(tokenizer.encode(line)), rel=1e-4)
  assert facts['longest'][0][0] >= 10_000_000 and facts['padding_share'] < 0.001
  assert facts['text_tokens'] == sum(
    int(
      np.isin(
        made.train.read(np.arange(i, min(i + 10_000, made.train.rows))),
        [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id],
        invert=True,
      ).sum()
    )
    for i in range(0, made.train.rows, 10_000)
  )


def test_replaced_bytes_are_counted(recipe, tokenizer_folder, tmp_path, capsys):
  broken = tmp_path / 'text.txt'
  broken.write_bytes(pathlib.Path(recipe.source).read_bytes() + b'\n\nbad \xff\xfe bytes\n\n\n')
  made = preparation.prepare_corpus(
    dataclasses.replace(
      recipe, source=str(broken), invalid_utf8='replace', tokenizer=tokenizer_folder
    ),
    cache=tmp_path,
  )
  (source,) = made.facts['sources']
  assert (source['replaced_bytes'], source['documents_with_replacements']) == (2, 1)
  assert '2 bytes in 1 documents were not UTF-8' in capsys.readouterr().out


def test_a_second_process_waits_for_the_first(tmp_path, monkeypatch):
  path = str(tmp_path / 'corpus')
  events = []
  printed = threading.Event()
  entered = threading.Event()

  def say(label, text):
    events.append(label)
    printed.set()

  monkeypatch.setattr(finished, '_POLL', 0.01)
  monkeypatch.setattr(finished.console, 'say', say)

  def second():
    with finished.building(path) as work:
      events.append(('second', work))
    entered.set()

  thread = threading.Thread(target=second, daemon=True)
  with finished.building(path) as work:
    assert work
    thread.start()
    assert printed.wait(60), 'the second process reports that it waits'
    events.append('first')
    facts = {'format': finished.FORMAT, 'fingerprint': ''}
    file_access.write_bytes(file_access.join(path, finished.FACTS_FILE), json.dumps(facts).encode())
  assert entered.wait(60)
  assert events == ['waiting', 'first', ('second', None)], 'and finds the folder finished'


class Killed(BaseException):
  """Ends a preparation at a place."""


def test_a_kill_while_unfinished_work_is_removed_does_not_block_the_next(tmp_path, monkeypatch):
  path = str(tmp_path / 'corpus')
  remove = file_access.remove

  def start(fingerprint):
    with finished.building(path, fingerprint) as work:
      for name in ('train', 'heldout'):
        file_access.write_bytes(file_access.join(path, name, 'rows'), b'')
      file_access.write_bytes(file_access.join(work, 'block'), b'')
      raise Killed

  with pytest.raises(Killed):
    start('one')
  left = file_access.join(path, 'facts.json.01234567.partial')
  for number in range(1, 4):
    calls = []

    def removing(name, calls=calls, number=number):
      calls.append(name)
      if len(calls) == number:
        raise Killed
      remove(name)

    with monkeypatch.context() as patch:
      patch.setattr(file_access, 'remove', removing)
      with pytest.raises(Killed), finished.building(path, f'two {number}'):
        pytest.fail('it was to be killed before')
    file_access.write_bytes(left, b'')
    with pytest.raises(Killed):
      start('one')
  with finished.building(path, 'three'):
    finished.write_facts(path, {'fingerprint': 'three'})
  assert file_access.listing(path) == ['facts.json']


def test_a_preparation_whose_folder_was_taken_writes_no_facts(
  recipe, tokenizer_folder, tmp_path, monkeypatch
):
  given = dataclasses.replace(recipe, tokenizer=tokenizer_folder)
  out = tmp_path / 'out'
  write_store = preparation._write_store

  with FolderLock(out, take_over=True) as other:

    def taken(*arguments):
      write_store(*arguments)
      if not other._held:
        other.acquire()

    monkeypatch.setattr(preparation, '_write_store', taken)
    with pytest.raises(FolderInUse, match='was taken over by process'):
      preparation.prepare_corpus(given, cache=tmp_path, output=out)
    assert finished.read_facts(str(out)) is None and (out / '.work').exists()


def test_a_finished_corpus_is_opened_while_its_folder_is_locked(recipe, tokenizer_folder, tmp_path):
  given = dataclasses.replace(recipe, tokenizer=tokenizer_folder)
  made = preparation.prepare_corpus(given, cache=tmp_path)
  with FolderLock(made.path) as other:
    other.acquire()
    again = preparation.prepare_corpus(given, cache=tmp_path)
  assert again.train.identity == made.train.identity


def test_two_processes_at_once_both_succeed(recipe, prepared, tokenizer_folder, tmp_path):
  given = dataclasses.replace(recipe, tokenizer=tokenizer_folder)
  command = (
    'from electra_jax.data.prepare.preparation import prepare_corpus; '
    'from electra_jax.data.prepare.recipe import CorpusRecipe; '
    f'prepare_corpus(CorpusRecipe(**{dataclasses.asdict(given)}), cache={str(tmp_path)!r})'
  )
  environment = os.environ | {'PYTHONPATH': os.getcwd()}
  children = [subprocess.Popen([sys.executable, '-c', command], env=environment) for _ in range(2)]
  assert [child.wait(timeout=120) for child in children] == [0, 0]
  (made,) = [path for path in (tmp_path / 'rows').iterdir() if not path.name.startswith('.')]
  assert preparation.open_prepared(made).train.identity == prepared.train.identity


@pytest.mark.parametrize(
  'text, complaint',
  [
    ('', 'the corpus is empty'),
    (' \n\n \n', 'the corpus is empty'),
    ('a', 'too little text to hold some out'),
  ],
)
def test_too_little_text_is_refused(recipe, tokenizer_folder, tmp_path, text, complaint):
  path = tmp_path / 'text.txt'
  path.write_text(text)
  assert complaint in _refused(
    dataclasses.replace(recipe, source=str(path), tokenizer=tokenizer_folder),
    cache=tmp_path / 'cache',
  )
  assert not [
    name for name in file_access.listing(tmp_path / 'cache' / 'rows') if not name.startswith('.')
  ]


def test_documents_without_a_token_are_refused(recipe, tokenizer_folder, tmp_path):
  path = tmp_path / 'text.txt'
  path.write_text('\n\n'.join('\u200b' * n for n in range(1, 40)))
  assert 'hold no token' in _refused(
    dataclasses.replace(recipe, source=str(path), tokenizer=tokenizer_folder), cache=tmp_path
  )


@pytest.mark.parametrize(
  'change, complaint',
  [
    ({'heldout_fraction': 1.0}, 'heldout_fraction is 1.0'),
    ({'row_length': 4}, 'row_length is 4'),
    ({'near_duplicates': 2.0}, 'near_duplicates is 2.0'),
    ({'row_format': 'dense'}, "row_format is 'dense'; expected packed or segment_pair"),
    ({'invalid_utf8': 'drop'}, "invalid_utf8 is 'drop'"),
    ({'tokenizer': 'nowhere/vocab.txt'}, 'nowhere/vocab.txt'),
    ({'source': 'nowhere/*.txt'}, 'nowhere/*.txt'),
  ],
)
def test_wrong_settings_are_named(recipe, tmp_path, change, complaint):
  assert complaint in _refused(dataclasses.replace(recipe, **change), cache=tmp_path)


def test_an_unwritable_cache_is_named(recipe, tmp_path):
  (tmp_path / 'file').write_text('in the way')
  assert 'cannot be written' in _refused(recipe, cache=tmp_path / 'file' / 'cache')


def test_damaged_folders_are_named(recipe, tokenizer_folder, tmp_path):
  given = dataclasses.replace(recipe, tokenizer=tokenizer_folder)
  made = preparation.prepare_corpus(given, cache=tmp_path)
  other = preparation.prepare_corpus(dataclasses.replace(recipe, vocab_size=300), cache=tmp_path)
  vocabulary = pathlib.Path(made.path, 'tokenizer', 'tokenizer.model')
  before = vocabulary.read_bytes()
  vocabulary.write_bytes(pathlib.Path(other.path, 'tokenizer', 'tokenizer.model').read_bytes())
  assert 'differs from its checksum' in _refused(given, cache=tmp_path)
  sums = vocabulary.with_name('SHA256SUMS')
  recorded = sums.read_bytes()
  sums.unlink()
  assert 'is not the one that made its rows' in _refused(given, cache=tmp_path)
  sums.write_bytes(recorded)
  vocabulary.write_bytes(before)
  facts = pathlib.Path(made.path, 'facts.json')
  facts.write_text(facts.read_text()[:100])
  assert 'is damaged' in _refused(given, cache=tmp_path)
  with pytest.raises(UserError, match='no prepared corpus at'):
    preparation.open_prepared(tmp_path / 'nothing')

"""Preparation gives the same bytes with any number of processes, with Beam, and after a kill."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import made_tokenizers
import numpy as np
import pytest

from electra_jax import file_access
from electra_jax.data.corpus import corpora, corpus_format
from electra_jax.data.prepare import blocks, preparation, workers
from electra_jax.data.prepare.recipe import CorpusRecipe
from electra_jax.data.store import token_manifest
from electra_jax.errors import UserError

BLOCK = 10_000


@pytest.fixture(scope='module', autouse=True)
def small_blocks():
  """Many blocks of little text, which worker processes make."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(blocks, 'BLOCK_CHARACTERS', BLOCK)
    patch.setattr(workers, 'SMALL_BYTES', 0)
    yield


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
  """Two weighted sources in two formats, with near-duplicates, and an existing tokenizer."""
  folder = tmp_path_factory.mktemp('corpus')
  texts = [
    document[:1500]
    for document, _ in zip(corpora.read_documents('sample'), range(120), strict=False)
  ]
  made_tokenizers.train(texts, kind='unigram', vocab_size=500).save(folder / 'tokenizer')
  for number in range(3):
    (folder / f'part{number}.txt').write_text('\n\n'.join(texts[20 * number : 20 * number + 20]))
  (folder / 'lines.txt').write_text(
    '\n'.join(text.replace('\n', ' ') for text in [*texts[60:], *texts[60:70]])
  )
  source = f'{folder}/part*.txt;weight=2, {folder}/lines.txt;format=line;weight=1'
  return CorpusRecipe(
    source,
    row_length=64,
    tokenizer=str(folder / 'tokenizer'),
    heldout_fraction=0.1,
    near_duplicates=0.8,
  )


@pytest.fixture(scope='module')
def expected(recipe, tmp_path_factory):
  """What one process makes."""
  path = tmp_path_factory.mktemp('one') / 'out'
  made = preparation.prepare_corpus(recipe, cache=path.parent, output=path, processes=1)
  assert (
    made.facts['train']['duplicate_documents'] + made.facts['heldout']['duplicate_documents'] >= 10
  )
  return content(path)


def content(path):
  """Every file of a prepared corpus but the report, which contains the time it took."""
  return {
    str(file.relative_to(path)): file.read_bytes()
    for file in sorted(pathlib.Path(path).rglob('*'))
    if file.is_file() and file.name not in ('report.md', 'verified.json')
  }


@pytest.mark.parametrize(
  'row_format', ['packed', pytest.param('segment_pair', marks=pytest.mark.long)]
)
def test_any_number_of_processes_gives_the_same(recipe, expected, tmp_path, row_format):
  recipe = dataclasses.replace(recipe, row_format=row_format)
  if row_format == 'segment_pair':
    preparation.prepare_corpus(recipe, cache=tmp_path, output=tmp_path / 'one', processes=1)
    expected = content(tmp_path / 'one')
  processes = 2 if row_format == 'segment_pair' else 3
  preparation.prepare_corpus(
    recipe, cache=tmp_path, output=tmp_path / 'several', processes=processes
  )
  assert content(tmp_path / 'several') == expected


def test_a_beam_pipeline_gives_the_same(recipe, expected, tmp_path):
  preparation.prepare_corpus(recipe, cache=tmp_path, output=tmp_path / 'out', beam='')
  assert content(tmp_path / 'out') == expected


@pytest.mark.parametrize('beam', [None, pytest.param('', marks=pytest.mark.long)])
def test_shards_that_end_within_blocks_hold_the_same_rows(recipe, tmp_path, monkeypatch, beam):
  whole = preparation.prepare_corpus(recipe, cache=tmp_path, output=tmp_path / 'whole', processes=1)
  monkeypatch.setattr(token_manifest, 'SHARD_BYTES', 19 * 64 * 2)  # 19 rows
  split = preparation.prepare_corpus(
    recipe, cache=tmp_path, output=tmp_path / 'split', processes=1, beam=beam
  )
  for one, other in zip(
    (*whole.train.stores, whole.heldout), (*split.train.stores, split.heldout), strict=True
  ):
    assert len(other.manifest['shards']) == -(-one.rows // 19) and len(one.manifest['shards']) == 1
    assert np.array_equal(one.read(np.arange(one.rows)), other.read(np.arange(other.rows)))
  assert max(len(store.manifest['shards']) for store in split.train.stores) > 10


class Stopped(BaseException):
  """Ends a preparation as a kill does."""


@pytest.mark.parametrize('stage', ['sign', 'make_rows'])
def test_a_stop_between_blocks_gives_the_same_and_repeats_no_block(
  recipe, expected, tmp_path, monkeypatch, stage
):
  made, original = [], getattr(blocks, stage)

  def stopping(job, block, threads):
    if len(made) == 3:
      raise Stopped
    made.append(block.name)
    return original(job, block, threads)

  monkeypatch.setattr(blocks, stage, stopping)
  with pytest.raises(Stopped):
    preparation.prepare_corpus(recipe, cache=tmp_path, output=tmp_path / 'out', processes=1)
  assert not file_access.exists(tmp_path / 'out' / 'facts.json')
  again = []
  monkeypatch.setattr(
    blocks,
    stage,
    lambda job, block, *threads: again.append(block.name) or original(job, block, *threads),
  )
  preparation.prepare_corpus(recipe, cache=tmp_path, output=tmp_path / 'out', processes=1)
  assert content(tmp_path / 'out') == expected
  assert len(again) > 3 and not set(made) & set(again)


SIGNATURES, FIRST_ROWS, MORE_ROWS, END = (
  ('.work/signatures', 2),
  ('.work/rows', 2),
  ('.work/rows', 12),
  ('train-01', 1),
)


@pytest.mark.parametrize(
  'moments',
  [
    pytest.param((SIGNATURES, MORE_ROWS), id='two'),
    pytest.param((SIGNATURES, FIRST_ROWS, MORE_ROWS, END), id='four', marks=pytest.mark.long),
  ],
)
def test_kills_give_the_same(recipe, expected, tmp_path, moments):
  """SIGKILL when there are so many files of a kind, in a process with workers; these end too."""
  code = (
    'from electra_jax.data.prepare import blocks, preparation, recipe, workers; '
    f'blocks.BLOCK_CHARACTERS = {BLOCK}; workers.SMALL_BYTES = 0; '
    f'preparation.prepare_corpus(recipe.CorpusRecipe(**{dataclasses.asdict(recipe)}), '
    f'cache={str(tmp_path)!r}, output={str(tmp_path / "out")!r}, processes=2)'
  )
  environment = os.environ | {'PYTHONPATH': os.getcwd()}
  for kind, number in moments:
    child = subprocess.Popen([sys.executable, '-c', code], env=environment, start_new_session=True)
    while child.poll() is None and len(list((tmp_path / 'out' / kind).glob('*'))) < number:
      time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL or kind == 'train-01', (
      'it was not finished yet'
    )  # from train-01 on it takes milliseconds
    deadline = time.monotonic() + 60
    while group_lives(child.pid):
      assert time.monotonic() < deadline, 'workers outlive their parent'
      time.sleep(0.05)
  preparation.prepare_corpus(recipe, cache=tmp_path, output=tmp_path / 'out', processes=2)
  assert content(tmp_path / 'out') == expected


def test_a_kill_at_the_end_leaves_no_partial_file(recipe, expected, tmp_path, monkeypatch):
  out = tmp_path / 'out'
  with monkeypatch.context() as patch:
    patch.setattr(file_access, 'remove', lambda path: (_ for _ in ()).throw(Stopped))
    with pytest.raises(Stopped):
      preparation.prepare_corpus(recipe, cache=tmp_path, output=out, processes=1)
  assert file_access.exists(out / 'facts.json') and file_access.exists(out / '.work')
  (out / 'train-00' / 'rows-00000.bin.0123.partial').write_bytes(
    b''
  )  # as an earlier kill leaves it
  (out / 'facts.json').rename(tmp_path / 'facts.json')
  preparation.prepare_corpus(recipe, cache=tmp_path, output=out, processes=1)
  assert content(out) == expected


def group_lives(group):
  try:
    os.killpg(group, 0)
  except ProcessLookupError:
    return False
  return True


@pytest.fixture
def many_groups(recipe, tmp_path, monkeypatch):
  """A job, and the groups of the corpus, one per file."""
  monkeypatch.setattr(corpus_format, 'GROUP_BYTES', 1)
  groups = corpora.groups(corpora.parse_sources(recipe.source))
  assert len(groups) == 4
  job = blocks.PreparationJob(str(tmp_path / 'work'), '', '', recipe)
  return job, list(enumerate(groups))


def test_groups_read_in_parallel_are_those_read_in_turn(many_groups):
  job, groups = many_groups
  in_turn = list(workers._read_in_parallel(job, groups, 1))
  in_parallel = list(workers._read_in_parallel(job, groups, 3))

  def texts(items):
    return {block.name: block.texts for block, _ in items if block}

  assert texts(in_parallel) == texts(in_turn) and len(texts(in_turn)) > 4
  for items in (in_turn, in_parallel):
    assert sum(size for _, size in items) == sum(group.bytes for _, group in groups)
    assert sum(block is None for block, _ in items) == 4


@pytest.mark.parametrize('how', ['an error of a reader', 'the consumer stops'])
def test_readers_end_with_their_consumer(many_groups, monkeypatch, how):
  job, groups = many_groups
  before = threading.active_count()
  if how == 'an error of a reader':
    original = blocks.read_blocks
    monkeypatch.setattr(
      blocks,
      'read_blocks',
      lambda job, index, *more: 1 / 0 if index == 2 else original(job, index, *more),
    )
    with pytest.raises(ZeroDivisionError):
      list(workers._read_in_parallel(job, groups, 3))
  else:
    reading = workers._read_in_parallel(job, groups, 3)
    next(reading)
    reading.close()
  assert threading.active_count() == before


def _die(job, block, threads):
  os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_while_text_is_read_is_reported(recipe, tmp_path, monkeypatch):
  original = corpora.documents

  def slowly(*args):
    for number, text in enumerate(original(*args)):
      if number == 30:
        time.sleep(3)
      yield text

  monkeypatch.setattr(corpora, 'documents', slowly)
  monkeypatch.setattr(blocks, 'sign', _die)
  with pytest.raises(workers.WorkerDied):
    preparation.prepare_corpus(recipe, cache=tmp_path, output=tmp_path / 'out', processes=2)


def test_a_worker_that_dies_is_reported_and_no_work_is_lost(
  recipe, expected, tmp_path, monkeypatch
):
  with monkeypatch.context() as patch:
    patch.setattr(blocks, 'make_rows', _die)
    with pytest.raises(workers.WorkerDied, match='a worker process of the preparation died'):
      preparation.prepare_corpus(recipe, cache=tmp_path, output=tmp_path / 'out', processes=2)
  assert file_access.listing(tmp_path / 'out' / '.work' / 'signatures')
  preparation.prepare_corpus(recipe, cache=tmp_path, output=tmp_path / 'out', processes=2)
  assert content(tmp_path / 'out') == expected


def test_another_corpus_in_the_same_folder_starts_again(recipe, expected, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(preparation, '_write_store', lambda *_: (_ for _ in ()).throw(Stopped))
    with pytest.raises(Stopped):
      preparation.prepare_corpus(
        dataclasses.replace(recipe, row_length=32),
        cache=tmp_path,
        output=tmp_path / 'out',
        processes=1,
      )
  preparation.prepare_corpus(recipe, cache=tmp_path, output=tmp_path / 'out', processes=1)
  assert content(tmp_path / 'out') == expected


def test_an_error_of_a_worker_is_one_sentence(recipe, tmp_path, capfd):
  (tmp_path / 'bad.txt').write_bytes(b'good\n\nbad \xff\n')
  for how in ({'processes': 2}, {'beam': ''}):
    with pytest.raises(UserError, match=r'bad\.txt.* is not UTF-8') as caught:
      preparation.prepare_corpus(
        dataclasses.replace(recipe, source=str(tmp_path / 'bad.txt')), cache=tmp_path, **how
      )
    assert 'Traceback' not in capfd.readouterr().err
    assert str(caught.value).endswith('data.invalid_utf8=replace')


@pytest.mark.parametrize(
  'flags, named',
  [
    ('--runner=Nope', 'Nope'),
    ('"', 'No closing quotation'),
    ('--max_num_workers=x', 'max_num_workers'),
    (
      '--runer=DirectRunner',
      "'--runer=DirectRunner', which Beam does not know; did you mean --runner?",
    ),
  ],
)
def test_wrong_flags_of_beam_are_named(recipe, tmp_path, capfd, flags, named):
  with pytest.raises(UserError, match='^--beam') as caught:
    preparation.prepare_corpus(recipe, cache=tmp_path, beam=flags)
  assert named in str(caught.value) and '\n' not in str(caught.value)
  assert not file_access.listing(tmp_path)

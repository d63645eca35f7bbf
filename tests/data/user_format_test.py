"""A corpus format of user code is chosen by extension or option, and prepared by any worker."""

import gzip
import pathlib
import pickle
import subprocess
import sys

import pytest
from corpus_reading import identity, read, refusal

from electra_jax import registry
from electra_jax.data.corpus import corpora
from electra_jax.data.prepare import blocks, preparation, workers
from electra_jax.data.prepare.recipe import CorpusRecipe

EXAMPLE = pathlib.Path(__file__).parents[1] / 'extending' / 'corpus_format.py'
LETTERS = EXAMPLE.with_name('letters.tei')


@pytest.fixture(scope='module', autouse=True)
def tei():
  """Registers the format as a config file does."""
  registry.load_plugins([EXAMPLE])
  return registry.CORPUS_FORMATS.get('tei')


def test_the_extension_or_the_option_selects_the_format(tmp_path):
  texts, _ = read(LETTERS)
  assert len(texts) == 80 and not any('torn' in text for text in texts)
  (tmp_path / 'letters.xml').write_bytes(LETTERS.read_bytes())
  (tmp_path / 'letters.tei.gz').write_bytes(gzip.compress(LETTERS.read_bytes()))
  assert read(f'{tmp_path}/letters.xml;format=tei')[0] == texts
  assert read(f'{tmp_path}/letters.tei.gz')[0] == texts
  assert sum('torn' in text for text in read(f'{LETTERS};notes=keep')[0]) > 5


def test_wrong_options_and_files_are_named(tmp_path):
  assert 'has notes=some; expected keep or drop' in refusal(f'{LETTERS};notes=some')
  assert 'is TEI, which has no option field' in refusal(f'{LETTERS};field=text')
  (tmp_path / 'a.txt').write_text('prose')
  assert 'is text, which has no option notes' in refusal(f'{tmp_path}/a.txt;notes=keep')
  (tmp_path / 'letters.tei').write_text('<TEI><text>')
  assert 'is not XML' in refusal(tmp_path / 'letters.tei')
  (tmp_path / 'letters.txt').write_bytes(LETTERS.read_bytes())
  assert len(read(tmp_path / 'letters.txt')[0]) == 80  # by its content
  assert 'is TEI, not text' in refusal(f'{tmp_path}/letters.txt;format=line')


def test_the_identity_changes_with_options_and_version(tei, monkeypatch):
  before = identity(LETTERS)
  assert identity(f'{LETTERS};notes=keep') != before == identity(f'{LETTERS};notes=drop')
  monkeypatch.setattr(tei, 'version', 2, raising=False)
  assert identity(LETTERS) != before


@pytest.mark.parametrize('how', [{'processes': 2}, {'beam': ''}])
def test_workers_know_the_format(tmp_path, monkeypatch, how):
  monkeypatch.setattr(workers, 'SMALL_BYTES', 0)
  monkeypatch.setattr(blocks, 'BLOCK_CHARACTERS', 2_000)
  recipe = CorpusRecipe(str(LETTERS), row_length=32, vocab_size=300)
  made = preparation.prepare_corpus(recipe, cache=tmp_path, **how)
  counted = made.facts['train']['documents'] + made.facts['heldout']['documents']
  assert counted == len(list(corpora.read_documents(str(LETTERS))))


def test_another_process_loads_the_file_of_the_format(tmp_path):
  (group,) = corpora.groups(corpora.parse_sources(str(LETTERS)))
  recipe = CorpusRecipe(str(LETTERS), row_length=32)
  job = blocks.PreparationJob(str(tmp_path), '', '', recipe, plugins=registry.plugin_files())
  (tmp_path / 'job').write_bytes(pickle.dumps((job, group)))
  code = (
    'import pickle, sys; from electra_jax.data.prepare import blocks; '
    'job, group = pickle.load(open(sys.argv[1], "rb")); '
    'print(sum(len(block.texts) for block in blocks.read_blocks(job, 0, group)))'
  )
  command = [sys.executable, '-c', code, str(tmp_path / 'job')]
  done = subprocess.run(command, cwd=EXAMPLE.parents[2], capture_output=True, text=True)
  assert done.stdout == '80\n', done.stderr

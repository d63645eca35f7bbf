"""The calls of docs/python.md run as they are shown, on small runs, and give what the page says."""

import os

os.environ.setdefault('HF_HUB_OFFLINE', '1')

import pathlib
import re
import shutil
import tarfile

import hf_runs
import in_process
import micro_run
import numpy as np
import pytest

from electra_jax.config import config_files
from electra_jax.finetune import predictions
from electra_jax.python_api import FinetuningResult, PretrainingResult

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / 'docs' / 'python.md'
VERSIONS = ROOT / 'tests' / 'versions' / '0.1.0.tar.xz'


def blocks():
  return re.findall(r'```python\n(.*?)```', PAGE.read_text('utf-8'), re.DOTALL)


def pretrained(folder):
  """Writes the runs and files that the page names."""
  shutil.copytree(micro_run.finished()[0], folder / 'runs' / 'mini')
  with tarfile.open(VERSIONS) as archive:
    archive.extractall(folder / 'old', filter='data')
  (folder / 'old' / 'finetuned').rename(folder / 'runs' / 'cola')
  shutil.copy(folder / 'old' / 'glue' / 'CoLA' / 'dev.tsv', folder / 'new.tsv')
  (folder / 'corpus').mkdir()
  shutil.copy(micro_run.corpus(), folder / 'corpus' / 'stories.txt')
  for name, kind, task, fields in (
    ('pairs', 'classification', 'classification', {'data.pair': 'second'}),
    ('ner', 'tagging', 'ner', {}),
    ('squad', 'span', 'squad2', {'max_length': 32}),
  ):
    labels = {'id2label': dict(enumerate(['O', 'B-X', 'I-X']))} if kind == 'tagging' else {}
    hf_runs.folder_of(folder / 'hf' / name, 'electra', kind, **labels)
    hf_runs.adopted(folder / 'hf' / name, folder / 'hf' / name, task, **fields)
    (folder / 'hf' / name / 'run').rename(folder / 'runs' / name)


LONG = pytest.mark.long  # the page trains an encoder and fine-tunes it twice


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  """The names that the blocks of the page define."""
  folder, names = tmp_path_factory.mktemp('page'), {}
  shipped = {'mini': str(ROOT / micro_run.CONFIG), 'small': str(ROOT / micro_run.CONFIG)}
  shipped['finetune/own'] = str(ROOT / micro_run.FINETUNE_CONFIG)
  with in_process.shared_programs(devices=1), pytest.MonkeyPatch.context() as patch:
    (folder / 'runs').mkdir()
    pretrained(folder)
    patch.chdir(folder)
    patch.setattr(config_files, 'shipped_configs', lambda: shipped)
    patch.setenv('HOME', str(folder))  # of the cache of compiled programs
    for block in blocks():
      exec(compile(block, str(PAGE), 'exec'), names)
    yield names


def test_each_function_of_the_api_is_on_the_page():
  text = ''.join(blocks())
  for name in ('load', 'pretrain', 'finetune', 'ElectraClassifier', 'score_similarity'):
    assert name in text
  for name in ('predict', 'score', 'embed', 'detect', 'fill_mask', 'minimal_pairs', 'evaluate'):
    assert f'.{name}(' in text


@LONG
def test_the_page_runs_and_its_results_are_typed(page):
  one, two = page['results']
  assert isinstance(one, predictions.LabelPrediction) and one.probability == max(
    one.probabilities.values()
  )
  assert page['score'].unknown == {'other': 1} and page['score'].labeled == 2
  assert page['vectors'].shape == (2, 32) and page['vectors'].dtype == np.float32
  assert (
    isinstance(page['found'], predictions.TagPrediction)
    and ['Ada met Grace in London'[word.start : word.end] for word in page['found'].words]
    == 'Ada met Grace in London'.split()
  )
  answer = page['answer']
  assert 'The chef ate the meal.'[answer.start : answer.end] == answer.answer
  np.testing.assert_allclose(sum(span.probability for span in answer.candidates), 1)
  assert page['similarity'].pairs == 3 and len(page['similarity'].records()) == 8
  assert len(page['candidates'][0]) == 2 and len(page['candidates'][0][1]) == 3


@LONG
def test_training_from_python_makes_runs_that_open(page):
  assert page['own'].step == 30
  assert isinstance(page['result'], FinetuningResult)
  assert page['result'].metrics['classification'].keys() >= {'accuracy', 'macro_f1'}
  assert not page['result'].stopped and pathlib.Path('runs/meals/data/train.jsonl').exists()
  assert PretrainingResult.load and pathlib.Path('runs/own/data/documents.jsonl').exists()


@LONG
def test_a_classifier_can_be_pickled_and_cloned(page):
  import pickle

  import sklearn

  classifier = page['classifier']
  texts = ['a good meal', 'a bad house']
  again = pickle.loads(pickle.dumps(classifier))
  np.testing.assert_allclose(again.predict_proba(texts), classifier.predict_proba(texts), rtol=1e-5)
  assert list(again.predict(texts)) == list(classifier.predict(texts))
  np.testing.assert_allclose(classifier.predict_proba(texts).sum(1), 1)
  assert not hasattr(sklearn.base.clone(classifier), 'classes_')


@LONG
def test_another_corpus_is_evaluated_without_that_of_the_run(page):
  (file,) = pathlib.Path('runs/mini').glob('evaluation-*.json')
  assert '_txt' not in file.name and page['run'].evaluation_corpus('corpus/*.txt').name

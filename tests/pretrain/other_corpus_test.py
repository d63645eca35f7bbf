"""A pretrained run is evaluated on other corpora, with its tokenizer and without its own corpus."""

import json
import pathlib
import shutil

import in_process
import micro_run
import numpy as np
import pytest

import electra_jax
from electra_jax.data.prepare.preparation import prepare_corpus
from electra_jax.data.prepare.recipe import CorpusRecipe
from electra_jax.errors import UserError
from electra_jax.pretrain.other_corpus import EvaluationCorpus


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run whose own corpus is gone."""
  folder = tmp_path_factory.mktemp('moved')
  copy = shutil.copytree(micro_run.finished()[0], folder / 'run')
  path = copy / 'config.json'
  config = json.loads(path.read_text())
  config['data'] |= {'source': '/nowhere/text.txt', 'cache': str(folder / 'cache')}
  path.write_text(json.dumps(config))
  with in_process.shared_programs(devices=1):
    yield electra_jax.load(copy)


def test_the_own_corpus_given_as_another_one_has_the_own_results(run, tmp_path):
  own = electra_jax.load(micro_run.finished()[0])
  with pytest.raises(UserError, match='/nowhere/text.txt'):
    run.evaluate()
  prepared = own._prepared.path
  out, _ = micro_run.run(
    '--mode=evaluate', f'--workdir={run.workdir}', f'--input={prepared}', f'--output={tmp_path}'
  )
  assert f'26 rows of {prepared}' in out
  (file,) = tmp_path.iterdir()
  assert file.name.startswith('evaluation-')
  found = json.loads(file.read_text())
  shutil.copytree(own.workdir, tmp_path / 'own')
  expected = electra_jax.load(tmp_path / 'own').evaluate()
  assert found.pop('corpus') == prepared
  np.testing.assert_equal(found, json.loads(json.dumps(expected)))


def test_all_documents_of_files_are_evaluated_and_resampled_whole(run, tmp_path):
  path = tmp_path / 'other.txt'
  documents = micro_run.corpus().read_text().split('\n\n')[:24]
  path.write_text('\n\n'.join(documents))
  found = run.evaluate(str(path))
  tokens = sum(len(ids) + 2 for ids in run.tokenizer.encode_arrays(documents))
  # A document that is continued in the next row has [CLS] and [SEP] there, too.
  assert tokens <= found['tokens'] <= tokens + 2 * found['rows']
  assert found['resampled']['unit'] == 'documents' and found['resampled']['groups'] > 3
  (file,) = pathlib.Path(run.workdir).glob('evaluation-other-*.json')
  assert json.loads(file.read_text())['corpus'] == str(path)


def test_rows_of_another_tokenizer_or_length_are_refused(run, tmp_path):
  recipe = {'source': str(micro_run.corpus()), 'heldout_fraction': 0.2}
  cache = tmp_path / 'cache'
  other = prepare_corpus(
    CorpusRecipe(**recipe, row_length=32, tokenizer='wordpiece', vocab_size=300),
    cache=cache,
    processes=1,
  )
  with pytest.raises(UserError, match='was prepared with another tokenizer than that of the run'):
    run.evaluation_corpus(other.path)
  tokenizer = f'{run.workdir}/tokenizer'
  longer = prepare_corpus(
    CorpusRecipe(**recipe, row_length=2 * run.config.sequence_length, tokenizer=tokenizer),
    cache=cache,
    processes=1,
  )
  with pytest.raises(UserError, match='expected equal lengths'):
    run.evaluation_corpus(longer.path)


def test_results_of_corpora_have_files_of_their_own():
  def name(source):
    return EvaluationCorpus(None, (), source).result_file

  assert name(None) == 'evaluation.json'
  names = [name(source) for source in ('a/text.txt', 'b/text.txt', 'gs://x/rows/', 'tfds:x;y')]
  assert len(set(names)) == 4 and all(one.startswith('evaluation-') for one in names)
  assert names[0].startswith('evaluation-text-') and '/' not in ''.join(names)

"""Metadata of model cards are those that the Hub's own library reads, without local paths."""

import re

import pytest
import yaml

from electra_jax import main, model_card
from electra_jax.config import FinetuningConfig, PretrainingConfig
from electra_jax.errors import UserError

huggingface_hub = pytest.importorskip('huggingface_hub')


def read_card(text):
  """The metadata of a card as huggingface_hub reads them, metrics included."""
  return huggingface_hub.ModelCard(text).data


def card(measured, **given):
  return model_card.model_card(
    'a: title',
    model_card.use_of('discriminator', 'AutoModelForPreTraining'),
    model_card.check_publication(**given),
    measured,
    ['## Description'],
  )


@pytest.mark.parametrize(
  'value',
  [
    {'language': ['no', 'en'], 'license': 'cc-by-4.0'},
    {
      'name': 'a: b # c',
      'quoted': '"x" \\ \'y\'',
      'lines': 'a\nb',
      'script': 'Ελληνικά',
      'none': 'null',
    },
    {'number': '1.0', 'value': 1.5, 'small': -1e-6, 'steps': 3, 'flag': True},
    {
      'model-index': [
        {'name': 'a', 'results': [{'task': {'type': 't'}, 'metrics': [{'v': 4e-5}, {'v': 2}]}]}
      ]
    },
  ],
)
def test_metadata_are_read_as_they_were_written(value):
  assert yaml.safe_load('\n'.join(model_card._yaml(value))) == value


def test_the_library_of_the_hub_reads_the_metadata():
  metrics = [
    model_card.CardMetric('token-classification', 'average_precision', 'average precision', 0.25),
    model_card.CardMetric('token-classification', 'roc_auc', 'area under the curve', float('nan')),
    model_card.CardMetric('fill-mask', 'loss', 'generator loss', 4.125),
  ]
  data = read_card(
    card(
      model_card.Measured('held-out documents', 'held out', metrics),
      license='cc-by-4.0',
      language=['no', 'zh-Hans'],
      datasets=['wikimedia/wikipedia'],
      base_model='google/electra-small-discriminator',
    )
  )
  assert (data.license, data.language) == ('cc-by-4.0', ['no', 'zh-Hans'])
  assert (data.datasets, data.base_model) == (
    ['wikimedia/wikipedia'],
    ['google/electra-small-discriminator'],
  )
  assert (data.library_name, data.pipeline_tag) == ('transformers', 'feature-extraction')
  assert data.tags == ['electra', 'electra_jax', 'jax'] and data.model_name == 'a: title'
  assert data.metrics == ['average_precision', 'loss']  # not what has no value
  found = [(r.task_type, r.metric_type, r.metric_value) for r in data.eval_results]
  assert found == [
    ('token-classification', 'average_precision', 0.25),
    ('fill-mask', 'loss', 4.125),
  ]
  assert {r.dataset_type for r in data.eval_results} == {'wikimedia/wikipedia'}


def test_a_card_lists_what_its_authors_have_not_stated():
  empty = card(model_card.Measured('held-out documents', 'held out'))
  missing = 'the intended use and limits; in the metadata above, license, language, datasets.'
  assert f'To be added by its authors: {missing}' in empty
  assert read_card(empty).eval_results is None and 'license' not in read_card(empty).to_dict()
  some = card(model_card.Measured('dev', 'dev'), license='mit', language=['en'], datasets=['a/b'])
  assert 'authors: the intended use and limits.' in some


@pytest.mark.parametrize(
  'flag',
  [
    '--license=Apache 2.0',
    '--language=English',
    '--datasets=/home/me/corpus',
    '--datasets=a/b/c',
    '--base_model=a--b',
  ],
)
def test_values_that_the_hub_refuses_are_one_sentence(flag, capsys):
  argv = ['main', '--mode=export', '--workdir=nowhere', '--output=out', flag]
  assert main.main(argv) == 1
  error = capsys.readouterr().err
  name, _, value = flag.partition('=')
  assert f'{name} is {value!r}; expected ' in error and error.count('\n') == 1


@pytest.mark.parametrize(
  'name', ['gpt2', 'a/b', '_a/b_', 'wikimedia/wikipedia', 'a.b/c_d-e', 'x/1.0']
)
def test_accepted_names_are_names_on_the_hub(name):
  huggingface_hub.utils.validate_repo_id(name)
  assert model_card.check_publication(datasets=[name]).datasets == (name,)


@pytest.mark.parametrize('name', ['a/b/c', 'a--b', 'a..b/c', '/a', 'a b', 'a-', 'a/b.git'])
def test_names_that_the_library_refuses_are_refused(name):
  with pytest.raises(ValueError):
    huggingface_hub.utils.validate_repo_id(name)
  with pytest.raises(UserError, match='--datasets is'):
    model_card.check_publication(datasets=[name])


@pytest.mark.parametrize(
  'text, shown',
  [
    ('sample', 'sample'),
    ('/home/me/text/*.txt;weight=6,my/wiki.txt.xz;weight=4', '*.txt;weight=6,wiki.txt.xz;weight=4'),
    ('gs://bucket/corpus/*.txt', 'gs://bucket/corpus/*.txt'),
    ('hf:/home/me/electra-small/', 'hf:electra-small'),
    ('hf:org/name', 'hf:org/name'),
    ('tf:models/model.ckpt-7', 'tf:model.ckpt-7'),
    ('runs/small', 'small'),
    ('tfds:wikipedia/20230601.en;data_dir=/data/tfds', 'tfds:wikipedia/20230601.en;data_dir=tfds'),
    ('', ''),
  ],
)
def test_values_are_shown_without_local_folders(text, shown):
  assert model_card.without_folders(text) == shown


def test_the_recipe_has_what_differs_from_the_defaults_without_paths():
  config = PretrainingConfig().replace(
    {
      'name': 'mine',
      'data.source': '/home/me/a.txt',
      'data.cache': '/home/me/cache',
      'steps': 70,
      'phases': ({'steps': 70, 'data.store': '/home/me/store'},),
      'objective.schedules.mask_rate': ('linear', 0.3, 0.15),
    }
  )
  text = '\n'.join(
    model_card.recipe_section(model_card.without_paths(config), 'electra_jax 0.2.0, jax 0.10.2')
  )
  rows = dict(re.findall(r'^\| `(.*)` \| `(.*)` \|$', text, re.MULTILINE))
  assert rows == {
    'data.source': '"a.txt"',
    'steps': '70',
    'phases': '[{"steps": 70, "data.store": "store"}]',
    'objective.schedules.mask_rate': '["linear", 0.3, 0.15]',
  }
  assert 'Trained with electra_jax 0.2.0, jax 0.10.2.' in text
  assert model_card.without_paths(FinetuningConfig()) == FinetuningConfig()

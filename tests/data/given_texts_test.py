"""Texts given in Python are prepared as a file of JSON lines with the same texts."""

import json

import numpy as np
import pytest

import electra_jax
from electra_jax.config.config_files import load_config_file
from electra_jax.data.corpus import corpora
from electra_jax.errors import UserError
from electra_jax.pretrain import run_start


@pytest.fixture(scope='module')
def texts():
  found = [text[:600] for text, _ in zip(corpora.read_documents('sample'), range(60), strict=False)]
  return [*found, '', 'quotes "and"\nlines \u2028 🙂']


@pytest.fixture
def config(tmp_path):
  c = load_config_file('tests/configs/micro.py')
  c.data.cache = str(tmp_path / 'cache')
  return c


@pytest.fixture
def expected(texts, config, tmp_path):
  path = tmp_path / 'texts.jsonl'
  path.write_text('\n'.join(json.dumps({'text': text}) for text in texts))
  config.data.source = str(path)
  return run_start.prepare_only(config)


def test_an_iterable_gives_the_rows_of_json_lines(texts, config, expected, tmp_path):
  for given in (
    (text for text in texts),
    [{'id': i, 'body': text or None} for i, text in enumerate(texts)],
  ):
    made = electra_jax.prepare(given, config, field='body')
    assert made.train.identity == expected.train.identity
    assert made.heldout.identity == expected.heldout.identity
    assert made.tokenizer.fingerprint == expected.tokenizer.fingerprint
    assert made.facts['sources'][0]['blank_documents'] == 1
    assert made.path != expected.path
  assert not list((tmp_path / 'cache').glob('texts-*')), 'the temporary file is removed'
  other = electra_jax.prepare([*texts, 'one more'], config, output=tmp_path / 'out')
  assert other.path == str(tmp_path / 'out')
  assert electra_jax.prepare(texts, config).path != other.path


def test_a_prepared_corpus_is_trained_on_by_its_path(texts, config):
  made = electra_jax.prepare(texts, config)
  config.data.store = made.path
  opened = run_start.prepare_data(run_start.resolve_run(config).config)
  assert np.array_equal(opened.train.read(np.arange(3)), made.train.read(np.arange(3)))


@pytest.mark.parametrize(
  'given, expected',
  [
    ([3], 'item 0 of the texts is of type int; expected a string'),
    (['a', {'body': 'b'}], "item 1 of the texts has no field 'text'; its fields are 'body'"),
    ([{'text': ['a']}], 'is of type list'),
    ([], 'the corpus is empty'),
  ],
)
def test_what_is_no_text_is_named(config, given, expected, tmp_path):
  with pytest.raises(UserError) as caught:
    electra_jax.prepare(given, config)
  assert expected in str(caught.value)
  assert not list((tmp_path / 'cache').glob('texts-*'))

"""Prepared TFDS datasets are read by name or folder, in order, without network or their code."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from corpus_reading import identity, read, refusal

from electra_jax.data.corpus import corpora, tfds

REPOSITORY = pathlib.Path(__file__).parents[2]

# Child processes may not use the network: looking up a name ends the process with status 70.
OFFLINE = """
import os, socket, sys
def refuse(*args, **kwargs):
  print('looked up', args, file=sys.stderr)
  os._exit(70)
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
"""

# Builds the dataset in both formats, in a child process, so that no other process has the
# builder's class.
BUILD = (
  OFFLINE
  + """
import numpy as np
import tensorflow_datasets as tfds

class TinyTexts(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.2.3')
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name='en'), tfds.core.BuilderConfig(name='de')]

  def _info(self):
    features = {
        'text': tfds.features.Text(), 'n': tfds.features.Scalar(np.int64),
        'raw': tfds.features.Tensor(shape=(), dtype=np.object_),
        'lines': tfds.features.Sequence(tfds.features.Text()),
        'picture': tfds.features.Image(shape=(2, 2, 3)),
        'deep': {'inner': tfds.features.Text(), 'both': tfds.features.Translation(['en', 'de'])}}
    return tfds.core.DatasetInfo(
        builder=self, disable_shuffling=True, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, downloads):
    sizes = {'train': 90, 'test': 7}
    return {split: self._generate_examples(split, size) for split, size in sizes.items()}

  def _generate_examples(self, split, examples):
    for i in range(examples):
      yield i, {'text': f'{split} {i} \u00e9' if i % 10 else ' ', 'n': i,
                'raw': b'caf\\xe9' if i == 3 else b'fine',
                'lines': ['a'], 'picture': np.zeros((2, 2, 3), np.uint8),
                'deep': {'inner': f'in {i}', 'both': {'en': f'e{i}', 'de': f'd{i}'}}}

for file_format in sys.argv[2:]:
  builder = TinyTexts(config='en', data_dir=f'{sys.argv[1]}/{file_format}', file_format=file_format)
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
"""
)

# Reads each source of its arguments, in a process without the class and without the network.
READ = (
  OFFLINE
  + """
import json
from electra_jax.data.corpus import corpora
texts = [list(corpora.read_documents(source)) for source in sys.argv[1:]]
print(json.dumps([texts, 'tensorflow' in sys.modules]))
"""
)


def child(code, *arguments, **environment):
  done = subprocess.run(
    [sys.executable, '-c', code, *map(str, arguments)],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'} | environment,
  )
  assert done.returncode == 0, done.stderr
  return done


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tfds')
  child(BUILD, folder, 'tfrecord', 'array_record')
  return folder


def texts_of(split, numbers):
  return [f'{split} {i} é' for i in numbers if i % 10]


@pytest.mark.long
def test_a_fresh_process_reads_by_name_and_by_folder_and_prints_nothing(data_dir):
  sources = [
    f'tfds:tiny_texts/en;data_dir={data_dir}/tfrecord;split=train[10:30]+test[:50%]',
    f'tfds:{data_dir}/tfrecord/tiny_texts/en/1.2.3;split=test;field=deep.inner',
    f'tfds:tiny_texts/en/1.2.3;data_dir={data_dir}/tfrecord;split=test;field=deep.both.de',
  ]
  done = child(READ, *sources)
  (selected, inner, translated), _ = json.loads(done.stdout)
  assert selected == texts_of('train', range(10, 30)) + texts_of('test', range(4))
  assert inner == [f'in {i}' for i in range(7)]
  assert translated == [f'd{i}' for i in range(7)]
  assert not done.stderr, 'TensorFlow and TFDS are kept quiet'


@pytest.mark.long
def test_array_records_need_no_tensorflow(data_dir):
  done = child(
    READ,
    'tfds:tiny_texts;split=train[10:30]+test[:50%]',
    'tfds:tiny_texts/en:1.*.*;split=test;field=deep.both.de',
    TFDS_DATA_DIR=f'{data_dir}/array_record',
  )
  (selected, translated), has_tensorflow = json.loads(done.stdout)
  assert selected == texts_of('train', range(10, 30)) + texts_of('test', range(4))
  assert translated == [f'd{i}' for i in range(7)]
  assert not has_tensorflow and not done.stderr


def test_groups_are_slices_of_the_selection(data_dir, monkeypatch):
  monkeypatch.setattr(tfds, 'GROUP_EXAMPLES', 25)
  sources = corpora.parse_sources(
    f'tfds:tiny_texts/en;data_dir={data_dir}/array_record;split=train[20:]+test, sample'
  )
  *groups, sample = corpora.groups(sources)
  assert [(group.start, group.stop) for group in groups] == [(0, 25), (25, 50), (50, 75), (75, 77)]
  assert sample.source_index == 1 and all(group.bytes > 0 for group in groups)
  expected = texts_of('train', range(20, 90)) + texts_of('test', range(7))
  found = []
  for group in reversed(groups):
    counts = {}
    sizes = []
    texts = list(corpora.documents(group, advance=sizes.append, counts=counts))
    found = texts + found
    assert sum(sizes) == group.bytes
    assert len(texts) + counts.get('blank_documents', 0) == group.stop - group.start
  assert found == expected


def test_bytes_that_are_not_utf8(data_dir):
  source = f'tfds:{data_dir}/array_record/tiny_texts/en/1.2.3;field=raw;split=test[2:]'
  found = read(source, invalid_utf8='replace')
  assert read(source.removeprefix('tfds:'), invalid_utf8='replace') == found, 'by its folder'
  assert "example 3 of split 'test' of TFDS dataset tiny_texts/en/1.2.3 is not UTF-8" in refusal(
    source
  )
  assert read(source, invalid_utf8='replace') == (
    ['fine', 'caf\ufffd', 'fine', 'fine', 'fine'],
    {'replaced_bytes': 1, 'documents_with_replacements': 1},
  )


@pytest.mark.parametrize(
  'name, options, expected',
  [
    (
      'wikipedia/20230601.en',
      'data_dir={dir}',
      "'wikipedia/20230601.en' is not prepared in '{dir}'; add "
      ';data_dir=FOLDER where it is, or ;download=yes',
    ),
    (
      'wikipedia/20230601.enn',
      'data_dir={dir}',
      "'wikipedia' has no config '20230601.enn'; it has",
    ),
    (
      'wikipedja/20230601.en',
      'data_dir={dir}',
      "knows no dataset 'wikipedja' (did you mean 'wikipedia'?)",
    ),
    (
      'tiny_texts/de',
      'data_dir={dir}',
      "not prepared in '{dir}', which holds of 'tiny_texts' only 'en'",
    ),
    ('tiny_texts/en/9.9.9', 'data_dir={dir}', "'tiny_texts/en:9.9.9' is not prepared in '{dir}'"),
    (
      'huggingface:some/text',
      'data_dir={dir}',
      "'huggingface:some/text' is not prepared in '{dir}'",
    ),
    (
      '{dir}/tiny_texts',
      '',
      "tiny_texts' holds no prepared TFDS dataset; expected the folder of a version",
    ),
    ('{dir}/nosuch/1.0.0', '', 'holds no prepared TFDS dataset'),
    (
      'two words',
      '',
      "'two words' is not the name of a TFDS dataset; expected one such as tfds:wikipedia",
    ),
    ('tiny_texts/en', 'data_dir={dir};split=valid', "has no split 'valid' (Unknown split 'valid'"),
    ('tiny_texts/en', 'data_dir={dir};split=valid', "its splits are 'train', 'test', or slices"),
    ('tiny_texts/en', 'data_dir={dir};split=train[:x]', "has no split 'train[:x]'"),
    ('tiny_texts/en', 'data_dir={dir};split=train[100:]', "has no split 'train[100:]'"),
    (
      'tiny_texts/en',
      'data_dir={dir};split=train[:0]',
      "'train[:0]' of TFDS dataset tiny_texts/en/1.2.3 selects no",
    ),
    (
      'tiny_texts/en',
      'data_dir={dir};field=body',
      "no text called 'body'; its texts are 'deep.both.de', "
      "'deep.both.en', 'deep.inner', 'raw', 'text'; name one with ;field=NAME",
    ),
    ('tiny_texts/en', 'data_dir={dir};field=n', "no text called 'n'"),
    ('tiny_texts/en', 'data_dir={dir};field=lines', "no text called 'lines'"),
  ],
)
def test_missing_datasets_are_named_without_the_network(
  data_dir, name, options, expected, monkeypatch
):
  monkeypatch.setattr('socket.getaddrinfo', None)
  folder = data_dir / 'tfrecord'
  assert expected.format(dir=folder) in refusal(f'tfds:{name};{options}'.format(dir=folder))


def test_download_prepares_once(tmp_path, monkeypatch, capfd):
  import tensorflow_datasets
  from tensorflow_datasets import features

  source = f'tfds:dummy_dataset;data_dir={tmp_path};download=yes'
  monkeypatch.setattr('socket.getaddrinfo', None)

  class DummyDataset(tensorflow_datasets.testing.DummyDataset):
    VERSION = tensorflow_datasets.core.Version('1.0.0')

    def _info(self):
      return tensorflow_datasets.core.DatasetInfo(
        builder=self, features=features.FeaturesDict({'text': features.Text()})
      )

    def _generate_examples(self):
      yield 0, {'text': 'made'}

  assert read(source)[0] == ['made']
  assert f'TFDS downloads and prepares dummy_dataset in {tmp_path}' in capfd.readouterr().out
  assert read(source)[0] == ['made']
  assert 'prepares' not in capfd.readouterr().out
  assert 'cannot be prepared: ' in refusal(
    f'tfds:wikipedia/20230601.en;data_dir={tmp_path};download=yes'
  )


def test_each_example_comes_once(data_dir):
  source = f'tfds:tiny_texts/en;data_dir={data_dir}/array_record'
  assert 'named twice' in refusal(f'{source};split=train[:50%], {source};split=train[40%:]')
  assert 'named twice' in refusal(f'{source};split=train+train')
  parts = [
    f'{source};split=train[:50%]',
    f'{source};split=train[50%:]',
    f'{source};field=raw;split=test[:3]',
  ]
  assert len(read(','.join(parts))[0]) == 84


def test_the_identity_changes_with_version_split_and_field(data_dir, tmp_path):
  before = identity(f'tfds:tiny_texts/en;data_dir={data_dir}/array_record')
  assert (
    identity(f'tfds:{data_dir}/tfrecord/tiny_texts/en/1.2.3;weight=2;split=train[:100%]') == before
  )
  others = [
    identity(f'tfds:tiny_texts/en;data_dir={data_dir}/array_record;{option}')
    for option in ('split=test', 'field=raw', 'split=train[:50%]')
  ]
  copy = shutil.copytree(data_dir / 'array_record/tiny_texts/en/1.2.3', tmp_path / 'copy')
  info = json.loads((copy / 'dataset_info.json').read_text())
  (copy / 'dataset_info.json').write_text(json.dumps(info | {'version': '1.2.4'}))
  assert len({before, *others, identity(f'tfds:{copy}')}) == 5


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_a_damaged_dataset_is_named(data_dir, tmp_path, file_format):
  copy = shutil.copytree(data_dir / file_format / 'tiny_texts/en/1.2.3', tmp_path / 'copy')
  shard = sorted(copy.glob('*train*'))[1]
  content = shard.read_bytes()
  shard.write_bytes(content[: len(content) // 2])
  assert "TFDS dataset 'tiny_texts/en/1.2.3' cannot be read" in refusal(f'tfds:{copy}')
  shard.unlink()
  assert "TFDS dataset 'tiny_texts/en/1.2.3' cannot be read" in refusal(f'tfds:{copy}')
  (copy / 'dataset_info.json').write_text('{')
  assert f"TFDS dataset '{copy}' cannot be read" in refusal(f'tfds:{copy}')


TEXT_CLASS = 'tensorflow_datasets.core.features.text_feature.Text'


def with_text(features, feature):
  features['featuresDict']['features']['text'] = feature
  return features


# What a hostile features.json may look like: the class at any place where TFDS looks for one.
HOSTILE_FEATURES = {
  'top': lambda known, name: known | {'pythonClassName': name},
  'nested': lambda known, name: with_text(known, {'pythonClassName': name, 'text': {}}),
  'snake_case': lambda known, name: with_text(known, {'python_class_name': name, 'text': {}}),
  'in_json': lambda known, name: with_text(
    known,
    {
      'pythonClassName': 'tensorflow_datasets.core.features.sequence_feature.Sequence',
      'jsonFeature': {'json': json.dumps({'feature': {'type': name, 'content': {}}, 'length': 1})},
    },
  ),
  'legacy': lambda known, name: {'type': name, 'content': {}},
  'legacy_string': lambda known, name: {
    'type': TEXT_CLASS,
    'proto_cls': 'tensorflow_datasets.FeaturesDict',
    'content': json.dumps({'features': {'a': {'pythonClassName': name}}}),
  },
}


@pytest.mark.parametrize('by_name', [False, True], ids=['folder', 'name'])
@pytest.mark.parametrize('place', HOSTILE_FEATURES)
def test_modules_that_a_dataset_names_are_not_imported(
  data_dir, tmp_path, monkeypatch, place, by_name
):
  copy = tmp_path / 'data/tiny_texts/en/1.2.3'
  shutil.copytree(data_dir / 'array_record/tiny_texts/en/1.2.3', copy)
  mark = tmp_path / 'imported'
  (tmp_path / 'trap_module.py').write_text(f'open({str(mark)!r}, "w")')
  monkeypatch.syspath_prepend(tmp_path)
  features = HOSTILE_FEATURES[place](
    json.loads((copy / 'features.json').read_text()), 'trap_module.Feature'
  )
  (copy / 'features.json').write_text(json.dumps(features))
  source = f'tfds:tiny_texts/en;data_dir={tmp_path}/data' if by_name else f'tfds:{copy}'
  assert "asks for the class 'trap_module.Feature' in its features.json" in refusal(source)
  assert not mark.exists()


@pytest.mark.parametrize(
  'change, expected',
  [
    (lambda info: info['splits'][0].update(filepathTemplate='../../{SPLIT}'), "'../../{SPLIT}'"),
    (lambda info: info['splits'][0].update(filepathTemplate='/etc/{SPLIT}'), "'/etc/{SPLIT}'"),
    (lambda info: info['splits'][0].update(name='../test'), "'../test'"),
    (lambda info: info.update(name='../tiny'), "'../tiny'"),
    (lambda info: info.update(splits={}), 'splits is an object, not a list'),
  ],
)
def test_a_dataset_names_files_in_its_own_folder(data_dir, tmp_path, change, expected):
  copy = shutil.copytree(data_dir / 'array_record/tiny_texts/en/1.2.3', tmp_path / 'copy')
  info = json.loads((copy / 'dataset_info.json').read_text())
  change(info)
  (copy / 'dataset_info.json').write_text(json.dumps(info))
  assert expected in refusal(f'tfds:{copy}')


def test_records_that_need_tensorflow_are_named_where_it_is_missing(data_dir, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    tfds.importlib.util, 'find_spec', lambda name: None if name == 'tensorflow' else find(name)
  )
  assert 'is stored as tfrecord, needs TensorFlow' in refusal(
    f'tfds:{data_dir}/tfrecord/tiny_texts/en/1.2.3'
  )

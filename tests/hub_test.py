"""Repositories of the Hub: an existing folder first, the cache offline, no code, pinned commits."""

import pathlib
import types

import foreign_tokenizers
import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from electra_jax import hub
from electra_jax.data.tokenizers import tokenization
from electra_jax.errors import UserError

COMMIT = '0123456789abcdef0123456789abcdef01234567'


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """A cache with one repository, and no connection."""
  folder = tmp_path / 'cache'
  repository = folder / 'models--org--name'
  (repository / 'refs').mkdir(parents=True)
  (repository / 'refs' / 'main').write_text(COMMIT)
  snapshot = repository / 'snapshots' / COMMIT
  snapshot.mkdir(parents=True)
  (snapshot / 'config.json').write_text('{}')
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(folder))
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  monkeypatch.chdir(tmp_path)
  return snapshot


def test_a_cached_repository_is_found_offline_with_its_commit(cache):
  found = hub.find('org/name')
  assert pathlib.Path(found.path).resolve() == cache.resolve()
  assert found.revision == COMMIT
  assert COMMIT in found.note
  assert hub.find(f'org/name@{COMMIT}').revision == COMMIT


def test_a_tokenizer_of_the_hub_is_opened_with_its_commit(cache, capsys):
  foreign_tokenizers.write('roberta', cache)
  tokenizer = tokenization.load_tokenizer('hf:org/name')
  assert tokenizer.origin == f'org/name@{COMMIT}' and tokenizer.kind == 'pipeline'
  assert COMMIT in capsys.readouterr().out
  with pytest.raises(UserError, match='hf:org/other is not a folder here'):
    tokenization.load_tokenizer('hf:org/other')
  foreign_tokenizers.write('turkish', pathlib.Path('org/name'))
  local = tokenization.load_tokenizer('hf:org/name')
  assert not local.origin and local.tokens[local.cls_id] == '[CLS]'
  assert 'org/name is the folder of that name here' in capsys.readouterr().out


def test_only_the_files_of_a_tokenizer_are_downloaded():
  files = ['model.safetensors', 'tokenizer.json', 'spiece.model', 'onnx/a.json', 'code.py']
  assert hub.tokenizer_files(files) == ['spiece.model', 'tokenizer.json']


def test_an_existing_folder_has_precedence_and_is_named(cache):
  pathlib.Path('org/name').mkdir(parents=True)
  found = hub.find('org/name')
  assert found.path == 'org/name'
  assert not found.revision
  assert 'nothing is downloaded' in found.note


@pytest.mark.parametrize('source', ['/a/b', 'a/b/c', 'name', './a/b', 'gs://bucket/name', 'a/b/'])
def test_other_paths_are_not_repositories(cache, source):
  assert hub.find(source).path.rstrip('/') == source.removeprefix('./').rstrip('/')


def test_a_repository_that_is_not_cached_is_reported_in_one_sentence(cache):
  with pytest.raises(UserError, match='hf:org/other is not a folder here.*HF_HUB_OFFLINE'):
    hub.find('org/other')


@pytest.mark.parametrize(
  'kind, words',
  [
    ('RepositoryNotFoundError', 'neither a folder here nor a repository of the Hub'),
    ('GatedRepoError', 'HF_TOKEN'),
    ('RevisionNotFoundError', 'no revision v9'),
  ],
)
def test_answers_of_the_hub_are_reported_in_one_sentence(cache, monkeypatch, kind, words):
  def refuse(*_, **__):
    response = types.SimpleNamespace(headers={}, request=None, status_code=404)
    raise getattr(errors, kind)('refused', response=response)

  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', refuse)
  with pytest.raises(UserError, match=words):
    hub.find('org/other@v9')


def test_the_commit_of_the_answer_is_downloaded_and_only_files_that_are_needed(cache, monkeypatch):
  files = ['config.json', 'model.safetensors', 'pytorch_model.bin', 'modeling.py', 'vocab.txt']
  asked = {}

  def download(name, revision, allow_patterns):
    asked.update(name=name, revision=revision, files=allow_patterns)
    return str(cache)

  info = types.SimpleNamespace(
    sha=COMMIT, siblings=[types.SimpleNamespace(rfilename=file) for file in files]
  )
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', lambda *_, **__: info)
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  assert hub.find('org/name').revision == COMMIT
  assert asked == {
    'name': 'org/name',
    'revision': COMMIT,
    'files': ['config.json', 'model.safetensors', 'vocab.txt'],
  }


def test_pickled_weights_are_needed_only_where_there_are_no_others():
  files = ['pytorch_model.bin', 'generator/pytorch_model.bin', 'generator/model.safetensors']
  assert hub.needed([*files, 'training_args.bin', 'onnx/model.bin', 'tokenizer.json']) == [
    'generator/model.safetensors',
    'pytorch_model.bin',
    'tokenizer.json',
  ]


def test_a_hub_that_cannot_be_reached_is_reported_in_one_sentence(cache, monkeypatch):
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  client = huggingface_hub.HfApi
  monkeypatch.setattr(huggingface_hub, 'HfApi', lambda: client(endpoint='http://127.0.0.1:9'))
  with pytest.raises(UserError, match='hf:org/other is not a folder here.*cannot be downloaded'):
    hub.find('org/other')


def test_a_commit_is_pinned_unless_a_revision_is_named():
  assert hub.pinned('org/name', COMMIT) == f'org/name@{COMMIT}'
  assert hub.pinned('org/name@v1', COMMIT) == 'org/name@v1'
  assert hub.pinned('a/folder/deep', COMMIT) == 'a/folder/deep'
  assert hub.pinned('org/name', '') == 'org/name'


def test_the_name_of_a_repository_is_without_format_and_revision():
  assert hub.repository('hf:org/name@v1') == hub.repository('hf:org/name') == 'org/name'

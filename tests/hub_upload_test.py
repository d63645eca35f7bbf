"""Uploads to a Hub: the real client of huggingface_hub against a local server."""

import fake_hub
import huggingface_hub
import micro_run
import pytest
from huggingface_hub import constants

from electra_jax import hub_upload
from electra_jax.errors import UserError
from electra_jax.export import KNOWN, export

FILES = {'config.json': b'{}', 'model.safetensors': bytes(range(256)) * 40, 'README.md': b'# A'}


@pytest.fixture
def hub(monkeypatch):
  server = fake_hub.Hub()
  monkeypatch.setenv('HF_TOKEN', 'hf_writer')
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  monkeypatch.setattr(
    constants, 'HF_HUB_DISABLE_XET', True
  )  # its protocol is not that of the server
  monkeypatch.setattr(constants, 'ENDPOINT', server.address)
  client = huggingface_hub.HfApi
  monkeypatch.setattr(huggingface_hub, 'HfApi', lambda: client(endpoint=server.address))
  yield server
  server.close()


@pytest.fixture
def folder(tmp_path):
  for name, content in FILES.items():
    (tmp_path / name).write_bytes(content)
  (tmp_path / '.writer.json').write_text('not part of the export')
  return str(tmp_path)


def push(folder, text='org/mini'):
  hub_upload.upload(folder, list(FILES), hub_upload.checked_target(text), replaced=KNOWN)


def test_exactly_the_files_of_an_export_are_uploaded_after_they_are_shown(hub, folder, capsys):
  push(folder)
  assert hub.repositories == {'org/mini': {'private': True, 'files': FILES}}
  printed = capsys.readouterr().out
  shown, done = printed.split('pushed')
  assert all(name in shown for name in FILES) and '.writer.json' not in printed
  assert 'to org/mini (private)' in shown and f'{hub.address}/org/mini/commit/' in done


def test_nothing_names_a_local_path_or_holds_the_token(hub, folder):
  push(folder)
  for _, path, body in hub.requests:
    assert folder not in path and folder.encode() not in body
    assert 'hf_writer' not in path and b'hf_writer' not in body


def test_files_of_an_earlier_export_are_removed_and_others_stay(hub, folder):
  hub.repositories['org/mini'] = {
    'private': True,
    'files': {'tokenizer.model': b'old', 'NOTES.md': b'mine', 'config.json': b'old'},
  }
  push(folder)
  assert hub.repositories['org/mini']['files'] == FILES | {'NOTES.md': b'mine'}


def test_a_repository_is_public_only_on_request(hub, folder):
  push(folder, 'org/open:public')
  assert not hub.repositories['org/open']['private']
  with pytest.raises(UserError, match='which is public; .* or --push=org/open:public'):
    push(folder, 'org/open')


@pytest.mark.parametrize(
  'name', ['mini', 'a/b/c', '/org/mini', 'org/', 'org/mi ni', 'org/mini:private', '']
)
def test_a_malformed_name_is_refused(hub, name):
  with pytest.raises(UserError, match='expected org/name'):
    hub_upload.checked_target(name)
  assert not hub.requests


@pytest.mark.parametrize(
  'token, words', [('hf_unknown', 'does not accept the token'), ('hf_reader', 'may not write')]
)
def test_tokens_without_permission_are_reported_in_one_sentence(
  hub, folder, monkeypatch, token, words
):
  monkeypatch.setenv('HF_TOKEN', token)
  with pytest.raises(UserError, match=f'^org/mini was not uploaded: .*{words}[^.]*\\.$'):
    push(folder)
  assert not hub.repositories


def test_a_hub_that_cannot_be_reached_is_reported_in_one_sentence(hub, folder):
  hub.close()
  with pytest.raises(UserError, match='^org/mini was not uploaded: the Hub cannot be reached'):
    push(folder)


def test_a_missing_token_is_reported_before_anything_is_exported(hub, monkeypatch, tmp_path):
  monkeypatch.setattr(huggingface_hub, 'get_token', lambda: None)
  with pytest.raises(UserError, match='there is no token of the Hub; set HF_TOKEN'):
    export(str(micro_run.finished()[0]), str(tmp_path / 'out'), push='org/mini')
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  'flags, words',
  [
    ({'push': 'org/mini', 'format': 'tensorflow'}, '--push requires --format=transformers'),
    ({'push': 'org/mini', 'output': 'memory://bucket/out'}, '--push requires a local --output'),
  ],
)
def test_flags_that_contradict_each_other_are_refused(tmp_path, flags, words):
  with pytest.raises(UserError, match=words):
    export(str(micro_run.finished()[0]), **{'output': str(tmp_path / 'out')} | flags)


def test_an_export_pushes_the_discriminator(hub, tmp_path, capsys):
  export(str(micro_run.finished()[0]), str(tmp_path / 'out'), push='org/mini')
  files = hub.repositories['org/mini']['files']
  written = tmp_path / 'out' / 'discriminator'
  assert files == {path.name: path.read_bytes() for path in written.iterdir()}

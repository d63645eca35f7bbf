"""Shipped configs are found by name; files and arguments work as before."""

import pathlib
import shutil

import micro_run
import pytest

from electra_jax.cli.command_line import parse_flags
from electra_jax.config import config_files
from electra_jax.config.config_files import load_config_file
from electra_jax.errors import UserError

CONFIGS = micro_run.ROOT / 'configs'


def config_of(*words):
  return parse_flags(['main', *words]).config


def test_every_file_of_configs_has_a_name():
  files = {p.relative_to(CONFIGS).with_suffix('').as_posix() for p in CONFIGS.rglob('*.py')}
  assert set(config_files.shipped_configs()) == files and {'small', 'finetune/cola'} <= files


@pytest.mark.parametrize(
  'words',
  [
    ['--config=small:seq=64'],
    ['--config', 'small:seq=64'],
    ['-config=small:seq=64'],
    ['--config=configs/small.py:seq=64'],
    [f'--config={CONFIGS / "small.py"}:seq=64'],
    ['--config=small', '--config.sequence_length=64'],
  ],
)
def test_a_name_works_in_any_folder(words, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = config_of(*words)
  assert (config.name, config.sequence_length) == ('small', 64)


def test_sweeps_name_their_configs_in_the_same_way(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert load_config_file('mini').name == 'mini'
  assert load_config_file('finetune/cola').task == 'cola'


def test_a_file_is_preferred_to_a_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text = (CONFIGS / 'small.py').read_text().replace("'small'", "'mine'")
  pathlib.Path('small').mkdir()
  assert config_of('--config=small').name == 'small'  # a folder is not a config
  pathlib.Path('configs').mkdir()
  pathlib.Path('configs/small.py').write_text(text)
  assert config_of('--config=configs/small.py').name == 'mine'
  assert config_of('--config=small').name == 'small'


def test_an_installed_package_has_its_configs_inside(tmp_path, monkeypatch):
  shutil.copytree(CONFIGS, tmp_path / 'configs')
  (tmp_path / 'configs' / 'only_inside.py').touch()
  monkeypatch.setattr(config_files, '_PACKAGE', tmp_path)
  assert config_files.config_path('only_inside:x=1') == f'{tmp_path / "configs/only_inside.py"}:x=1'


@pytest.mark.parametrize(
  'name, message',
  [
    ('smal', "'smal' is neither a file nor a shipped config; did you mean small?"),
    ('qqqqq', "'qqqqq' is neither a file nor a shipped config; expected a file, or base, "),
  ],
)
def test_an_unknown_name_is_reported(name, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError) as raised:
    config_of(f'--config={name}')
  assert message in str(raised.value)

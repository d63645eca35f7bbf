"""A run's folder records its format and the versions that it was started with."""

import json

import pytest
from etils import epath

from electra_jax.config import FinetuningConfig, PretrainingConfig, to_plain
from electra_jax.errors import UserError
from electra_jax.training import versions
from electra_jax.training.kept_config import as_started, changed_fields


def test_a_new_run_records_the_installed_versions(tmp_path):
  versions.record_versions(tmp_path, resumed=False)
  found = versions.read_versions(tmp_path)
  assert found['format'] == versions.FORMAT
  assert found['started_with'] == found['last_run_with'] == versions.current()
  assert set(versions.current()) == {'electra_jax', 'jax', 'jaxlib'}


def test_a_resumed_run_keeps_the_versions_it_was_started_with(tmp_path):
  old = {'electra_jax': '0.2.0', 'jax': '0.10.0', 'jaxlib': '0.10.0'}
  content = {'format': 1, 'started_with': old, 'last_run_with': old}
  (tmp_path / versions.FILE).write_text(json.dumps(content))
  versions.record_versions(tmp_path, resumed=True)
  assert versions.read_versions(tmp_path)['started_with'] == old
  assert versions.read_versions(tmp_path)['last_run_with'] == versions.current()
  versions.record_versions(tmp_path, resumed=False)  # nothing was saved: the run starts anew
  assert versions.read_versions(tmp_path)['started_with'] == versions.current()


def test_a_folder_without_the_file_is_one_of_version_0_1_0(tmp_path):
  assert versions.read_versions(tmp_path) == {'format': 0}
  versions.record_versions(tmp_path, resumed=True)
  found = versions.read_versions(tmp_path)
  assert (found['format'], found['started_with']) == (0, {'electra_jax': '0.1.0'})


def test_a_newer_format_is_refused_with_its_version(tmp_path):
  newer = {'format': versions.FORMAT + 1, 'last_run_with': {'electra_jax': '9.0'}}
  (tmp_path / versions.FILE).write_text(json.dumps(newer))
  with pytest.raises(UserError, match='format 2 of run folders, written by electra_jax 9.0'):
    versions.read_versions(tmp_path)
  with pytest.raises(UserError, match='update it'):
    versions.record_versions(tmp_path, resumed=True)
  assert json.loads((tmp_path / versions.FILE).read_text()) == newer


NEW = {
  'precision': 'bfloat16',
  'model.dropout_scale': 'dtype',
  'model.residual': 'dtype',
  'model.remat': 'none',
  'optimizer.update_counts': 'shared',
  'data.normalization': 'original',
}


def test_a_run_of_version_0_1_0_resumes_with_the_meaning_it_was_started_with(tmp_path):
  folder, given = epath.Path(tmp_path), PretrainingConfig()
  plain = to_plain(given)
  for name in NEW:  # as version 0.1.0 wrote it
    group, _, last = name.rpartition('.')
    del (plain[group] if group else plain)[last]
  (tmp_path / 'config.json').write_text(json.dumps(plain))
  started = as_started(folder, given)
  assert started == given.replace(NEW) and not changed_fields(folder, started)
  # The next start finds the values in the kept config.
  (tmp_path / 'config.json').write_text(json.dumps(to_plain(started)))
  versions.record_versions(tmp_path, resumed=True)
  assert as_started(folder, given) == started
  # What the command asks for is not changed, and then refused.
  other = as_started(folder, given.replace({'precision': 'tensorfloat32'}))
  assert other.precision == 'tensorfloat32' and len(changed_fields(folder, other)) == 1


def test_a_run_of_this_version_keeps_its_fields(tmp_path):
  folder, given = epath.Path(tmp_path), FinetuningConfig()
  assert as_started(folder, given) == given  # nothing is kept yet
  (tmp_path / 'config.json').write_text(json.dumps(to_plain(given)))
  versions.record_versions(tmp_path, resumed=False)
  assert as_started(folder, given) == given
  kept = given.replace({'batch_order': 'sorted'})
  (tmp_path / 'config.json').write_text(json.dumps(to_plain(kept)))
  assert changed_fields(folder, as_started(folder, given)) == ["batch_order: 'sorted' -> 'mixed'"]

"""Files of a run are written whole or not at all, and a resumed run continues its metrics."""

import json
import os

import pytest

from electra_jax import file_access
from electra_jax.errors import UserError
from electra_jax.training import metrics_writer, progress, run_folder


def test_a_file_whose_writing_fails_is_unchanged(tmp_path, monkeypatch):
  path = tmp_path / 'config.json'
  run_folder.write_json(path, {'steps': 1})
  before = path.read_bytes()

  def full(file):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(UserError, match='cannot be written: No space left'):
    run_folder.write_json(path, {'steps': 2})
  assert path.read_bytes() == before
  assert [file.name for file in tmp_path.iterdir()] == ['config.json']


def test_a_file_gets_its_name_when_it_is_complete(tmp_path, monkeypatch):
  contents, replace = [], os.replace

  def recorded(source, target):
    contents.append((os.path.basename(target), open(source, 'rb').read(), os.path.exists(target)))
    replace(source, target)

  monkeypatch.setattr(os, 'replace', recorded)
  file_access.write_bytes(tmp_path / 'file.json', b'content')
  assert contents == [('file.json', b'content', False)]
  assert [path.name for path in tmp_path.iterdir()] == ['file.json']


def test_a_resumed_run_keeps_metrics_up_to_its_checkpoint(tmp_path):
  lines = [{'kind': 'train', 'step': step, 'seconds': 2.0 * step} for step in (10, 20, 30)]
  path = tmp_path / progress.METRICS
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  writer = metrics_writer.MetricsWriter(tmp_path, 20)
  assert writer.seconds == 40.0
  writer.write('train', 30, {'loss': 1.0, 'seconds': 50.0})
  writer.close()
  found = progress.read_metrics(tmp_path)
  assert found == [*lines[:2], {'kind': 'train', 'step': 30, 'loss': 1.0, 'seconds': 50.0}]

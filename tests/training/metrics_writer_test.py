"""Metrics: no line is torn or lost while the disk is full, and nothing waits for the disk."""

import errno
import json
import os
import threading

import pytest

from electra_jax.training import metrics_writer, progress

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(monkeypatch):
  """Lets writes fail while `disk.error` is set, after half of each piece was written."""

  class Disk:
    error = None

  write = os.write
  disk = Disk()

  def failing(descriptor, data):
    if disk.error is None:
      return write(descriptor, data)
    if len(data) > 10 and not disk.torn:
      disk.torn = True
      return write(descriptor, bytes(data)[:10])
    disk.torn = False
    raise disk.error

  disk.torn = False
  monkeypatch.setattr(metrics_writer.os, 'write', failing)
  monkeypatch.setattr(metrics_writer, 'RETRY_EVERY', 0.01)
  return disk


def steps(folder):
  lines, damaged = progress.parse_metrics((folder / progress.METRICS).read_bytes())
  assert not damaged
  return [line['step'] for line in lines]


def test_lines_wait_for_a_full_disk_and_keep_their_order(tmp_path, disk, capsys):
  writer = metrics_writer.MetricsWriter(tmp_path, 0)
  writer.write('train', 1, {'loss': 1.0})
  writer.keep()
  disk.error = NO_SPACE
  for step in (2, 3, 4):
    writer.write('train', step, {'loss': 1.0})
  writer.keep()
  assert steps(tmp_path) == [1]  # no part of a line
  disk.error = None
  writer.close()
  assert steps(tmp_path) == [1, 2, 3, 4]
  assert capsys.readouterr().err.count('No space left on device') == 1


def test_lines_that_cannot_be_written_at_all_cost_one_warning_and_no_error(tmp_path, disk, capsys):
  writer = metrics_writer.MetricsWriter(tmp_path, 0)
  disk.error = NO_SPACE
  for step in range(1, 20):
    writer.write('train', step, {'loss': 1.0})
    writer.keep()
  writer.close()
  assert steps(tmp_path) == []
  errors = capsys.readouterr().err.splitlines()
  assert len(errors) == 2 and 'the last metrics could not be written' in errors[1]


def test_a_file_that_cannot_be_closed_costs_one_warning_and_no_wait(tmp_path, monkeypatch, capsys):
  writer = metrics_writer.MetricsWriter(tmp_path, 0)
  (tracker,) = writer._files.values()

  def close(outcome):
    raise NO_SPACE

  monkeypatch.setattr(tracker, 'close', close)
  monkeypatch.setattr(metrics_writer, 'PATIENCE', 5.0)
  writer.write('train', 1, {'loss': 1.0})
  writer.close()
  assert not writer._thread.is_alive() and steps(tmp_path) == [1]
  (warning,) = capsys.readouterr().err.splitlines()
  assert 'a file of metrics could not be closed (No space left on device)' in warning


def test_a_disk_that_does_not_answer_delays_nothing(tmp_path, monkeypatch, capsys):
  answers = threading.Event()
  write = os.write
  monkeypatch.setattr(metrics_writer.os, 'write', lambda *args: (answers.wait(), write(*args))[1])
  monkeypatch.setattr(metrics_writer, 'PATIENCE', 0.05)
  monkeypatch.setattr(metrics_writer, 'QUEUED', 10)
  writer = metrics_writer.MetricsWriter(tmp_path, 0)
  for step in range(1, 100):  # more than the queue holds
    writer.write('train', step, {'loss': 1.0})
    writer.keep()
  answers.set()
  errors = capsys.readouterr().err
  assert errors.count('could not be written within') == errors.count('metrics are dropped') == 1
  writer.write('train', 100, {'loss': 1.0})
  monkeypatch.setattr(metrics_writer, 'PATIENCE', 30.0)
  writer._stuck = False
  writer.close()
  found = steps(tmp_path)
  assert found == sorted(found) and found[:5] == [1, 2, 3, 4, 5]


def test_the_event_file_is_tensorboards(tmp_path):
  from tensorboardX.proto.event_pb2 import Event

  writer = metrics_writer.MetricsWriter(tmp_path, 0)
  writer.write('train', 5, {'loss': 0.5, 'seconds': 3.0, 'auc': float('nan')})
  writer.close()
  writer = metrics_writer.MetricsWriter(tmp_path, 5)
  writer.write('train', 10, {'loss': 0.25})
  writer.close()
  content = b''.join(path.read_bytes() for path in sorted((tmp_path / 'tensorboard').iterdir()))
  events = []
  while content:
    size = int.from_bytes(content[:8], 'little')
    events.append(Event.FromString(content[12 : 12 + size]))
    content = content[16 + size :]
  values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
  assert values == [(5, 'train/loss', 0.5), (10, 'train/loss', 0.25)]
  # TensorBoard hides earlier events from this step on.
  assert [e.step for e in events if e.HasField('session_log')] == [6]
  assert events[0].file_version == 'brain.Event:2'


@pytest.mark.parametrize(
  'damaged',
  [
    b'{"kind": "train", "ste',
    b'\xff\xfe\x00',
    b'[1, 2]',
    b'"text"',
    b'{"kind": "train"}',
    b'{"kind": "train", "step": "3"}',
    b'{"kind": "train", "step": 3, "loss": "x"}',
    b'[' * 100_000,
  ],
  ids=range(8),
)
def test_a_damaged_line_loses_only_itself_also_when_the_run_resumes(tmp_path, damaged):
  lines = [{'kind': 'train', 'step': step, 'seconds': 2.0 * step} for step in (10, 20, 30)]
  first, second, third = (json.dumps(line).encode() for line in lines)
  path = tmp_path / progress.METRICS
  path.write_bytes(b'\n'.join([first, damaged, second, third, b'']))
  assert progress.read_metrics(tmp_path) == lines
  assert progress.parse_metrics(path.read_bytes())[1] == [2]
  writer = metrics_writer.MetricsWriter(tmp_path, 20)
  assert writer.seconds == 40.0
  writer.close()
  assert progress.read_metrics(tmp_path) == lines[:2]

"""status.json holds the state, progress and end of a run, for scripts that read it."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import types

import micro_run
import pytest

from electra_jax.errors import PREEMPTED, Preempted, UserError
from electra_jax.main import main
from electra_jax.training import hosts
from electra_jax.training.hosts import LOST
from electra_jax.training.status import COPY, FILE, Status, TrialStatusRecord

ROOT = pathlib.Path(__file__).parents[2]


def read(folder):
  return json.loads((pathlib.Path(folder) / FILE).read_text())


def facts(status):
  """The fields that a script acts on."""
  names = ('state', 'step', 'restored_step', 'last_checkpoint', 'exit_status')
  return tuple(status[name] for name in names)


@pytest.fixture
def folder(tmp_path):
  """A run's folder with two checkpoints and an interrupted save."""
  for name in ('5', '10', '15.orbax-checkpoint-tmp-7'):
    (tmp_path / 'checkpoints' / name / 'params').mkdir(parents=True)
  return tmp_path


def test_the_file_follows_a_run_from_the_claim_to_the_end(folder):
  with Status('train') as status:
    assert not (folder / FILE).exists()
    status.claim(folder, 40)
    assert facts(read(folder)) == ('preparing', 0, 0, 10, None)
    status.change(step=10, restored_step=10)
    status.change(state='running')
    status.progress(14)
    assert facts(read(folder)) == ('running', 14, 10, 10, None)
    assert status.end(0) == 0
  assert facts(read(folder)) == ('finished', 14, 10, 10, 0)
  written = read(folder)
  assert (written['format'], written['mode'], written['steps']) == (1, 'train', 40)
  assert written['pid'] == os.getpid() and written['host'] and 'task' not in written
  for name in ('started', 'updated'):
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00', written[name])


def test_fine_tuning_names_task_and_trial_and_counts_what_earlier_starts_saved(folder):
  trial = folder / 'cola' / 'trial-2'
  (trial / 'checkpoints' / '6').mkdir(parents=True)
  with Status('finetune', trials=True) as status:
    status.claim(folder)
    status.change(restored_step=30)  # of trial 1
    status.begin_trial(trial, 'cola', 2, 6, 25)
    assert facts(read(folder)) == ('running', 6, 36, 6, None)
    written = read(folder)
    assert (written['task'], written['trial'], written['steps']) == ('cola', 2, 25)
    status.begin_trial(folder / 'cola' / 'trial-3', 'cola', 3, 0, 25)
    assert facts(read(folder)) == ('running', 0, 36, None, None)
    status.end(PREEMPTED)
  assert read(folder)['state'] == 'stopped' and read(folder)['exit_status'] == 42


@pytest.mark.parametrize(
  'error, expected',
  [
    (UserError('the file is missing.'), ('failed', 1, 'the file is missing.')),
    (Preempted('asked to stop early.'), ('stopped', 42, 'asked to stop early.')),
    (KeyboardInterrupt(), ('failed', 130, 'interrupted; ')),
    (ValueError('no\n  such shape'), ('failed', 1, 'ValueError: no such shape')),
    (MemoryError(), ('failed', 1, 'MemoryError')),
  ],
)
def test_an_exception_is_written_as_the_reason_of_the_end(folder, error, expected):
  with pytest.raises(type(error)), Status('train') as status:
    status.claim(folder)
    raise error
  written = read(folder)
  assert (written['state'], written['exit_status']) == expected[:2]
  assert written['exit_reason'].startswith(expected[2])
  hosts.forget_exit(status._lost)


def test_a_write_that_fails_is_reported_once_and_ends_nothing(folder, capsys):
  (folder / FILE).mkdir()  # a file cannot take its name
  with Status('train') as status:
    status.claim(folder)
    status.progress(3)
    status.end(0)
  assert capsys.readouterr().err.count('status.json cannot be written (') == 1
  assert (folder / FILE).is_dir()


def test_readers_always_find_complete_json(folder):
  done, read_count = threading.Event(), 0

  def write():
    with Status('train') as status:
      status.claim(folder, 1000)
      for step in range(300):
        status.progress(step)
      status.end(0)
    done.set()

  writer = threading.Thread(target=write)
  writer.start()
  while not done.is_set():
    if (folder / FILE).exists():
      assert read(folder)['steps'] in (None, 1000)
      read_count += 1
  writer.join()
  assert read_count and read(folder)['state'] == 'finished'


def test_only_the_first_process_writes_the_status(folder, monkeypatch):
  monkeypatch.setattr(hosts, 'first', lambda: False)
  monkeypatch.setenv(COPY, str(folder / 'copy.json'))
  with Status('train') as status:
    status.claim(folder)
    status.progress(3, saved=True)
    status.end(0)
  assert not (folder / FILE).exists() and not (folder / 'copy.json').exists()


def test_the_copy_has_the_same_content_and_the_reason_of_an_early_end(folder, monkeypatch):
  copy = folder / 'here' / 'copy.json'
  copy.parent.mkdir()
  monkeypatch.setenv(COPY, str(copy))
  seconds = itertools.count()
  monkeypatch.setattr('electra_jax.training.status._now', lambda: f'second {next(seconds)}')
  with Status('train') as status:
    status.claim(folder)
    status.progress(3)
    assert json.loads(copy.read_text()) == read(folder)
    status.end(0)
  assert json.loads(copy.read_text()) == read(folder)
  before = read(folder)
  with contextlib.suppress(UserError), Status('train') as status:
    raise UserError('the folder holds a run of another config.')  # before the folder is claimed
  assert read(folder) == before
  assert json.loads(copy.read_text())['exit_reason'] == 'the folder holds a run of another config.'


def test_a_bucket_is_written_at_transitions_and_at_checkpoints_only(folder, monkeypatch):
  """Between them only the copy on this machine is."""
  written = []

  def write_json(path, value):
    written.append((pathlib.Path(path).name, value['state'], value['step']))

  # A bucket that is a folder: only the decisions of the class count here.
  bucket = types.SimpleNamespace(folder=pathlib.Path, write_json=write_json)
  monkeypatch.setattr('electra_jax.training.status.run_folder', bucket)
  remote = types.SimpleNamespace(is_remote=lambda path: True)
  monkeypatch.setattr('electra_jax.training.status.file_access', remote)
  monkeypatch.setenv(COPY, str(folder / 'copy.json'))
  with Status('train') as status:
    status.claim(folder, 40)
    status.change(state='running')
    status.progress(1)
    status.progress(2)
    status.progress(2, saved=True)
    status._upload.join()
    status.end(0)
  assert [(state, step) for name, state, step in written if name == FILE] == [
    ('preparing', 0),
    ('running', 0),
    ('running', 2),
    ('finished', 2),
  ]
  assert ('copy.json', 'running', 1) in written


def test_a_process_that_ends_because_another_was_lost_writes_why(folder):
  program = (
    'import socket, sys; from electra_jax.training import hosts, status\n'
    'ours, theirs = socket.socketpair(); theirs.close()\n'
    'with status.Status("train") as s:\n  s.claim(sys.argv[1])\n  hosts._listen([ours])'
  )
  done = subprocess.run(
    [sys.executable, '-c', program, folder],
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    timeout=120,
  )
  assert done.returncode == LOST, done.stderr
  assert facts(read(folder)) == ('failed', 0, 0, 10, LOST)
  assert read(folder)['exit_reason'].startswith('another process of the run ended')


def test_the_page_describes_every_field():
  page = (ROOT / 'docs' / 'reference' / 'status.md').read_text('utf-8')
  table = page.partition('## Fields')[2].partition('## ')[0]
  rows = [row.split('|')[1] for row in table.splitlines() if row.startswith('| `')]
  named = [name for row in rows for name in re.findall(r'`(\w+)`', row)]
  assert named == list(TrialStatusRecord('finetune').plain())


# preemption_test, nonfinite_test and finetune_run_test check runs that stop, are killed or fail.


def test_a_finished_run_stays_finished_and_another_config_does_not_touch_it(
  tmp_path, monkeypatch, handlers, capsys
):
  workdir, copy = tmp_path / 'run', tmp_path / 'copy.json'
  shutil.copytree(micro_run.finished()[0], workdir)
  assert facts(read(workdir)) == ('finished', 30, 0, 30, 0)
  before = (workdir / FILE).read_bytes()
  monkeypatch.setenv(COPY, str(copy))
  argv = ['main', *micro_run.arguments(workdir)]
  assert main([*argv, '--config.optimizer.learning_rate=0.5']) == 1
  assert (workdir / FILE).read_bytes() == before
  assert facts(json.loads(copy.read_text())) == ('failed', 0, 0, None, 1)
  assert json.loads(copy.read_text())['exit_reason'] in capsys.readouterr().err
  assert main(argv) == 0
  assert facts(read(workdir)) == ('finished', 30, 30, 30, 0)
  assert json.loads(copy.read_text()) == read(workdir)

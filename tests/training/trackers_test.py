"""Trackers get numbers and no text, continue their run, and neither end nor delay a run."""

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import socket
import sqlite3
import sys
import threading

import finetune_files
import in_process
import micro_run
import pytest

from electra_jax import registry
from electra_jax.config import FinetuningConfig, PretrainingConfig, freeze
from electra_jax.errors import UserError
from electra_jax.sweep import config as sweep_config
from electra_jax.sweep import runner
from electra_jax.training import metrics_writer, progress
from electra_jax.training.metrics_writer import MetricsWriter
from electra_jax.training.trackers import tracker
from electra_jax.training.trackers.tracker import Tracking, check_trackers, tracking_of

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
SECRET = '/home/someone/letters.txt'


def needs(package):
  """Skips a test where the library of a tracker is not installed."""
  missing = importlib.util.find_spec(package) is None
  return pytest.mark.skipif(missing, reason=f'needs {package}: the extra trackers is not installed')


@pytest.fixture
def register(monkeypatch):
  """Registers a tracker for a test; returns its name."""
  monkeypatch.setattr(registry.TRACKERS, '_entries', dict(registry.TRACKERS._entries))

  def add(kind, name='mine'):
    registry.TRACKERS.register(name, kind)
    return name

  return add


class Recorder(tracker.Tracker):
  """Keeps what it gets."""

  opened = []

  def __init__(self, run):
    self.run, self.lines, self.outcome = run, [], None
    self.id = run.id or f'id {len(self.opened)}'
    self.opened.append(self)

  def add(self, line):
    self.lines.append((line.kind, line.step, dict(line.metrics)))

  def close(self, outcome):
    self.outcome = outcome


@pytest.fixture
def recorded(register, monkeypatch):
  monkeypatch.setattr(Recorder, 'opened', [])
  register(Recorder, 'recorder')
  return Recorder.opened


def write(folder, tracking, steps=(1, 2, 3), first=0):
  folder.mkdir(exist_ok=True)
  with MetricsWriter(folder, first, tracking) as writer:
    for step in steps:
      writer.write('train', step, {'loss': 1 / step, 'auc': float('nan')})
    writer.close()


def written_steps(folder):
  return [line['step'] for line in progress.read_metrics(folder)]


def test_a_tracker_gets_all_lines_beside_tensorboard(tmp_path, recorded):
  write(tmp_path, Tracking(('tensorboard', 'recorder'), 'project', 'name'))
  (one,) = recorded
  assert one.lines == [('train', step, {'loss': 1 / step, 'auc': None}) for step in (1, 2, 3)]
  assert one.outcome == 'finished' and one.run.tracking.name == 'name'
  assert written_steps(tmp_path) == [1, 2, 3] and any((tmp_path / 'tensorboard').iterdir())


def test_without_trackers_only_metrics_are_written(tmp_path):
  write(tmp_path, Tracking(()))
  assert os.listdir(tmp_path) == [progress.METRICS]


def test_a_resumed_run_continues_that_of_the_tracker_and_a_new_one_does_not(tmp_path, recorded):
  for first, steps in ((0, (1, 2, 3)), (2, (3, 4)), (0, (1,))):
    write(tmp_path, Tracking(('recorder',)), steps, first)
  assert [one.id for one in recorded] == ['id 0', 'id 0', 'id 2']
  assert [one.run.step for one in recorded] == [0, 2, 0]
  assert json.loads((tmp_path / 'trackers.json').read_text()) == {'recorder': 'id 2'}


def test_a_damaged_file_of_ids_ends_no_run(tmp_path, recorded, capsys):
  (tmp_path / 'trackers.json').write_text('{"recorder": 7}')
  write(tmp_path, Tracking(('recorder',)), first=1)
  assert recorded[0].run.id == '' and 'begin new runs' in capsys.readouterr().err


def test_an_error_that_ends_the_program_ends_the_run_as_failed(tmp_path, recorded):
  with pytest.raises(UserError):
    with MetricsWriter(tmp_path, 0, Tracking(('recorder',))) as writer:
      writer.write('train', 1, {'loss': 1.0})
      raise UserError('not finite.')
  assert recorded[0].outcome == 'failed' and len(recorded[0].lines) == 1


@pytest.mark.parametrize('place', ['__init__', 'add', 'close'])
@pytest.mark.parametrize(
  'error', [OSError('no network\nmore'), SystemExit(3)], ids=['error', 'exit']
)
def test_a_tracker_that_fails_costs_one_warning(tmp_path, register, capsys, place, error):
  def fail(self, *_):
    raise error

  name = register(type('Failing', (Recorder,), {place: fail, 'opened': []}))
  write(tmp_path, Tracking((name, 'tensorboard')), range(1, 50))
  assert written_steps(tmp_path) == list(range(1, 50))
  (warning,) = capsys.readouterr().err.splitlines()
  assert re.fullmatch(
    r"electra_jax: the tracker 'mine' failed \((OSError: no network|SystemExit: 3)\); it gets no "
    r'more metrics of this run, which continues\.',
    warning,
  )


def test_a_tracker_of_files_that_fails_costs_one_warning_and_no_line(tmp_path, register, capsys):
  class Failing(Recorder):
    writes_files = True

    def add(self, line):
      raise ValueError('a bug')

  name = register(Failing)
  write(tmp_path, Tracking((name, 'tensorboard')), range(1, 50))
  assert written_steps(tmp_path) == list(range(1, 50))
  assert capsys.readouterr().err.count("the tracker 'mine' failed (ValueError: a bug)") == 1


@pytest.mark.parametrize('place', ['__init__', 'add', 'close'])
def test_a_tracker_that_does_not_answer_delays_no_step(
  tmp_path, register, monkeypatch, capsys, place
):
  answers = threading.Event()
  call = getattr(Recorder, place)
  name = register(
    type('Slow', (Recorder,), {place: lambda *a: (answers.wait(), call(*a))[1], 'opened': []})
  )
  monkeypatch.setattr(metrics_writer, 'QUEUED', 10)
  try:
    writer = MetricsWriter(tmp_path, 0, Tracking((name,)))
    for step in range(1, 100):  # more than the queue holds
      writer.write('train', step, {'loss': 1.0})
      writer.keep()  # waits for the disk, and not for the tracker
    assert written_steps(tmp_path) == list(range(1, 100))
    writer._end_trackers('finished', 0.05)
    writer.close()
  finally:
    answers.set()
  assert capsys.readouterr().err.count("the tracker 'mine' does not answer") == 1


#### What is sent ####


def config_with_text():
  return PretrainingConfig().replace(
    {
      'name': 'letters',
      'data.source': SECRET,
      'data.tokenizer': 'bpe',
      'data.cache': '/home/someone/cache',
      'init': 'hf:/home/someone/model',
      'data.tokenizer_options': {'words': ('secret',)},
      'objective.schedules.mask_rate': ('linear', 0.1, 0.2),
      'phases': ({'steps': 10, 'sequence_length': 64}, {'data.store': SECRET, 'steps': 5}),
      'batch_size': 77,
    }
  )


def test_numbers_and_names_of_closed_lists_are_sent_and_other_text_is_not():
  sent = tracking_of(config_with_text()).fields
  assert sent['batch_size'] == 77 and sent['objective.name'] == 'electra'
  assert (
    sent['data.tokenizer'] == 'bpe' and sent['init_step' if 'init_step' in sent else 'seed'] == 0
  )
  text = repr(sent)
  assert not any(word in text for word in ('someone', 'secret', 'letters', 'cache', '/'))
  tasks = FinetuningConfig().replace({'task': 'cola, sst2', 'data.source': 'tfds:glue/cola'})
  sent = tracking_of(tasks, 'cola, trial 1').fields
  assert sent['task'] == 'cola, sst2' and 'data.source' not in sent


def test_all_fields_are_sent_where_that_is_asked_for():
  config = config_with_text().replace({'tracking.send_paths': True})
  assert tracking_of(config).fields['data.source'] == SECRET


def test_names_of_runs_and_trials():
  config = FinetuningConfig().replace({'name': 'small on GLUE'})
  assert tracking_of(config).name == 'small on GLUE'
  trial = tracking_of(config, 'cola, trial 2')
  assert (trial.name, trial.group) == ('small on GLUE, cola, trial 2', 'small on GLUE')
  named = config.replace({'tracking.run_name': 'mine', 'tracking.project': 'ours'})
  assert (tracking_of(named).name, tracking_of(named).project) == ('mine', 'ours')


#### Mistakes of the user ####


@pytest.mark.parametrize('name', ['wandb', 'mlflow'])
def test_a_tracker_whose_package_is_missing_is_refused_with_the_extra(monkeypatch, name):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(UserError, match=rf"'{name}' .*expected the extra trackers"):
    check_trackers(('tensorboard', name))


def test_a_tracker_that_cannot_be_imported_is_refused(register):
  class Broken(Recorder):
    @classmethod
    def check(cls):
      raise ImportError('libx.so is missing')

  with pytest.raises(UserError, match=r'cannot be used \(ImportError: libx.so is missing\)'):
    check_trackers((register(Broken),))


def test_a_name_that_is_no_tracker_is_refused_before_anything_is_imported(tmp_path):
  _, err = micro_run.run(
    *micro_run.arguments(tmp_path / 'run', "--config.trackers=('tensorbord',)"), status=1
  )
  assert err == (
    "electra_jax: config.trackers is ('tensorbord',); expected tensorboard, wandb or mlflow.\n"
  )


def test_names_may_be_separated_by_commas():
  config = freeze(PretrainingConfig, PretrainingConfig().replace({'trackers': ('mlflow, wandb',)}))
  assert config.trackers == ('mlflow', 'wandb')


@needs('mlflow')
def test_mlflow_without_an_address_is_refused(monkeypatch):
  monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
  with pytest.raises(UserError, match='expected one in MLFLOW_TRACKING_URI'):
    check_trackers(('mlflow',))


@needs('wandb')
def test_wandb_without_a_key_is_refused(monkeypatch, tmp_path):
  for name in ('WANDB_API_KEY', 'WANDB_MODE'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('NETRC', str(tmp_path / 'none'))
  monkeypatch.setenv('HOME', str(tmp_path))
  with pytest.raises(UserError, match='expected one by `wandb login`'):
    check_trackers(('wandb',))


#### The libraries, offline ####


@pytest.fixture(autouse=True)
def fresh_settings():
  """wandb reads its settings once in a process."""
  yield
  if 'wandb' in sys.modules:
    sys.modules['wandb'].teardown()


@pytest.fixture
def offline(monkeypatch, tmp_path):
  """wandb writes to its folder, mlflow to a store of files."""
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('MLFLOW_TRACKING_URI', (tmp_path / 'mlflow').as_uri())
  monkeypatch.setattr(sys, 'argv', ['main', f'--config.data.source={SECRET}'])
  return tmp_path


def log_entries(content):
  """The entries of a log in LevelDB's format, behind the 7 bytes that wandb begins it with."""
  entry, place = b'', 7
  while place + 7 <= len(content):
    left = 32768 - place % 32768
    if left < 7:  # no header fits into the rest of a block
      place += left
      continue
    length, kind = int.from_bytes(content[place + 4 : place + 6], 'little'), content[place + 6]
    entry += content[place + 7 : place + 7 + length]
    place += 7 + length
    if kind in (1, 4):  # whole, or the last part
      yield entry
      entry = b''


def wandb_records(folder):
  """(ID, config, metrics by step) of each offline run below a folder, in their order."""
  from wandb.proto import wandb_internal_pb2

  for path in sorted(pathlib.Path(folder).rglob('*.wandb'), key=lambda path: path.stat().st_mtime):
    id, config, history = '', {}, []
    for entry in log_entries(path.read_bytes()):
      record = wandb_internal_pb2.Record.FromString(entry)
      if record.HasField('run'):
        id = record.run.run_id
        config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
      if record.HasField('history'):
        items = record.history.item
        values = {i.key or '/'.join(i.nested_key): json.loads(i.value_json) for i in items}
        history.append({k: v for k, v in values.items() if not k.startswith('_')})
    yield id, config, history


def mlflow_runs(uri, project='electra_jax'):
  import mlflow

  client = mlflow.MlflowClient(tracking_uri=uri)
  return client, client.search_runs([client.get_experiment_by_name(project).experiment_id])


@needs('wandb')
def test_wandb_gets_metrics_and_no_text_and_continues_its_run(offline):
  check_trackers(('wandb',))
  tracking = tracking_of(config_with_text().replace({'trackers': ('wandb',), 'name': 'run'}))
  folder = offline / 'run'
  write(folder, tracking)
  write(folder, tracking, (3, 4), first=2)
  (first, config, history), (second, _, later) = wandb_records(folder)
  assert first == second == json.loads((folder / 'trackers.json').read_text())['wandb']
  assert config['batch_size'] == 77 and 'data.source' not in config
  assert history == [{'train/loss': 1 / step, 'step': step} for step in (1, 2, 3)]
  assert [line['step'] for line in later] == [3, 4]
  content = b''.join(path.read_bytes() for path in folder.rglob('*.wandb'))
  home = os.path.expanduser('~').encode()
  for text in (SECRET.encode(), bytes(offline), socket.gethostname().encode(), home, b'pytest'):
    assert text not in content or len(text) < 4  # a name of two letters may occur by chance


@needs('mlflow')
def test_mlflow_gets_metrics_and_no_text_and_continues_its_run(offline):
  check_trackers(('mlflow',))
  tracking = tracking_of(config_with_text().replace({'trackers': ('mlflow',), 'name': 'run'}))
  folder = offline / 'run'
  write(folder, tracking)
  write(folder, tracking, (3, 4), first=2)
  client, (run,) = mlflow_runs(os.environ['MLFLOW_TRACKING_URI'])
  assert run.info.run_id == json.loads((folder / 'trackers.json').read_text())['mlflow']
  assert (run.info.run_name, run.info.status) == ('run', 'FINISHED')
  assert run.data.params['batch_size'] == '77' and 'data.source' not in run.data.params
  history = client.get_metric_history(run.info.run_id, 'train/loss')
  assert sorted((m.step, m.value) for m in history) == [
    (step, 1 / step) for step in (1, 2, 3, 3, 4)
  ]
  assert 'train/auc' not in run.data.metrics  # it is not finite
  # The store itself records where its own files are; what is sent of the run holds no path.
  sent = repr((run.data.params, run.data.tags))
  assert not any(text in sent for text in (SECRET, str(offline), socket.gethostname(), 'pytest'))


@pytest.mark.parametrize('name', ['wandb', 'mlflow'])
def test_a_server_that_cannot_be_reached_costs_one_warning(tmp_path, monkeypatch, capsys, name):
  if importlib.util.find_spec(name) is None:
    pytest.skip(f'needs {name}: the extra trackers is not installed')
  with socket.socket() as unused:
    unused.bind(('127.0.0.1', 0))
    address = f'http://127.0.0.1:{unused.getsockname()[1]}'
  settings = {
    'WANDB_MODE': 'online',
    'WANDB_BASE_URL': address,
    'WANDB_API_KEY': 'a' * 40,
    'MLFLOW_TRACKING_URI': address,
    'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '0',
  }
  for variable, value in settings.items():
    monkeypatch.setenv(variable, value)
  if name == 'wandb':
    from electra_jax.training.trackers import wandb_runs

    monkeypatch.setattr(wandb_runs, 'PATIENCE', 1.0)
  write(tmp_path, Tracking((name,), 'electra_jax', 'run'))
  assert written_steps(tmp_path) == [1, 2, 3]
  assert capsys.readouterr().err.count(f'the tracker {name!r} failed') == 1


#### User code ####


def test_the_example_of_the_docs_works_as_written(tmp_path, register, monkeypatch):
  (code,) = re.findall(
    r'```python\n(.*?)```', (DOCS / 'monitoring.md').read_text('utf-8'), re.DOTALL
  )
  (tmp_path / 'sqlite_tracker.py').write_text(code)
  monkeypatch.chdir(tmp_path)
  registry.load_plugins(['sqlite_tracker.py'])
  tracking = Tracking(('sqlite',), 'project', 'name')
  write(tmp_path / 'run', tracking)
  write(tmp_path / 'run', tracking, (4,), first=3)
  with contextlib.closing(sqlite3.connect('metrics.sqlite')) as database:
    rows = database.execute('SELECT * FROM metrics').fetchall()
  assert rows == [('name', 'train/loss', step, 1 / step) for step in (1, 2, 3, 4)]


#### Runs ####


@pytest.mark.clients
@needs('wandb')
@needs('mlflow')
def test_runs_and_trials_of_a_sweep_reach_both_libraries(offline):
  """Pretraining, and the fine-tuning that follows it."""
  trackers = {'trackers': ('tensorboard', 'wandb', 'mlflow'), 'compilation_cache': ''}
  c = sweep_config.default_config()
  c.name, c.base, c.runs, c.rows = 'test', micro_run.CONFIG, (('small', {}),), 16
  data = {'data.source': str(micro_run.corpus()), 'data.cache': str(offline / 'cache')}
  c.fields = tuple((trackers | data).items())
  glue = {'task': 'stsb', 'data.source': str(finetune_files.glue(offline / 'glue'))}
  c.finetune = (('probe', micro_run.FINETUNE_CONFIG, trackers | glue | {'num_trials': 1}),)
  folder = offline / 'sweep'
  with in_process.shared_programs(devices=1):
    assert runner.sweep(c, str(folder)) == 0
  written = {}  # name of a run -> the lines of its metrics.jsonl
  for path in folder.rglob(progress.METRICS):
    trial = 'trial-1' in path.parts
    name = 'small, seed 0, probe, stsb, trial 1' if trial else 'small, seed 0'
    written[name] = progress.read_metrics(path.parent)
  assert len(written) == 2
  sent = {id: history for id, _, history in wandb_records(folder)}
  client, runs = mlflow_runs(os.environ['MLFLOW_TRACKING_URI'])
  assert {run.info.run_name for run in runs} == written.keys()
  ids = {
    json.loads(path.read_text())['mlflow']: json.loads(path.read_text())['wandb']
    for path in folder.rglob('trackers.json')
  }
  for run in runs:
    lines = written[run.info.run_name]
    assert run.info.status == 'FINISHED'
    losses = [(line['step'], line['loss']) for line in lines if line['kind'] == 'train']
    found = client.get_metric_history(run.info.run_id, 'train/loss')
    assert [(m.step, m.value) for m in found] == losses
    history = sent[ids[run.info.run_id]]
    assert [line['step'] for line in history] == [line['step'] for line in lines]
    assert [(x['step'], x['train/loss']) for x in history if 'train/loss' in x] == losses
    assert not any(str(offline) in value for value in run.data.params.values())

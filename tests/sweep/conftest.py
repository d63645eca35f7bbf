"""Fixtures of the tests of sweeps: a config, and one job that was run and measured."""

import contextlib
import copy
import io
import json
import pathlib
import shutil
import types

import finetune_files
import micro_run
import pytest
from one_device import run_on_one_device

from electra_jax.errors import PREEMPTED
from electra_jax.sweep import config as sweep_config
from electra_jax.sweep import results, runner

FINETUNE = 'tests/configs/finetune_micro.py'


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """Every test here runs on one device; that a mesh changes nothing is tested elsewhere."""
  run_on_one_device(monkeypatch)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A folder with the data of GLUE's tasks."""
  return finetune_files.glue(tmp_path_factory.mktemp('data') / 'glue')


def config_of(data):
  """The config of a sweep of two runs, two seeds and a probe."""
  c = sweep_config.default_config()
  c.name = 'test'
  c.base = micro_run.CONFIG
  c.seeds = (0, 1)
  c.rows = 24
  c.fields = (
    ('data.source', str(micro_run.corpus())),
    ('data.cache', str(micro_run.shared() / 'cache')),
    ('data.reader', 'numpy'),
    ('compilation_cache', str(micro_run.programs())),
  )
  c.runs = (('small', {}), ('warmer@1', {'objective.temperature': 2, 'steps': 60}))
  probe = {
    'task': 'stsb',
    'frozen': True,
    'data.source': str(data),
    'epochs': 1.0,
    'num_trials': 1,
    'compilation_cache': '',
    'save_every': 100,
  }
  c.finetune = (('probe', FINETUNE, probe),)
  return c


@pytest.fixture
def config(data):
  """The config of `config_of`."""
  return config_of(data)


@pytest.fixture(scope='module')
def measured(data, tmp_path_factory):
  """A job that was stopped before its last part and started again.

  Its attributes are the result, the output of the second start and the sweep's folder.
  """
  folder, c = tmp_path_factory.mktemp('sweep'), config_of(data)
  train = runner.train

  def trained_before(config, place, notice):
    """All but the last part of training, as if another start had done it."""
    shutil.copytree(micro_run.finished()[0], place)
    path = pathlib.Path(place, 'config.json')
    path.write_text(path.read_text().replace('"micro"', json.dumps(config.name)))
    return train(config, place, notice)

  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
    run_on_one_device(patch)
    with pytest.MonkeyPatch.context() as stopped:
      stopped.setattr(runner, 'train', trained_before)
      stopped.setattr(runner, 'finetune', lambda *_: PREEMPTED)
      assert runner.sweep(c, str(folder), only='small:0') == PREEMPTED
      assert not (folder / 'results').exists()
    output.truncate(0)
    assert runner.sweep(c, str(folder), only='small:0') == 0
  (result,) = results.read_results(folder / 'results' / 'small-0.jsonl')
  return types.SimpleNamespace(result=result, output=output.getvalue(), folder=folder)


@pytest.fixture
def started(measured, monkeypatch):
  """Names of the configs that were trained; training and measuring are replaced.

  Each result is like the measured one, with other metrics.
  """
  names = []

  def train(config, place, notice):
    names.append(config.name)
    return 0

  def measure_run(job, expected, place, notice):
    result = copy.deepcopy(measured.result) | {'run': job.run, 'seed': job.seed}
    result |= {name: expected[name] for name in ('fields', 'data', 'rows')}
    result['tasks'] = {
      name: result['tasks'].get(name, result['tasks']['probe']) | task
      for name, task in expected['tasks'].items()
    }
    result['heldout']['generator_loss']['value'] += 0.25 * job.seed
    result['learned'] = (job.run, job.seed) == ('small', 0)
    return result

  monkeypatch.setattr(runner, 'train', train)
  monkeypatch.setattr(runner, 'measure_run', measure_run)
  return names


@pytest.fixture
def no_training(monkeypatch):
  """Fails the test where a run is started."""

  def refuse(*_):
    raise AssertionError('a run was started')

  monkeypatch.setattr(runner, 'train', refuse)

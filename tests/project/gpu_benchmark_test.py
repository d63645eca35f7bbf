"""benchmarks/gpu.py: its checks can fail, its table shows why, and it runs without a GPU."""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import xla_flags

from electra_jax.config import PretrainingConfig, freeze
from electra_jax.config.config_files import load_config_file

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / 'benchmarks'
SHAPE = (
  'family',
  'num_layers',
  'num_heads',
  'hidden_size',
  'embedding_size',
  'intermediate_size',
  'layer_norm_eps',
  'global_every',
)
# What the program must not need.
HIDDEN = ('tensorflow', 'tensorflow_datasets', 'ml_collections', 'tensorboardX', 'datasketch')


@pytest.fixture
def module(monkeypatch):
  """Imports a module of the benchmark."""
  monkeypatch.syspath_prepend(FOLDER)
  return importlib.import_module


@pytest.fixture
def session(module, tmp_path):
  """A session of tiny sizes on a CPU."""
  made = module('gpu_parts.session').Session(tmp_path, time.monotonic() + 600, tiny=True)
  made.device = {'platform': 'cpu', 'kind': 'cpu', 'memory': None}
  yield made
  made.close()


@pytest.mark.parametrize('name', ['small', 'base', 'mini'])
def test_sizes_are_those_of_the_shipped_configs(module, name):
  size = module('train_step').SIZES[name]
  shipped = freeze(PretrainingConfig, load_config_file(name))
  for field in SHAPE:
    assert getattr(size.model, field) == getattr(shipped.model, field), field
  assert (size.vocab_size, size.dropout) == (shipped.data.vocab_size, shipped.model.dropout)
  assert size.dropout == shipped.model.attention_dropout
  one_tower = shipped.sharing == 'all'
  assert size.fraction == (None if one_tower else shipped.generator.hidden_fraction)


def without_packages(folder, hidden=HIDDEN):
  """An environment in which importing some packages fails."""
  for name in hidden:
    (folder / f'{name}.py').write_text(f'raise ImportError("{name} is hidden")\n')
  return os.environ | {
    'PYTHONPATH': os.pathsep.join(map(str, (folder, ROOT, FOLDER, ROOT / 'tests/model'))),
    'JAX_PLATFORMS': 'cpu',
  }


#### Parts ####


@pytest.fixture
def program(module, monkeypatch):
  """The program with made-up parts, on a CPU."""
  gpu, report = module('gpu'), module('gpu_parts.report')
  error = module('gpu_parts.session').PartError

  def fine(session, deadline):
    return {'number': 1.5}, {}, [report.Row('fine', 'a speed', '3', '2', '1.50', '1.3 x', True)]

  def partly(session, deadline):
    return {}, {'cudnn': 'RESOURCE_EXHAUSTED: Out of memory'}, [report.Row('partly', 'the other')]

  def broken(session, deadline):
    raise error('ended with signal 11')

  parts = {
    'fine': gpu.Part(fine, 0, 9),
    'partly': gpu.Part(partly, 0, 9, together=True),
    'broken': gpu.Part(broken, 0, 9, together=True),
    'long': gpu.Part(fine, 1000, 2000),
  }
  monkeypatch.setattr(gpu, 'PARTS', parts)
  monkeypatch.setattr(gpu, 'probe', lambda _: report.Outcome('ok'))
  return gpu


def test_a_part_that_fails_is_a_line_of_the_table_and_of_the_file(program, tmp_path, capsys):
  path = tmp_path / 'gpu.json'
  assert program.main(['--parts=fine,partly,broken,long', f'--json={path}']) == 1
  printed = capsys.readouterr().out
  assert '| fine | a speed | 3 | 2 | 1.50 | 1.3 x | yes |' in printed
  assert '| partly | cudnn | **failed**: RESOURCE_EXHAUSTED: Out of memory |' in printed
  assert '| broken | broken | **failed**: ended with signal 11 |' in printed
  assert '| long | long | not run: 4' in printed  # of 480 seconds
  record = json.loads(path.read_text())
  states = {name: part['state'] for name, part in record['parts'].items()}
  assert states == {
    'device': 'ok',
    'fine': 'ok',
    'partly': 'failed',
    'broken': 'failed',
    'long': 'not run',
  }
  assert record['parts']['fine']['result'] == {'number': 1.5}
  assert record['parts']['fine']['rows'][0]['met'] is True
  assert record['environment']['versions']['jax'] and record['seconds'] > 0


def test_the_exit_status_is_0_where_nothing_failed(program, capsys):
  assert program.main(['--parts=fine,long']) == 0
  with pytest.raises(SystemExit):
    program.main(['--parts=fine,slow'])
  assert (
    "--parts has 'slow'; expected some of fine, partly, broken, long." in capsys.readouterr().err
  )


def test_parts_that_measure_time_run_by_themselves(module):
  gpu = module('gpu')
  assert list(gpu.stages(gpu.PARTS))[:2] == [
    ['golden', 'attention', 'masks', 'resume'],
    ['base-512'],
  ]


def test_the_reason_of_a_process_that_fails_is_reported(module, session):
  error = module('gpu_parts.session').PartError
  with pytest.raises(error, match="KeyError: 'nothing'"):
    session.once('nothing', {}, session.deadline)
  with session.start('probe', {}) as worker:
    worker.process.kill()
    with pytest.raises(error, match='ended with signal 9'):
      worker.answer(session.deadline)
  with session.start('probe', {}) as worker:
    with pytest.raises(error, match='stopped after 0 s without an answer'):
      worker.answer(time.monotonic())
    assert worker.process.poll() is not None


#### Checks ####

GOLDEN = {'tied': {'error': 1e-6, 'tensor': 'total', 'tensors': 60}}
ATTENTION = {'errors': {'whole rows, outputs': 0.005}, 'calls_cudnn': False}


@pytest.mark.parametrize(
  'check, answer, error',
  [
    ('golden', {'tolerance': 1e-5, 'errors': {'float32': GOLDEN}}, ''),
    (
      'golden',
      {'tolerance': 1e-7, 'errors': {'float32': GOLDEN}},
      'tied, total differs by 1.0e-06 of its largest value; expected at most 1.0e-07',
    ),
    ('attention', {'lengths': {'32': {'xla': ATTENTION}}}, ''),
    (
      'attention',
      {'lengths': {'32': {'cudnn': {'errors': {'window, key': 0.5}, 'calls_cudnn': False}}}},
      'window, key differs by 5.0e-01; expected at most 0.02',
    ),
    ('masks', {'arrays': 9, 'elements': 10, 'different': []}, ''),
    (
      'masks',
      {'arrays': 9, 'elements': 10, 'different': ['dropout hash, activations']},
      'dropout hash, activations differ from those of the CPU',
    ),
  ],
)
def test_a_check_reports_a_wrong_result(module, session, monkeypatch, check, answer, error):
  checks = module('gpu_parts.checks')
  monkeypatch.setattr(session, 'once', lambda *_: answer)
  _, errors, rows = getattr(checks, check)(session, session.deadline)
  assert list(errors.values()) == ([error] if error else [])
  assert [row.met for row in rows] == [not error]


def test_xla_instead_of_cudnn_on_a_gpu_is_an_error(module, session, monkeypatch):
  session.device['platform'] = 'gpu'
  monkeypatch.setattr(session, 'once', lambda *_: {'lengths': {'32': {'cudnn': ATTENTION}}})
  _, errors, _ = module('gpu_parts.checks').attention(session, session.deadline)
  assert errors == {'cudnn, 32': 'the compiled program does not call the kernel'}


def test_one_bit_is_a_difference(module):
  tasks = module('gpu_parts.check_tasks')
  ours = {'a': np.array([1.0, -0.0], np.float32), 'b': np.array([3])}
  assert tasks.different(ours, {name: x.copy() for name, x in ours.items()}) == []
  assert tasks.different(ours, ours | {'a': np.array([1.0, 0.0], np.float32)}) == ['a']
  assert tasks.different(ours, ours | {'b': np.array([3], np.int32)}) == ['b']


@pytest.mark.long
def test_masks_are_those_of_the_same_rows(module):
  tasks = module('gpu_parts.check_tasks')
  found = []
  for seed in (0, 1):
    sizes = {'rows': 2, 'length': 16, 'heads': 1}
    tasks.masks(lambda **answer: found.append(answer), **sizes, seed_of_reference=seed)
  same, other = found
  assert same['different'] == [] and same['arrays'] == 18
  assert all(0.8 < share < 1 for share in same['kept'].values()) and len(same['kept']) == 6
  # Positions depend on the words of the rows; dropout does not.
  assert 'masking words, positions' in other['different']
  assert not any(name.startswith('dropout') for name in other['different'])


#### Speeds ####


def test_ratios_are_those_of_the_same_round(module, session):
  speeds = module('gpu_parts.speeds')
  session.device = {'platform': 'gpu', 'kind': 'NVIDIA H200', 'memory': 1e11}
  session.tiny = False
  group = speeds.group_here(session, 'base-512')
  assert (group.batch, group.contenders) == (64, tuple(speeds.CONTENDERS))
  memory = {'peak': 10e9, 'held': 1, 'limit': None}
  found = {
    name: {'seconds': seconds, 'flops': 1e12, 'memory': memory}
    for name, seconds in {
      'xla, dropout': [0.1, 0.2, 0.1],
      'peer, dropout': [0.14, 0.27, 0.13],
      'cudnn': [0.05, 0.05, 0.05],
      'peer': [],  # it failed
    }.items()
  }
  result = {'contenders': found} | speeds._compared(group, found, [1e13])
  assert result['ratios'] == {
    'xla, dropout': {'median': 1.35, 'low': 1.3, 'high': pytest.approx(1.4)}
  }
  assert result['share_of_matrix_product_rate']['cudnn'] == pytest.approx(2.0)
  rows = speeds._rows(session, 'base-512', group, result)
  assert [row.met for row in rows] == [True, None, True, None, None]
  assert rows[0].ours == '327,680 (163,840 to 327,680)' and rows[0].ratio == '1.35 (1.30 to 1.40)'
  assert rows[2].ours == '655,360' and rows[2].target == '581,000 on H200'
  assert rows[3][2:5] == ('10.0 GB', '10.0 GB', '1.00')


@pytest.mark.parametrize('capacity, known', [(283, True), (283, False), (40, False), (10**6, True)])
def test_the_search_brackets_the_largest_batch(module, capacity, known):
  batches = module('gpu_parts.batches')
  tried = []

  def attempt(batch):
    tried.append(batch)
    if batch > capacity:
      return batches.Attempt(batch, False)
    memory = (100 + batch, 100, 100 + capacity) if known else (None, None, None)
    return batches.Attempt(batch, True, *memory)

  fits, fails = batches.largest_batch(attempt, 64, 4096, 8)
  assert fits == max((b for b in tried if b <= capacity), default=0)
  assert len(tried) <= (5 if known else 9)
  if capacity > 4096:
    assert (fits, fails) == (4096, None)
  else:
    assert capacity * 0.9 - 8 < fits <= capacity < fails <= 1.05 * fits + 8


def test_the_search_starts_at_the_batch_that_memory_lets_expect(module, session):
  speeds = module('gpu_parts.speeds')
  group = speeds.GROUPS['base-512']
  assert speeds._first_batch(session, 'xla, dropout', group) == 64
  session.memory['xla, dropout'] = {'peak': 74, 'held': 10, 'limit': 210, 'batch': 64}
  assert speeds._first_batch(session, 'xla, dropout', group) == 192  # of 200


#### Without a GPU ####


def test_all_tasks_import_neither_tensorflow_nor_ml_collections(tmp_path):
  modules = ', '.join(f'gpu_parts.{name}_tasks' for name in ('check', 'resume', 'speed'))
  done = subprocess.run(
    [sys.executable, '-c', f'import gpu, {modules}'],
    env=without_packages(tmp_path),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


def run_on_a_cpu(folder, parts, hidden=HIDDEN):
  """Runs the program without packages; returns its parts and its table."""
  path = folder / 'gpu.json'
  environment = without_packages(folder, hidden) | {'XLA_FLAGS': xla_flags.QUICK}
  command = [sys.executable, FOLDER / 'gpu.py', '--minutes=30', f'--parts={parts}']
  done = subprocess.run(
    [*command, f'--json={path}'], env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr
  record = json.loads(path.read_text())
  assert record['tiny'] and record['parts']['device']['result']['platform'] == 'cpu'
  assert {part['state'] for part in record['parts'].values()} == {'ok'}
  assert 'Tiny sizes' in done.stdout
  return record['parts'], done.stdout


@pytest.mark.long
def test_the_checks_pass_on_a_cpu(tmp_path):
  hidden = (*HIDDEN, 'zstandard')
  parts, printed = run_on_a_cpu(tmp_path, 'golden,attention,masks,resume', hidden)
  assert parts['golden']['result']['errors']['float32']['tied']['tensors'] > 50
  assert 10 <= parts['resume']['result']['killed_after'] < 20
  assert parts['resume']['result']['restored_step'] in (5, 10, 15)
  assert '| resume | run of 20 steps killed after ' in printed


@pytest.mark.long
def test_the_speeds_run_on_a_cpu(tmp_path):
  """Groups of other sizes have the same tiny one here."""
  parts, _ = run_on_a_cpu(tmp_path, 'base-512,largest')
  speeds = parts['base-512']['result']
  assert set(speeds['ratios']) == {'xla, dropout', 'xla'}
  assert all(len(x['seconds']) == 5 for x in speeds['contenders'].values())
  operations = speeds['contenders']['peer']['attention_operations']
  assert any('flash_attention' in name for name in operations)
  attempts = parts['largest']['result']['attempts']
  assert [x['batch'] for x in attempts['peer, dropout']] == [4, 8]

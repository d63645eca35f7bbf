"""Sweeps: each run is done once per seed, known results are used, mistakes are reported first."""

import contextlib
import copy
import functools
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import types

import finetune_files
import in_process
import micro_run
import pytest

from electra_jax import folder_lock
from electra_jax.config import PretrainingConfig, SweepConfig
from electra_jax.config.config_files import load_config_file
from electra_jax.errors import PREEMPTED, UserError
from electra_jax.finetune.trial_summary import spread
from electra_jax.folder_lock import FolderInUse, FolderLock
from electra_jax.main import main
from electra_jax.sweep import config as sweep_config
from electra_jax.sweep import resolve, results, runner, summary, worker_files

FINETUNE = 'tests/configs/finetune_micro.py'


# That a mesh changes nothing is tested elsewhere.
pytestmark = pytest.mark.usefixtures('on_one_device')


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

  def trained_before(config, place, notice, take_over):
    """All but the last part of training, as if another start had done it."""
    shutil.copytree(micro_run.finished()[0], place)
    path = pathlib.Path(place, 'config.json')
    path.write_text(path.read_text().replace('"micro"', json.dumps(config.name)))
    return train(config, place, notice, take_over)

  output = io.StringIO()
  with in_process.shared_programs(devices=1), contextlib.redirect_stdout(output):
    with pytest.MonkeyPatch.context() as stopped:
      stopped.setattr(runner, 'train', trained_before)
      stopped.setattr(runner, 'run_finetuning', lambda *_: PREEMPTED)
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

  def train(config, place, notice, take_over):
    names.append(config.name)
    return 0

  def measure_run(job, expected, place, notice, take_over):
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


#### One job ####


def test_a_result_has_all_metrics(measured, data):
  result, probe = measured.result, measured.result['tasks']['probe']
  assert (result['run'], result['seed'], result['steps']) == ('small', 0, 30)
  assert result['tokens'] == 30 * 8 * 32 and isinstance(result['tokens'], int)
  assert min(result['flops'], result['paper_flops']) > 0
  assert probe['fields']['frozen'] is True and probe['task'] == 'stsb'
  assert len(probe['values']) == 1
  assert result['learned'] is (result['heldout']['gain']['low'] > 0)
  assert result['heldout_rows'] > 16
  assert {'embeddings', 'discriminator', 'generator'} <= set(result['parameters'])
  assert result['seconds']['pretraining'] > 0
  pattern = 'runs/small-0-*/finetune/probe-*/stsb/trial-1'
  (trial,) = measured.folder.glob(f'{pattern}/result.json')
  score = json.loads(trial.read_text())['figures']['dev']['glue']
  assert score == pytest.approx(probe['values'][0])
  assert not list(measured.folder.glob(f'{pattern}/checkpoints'))


def test_a_result_does_not_contain_paths(measured, data):
  text = json.dumps(measured.result)
  assert str(data) not in text and str(micro_run.corpus()) not in text


def test_a_stopped_job_is_resumed(measured):
  assert 'all 30 steps were made before' in measured.output
  assert 'evaluated' not in measured.output and 'stsb' in measured.output
  # Other processes may be writing the results of other jobs.
  assert not (measured.folder / 'sweep.md').exists()


#### All jobs ####


def test_each_run_is_done_once_per_seed_and_shown(started, config, tmp_path, capsys):
  config.delete_runs = True
  assert runner.sweep(config, str(tmp_path)) == 0
  assert started == ['small, seed 0', 'small, seed 1', 'warmer@1, seed 0', 'warmer@1, seed 1']
  found = results.read_results(tmp_path / results.RESULTS_FILE)
  jobs = [('small', 0), ('small', 1), ('warmer@1', 0), ('warmer@1', 1)]
  assert [(result['run'], result['seed']) for result in found] == jobs
  assert found[2]['fields']['objective.temperature'] == 2.0 and found[2]['fields']['steps'] == 60
  capsys.readouterr()
  assert runner.sweep(config, str(tmp_path)) == 0 and len(started) == 4  # nothing remains
  output = capsys.readouterr().out
  assert '4 done, 0 to do' in output
  losses = [result['heldout']['generator_loss']['value'] for result in found[:2]]
  mean, deviation = sum(losses) / 2, abs(losses[0] - losses[1]) / 2**0.5
  row = next(line for line in output.splitlines() if line.strip().startswith('small'))
  assert f'{mean:.4f} ± {deviation:.4f}' in row and '2 of 2' in row
  assert 'not learned by 1 of 2' in row
  row = next(line for line in output.splitlines() if line.strip().startswith('warmer'))
  assert row.endswith('not learned')
  page = (tmp_path / 'sweep.md').read_text()
  assert f'{mean:.4f} ± {deviation:.4f} (' in page and '| warmer@1 | 2 of 2 |' in page
  assert (tmp_path / 'sweep.png').stat().st_size > 20_000
  assert (tmp_path / 'sweep.html').stat().st_size > 20_000


def test_results_of_single_jobs_make_one_table(started, config, tmp_path):
  for job in ('small:0', 'warmer@1:1'):
    assert runner.sweep(config, str(tmp_path), only=job) == 0
  assert not (tmp_path / 'sweep.md').exists()
  assert not (tmp_path / results.RESULTS_FILE).exists()
  assert runner.sweep(config, str(tmp_path), only='table') == 0 and len(started) == 2
  page = (tmp_path / 'sweep.md').read_text()
  assert '| small | 1 of 2 |' in page and '| warmer@1 | 1 of 2 |' in page


def diverge(config, place, notice, take_over):
  """Training that fails with seed 0 and is stopped with others."""
  if config.seed == 0:
    raise UserError('the step after 3 is not finite')
  return PREEMPTED


def test_the_other_runs_continue_after_one_fails(config, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(runner, 'train', diverge)
  assert runner.sweep(config, str(tmp_path / 'run')) == PREEMPTED
  assert 'small:0: the step after 3 is not finite' in capsys.readouterr().out
  assert runner.sweep(config, str(tmp_path / 'run'), only='small:0') == 1


def test_known_results_are_shown_when_all_other_runs_fail(started, config, tmp_path, monkeypatch):
  assert runner.sweep(config, str(tmp_path), only='small:0') == 0
  config.seeds = (0,)
  monkeypatch.setattr(runner, 'train', diverge)
  assert runner.sweep(config, str(tmp_path)) == 1
  assert '| small | 1 of 1 |' in (tmp_path / 'sweep.md').read_text()


def test_a_request_to_stop_while_a_run_ends_is_obeyed(config, tmp_path, monkeypatch):
  def train(config, place, notice, take_over):
    notice.heed()
    os.kill(os.getpid(), signal.SIGTERM)
    return 0

  monkeypatch.setattr(runner, 'train', train)
  monkeypatch.setattr(runner, 'measure_run', lambda *_: pytest.fail('the sweep continued'))
  assert runner.sweep(config, str(tmp_path / 'run')) == PREEMPTED


#### Known results ####


@pytest.fixture
def known(started, config, tmp_path, monkeypatch):
  """A file with the results of all jobs of `config`."""
  monkeypatch.setattr(runner, 'write_report', lambda *_: None)  # the picture takes a second
  assert runner.sweep(config, str(tmp_path / 'first')) == 0
  path = tmp_path / 'known.jsonl'
  path.write_bytes((tmp_path / 'first' / results.RESULTS_FILE).read_bytes())
  return path


def found_results(config, known, folder):
  """Names of the jobs of a config whose results are known, and what the results must contain."""
  jobs = resolve.jobs_of(config)
  expected = runner.expected_results(jobs, config.rows)
  return runner.find_results(folder, jobs, expected, (str(known),)), expected


@pytest.mark.parametrize('where', ['config', 'flag'])
def test_known_results_are_used(known, where, config, tmp_path, no_training, capsys):
  given = {'results': (str(known),)} if where == 'flag' else {}
  config.known = (str(known),) if where == 'config' else ()
  capsys.readouterr()
  assert runner.sweep(config, str(tmp_path / 'other'), **given) == 0
  assert '4 done, 0 to do' in capsys.readouterr().out


def test_a_result_of_a_run_with_another_name_is_used(known, config, tmp_path, capsys):
  config.runs = (('otherwise', config.runs[0][1]), config.runs[1])
  capsys.readouterr()
  found, _ = found_results(config, known, tmp_path)
  assert sorted(found) == ['otherwise:0', 'otherwise:1', 'warmer@1:0', 'warmer@1:1']
  assert (found['otherwise:1']['run'], found['otherwise:1']['seed']) == ('otherwise', 1)
  assert 'config' not in capsys.readouterr().out


def test_results_of_other_configs_are_reported_with_the_difference(known, config, tmp_path, capsys):
  changes = config.runs[1][1] | {'optimizer.learning_rate': 2e-3}
  config.runs = (('small', {}), ('warmer@1', changes))
  capsys.readouterr()
  found, _ = found_results(config, known, tmp_path)
  assert sorted(found) == ['small:0', 'small:1']
  difference = '(optimizer.learning_rate: 0.001 -> 0.002)'
  assert f'has warmer@1:0 and 1 more of another config {difference}' in capsys.readouterr().out

  (name, file, fields) = config.finetune[0]
  config.finetune = ((name, file, fields | {'num_trials': 2}),)
  found, expected = found_results(config, known, tmp_path)
  assert found == {}
  output = capsys.readouterr().out
  assert 'has small:0 of another config (probe num_trials: 1 -> 2)' in output
  result = results.read_results(known)[0]
  changed = expected['small:0'] | {'data': 'x', 'rows': 9}
  assert results.result_differences(changed, result)[:2] == [
    f"data: {result['data']!r} -> 'x'",
    'rows: 24 -> 9',
  ]


@pytest.mark.parametrize(
  'name, runs', [('objectives', 9), ('sharing', 3), ('untrained', 1), ('generator_size', 4)]
)
def test_shipped_results_have_the_fields_of_their_sweeps(name, runs):
  config = load_config_file(f'configs/sweeps/{name}.py:texts')
  jobs = resolve.jobs_of(config)
  shipped = [result for file in config.known for result in results.read_results(file)]
  found = set()
  for job in jobs:
    for result in shipped:
      tasks = {task: result['tasks'][task]['data'] for task in job.tasks if task in result['tasks']}
      if result['seed'] == job.seed and tasks.keys() == job.tasks.keys():
        expected = results.expected_result(job, result['data'], tasks, result['rows'])
        if not results.result_differences(expected, result):
          found.add(job.name)
  assert len(found) == len(jobs) == 3 * runs


#### Statistics ####


def test_objectives_without_a_discriminator_have_no_verdict(measured):
  result = measured.result | {'learned': None}
  table = summary.sweep_table(summary.summarize_runs([result], ['small']), 3)
  assert 'learned' not in table and '1 of 3' in table


def test_metrics_of_tasks_are_medians_of_trials_times_100():
  result = {
    'run': 'small',
    'seed': 0,
    'learned': True,
    'heldout': {},
    'tasks': {'probe': {'metric': 'glue', 'values': [0.9, 0.25, 0.125]}},
    **dict.fromkeys(('flops', 'paper_flops', 'tokens'), 1.0),
  }
  (found,) = summary.summarize_runs([result], ['small'])
  assert found.metrics['probe: glue'].values == {0: 25.0}
  assert ' 25.0 ' in summary.sweep_table([found], 1)


def test_intervals_of_the_mean_are_by_students_t():
  found = spread([1.0, 2.0, 6.0])
  assert found['mean'] == 3 and found['deviation'] == pytest.approx(7**0.5)
  assert found['high'] - 3 == pytest.approx(4.302653 * (7 / 3) ** 0.5)
  assert found['low'] == pytest.approx(6 - found['high'])
  assert spread([2.0])['low'] is None and spread([])['n'] == 0


#### Mistakes ####


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      {'runs': (('mlm', {'objective.temprature': 1.0}),)},
      "run mlm sets 'objective.temprature', which is not a field; did you mean "
      "'objective.temperature'",
    ),
    (
      {'runs': (('a', {}), ('b', {'batch_size': 'many'}))},
      "run b sets batch_size to 'many'; expected a value of type int",
    ),
    ({'runs': (('a', {'seed': 3}),)}, "run a sets 'seed', which the sweep sets itself"),
    ({'runs': (('a', {}), ('b', {'steps': 0}))}, 'run b: config.steps is 0'),
    ({'runs': (('a', {}), ('a', {'steps': 9}))}, "config.runs has 'a' twice"),
    ({'runs': (('a b', {}),)}, "'a b' cannot be a name"),
    ({'runs': ('a',)}, 'expected its name and a dict of fields'),
    ({'runs': ()}, 'config.runs is empty'),
    ({'seeds': (0, 0)}, 'config.seeds'),
    ({'base': ''}, 'config.base is empty'),
    ({'base': 'configs/none.py'}, 'cannot be read'),
    ({'base': FINETUNE, 'fields': ()}, 'which is not a pretraining config'),
    ({'fields': (('stepz', 1),)}, "config.fields sets 'stepz'"),
    (
      {'finetune': (('cola', micro_run.CONFIG, {}),)},
      'which is not a fine-tuning config',
    ),
    (
      {'finetune': (('cola', FINETUNE, {'frozzen': True}),)},
      "cola of config.finetune sets 'frozzen', which is not a field; did you mean 'frozen'",
    ),
    (
      {'finetune': (('cola', FINETUNE, {'epochs': -1.0}),)},
      'cola of config.finetune: config.epochs is -1',
    ),
    ({'finetune': (('cola', FINETUNE, {'data.source': 'nowhere'}),)}, 'nowhere'),
    ({'runs': (('a', {}), ('wide', {'batch_size': 4096}))}, 'the corpus makes'),
  ],
)
def test_mistakes_are_reported_before_any_run(changes, message, config, tmp_path, no_training):
  for name, value in changes.items():
    config[name] = value
  with pytest.raises(UserError) as error:
    runner.sweep(config, str(tmp_path / 'bad'))
  assert message in str(error.value)


def test_an_unknown_job_and_a_damaged_file_are_reported(config, tmp_path, no_training):
  with pytest.raises(UserError, match="--only is small:7, which is not one of the sweep's jobs"):
    runner.sweep(config, str(tmp_path / 'bad'), only='small:7')
  (tmp_path / 'broken.jsonl').write_text('{"run": 1}\n')
  with pytest.raises(UserError, match='line 1 of .*broken.jsonl is not the result of a run'):
    runner.sweep(config, str(tmp_path / 'bad'), results=(str(tmp_path / 'broken.jsonl'),))


#### Configs ####


def test_a_sweep_may_have_no_fine_tuning(config):
  config.finetune = ()
  assert all(not job.tasks for job in resolve.jobs_of(config))


SHIPPED = sorted((micro_run.ROOT / 'configs' / 'sweeps').glob('*.py'))


def test_the_sweep_for_a_laptop_needs_no_data():
  (path,) = (path for path in SHIPPED if path.stem == 'laptop')
  jobs = resolve.jobs_of(load_config_file(str(path)))
  assert len(jobs) == 6 and {job.config.data.source for job in jobs} == {'sample'}
  assert '--mode=sweep --config=configs/sweeps/laptop.py' in path.read_text()


@pytest.mark.parametrize(
  'path', [path for path in SHIPPED if path.stem != 'laptop'], ids=lambda path: path.stem
)
def test_a_shipped_sweep_is_valid_and_documents_its_command(path):
  c = load_config_file(f'{path}:texts')
  jobs = resolve.jobs_of(c)
  assert c.name == path.stem and len(jobs) == len(c.runs) * 3
  assert all(job.config.data.source.startswith('texts/pretrain/') for job in jobs)
  assert f'--mode=sweep --config=configs/sweeps/{path.stem}.py:data' in path.read_text()
  budgets = {}
  for job in jobs:
    budgets.setdefault(resolve.group_of(job.run), set()).add(job.config.budget_flops)
  # Each group is compared with all others at the same FLOPs.
  top = max(max(of_group) for of_group in budgets.values())
  assert all(top in of_group for of_group in budgets.values())


#### Job scripts ####


@pytest.fixture
def write_scripts(data, tmp_path):
  """A function that writes the job scripts of a kind, with --workdir, and returns the status."""
  config = tmp_path / 'sweep.py'
  config.write_text(
    'from sweep_test import config_of\n\ndef get_config(data=""):\n  return config_of(data)\n'
  )

  def write(kind, workdir, *more):
    flags = [f'--config={config}:{data}', '--results', '', f'--workdir={workdir}']
    return main(['main', '--mode=sweep', *flags, f'--jobs={kind}', *more])

  write.config = f'--config={config}:{data}'
  return write


@pytest.fixture
def scripts(write_scripts, tmp_path):
  """A function that writes the job scripts of a kind, and returns the words of each command."""

  def write(kind, workdir, *more):
    assert write_scripts(kind, workdir, '--output', str(tmp_path / kind), *more) == 0
    subprocess.run(['bash', '-n', str(tmp_path / kind / 'jobs.sh')], check=True)
    assert '--only=table' in (tmp_path / kind / 'table.sh').read_text()
    lines = (tmp_path / kind / 'jobs.sh').read_text().splitlines()
    commands = [shlex.split(line) for line in lines if '--only=' in line]
    jobs = ('small:0', 'small:1', 'warmer@1:0', 'warmer@1:1')
    for words, job in zip(commands, jobs, strict=True):
      repeated = {f'--workdir={workdir}', write_scripts.config, '--mode=sweep'}
      assert repeated | {f'--only={job}'} <= set(words)
      once = ('--jobs', '--output', '--at_once', '--shared_files')
      assert not [word for word in words if word.startswith(once)]
    return commands

  return write


def launched(*words):
  """The output of a launch script."""
  done = subprocess.run(['bash', *words], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_jobs_are_written_for_a_shell(scripts, tmp_path):
  scripts('shell', str(tmp_path / 'a folder'))


def test_jobs_are_written_for_slurm(scripts, tmp_path):
  commands = scripts('slurm', str(tmp_path / 'a folder'))
  assert all(words[0] == 'sbatch' and 'launch/slurm.sbatch' in words for words in commands)
  command = commands[0][commands[0].index('launch/slurm.sbatch') + 1 :]
  output = launched('launch/slurm.sbatch', '--dry-run', *command)
  assert '--only=small:0' in output and '--distributed' not in output


def test_jobs_are_written_for_queued_resources(scripts):
  commands = scripts('queued', 'gs://bucket/sweep', '--shared_files', '--at_once', '3')
  names = [words[1] for words in commands]
  assert len(set(names)) == 4 and names[2] == 'test-warmer-1-0'
  command = ['--', *commands[0][3:]]
  output = launched('launch/tpu.sh', 'run', names[0], '--zone=z', '--dry-run', *command)
  assert '--only=small:0' in output


# In place of launch/tpu.sh: notes its arguments and the number of jobs that run, and fails for one.
STAND_IN = r"""#!/bin/bash
printf '%s\n' "$*" >> calls
touch "running/$2"
ls running | wc -l >> together
sleep 0.5
rm "running/$2"
[[ $2 != test-small-1 ]]
"""


def test_queued_jobs_run_a_few_at_a_time_and_report_those_that_fail(scripts, tmp_path):
  scripts('queued', 'gs://bucket/sweep', '--shared_files', '--at_once=2')
  (tmp_path / 'launch').mkdir()
  (tmp_path / 'running').mkdir()
  (tmp_path / 'launch' / 'tpu.sh').write_text(STAND_IN)
  (tmp_path / 'launch' / 'tpu.sh').chmod(0o755)
  env = {'PATH': '/usr/bin:/bin', 'ZONE': 'z'}
  script = ['bash', str(tmp_path / 'queued' / 'jobs.sh'), '--on-demand', '--env=A=b c']
  done = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True)
  calls = (tmp_path / 'calls').read_text().splitlines()
  assert len(calls) == 4 and all(
    call.startswith('resume test-')
    and '--zone=z --topology=v5e-1 --delete-when-done --on-demand --env=A=b c -- --mode=' in call
    for call in calls
  )
  assert max(map(int, (tmp_path / 'together').read_text().split())) == 2
  assert done.returncode == 1 and done.stderr.count('\n') == 1
  assert done.stderr.startswith(f'test-small-1 failed; its log is {tmp_path}')


def test_queued_jobs_need_files_that_the_workers_have(write_scripts, data, tmp_path, capsys):
  queued = functools.partial(write_scripts, 'queued', 'gs://bucket/sweep', '--output=never')
  assert queued() == 1
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and not pathlib.Path('never').exists()
  assert f"--config is '{tmp_path / 'sweep.py'}', a local file that is not committed" in error
  assert 'expected an address (gs://...) or a committed file, or --shared_files where' in error
  for flags in (['slurm', '--at_once=2'], ['shell', '--shared_files']):
    kind, flag = flags
    assert write_scripts(kind, str(tmp_path / 'runs'), '--output=never', flag) == 1
    assert f'--jobs={kind}; it applies to --jobs=queued' in capsys.readouterr().err


@pytest.mark.parametrize(
  'field, value, missing',
  [
    ('data.source', 'sample', False),
    ('data.source', 'gs://bucket/*.txt', False),
    ('data.source', 'README.md;weight=2,docs/*.md;weight=1', False),
    ('data.source', 'README.md;weight=2,{folder}/*.txt;weight=1', True),
    ('data.source', 'tfds:wikipedia;data_dir={folder}', True),
    ('data.store', '{folder}', True),
    ('data.tokenizer', '{folder}/a.txt', True),
    ('data.tokenizer', 'unigram', False),
    ('init', 'tf:{folder}/model.ckpt-7', True),
    ('init', 'hf:{folder}', True),
    ('init', 'gs://bucket/run', False),
    ('phases', ({'steps': 10, 'data.store': '{folder}'},), True),
  ],
)
@pytest.mark.skipif(not pathlib.Path('.git').exists(), reason='requires a git checkout')
def test_files_that_are_not_committed_are_found(field, value, missing, tmp_path):
  for name in ('a.txt', 'model.ckpt-7.index'):
    (tmp_path / name).write_text('text')
  filled = (
    tuple(entry | {'data.store': str(tmp_path)} for entry in value)
    if field == 'phases'
    else value.format(folder=tmp_path)
  )
  config = PretrainingConfig().replace({field: filled})
  job = resolve.SweepJob('a', 0, {}, config, {})
  base = SweepConfig(base='configs/tiny.py', known=('benchmarks/results/objectives.jsonl',))
  sweep = resolve.ResolvedSweep(base, 'gs://bucket/sweep', (job,))
  found = worker_files.first_missing_file(sweep, [('--config', 'configs/sweeps/objectives.py')])
  expected = ('run a: config.data.store' if field == 'phases' else f'run a: config.{field}',)
  assert (found[:1] if found else None) == (expected if missing else None)


@pytest.mark.parametrize('kind', ['shell', 'slurm', 'queued'])
def test_names_and_paths_do_not_become_commands(write_scripts, tmp_path, kind):
  mark = tmp_path / 'ran'
  hostile = f'a\'; touch {mark}; $(touch {mark}) `touch {mark}` "}}'
  local = 'a\'; touch ran; $(touch ran) `touch ran` "}'
  workdir = f'gs://bucket/{hostile}' if kind == 'queued' else str(tmp_path / local)
  output = tmp_path / 'scripts $(touch ran)'
  more = ('--output', str(output), f'--config.name={hostile}')
  more += ('--shared_files',) * (kind == 'queued')
  assert write_scripts(kind, workdir, *more) == 0
  # Every program does nothing, so that only the scripts themselves could make the file.
  stubs = tmp_path / 'stubs'
  (stubs / 'launch').mkdir(parents=True)
  for name in ('sbatch', 'launch/tpu.sh'):
    (stubs / name).write_text('#!/bin/sh\n')
    (stubs / name).chmod(0o755)
  env = {'PATH': f'{stubs}:/usr/bin:/bin', 'PYTHON': 'true'}
  for script in ('jobs.sh', 'table.sh'):
    for more_env in ({}, {'ZONE': 'z'}):
      subprocess.run(['bash', str(output / script)], cwd=stubs, env=env | more_env)
  assert not mark.exists() and not (stubs / 'ran').exists()


@pytest.mark.parametrize(
  'flag, what',
  [
    ('--config.name=x\ntouch ran', 'config.name'),
    ('--workdir=x\ntouch ran', '--workdir'),
    ('--output=x\ntouch ran', '--output'),
    ('--config.name=x\u2028y', 'config.name'),
  ],
)
def test_control_characters_are_refused_in_job_scripts(write_scripts, tmp_path, capsys, flag, what):
  workdir = str(tmp_path / 'sweep')
  assert write_scripts('shell', workdir, f'--output={tmp_path / "out"}', flag) == 1
  error = capsys.readouterr().err
  assert f'{what} is ' in error and re.search('no control characters|without line breaks', error)
  assert not (tmp_path / 'out').exists()


def test_mistakes_about_jobs_are_reported(write_scripts, tmp_path, capsys):
  assert write_scripts('queued', 'runs/x', f'--output={tmp_path}') == 1
  assert 'expected a bucket' in capsys.readouterr().err
  assert write_scripts('slurm', 'runs/x') == 1
  assert '--jobs and --output must be given together' in capsys.readouterr().err
  assert write_scripts('slurm', 'runs/x', f'--output={tmp_path}', '--only=small:0') == 1
  assert '--jobs and --only exclude each other' in capsys.readouterr().err
  assert main(['main', '--mode=sweep', '--config=configs/tiny.py']) == 1
  assert 'the config is a pretraining config' in capsys.readouterr().err


@pytest.mark.parametrize('only', [None, 'small:0', 'table'])
def test_a_second_start_is_refused(config, tmp_path, monkeypatch, no_training, only):
  monkeypatch.setattr(runner, 'expected_results', lambda *_: {})
  monkeypatch.setattr(folder_lock, '_LEAVING', 0.0)
  folder = tmp_path / 'jobs' / 'small-0' if only == 'small:0' else tmp_path
  with FolderLock(folder) as lock:
    lock.acquire()
    with pytest.raises(FolderInUse, match='is being written by process'):
      runner.sweep(config, str(tmp_path), only=only)
  assert not (tmp_path / 'sweep.md').exists()

"""Sweeps: every run of every seed once, evaluated and fine-tuned, none that is known already, all mistakes before the first of them."""

import contextlib
import copy
import io
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess

import finetune_files
import jax
import micro_run
import pytest

from electra_jax.errors import PREEMPTED, UserError
from electra_jax.main import main
from electra_jax.sweep import config as sweep_config
from electra_jax.sweep import resolve, results, runner
from electra_jax.training import partitioning

FINETUNE = 'tests/configs/finetune_micro.py'


def from_the_root_on_one_device(patch):
  """Programs for one device compile in half the time; that a mesh changes nothing is tested elsewhere."""
  patch.chdir(micro_run.ROOT)
  make = partitioning.make_layout
  patch.setattr(
    partitioning, 'make_layout', lambda config=None, devices=None: make(config, jax.devices()[:1])
  )


@pytest.fixture(autouse=True)
def here(monkeypatch):
  from_the_root_on_one_device(monkeypatch)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return finetune_files.glue(tmp_path_factory.mktemp('data') / 'glue')


def config_of(data):
  """Two runs, two seeds, a probe."""
  c = sweep_config.default_config()
  c.name, c.base, c.seeds, c.rows = 'test', micro_run.CONFIG, (0, 1), 24
  c.fields = (
    ('data.source', str(micro_run.corpus())),
    ('data.cache', str(micro_run.shared() / 'cache')),
    ('data.reader', 'numpy'),
    ('compilation_cache', str(micro_run.programs())),
  )
  c.runs = (('small', {}), ('warmer@1', {'objective.temperature': 2, 'steps': 60}))
  c.finetune = (
    (
      'probe',
      FINETUNE,
      {
        'task': 'stsb',
        'frozen': True,
        'data.source': str(data),
        'epochs': 1.0,
        'num_trials': 1,
        'compilation_cache': '',
        'save_every': 100,
      },
    ),
  )
  return c


@pytest.fixture(scope='module')
def measured(data, tmp_path_factory):
  """One job that was stopped before its last part and started again: its line, what the second start printed, the sweep's folder."""
  folder, c = tmp_path_factory.mktemp('sweep'), config_of(data)
  train = runner.train

  def trained_before(
    config, place, notice
  ):  # all but the last of what training does, by another command
    shutil.copytree(micro_run.finished()[0], place)
    text = pathlib.Path(place, 'config.json').read_text()
    pathlib.Path(place, 'config.json').write_text(text.replace('"micro"', json.dumps(config.name)))
    return train(config, place, notice)

  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as shown:
    from_the_root_on_one_device(patch)
    with pytest.MonkeyPatch.context() as stopped:
      stopped.setattr(runner, 'train', trained_before)
      stopped.setattr(runner, 'finetune', lambda *_: PREEMPTED)
      assert (
        runner.sweep(c, str(folder), only='small:0') == PREEMPTED
        and not (folder / 'results').exists()
      )
    shown.truncate(0)
    assert runner.sweep(c, str(folder), only='small:0') == 0
  (line,) = results.read(folder / 'results' / 'small-0.jsonl')
  return line, shown.getvalue(), folder


@pytest.fixture
def stand_ins(measured, monkeypatch):
  """In place of training and measuring: a note of the job, and a line like the one measured, of other figures."""
  begun = []

  def measure(config, job, wanted, place, notice):
    line = copy.deepcopy(measured[0]) | {
      'run': job.run,
      'seed': job.seed,
      **{name: wanted[name] for name in ('fields', 'data', 'rows')},
    }
    line['tasks'] = {
      name: line['tasks'].get(name, line['tasks']['probe']) | task
      for name, task in wanted['tasks'].items()
    }
    line['heldout']['generator_loss']['value'] += 0.25 * job.seed
    line['learned'] = (job.run, job.seed) == ('small', 0)
    return line

  monkeypatch.setattr(runner, 'train', lambda config, place, notice: begun.append(config.name) or 0)
  monkeypatch.setattr(runner, 'measure', measure)
  return begun


def test_a_run_s_line_has_all_that_was_measured(measured, data):
  line, _, folder = measured
  assert (line['run'], line['seed'], line['steps'], line['tokens']) == (
    'small',
    0,
    30,
    30 * 8 * 32,
  ) and min(line['flops'], line['paper_flops']) > 0
  assert (
    line['tasks']['probe']['fields']['frozen'] is True
    and line['tasks']['probe']['task'] == 'stsb'
    and len(line['tasks']['probe']['values']) == 1
  )
  assert line['learned'] is (line['heldout']['gain']['low'] > 0) and line['heldout_rows'] > 16
  assert {'embeddings', 'discriminator', 'generator'} <= set(line['parameters']) and line[
    'seconds'
  ]['pretraining'] > 0
  assert str(data) not in json.dumps(line) and str(micro_run.corpus()) not in json.dumps(
    line
  )  # lines travel
  (result,) = folder.glob('runs/small-0-*/finetune/probe-*/stsb/trial-1/result.json')
  assert json.loads(result.read_text())['figures']['dev']['glue'] == pytest.approx(
    line['tasks']['probe']['values'][0]
  )
  assert not list(folder.glob('runs/*/finetune/*/*/trial-1/checkpoints'))


def test_a_job_that_was_stopped_goes_on_where_it_was(measured):
  assert (
    'all 30 steps were made before' in measured[1]
    and 'evaluated' not in measured[1]
    and 'stsb' in measured[1]
  )
  assert not (measured[2] / 'sweep.md').exists()  # of one job alone; others may be writing theirs


def test_every_run_of_every_seed_is_done_once_and_shown(stand_ins, data, tmp_path, capsys):
  c = config_of(data)
  c.delete_runs = True
  assert runner.sweep(c, str(tmp_path)) == 0
  assert stand_ins == ['small, seed 0', 'small, seed 1', 'warmer@1, seed 0', 'warmer@1, seed 1']
  lines = results.read(tmp_path / results.LINES)
  assert [(line['run'], line['seed']) for line in lines] == [
    ('small', 0),
    ('small', 1),
    ('warmer@1', 0),
    ('warmer@1', 1),
  ]
  assert lines[2]['fields']['objective.temperature'] == 2.0 and lines[2]['fields']['steps'] == 60
  capsys.readouterr()
  assert runner.sweep(c, str(tmp_path)) == 0 and len(stand_ins) == 4  # nothing left to do
  shown = capsys.readouterr().out
  assert '4 done, 0 to do' in shown
  losses = [line['heldout']['generator_loss']['value'] for line in lines[:2]]
  mean, deviation = sum(losses) / 2, abs(losses[0] - losses[1]) / 2**0.5
  row = next(text for text in shown.splitlines() if text.strip().startswith('small'))
  assert (
    f'{mean:.4f} ± {deviation:.4f}' in row and '2 of 2' in row and 'not learned by 1 of 2' in row
  )
  row = next(text for text in shown.splitlines() if text.strip().startswith('warmer'))
  assert row.endswith('not learned')
  page = (tmp_path / 'sweep.md').read_text()
  assert f'{mean:.4f} ± {deviation:.4f} (' in page and '| warmer@1 | 2 of 2 |' in page
  assert (tmp_path / 'sweep.png').stat().st_size > 20_000


def test_objectives_without_a_discriminator_are_not_said_to_have_learned(measured):
  line = measured[0] | {'learned': None}
  shown = results.table(results.summarise([line], ['small']), 3)
  assert 'learned' not in shown and '1 of 3' in shown


def test_figures_of_tasks_are_medians_of_trials_times_100():
  line = {
    'run': 'small',
    'seed': 0,
    'learned': True,
    'heldout': {},
    'tasks': {'probe': {'metric': 'glue', 'values': [0.9, 0.25, 0.125]}},
    **dict.fromkeys(('flops', 'paper_flops', 'tokens'), 1.0),
  }
  (summary,) = results.summarise([line], ['small'])
  assert summary['figures']['probe: glue']['values'] == {0: 25.0}
  assert ' 25.0 ' in results.table([summary], 1)


def test_intervals_are_student_s():
  found = results.spread([1.0, 2.0, 6.0])
  assert found['mean'] == 3 and found['deviation'] == pytest.approx(7**0.5)
  assert found['high'] - 3 == pytest.approx(4.302653 * (7 / 3) ** 0.5) and found[
    'low'
  ] == pytest.approx(6 - found['high'])
  assert results.spread([2.0])['low'] is None and results.spread([])['n'] == 0


def never(monkeypatch):
  def refuse(*_):
    raise AssertionError('a run began')

  monkeypatch.setattr(runner, 'train', refuse)


def test_what_is_known_is_not_done_again_and_what_differs_is(
  stand_ins, data, tmp_path, monkeypatch, capsys
):
  c = config_of(data)
  monkeypatch.setattr(runner, 'show', lambda *_: None)  # takes its time
  assert runner.sweep(c, str(tmp_path / 'first')) == 0
  known = tmp_path / 'known.jsonl'
  known.write_bytes((tmp_path / 'first' / results.LINES).read_bytes())
  never(monkeypatch)
  c.known = (str(known),)
  capsys.readouterr()
  assert runner.sweep(c, str(tmp_path / 'other')) == 0
  assert '4 done, 0 to do' in capsys.readouterr().out
  c.known = ()
  assert runner.sweep(c, str(tmp_path / 'another'), known=(str(known),)) == 0

  c.runs = (('otherwise', c.runs[0][1]), c.runs[1])  # a run of another sweep, say
  jobs = resolve.jobs_of(c)
  found = runner.find_known(tmp_path, jobs, runner.with_data(c, jobs), (str(known),))
  assert sorted(found) == ['otherwise:0', 'otherwise:1', 'warmer@1:0', 'warmer@1:1']
  assert [found['otherwise:1'][name] for name in ('run', 'seed')] == [
    'otherwise',
    1,
  ] and 'config' not in capsys.readouterr().out

  c.runs = (('small', {}), ('warmer@1', c.runs[1][1] | {'optimizer.learning_rate': 2e-3}))
  jobs = resolve.jobs_of(c)
  capsys.readouterr()
  found = runner.find_known(tmp_path, jobs, runner.with_data(c, jobs), (str(known),))
  assert sorted(found) == ['small:0', 'small:1']
  assert (
    'has warmer@1:0 and 1 more of another config (optimizer.learning_rate: 0.001 -> 0.002)'
    in capsys.readouterr().out
  )
  c.finetune = ((*c.finetune[0][:2], c.finetune[0][2] | {'num_trials': 2}),)
  jobs = resolve.jobs_of(c)
  wanted = runner.with_data(c, jobs)
  assert runner.find_known(tmp_path, jobs, wanted, (str(known),)) == {}
  shown = capsys.readouterr().out
  assert 'has small:0 of another config (probe num_trials: 1 -> 2)' in shown
  line = results.read(known)[0]
  assert results.differences(wanted['small:0'] | {'data': 'x', 'rows': 9}, line)[:2] == [
    f"data: {line['data']!r} -> 'x'",
    'rows: 24 -> 9',
  ]


def test_what_cannot_be_is_told_before_any_run(data, tmp_path, monkeypatch):
  never(monkeypatch)

  def told(said, **changes):
    c = config_of(data)
    for name, value in changes.items():
      c[name] = value
    with pytest.raises(UserError, match=said):
      runner.sweep(c, str(tmp_path / 'bad'))

  told(
    "run mlm sets 'objective.temprature', which is not a field; did you mean 'objective.temperature'",
    runs=(('mlm', {'objective.temprature': 1.0}),),
  )
  told(
    'run b sets batch_size to .many.; it must be of type int',
    runs=(('a', {}), ('b', {'batch_size': 'many'})),
  )
  told("run a sets 'seed', which the sweep sets itself", runs=(('a', {'seed': 3}),))
  told('run b: config.steps is 0', runs=(('a', {}), ('b', {'steps': 0})))
  told('config.runs has .a. twice', runs=(('a', {}), ('a', {'steps': 9})))
  told("'a b' cannot be a name", runs=(('a b', {}),))
  told('expected its name and a dict of fields', runs=('a',))
  told('config.runs is empty', runs=())
  told('config.seeds', seeds=(0, 0))
  told('config.base is empty', base='')
  told('cannot be read', base='configs/none.py')
  told('is no config to pretrain with', base=FINETUNE, fields=())
  told("config.fields sets 'stepz'", fields=(('stepz', 1),))
  told('is no config to fine-tune with', finetune=(('cola', micro_run.CONFIG, {}),))
  told(
    "cola of config.finetune sets 'frozzen', which is not a field; did you mean 'frozen'",
    finetune=(('cola', FINETUNE, {'frozzen': True}),),
  )
  told(
    'cola of config.finetune: config.epochs is -1', finetune=(('cola', FINETUNE, {'epochs': -1.0}),)
  )
  told('nowhere', finetune=(('cola', FINETUNE, {'data.source': 'nowhere'}),))
  told('the corpus makes', runs=(('a', {}), ('wide', {'batch_size': 4096})))
  with pytest.raises(UserError, match='--only=small:7 is none'):
    runner.sweep(config_of(data), str(tmp_path / 'bad'), only='small:7')
  (tmp_path / 'broken.jsonl').write_text('{"run": 1}\n')
  with pytest.raises(UserError, match='line 1 of .*broken.jsonl is not the result of a run'):
    runner.sweep(config_of(data), str(tmp_path / 'bad'), known=(str(tmp_path / 'broken.jsonl'),))


def test_the_table_of_jobs_that_wrote_lines_of_their_own(stand_ins, measured, data, tmp_path):
  c = config_of(data)
  for job in ('small:0', 'warmer@1:1'):
    assert runner.sweep(c, str(tmp_path), only=job) == 0
  assert not (tmp_path / 'sweep.md').exists() and not (tmp_path / results.LINES).exists()
  assert runner.sweep(c, str(tmp_path), only='table') == 0 and len(stand_ins) == 2
  page = (tmp_path / 'sweep.md').read_text()
  assert '| small | 1 of 2 |' in page and '| warmer@1 | 1 of 2 |' in page


def test_a_run_that_fails_does_not_take_the_others_with_it(data, tmp_path, monkeypatch, capsys):
  def diverge(config, place, notice):
    if config.seed == 0:
      raise UserError('the step after 3 is not finite')
    return PREEMPTED

  monkeypatch.setattr(runner, 'train', diverge)
  assert runner.sweep(config_of(data), str(tmp_path / 'run')) == PREEMPTED
  assert 'small:0: the step after 3 is not finite' in capsys.readouterr().out
  assert runner.sweep(config_of(data), str(tmp_path / 'run'), only='small:0') == 1


def test_who_asks_to_stop_while_a_run_ends_is_heard(data, tmp_path, monkeypatch):
  def ends(config, place, notice):
    notice.heed()
    os.kill(os.getpid(), signal.SIGTERM)
    return 0

  monkeypatch.setattr(runner, 'train', ends)
  monkeypatch.setattr(runner, 'measure', lambda *_: pytest.fail('went on'))
  assert runner.sweep(config_of(data), str(tmp_path / 'run')) == PREEMPTED


def test_what_is_known_is_shown_though_the_rest_failed(
  stand_ins, measured, data, tmp_path, monkeypatch
):
  assert runner.sweep(config_of(data), str(tmp_path), only='small:0') == 0

  def diverge(*_):
    raise UserError('the step after 3 is not finite')

  monkeypatch.setattr(runner, 'train', diverge)
  assert runner.sweep(config_of(data), str(tmp_path)) == 1
  assert '| small | 1 of 2 |' in (tmp_path / 'sweep.md').read_text()


def test_a_sweep_may_do_without_fine_tuning(data):
  c = config_of(data)
  c.finetune = ()
  assert all(not job.tasks for job in resolve.jobs_of(c))


@pytest.mark.parametrize(
  'path', sorted((micro_run.ROOT / 'configs' / 'sweeps').glob('*.py')), ids=lambda path: path.stem
)
def test_a_shipped_sweep_is_fine_and_says_its_command(path):
  c = resolve.load(f'{path}:texts')
  jobs = resolve.jobs_of(c)
  assert (
    c.name == path.stem
    and len(jobs) == len(c.runs) * 3
    and all(job.config.data.source.startswith('texts/pretrain/') for job in jobs)
  )
  assert f'--mode=sweep --config=configs/sweeps/{path.stem}.py:data' in path.read_text()
  budgets = {}
  for job in jobs:
    budgets.setdefault(resolve.group(job.run), set()).add(job.config.budget_flops)
  top = max(max(of_group) for of_group in budgets.values())
  assert all(
    top in of_group for of_group in budgets.values()
  )  # each is compared with all at the same FLOPs


def test_jobs_are_written_for_slurm_slices_and_shells(data, tmp_path, capsys):
  config = tmp_path / 'sweep.py'
  config.write_text(
    'from sweep_test import config_of\n\ndef get_config(data=""):\n  return config_of(data)\n'
  )
  flags = ['main', '--mode=sweep', f'--config={config}:{data}', '--results', '', '--output']
  for kind, workdir in (
    ('slurm', str(tmp_path / 'a folder')),
    ('shell', str(tmp_path / 'run')),
    ('queued', 'gs://bucket/sweep'),
  ):
    assert main([*flags, str(tmp_path / kind), f'--workdir={workdir}', f'--jobs={kind}']) == 0, (
      capsys.readouterr().err
    )
    text = (tmp_path / kind / 'jobs.sh').read_text()
    subprocess.run(['bash', '-n', str(tmp_path / kind / 'jobs.sh')], check=True)
    commands = [shlex.split(line) for line in text.splitlines() if '--only=' in line]
    assert len(commands) == 4
    for words, job in zip(
      commands, ('small:0', 'small:1', 'warmer@1:0', 'warmer@1:1'), strict=True
    ):
      assert {
        f'--only={job}',
        f'--workdir={workdir}',
        f'--config={config}:{data}',
        '--mode=sweep',
      } < set(words)
      assert not [word for word in words if word.startswith(('--jobs', '--output'))]
    assert '--only=table' in (tmp_path / kind / 'table.sh').read_text()
    if kind == 'slurm':  # the launch script takes the command as it is
      assert all(words[0] == 'sbatch' and 'launch/slurm.sbatch' in words for words in commands)
      out = subprocess.run(
        [
          'bash',
          'launch/slurm.sbatch',
          '--dry-run',
          *commands[0][commands[0].index('launch/slurm.sbatch') + 1 :],
        ],
        capture_output=True,
        text=True,
      )
      assert (
        out.returncode == 0 and '--only=small:0' in out.stdout and '--distributed' not in out.stdout
      )
    if kind == 'queued':
      names = [words[2] for words in commands]
      assert len(set(names)) == 4 and names[2] == 'test-warmer-1-0'
      options, command = (
        commands[0][3 : commands[0].index('--')],
        commands[0][commands[0].index('--') : commands[0].index('>')],
      )
      assert '--topology=$topology' in options and '--delete-when-done' in options
      out = subprocess.run(
        ['bash', 'launch/tpu.sh', 'run', names[0], '--zone=z', '--dry-run', *command],
        capture_output=True,
        text=True,
      )
      assert out.returncode == 0 and '--only=small:0' in out.stdout, out.stderr
  assert main([*flags, str(tmp_path / 'x'), '--workdir=runs/x', '--jobs=queued']) == 1
  assert 'name a bucket' in capsys.readouterr().err
  assert main(['main', '--mode=sweep', f'--config={config}', '--jobs=slurm']) == 1
  assert '--jobs and --output belong together' in capsys.readouterr().err
  assert main(['main', '--mode=sweep', '--config=configs/tiny.py']) == 1
  assert 'this one is to pretrain with' in capsys.readouterr().err

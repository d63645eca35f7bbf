"""A run whose corpus has no held-out rows trains to its end; other modes say what they lack."""

import json
import pathlib

import micro_run
import pytest

import electra_jax
from electra_jax.training import checkpoints

SHORT = ('--config.steps=10', '--config.data.heldout_fraction=0')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run') / 'run'
  out, _ = micro_run.run(*micro_run.arguments(workdir, *SHORT))
  return workdir, out


def test_training_needs_no_held_out_rows(trained):
  workdir, out = trained
  assert 'has no held-out rows' in out and 'the last counts as the best' in out
  assert '--mode=report' in out and '--mode=evaluate' not in out
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert {line['kind'] for line in lines} == {'train'} and lines[-1]['step'] == 10
  assert json.loads((workdir / 'status.json').read_text())['state'] == 'finished'


def test_the_last_checkpoint_is_the_best(trained):
  workdir, _ = trained
  assert checkpoints.find_step(workdir, 'best') == checkpoints.find_step(workdir, 'last') == 10
  assert electra_jax.load(workdir, step='best')(['ba ko ti']).hidden_states.size


@pytest.mark.parametrize('mode', ['evaluate', 'inspect', 'timeline'])
def test_modes_that_read_held_out_rows_are_one_sentence(trained, mode):
  workdir, _ = trained
  _, err = micro_run.run(f'--mode={mode}', f'--workdir={workdir}', status=1)
  assert 'has no held-out rows' in err and 'heldout_fraction above 0' in err
  assert len(err.strip().splitlines()) == 1


def test_a_report_is_written(trained):
  workdir, _ = trained
  micro_run.run('--mode=report', f'--workdir={workdir}')
  page = pathlib.Path(workdir, 'report.html').read_text()
  assert 'has no held-out rows' in page and 'Step 10' in page or 'step 10' in page

"""Phases have their own rows, batches and schedules, and one state, also in resumed runs."""

import json
import pathlib
import shutil
import signal

import jax
import micro_run
import numpy as np
import pytest

import electra_jax
from electra_jax import main
from electra_jax.config import checked_pretraining, phases_of
from electra_jax.errors import PREEMPTED
from electra_jax.pretrain import build

CONFIG = 'tests/configs/micro_phases.py'  # 12 steps of 8 x 32, then 9 of 6 x 64, LAMB
FIRST, LAST = 12, 21


def arguments(workdir):
  return micro_run.arguments(workdir, '--config.keep=100', config=CONFIG)


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> tuple[pathlib.Path, str]:
  """The folder of a run that was never stopped, and its output."""
  workdir = tmp_path_factory.mktemp('phases') / 'whole'
  return workdir, micro_run.run(*arguments(workdir))[0]


def assert_same(workdir, whole):
  assert (
    micro_run.differing(micro_run.checkpoint(workdir, LAST), micro_run.checkpoint(whole, LAST))
    == []
  )
  assert micro_run.figures(workdir) == micro_run.figures(whole)


def test_both_phases_train_and_tokens_add_up(whole):
  workdir, out = whole
  assert 'steps 0+     12 steps of 8 x 32' in out and 'steps 12+    9 steps of 6 x 64' in out
  assert out.index('phase 1 of 2: 12 steps of 8 x 32') < out.index(
    'phase 2 of 2: 9 steps of 6 x 64'
  )
  lines = micro_run.figures(workdir)
  assert [line['step'] for line in lines if line['kind'] == 'train'] == [1, 3, 6, 9, 12, 15, 18, 21]
  assert [line['step'] for line in lines if line['kind'] == 'heldout'] == [
    8,
    12,
    16,
    21,
  ]  # at the end of each phase too
  for line in lines:
    assert (
      line['tokens'] == min(line['step'], FIRST) * 8 * 32 + max(0, line['step'] - FIRST) * 6 * 64
    )
  assert json.loads((workdir / 'resolved.json').read_text())['micro_batches'] == [1, 1]


def test_the_state_is_kept_across_phases_and_counts_all_steps(whole):
  workdir, _ = whole
  assert micro_run.checkpoint_steps(workdir) == [4, 8, 12, 16, 20, 21]
  last = micro_run.checkpoint(workdir, LAST)
  counts = [
    int(value)
    for name, value in last.items()
    if name.startswith('opt_state/') and value.dtype == np.int32
  ]
  assert last['counters/step'] == LAST and counts and set(counts) == {LAST}


def test_each_phase_has_its_own_schedule(whole):
  workdir, _ = whole
  config = checked_pretraining(main.parse_flags(['main', f'--config={CONFIG}']).config)
  _, schedule = build.build_optimizer(config)
  assert schedule(0) == schedule(FIRST) == schedule(LAST) == 0
  assert min(schedule(i) for i in (*range(1, FIRST), *range(FIRST + 1, LAST))) > 0
  for line in micro_run.figures(workdir):
    if line['kind'] == 'train':
      assert line['learning_rate'] == pytest.approx(float(schedule(line['step'] - 1)), abs=1e-12)
  # The peak is the full rate.
  config = config.replace({'optimizer.decay_after_warmup': True})
  _, schedule = build.build_optimizer(config)
  rates = [float(schedule(i)) for i in range(LAST)]
  assert np.argmax(rates[:FIRST]) == 2 and rates[2] == pytest.approx(1e-3)
  assert np.argmax(rates[FIRST:]) == 3 and rates[FIRST + 3] == pytest.approx(5e-4)


@pytest.mark.faults
def test_a_run_killed_in_one_phase_and_stopped_in_another_ends_equally(whole, tmp_path):
  workdir = tmp_path / 'stopped'
  process = micro_run.start(*arguments(workdir))
  micro_run.wait_for(lambda: micro_run.last_step(workdir) >= 6, process)
  process.kill()
  process.communicate()
  killed = micro_run.checkpoint_steps(workdir)[-1]
  assert 0 < killed < FIRST

  process = micro_run.start(*arguments(workdir))
  micro_run.wait_for(lambda: micro_run.last_step(workdir) >= FIRST, process)
  process.send_signal(signal.SIGTERM)  # while the second phase compiles
  out, err = process.communicate(timeout=300)
  stopped = micro_run.checkpoint_steps(workdir)[-1]
  assert process.returncode == PREEMPTED and not err and FIRST < stopped < LAST
  assert f'restored     step {killed}' in out and f'asked to stop: saved step {stopped}' in out

  out, _ = micro_run.run(*arguments(workdir))
  assert f'restored     step {stopped}' in out and 'phase 1 of 2' not in out
  assert_same(workdir, whole[0])


@pytest.mark.parametrize('last', [FIRST - 4, FIRST], ids=['in the first phase', 'between'])
def test_a_run_resumes_in_the_phase_of_its_last_checkpoint(last, whole, tmp_path):
  workdir = tmp_path / 'resumed'
  shutil.copytree(whole[0], workdir)
  for step in micro_run.checkpoint_steps(workdir):
    if step > last:
      shutil.rmtree(workdir / 'checkpoints' / str(step))
  out, _ = micro_run.run(*arguments(workdir))
  assert f'restored     step {last}' in out and 'phase 2 of 2' in out
  assert ('phase 1 of 2' in out) == (last < FIRST)
  assert_same(workdir, whole[0])


def test_a_finished_run_reports_that_it_is_finished(whole):
  before = micro_run.figures(whole[0])
  assert f'all {LAST} steps were made before' in micro_run.run(*arguments(whole[0]))[0]
  assert micro_run.figures(whole[0]) == before


def test_a_checkpoint_is_opened_with_the_rows_of_its_phase(whole):
  workdir, _ = whole
  for step, length in ((8, 32), (FIRST, 32), (16, 64), ('last', 64)):
    run = electra_jax.load(str(workdir), str(step))
    assert run.config.sequence_length == run.heldout.length == length
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(run.params))
  micro_run.run('--mode=evaluate', f'--workdir={workdir}')
  found = json.loads((workdir / 'evaluation.json').read_text())
  last = micro_run.figures(workdir)[-1]
  assert found['step'] == last['step'] == LAST
  assert found['figures']['total_loss']['value'] == pytest.approx(last['total_loss'], rel=1e-5)


def test_only_checkpoints_of_the_last_phase_can_be_the_best(whole):
  workdir, _ = whole
  found = {
    line['step']: line['reference_ap']
    for line in micro_run.figures(workdir)
    if line['kind'] == 'heldout' and line['step'] > FIRST
  }
  assert electra_jax.load(str(workdir), 'best').step == max(found, key=found.get)
  for step in micro_run.checkpoint_steps(workdir):
    scored = (workdir / 'checkpoints' / str(step) / 'metrics').exists()
    assert scored == (step in found)


def test_phases_split_the_steps():
  config = checked_pretraining(main.parse_flags(['main', f'--config={CONFIG}']).config)
  first, second = phases_of(config)
  assert (first.first, first.last, second.first, second.last) == (0, FIRST, FIRST, LAST)
  assert [
    (p.config.steps, p.config.batch_size, p.config.sequence_length) for p in (first, second)
  ] == [(12, 8, 32), (9, 6, 64)]
  assert [p.config.optimizer.warmup_steps for p in (first, second)] == [
    2,
    3,
  ] and second.config.phases == ()
  # Fields that a phase does not set are those of the config, which does not change.
  assert (
    first.config.optimizer.name == second.config.optimizer.name == 'lamb'
    and first.config.seed == config.seed
  )
  assert config.steps == LAST and config.batch_size == 8 and len(config.phases) == 2
  whole = main.parse_flags(['main', f'--config={micro_run.CONFIG}']).config
  (alone,) = phases_of(checked_pretraining(whole))
  assert (alone.first, alone.last, alone.config.steps) == (0, 30, 30)

"""The parts that both training loops use: steps in flight, interval times, saving, failures."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax.errors import UserError
from electra_jax.training import checkpoints, metrics_writer, partitioning, step_loop
from electra_jax.training.step_loop import IntervalTimer, RunRecorder, StepRunner, SumFunctions
from electra_jax.training.update_step import TrainState, no_skips


class Clock:
  """Replaces `time`: it advances only when told to."""

  def __init__(self):
    self.now = 100.0

  def perf_counter(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(step_loop, 'time', clock)
  return clock


def test_something_is_due_at_multiples_and_at_the_last_step():
  assert [step for step in range(1, 8) if step_loop.is_due(step, 3, 7)] == [3, 6, 7]


def test_pauses_do_not_count_for_the_interval(clock):
  timer = IntervalTimer(first=10)
  clock.now += 4
  with timer.waiting_for_input():
    clock.now += 1
  with timer.paused():
    clock.now += 50
  clock.now += 5
  interval = timer.end_interval(20)
  assert (interval.steps, interval.seconds, interval.input_wait) == (10, 10.0, 0.1)
  clock.now += 10
  interval = timer.end_interval(25)
  assert (interval.steps, interval.seconds, interval.input_wait) == (5, 10.0, 0.0)


@pytest.fixture
def runner():
  """A runner of steps that add 1 to the parameter, and report twice the step."""
  zero = jnp.zeros([], jnp.int32)
  state = TrainState(zero, {'x': jnp.zeros(2)}, {}, zero + 3, zero - 1, no_skips())
  shapes = {'steps': zero, 'loss': jnp.zeros(())}
  functions = SumFunctions(shapes, partitioning.make_mesh(jax.devices()[:1]))
  return StepRunner(state, functions.zeros(), functions)


@jax.jit
def train_step(state, batch):
  sums = {'steps': jnp.ones([], jnp.int32), 'loss': 2.0 * batch}
  new = state._replace(step=state.step + 1, params={'x': state.params['x'] + 1})
  return new, sums


def test_sums_add_up_and_start_anew(runner):
  for value in (1.0, 2.0, 3.0):
    runner.take_step(train_step, value)
  taken = runner.take_sums()
  assert (int(taken.sums['steps']), float(taken.sums['loss'])) == (3, 12.0)
  assert (taken.skipped, taken.bad_step) == (3, -1)
  runner.take_step(train_step, 5.0)
  assert float(runner.take_sums().sums['loss']) == 10.0
  np.testing.assert_array_equal(runner.state.params['x'], [4.0, 4.0])


@pytest.fixture
def recorder():
  """A recorder whose parts only remember what they were asked for."""
  calls = []
  status = types.SimpleNamespace(
    progress=lambda *args, **kwargs: calls.append(('status', args)),
    check_held=lambda read=False: None,
  )
  manager = types.SimpleNamespace(
    directory='here', wait_until_finished=lambda: None, latest_step=lambda: 40
  )
  recorder = RunRecorder(
    manager, metrics_writer.NoWriter(), status, checkpoints.Criterion('f1', 'max')
  )
  return recorder, calls


def test_a_failure_names_the_tensor_and_the_checkpoint_that_is_kept(recorder):
  recorder, _ = recorder
  recorder.check_finite(-1, lambda step: pytest.fail('every step was finite'))
  with pytest.raises(UserError) as error:
    recorder.check_finite(41, lambda step: f'the gradient of x of {step}', 'trial 2 of cola: ')
  assert str(error.value).startswith(
    'trial 2 of cola: the step after 41 is not finite, first in the gradient of x of 41; the '
    'checkpoint of step 40 is kept; '
  )


def test_too_many_skipped_updates_stop_with_their_limits_and_the_checkpoint(recorder):
  recorder, _ = recorder
  with pytest.raises(UserError) as error:
    recorder.check_finite(61, pytest.fail, 'trial 2 of cola: ', skips=True)
  assert str(error.value).startswith(
    'trial 2 of cola: by the step after 61, 20 updates in a row or more than 10 of the last 1,000 '
    'were skipped because their loss or gradient was not finite; the checkpoint of step 40 is kept;'
  )


def test_skipped_updates_are_printed_when_there_are_new_ones():
  assert step_loop.skipped_line(3, 3) is None
  assert step_loop.skipped_line(3, 5).split() == (
    'skipped 2 updates that were not finite, 5 so far'.split()
  )


@pytest.mark.parametrize('value', [0.5, None])
def test_a_checkpoint_is_saved_with_its_metric(recorder, runner, monkeypatch, value):
  recorder, calls = recorder
  monkeypatch.setattr(checkpoints, 'save', lambda *args: calls.append(('save', args[1], args[4])))
  recorder.save(7, runner, value)
  assert calls == [('save', 7, value), ('status', (7,))]


def test_training_metrics_carry_the_time_of_training_so_far(recorder):
  recorder, calls = recorder
  interval = step_loop.Interval(steps=5, seconds=2.0, input_wait=0.0)
  recorder.log_training(5, {'loss': 1.0}, interval)
  written = recorder.log_training(10, {'loss': 0.5}, interval)
  assert written == {'loss': 0.5, 'seconds': 4.0}
  assert calls == [('status', (5,)), ('status', (10,))]

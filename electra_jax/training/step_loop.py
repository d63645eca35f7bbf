"""What the loops of pretraining and fine-tuning share: steps, timing, logging and saving.

The loops themselves are in pretrain/phase_loop.py and finetune/trial.py. They take steps with a
`StepRunner`, measure time with an `IntervalTimer`, and write metrics, status and checkpoints with a
`RunRecorder`.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from electra_jax import file_access
from electra_jax.errors import UserError
from electra_jax.training import checkpoints, partitioning
from electra_jax.training.metrics_writer import MetricsWriter, NoWriter
from electra_jax.training.saving import CheckpointSaver
from electra_jax.training.status import Status
from electra_jax.training.trackers.tracker import Outcome
from electra_jax.training.update_step import MOST_IN_A_ROW, MOST_IN_WINDOW, WINDOW, TrainState

PyTree = Any
TrainStep = Callable[[TrainState, PyTree], tuple[TrainState, PyTree]]


def is_due(step: int, every: int, last: int) -> bool:
  """Whether something that happens every `every` steps, and at the last one, happens now."""
  return step % every == 0 or step == last


#### Steps ####


class SumFunctions:
  """Jitted functions of the sums that training steps return.

  Attributes:
    shapes: shapes and types of the sums.
    zeros: `() -> sums`, replicated over the mesh.
    add: `(total, sums) -> total`; the first argument is donated.
  """

  def __init__(self, shapes: PyTree, mesh: jax.sharding.Mesh) -> None:
    """Makes the functions.

    Args:
      shapes: shapes and types of the sums of a step.
      mesh: mesh of the run.
    """
    self.shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
    self.zeros = jax.jit(self._zeros, out_shardings=partitioning.replicated(mesh))
    self.add = jax.jit(_add, donate_argnums=0)

  def _zeros(self) -> PyTree:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.shapes)


def _add(total: PyTree, sums: PyTree) -> PyTree:
  return jax.tree.map(jnp.add, total, sums)


@dataclasses.dataclass(frozen=True)
class IntervalSums:
  """Sums of the steps since the last log line, on the host.

  Attributes:
    sums: sums of the steps, NumPy arrays.
    skipped: steps of the run that were skipped because they were not finite.
    bad_step: the step that was not finite and stops the run, or -1.
  """

  sums: dict[str, Any]
  skipped: int
  bad_step: int


class StepRunner:
  """Takes training steps and adds up what they return.

  One step stays in flight: the devices are never idle, and the host is at most one step ahead.

  Attributes:
    state: state after the last step.
    sums: sums of the steps since `take_sums`.
  """

  def __init__(self, state: TrainState, sums: PyTree, functions: SumFunctions) -> None:
    """Starts from a state.

    Args:
      state: state before the next step.
      sums: sums of the steps since the last log line, from a checkpoint or zeros.
      functions: functions of the sums.
    """
    self.state = state
    self.sums = sums
    self._functions = functions
    self._in_flight: jax.Array | None = None

  def take_step(self, train_step: TrainStep, batch: PyTree) -> None:
    """Starts a step and waits for the one before it."""
    self.state, step_sums = train_step(self.state, batch)
    self.sums = self._functions.add(self.sums, step_sums)
    self.wait()
    self._in_flight = step_sums['steps']

  def wait(self) -> None:
    """Waits until the last step that was started is done."""
    if self._in_flight is not None:
      jax.block_until_ready(self._in_flight)

  def take_sums(self) -> IntervalSums:
    """Waits for the last step, returns the sums and starts new ones."""
    sums, skipped, bad_step = jax.device_get((self.sums, self.state.skipped, self.state.bad_step))
    self.sums = self._functions.zeros()
    return IntervalSums(sums, int(skipped), int(bad_step))

  def skipped(self) -> int:
    """Waits for the last step; returns the number of updates that were skipped so far."""
    return int(jax.device_get(self.state.skipped))

  def bad_step(self) -> int:
    """Waits for the last step; returns the step that was not finite, or -1."""
    return int(jax.device_get(self.state.bad_step))


def skipped_line(before: int, now: int) -> str | None:
  """A line for the console on updates that were skipped since the last one; None for none.

  Args:
    before: updates that were skipped up to the last line.
    now: updates that were skipped so far.
  """
  if now == before:
    return None
  return f'  {"skipped":12} {now - before:,} updates that were not finite, {now:,} so far'


#### Time ####


@dataclasses.dataclass(frozen=True)
class Interval:
  """Time between two log lines, without evaluation and saving.

  Attributes:
    steps: steps taken.
    seconds: time that they took.
    input_wait: share of the time in which the host waited for input.
  """

  steps: int
  seconds: float
  input_wait: float


class IntervalTimer:
  """Measures the time of training steps, without the time for evaluation and saving."""

  def __init__(self, first: int) -> None:
    """Starts the clock.

    Args:
      first: steps that were taken before.
    """
    self._first = first
    self._waited = 0.0
    self._start = time.perf_counter()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves out the time of a `with` block."""
    before = time.perf_counter()
    try:
      yield
    finally:
      self._start += time.perf_counter() - before

  @contextlib.contextmanager
  def waiting_for_input(self) -> Iterator[None]:
    """Counts the time of a `with` block as waiting for input."""
    before = time.perf_counter()
    yield
    self._waited += time.perf_counter() - before

  def end_interval(self, step: int) -> Interval:
    """Ends the interval after `step` and starts the next one."""
    now = time.perf_counter()
    seconds = now - self._start
    interval = Interval(step - self._first, seconds, self._waited / seconds)
    self._first = step
    self._start = now
    self._waited = 0.0
    return interval


#### Files ####


class RunRecorder:
  """Writes the metrics, the status and the checkpoints of a run or trial.

  Attributes:
    manager: manager of the checkpoints.
    writer: writer of metrics.jsonl and TensorBoard's files.
    status: status file of the run.
    best_by: how the best checkpoint is chosen.
  """

  def __init__(
    self,
    manager: ocp.CheckpointManager,
    writer: MetricsWriter | NoWriter,
    status: Status,
    best_by: checkpoints.Criterion = checkpoints.HELDOUT_LOSS,
  ) -> None:
    """Takes what is open already.

    Args:
      manager: manager of the checkpoints.
      writer: writer of the metrics.
      status: status file of the run.
      best_by: how the best checkpoint is chosen.
    """
    self.manager = manager
    self.writer = writer
    self.status = status
    self.best_by = best_by
    self._saver = CheckpointSaver(manager, best_by)

  def log_training(
    self, step: int, metrics: Mapping[str, float], interval: Interval
  ) -> dict[str, float]:
    """Writes the training metrics of an interval and the progress of the run.

    Args:
      step: steps that were taken.
      metrics: metrics of the interval.
      interval: time of the interval.

    Returns:
      The metrics with `seconds`, the time of training so far.

    Raises:
      UserError: another process has taken the run's folder.
    """
    self.status.check_held()
    self.writer.seconds += interval.seconds
    written = {**metrics, 'seconds': self.writer.seconds}
    self.writer.write('train', step, written)
    self.status.progress(step)
    return written

  def log_evaluation(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
    """Writes evaluation metrics.

    Args:
      kind: 'heldout' or 'dev'.
      step: steps that were taken.
      metrics: the metrics.
    """
    self.status.check_held()
    self.writer.write(kind, step, {**metrics, 'seconds': self.writer.seconds})

  def save(self, step: int, runner: StepRunner, value: float | None) -> str | None:
    """Starts to save a checkpoint. The caller checks first that the state is finite.

    Args:
      step: steps that were taken.
      runner: holds the state and the sums to save.
      value: metric that the best checkpoint is chosen by; None if it was not computed at this step.
        A value that is not finite counts as not computed.

    Returns:
      A sentence if metrics could not be written to a bucket yet, else None.

    Raises:
      UserError: another process has taken the run's folder.
    """
    self.status.check_held(read=True)
    trouble = self.writer.keep()
    self._saver.save(step, runner.state, runner.sums, value)
    self.status.progress(step, saved=True)
    return trouble

  def poll(self, step: int, runner: StepRunner) -> None:
    """Notices a save that has failed, and starts another one when it is due.

    To be called after every step. What is saved then is the state after this step, if it is finite.

    Args:
      step: steps that were taken.
      runner: holds the state and the sums to save.

    Raises:
      UserError: several attempts to save failed.
    """
    if self._saver.is_due() and runner.bad_step() < 0:
      self._saver.save(step, runner.state, runner.sums, None)

  def check_finite(
    self,
    bad_step: int,
    find_tensor: Callable[[int], str],
    subject: str = '',
    skips: bool = False,
  ) -> None:
    """Stops the run if a step was not finite. The state is still the one before that step.

    Args:
      bad_step: the step that was not finite, or that passed the limits of skipped updates; or -1.
      find_tensor: names the first tensor of a step that is not finite.
      subject: start of the message, such as 'trial 1 of cola: '.
      skips: whether such updates are skipped, up to the limits of training/update_step.py.

    Raises:
      UserError: a step was not finite, or too many updates were skipped.
    """
    if bad_step < 0:
      return
    tensor = '' if skips else find_tensor(bad_step)
    self.writer.keep()
    with contextlib.suppress(file_access.Unwritable):  # what is reported is the step
      checkpoints.wait(self.manager)
    kept = self.manager.latest_step()
    checkpoint = (
      f'the checkpoint of step {kept:,} is kept' if kept else 'no checkpoint has been saved yet'
    )
    if skips:
      raise UserError(
        f'{subject}by the step after {bad_step:,}, {MOST_IN_A_ROW} updates in a row or more than '
        f'{MOST_IN_WINDOW} of the last {WINDOW:,} were skipped because their loss or gradient was '
        f'not finite; {checkpoint}; lower config.optimizer.learning_rate and start in another '
        '--workdir.'
      )
    raise UserError(
      f'{subject}the step after {bad_step:,} is not finite, first in {tensor}; {checkpoint}; lower '
      'config.optimizer.learning_rate and start in another --workdir, or skip such steps with '
      '--config.skip_nonfinite=True.'
    )

  def finish(self, step: int, runner: StepRunner) -> None:
    """Waits until the last save is complete, and repeats it where it fails.

    Args:
      step: steps that were taken.
      runner: holds the state and the sums to save.

    Raises:
      UserError: several attempts to save failed.
    """
    self._saver.finish(step, runner.state, runner.sums)
    self.status.progress(step, saved=True)

  def close(self, outcome: Outcome = 'finished') -> None:
    """Closes the checkpoints and the metrics.

    Args:
      outcome: 'stopped' where the run will be resumed.
    """
    self.manager.close()
    self.writer.close(outcome)

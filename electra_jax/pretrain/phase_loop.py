"""The training loop of one phase of pretraining."""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from electra_jax import console
from electra_jax.config import Phase
from electra_jax.data.prepare.preparation import Prepared
from electra_jax.data.store.row_batches import batches, read_batch
from electra_jax.pretrain import build, evaluation, metrics, pretrain_step
from electra_jax.pretrain.console_table import MetricsTable
from electra_jax.pretrain.objectives.objective import Objective
from electra_jax.training import hosts, partitioning, run_folder
from electra_jax.training.preemption import Agreement, Notice
from electra_jax.training.progress import PeakFlops
from electra_jax.training.step_loop import (
  IntervalTimer,
  RunRecorder,
  StepRunner,
  TrainStep,
  is_due,
  skipped_line,
)

PHASE_SEEDS = 1_000_003  # distance between the seeds of the order of rows in two phases


@dataclasses.dataclass(frozen=True)
class PhasePlan:
  """What the loop needs to know of a phase.

  Attributes:
    number: number of the phase, from 0.
    is_last: whether no phase follows.
    phase: config and steps of the phase.
    prepared: rows to train on and held-out rows.
    program: model, objective and optimizer.
    train_step: the compiled step.
    micro_batches: micro-batches of the compiled step.
    step_flops: FLOPs of one step.
    peak: peak of all devices.
    tokens_before: tokens of the phases before.
    evaluate_first: whether to evaluate before the first step, as for imported weights.
  """

  number: int
  is_last: bool
  phase: Phase
  prepared: Prepared
  program: build.Program
  train_step: TrainStep
  micro_batches: int
  step_flops: float
  peak: PeakFlops
  tokens_before: int
  evaluate_first: bool


def training_metrics(
  objective: Objective,
  sums: Mapping[str, Any],
  scheduled: Mapping[str, Callable[[int], Any]],
  step: int,
) -> dict[str, float]:
  """Training metrics of the steps since the last log line.

  Args:
    objective: of the run.
    sums: sums of the steps.
    scheduled: name -> function of the step, for learning rates and scheduled settings.
    step: steps that were taken.

  Returns:
    The metrics of the objective; means over steps of the loss and the norms; and the scheduled
    values of the last step. Metrics are nan if every step was skipped.
  """
  count = int(sums['steps'])
  means = {
    name: float(value) / max(count, 1)
    for name, value in sums.items()
    if name == 'loss' or '_norm/' in name
  }
  others = {name: x for name, x in sums.items() if name not in means and name != 'steps'}
  found: dict[str, float] = means | objective.compute_metrics(others)
  if not count:
    found = dict.fromkeys(found, math.nan)
  return found | {name: float(value(step - 1)) for name, value in scheduled.items()}


def train_phase(
  plan: PhasePlan,
  runner: StepRunner,
  recorder: RunRecorder,
  notice: Notice,
  first: int,
  workdir: epath.Path,
) -> bool:
  """Takes the steps of a phase that are left.

  Args:
    plan: the phase.
    runner: holds the state after `first` steps, and then after the last step.
    recorder: writes metrics, status and checkpoints.
    notice: true once this process is asked to stop.
    first: steps of the run that were taken.
    workdir: folder of the run, for a profile.

  Returns:
    Whether the run was asked to stop before its end.

  Raises:
    UserError: a loss or gradient is not finite.
  """
  return _PhaseLoop(plan, runner, recorder, first, workdir).run(notice)


def _reads_with_tf(reader: str) -> bool:
  """Whether tf.data reads batches, for a value of config.data.reader.

  On CPU the NumPy reader is faster: it starts in 5 ms instead of 48 and reads twice as many rows.
  """
  if reader == 'auto':
    has_tf = importlib.util.find_spec('tensorflow') is not None
    return has_tf and jax.devices()[0].platform != 'cpu'
  return reader == 'tf'


class _PhaseLoop:
  """The state of the loop. Steps are counted over the run, not over the phase."""

  def __init__(
    self,
    plan: PhasePlan,
    runner: StepRunner,
    recorder: RunRecorder,
    first: int,
    workdir: epath.Path,
  ) -> None:
    p = plan.program
    self.plan = plan
    self.runner = runner
    self.recorder = recorder
    self.first = first
    self.last = plan.phase.last
    self.config = p.config
    self.mesh = p.layout.mesh
    self.data_seed = p.config.seed + PHASE_SEEDS * plan.number
    self.eval_step = pretrain_step.jit_eval_step(
      p.model, p.objective, p.settings, p.layout, seed=evaluation.EVAL_SEED
    )
    self.heldout = None  # where config.data.heldout_fraction is 0
    if plan.prepared.heldout is not None:
      self.heldout = evaluation.heldout(
        plan.prepared.heldout,
        p.settings,
        limit=self.config.eval_rows,
        sources=plan.prepared.heldout_sources,
        by_documents=False,
      )
    self.table = MetricsTable(p.objective.columns, plan.peak)
    self.profiler = _Profiler(p.config.profile_steps, workdir / 'profile')
    self.timer = IntervalTimer(first)
    self.collapse_reported = False
    self.skipped = runner.skipped()

  def run(self, notice: Notice) -> bool:
    """Takes the steps; see `train_phase`."""
    plan, runner = self.plan, self.runner
    agreed = Agreement(self.mesh)
    constants = partitioning.replicate(plan.program.inputs, self.mesh)
    rows = self._batches()
    notice.heed()
    per_step = self.config.batch_size * self.config.sequence_length
    with console.progress('training', self.last - self.first, 'tokens', per_step) as live:
      if plan.evaluate_first:
        with live.phase('evaluating'):
          self._evaluate(self.first)
      self.timer = IntervalTimer(self.first)
      for index in range(self.first, self.last):
        self.profiler.before_step(index)
        with self.timer.waiting_for_input():
          token_ids = next(rows)
        batch = {
          'token_ids': partitioning.global_batch(token_ids, self.mesh, self.config.batch_size),
          'schedules': constants,
        }
        runner.take_step(plan.train_step, batch)
        stop = agreed(bool(notice))
        step = index + 1
        live(step - self.first, f'step {step:,} of {self.last:,}')
        if written := self.profiler.after_step(step, self.last, runner):
          console.line(written)

        if step == 1 or is_due(step, self.config.log_every, self.last):
          self._log(step, live)
        value = None
        if is_due(step, self.config.eval_every, self.last):
          with live.phase('evaluating'), self.timer.paused():
            value = self._evaluate(step)
        if stop or is_due(step, self.config.save_every, self.last):
          with live.phase('saving'), self.timer.paused():
            self._save(step, value)
        else:
          self.recorder.poll(step, runner)
        if stop and not (step == self.last and plan.is_last):
          self.recorder.finish(step, runner)
          console.line(
            f'  asked to stop: saved step {step:,}; the same command resumes from there',
            always=True,
          )
          return True
    return False

  def _batches(self) -> Iterator[np.ndarray]:
    config = self.config
    return batches(
      self.plan.prepared.train,
      config.batch_size,
      self.data_seed,
      self.first - self.plan.phase.first,
      config.steps,
      rows=partitioning.process_rows(self.mesh, config.batch_size),
      use_tf=_reads_with_tf(config.data.reader),
    )

  def _tokens(self, step: int) -> int:
    """Tokens of the run, padding included, after `step` steps."""
    per_step = self.config.batch_size * self.config.sequence_length
    return self.plan.tokens_before + (step - self.plan.phase.first) * per_step

  def _log(self, step: int, live: console.Progress) -> None:
    p, peak = self.plan.program, self.plan.peak
    taken = self.runner.take_sums()
    self._check_finite(taken.bad_step)
    if line := skipped_line(self.skipped, taken.skipped):
      console.line(line, always=True)
    self.skipped = taken.skipped
    interval = self.timer.end_interval(step)
    steps_per_second = interval.steps / interval.seconds
    found = training_metrics(p.objective, taken.sums, p.rates | p.schedules, step) | {
      'skipped': taken.skipped,
      'tokens': self._tokens(step),
      'tokens_per_second': steps_per_second * self.config.batch_size * self.config.sequence_length,
      'utilisation': steps_per_second * self.plan.step_flops / peak.flops
      if peak.flops
      else math.nan,
      'input_wait': interval.input_wait,
    }
    found = self.recorder.log_training(step, found, interval)
    for line in self.table.training(step, found, live.seconds_left()):
      console.line(line)
    self._report_collapse(step, found)

  def _report_collapse(self, step: int, found: dict[str, float]) -> None:
    """Reports once, after the warm-up, that the discriminator answers 'original' only."""
    config = self.config
    early = step < max(config.optimizer.warmup_steps, 10 * config.log_every)
    judges = self.plan.program.objective.trains_discriminator
    if self.collapse_reported or early or not judges or not metrics.answers_original(found):
      return
    self.collapse_reported = True
    console.line(
      '  the discriminator answers "original" to every token so far, which is usual early in '
      'training; if it stays, try a weaker generator (--config.generator.hidden_fraction), a lower '
      'learning rate or a longer warm-up',
      always=True,
    )

  def _evaluate(self, step: int) -> float | None:
    """Evaluates on held-out rows.

    Returns:
      The metric that the best checkpoint is chosen by, of a mixture the weighted one; None if the
      checkpoint does not compete: while only the generator is trained, before the last phase
      unless config.best_phases is 'all', and without held-out rows.
    """
    if self.heldout is None:
      return None
    shards = partitioning.row_shards(self.mesh)
    sums = evaluation.heldout_sums(
      self.eval_step,
      self.runner.state.params,
      self.heldout,
      batch_size=-(-self.config.eval_batch_size // shards) * shards,
      mesh=self.mesh,
    )
    settings = self.plan.program.settings
    found = evaluation.heldout_metrics(sums, settings)
    found |= evaluation.weighted_metrics(sums, self.heldout, settings)
    self.recorder.log_evaluation('heldout', step, found | {'tokens': self._tokens(step)})
    for line in self.table.heldout(found):
      console.line(line)
    competes = self.plan.is_last or self.config.best_phases == 'all'
    if self.plan.phase.generator_only or not competes:
      return None
    metric = self.recorder.best_by.metric
    weighted = f'weighted/{metric}'
    return float(found[weighted if weighted in found else metric])

  def _save(self, step: int, value: float | None) -> None:
    # A checkpoint never holds a state after a step that was not finite.
    self._check_finite(self.runner.bad_step())
    if trouble := self.recorder.save(step, self.runner, value):
      console.line(f'  {trouble}', always=True)

  def _check_finite(self, bad_step: int) -> None:
    skips = self.config.skip_nonfinite
    self.recorder.check_finite(bad_step, self._find_nonfinite, skips=skips)

  def _find_nonfinite(self, bad_step: int) -> str:
    """Names the first tensor of a step that is not finite."""
    p = self.plan.program
    token_ids = read_batch(
      self.plan.prepared.train,
      bad_step - self.plan.phase.first,
      self.config.batch_size,
      self.data_seed,
    )
    return pretrain_step.first_nonfinite(
      p.computation,
      self.runner.state.params,
      token_ids,
      step=bad_step,
      micro_batches=self.plan.micro_batches,
      layout=p.layout,
    )


class _Profiler:
  """Writes a profile of some steps. Only the first process does."""

  def __init__(self, steps: tuple[int, int], folder: epath.Path) -> None:
    """Takes the range of steps, (0, 0) for no profile, and the folder of the profile."""
    self._first, self._last = steps
    self._folder = folder
    self._spool: run_folder.Spool | None = None

  def before_step(self, index: int) -> None:
    """Starts the profile if it starts with the step after `index` steps."""
    if self._last and index == self._first and hosts.first():
      self._spool = run_folder.Spool(self._folder)
      jax.profiler.start_trace(str(self._spool.path))

  def after_step(self, step: int, last: int, runner: StepRunner) -> str | None:
    """Ends the profile if it ends after `step` steps; returns a line for the console then."""
    if self._spool is None or (step <= self._last and step != last):
      return None
    runner.wait()
    jax.profiler.stop_trace()
    self._spool.close()
    self._spool = None
    return f'  profile of steps {self._first} to {step - 1} in {self._folder}'

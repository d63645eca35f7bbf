"""One trial of a task: training, evaluation on dev, and resuming."""

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from electra_jax import console
from electra_jax.console import quantity
from electra_jax.finetune import answers, batches, dev_loss, report_files
from electra_jax.finetune.initial import DEV_LOSS
from electra_jax.finetune.report_blocks import Report, report_blocks
from electra_jax.finetune.run_files import RESULT, Record, json_values
from electra_jax.finetune.task_losses import Split
from electra_jax.finetune.task_program import TaskProgram
from electra_jax.finetune.tasks.task import Outputs
from electra_jax.training import checkpoints, hosts, partitioning, progress, run_folder
from electra_jax.training.checkpoints import Criterion
from electra_jax.training.metrics_writer import MetricsWriter, NoWriter
from electra_jax.training.preemption import Agreement, Notice
from electra_jax.training.status import Status
from electra_jax.training.step_loop import (
  Interval,
  IntervalTimer,
  RunRecorder,
  StepRunner,
  is_due,
  skipped_line,
)
from electra_jax.training.trackers.tracker import tracking_of
from electra_jax.training.update_step import find_nonfinite

PyTree = Any
LINES_EVERY = 20  # of the log lines, one is printed where the console is not a terminal
# Fields of an evaluation line of metrics.jsonl that are not metrics, and those left out of a curve.
NOT_METRICS = ('kind', 'step', 'epoch', 'tokens', 'seconds', DEV_LOSS, *answers.STATISTICS)
NOT_IN_CURVE = ('kind', 'tokens', 'seconds', *answers.STATISTICS)

Curve = list[dict[str, Any]]  # evaluations on dev, as in metrics.jsonl


@dataclasses.dataclass
class _Trial:
  """A trial in progress.

  Attributes:
    number: number of the trial, from 1.
    folder: WORKDIR/<task>/trial-<number>.
    seed: seed of the head, the order of rows and dropout.
    first: steps that an earlier start took and saved.
    runner: holds the state.
    recorder: writes metrics, status and checkpoints.
    curve: evaluations on dev so far.
    tokens: tokens so far, without padding.
    outputs: step of the last evaluation, and the outputs for dev there.
  """

  number: int
  folder: epath.Path
  seed: int
  first: int
  runner: StepRunner
  recorder: RunRecorder
  curve: Curve
  tokens: int = 0
  outputs: tuple[int, Outputs] | None = None


def run_trial(
  p: TaskProgram,
  number: int,
  folder: epath.Path,
  splits: Mapping[str, Split],
  notice: Notice,
  status: Status,
) -> Record | None:
  """Trains and evaluates a trial, or resumes it.

  Args:
    p: program of the task.
    number: number of the trial, from 1.
    folder: WORKDIR/<task>/trial-<number>.
    splits: parts to evaluate on at the end; 'dev' also during training.
    notice: true once this process is asked to stop.
    status: status file of the run.

  Returns:
    The record of the trial, also written to result.json; None if it was asked to stop and is saved.

  Raises:
    UserError: a loss or gradient is not finite.
  """
  trial = _open(p, number, folder, status)
  with trial.recorder.writer:
    stopped = _TrialLoop(p, trial, splits['dev'], p.steps).run(notice)
    params, step = trial.runner.state.params, int(jax.device_get(trial.runner.state.step))
    trial.recorder.finish(step, trial.runner)
    trial.recorder.close('stopped' if stopped else 'finished')
  if stopped:
    return None
  if p.config.select == 'best':
    params, step = selected_params(p, folder)
  with console.phase(f'trial {number}', 'evaluating'):
    found, reports = _final_evaluations(p, trial, params, step, splits)
  record = _record(p, trial, found, step)
  status.check_held(read=True)
  hosts.from_first(lambda: report_files.write_trial_report(folder, step, reports))
  hosts.from_first(lambda: run_folder.write_json(folder / RESULT, json_values(record)))
  return record


def run_part(
  p: TaskProgram,
  number: int,
  folder: epath.Path,
  dev: Split,
  notice: Notice,
  status: Status,
  until: int,
) -> Curve | None:
  """Trains a trial up to a step, from which `run_trial` or another part continues.

  Args:
    p: program of the task.
    number: number of the trial, from 1.
    folder: of the trial.
    dev: to evaluate on; also at the end of the part.
    notice: true once this process is asked to stop.
    status: status file of the run.
    until: number of steps, less than those of the trial.

  Returns:
    The evaluations on dev so far; None if the trial was asked to stop and is saved.

  Raises:
    UserError: a loss or gradient is not finite.
  """
  if (hosts.from_first(lambda: checkpoints.latest_saved(folder)) or 0) >= until:
    return hosts.from_first(functools.partial(saved_curve, folder, until))
  trial = _open(p, number, folder, status)
  with trial.recorder.writer:
    stopped = _TrialLoop(p, trial, dev, until).run(notice)
    trial.recorder.finish(int(jax.device_get(trial.runner.state.step)), trial.runner)
    trial.recorder.close('stopped')
  return None if stopped else trial.curve


def evaluate_further(
  p: TaskProgram, folder: epath.Path, record: Record, splits: Mapping[str, Split]
) -> Record:
  """Evaluates a finished trial on further parts of the data, and adds them to its result.json.

  Args:
    p: program of the trial.
    folder: of the trial, with its weights.
    record: of the trial.
    splits: all parts to evaluate on; those that the record has are not evaluated again.
  """
  missing = [name for name in splits if name not in record['figures']]
  if not missing:
    return record
  params, step = selected_params(p, folder)
  found: dict[str, dict[str, float]] = {}
  reports: dict[str, Report] = {}
  for name in missing:
    outputs = p.predictor.outputs(params, splits[name].features)
    found[name] = evaluate_split(p, name, splits[name], outputs).metrics
    dev = record['figures']['dev']
    reports[name] = _report(p, splits[name], outputs, found[name], dev)
  record = record | {'figures': record['figures'] | found}
  hosts.from_first(lambda: report_files.write_trial_report(folder, step, reports))
  hosts.from_first(lambda: run_folder.write_json(folder / RESULT, json_values(record)))
  return record


def selected_params(p: TaskProgram, folder: epath.Path) -> tuple[PyTree, int]:
  """The parameters of a finished trial that config.select selects, and their step."""
  return checkpoints.restore_params(
    folder, p.config.select, p.shapes.params, p.shardings.params, p.best_by
  )


class Evaluation(NamedTuple):
  """An evaluation of a part of the data.

  Attributes:
    metrics: of the task.
    answers: see answers.answer_statistics; of 'dev' only.
    loss: of training, without dropout; of 'dev' only, else nan.
  """

  metrics: dict[str, float]
  answers: dict[str, float]
  loss: float = math.nan


def evaluate_split(p: TaskProgram, name: str, split: Split, outputs: Outputs) -> Evaluation:
  """Evaluates a part of the data.

  Args:
    p: program of the task.
    name: of the part.
    split: the part.
    outputs: of the model for its rows.
  """
  metrics = p.task.score(name, split.examples, split.features, outputs)
  if name != 'dev':
    return Evaluation(metrics, {})
  given = answers.answer_statistics(p.task.head, split.features, outputs)
  loss = dev_loss.evaluation_loss(p.task.head, split.features, outputs, p.loss_settings)
  return Evaluation(metrics, given, loss)


def _final_evaluations(
  p: TaskProgram, trial: _Trial, params: PyTree, step: int, splits: Mapping[str, Split]
) -> tuple[dict[str, Evaluation], dict[str, Report]]:
  """Evaluates the parameters of `step`, and reports on them, by part of the data, dev first."""
  found: dict[str, Evaluation] = {}
  reports: dict[str, Report] = {}
  for name, split in splits.items():
    if name == 'dev' and trial.outputs and trial.outputs[0] == step:
      outputs = trial.outputs[1]
    else:
      outputs = p.predictor.outputs(params, split.features)
    known = _known_evaluation(trial.curve, name, step)
    found[name] = known or evaluate_split(p, name, split, outputs)
    metrics, dev = found[name].metrics, found['dev'].metrics
    reports[name] = _report(p, split, outputs, metrics, dev)
  return found, reports


def _report(
  p: TaskProgram,
  split: Split,
  outputs: Outputs,
  metrics: Mapping[str, float],
  dev: Mapping[str, float],
) -> Report:
  """The report about a part of the data, with the decisions that are best for dev.

  Args:
    p: program of the task.
    split: the part.
    outputs: of the model for its rows.
    metrics: of the part.
    dev: metrics of dev.
  """
  blocks = report_blocks(p.task.tuned(dev), split.examples, split.features, outputs)
  return Report(len(split.examples), metrics, blocks)


def finetuning_metrics(sums: Mapping[str, Any]) -> dict[str, float]:
  """Training metrics of the steps since the last log line: losses, accuracies and norms."""
  s = {name: float(value) for name, value in sums.items()}
  count = max(s['count'], 1)
  steps = max(s['steps'], 1)
  return {
    'loss': s['total'] / max(s.get('loss_weight', count), 1e-9),
    'gradient_norm': s['gradient_norm/all'] / steps,
    'update_norm': s['update_norm/all'] / steps,
  } | {name: value / count for name, value in s.items() if name.endswith(('correct', '_loss'))}


def _open(p: TaskProgram, number: int, folder: epath.Path, status: Status) -> _Trial:
  """Restores the state of a trial, or starts it."""
  seed, best_by = p.config.seed_of(number), p.best_by
  functions = p.sum_functions()
  manager = checkpoints.open_manager(folder, best_by=best_by)
  first = hosts.from_first(lambda: manager.latest_step() or 0)
  status.begin_trial(folder, p.task.name, number, first, p.steps)
  if first:
    whole = partitioning.replicated(p.layout.mesh)
    with console.phase('restoring', f'step {first:,} of trial {number}'):
      state, sums = checkpoints.restore_state(
        manager, first, p.shapes, p.shardings, functions.shapes, whole
      )
    console.say('restored', f'trial {number}, step {first:,}, the last checkpoint in {folder}')
  else:
    state, sums = p.first_state(seed), functions.zeros()
  tracking = tracking_of(p.config, f'{p.task.name}, trial {number}')
  writer = MetricsWriter(folder, first, tracking) if hosts.first() else NoWriter()
  return _Trial(
    number,
    folder,
    seed,
    first,
    StepRunner(state, sums, functions),
    RunRecorder(manager, writer, status, best_by),
    hosts.from_first(functools.partial(saved_curve, folder, first)),
  )


def saved_curve(folder: epath.Path, last: int) -> Curve:
  """The evaluations on dev of a trial up to a step, from its metrics."""
  lines = progress.read_metrics(folder)
  return [line for line in lines if line['kind'] == 'dev' and line['step'] <= last]


def evaluation_interval(p: TaskProgram) -> int:
  """Steps between evaluations on dev: config.eval_every, or all."""
  every = round(p.config.eval_every * p.steps_per_epoch)
  return max(1, every) if p.config.eval_every else p.steps


class _TrialLoop:
  """The training loop of a trial, up to a step."""

  def __init__(self, p: TaskProgram, trial: _Trial, dev: Split, until: int) -> None:
    config = p.config
    self.p = p
    self.trial = trial
    self.dev = dev
    self.until = until
    self.epochs = batches.epochs_of(config, p.train, trial.seed)
    self.eval_every = evaluation_interval(p)
    self.best_by = trial.recorder.best_by
    self.out_of_patience = _out_of_patience(trial.curve, self.best_by, config.patience)
    self.timer = IntervalTimer(trial.first)
    self.interval_tokens = 0
    self.log_lines = 0
    self.skipped = trial.runner.skipped()

  def run(self, notice: Notice) -> bool:
    """Takes the steps that are left. Returns whether the run was asked to stop before the end."""
    p, trial, until = self.p, self.trial, self.until
    mesh = p.layout.mesh
    trial.tokens = sum(self._tokens(step) for step in range(trial.first))
    agreed = Agreement(mesh)
    constants = partitioning.replicate(p.inputs, mesh)
    notice.heed()
    left = until - trial.first
    with console.progress(f'trial {trial.number}', left, 'rows', p.config.batch_size) as live:
      self.timer = IntervalTimer(trial.first)
      for index in range(trial.first, until):
        if self.out_of_patience:
          break
        batch = p.assemble(self.epochs.rows(index), trial.seed)
        inputs = partitioning.on_mesh(batch, mesh) | {'schedules': constants}
        with self._compiling(batch['token_ids'].shape[1], live):
          trial.runner.take_step(p.train_step, inputs)
        stop = agreed(bool(notice))
        step = index + 1
        count = self._tokens(index)
        trial.tokens += count
        self.interval_tokens += count
        live(step - trial.first, f'step {step:,} of {p.steps:,}')

        if is_due(step, p.config.log_every, p.steps):
          self._log(step, live)
        value = None
        evaluated = is_due(step, self.eval_every, until)
        if evaluated:
          with live.phase('evaluating'), self.timer.paused():
            value = self._evaluate(step)
        if evaluated or stop or step % p.config.save_every == 0:
          with live.phase('saving'), self.timer.paused():
            self._save(step, value)
        else:
          trial.recorder.poll(step, trial.runner)
        if stop and step < until:
          trial.recorder.finish(step, trial.runner)
          console.line(
            f'  asked to stop: saved step {step:,} of trial {trial.number}; the same command '
            'resumes from there',
            always=True,
          )
          return True
    return False

  def _tokens(self, index: int) -> int:
    """Tokens of the rows of a step, without padding."""
    return sum(len(self.p.train.token_ids[row]) for row in self.epochs.rows(index))

  @contextlib.contextmanager
  def _compiling(self, length: int, live: console.Progress) -> Iterator[None]:
    """Names the compilation of a step for rows of a new length, and leaves out its time."""
    shape = self.p.step_key, self.p.batch_rows, length
    if shape in self.p.compiled.lengths:
      yield
      return
    self.p.compiled.lengths.add(shape)
    console.say('compiling', f'the step for rows of {length}')
    with live.phase(f'compiling the step for rows of {length}'):
      yield

  def _log(self, step: int, live: console.Progress) -> None:
    p, trial = self.p, self.trial
    taken = trial.runner.take_sums()
    self._check_finite(taken.bad_step)
    if line := skipped_line(self.skipped, taken.skipped):
      console.line(line, always=True)
    self.skipped = taken.skipped
    interval = self.timer.end_interval(step)
    metrics = finetuning_metrics(taken.sums) | {
      'epoch': step / p.steps_per_epoch,
      'learning_rate': float(p.schedule(step - 1)),
      'skipped': taken.skipped,
      'tokens': trial.tokens,
      'tokens_per_second': self._rate(interval),
    }
    metrics = trial.recorder.log_training(step, metrics, interval)
    last = step == p.steps
    if sys.stdout.isatty() or self.log_lines % LINES_EVERY == 0 or last:
      correct = f'  correct {metrics["correct"]:.1%}' if 'correct' in metrics else ''
      seconds_left = live.seconds_left()
      left = f'  {console.seconds(seconds_left)} left' if seconds_left and not last else ''
      console.line(
        f'  {"":12} step {step:,} of {p.steps:,}  loss {metrics["loss"]:.4f}{correct}'
        f'  {quantity(metrics["tokens_per_second"])} tokens/s{left}'
      )
    self.log_lines += 1

  def _rate(self, interval: Interval) -> float:
    """Tokens per second of an interval; starts to count those of the next."""
    rate = self.interval_tokens / interval.seconds
    self.interval_tokens = 0
    return rate

  def _evaluate(self, step: int) -> float | None:
    """Evaluates on dev. Returns the value that the best checkpoint is chosen by.

    It is None where an earlier evaluation was as good: of equal ones the first is the best.
    """
    p, trial = self.p, self.trial
    trial.outputs = None  # frees those of the evaluation before
    outputs = p.predictor.outputs(trial.runner.state.params, self.dev.features)
    trial.outputs = step, outputs
    dev = evaluate_split(p, 'dev', self.dev, outputs)
    found = {'epoch': step / p.steps_per_epoch, **dev.metrics, DEV_LOSS: dev.loss, **dev.answers}
    trial.recorder.log_evaluation('dev', step, found | {'tokens': trial.tokens})
    trial.curve.append({'kind': 'dev', 'step': step, **found})
    self.out_of_patience = _out_of_patience(trial.curve, self.best_by, p.config.patience)
    best = best_evaluation(trial.curve, self.best_by)
    return float(found[self.best_by.metric]) if best and best['step'] == step else None

  def _save(self, step: int, value: float | None) -> None:
    self._check_finite(self.trial.runner.bad_step())
    self.trial.recorder.save(step, self.trial.runner, value)

  def _check_finite(self, bad_step: int) -> None:
    subject = f'trial {self.trial.number} of {self.p.task.name}: '
    skips = self.p.config.skip_nonfinite
    self.trial.recorder.check_finite(bad_step, self._find_nonfinite, subject, skips)

  def _find_nonfinite(self, bad_step: int) -> str:
    """Names the first tensor of a step that is not finite."""
    p = self.p
    batch = p.assemble(self.epochs.rows(bad_step), self.trial.seed)
    inputs = partitioning.on_mesh(batch, p.layout.mesh)
    params = self.trial.runner.state.params
    return find_nonfinite(p.batch_loss, params, bad_step, inputs, p.layout)


#### The record ####


def _record(p: TaskProgram, trial: _Trial, found: Mapping[str, Evaluation], step: int) -> Record:
  """The content of result.json; `found` by part of the data, of the parameters of `step`."""
  return {
    'task': p.task.name,
    'trial': trial.number,
    'seed': trial.seed,
    'metric': p.task.metric,
    'figures': {name: evaluation.metrics for name, evaluation in found.items()},
    'answers': found['dev'].answers,
    'dev_loss': found['dev'].loss,
    'selected_step': step,
    'best': best_evaluation(trial.curve, trial.recorder.best_by),
    'curve': [
      {name: line[name] for name in line if name not in NOT_IN_CURVE} for line in trial.curve
    ],
    'train_loss': hosts.from_first(functools.partial(_last_loss, trial.folder)),
    'losses': hosts.from_first(
      functools.partial(report_files.training_losses, trial.folder, p.steps_per_epoch)
    ),
    'constant': p.constant,
    'steps': int(jax.device_get(trial.runner.state.step)),
    'skipped': trial.runner.skipped(),
    'tokens': trial.tokens,
    'seconds': trial.recorder.writer.seconds,
  }


def _known_evaluation(curve: Curve, name: str, step: int) -> Evaluation | None:
  """The evaluation of 'dev' if the last one was at `step`, else None."""
  if name != 'dev' or curve[-1]['step'] != step:
    return None
  line = curve[-1]
  metrics = {
    metric: math.nan if value is None else value
    for metric, value in line.items()
    if metric not in NOT_METRICS
  }
  given = {name: line[name] for name in answers.STATISTICS if name in line}
  loss = line.get(DEV_LOSS)  # trials of version 0.1.0 have none
  return Evaluation(metrics, given, math.nan if loss is None else loss)


def best_evaluation(curve: Curve, best_by: Criterion) -> dict[str, Any] | None:
  """The `epoch`, `step` and `value` of the best evaluation, the first of equal ones.

  Args:
    curve: evaluations on dev.
    best_by: which one is the best.
  """
  sign = 1 if best_by.mode == 'max' else -1
  name = best_by.metric
  defined = [line for line in curve if line.get(name) is not None and np.isfinite(line[name])]
  best = max(defined, key=lambda line: sign * line[name], default=None)
  if best is None:
    return None
  return {'epoch': best['epoch'], 'step': best['step'], 'value': best[name]}


def _out_of_patience(curve: Curve, best_by: Criterion, patience: int) -> bool:
  """Whether none of the last `patience` evaluations was better than one before; 0: never."""
  best = best_evaluation(curve, best_by)
  return bool(patience and best and sum(line['step'] > best['step'] for line in curve) >= patience)


def _last_loss(folder: epath.Path) -> float | None:
  """The training loss of the last log line."""
  lines = reversed(progress.read_metrics(folder))
  return next((line['loss'] for line in lines if line['kind'] == 'train'), None)

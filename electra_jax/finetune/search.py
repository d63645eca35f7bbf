"""Compares settings of a task on dev, and makes the trials of the best one those of the run.

Trials are trained in WORKDIR/TASK/search/setting-N/trial-M. Files decide what remains to do, so
that an interrupted search continues: results of finished trials, checkpoints of others, rungs.json
with the settings that were left, and search.json with the one that was chosen.
"""

import functools
import io
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from electra_jax import console, file_access
from electra_jax.config import FinetuningConfig
from electra_jax.console import say
from electra_jax.finetune import halving, search_report
from electra_jax.finetune.run_files import RESULT, SEARCH, Record, chosen_setting, json_values
from electra_jax.finetune.setup import FinetuningSetup, memory_errors
from electra_jax.finetune.task_losses import Split
from electra_jax.finetune.task_program import TaskProgram, with_setting
from electra_jax.finetune.trial import (
  Curve,
  best_evaluation,
  evaluate_further,
  evaluation_interval,
  run_part,
  run_trial,
  saved_curve,
)
from electra_jax.finetune.trial_summary import AT_LEVEL, spread
from electra_jax.training import hosts, run_folder

RUNGS = 'rungs.json'  # in the folder of a search
END = 1 << 62  # a step after all others


class Setting(NamedTuple):
  """A setting of a search.

  Attributes:
    number: from 1, in the order of the config.
    changes: by field of the config, its value.
    folder: of its trials, until it is chosen.
  """

  number: int
  changes: dict[str, Any]
  folder: epath.Path


class Rung(NamedTuple):
  """The end of a part of the training, after which settings were left.

  Attributes:
    share: of each setting's training.
    scores: by number of the setting, the mean of its trials.
    kept: numbers of the settings that continue.
  """

  share: float
  scores: dict[int, float]
  kept: list[int]


def settings_of(config: FinetuningConfig, folder: epath.Path) -> list[Setting]:
  """The settings of a search.

  Args:
    config: of the run.
    folder: of the task.
  """
  return [
    Setting(number, changes, folder / 'search' / f'setting-{number}')
    for number, changes in enumerate(config.settings, 1)
  ]


def search(
  setup: FinetuningSetup, p: TaskProgram, splits: Mapping[str, Split]
) -> dict[str, Any] | None:
  """Finds the best setting of a task, or continues an earlier start.

  Writes search.json, search.md and search.png into the task's folder. The trials of the chosen
  setting are moved to where those of a run without a search are, and only they are evaluated on
  other parts of the data than dev.

  Args:
    setup: of the run.
    p: program of the task, of any setting.
    splits: parts of the data; only 'dev' is used to choose.

  Returns:
    What the chosen setting changes, by field; None if the run was asked to stop and is saved.
  """
  run = _Search(setup, p, splits)
  changes = hosts.from_first(lambda: chosen_setting(run.folder))
  if not changes:
    if not run.compare():
      return None
    changes = hosts.from_first(lambda: chosen_setting(run.folder))
  run.adopt(next(one for one in run.settings if one.changes == changes))
  return changes


class _Search:
  """A search in progress."""

  def __init__(self, setup: FinetuningSetup, p: TaskProgram, splits: Mapping[str, Split]) -> None:
    self.setup = setup
    self.p = p
    self.splits = splits
    self.folder = setup.workdir / p.task.name
    self.settings = settings_of(setup.config, self.folder)
    self.trials = range(1, setup.config.num_trials + 1)

  def compare(self) -> bool:
    """Trains all settings, or the best of them, and records the choice. False: asked to stop."""
    config = self.setup.config
    numbers = [one.number for one in self.settings]
    rungs = read_rungs(self.folder)
    shares = halving.parts(len(numbers), config.search.halving)
    say('search', self._describe(shares))
    for place, share in enumerate([*shares, 1.0]):
      if place < len(rungs):  # of an earlier start
        numbers = rungs[place].kept
        continue
      scores = self._scores(numbers, share)
      if scores is None:
        return False
      numbers = halving.kept(scores, config.search.halving) if share < 1 else [halving.best(scores)]
      rungs = [*rungs, Rung(share, scores, numbers)]
      hosts.from_first(functools.partial(self._write_rungs, rungs))
      self._remove_weights(numbers)
      if share < 1:
        names = ', '.join(map(str, numbers))
        say('halving', f'part {place + 1} of {len(shares) + 1} is done; setting {names} continues')
        self._warn_of_chance(scores)
    self._report(rungs)
    return True

  def _warn_of_chance(self, scores: Mapping[int, float]) -> None:
    """Warns where a part was too short for any setting to learn something."""
    constant = self.p.constant.get(self.p.task.metric, -math.inf)
    if max(scores.values()) <= constant + AT_LEVEL:
      text = (
        'no setting was better than a constant answer yet, so that chance decided which ones '
        'continue; train longer (--config.epochs), or without --config.search.halving'
      )
      say('warning', text, always=True)

  def _describe(self, shares: Sequence[float]) -> str:
    config = self.setup.config
    names = ', '.join(field.split('.')[-1] for field in config.search.varied)
    seeds = f'{config.num_trials} trial{"s" * (config.num_trials > 1)} each'
    halved = ''
    if shares:
      parts = ', '.join(f'{share:.3g}' for share in shares)
      halved = (
        f'; the best 1/{config.search.halving} continue after {parts} of the training, at the '
        'nearest evaluation'
      )
    return f'{len(self.settings)} settings of {names}, {seeds}{halved}'

  def _write_rungs(self, rungs: Sequence[Rung]) -> None:
    plain = [json_values(rung._asdict()) for rung in rungs]
    run_folder.write_json(self.folder / 'search' / RUNGS, {'rungs': plain})

  #### Training ####

  def _scores(self, numbers: Sequence[int], share: float) -> dict[int, float] | None:
    """Trains settings up to a share; the mean of each on dev, None if asked to stop."""
    scores: dict[int, float] = {}
    for number in numbers:
      setting = self.settings[number - 1]
      say(
        f'setting {number}',
        f'of {len(self.settings)}: {search_report.described_setting(setting.changes)}',
      )
      config = self.setup.config.with_setting(setting.changes)
      program = with_setting(self.p, config)
      values: list[float] = []
      for trial in self.trials:
        value = self._advance(program, setting, trial, share)
        if value is None:
          return None
        say('dev', f'{self.p.task.metric} {value:.4f}')
        values.append(value)
      scores[number] = statistics.fmean(values)
      if share == 1:
        finished = halving.best(scores)
        self._remove_weights({finished, *numbers} - (scores.keys() - {finished}))
    return scores

  def _advance(self, p: TaskProgram, setting: Setting, trial: int, share: float) -> float | None:
    """Trains a trial up to a share, if it is not there yet. Returns its value on dev."""
    folder = setting.folder / f'trial-{trial}'
    record = hosts.from_first(lambda: finished_record(folder))
    if record is not None:
      return value_of(record)
    until = halving.steps_of_part(share, p.steps, evaluation_interval(p))
    setup, dev = self.setup, self.splits['dev']
    say(f'trial {trial}', f'of {len(self.trials)}, seed {p.config.seed_of(trial)}')
    with memory_errors(p.task.name):
      if until < p.steps:
        curve = run_part(p, trial, folder, dev, setup.notice, setup.status, until)
        return None if curve is None else self._value_on(curve, p)
      record = run_trial(p, trial, folder, {'dev': dev}, setup.notice, setup.status)
    return None if record is None else value_of(record)

  def _value_on(self, curve: Curve, p: TaskProgram) -> float:
    """The metric on dev so far: of the last evaluation, or by config.select the best."""
    line = curve[-1]
    if p.config.select == 'best':
      best = best_evaluation(curve, p.best_by)
      line = next((one for one in curve if best and one['step'] == best['step']), line)
    return _defined(line.get(p.task.metric), p.constant.get(p.task.metric))

  def _remove_weights(self, numbers: Collection[int]) -> None:
    """Removes the checkpoints of all settings but some."""
    self.setup.status.check_held()
    others = [one.folder for one in self.settings if one.number not in numbers]
    hosts.from_first(functools.partial(remove_checkpoints, others))

  #### The choice ####

  def _report(self, rungs: Sequence[Rung]) -> None:
    """Writes and prints what was compared and chosen."""
    self.setup.status.check_held(read=True)
    found = hosts.from_first(lambda: self._compared(rungs))
    if hosts.first():
      image = io.BytesIO()
      search_report.draw_search(found).savefig(image, dpi=130, format='png')
      file_access.write_bytes(
        self.folder / 'search.md', search_report.search_markdown(found).encode()
      )
      file_access.write_bytes(self.folder / 'search.png', image.getvalue())
    # Last: with this file the search is done.
    hosts.from_first(lambda: run_folder.write_json(self.folder / SEARCH, json_values(found)))
    console.line('\n' + search_report.search_table(found) + '\n', always=True)
    chosen = found['chosen']
    what = f'setting {chosen["setting"]}: {search_report.described_setting(chosen["changes"])}'
    say('chosen', what, always=True)

  def _compared(self, rungs: Sequence[Rung]) -> dict[str, Any]:
    """The content of search.json."""
    (chosen,) = rungs[-1].kept
    left = {n: rung.share for rung in rungs[:-1] for n in rung.scores if n not in rung.kept}
    metric = self.p.task.metric
    settings = [
      self._compared_setting(one, left.get(one.number), one.number == chosen)
      for one in self.settings
    ]
    return {
      'task': self.p.task.name,
      'metric': metric,
      'constant': self.p.constant.get(metric),
      'halving': self.setup.config.search.halving,
      'seeds': [self.setup.config.seed_of(trial) for trial in self.trials],
      'settings': settings,
      'chosen': {'setting': chosen, 'changes': self.settings[chosen - 1].changes},
      'seconds': sum(one['seconds'] for one in settings),
    }

  def _compared_setting(
    self, setting: Setting, left_after: float | None, chosen: bool
  ) -> dict[str, Any]:
    """What search.json holds of a setting."""
    p = with_setting(self.p, self.setup.config.with_setting(setting.changes))
    folders = [setting.folder / f'trial-{trial}' for trial in self.trials]
    curves = [saved_curve(folder, END) for folder in folders]
    records = [finished_record(folder) for folder in folders]
    values = [
      self._value_on(curve, p) if record is None else value_of(record)
      for curve, record in zip(curves, records, strict=True)
    ]
    bests = [best_evaluation(curve, p.best_by) for curve in curves]
    shown = ('epoch', p.task.metric, p.best_by.metric)
    return {
      'setting': setting.number,
      'changes': setting.changes,
      'chosen': chosen,
      'left_after': left_after,
      **spread(values),
      'values': values,
      'best_epochs': [best['epoch'] if best else None for best in bests],
      'seconds': sum(max((line['seconds'] for line in curve), default=0.0) for curve in curves),
      'curves': [[{name: line.get(name) for name in shown} for line in curve] for curve in curves],
    }

  def adopt(self, setting: Setting) -> None:
    """Makes the trials of the chosen setting those of the run, evaluated on all parts."""
    p = with_setting(self.p, self.setup.config.with_setting(setting.changes))
    # More trials may be wanted now than the search had.
    numbers = hosts.from_first(lambda: _trials_in(setting.folder))
    for trial in numbers:
      folder = setting.folder / f'trial-{trial}'
      record = hosts.from_first(functools.partial(finished_record, folder))
      assert record is not None  # all trials of the chosen setting are complete
      evaluate_further(p, folder, record, self.splits)
      self.setup.status.check_held(read=True)
      place = self.folder / folder.name
      hosts.from_first(functools.partial(move_trial, folder, place))


#### Values ####


def value_of(record: Record) -> float:
  """The metric of a finished trial on dev."""
  metric = record['metric']
  return _defined(record['figures']['dev'].get(metric), record['constant'].get(metric))


def _defined(value: float | None, constant: float | None) -> float:
  """A value on dev, or where it is undefined that of the constant answer, its equivalent."""
  defined = (one for one in (value, constant) if one is not None and math.isfinite(one))
  return float(next(defined, 0.0))


#### Files ####


def finished_record(folder: epath.Path) -> Record | None:
  """The record of a trial; None where it is not finished."""
  return run_folder.read_json_if_any(folder / RESULT)


def read_rungs(folder: epath.Path) -> list[Rung]:
  """The rungs of a search that are done.

  Args:
    folder: of the task.
  """
  path = folder / 'search' / RUNGS

  def read() -> list[dict[str, Any]]:
    if not file_access.exists(path):
      return []
    plain: list[dict[str, Any]] = run_folder.read_json(path, {'rungs': [dict]})['rungs']
    return plain

  return [
    Rung(one['share'], {int(n): x for n, x in one['scores'].items()}, one['kept'])
    for one in hosts.from_first(read)
  ]


def _trials_in(folder: epath.Path) -> list[int]:
  with file_access.reaching(folder):
    paths = list(folder.glob(f'trial-*/{RESULT}')) if folder.exists() else []
  return sorted(int(path.parent.name.split('-')[1]) for path in paths)


def remove_checkpoints(folders: Sequence[epath.Path]) -> None:
  """Removes the checkpoints of the trials in folders."""
  for folder in folders:
    with file_access.reaching(folder, 'written'):
      for path in folder.glob('trial-*/checkpoints') if folder.exists() else ():
        path.rmtree()


def move_trial(folder: epath.Path, place: epath.Path) -> None:
  """Moves the folder of a trial. May be repeated where it was interrupted.

  Args:
    folder: of the trial, with its result.json.
    place: where it is moved to; what an interrupted move left there is replaced.
  """
  with file_access.reaching(place, 'written'):
    if place.exists():
      place.rmtree()
    if not file_access.is_remote(folder):
      folder.rename(place)
      return
    names = sorted(file_access.files_below(folder), key=lambda name: name == RESULT)
    for name in names:  # result.json last: with it the move is complete
      file_access.write_bytes(place / name, file_access.read_bytes(folder / name))
    folder.rmtree()

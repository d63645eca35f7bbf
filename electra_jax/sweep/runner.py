"""--mode=sweep: pretrains, evaluates and fine-tunes each run, and compares the results.

Jobs run one after another. A job whose result is known is skipped; one that was stopped is resumed.
"""

import dataclasses
import functools
import math
import os
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

import jax
from etils import epath

from electra_jax import console, file_access
from electra_jax.config import AnyConfig, FinetuningConfig, PretrainingConfig, to_plain
from electra_jax.console import say
from electra_jax.errors import PREEMPTED, UserError
from electra_jax.finetune import trial_summary
from electra_jax.finetune.dev_split import open_split_task
from electra_jax.finetune.run_files import json_values, read_records
from electra_jax.finetune.train import run_finetuning
from electra_jax.folder_lock import FolderLock
from electra_jax.pretrain import build, evaluation, run_start
from electra_jax.pretrain.resolve import resolve_run
from electra_jax.pretrain.train import train
from electra_jax.pretrain.trained_run import Run, open_run
from electra_jax.sweep.job_scripts import ScriptOptions, check_job_scripts, write_job_scripts
from electra_jax.sweep.picture import write_report
from electra_jax.sweep.resolve import ResolvedSweep, SweepJob, resolve_sweep
from electra_jax.sweep.results import (
  RESULTS_FILE,
  Expected,
  Result,
  append_result,
  expected_result,
  read_results,
  result_differences,
  short_digest,
)
from electra_jax.sweep.summary import summarize_runs, sweep_table
from electra_jax.timeline import spent
from electra_jax.training import hosts, run_folder
from electra_jax.training.devices import use_compilation_cache
from electra_jax.training.preemption import Notice
from electra_jax.training.progress import read_metrics
from electra_jax.training.trackers.tracker import check_trackers

# In place of a job: --only=table.
TABLE = 'table'
# Names and differences that a line of the console lists, at most.
_LISTED_JOBS = 6
_LISTED_DIFFERENCES = 3


def sweep(
  config: AnyConfig,
  workdir: str | os.PathLike[str],
  *,
  only: str | None = None,
  results: Sequence[str] = (),
  take_over: bool = False,
  **scripts: Unpack[ScriptOptions],
) -> int:
  """Runs the jobs of a sweep that have no result, and writes results.jsonl and sweep.html.

  Args:
    config: the sweep's config.
    workdir: its folder. Each run's is WORKDIR/runs/<run>-<seed>-<digest of its config and data>.
    only: one job, 'RUN:SEED', whose result is written to WORKDIR/results/<run>-<seed>.jsonl; or
      'table': no job runs, and the table of the known results is made.
    results: files with results of finished runs, besides config.known.
    take_over: whether to take the folder, and those of its runs, from another process.
    **scripts: with `jobs` no job runs, and a command for each is written.

  Returns:
    The exit status: 0, 1 where a run failed, PREEMPTED when asked to stop.

  Raises:
    UserError: for a mistake in any of the runs, before the first of them starts.
  """
  notice = Notice()
  resolved = resolve_sweep(config, workdir)
  chosen = _chosen_jobs(resolved.jobs, only)
  console.heading(f'{resolved.config.name}: {len(resolved.jobs)} runs  ({resolved.workdir})')
  if scripts.get('jobs'):
    check_job_scripts(resolved, scripts)
  if not scripts.get('jobs') and only != TABLE:  # jobs may run on other machines
    used = {name for job in chosen for name in job.config.trackers}
    used |= {name for job in chosen for task in job.tasks.values() for name in task.trackers}
    hosts.from_first(lambda: check_trackers(sorted(used)))
  with console.phase('checking', 'the data and the sizes of all runs'):
    expected = expected_results(chosen, resolved.config.rows)
  if scripts.get('jobs'):
    write_job_scripts(resolved, scripts)
    return 0
  hosts.from_first(lambda: run_folder.check_writable(resolved.workdir))
  with FolderLock(_written_folder(resolved, chosen, only), take_over=take_over) as lock:
    hosts.acquire(lock)
    files = (*resolved.config.known, *results)
    done = hosts.from_first(lambda: find_results(resolved.workdir, chosen, expected, files))
    todo = [] if only == TABLE else [job for job in chosen if job.name not in done]
    known = len(done) if only == TABLE else len(chosen) - len(todo)
    say('runs', f'{known} done, {len(todo)} to do' + (f': {_listed(todo)}' if todo else ''))
    run = _Run(resolved, expected, done, only not in (None, TABLE), notice, lock, take_over)
    if not run.run_jobs(todo):
      return PREEMPTED
    return _finish(run, only, todo)


def _written_folder(sweep: ResolvedSweep, chosen: Sequence[SweepJob], only: str | None) -> str:
  """The folder that this process must be the only one to write into.

  Jobs of --only run concurrently, each in a separate folder.
  """
  if only in (None, TABLE):
    return str(sweep.workdir)
  return str(sweep.workdir / 'jobs' / chosen[0].file)


def _chosen_jobs(jobs: Sequence[SweepJob], only: str | None) -> list[SweepJob]:
  """The jobs that --only names.

  Raises:
    UserError: it names none.
  """
  chosen = [job for job in jobs if only in (None, TABLE, job.name)]
  if not chosen:
    raise UserError(
      f"--only is {only}, which is not one of the sweep's jobs; expected {TABLE} or one of "
      f'{_listed(jobs)}.'
    )
  return chosen


def _listed(jobs: Sequence[SweepJob]) -> str:
  """Names of jobs, at most _LISTED_JOBS of them."""
  names = ', '.join(job.name for job in jobs[:_LISTED_JOBS])
  return names + (', ...' if len(jobs) > _LISTED_JOBS else '')


#### Running jobs ####


@dataclasses.dataclass
class _Run:
  """The jobs of a sweep while they run.

  Attributes:
    sweep: the resolved sweep.
    expected: job -> what its result must contain.
    done: job -> its result; grows.
    single: whether --only names one job; other processes may run other jobs.
    notice: true when asked to stop.
    lock: of the folder that results are written to.
    take_over: whether the folders of runs are taken from other processes.
    failed: job -> error message; grows.
  """

  sweep: ResolvedSweep
  expected: dict[str, Expected]
  done: dict[str, Result]
  single: bool
  notice: Notice
  lock: FolderLock
  take_over: bool = False
  failed: dict[str, str] = dataclasses.field(default_factory=dict)

  def run_jobs(self, jobs: Sequence[SweepJob]) -> bool:
    """Runs jobs one after another; False when asked to stop."""
    start = time.perf_counter()
    finished = 0
    with console.progress('sweep', len(jobs)) as live:
      for number, job in enumerate(jobs, 1):
        live(number - 1, f'run {number} of {len(jobs)}')
        if self.notice:
          return False
        console.heading(f'run {number} of {len(jobs)}: {job.run}, seed {job.seed}')
        try:
          result = self._run_job(job)
        except UserError as error:  # the other runs may still succeed
          self.failed[job.name] = str(error)
          say('failed', f'{job.name}: {error}', always=True)
          continue
        if result is None:
          return False
        self._keep(job, result)
        finished += 1
        left = len(jobs) - number
        if left:
          seconds = (time.perf_counter() - start) / finished * left
          say('left', f'{left} runs; about {console.seconds(seconds)} at this pace')
        if not self.single:
          self.show()
    return True

  def _run_job(self, job: SweepJob) -> Result | None:
    """Pretrains and measures a job; None when asked to stop."""
    place = self._place(job)
    status = train(job.config, str(place), self.notice, self.take_over)
    if self.notice or status == PREEMPTED:
      return None
    return measure_run(job, self.expected[job.name], place, self.notice, self.take_over)

  def _place(self, job: SweepJob) -> epath.Path:
    """The folder of a job's run."""
    expected = self.expected[job.name]
    digest = short_digest({'fields': expected['fields'], 'data': expected['data']})
    return self.sweep.workdir / 'runs' / f'{job.file}-{digest}'

  def _keep(self, job: SweepJob, result: Result) -> None:
    """Writes a result, and deletes the run if the config asks for it."""
    self.lock.check(read=True)
    folder = self.sweep.workdir
    file = folder / 'results' / f'{job.file}.jsonl' if self.single else folder / RESULTS_FILE
    hosts.from_first(functools.partial(_write_result, file, result))
    self.done[job.name] = result
    if self.sweep.config.delete_runs:
      hosts.from_first(functools.partial(self._place(job).rmtree, missing_ok=True))

  def show(self) -> None:
    """Prints the table of the results, and writes it with the picture."""
    order = list(dict.fromkeys(job.run for job in self.sweep.jobs))
    summaries = summarize_runs(self.done.values(), order)
    if not summaries:
      say('results', 'none yet', always=True)
      return
    c = self.sweep.config
    console.line('\n' + sweep_table(summaries, len(c.seeds)) + '\n', always=True)
    self.lock.check(read=True)
    hosts.from_first(lambda: write_report(self.sweep.workdir, c.name, summaries, len(c.seeds)))


def _write_result(file: epath.Path, result: Result) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  append_result(file, result)


def _finish(run: _Run, only: str | None, todo: Sequence[SweepJob]) -> int:
  """Shows the results and the jobs that failed; returns the exit status."""
  shown_before = todo and not run.failed  # after the last job
  if only == TABLE or only is None and not shown_before:
    run.show()
  if only not in (None, TABLE):
    say('next', f'--only={TABLE} makes the table of all results')
  elif run.done:
    folder = run.sweep.workdir
    say('written', f'{folder / "sweep.html"}, sweep.md and sweep.png', always=True)
  for name, reason in run.failed.items():
    say('failed', f'{name}: {reason}', always=True)
  return 1 if run.failed else 0


#### Expected and known results ####


def expected_results(jobs: Sequence[SweepJob], rows: int) -> dict[str, Expected]:
  """What the result of each job must contain, by the job's name.

  All data is opened or prepared, and the shapes of all models are computed.

  Args:
    jobs: the jobs.
    rows: number of held-out rows, at most; 0 for all.

  Raises:
    UserError: data is missing or broken, or sizes contradict each other.
  """
  stores: dict[str, Any] = {}
  checksums: dict[str, int] = {}
  identities: dict[str, str] = {}
  expected = {}
  for job in jobs:
    if job.run not in identities:
      try:
        identities[job.run] = '+'.join(_data_identities(job, stores))
      except UserError as error:
        raise UserError(f'run {job.run}: {error}') from None
    for name, task in job.tasks.items():
      if name not in checksums:
        checksums[name] = _examples_checksum(name, task)
    expected[job.name] = expected_result(job, identities[job.run], checksums, rows)
  return expected


def _data_identities(job: SweepJob, stores: dict[str, Any]) -> list[str]:
  """Identities of the rows of a job's phases; `stores` keeps what is opened for other jobs."""
  run = resolve_run(job.config)
  found = []
  for phase in run.phases:
    c = phase.config
    key = short_digest([to_plain(c.data), c.sequence_length, c.init])
    if key not in stores:
      stores[key] = run_start.prepare_data(c, run.tokenizer)
    prepared = stores[key]
    build.build_model(c, prepared.tokenizer.size)
    if prepared.train.rows < c.batch_size:
      raise UserError(
        f'config.batch_size is {c.batch_size} and the corpus makes {prepared.train.rows} rows; '
        'expected a smaller batch or more text.'
      )
    found.append(run_start.data_identity(prepared))
  return found


def _examples_checksum(name: str, config: FinetuningConfig) -> int:
  """A checksum of the examples of a task that trials are trained and evaluated on."""
  try:
    task, _ = open_split_task(config.task, config)
    checksum = 0
    for split in ('train', 'dev'):
      examples = task.examples(split) if split in task.splits else ()
      if not len(examples):
        raise UserError(
          f'there is no {split} data; set data.{split} to the file, or data.source to its folder.'
        )
      for example in examples:
        checksum = zlib.crc32(repr(example).encode(), checksum)
    return checksum
  except UserError as error:
    raise UserError(f'{name} of config.finetune: {error}') from None


def find_results(
  folder: epath.Path,
  jobs: Sequence[SweepJob],
  expected: Mapping[str, Expected],
  files: Iterable[str],
) -> dict[str, Result]:
  """The known results of jobs, by the job's name.

  A result is a job's where the seed, all fields and all data are the same, whatever the run was
  called there. Of several the last counts. Results of a run with the same name and other fields or
  data are reported, with the differences.

  Args:
    folder: of the sweep; its own results count too.
    jobs: the jobs.
    expected: job -> what its result must contain.
    files: other files of results.

  Raises:
    UserError: a file cannot be read or is damaged.
  """
  own = []
  if file_access.exists(folder):
    own = [folder / RESULTS_FILE, *sorted((folder / 'results').glob('*.jsonl'))]
  found: dict[str, Result] = {}
  others: dict[str, tuple[str, str]] = {}
  for path in (*map(str, files), *(str(path) for path in own if file_access.exists(path))):
    for result in read_results(path):
      for job in jobs:
        if job.seed != result['seed']:
          continue
        differences = result_differences(expected[job.name], result)
        if not differences:
          found[job.name] = result | {'run': job.run, 'changes': json_values(job.changes)}
        elif job.run == result['run']:
          more = '; ...' if len(differences) > _LISTED_DIFFERENCES else ''
          others[job.name] = path, '; '.join(differences[:_LISTED_DIFFERENCES]) + more
  _report_others({name: other for name, other in others.items() if name not in found})
  return found


def _report_others(others: Mapping[str, tuple[str, str]]) -> None:
  """Reports results of other configs: job -> (file, differences). Equal ones are one line."""
  alike: dict[tuple[str, str], list[str]] = {}
  for name, other in others.items():
    alike.setdefault(other, []).append(name)
  for (path, differences), (first, *rest) in alike.items():
    more = f' and {len(rest)} more' if rest else ''
    say('not taken', f'{path} has {first}{more} of another config ({differences})')


#### Measuring ####


def measure_run(
  job: SweepJob, expected: Expected, place: epath.Path, notice: Notice, take_over: bool = False
) -> Result | None:
  """Evaluates a pretrained run on held-out rows, and fine-tunes it on each task.

  Args:
    job: the job.
    expected: what its result must contain.
    place: the run's folder.
    notice: true when asked to stop.
    take_over: whether folders of trials are taken from other processes.

  Returns:
    The result of the job; None when asked to stop.
  """
  run = open_run(place)
  use_compilation_cache(run.config.compilation_cache)
  metrics, rows = _heldout_metrics(run, place, expected['rows'])
  resolved = run.resolved
  step = run.step
  tokenizer = run.tokenizer
  del run  # frees the parameters
  tasks: dict[str, Any] = {}
  seconds = 0.0
  for name, task in job.tasks.items():
    of_task = expected['tasks'][name]
    folder = place / 'finetune' / f'{name}-{short_digest(of_task)}'
    shown = task.tracking.run_name or f'{job.config.name}, {name}'
    task = task.replace({'tracking.run_name': shown})
    measured = _measure_task(task, of_task, folder, notice, take_over)
    if measured is None:
      return None
    tasks[name], taken = measured
    seconds += taken
  trained = max((line['seconds'] for line in read_metrics(place)), default=0.0)
  result: Result = json_values(
    {
      'run': job.run,
      'seed': job.seed,
      'digest': short_digest(expected),
      'changes': job.changes,
      **expected,
      'tasks': tasks,
      'steps': step,
      **spent(resolved, tokenizer, step),
      'parameters': run_folder.read_json(place / 'resolved.json')['parameters'],
      'heldout': metrics,
      'heldout_rows': rows,
      'learned': _has_learned(resolved.config, metrics),
      'seconds': {'pretraining': trained, 'tasks': seconds},
      'device': f'{len(jax.devices())} x {jax.devices()[0].device_kind}',
    }
  )
  return result


def _heldout_metrics(run: Run, place: epath.Path, limit: int) -> tuple[dict[str, Any], int]:
  """Evaluation metrics of a run, and the number of held-out rows they are from.

  Those of an earlier evaluation of the same checkpoint on as many rows are used.
  """
  rows = min(run.heldout.rows, limit or run.heldout.rows)
  before: dict[str, Any] = run_folder.read_json_if_any(place / 'evaluation.json') or {}
  if (before.get('step'), before.get('rows')) != (run.step, rows):
    before = evaluation.evaluate(run, rows=limit or None)
  metrics: dict[str, Any] = before['figures']
  return metrics, rows


def _has_learned(config: PretrainingConfig, metrics: Mapping[str, Any]) -> bool | None:
  """Whether the discriminator is better than the best constant predictor.

  None where the objective does not train its predictions, or where there is no interval, as for a
  single batch of rows.
  """
  if not build.objective_of(config).trains_discriminator:
    return None
  gain = metrics.get('gain') or {'low': None, 'high': None}
  low, high = gain['low'], gain['high']
  if low is None or not math.isfinite(low) or low >= high:
    return None
  return bool(low > 0)


def _measure_task(
  config: FinetuningConfig, expected: Expected, folder: epath.Path, notice: Notice, take_over: bool
) -> tuple[dict[str, Any], float] | None:
  """Fine-tunes a run on a task; returns its part of the result and seconds, None when stopped.

  Args:
    config: of the task.
    expected: what its part of the result must contain.
    folder: of its trials, in a folder of the run's.
    notice: true when asked to stop.
    take_over: whether the folder is taken from another process.
  """
  if notice:
    return None
  config = config.replace({'init': str(folder.parent.parent)})
  if run_finetuning(config, str(folder), notice, take_over) == PREEMPTED:
    return None
  read = functools.partial(read_records, folder, [config.task])
  records = hosts.from_first(read)[: config.num_trials]
  metric = records[0]['metric']
  values = [_dev_value(record, metric) for record in records]
  measured = expected | {
    'metric': metric,
    'values': [value for value in values if value is not None],
    'constant': records[0].get('constant', {}).get(metric),
    'collapsed': [record['trial'] for record in trial_summary.collapsed_trials(records)],
  }
  return measured, sum(record['seconds'] for record in records)


def _dev_value(record: Mapping[str, Any], metric: str) -> float | None:
  """A trial's metric on dev; where it is undefined, that of a constant answer, its equivalent."""
  value: float | None = record['figures']['dev'].get(metric)
  constant: float | None = record.get('constant', {}).get(metric)
  return constant if value is None else value

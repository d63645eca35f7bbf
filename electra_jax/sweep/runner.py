"""--mode=sweep: the runs of a sweep one after another, each pretrained, evaluated and fine-tuned; then all that is known, as one table."""

import functools
import math
import time
import zlib

import jax

from electra_jax import console
from electra_jax.config import FinetuningConfig, to_plain
from electra_jax.console import say
from electra_jax.errors import PREEMPTED, UserError
from electra_jax.finetune import trial_summary
from electra_jax.finetune.run_files import json_values, read_records
from electra_jax.finetune.tasks import open_task
from electra_jax.finetune.train import finetune
from electra_jax.pretrain import build, evaluation, run_start
from electra_jax.pretrain.resolve import resolve as resolve_run
from electra_jax.pretrain.train import train
from electra_jax.pretrain.trained_run import open_run
from electra_jax.sweep import job_scripts, results
from electra_jax.sweep.resolve import Job, resolve
from electra_jax.timeline import spent
from electra_jax.training import hosts, run_folder
from electra_jax.training.devices import use_compilation_cache
from electra_jax.training.preemption import Notice
from electra_jax.training.progress import read_metrics

TABLE = 'table'  # in the place of a job: --only=table


def sweep(
  config,
  workdir: str,
  *,
  only: str | None = None,
  known: tuple[str, ...] = (),
  jobs: str | None = None,
  output: str | None = None,
  arguments: tuple[str, ...] = (),
) -> int:
  """Does the runs of a sweep that are not done, or goes on where it was stopped; leaves results.jsonl, sweep.md and sweep.png in WORKDIR.

  Args:
    config: of sweep.config.
    workdir: its folder; each run's is WORKDIR/runs/<run>-<seed>-<digest of its config and data>.
    only: one job, 'RUN:SEED', whose line goes to WORKDIR/results/<run>-<seed>.jsonl; or 'table', for what is there alone.
    known: files of finished runs, beside config.known.
    jobs: in place of all this, write the commands for one job a run and seed: 'slurm', 'queued' or 'shell'.
    output: the folder for these.
    arguments: of the command line, that the commands have too.

  Returns the exit status: 0, 1 where a run failed, PREEMPTED when asked to stop.

  Raises UserError for a person's mistakes, in any of the runs, before the first of them begins.
  """
  notice = Notice()
  resolved = resolve(config, workdir)
  config, folder, todo = resolved.config, resolved.workdir, list(resolved.jobs)
  chosen = todo if only in (None, TABLE) else [job for job in todo if job.name == only]
  if not chosen:
    raise UserError(
      f"--only={only} is none of the sweep's jobs; they are {', '.join(job.name for job in todo[:6])}{', ...' if len(todo) > 6 else ''}, or {TABLE}."
    )
  console.heading(f'{config.name}: {len(todo)} runs  ({folder})')

  #### What is asked for, and what is known ##########################################################################
  wanted = with_data(config, chosen)
  if jobs:
    job_scripts.write(jobs, output, config, todo, workdir, arguments)
    return 0
  hosts.from_first(lambda: run_folder.check_writable(folder))
  done = hosts.from_first(lambda: find_known(folder, chosen, wanted, (*config.known, *known)))
  left = [] if only == TABLE else [job for job in chosen if job.name not in done]
  say(
    'runs',
    f'{len(chosen) - len(left) if only != TABLE else len(done)} done, {len(left)} to do'
    + ('' if not left else f': {_some(left)}'),
  )

  #### Runs ##########################################################################################################
  failed, start, spent_here = {}, time.perf_counter(), 0
  for number, job in enumerate(left, 1):
    if notice:
      return PREEMPTED
    console.heading(f'run {number} of {len(left)}: {job.run}, seed {job.seed}')
    place = (
      folder
      / 'runs'
      / f'{job.file}-{results.digest({"fields": wanted[job.name]["fields"], "data": wanted[job.name]["data"]})}'
    )
    try:
      status = train(job.config, str(place), notice)
      if notice:
        return PREEMPTED
      if status == 0:
        line = measure(config, job, wanted[job.name], place, notice)
    except UserError as error:  # a run that diverges is no reason to leave the others undone
      failed[job.name] = str(error)
      say('failed', f'{job.name}: {error}')
      continue
    if status == PREEMPTED or line is None:
      return PREEMPTED
    target = folder / 'results' / f'{job.file}.jsonl' if only else folder / results.LINES
    hosts.from_first(functools.partial(_keep, target, line))
    done[job.name] = line
    if config.delete_runs:
      hosts.from_first(functools.partial(place.rmtree, missing_ok=True))
    spent_here += 1
    if number < len(left):
      say(
        'left',
        f'{len(left) - number} runs; about {console.seconds((time.perf_counter() - start) / spent_here * (len(left) - number))} at this pace',
      )
    if not only:
      show(config, todo, done, folder)

  #### The table #####################################################################################################
  if not only and (not left or failed) or only == TABLE:
    show(config, todo, done, folder)
  elif only:
    say('next', f'--only={TABLE} makes the table of all that is done')
  if done and not (only and only != TABLE):
    say('written', f'{folder / "sweep.md"}, {folder / "sweep.png"}')
  for name, why in failed.items():
    say('failed', f'{name}: {why}')
  return 1 if failed else 0


def _some(jobs: list[Job], most: int = 6) -> str:
  return ', '.join(job.name for job in jobs[:most]) + (', ...' if len(jobs) > most else '')


def _keep(path, line):
  path.parent.mkdir(parents=True, exist_ok=True)
  results.append(path, line)


def with_data(config, jobs: list[Job]) -> dict[str, dict]:
  """What the line of each job must say (results.asked), all data opened, or prepared, and every model built on paper.

  Raises UserError for data that is missing or broken, and for sizes that contradict each other.
  """
  stores, sums, wanted, checked = {}, {}, {}, {}
  for job in jobs:
    if job.run not in checked:
      try:
        checked[job.run] = '+'.join(_identities(job, stores))
      except UserError as error:
        raise UserError(f'run {job.run}: {error}') from None
    for name, task in job.tasks.items():
      if name not in sums:
        sums[name] = _checksum(name, task)
    wanted[job.name] = results.asked(job, checked[job.run], sums, config.rows)
  return wanted


def _identities(job: Job, stores: dict) -> list[str]:
  """Identities of the rows of a job's phases; `stores` keeps what is opened for other jobs."""
  run, found = resolve_run(job.config), []
  for phase in run.phases:
    c = phase.config
    key = results.digest([to_plain(c.data), c.sequence_length, c.init])
    if key not in stores:
      stores[key] = run_start.prepare_data(c, run.tokenizer)
    rows = stores[key]
    build.build_model(c, rows.tokenizer.size)
    if rows.train.rows < c.batch_size:
      raise UserError(
        f'the corpus makes {rows.train.rows} rows and config.batch_size is {c.batch_size}; give '
        'more text, or smaller batches.'
      )
    found.append(run_start.data_identity(rows))
  return found


def _checksum(name: str, config: FinetuningConfig) -> int:
  """Of a task's examples to train on and to be scored on."""
  try:
    task, found = open_task(config.task, config), 0
    for split in ('train', 'dev'):
      examples = task.examples(split) if split in task.splits else ()
      if not len(examples):
        raise UserError(
          f'there is no {split} data; name the file with data.{split}, or its folder with data.source.'
        )
      for example in examples:
        found = zlib.crc32(repr(example).encode(), found)
    return found
  except UserError as error:
    raise UserError(f'{name} of config.finetune: {error}') from None


def find_known(folder, jobs: list[Job], wanted: dict, given) -> dict[str, dict]:
  """The lines there are of jobs, by name: of the sweep's own folder, and of the files given. Says which do not match, and in what.

  A line is a job's where seed, all fields and all data are, whatever the run was called there. Of several the last counts.
  """
  own = (
    [folder / results.LINES, *sorted((folder / 'results').glob('*.jsonl'))]
    if run_folder.exists(folder)
    else []
  )
  found, others = {}, {}
  for path in [*map(str, given), *(path for path in own if run_folder.exists(path))]:
    for line in results.read(path):
      for job in jobs:
        if job.seed != line['seed']:
          continue
        unlike = results.differences(wanted[job.name], line)
        if not unlike:
          found[job.name] = line | {'run': job.run, 'changes': json_values(job.changes)}
        elif job.run == line['run']:
          others[job.name] = path, f'{"; ".join(unlike[:3])}{"; ..." if len(unlike) > 3 else ""}'
  alike = {}
  for name, why in others.items():
    if name not in found:
      alike.setdefault(why, []).append(name)
  for (path, why), names in alike.items():
    say(
      'not taken',
      f'{path} has {names[0]}{f" and {len(names) - 1} more" if names[1:] else ""} of another config ({why})',
    )
  return found


def measure(config, job: Job, wanted: dict, place, notice) -> dict | None:
  """A pretrained run's line: evaluated on held-out rows, and fine-tuned on each task. None where it was asked to stop."""
  run = open_run(place)
  use_compilation_cache(run.config.compilation_cache)
  path = place / 'evaluation.json'
  rows = min(run.heldout.rows, config.rows or run.heldout.rows)
  before = run_folder.read_json(path) if run_folder.exists(path) else {}
  if (before.get('step'), before.get('rows')) != (run.step, rows):
    before = evaluation.evaluate(run, rows=config.rows or None)
  whole, step, tokenizer = run.resolved, run.step, run.tokenizer
  del run
  tasks, seconds = {}, 0.0
  for name, task in job.tasks.items():
    c = task.replace({'init': str(place)})
    of_task = place / 'finetune' / f'{name}-{results.digest(wanted["tasks"][name])}'
    if notice or finetune(c, str(of_task), notice) == PREEMPTED:
      return None
    records = hosts.from_first(functools.partial(read_records, of_task, [c.task]))[: c.num_trials]
    metric = records[0]['metric']
    values = [value for record in records if (value := _value(record, metric)) is not None]
    tasks[name] = wanted['tasks'][name] | {
      'metric': metric,
      'values': values,
      'constant': records[0].get('constant', {}).get(metric),
      'collapsed': [r['trial'] for r in trial_summary.collapsed_trials(records)],
    }
    seconds += sum(record['seconds'] for record in records)
  figures = before['figures']
  # Of all_tokens_mlm the verdicts are by-products: no loss asks for them.
  judges = build.objective_of(whole.config).trains_discriminator
  gain = judges and figures.get('gain') or {'low': None, 'high': None}
  known = (
    gain['low'] is not None and math.isfinite(gain['low']) and gain['low'] < gain['high']
  )  # a single batch of rows has no interval
  trained = max((line['seconds'] for line in read_metrics(place)), default=0.0)
  return json_values(
    {
      'run': job.run,
      'seed': job.seed,
      'digest': results.digest(wanted),
      'changes': job.changes,
      **wanted,
      'tasks': tasks,
      'steps': step,
      **spent(whole, tokenizer, step),
      'parameters': run_folder.read_json(place / 'resolved.json')['parameters'],
      'heldout': figures,
      'heldout_rows': rows,
      'learned': gain['low'] > 0 if known else None,
      'seconds': {'pretraining': trained, 'tasks': seconds},
      'device': f'{len(jax.devices())} x {jax.devices()[0].device_kind}',
    }
  )


def _value(record, metric):
  """A trial's figure; where it is undefined, the constant answer's, which says the same of everything too."""
  value = record['figures']['dev'].get(metric)
  return record.get('constant', {}).get(metric) if value is None else value


def show(config, jobs: list[Job], done: dict[str, dict], folder) -> None:
  """Prints the table of what is done and writes it, with the picture."""
  order = list(dict.fromkeys(job.run for job in jobs))
  summaries = results.summarise(list(done.values()), order)
  if not summaries:
    say('results', 'none yet')
    return
  print('\n' + results.table(summaries, len(config.seeds)) + '\n', flush=True)
  hosts.from_first(lambda: results.write(folder, config.name, summaries, len(config.seeds)))

"""The fine-tuning program: from an encoder and labeled data to trials and their results."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping, Sequence

import jax
from etils import epath

from electra_jax import console, file_access
from electra_jax.config import AnyConfig, to_plain
from electra_jax.console import quantity, say
from electra_jax.errors import PREEMPTED, UserError
from electra_jax.finetune import batches, initial, report_files, run_files, trial_summary
from electra_jax.finetune.dev_split import open_split_task
from electra_jax.finetune.resolve import ResolvedFinetuning, resolve_finetuning
from electra_jax.finetune.run_files import RESULT, RESULTS, Record, read_records
from electra_jax.finetune.search import search
from electra_jax.finetune.setup import FinetuningSetup, memory_errors
from electra_jax.finetune.splits import (
  evaluation_splits,
  length_limit,
  training_split,
)
from electra_jax.finetune.task_losses import Split
from electra_jax.finetune.task_program import TaskProgram, build_task_program, with_setting
from electra_jax.finetune.tasks.task import Features, Task
from electra_jax.finetune.trial import run_trial
from electra_jax.folder_lock import FolderLock
from electra_jax.training import devices, hosts, partitioning, run_folder
from electra_jax.training.preemption import Notice
from electra_jax.training.product_types import choose_dtype, describe_products
from electra_jax.training.status import Status
from electra_jax.training.trackers.tracker import check_trackers


def run_finetuning(
  config: AnyConfig,
  workdir: str | os.PathLike[str],
  notice: Notice | None = None,
  take_over: bool = False,
) -> int:
  """Fine-tunes on each task of a config, trial after trial, or resumes an earlier start.

  Writes to the run's folder: config.json, encoder.json, tokenizer/, a folder per task with a folder
  per trial, and results as JSON, Markdown and a picture.

  Args:
    config: a ConfigDict, or a typed config.
    workdir: the run's folder.
    notice: true once this process is asked to stop; None for a new one.
    take_over: whether to take the folder from another process that writes into it.

  Returns:
    The exit status: 0 when the run is done, PREEMPTED when it was asked to stop and is saved.

  Raises:
    UserError: a mistake of the user, or a loss or gradient that is not finite.
  """
  lock = FolderLock(workdir, take_over=take_over)
  with lock, Status('finetune', trials=True, lock=lock) as status:
    notice = Notice() if notice is None else notice
    return status.end(_finetune(config, workdir, notice, status))


def _finetune(
  config: AnyConfig, workdir: str | os.PathLike[str], notice: Notice, status: Status
) -> int:
  """Does the work of `run_finetuning`; `status` is the status file of the run."""
  run = _claim(config, workdir, status)
  layout = partitioning.make_layout(run.config)
  say('devices', devices.describe_devices(layout.mesh))
  devices.use_compilation_cache(run.config.compilation_cache)
  tasks = _open_tasks(run)
  products = choose_dtype(run.config.dtype, jax.default_backend(), run.dtype)
  start = open_encoder(run, products.dtype)
  names = run.config.tasks
  done = hosts.from_first(lambda: run_files.steps_of_trials(run.workdir, names))
  status.change(restored_step=done)
  config = run.config.replace({'dtype': products.dtype})
  setup = FinetuningSetup(config, run.workdir, start, layout, notice, status, products)
  if len(tasks) > 1:
    tasks = ()  # frees their data; each task is opened again in its turn
  for number, name in enumerate(names):
    task = tasks[number] if tasks else open_split_task(name, run.config, run.workdir)[0]
    if _train_task(setup, task):
      return PREEMPTED
  _finish(setup)
  return 0


#### Resolve, data, encoder ####


def _claim(
  config: AnyConfig, workdir: str | os.PathLike[str], status: Status
) -> ResolvedFinetuning:
  """Resolves the config and takes the folder for it."""
  run = resolve_finetuning(config, workdir)
  hosts.same_everywhere('the config', json.dumps(to_plain(run.config), sort_keys=True))
  hosts.from_first(lambda: check_trackers(run.config.trackers))
  hosts.from_first(lambda: run_folder.check_writable(run.workdir))
  if status.lock is not None:
    hosts.acquire(status.lock)
  hosts.from_first(lambda: run_files.claim_finetuning(run.workdir, run.config))
  status.claim(run.workdir)
  hosts.check_shared(run.workdir)
  console.heading(f'{run.config.name}  ({run.workdir})')
  return run


def _open_tasks(run: ResolvedFinetuning) -> Sequence[Task]:
  """Opens all tasks and reads their data, so that errors are reported before the first step."""
  opened = [open_split_task(name, run.config, run.workdir) for name in run.config.tasks]
  for task, about_split in opened:
    with console.phase('reading', f'the examples of {task.name}'):
      counts = {split: len(task.examples(split)) for split in task.splits}
    for split in ('train', 'dev'):
      if not counts.get(split):
        raise UserError(
          f'{task.name} has no {split} data; name the file with --config.data.{split}, or its '
          'folder with --config.data.source.'
        )
    first = ('train', 'dev')
    order = (*first, *(split for split in task.splits if split not in first))
    text = ', '.join(f'{counts[split]:,} {split}' for split in order)
    say(task.name, text + (f'; labels {_first_names(task.labels)}' if task.labels else ''))
    for note in filter(None, (*task.notes, about_split)):
      say('', note)
  return [task for task, _ in opened]


def _first_names(labels: Sequence[str], most: int = 8) -> str:
  """The first labels, and their number if there are more."""
  return ', '.join(labels[:most]) + (f', ... ({len(labels)})' if len(labels) > most else '')


def open_encoder(run: ResolvedFinetuning, dtype: str) -> initial.Initial:
  """Opens the encoder that all trials start from, and keeps it in the run's folder.

  Args:
    run: the run.
    dtype: of matrix products, which is recorded beside the encoder.

  Raises:
    UserError: the encoder cannot be opened, or is not the one that the run was started with.
  """
  with console.phase('reading', f'the encoder of {run.config.init}'):
    start = initial.open_initial(run.config, run.origin)
  if run.encoder is not None:
    start = initial.with_choices_of(run.encoder, start)
  if 'checksum' in start.origin:
    checksum = str(start.origin['checksum'])
    hosts.same_everywhere(f'the weights of {run.config.init}', checksum)
  say('encoder', start.describe())
  for note in start.notes:
    say('', note)
  hosts.from_first(lambda: run_files.keep_encoder(run.workdir, start, dtype))
  return start


#### A task ####


def _train_task(setup: FinetuningSetup, task: Task) -> bool:
  """Runs the trials of a task that are left. Returns whether the run was asked to stop."""
  config = setup.config
  folder = setup.workdir / task.name
  todo = [
    number
    for number in range(1, config.num_trials + 1)
    if not file_access.exists(folder / f'trial-{number}' / RESULT)
  ]
  hosts.from_first(lambda: run_files.check_labels(folder, task))
  if not file_access.exists(folder / initial.KEPT):
    hosts.from_first(lambda: run_files.write_task(config, task, folder))
  if not todo and file_access.exists(folder / run_files.DATA):
    # Otherwise results of other data would be those of this command.
    _check_data(task, folder, training_split(config, task, setup.start.tokenizer).features)
  if todo:
    p, splits = _prepare_task(setup, task)
    _check_data(task, folder, p.train)
    if config.settings:
      setting = search(setup, p, splits)
      if setting is None:
        return True
      setup = dataclasses.replace(setup, config=config.with_setting(setting))
      p = with_setting(p, setup.config)
    for number in todo:
      # The search may have trained it.
      if file_access.exists(folder / f'trial-{number}' / RESULT):
        continue
      if _run_trial(setup, p, number, splits) is None:
        return True
  # Once more: an earlier start may have ended before it did this.
  hosts.from_first(lambda: run_files.keep_weights(config, task, folder))
  _print_results(read_records(setup.workdir, [task.name]))
  return False


def _check_data(task: Task, folder: epath.Path, train: Features) -> None:
  """Checks that the training data is that of earlier trials, on all hosts."""
  checksum = run_files.data_checksum(train)
  hosts.same_everywhere(f'the data of {task.name}', str(checksum))
  hosts.from_first(lambda: run_files.check_data(folder, checksum))


def _run_trial(
  setup: FinetuningSetup, p: TaskProgram, number: int, splits: Mapping[str, Split]
) -> Record | None:
  """Runs a trial and removes weights that are not kept; None if the run was asked to stop."""
  config, task = setup.config, p.task
  folder = setup.workdir / task.name
  say(f'trial {number}', f'of {config.num_trials}, seed {config.seed_of(number)}')
  with memory_errors(task.name):
    record = run_trial(p, number, folder / f'trial-{number}', splits, setup.notice, setup.status)
  if record is not None:
    setup.status.check_held()
    hosts.from_first(functools.partial(run_files.keep_weights, config, task, folder))
    found = {**record['figures']['dev'], 'loss': record['dev_loss']}
    metrics = {name: x for name, x in found.items() if math.isfinite(x)}
    say('dev', ', '.join(f'{name} {value:.4f}' for name, value in metrics.items()))
  return record


def _prepare_task(setup: FinetuningSetup, task: Task) -> tuple[TaskProgram, Mapping[str, Split]]:
  """Tokenizes the data of a task, builds its program, and prints what its trials consist of."""
  config, start = setup.config, setup.start
  with console.phase('tokenizing', f'the examples of {task.name}'):
    train = training_split(config, task, start.tokenizer)
    splits = evaluation_splits(config, task, start.tokenizer)
  folder = setup.workdir / task.name
  hosts.from_first(lambda: report_files.write_texts(folder, {'train': train, **splits}))
  max_length = length_limit(config, task)
  with console.phase('building', 'the model and the optimizer'):
    first = config.with_setting(config.settings[0]) if config.settings else config
    p = build_task_program(first, task, start, setup.layout, train.features, max_length)
  epochs = p.steps / p.steps_per_epoch
  say(
    '',
    f'{p.steps:,} steps of {config.batch_size} rows, {epochs:.3g} epochs of {len(p.train):,} rows '
    f'of at most {max_length} tokens; {_padding(p):.0%} padding',
  )
  if config.frozen:
    trainable = p.shapes.params['head']
    rate = f' of the head, on a frozen encoder, learning rate {p.learning_rate:g}'
  else:
    trainable = p.shapes.params
    rate = f', learning rate {p.learning_rate:g}, layer by layer times {p.layer_decay:g}'
  depths = ' (depths as published)' if config.optimizer.published_depths else ''
  kernel, reason = p.attention
  say(
    '',
    f'{quantity(initial.weights_count(trainable))} parameters{rate}{depths}, attention {kernel} '
    f'({reason})',
  )
  platform = jax.default_backend()
  products = describe_products(setup.products, config.precision, platform)
  say('', f'products {products}')
  for line in partitioning.sharding_table(p.shapes.params, p.shardings.params, setup.layout):
    say('', line)
  return p, splits


def _padding(p: TaskProgram) -> float:
  """Share of padding in the batches of the first epoch."""
  config, train = p.config, p.train
  epochs = batches.epochs_of(config, train, config.seed)
  padded = 0
  for step in range(p.steps_per_epoch):
    longest = max(len(train.token_ids[row]) for row in epochs.rows(step))
    padded += config.batch_size * next(length for length in p.lengths if length >= longest)
  return 1 - sum(map(len, train.token_ids)) / padded


#### Results ####


def _print_results(records: list[Record]) -> None:
  """Prints the table of a task's trials, and names trials that collapsed."""
  console.line(
    '\n' + trial_summary.trials_table(trial_summary.summarize_trials(records)) + '\n', always=True
  )
  for trial in trial_summary.collapsed_trials(records):
    say(
      'collapsed',
      f'trial {trial["trial"]} of {trial["task"]} gives the same answer to everything, as '
      'fine-tuning sometimes does on little data: use the median, more trials, or a lower '
      '--config.optimizer.learning_rate',
      always=True,
    )


def _finish(setup: FinetuningSetup) -> None:
  """Writes and prints the results of all tasks."""
  workdir, names = setup.workdir, setup.config.tasks
  setup.status.check_held(read=True)
  records = read_records(workdir, names)
  if len(names) > 1:
    console.line(
      '\n' + trial_summary.trials_table(trial_summary.summarize_trials(records)) + '\n', always=True
    )
  hosts.from_first(lambda: run_files.write_results(workdir, setup.config, setup.start, records))
  say('results', str(workdir / RESULTS), always=True)
  say('next', f'python -m electra_jax.main --mode=predict --workdir={workdir} --input=FILE')

"""The fine-tuning program: a pretrained run and labelled data to scored trials, top to bottom. A trial's steps are in trial.py."""

import functools
import io
import math
import os
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from electra_jax import console
from electra_jax.config import to_plain
from electra_jax.console import say
from electra_jax.data.store.permutation import permutation
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.errors import PREEMPTED, UserError
from electra_jax.finetune import batches, initial, task_program, trial_summary
from electra_jax.finetune.resolve import resolve_finetuning
from electra_jax.finetune.tasks import open_task
from electra_jax.finetune.trial import RESULT, Split, plain, run_trial
from electra_jax.training import hosts, partitioning, run_folder
from electra_jax.training.preemption import Notice
from electra_jax.training.progress import quantity
from electra_jax.training.status import Status

RESULTS = 'results.json'
DATA = 'data.json'  # in a task's folder: what its training data was when the first trial began


def finetune(config, workdir: str, notice: Notice | None = None) -> int:
  """Fine-tunes on each task of a config, trial after trial, or goes on where an earlier start of the same command stopped.

  Leaves in WORKDIR: config.json, encoder.json and tokenizer/, a folder a task with a folder a trial, and results as JSON, Markdown and picture.

  `notice`: becomes true when this process is asked to stop; None for one of its own.

  Returns the exit status: 0 when done, PREEMPTED when asked to stop (everything saved).

  Raises UserError for a person's mistakes, and when a loss or gradient is not finite.
  """
  with Status('finetune') as status:
    notice = Notice() if notice is None else notice
    return status.end(_finetune(config, workdir, notice, status))


def _finetune(config: Any, workdir: str, notice: Notice, status: Status) -> int:
  """Does the work of `finetune`; `status` is the status file of the run."""
  run = resolve_finetuning(config, workdir)
  config, workdir = run.config, run.workdir
  task_program.same_on_all(config)
  hosts.from_first(lambda: task_program.claim(workdir, config))
  status.claim(workdir)
  hosts.check_shared(workdir)
  console.heading(f'{config.name}  ({workdir})')

  #### Devices, data, encoder ########################################################################################
  layout, devices = partitioning.make_layout(config), jax.devices()
  say(
    'devices',
    f'{len(devices)} x {devices[0].device_kind}'
    + (f' of {jax.process_count()} processes' if jax.process_count() > 1 else '')
    + ', mesh '
    + ' x '.join(f'{name} {size}' for name, size in layout.mesh.shape.items()),
  )
  if config.compilation_cache:
    jax.config.update('jax_compilation_cache_dir', os.path.expanduser(config.compilation_cache))
  tasks = [open_task(name, config) for name in config.tasks]
  for task in tasks:  # all data is read before the first step
    examples = {split: task.examples(split) for split in ('train', 'dev') if split in task.splits}
    for split in ('train', 'dev'):
      if not len(examples.get(split, ())):
        raise UserError(
          f'{task.name} has no {split} data; name the file with --config.data.{split}, or its folder with --config.data.source.'
        )
    others = ', '.join(
      f'{len(task.examples(split)):,} {split}' for split in task.splits if split not in examples
    )
    say(
      task.name,
      f'{len(examples["train"]):,} train, {len(examples["dev"]):,} dev'
      + (f', {others}' if others else '')
      + (f'; labels {_some(task.labels)}' if task.labels else ''),
    )
  start = initial.open_initial(config, run.origin)
  if 'checksum' in start.origin:
    hosts.same_everywhere(f'the weights of {config.init}', str(start.origin['checksum']))
  say('encoder', start.describe())
  for note in start.notes:
    say('', note)
  hosts.from_first(lambda: keep_encoder(workdir, start))

  #### Tasks #########################################################################################################
  status.change(restored_step=hosts.from_first(lambda: _steps_of_trials(workdir, config.tasks)))
  if (
    len(tasks) > 1
  ):  # what was read of all of them is let go; each is read again when its turn comes
    tasks = [task.name for task in tasks]
  for task in tasks:
    task = open_task(task, config) if isinstance(task, str) else task
    folder = workdir / task.name
    todo = [
      trial
      for trial in range(1, config.num_trials + 1)
      if not run_folder.exists(folder / f'trial-{trial}' / RESULT)
    ]
    if not run_folder.exists(folder / initial.KEPT):
      hosts.from_first(functools.partial(describe, config, task, folder))
    if todo:
      p, splits = prepare(config, task, start, layout)
      identity = _identity(p.train)
      hosts.same_everywhere(f'the data of {task.name}', str(identity))
      hosts.from_first(functools.partial(_check_data, folder, identity))
      for trial in todo:
        say(f'trial {trial}', f'of {config.num_trials}, seed {config.seed + trial - 1}')
        try:
          record, params = run_trial(p, trial, folder / f'trial-{trial}', splits, notice, status)
        except jax.errors.JaxRuntimeError as error:
          if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
          raise UserError(
            f'{task.name} does not fit the memory of a device; split its batches (--config.micro_batches=2), compute again what takes '
            'room (--config.model.remat=full), or lower --config.eval_batch_size.'
          ) from None
        if record is None:
          return PREEMPTED
        hosts.from_first(functools.partial(_keep_weights, config, task, folder))
        figures = record['figures']['dev']
        say(
          'dev',
          ', '.join(
            f'{name} {value:.4f}' for name, value in figures.items() if math.isfinite(value)
          ),
        )
        del params
      del p, splits
    hosts.from_first(
      functools.partial(_keep_weights, config, task, folder)
    )  # again, as a start before may have ended just before
    _show(workdir, [task.name])

  #### Results #######################################################################################################
  names = config.tasks
  records = read_records(workdir, names)
  if len(names) > 1:
    print('\n' + trial_summary.trials_table(trial_summary.summarize_trials(records)) + '\n')
  hosts.from_first(lambda: write_results(workdir, config, start, records))
  say('results', str(workdir / RESULTS))
  say('next', f'python -m electra_jax.main --mode=predict --workdir={workdir} --input=FILE')
  return 0


def prepare(config, task, start, layout):
  """The program of a task and the parts of its data that are scored, tokenized; says what was cut off and what will be done."""
  max_length = config.max_length or task.recipe.max_length
  examples = task.examples('train')
  if 0 < config.train_examples < len(examples):
    chosen = np.sort(permutation(np.arange(config.train_examples), len(examples), config.seed, 0))
    examples = [examples[i] for i in chosen]
    say('', f'{config.train_examples:,} of the training examples, by config.train_examples')

  def tokenize(split, examples):
    features, notes = task.features(examples, start.tokenizer, max_length)
    if len(features) == 0:
      raise UserError(f'{task.name}: the {split} data makes no rows; give more of it.')
    told = ', '.join(f'{count:,} {what}' for what, count in notes.items() if count)
    if told:
      say('', f'{split}: {told}')
    return Split(examples, features)

  train = tokenize('train', examples).features

  def seems_labeled(split):
    first = task.examples(split)[:64]
    return task.labeled(split, task.features(first, start.tokenizer, max_length)[0])

  scored = (
    'dev',
    *(
      s
      for s in task.splits
      if s not in ('train', 'dev') and seems_labeled(s)
    ),
  )
  splits = {
    name: split
    for name in scored
    if (split := tokenize(name, task.examples(name))) and (name == 'dev' or task.labeled(name, split.features))
  }
  p = task_program.program(config, task, start, layout, train, max_length)
  tokens = sum(map(len, train.token_ids))
  padded = sum(
    p.config.batch_size
    * next(n for n in p.lengths if n >= max(len(train.token_ids[r]) for r in rows))
    for rows in (
      batches.Epochs(train, config.batch_size, config.seed, config.bucketed).rows(i)
      for i in range(p.steps_per_epoch)
    )
  )
  rate, decay = p.rates
  say(
    '',
    f'{p.steps:,} steps of {config.batch_size} rows, {p.steps / p.steps_per_epoch:.3g} epochs of {len(train):,} rows of at most {max_length} tokens; '
    f'{1 - tokens / padded:.0%} padding',
  )
  learning = p.shapes.params['head'] if config.frozen else p.shapes.params
  say(
    '',
    f'{quantity(initial.weights_count(learning))} parameters'
    + (' of the head, on a frozen encoder' if config.frozen else '')
    + f', learning rate {rate:g}'
    + ('' if config.frozen else f', layer by layer times {decay:g}')
    + (' (depths as published)' if config.optimizer.published_depths else '')
    + f', attention {p.attention[0]} ({p.attention[1]})',
  )
  for line in partitioning.describe(p.shapes.params, p.shardings.params, layout):
    say('', line)
  return p, splits


def _some(labels, most: int = 8) -> str:
  return ', '.join(labels[:most]) + (f', ... ({len(labels)})' if len(labels) > most else '')


def describe(config, task, folder) -> None:
  """What prediction needs to know of a task."""
  folder.mkdir(parents=True, exist_ok=True)
  run_folder.write_json(
    folder / initial.TASK,
    task.describe()
    | {'metric': task.metric, 'max_length': config.max_length or task.recipe.max_length},
  )


def keep_encoder(workdir, start) -> None:
  """What a person needs to open the run without the one that it began with."""
  run_folder.write_json(
    workdir / initial.ENCODER, {'model': to_plain(start.model), 'origin': start.origin}
  )
  folder = workdir / 'tokenizer'
  try:
    kept = load_tokenizer(folder).fingerprint if run_folder.exists(folder) else None
  except UserError:  # a start ended while it was being written
    kept = None
  if kept != start.tokenizer.fingerprint:
    with run_folder.reaching(folder, 'written'):
      folder.rmtree(missing_ok=True)
      start.tokenizer.save(folder)


def _identity(features) -> int:
  """A checksum of all that is trained on."""
  sums = [zlib.crc32(np.concatenate(features.token_ids).tobytes())]
  for _, values in sorted(features.targets.items()):
    sums.append(
      zlib.crc32(
        (np.concatenate(values) if isinstance(values, list) else np.asarray(values)).tobytes()
      )
    )
  return zlib.crc32(str(sums).encode())


def _check_data(folder, identity):
  path = folder / DATA
  if run_folder.exists(path) and run_folder.read_json(path)['identity'] != identity:
    if any(folder.glob('trial-*')):
      raise UserError(
        f'the training data of {folder.name} is not what {folder} was begun with; restore it, or use another --workdir.'
      )
  run_folder.write_json(path, {'identity': identity})


def _keep_weights(config, task, folder):
  """Keeps the checkpoints of the trials that config.keep_trials says, and notes which, the best first."""
  records = read_records(folder.parent, [folder.name])

  def value(record):
    return -math.inf if (v := record['figures']['dev'].get(record['metric'])) is None else v

  ranked = [
    record['trial']
    for record in sorted(records, key=lambda record: (-value(record), record['trial']))
  ]
  ranked = [trial for trial in ranked if (folder / f'trial-{trial}' / 'checkpoints').exists()]
  kept = ranked[: {'best': 1, 'all': len(ranked), 'none': 0}[config.keep_trials]]
  best = next((r['figures']['dev'] for r in records if kept and r['trial'] == kept[0]), {})
  tuned = task.tuned(best)
  if tuned is not task:  # SQuAD 2.0: the threshold that is best for the best trial
    describe(config, tuned, folder)
  run_folder.write_json(folder / initial.KEPT, {'trials': kept})
  for trial in ranked:
    if trial not in kept:
      (folder / f'trial-{trial}' / 'checkpoints').rmtree()


def read_records(workdir, tasks) -> list[dict]:
  """The records of the trials that are done, by task and trial."""
  records = []
  for task in tasks:
    folder = workdir / task
    with run_folder.reaching(folder):
      paths = (
        sorted(
          folder.glob(f'trial-*/{RESULT}'), key=lambda path: int(path.parent.name.split('-')[1])
        )
        if folder.exists()
        else []
      )
    records += [run_folder.read_json(path) for path in paths]
  return records


def _steps_of_trials(workdir: epath.Path, tasks: Sequence[str]) -> int:
  """Optimizer steps of the trials that are done, over all tasks."""
  return sum(record['steps'] for record in read_records(workdir, tasks))


def _show(workdir, tasks):
  records = read_records(workdir, tasks)
  print('\n' + trial_summary.trials_table(trial_summary.summarize_trials(records)) + '\n')
  for trial in trial_summary.collapsed_trials(records):
    say(
      'collapsed',
      f'trial {trial["trial"]} of {trial["task"]} says the same of everything, as fine-tuning now and then does on little data: '
      'look at the median, take more trials, or a lower --config.optimizer.learning_rate',
    )


def write_results(workdir, config, start, records) -> None:
  """results.json, results.md and results.png of all trials."""
  summaries = trial_summary.summarize_trials(records)
  run_folder.write_json(
    workdir / RESULTS,
    plain(
      {
        'origin': start.origin,
        'summaries': summaries,
        'glue': trial_summary.glue_average(summaries),
        'trials': records,
      }
    ),
  )
  run_folder.write_bytes(workdir / 'results.md', trial_summary.trials_markdown(summaries).encode())
  image, headline = io.BytesIO(), f'{config.name}: {start.describe()}'
  trial_summary.draw_trials(records, headline).savefig(image, dpi=130, format='png')
  run_folder.write_bytes(workdir / 'results.png', image.getvalue())

"""Files of a fine-tuning run's folder.

A run's folder holds config.json, encoder.json, tokenizer/, results of all tasks, and a folder per
task with a folder per trial.
"""

import io
import math
import os
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from electra_jax import file_access
from electra_jax.config import FinetuningConfig, to_plain
from electra_jax.data.tokenizers.tokenizer_folders import keep_tokenizer, saved_fingerprint
from electra_jax.errors import UserError
from electra_jax.finetune import initial, trial_summary
from electra_jax.finetune.resolve import started
from electra_jax.finetune.tasks.tables import plain_label
from electra_jax.finetune.tasks.task import Features, Task
from electra_jax.training import plugins, run_folder, versions
from electra_jax.training.kept_config import CONFIG, another_config_error, changed_fields

RESULT = 'result.json'  # in the folder of a trial
RESULTS = 'results.json'  # in the folder of the run
SEARCH = 'search.json'  # in the folder of a task: what a search compared and chose
DATA = 'data.json'  # in the folder of a task: identity of its training data

Json = Any
Record = dict[str, Any]  # content of a trial's result.json


def claim_finetuning(workdir: str | os.PathLike[str], config: FinetuningConfig) -> None:
  """Takes a folder for the run of a config, or checks that it is the run's already.

  A folder without a trial may be taken by another config.

  Args:
    workdir: the folder.
    config: the run's config; it is written to config.json.

  Raises:
    UserError: the folder cannot be written or reached, or holds the run of another config.
  """
  folder = run_folder.folder(workdir)
  run_folder.check_writable(folder)
  changed = changed_fields(folder, config)
  if changed and started(folder):
    raise another_config_error(folder, changed)
  run_folder.write_json(folder / CONFIG, to_plain(config))
  versions.record_versions(folder, resumed=started(folder))
  plugins.record(folder, config.specs)


def keep_encoder(workdir: epath.Path, start: initial.Initial, dtype: str | None = None) -> None:
  """Writes encoder.json and tokenizer/, so that the run opens without the run it started from.

  Args:
    workdir: the run's folder.
    start: encoder and tokenizer.
    dtype: of matrix products in training, for later starts of the run.

  Raises:
    UserError: trials were trained with another tokenizer, or the files cannot be written.
  """
  folder = workdir / 'tokenizer'
  kept = saved_fingerprint(folder)
  if kept not in (None, start.tokenizer.fingerprint) and started(workdir):
    raise UserError(
      f'the tokenizer of the encoder is not the one that {workdir} was started with; restore what '
      'config.init names, or use another --workdir.'
    )
  record = {'model': to_plain(start.model), 'origin': start.origin}
  run_folder.write_json(workdir / initial.ENCODER, record | ({'dtype': dtype} if dtype else {}))
  keep_tokenizer(folder, start.tokenizer)


#### The folder of a task ####


def write_task(config: FinetuningConfig, task: Task, folder: epath.Path) -> None:
  """Writes what prediction needs to know of a task into the task's folder."""
  folder.mkdir(parents=True, exist_ok=True)
  max_length = config.max_length or task.recipe.max_length
  run_folder.write_json(
    folder / initial.TASK, task.describe() | {'metric': task.metric, 'max_length': max_length}
  )


def data_checksum(features: Features) -> int:
  """A checksum of all training rows and targets."""
  sums = [zlib.crc32(np.concatenate(features.token_ids).tobytes())]
  for _, values in sorted(features.targets.items()):
    array = np.concatenate(values) if isinstance(values, list) else np.asarray(values)
    sums.append(zlib.crc32(array.tobytes()))
  return zlib.crc32(str(sums).encode())


def check_data(folder: epath.Path, checksum: int) -> None:
  """Checks that the training data is that of earlier trials, and records it.

  Raises:
    UserError: a trial was started with other data.
  """
  path = folder / DATA
  if file_access.exists(path) and run_folder.read_json(path)['identity'] != checksum:
    _refuse_other_data(folder)
  run_folder.write_json(path, {'identity': checksum})


def check_labels(folder: epath.Path, task: Task) -> None:
  """Checks that the labels are those of earlier trials: targets are their indices.

  Raises:
    UserError: a trial was started with others.
  """
  path = folder / initial.TASK
  if not file_access.exists(path):
    return
  recorded = run_folder.read_json(path).get('labels', task.labels)
  # Earlier versions wrote the labels 1.0 and 2.0 of some tables with their fractions.
  plain = [[plain_label(str(label)) for label in labels] for labels in (recorded, task.labels)]
  if plain[0] != plain[1]:
    _refuse_other_data(folder)


def _refuse_other_data(folder: epath.Path) -> None:
  if any(any(folder.glob(place)) for place in ('trial-*', 'search/*/trial-*')):
    raise UserError(
      f'the training data of {folder.name} is not what {folder} was started with; restore it, or '
      'use another --workdir.'
    )


def keep_weights(config: FinetuningConfig, task: Task, folder: epath.Path) -> None:
  """Removes the checkpoints of trials that config.keep_trials does not keep.

  Writes the kept trials to kept.json, the best first. May be called again at any time.
  """
  records = read_records(folder.parent, [folder.name])
  ranked = [
    record['trial'] for record in sorted(records, key=lambda r: (-_dev_value(r), r['trial']))
  ]
  ranked = [trial for trial in ranked if _checkpoints(folder, trial).exists()]
  kept = ranked[: {'best': 1, 'all': len(ranked), 'none': 0}[config.keep_trials]]
  best = [record['figures']['dev'] for record in records if record['trial'] in kept[:1]]
  tuned = task.tuned(best[0]) if best else task
  if tuned is not task:
    write_task(config, tuned, folder)
  run_folder.write_json(folder / initial.KEPT, {'trials': kept})
  for trial in ranked:
    if trial not in kept:
      _checkpoints(folder, trial).rmtree()


def _checkpoints(folder: epath.Path, trial: int) -> epath.Path:
  return folder / f'trial-{trial}' / 'checkpoints'


def _dev_value(record: Record) -> float:
  """The metric of a trial on dev; -inf if it is not defined."""
  value = record['figures']['dev'].get(record['metric'])
  return -math.inf if value is None else float(value)


#### Results ####


def json_values(value: Json) -> Json:
  """A record with plain Python values; numbers that are not finite become None."""
  if isinstance(value, dict):
    return {name: json_values(item) for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [json_values(item) for item in value]
  if isinstance(value, (np.floating, float)):
    return float(value) if math.isfinite(value) else None
  return int(value) if isinstance(value, np.integer) else value


def read_records(workdir: epath.Path, tasks: Sequence[str]) -> list[Record]:
  """Reads the records of finished trials, by task and trial."""
  records: list[Record] = []
  for task in tasks:
    folder = workdir / task
    with file_access.reaching(folder):
      paths = list(folder.glob(f'trial-*/{RESULT}')) if folder.exists() else []
    paths.sort(key=lambda path: int(path.parent.name.split('-')[1]))
    records += [run_folder.read_json(path) for path in paths]
  return records


def searched_records(folder: epath.Path) -> list[Record]:
  """Records of finished trials of a search that are not (yet) the run's trials.

  Args:
    folder: of the task.
  """
  with file_access.reaching(folder):
    paths = sorted(folder.glob(f'search/*/trial-*/{RESULT}')) if folder.exists() else []
  return [run_folder.read_json(path) for path in paths]


def chosen_setting(folder: epath.Path) -> dict[str, Any]:
  """The setting that a search has chosen for a task: by field, what it changes; {} for none.

  Args:
    folder: of the task.
  """
  path = folder / SEARCH
  if not file_access.exists(path):
    return {}
  changes: dict[str, Any] = run_folder.read_json(path, {'chosen': {'changes': dict}})['chosen'][
    'changes'
  ]
  return changes


def steps_of_trials(workdir: epath.Path, tasks: Sequence[str]) -> int:
  """Optimizer steps of the finished trials, over all tasks, those of searches included."""
  found = read_records(workdir, tasks)
  for task in tasks:
    found += searched_records(workdir / task)
  return sum(record['steps'] for record in found)


def write_results(
  workdir: epath.Path, config: FinetuningConfig, start: initial.Initial, records: list[Record]
) -> None:
  """Writes results.json, results.md and results.png of all trials."""
  summaries = trial_summary.summarize_trials(records)
  chosen = {task: chosen_setting(workdir / task) for task in summaries}
  results = {
    'origin': start.origin,
    'search': {task: setting for task, setting in chosen.items() if setting},
    'summaries': summaries,
    'glue': trial_summary.glue_average(summaries),
    'trials': records,
  }
  run_folder.write_json(workdir / RESULTS, json_values(results))
  file_access.write_bytes(workdir / 'results.md', trial_summary.trials_markdown(summaries).encode())
  image = io.BytesIO()
  figure = trial_summary.draw_trials(records, f'{config.name}: {start.describe()}')
  figure.savefig(image, dpi=130, format='png')
  file_access.write_bytes(workdir / 'results.png', image.getvalue())

"""Files of reports: what a trial writes about its predictions, and a task about its texts.

They are small, written once, and read by pages and model cards.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from electra_jax import file_access
from electra_jax.data.tokenizers.character_losses import CharacterLosses
from electra_jax.finetune.report_blocks import Report, report_of_json
from electra_jax.finetune.run_files import json_values
from electra_jax.finetune.task_losses import Split
from electra_jax.training import progress, run_folder

REPORT = 'report.json'  # in the folder of a trial
TEXTS = 'texts.json'  # in the folder of a task
MOST_LOSSES = 200  # points of a learning curve
_EXAMPLES = 10  # characters of each fate, the most frequent ones


#### Trials ####


def write_trial_report(folder: epath.Path, step: int, reports: Mapping[str, Report]) -> None:
  """Writes the reports of a trial, beside those that it has of other parts of the data.

  Args:
    folder: WORKDIR/<task>/trial-<number>.
    step: of the weights.
    reports: by part of the data.
  """
  splits: dict[str, Any] = {}
  if file_access.exists(folder / REPORT):
    content = run_folder.read_json(folder / REPORT, {'splits': dict, 'step': int})
    splits = content['splits'] if content['step'] == step else {}
  splits |= {name: report.to_json() for name, report in reports.items()}
  run_folder.write_json(folder / REPORT, json_values({'step': step, 'splits': splits}))


def read_trial_report(folder: epath.Path) -> dict[str, Report]:
  """The reports of a trial by part of the data; {} where it was made by an earlier version."""
  if not file_access.exists(folder / REPORT):
    return {}
  content = run_folder.read_json(folder / REPORT, {'splits': dict})
  return {name: report_of_json(report) for name, report in content['splits'].items()}


def training_losses(folder: epath.Path, steps_per_epoch: int) -> list[dict[str, float]]:
  """The training losses of a trial: `step`, `epoch` and `loss`, at most MOST_LOSSES of them.

  Of more lines in metrics.jsonl neighbors are averaged.

  Args:
    folder: WORKDIR/<task>/trial-<number>.
    steps_per_epoch: steps of an epoch.
  """
  lines = [line for line in progress.read_metrics(folder) if line['kind'] == 'train']
  parts = np.array_split(np.arange(len(lines)), min(len(lines), MOST_LOSSES)) if lines else []
  found = []
  for part in parts:
    losses = [lines[i]['loss'] for i in part if lines[i]['loss'] is not None]
    step = lines[part[-1]]['step']
    if losses:
      epoch = step / steps_per_epoch
      found.append({'step': step, 'epoch': epoch, 'loss': sum(losses) / len(losses)})
  return found


#### Texts ####


def write_texts(folder: epath.Path, splits: Mapping[str, Split]) -> None:
  """Writes what is known of the texts of a task: numbers, and characters that are lost.

  Args:
    folder: WORKDIR/<task>.
    splits: the parts of the data.
  """
  run_folder.write_json(folder / TEXTS, {name: _described(one) for name, one in splits.items()})


def _described(split: Split) -> dict[str, Any]:
  losses = split.losses or CharacterLosses()
  kept = {fate: dict(losses.most_frequent(fate, _EXAMPLES)) for fate in losses.examples}
  lengths = np.array([len(ids) for ids in split.features.token_ids])
  return {
    'examples': len(split.examples),
    'rows': len(lengths),
    'tokens': int(lengths.sum()),
    'median_length': float(np.median(lengths)),
    'longest': int(lengths.max()),
    'counts': {name: int(count) for name, count in (split.counts or {}).items() if count},
    'losses': dataclasses.asdict(dataclasses.replace(losses, examples=kept)),
  }


def read_texts(folder: epath.Path) -> dict[str, dict[str, Any]]:
  """What `write_texts` wrote, with `losses` as `CharacterLosses`; {} where there is nothing."""
  if not file_access.exists(folder / TEXTS):
    return {}
  content: dict[str, dict[str, Any]] = run_folder.read_json(folder / TEXTS)
  return {name: one | {'losses': CharacterLosses(**one['losses'])} for name, one in content.items()}


def split_names(names: Sequence[str]) -> list[str]:
  """Names of parts of the data in the order in which they are shown."""
  first = ('dev', 'test', 'train')
  return sorted(names, key=lambda name: (first.index(name) if name in first else 1.5, name))

"""Reports of fine-tuned runs: WORKDIR/report.html, and the page of predictions of labeled data."""

import os
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from etils import epath

from electra_jax import console, file_access
from electra_jax.config import FinetuningConfig, ModelConfig, from_plain
from electra_jax.config.families import FAMILIES
from electra_jax.errors import UserError
from electra_jax.finetune import initial, report_files
from electra_jax.finetune.predict import predict
from electra_jax.finetune.report_blocks import Report
from electra_jax.finetune.resolve import learning_rates
from electra_jax.finetune.run_files import SEARCH, read_records
from electra_jax.finetune.search_report import Search
from electra_jax.pages.finetuned_page import FinetunedFiles, finetuned_page, scored_page
from electra_jax.training import plugins, run_folder, versions
from electra_jax.training.run_folder import read_json, read_json_if_any

PAGE = 'report.html'


def finetuned_report(workdir: str | os.PathLike[str]) -> None:
  """Writes WORKDIR/report.html of a fine-tuned run, from what its trials recorded.

  Raises:
    UserError: no trial is finished, a file is damaged, or the folder cannot be written.
  """
  files = read_finetuned(workdir)
  folder = run_folder.folder(workdir)
  file_access.write_bytes(folder / PAGE, finetuned_page(files).encode())
  with console.results():
    console.say('page', str(folder / PAGE))
    for record in files.records:
      value = record['figures']['dev'].get(record['metric'])
      shown = '-' if value is None else f'{value:.4f}'
      console.say(record['task'], f'trial {record["trial"]}: {record["metric"]} {shown} on dev')


def read_finetuned(workdir: str | os.PathLike[str]) -> FinetunedFiles:
  """Reads what a fine-tuned run recorded.

  Raises:
    UserError: no trial is finished, or a file is damaged.
  """
  folder = run_folder.folder(workdir)
  plugins.require_recorded(folder)
  plain = read_json(folder / 'config.json')
  config = from_plain(plain, FinetuningConfig)
  encoder = read_json(folder / initial.ENCODER, initial.ENCODER_SHAPE)
  records = read_records(folder, config.tasks)
  if not records:
    raise UserError(
      f'{folder} has no finished trial to report; complete it with --mode=finetune, or score a '
      'labeled file with --mode=predict --report=FILE.html.'
    )
  tasks = dict.fromkeys(record['task'] for record in records)
  reports: dict[str, tuple[int, dict[str, Report]]] = {}
  for name in tasks:
    kept = initial.kept_trials(folder / name)
    number = kept[0] if kept else _best_trial([r for r in records if r['task'] == name])
    found = report_files.read_trial_report(folder / name / f'trial-{number}')
    reports[name] = number, found
  model = from_plain(encoder['model'], ModelConfig)
  return FinetunedFiles(
    workdir=str(folder),
    config=plain,
    encoder=f'{_origin(encoder["origin"], config)}, fine-tuned on {", ".join(tasks)}',
    essentials=[_encoder_row(encoder['origin'], config), *main_settings(config, model)],
    records=records,
    reports=reports,
    texts={name: report_files.read_texts(folder / name) for name in tasks},
    searches=_searches(folder, list(tasks)),
    status=read_json_if_any(folder / 'status.json') or {},
    versions=read_json_if_any(folder / versions.FILE) or {},
  )


def _searches(folder: epath.Path, tasks: Sequence[str]) -> dict[str, Search]:
  """What searches compared and chose, by task."""
  found = {name: read_json_if_any(folder / name / SEARCH) for name in tasks}
  return {name: search for name, search in found.items() if search is not None}


def _best_trial(records: list[dict[str, Any]]) -> int:
  """The number of the trial with the best metric on dev, the first of equal ones."""

  def value(record: dict[str, Any]) -> float:
    found = record['figures']['dev'].get(record['metric'])
    return float('-inf') if found is None else float(found)

  return int(max(records, key=value)['trial'])


def _origin(origin: dict[str, Any], config: FinetuningConfig) -> str:
  if config.init == 'none':
    return f'Fresh weights in the encoder of {origin["run"]}'
  step = origin.get('step')
  return f'The encoder of {origin["run"]}' + (f', step {step:,}' if step is not None else '')


def _encoder_row(origin: dict[str, Any], config: FinetuningConfig) -> tuple[str, str]:
  tokens = origin.get('tokens')
  trained = f', pretrained on {tokens:,.0f} tokens' if tokens else ''
  return 'encoder', f'{_origin(origin, config)}{trained}'


def main_settings(config: FinetuningConfig, model: ModelConfig) -> list[tuple[str, str]]:
  """Names and values of the settings that matter, with what the defaults leave open.

  Args:
    config: of the run.
    model: the group config.model of the encoder.
  """
  rate, decay = learning_rates(config, model.hidden_size)
  o, kind = config.optimizer, FAMILIES[model.family]
  lengths = config.max_length or 'as published for the task'
  return [
    (
      'sizes',
      f'{model.family}, {model.num_layers} layers of {model.hidden_size}'
      + (', layers shared' if kind.shared_layers else ''),
    ),
    ('encoder while training', 'frozen: only the head is trained' if config.frozen else ''),
    (
      'learning rate',
      f'{rate:g}, warm-up over {o.warmup:.0%} of the steps, then linear decay',
    ),
    ('layer-wise decay', '' if config.frozen else f'{decay:g} per layer from the head down'),
    ('weight decay', f'{o.weight_decay:g}'),
    ('epochs', f'{config.epochs:g}' if config.epochs else 'as published for the task'),
    ('batch', f'{config.batch_size} rows'),
    ('tokens of a row', f'{lengths}'),
    ('dropout', f'{config.model.dropout:g} of the encoder'),
    ('head', f'{config.head.style}, pooling {config.head.pooling}'),
    ('class weights', config.head.class_weights),
    ('label smoothing', f'{config.head.label_smoothing:g}' if config.head.label_smoothing else ''),
    ('selected weights', f'{config.select} evaluation on dev'),
  ]


#### Predictions ####


class PredictOptions(TypedDict):
  """Further flags of --mode=predict, see `finetune.predict.predict`."""

  task: str | None
  output: str | None
  allow_loss: bool
  ensemble: str | None


def predict_mode(
  workdir: str,
  source: str | None,
  split: str | None,
  report: str | None = None,
  **options: Unpack[PredictOptions],
) -> None:
  """Predicts as `finetune.predict.predict`, and writes a page about labeled data.

  Args:
    workdir: of the fine-tuned run.
    source: see `predict`.
    split: see `predict`.
    report: HTML file to write; None for none.
    **options: see `predict`.

  Raises:
    UserError: what `predict` raises, or `report` is given and the data has no labels.
  """
  scored = predict(workdir, source=source, split=split, **options)
  if report is None:
    return
  if not scored:
    raise UserError(
      f'{source or split} has no label to compare with, which --report requires; remove --report.'
    )
  parts = {f'{name}, {part}': found for name, part, found in scored}
  lead = f'Predictions of {workdir}.'
  page = scored_page(os.path.basename(workdir.rstrip('/')), lead, parts)
  file_access.write_bytes(report, page.encode())
  console.warn(f'the report is written to {report}')

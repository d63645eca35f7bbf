"""--mode=predict: predictions for a file, or for a split of a fine-tuned run's own data."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from electra_jax import console, file_access
from electra_jax.data.tokenizers import loss_report
from electra_jax.errors import UserError
from electra_jax.finetune import task_losses
from electra_jax.finetune.dev_split import open_split_task
from electra_jax.finetune.finetuned import FineTunedRun, open_finetuned, tasks_of
from electra_jax.finetune.predictions import Score
from electra_jax.finetune.report_blocks import Report, report_blocks
from electra_jax.finetune.tasks import define_task
from electra_jax.finetune.tasks.task import Features, Outputs, Task
from electra_jax.training import run_folder


class Scored(NamedTuple):
  """A report about a part of the data: the task, the name of the part or file, and the report."""

  task: str
  part: str
  report: Report


def predict(
  workdir: str | os.PathLike[str],
  *,
  source: str | None,
  task: str | None,
  split: str | None,
  output: str | None,
  allow_loss: bool = False,
  ensemble: str | None = None,
) -> list[Scored]:
  """Writes predictions as JSON lines, one per example.

  Either `source` or `split` is given.

  Args:
    workdir: of the fine-tuned run.
    source: a file in any format that the task reads, '-' for standard input.
    task: name of the task; required with `source` if the run has several.
    split: 'test', 'dev' or another split of the data in the run's config, of all its tasks unless
      `task` is given; files for the tasks' evaluation sites are written, too.
    output: with `source` the file to write; None prints the predictions and nothing else. With
      `split` the folder to write to.
    allow_loss: whether the tokenizer may lose 20% or more of the characters, as it may where the
      run was made with config.allow_loss.
    ensemble: 'all' to average the predictions of all trials whose weights are kept, or the number
      of the best ones; None for the best trial.

  Returns:
    A report for each part of the data that has labels.

  Raises:
    UserError: the run, the task or the data does not exist, the data is malformed, or the tokenizer
      loses much of it.
  """
  if (source is None) == (split is None):
    raise UserError(
      '--mode=predict requires exactly one of --input and --split: a file (--input=FILE, '
      "'-' for standard input), or a split of the run's own data (--split=test)."
    )
  members = _members(ensemble)
  if source is not None:
    return _predict_file(open_finetuned(workdir, task, members), source, output, allow_loss)
  names = [task] if task else tasks_of(workdir)
  if not names:
    open_finetuned(workdir)  # raises an error that names what is missing
  folder = output or file_access.join(str(workdir), 'predictions')
  scored: list[Scored] = []
  for name in names:
    run = open_finetuned(workdir, name, members)
    scored += _predict_split(run, split or '', folder, len(names) == 1, allow_loss)
  return scored


def _members(ensemble: str | None) -> bool | int:
  """The trials of --ensemble, as `open_finetuned` takes them."""
  if ensemble is None or ensemble == 'all':
    return ensemble is not None
  if not ensemble.isascii() or not ensemble.isdecimal():
    raise UserError(f'--ensemble is {ensemble!r}; expected all, or a number of trials.')
  return int(ensemble)


def _report_losses(
  run: FineTunedRun, examples: Sequence[Any], features: Features, what: str, allow_loss: bool
) -> None:
  """Prints on stderr what the tokenizer loses of examples.

  Raises:
    UserError: it loses much, which is not allowed.
  """
  losses = task_losses.count_losses(run.task, examples, features, run.tokenizer)
  if not allow_loss and not run.config.allow_loss:
    task_losses.check_model_losses(losses, what, '--allow_loss')
  if losses.lost or losses.truncated:
    console.warn(f'of {losses.characters:,} characters {loss_report.loss_summary(losses)}')
  for warning in task_losses.model_loss_warnings(losses, what):
    console.warn(f'warning: {warning}')


def _predict_file(
  run: FineTunedRun, source: str, output: str | None, allow_loss: bool
) -> list[Scored]:
  """Predicts a file, and scores it where it has labels."""
  start = time.perf_counter()
  with console.phase('reading', 'the examples'):
    examples, unknown = run.task.read_labeled(source)
    features, counts = run.features(examples)
  for what, count in counts.items():
    if count:
      console.warn(f'{count:,} {what}')
  _report_losses(run, examples, features, f'the input of {run.task.name}', allow_loss)
  outputs = _outputs(run, features)
  predictions = run.task.predictions(examples, features, outputs)
  score = run.score_of(examples, features, outputs, unknown)
  scored = [Scored(run.task.name, source, score.report)] if score else []
  text = _json_lines(predictions)
  if output is None:
    sys.stdout.write(text)
    for line in _score_lines(score, unknown):
      console.warn(line)
    return scored
  file_access.write_bytes(output, text.encode())
  for line in _score_lines(score, unknown):
    console.say(run.task.name, line, always=True)
  what = f'{len(predictions):,} predictions of {run.task.name}, {run.trial}, to {output}'
  console.say('written', f'{what}, in {console.seconds(time.perf_counter() - start)}', always=True)
  return scored


def _score_lines(score: Score | None, unknown: Mapping[str, int]) -> list[str]:
  """What a labeled file scores, and the labels that the task does not have."""
  lines: list[str] = []
  if unknown:
    counted = ', '.join(f'{label!r} ({count:,})' for label, count in sorted(unknown.items()))
    lines.append(f'labels that the run does not have, which are not scored: {counted}')
  if score is not None:
    part = f'{score.labeled:,} of {score.examples:,} examples have labels'
    lines.append(f'{part}{_scores_text(score.metrics)}')
  return lines


def _predict_split(
  run: FineTunedRun, split: str, folder: str, required: bool, allow_loss: bool
) -> list[Scored]:
  """Predicts a split and its variants, such as dev_mismatched; with test also the diagnostic set.

  Args:
    run: the fine-tuned task.
    split: its name.
    folder: to write to.
    required: whether a missing split is an error; else it is reported.
    allow_loss: whether the tokenizer may lose much of the text.
  """
  task = _task_with_data(run)
  if split not in task.splits:
    if required:
      raise UserError(f'{task.name} has no {split} data; it has {", ".join(task.splits)}.')
    console.say(task.name, f'has no {split} data and is skipped', always=True)
    return []
  scored: list[Scored] = []
  for name in task.splits:
    diagnostic = split == 'test' and name == 'diagnostic'
    if not (name == split or name.startswith(split + '_') or diagnostic):
      continue
    examples = task.examples(name)
    with console.phase('tokenizing', name):
      features, _ = run.features(examples)
    _report_losses(run, examples, features, f'the {name} data of {task.name}', allow_loss)
    outputs = _outputs(run, features)
    lines = _json_lines(run.task.predictions(examples, features, outputs))
    written = {f'{task.name}.{name}.jsonl': lines.encode()}
    for path, content in run.task.submission(name, examples, features, outputs).items():
      written[os.path.join(run.task.submission_folder(name), path)] = content
    for path, content in written.items():
      file_access.write_bytes(file_access.join(folder, path), content)
    scores = ''
    if name != 'train' and run.task.labeled(name, features):
      metrics = run.task.score(name, examples, features, outputs)
      scores = _scores_text(metrics)
      blocks = report_blocks(run.task, examples, features, outputs)
      scored.append(Scored(task.name, name, Report(len(examples), metrics, blocks)))
    console.say(task.name, f'{len(examples):,} {name}{scores}', always=True)
    console.say('written', f'{", ".join(written)} to {folder}', always=True)
  return scored


def _task_with_data(run: FineTunedRun) -> Task:
  """The task with the data of the run's config; only its examples are used."""
  name = run.task.name
  if run.imported:
    task = define_task(name, run.config, run.task.labels)
  else:
    task, _ = open_split_task(name, run.config, run_folder.folder(run.workdir))
  if task.labels != run.task.labels:
    raise UserError(
      f"{name}: the run's training data has changed: its labels are {', '.join(task.labels)} and "
      f'were {", ".join(run.task.labels)}; restore it, or predict a file with --input.'
    )
  return task


def _scores_text(metrics: dict[str, float]) -> str:
  finite = (f'{name} {value:.4f}' for name, value in metrics.items() if math.isfinite(value))
  return ': ' + ', '.join(finite)


def _outputs(run: FineTunedRun, features: Features) -> Outputs:
  with console.progress('predicting', len(features), 'rows', before='compiling') as live:
    return run.outputs(features, live)


def _json_lines(predictions: Iterable[dict[str, Any]]) -> str:
  return ''.join(json.dumps(prediction, ensure_ascii=False) + '\n' for prediction in predictions)

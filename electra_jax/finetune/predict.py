"""--mode=predict: what a fine-tuned run says of a file, or of a part of its own data with the files for the task's site."""

import json
import math
import sys

from electra_jax import console, file_access
from electra_jax.errors import UserError
from electra_jax.finetune.finetuned import FineTunedRun, open_finetuned, tasks_of
from electra_jax.finetune.splits import is_labeled
from electra_jax.finetune.tasks import define_task, open_task


def predict(
  workdir, *, source: str | None, task: str | None, split: str | None, output: str | None
) -> None:
  """Predictions as JSON lines, one an example.

  Args:
    workdir: of the fine-tuned run.
    source: a file in any layout that the task reads, '-' for standard input; or
    split: 'test', 'dev' or another part of the data in the run's config.data, of all its tasks unless one is named.
    task: its name, where the run has several.
    output: with `source` the file to write, without it lines are printed, and nothing else is; with `split` the folder.

  Raises UserError where the run, the task or the data is not there, or the data is broken.
  """
  if (source is None) == (split is None):
    raise UserError(
      "--mode=predict takes a file (--input=FILE, '-' for standard input) or a part of the run's own data (--split=test), one of the two."
    )
  if split is None:
    return _of_file(open_finetuned(workdir, task), source, output)
  names = [task] if task else tasks_of(workdir)
  if not names:
    open_finetuned(workdir)  # says what is missing
  folder = output or file_access.join(str(workdir), 'predictions')
  for name in names:
    _of_split(open_finetuned(workdir, name), split, folder, alone=len(names) == 1)


def _of_file(run: FineTunedRun, source, output):
  examples = run.task.read(source)
  features, notes = run.features(examples)
  for what, count in notes.items():
    if count:
      print(f'electra_jax: {count:,} {what}', file=sys.stderr)
  predictions = run.task.predictions(
    examples, features, _outputs(run, features, quiet=output is None)
  )
  text = _lines(predictions)
  if output is None:
    sys.stdout.write(text)
  else:
    file_access.write_bytes(output, text.encode())
    console.say(
      'written', f'{len(predictions):,} predictions of {run.task.name}, {run.trial}, to {output}'
    )


def _of_split(run: FineTunedRun, split, folder, alone):
  opened = (run.task.name, run.config.data)
  task = define_task(*opened, run.task.labels) if run.imported else open_task(*opened)
  if task.labels != run.task.labels:
    raise UserError(
      f'{task.name}: the training data of the run has changed: its labels are {", ".join(task.labels)} now and were '
      f'{", ".join(run.task.labels)}; restore it, or name a file with --input.'
    )
  also = ('diagnostic',) if split == 'test' else ()
  chosen = [
    name for name in task.splits if name == split or name.startswith(split + '_') or name in also
  ]
  if split not in task.splits:
    if alone:
      raise UserError(f'{task.name} has no {split} data; it has {", ".join(task.splits)}.')
    console.say(task.name, f'has no {split} data, and is left out')
    return
  for name in chosen:
    examples = task.examples(name)
    features, _ = run.features(examples)
    outputs = _outputs(run, features)
    written = {
      f'{task.name}.{name}.jsonl': _lines(
        run.task.predictions(examples, features, outputs)
      ).encode(),
      # Not GLUE's, whose names tell tasks and parts apart.
      **{
        path
        if run.task.head in ('classification', 'regression')
        else f'{task.name}.{name}/{path}': content
        for path, content in run.task.submission(name, examples, features, outputs).items()
      },
    }
    for path, content in written.items():
      file_access.write_bytes(file_access.join(folder, path), content)
    figures = ''
    if name != 'train' and (task.head != 'span' or name.startswith('dev')) and is_labeled(features):
      figures = ': ' + ', '.join(
        f'{figure} {value:.4f}'
        for figure, value in run.task.score(name, examples, features, outputs).items()
        if math.isfinite(value)
      )
    console.say(task.name, f'{len(examples):,} {name}{figures}')
    console.say('written', f'{", ".join(written)} to {folder}')


def _outputs(run, features, quiet=False):
  if quiet:
    return run.outputs(features)
  with console.progress('predicting', len(features)) as live:
    return run.outputs(features, lambda done: live(done, f'{done:,} of {len(features):,} rows'))


def _lines(predictions) -> str:
  return ''.join(json.dumps(prediction, ensure_ascii=False) + '\n' for prediction in predictions)

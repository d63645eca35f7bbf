"""The table of docs/results.md from the results of benchmarks/finetuning.sh.

Each cell has the median, and the mean with its 95% interval.

python benchmarks/finetuning.py OUT [>> benchmarks/results/finetuning.jsonl with --json]
"""

import json
import pathlib
import sys

from electra_jax.finetune.trial_summary import summarize_trials

# Run, task, split, metric and title of each row.
ROWS = (
  ('cola', 'cola', 'dev', 'matthews', 'CoLA, Matthews'),
  ('sst2', 'sst2', 'dev', 'accuracy', 'SST-2, accuracy (10,000 examples)'),
  ('stsb', 'stsb', 'dev', 'spearman', 'STS-B, Spearman'),
  ('pos', 'pos', 'test', 'accuracy', 'UD EWT parts of speech, accuracy'),
  ('uner', 'ner', 'test', 'f1', 'UNER EWT, entity F1'),
  ('wnut17', 'ner', 'test', 'f1', 'WNUT17, entity F1'),
  ('squad', 'squad1', 'dev', 'f1', 'questions by article, F1'),
  ('squad', 'squad1', 'dev', 'exact', 'the same, exact match'),
)


def cell(folder: pathlib.Path, task: str, split: str, metric: str) -> str:
  """'median, mean (low to high)' times 100; a dash without results."""
  path = folder / 'results.json'
  if not path.exists():
    return '-'
  values = [
    trial['figures'][split][metric]
    for trial in json.loads(path.read_text())['trials']
    if trial['task'] == task
  ]
  if len(values) == 1:
    return f'{100 * values[0]:.1f} (one trial)'
  record = [
    {
      'task': task,
      'trial': i,
      'metric': metric,
      'figures': {'dev': {metric: value}},
      'constant': {},
      'curve': [],
      'best': None,
      'train_loss': None,
    }
    for i, value in enumerate(values, 1)
  ]
  s = summarize_trials(record)[task]['figures']['dev'][metric]
  s = {name: 100 * value for name, value in s.items() if isinstance(value, float)}
  return f'{s["median"]:.1f}, {s["mean"]:.1f} ({s["low"]:.1f} to {s["high"]:.1f})'


def constant(folder: pathlib.Path, metric: str) -> str:
  """The metric of the best constant prediction on dev, times 100."""
  path = folder / 'results.json'
  value = (
    json.loads(path.read_text())['trials'][0]['constant'].get(metric) if path.exists() else None
  )
  return '-' if value is None else f'{100 * value:.1f}'


def main(folder: str) -> None:
  """Prints the table of a folder of results."""
  out = pathlib.Path(folder)
  print('| task | constant prediction (dev) | not pretrained | pretrained |\n|---|---|---|---|')
  for name, task, split, metric, title in ROWS:
    best = constant(out / 'pretrained' / name, metric)
    scratch, pretrained = (
      cell(out / model / name, task, split, metric) for model in ('scratch', 'pretrained')
    )
    print(f'| {title}, {split} | {best} | {scratch} | {pretrained} |')


if __name__ == '__main__':
  main(sys.argv[1])

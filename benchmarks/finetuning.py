"""The table of docs/results.md: median, and mean with its 95% interval, of what benchmarks/finetuning.sh left in a folder.

python benchmarks/finetuning.py OUT [>> benchmarks/results/finetuning.jsonl with --json]
"""

import json
import pathlib
import sys

from electra_jax.finetune.trial_summary import summarize_trials

# The figure that is told of each task, and on which part of the data.
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


def cell(folder: pathlib.Path, task: str, split: str, figure: str) -> str:
  """'median, mean (low to high)' times 100; a dash where nothing is done."""
  path = folder / 'results.json'
  if not path.exists():
    return '-'
  values = [
    trial['figures'][split][figure]
    for trial in json.loads(path.read_text())['trials']
    if trial['task'] == task
  ]
  if len(values) == 1:
    return f'{100 * values[0]:.1f} (one trial)'
  record = [
    {
      'task': task,
      'trial': i,
      'metric': figure,
      'figures': {'dev': {figure: value}},
      'constant': {},
      'curve': [],
      'best': None,
      'train_loss': None,
    }
    for i, value in enumerate(values, 1)
  ]
  s = summarize_trials(record)[task]['figures']['dev'][figure]
  return f'{100 * s["median"]:.1f}, {100 * s["mean"]:.1f} ({100 * s["low"]:.1f} to {100 * s["high"]:.1f})'


def constant(folder: pathlib.Path, task: str, figure: str) -> str:
  path = folder / 'results.json'
  value = (
    json.loads(path.read_text())['trials'][0]['constant'].get(figure) if path.exists() else None
  )
  return '-' if value is None else f'{100 * value:.1f}'


if __name__ == '__main__':
  out = pathlib.Path(sys.argv[1])
  print('| task | one answer to all (dev) | from scratch | pretrained |\n|---|---|---|---|')
  for name, task, split, figure, title in ROWS:
    of = {
      model: cell(out / model / name, task, split, figure) for model in ('scratch', 'pretrained')
    }
    print(
      f'| {title}, {split} | {constant(out / "pretrained" / name, task, figure)} | {of["scratch"]} | {of["pretrained"]} |'
    )

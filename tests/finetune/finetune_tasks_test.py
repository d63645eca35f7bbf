"""Every task, from files in its original layout to results, predictions and submission files."""

import json

import finetune_files
import micro_run
import pytest

import electra_jax
from electra_jax.finetune import predict
from electra_jax.finetune.config import default_config
from electra_jax.finetune.train import run_finetuning
from electra_jax.registry import TASKS

pytestmark = pytest.mark.usefixtures('on_one_device')
SITE_FILES = {
  'cola': {'CoLA.tsv'},
  'sst2': {'SST-2.tsv'},
  'mrpc': {'MRPC.tsv'},
  'stsb': {'STS-B.tsv'},
  'qqp': {'QQP.tsv'},
  'mnli': {'MNLI-m.tsv', 'MNLI-mm.tsv'},
  'qnli': {'QNLI.tsv'},
  'rte': {'RTE.tsv'},
  'wnli': {'WNLI.tsv'},
}


def config_of(task, **data):
  c = default_config()
  c.name, c.task, c.init = 'test', task, str(micro_run.finished()[0])
  c.batch_size = c.eval_batch_size = 8
  c.max_length, c.epochs, c.bucketed = 48, 1.0, False
  c.compilation_cache = str(micro_run.programs())  # most tasks of GLUE share their programs
  c.optimizer.learning_rate = 1e-3
  c.data.update(data)
  return c


def user_data(folder, task):
  """Data of the user, for each task in another format."""
  rows = {
    part: finetune_files.sentences(count, seed)
    for part, count, seed in (('train', 16, 1), ('dev', 8, 2))
  }
  files = {}
  for part, of_part in rows.items():
    if task == 'classification':  # pairs, as JSON lines
      files[part] = folder / f'{part}.jsonl'
      files[part].write_text(
        ''.join(
          json.dumps({'a': text, 'b': 'bako', 'kind': ['bad', 'good'][label]}) + '\n'
          for text, label in of_part
        )
      )
    elif task == 'multilabel':
      files[part] = folder / f'{part}.jsonl'
      files[part].write_text(
        ''.join(
          json.dumps({'text': text, 'label': ['x'] * label + ['y'] * (len(text) % 2)}) + '\n'
          for text, label in of_part
        )
      )
    elif task == 'choice':
      files[part] = folder / f'{part}.jsonl'
      files[part].write_text(
        ''.join(
          json.dumps({'text': text, 'choices': ['bako', 'salo', 'dufa'][: 2 + i % 2], 'label': y})
          + '\n'
          for i, (text, y) in enumerate(of_part)
        )
      )
    elif task == 'ranking':
      files[part] = folder / f'{part}.csv'
      files[part].write_text(
        'query,passage,relevance\n'
        + ''.join(f'q{i % 3},"{text}",{label}\n' for i, (text, label) in enumerate(of_part))
      )
    elif task == 'regression':
      files[part] = folder / f'{part}.csv'
      files[part].write_text(
        'text,label\n' + ''.join(f'"{text}",{label}.5\n' for text, label in of_part)
      )
    elif task == 'tagging':
      files[part] = folder / f'{part}.jsonl'
      files[part].write_text(
        ''.join(
          json.dumps(
            {'text': text.split(), 'label': ['a' if w == 'dufa' else 'b' for w in text.split()]}
          )
          + '\n'
          for text, _ in of_part
        )
      )
    else:
      files[part] = folder / f'{part}.tsv'
      files[part].write_text(
        'question\tcontext\tanswer\n'
        + ''.join(f'bako?\t{text}\t{text.split()[0]}\n' for text, _ in of_part)
      )
  columns = {
    'classification': {'text': 'a', 'pair': 'b', 'label': 'kind'},
    'span': {'text': 'question', 'pair': 'context', 'label': 'answer'},
  }
  return {part: str(path) for part, path in files.items()} | columns.get(task, {})


def data_of(folder, task):
  if TASKS.get(task).fixed_labels:
    return {'source': str(finetune_files.glue(folder))}
  if task in ('squad1', 'squad2'):
    return {'source': str(finetune_files.squad(folder, {'squad1': '1.1', 'squad2': '2.0'}[task]))}
  if task in ('ner', 'chunking', 'pos'):
    return {'source': str(finetune_files.tagged(folder, task))}
  return user_data(folder, task)


RUNS = [(task, 'published') for task in TASKS] + [
  ('squad2', 'transformers'),
  ('pos', 'transformers'),
]


# Tagging and questions. finetune_run_test.py runs classification; the others are in make test-long.
QUICK = ('ner', 'squad2')


@pytest.mark.parametrize(
  'task, style',
  [
    pytest.param(
      task,
      style,
      id=task + f' {style}' * (style != 'published'),
      marks=() if task in QUICK and style == 'published' else pytest.mark.long,
    )
    for task, style in RUNS
  ],
)
def test_a_task_runs_from_files_to_predictions(task, style, tmp_path, capsys):
  workdir = tmp_path / 'run'
  (tmp_path / 'data').mkdir()
  config = config_of(task, **data_of(tmp_path / 'data', task))
  config.head.style = style
  assert run_finetuning(config, str(workdir)) == 0
  record = json.loads((workdir / task / 'trial-1' / 'result.json').read_text())
  value = record['figures']['dev'][record['metric']]
  assert value is None or -1 <= value <= 1
  assert record['metric'] in record['constant']
  if task == 'mnli':
    assert 'dev_mismatched' in record['figures']
  if task == 'pos':
    assert 'test' in record['figures']  # labeled, unlike GLUE's
  split = 'test' if TASKS.get(task).fixed_labels or task in ('ner', 'chunking', 'pos') else 'dev'
  predict.predict(str(workdir), source=None, task=None, split=split, output=str(tmp_path / 'out'))
  written = {path.name for path in (tmp_path / 'out').iterdir()}
  assert SITE_FILES.get(task, set()) <= written
  if task in ('squad1', 'squad2'):
    answers = json.loads((tmp_path / 'out' / f'{task}.dev' / 'predictions.json').read_text())
    assert len(answers) == 6 and (task == 'squad2' or all(answers.values()))
    if task == 'squad2':
      assert len(json.loads((tmp_path / 'out' / 'squad2.dev' / 'null_odds.json').read_text())) == 6
  lines = [
    json.loads(line)
    for line in (tmp_path / 'out' / f'{task}.{split}.jsonl').read_text().splitlines()
  ]
  assert len(lines) == {'ner': 4, 'chunking': 4, 'pos': 4}.get(
    task, 6 if TASKS.get(task).fixed_labels or 'squad' in task else 8
  )
  if task == 'choice':
    (one,) = electra_jax.load(workdir).predict({'text': 'bako', 'choices': ['salo', 'dufa']})
    assert one.choice == ['salo', 'dufa'][one.index] and len(one.probabilities) == 2
  shown = capsys.readouterr().out
  assert 'dev ' in shown and 'written' in shown

r"""Fine-tuning of a small encoder on several tasks: beside the Trainer, and without pretraining.

  python benchmarks/finetuning.py trainer ENCODER DATA OUT       # an hour on a core
  python benchmarks/finetuning.py pretrained RUN DATA OUT [TASK ...]  # an hour and a half on two
  python benchmarks/finetuning.py speed FILE       # seven minutes on two idle cores
  python benchmarks/finetuning.py speed-page FILE  # its table into docs/finetuning.md

trainer: our fine-tuning beside the Trainer of Hugging Face (pip install accelerate seqeval), with
the same weights, examples, batch size, epochs, rates and their schedule, weight decay and number of
trials. ENCODER is the folder `discriminator` of an export. Each side searches the peak rate with
one seed on dev, ours by config.search, and the test examples are predicted with the chosen rate and
several seeds; scikit-learn, scipy and seqeval score the predictions of both. GLUE's dev sets are
the test examples, and parts of the training sets are dev. Trials are lines of OUT/trials.jsonl;
with --json=FILE they go there, with processor and versions.

pretrained: a pretraining run and the same encoder with random weights, and minimal pairs of BLiMP.
MODELS are `pretrained` and `scratch`.

speed: prediction of one text and of many, training steps and the start of a process, beside
transformers + PyTorch on the same weights at three lengths, see finetuning_speed.py. FILE is JSON.

DATA has glue/, tagging/, squad/ and blimp.tar.xz. Killed, the same command resumes.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from environment import environment, run_main
from etils import epath

from electra_jax.config import FinetuningConfig, checked_finetuning
from electra_jax.finetune.config import default_config
from electra_jax.finetune.finetuned import open_finetuned
from electra_jax.finetune.run_files import chosen_setting
from electra_jax.finetune.tasks import open_task, squad_metrics
from electra_jax.finetune.tasks.task import Task
from electra_jax.finetune.train import run_finetuning
from electra_jax.finetune.trial_summary import spread, summarize_trials

# Titles of the sides, and what of our config differs from the defaults.
SIDES = {
  'trainer': 'Trainer',
  'ours': 'ours',
  'batch': 'ours, `head.loss_denominator=batch`',
  'shuffled': 'ours, `bucketed=False`',
}
CHANGES: dict[str, dict[str, Any]] = {
  'ours': {},
  'batch': {'head.loss_denominator': 'batch'},
  'shuffled': {'bucketed': False},
}
Trial = dict[str, Any]  # a line of trials.jsonl
Splits = Mapping[str, Sequence[Any]]  # examples of a task by split
Paths = Mapping[str, pathlib.Path]  # their files

#### Examples ####


@dataclasses.dataclass(frozen=True)
class Source:
  """Where the examples of a task come from.

  Attributes:
    task: name of the task here.
    title: in the table.
    files: of training, dev ('' for a part of the training file) and test examples, in DATA.
    split: divides the text of a file into a header and its parts.
    join: the text of a file of some parts.
    train, dev, test: numbers of examples, 0 for all.
    epochs: passes over the training examples.
    fields: more fields of our config.
  """

  task: str
  title: str
  files: tuple[str, str, str]
  split: Callable[[str], tuple[str, list[Any]]]
  join: Callable[[str, list[Any]], str]
  train: int
  dev: int
  test: int = 0
  epochs: float = 2.0
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _lines(text: str) -> tuple[str, list[str]]:
  return '', text.splitlines(keepends=True)


def _lines_with_header(text: str) -> tuple[str, list[str]]:
  header, *lines = text.splitlines(keepends=True)
  return header, lines


def _joined(header: str, lines: list[str]) -> str:
  return header + ''.join(line if line.endswith('\n') else line + '\n' for line in lines)


def _sentences(text: str) -> tuple[str, list[str]]:
  return '', [block for block in text.split('\n\n') if block.strip()]


def _joined_sentences(header: str, blocks: list[str]) -> str:
  return '\n\n'.join(blocks) + '\n\n'


def _questions(text: str) -> tuple[str, list[Any]]:
  paragraphs = (p for article in json.loads(text)['data'] for p in article['paragraphs'])
  return '', [(p['context'], question) for p in paragraphs for question in p['qas']]


def _joined_questions(header: str, questions: list[Any]) -> str:
  paragraphs = [{'context': context, 'qas': [question]} for context, question in questions]
  return json.dumps({'version': '1.1', 'data': [{'title': '', 'paragraphs': paragraphs}]})


def _glue(task: str, title: str, folder: str, *, header: bool, **fields: float) -> Source:
  split = _lines_with_header if header else _lines
  files = (f'glue/{folder}/train.tsv', '', f'glue/{folder}/dev.tsv')
  return Source(task, title, files, split, _joined, **fields)


def _tagging(task: str, title: str, files: Sequence[str], **fields: object) -> Source:
  train, dev, test = (f'tagging/{file}' for file in files)
  return Source(task, title, (train, dev, test), _sentences, _joined_sentences, **fields)


_UD = ('ud_ewt/en_ewt-ud-train.reconstructed.conllu', 'ud_ewt/en_ewt-ud-dev.conllu')
_UNER = ('uner_ewt/en_ewt-ud-train.first-version.iob2', 'uner_ewt/en_ewt-ud-dev.iob2')
_SQUAD = ('squad/train-v1.1.articlesplit.json', '', 'squad/dev-v1.1.articlesplit.json')
SOURCES = {
  'cola': _glue('cola', 'CoLA, Matthews', 'CoLA', header=False, train=1_000, dev=300),
  'sst2': _glue('sst2', 'SST-2, accuracy', 'SST-2', header=True, train=3_000, dev=500),
  'stsb': _glue('stsb', 'STS-B, Spearman', 'STS-B', header=True, train=1_000, dev=300, test=800),
  'ud': _tagging(
    'pos',
    'UD EWT parts of speech, accuracy',
    (*_UD, 'ud_ewt/en_ewt-ud-test.conllu'),
    train=800,
    dev=200,
    test=800,
  ),
  'uner': _tagging(
    'ner',
    'UNER EWT, entity F1',
    (*_UNER, 'uner_ewt/en_ewt-ud-test.iob2'),
    train=1_500,
    dev=300,
    test=800,
    epochs=3.0,
    fields={'data.ignore_labels': 'OTH,O'},
  ),
  'squad': Source(
    'squad1',
    'questions by article, F1',
    _SQUAD,
    _questions,
    _joined_questions,
    train=150,
    dev=50,
    test=200,
    fields={'data.stride': 64, 'max_length': 128},
  ),
}


def write_examples(name: str, arguments: argparse.Namespace) -> dict[str, pathlib.Path]:
  """Writes the chosen examples of a task in its original format, the same ones each time.

  Returns:
    The files by split.
  """
  source = SOURCES[name]
  train, dev, test = (_parts(source, arguments.data, file) for file in source.files)
  rng = random.Random(0)
  most = arguments.examples
  sizes = [min(n, most) if most and n else n or most for n in _sizes(source)]
  taken = {'test': _some(test, sizes[2], rng)}
  if dev:
    taken |= {'train': _some(train, sizes[0], rng), 'dev': _some(dev, sizes[1], rng)}
  else:
    both = _some(train, sizes[0] + sizes[1], rng)
    taken |= {'train': both[: sizes[0]], 'dev': both[sizes[0] :]}
  folder = arguments.out / 'data' / name
  folder.mkdir(parents=True, exist_ok=True)
  header = source.split((arguments.data / source.files[0]).read_text(encoding='utf-8'))[0]
  paths = {}
  for split, parts in taken.items():
    paths[split] = folder / f'{split}{pathlib.Path(source.files[0]).suffix}'
    paths[split].write_text(source.join(header, parts), encoding='utf-8')
  return paths


def _sizes(source: Source) -> tuple[int, int, int]:
  return source.train, source.dev, source.test


def _parts(source: Source, data: pathlib.Path, file: str) -> list[Any]:
  """The examples of a file, or none for no file."""
  return source.split((data / file).read_text(encoding='utf-8'))[1] if file else []


def _some(parts: list[Any], count: int, rng: random.Random) -> list[Any]:
  """Some of the parts, by chance; all for 0."""
  return rng.sample(parts, min(count, len(parts))) if count else parts


#### A trial ####


def config_of(name: str, paths: Paths, arguments: argparse.Namespace) -> FinetuningConfig:
  """Our config of a task."""
  source = SOURCES[name]
  c = default_config()
  c.name, c.task = name, source.task
  fields = {
    'init': f'hf:{arguments.encoder}',
    'data.train': str(paths['train']),
    'data.dev': str(paths['dev']),
    'epochs': arguments.epochs or source.epochs,
    'batch_size': 16,
    'max_length': 64,
    'eval_every': 0.0,
    'trackers': (),
    'model.scan_unroll': 1,  # compiles faster, which takes longer than so few steps
    'head.style': 'transformers',
    # Configs of transformers have dropout at other places, so there is none on either side.
    'head.dropout': 0.0,
    'model.dropout': 0.0,
    'model.attention_dropout': 0.0,
    'optimizer.layer_decay': 1.0,
    'optimizer.bias_correction': True,
    'optimizer.eps': 1e-8,
  }
  c.update_from_flattened_dict(fields | dict(source.fields))
  return checked_finetuning(c)


def examples_of(name: str, config: FinetuningConfig, paths: Paths) -> tuple[Task, Splits]:
  """The task, and its examples by split."""
  task = open_task(SOURCES[name].task, config)
  test = config.replace({'data.dev': str(paths['test'])})
  splits = {split: task.examples(split) for split in ('train', 'dev')}
  return task, splits | {'test': open_task(SOURCES[name].task, test).examples('dev')}


def our_predictions(
  config: FinetuningConfig, splits: Splits, folder: epath.Path
) -> dict[str, list[Any]]:
  """Fine-tunes with this project; returns predictions by split."""
  if run_finetuning(config, folder):
    raise SystemExit('stopped')
  run = open_finetuned(folder)
  keys = {'classification': 'label', 'regression': 'value', 'tagging': 'tags', 'span': 'answer'}
  key = keys[run.task.head]
  found = {}
  for split in ('dev', 'test'):
    predicted = [prediction[key] for prediction in run(splits[split])]
    if run.task.head == 'classification':
      predicted = [run.task.labels.index(label) for label in predicted]
    found[split] = predicted
    # The project's own metric must be the official one.
    features, _ = run.features(splits[split])
    own = run.task.score('dev', splits[split], features, run.outputs(features))
    name, value = official_score(run.task, splits[split], predicted)
    if not math.isclose(own[name], value, abs_tol=1e-6):
      raise ValueError(f'{name} is {own[name]} here and {value} by the official metric.')
  return found


def peer_predictions(
  config: FinetuningConfig, task: Task, splits: Splits, encoder: pathlib.Path
) -> dict[str, list[Any]]:
  """Fine-tunes with the Trainer; returns predictions by split."""
  from finetuning_trainer import Recipe, train_and_predict

  recipe = Recipe(
    config.optimizer.learning_rate,
    config.seed,
    config.epochs,
    batch_size=config.batch_size,
    max_length=config.max_length,
    warmup=config.optimizer.warmup,
    weight_decay=config.optimizer.weight_decay,
    dropout=config.model.dropout,
  )
  return train_and_predict(encoder, task, splits, recipe)


def official_score(task: Task, examples: Sequence[Any], predicted: list[Any]) -> tuple[str, float]:
  """Name and value of a task's metric, by scikit-learn, scipy or seqeval.

  F1 of questions is that of SQuAD's script as this project has it, which tests compare with it.
  """
  from scipy.stats import spearmanr
  from sklearn import metrics

  if task.head == 'span':
    answers = [example.answers for example in examples]
    return 'f1', squad_metrics.version_1(predicted, answers)['f1']
  if task.head == 'tagging':
    gold = [list(example.tags) for example in examples]
    if task.metric == 'f1':
      from seqeval.metrics import f1_score

      return 'f1', float(f1_score(gold, predicted))
    return 'accuracy', metrics.accuracy_score(sum(gold, []), sum(predicted, []))
  gold = [example.target for example in examples]
  if task.head == 'regression':
    value = float(spearmanr(gold, predicted).statistic)
    return 'spearman', value
  if task.metric == 'matthews':
    return 'matthews', float(metrics.matthews_corrcoef(gold, predicted))
  return 'accuracy', float(metrics.accuracy_score(gold, predicted))


#### Beside the Trainer ####


class Trials:
  """The trials of a folder, and those that are done."""

  def __init__(self, arguments: argparse.Namespace) -> None:
    self.arguments = arguments
    self.path = arguments.out / 'trials.jsonl'
    self.done: list[Trial] = []
    if self.path.exists():
      self.done = [json.loads(line) for line in self.path.read_text().splitlines()]

  def trial(self, name: str, side: str, rates: Sequence[float], seed: int) -> None:
    """Runs a trial that is not done; of several rates our side chooses by its own search."""
    for trial in self.done:
      same = (trial['task'], trial['side'], trial['seed']) == (name, side, seed)
      if same and trial['rate'] in rates:
        return
    trial = {'task': name, 'side': side, 'seed': seed} | self._run(name, side, rates, seed)
    print(json.dumps(trial), flush=True)
    with self.path.open('a', encoding='utf-8') as file:
      file.write(json.dumps(trial) + '\n')
    self.done.append(trial)

  def _run(self, name: str, side: str, rates: Sequence[float], seed: int) -> Trial:
    paths = write_examples(name, self.arguments)
    config = config_of(name, paths, self.arguments).replace({'seed': seed})
    config = config.replace(
      {'search.learning_rate': tuple(rates)}
      if len(rates) > 1
      else {'optimizer.learning_rate': rates[0]}
    )
    task, splits = examples_of(name, config, paths)
    start, processor = time.perf_counter(), time.process_time()
    rate = rates[0]
    if side in CHANGES:
      folder = epath.Path(self.arguments.out / side / f'{name}-{seed}')
      found = our_predictions(config.replace(CHANGES[side]), splits, folder)
      rate = chosen_setting(folder / task.name).get('optimizer.learning_rate', rate)
    else:
      found = peer_predictions(config, task, splits, self.arguments.encoder)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    scores = {split: official_score(task, splits[split], found[split]) for split in found}
    return {
      'rate': rate,
      'rates': list(rates),
      'metric': scores['test'][0],
      **{split: round(value, 6) for split, (_, value) in scores.items()},
      'examples': {split: len(examples) for split, examples in splits.items()},
      'epochs': config.epochs,
      'seconds': round(seconds, 1),
      'processor_seconds': round(processor, 1),
    }

  def search(self, name: str, side: str) -> None:
    """Runs the remaining trials of a task: all rates, then more seeds of the best."""
    rates = self.arguments.rates
    for compared in [rates] if side in CHANGES else [[rate] for rate in rates]:
      self.trial(name, side, compared, 0)
    for seed in range(1, self.arguments.seeds):
      self.trial(name, side, [best_rate(self.done, name, side)], seed)


def best_rate(trials: Sequence[Trial], name: str, side: str) -> float:
  """The rate that is best on dev with the first seed; the first of equal ones.

  It is nan without trials. Of our side there is only the trial with the rate that its search chose.
  """
  first = [t for t in trials if (t['task'], t['side'], t['seed']) == (name, side, 0)]
  return max(first, key=lambda trial: trial['dev'])['rate'] if first else math.nan


def chosen(trials: Sequence[Trial], name: str, side: str) -> list[Trial]:
  """The trials of a task and side with the best rate, by seed."""
  key = name, side, best_rate(trials, name, side)
  mine = [t for t in trials if (t['task'], t['side'], t['rate']) == key]
  return sorted(mine, key=lambda trial: trial['seed'])


def interval(values: Sequence[float]) -> str:
  """'mean (values)' times 100."""
  s = spread([100 * value for value in values])
  listed = ', '.join(f'{100 * value:.1f}' for value in values)
  return f'{s["mean"]:.1f} ({listed})'


def difference(ours: Sequence[float], peer: Sequence[float]) -> str:
  """The difference of two means times 100, with its 95% interval by Welch's t."""
  from scipy.stats import ttest_ind

  if not ours or not peer:
    return ''
  gap = 100 * (sum(ours) / len(ours) - sum(peer) / len(peer))
  if min(len(ours), len(peer)) < 2:
    return f'{gap:+.1f}'
  found = ttest_ind(ours, peer, equal_var=False).confidence_interval()
  return f'{gap:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})'


def trainer_table(trials: Sequence[Trial]) -> str:
  """The table: scores of the test examples with the rate that each side chose on dev."""
  sides = [side for side in SIDES if any(trial['side'] == side for trial in trials)]
  columns = [column for side in sides for column in (SIDES[side], 'rate')]
  gaps = [side for side in sides if side in CHANGES and 'trainer' in sides]
  rows = [['task', 'train / dev / test', *columns, *(f'{SIDES[side]} - Trainer' for side in gaps)]]
  for name in dict.fromkeys(trial['task'] for trial in trials):
    of_task = [trial for trial in trials if trial['task'] == name]
    sizes = ' / '.join(f'{count:,}' for count in of_task[0]['examples'].values())
    cells = [SOURCES[name].title, sizes]
    scores = {}
    for side in sides:
      mine = chosen(of_task, name, side)
      scores[side] = [trial['test'] for trial in mine]
      cells += [interval(scores[side]), f'{mine[0]["rate"]:g}'] if mine else ['', '']
    rows.append([*cells, *(difference(scores[side], scores['trainer']) for side in gaps)])
  lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
  return '\n'.join([lines[0], '|---' * len(rows[0]) + '|', *lines[1:]])


def trainer(arguments: argparse.Namespace) -> None:
  """Runs the remaining trials, and prints the table."""
  arguments.out.mkdir(parents=True, exist_ok=True)
  trials = Trials(arguments)
  for name in arguments.tasks:
    for side in arguments.sides:
      trials.search(name, side)
  if arguments.json:
    lines = [{'environment': environment()}, *trials.done]
    arguments.json.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  print(trainer_table(trials.done))


#### With and without pretraining ####

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
BLIMP = 'blimp'


def pretrained_tasks(data: pathlib.Path) -> dict[str, tuple[str, int, dict[str, Any]]]:
  """Config file, trials and fields of each task: few epochs on part of the data, for a CPU."""
  tagging, squad = data / 'tagging', data / 'squad'
  short = {'max_length': 128, 'epochs': 1.0}
  some = short | {'train_examples': 6_000}
  glue = {'data.source': data / 'glue'}
  uner = {'data.source': tagging / 'uner_ewt', 'data.ignore_labels': 'OTH,O'}
  wnut17 = {
    'data.train': tagging / 'wnut17/wnut17train.conll',
    'data.dev': tagging / 'wnut17/emerging.dev.conll',
    'data.test': tagging / 'wnut17/emerging.test.annotated',
  }
  questions = {
    'data.train': squad / 'train-v1.1.articlesplit.json',
    'data.dev': squad / 'dev-v1.1.articlesplit.json',
    'max_length': 256,
    'train_examples': 2_000,
    'epochs': 1.0,
  }
  return {
    'cola': ('cola', 5, glue | {'epochs': 2.0}),
    'sst2': ('sst2', 5, glue | {'train_examples': 10_000, 'epochs': 1.0}),
    'stsb': ('stsb', 5, glue | {'train_examples': 3_000, 'epochs': 1.0}),
    'pos': ('pos', 5, some | {'data.source': tagging / 'ud_ewt'}),
    'uner': ('ner', 5, some | uner),
    'wnut17': ('ner', 5, short | wnut17),
    'squad': ('squad1', 1, questions),
  }


def pretrained(arguments: argparse.Namespace) -> None:
  """Fine-tunes a run and its twin without pretraining, and prints the table."""
  run, out = arguments.run, arguments.out
  tasks = pretrained_tasks(arguments.data)
  # So few epochs require a higher rate than the published 3e-4. Without pretrained layers there is
  # nothing to protect, so the twin has the same rate in all layers.
  starts = {
    'pretrained': {'init': run},
    'scratch': {'init': 'none', 'like': run, 'optimizer.layer_decay': 1.0},
  }
  for model in arguments.models:
    for name in arguments.tasks:
      if name == BLIMP:
        continue
      file, trials, fields = tasks[name]
      fields = {'num_trials': trials, 'eval_every': 0.0, 'optimizer.learning_rate': 1e-3} | fields
      flags = [f'--config.{field}={value}' for field, value in (fields | starts[model]).items()]
      config = f'--config=configs/finetune/{file}.py'
      run_main('--mode=finetune', config, *flags, f'--workdir={out / model / name}')
  if BLIMP in arguments.tasks:
    pairs = f'--pairs={arguments.data / "blimp.tar.xz"}'
    run_main('--mode=blimp', f'--workdir={run}', pairs, '--limit=50')
  print_pretrained(out)


def cell(folder: pathlib.Path, task: str, split: str, metric: str) -> str:
  """'median, mean (low to high)' times 100; a dash without results."""
  path = folder / 'results.json'
  if not path.exists():
    return '-'
  trials = [x for x in json.loads(path.read_text())['trials'] if x['task'] == task]
  s = summarize_trials(trials)[task]['figures'][split][metric]
  if s['n'] == 1:
    return f'{100 * s["median"]:.1f} (one trial)'
  text = f'{100 * s["median"]:.1f}, {100 * s["mean"]:.1f}'
  return text if s['low'] is None else f'{text} ({100 * s["low"]:.1f} to {100 * s["high"]:.1f})'


def constant(folder: pathlib.Path, metric: str) -> str:
  """The metric of the best constant prediction on dev, times 100."""
  path = folder / 'results.json'
  value = (
    json.loads(path.read_text())['trials'][0]['constant'].get(metric) if path.exists() else None
  )
  return '-' if value is None else f'{100 * value:.1f}'


def print_pretrained(out: pathlib.Path) -> None:
  """Prints the table of a folder of results."""
  print('| task | constant prediction (dev) | not pretrained | pretrained |\n|---|---|---|---|')
  for name, task, split, metric, title in ROWS:
    best = constant(out / 'pretrained' / name, metric)
    scratch, trained = (
      cell(out / model / name, task, split, metric) for model in ('scratch', 'pretrained')
    )
    print(f'| {title}, {split} | {best} | {scratch} | {trained} |')


#### Speed ####

# PyTorch and transformers are imported only where they run.


def speed(arguments: argparse.Namespace) -> None:
  """Measures, prints a table and writes the results."""
  import finetuning_speed

  finetuning_speed.speed(arguments)


def speed_page(arguments: argparse.Namespace) -> None:
  """Writes the section about speed of a page of the documentation."""
  import finetuning_speed

  finetuning_speed.write_page(arguments.file, arguments.page)


#### Command line ####


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(required=True, dest='command')
  p = commands.add_parser('trainer')
  p.set_defaults(function=trainer)
  p.add_argument('encoder', type=pathlib.Path)
  p.add_argument('data', type=pathlib.Path)
  p.add_argument('out', type=pathlib.Path)
  p.add_argument('--tasks', nargs='+', choices=SOURCES, default=list(SOURCES))
  p.add_argument('--sides', nargs='+', choices=SIDES, default=list(SIDES)[:2])
  p.add_argument('--rates', nargs='+', type=float, default=[5e-4, 1e-3], help='that are searched')
  p.add_argument('--seeds', type=int, default=3)
  p.add_argument('--examples', type=int, default=0, help='of each split, at most')
  p.add_argument('--epochs', type=float, default=0.0, help='in place of those of the task')
  p.add_argument('--json', type=pathlib.Path, help='a file for the results')
  p = commands.add_parser('pretrained')
  p.set_defaults(function=pretrained)
  p.add_argument('run', type=pathlib.Path)
  p.add_argument('data', type=pathlib.Path)
  p.add_argument('out', type=pathlib.Path)
  tasks = [*pretrained_tasks(pathlib.Path()), BLIMP]
  p.add_argument('tasks', nargs='*', default=tasks, metavar='TASK', help=', '.join(tasks))
  models = ('pretrained', 'scratch')
  p.add_argument('--models', nargs='+', choices=models, default=list(models))
  p = commands.add_parser('speed')
  p.set_defaults(function=speed)
  p.add_argument('file', type=pathlib.Path)
  p.add_argument('--sizes', nargs='+', default=['mini', 'small'])
  p.add_argument('--lengths', nargs='+', type=int, default=[16, 128, 256])
  p.add_argument('--threads', type=int, default=2, help="PyTorch's; XLA uses all cores")
  p.add_argument('--calls', type=int, default=200, help='with one text')
  p.add_argument('--rounds', type=int, default=5, help='with many texts, and of training')
  p.add_argument('--rows', type=int, default=32, help='of a training step')
  p.add_argument('--starts', type=int, default=3, help='processes of each side')
  clocks = ('seconds', 'processor_seconds')
  p.add_argument('--clock', choices=clocks, default=clocks[0], help='that the table shows')
  p = commands.add_parser('speed-page')
  p.set_defaults(function=speed_page)
  p.add_argument('file', type=pathlib.Path)
  p.add_argument('--page', type=pathlib.Path, default=pathlib.Path('docs/finetuning.md'))
  return parser.parse_args(argv)


def main(argv: Iterable[str] | None = None) -> None:
  """Runs a comparison."""
  arguments = parse_arguments(None if argv is None else list(argv))
  for name in ('out', 'data', 'run', 'encoder'):
    if hasattr(arguments, name):
      setattr(arguments, name, getattr(arguments, name).absolute())
  arguments.function(arguments)


if __name__ == '__main__':
  main()

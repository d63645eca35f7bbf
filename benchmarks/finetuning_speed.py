"""Speeds of the same weights here and in transformers + PyTorch: the part `speed` of finetuning.py.

For each length: one text, many texts of half to all of the length, and training steps. Rounds or
calls of the two sides alternate. Each size and part has a process of its own: training computes in
the main thread and keeps freed memory, as the program does, and prediction is that of a Python
program that calls `electra_jax.load`.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import torch
from environment import ROOT, environment
from prediction import (
  LABELS,
  Peer,
  TorchModel,
  open_sides,
  pairs_of,
  peer_model,
  ratio_text,
  sample_sentences,
  starts,
  timed,
)

from electra_jax import allocator
from electra_jax.config import checked_finetuning
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.finetune import initial
from electra_jax.finetune.config import default_config
from electra_jax.finetune.finetuned import FineTunedRun, open_finetuned
from electra_jax.finetune.splits import training_split
from electra_jax.finetune.task_program import TaskProgram, build_task_program
from electra_jax.finetune.tasks import open_task
from electra_jax.training import devices, partitioning
from electra_jax.training.step_loop import StepRunner

Pairs: TypeAlias = dict[str, list[tuple[float, float]]]  # by clock: ours and theirs, in seconds
Result: TypeAlias = dict[str, Any]

TOKENS = {'mini': 32_000, 'small': 9_000}  # of a round with many texts
BLOCK = 20  # calls with one text before the other side's turn
ROUND = 1.0  # seconds of training of each side in a round, at least one step
RATE = 1e-4
CLIP = 1.0
DECAY = 0.01
EPS = 1e-8
DROPOUT = 0.1
CLOCKS = {'seconds': 'elapsed time', 'processor_seconds': 'processor time of all threads'}
HEADING = '## Speed\n'  # of the section that `write_page` writes


class Options(NamedTuple):
  """Options of `speed`.

  Attributes:
    lengths: tokens of a text or row.
    threads: of PyTorch; XLA uses all cores.
    calls: with one text.
    rounds: with many texts, and of training.
    rows: of a training step.
    starts: processes of each side.
    clock: a key of CLOCKS, that is shown.
  """

  lengths: Sequence[int] = (16, 128, 256)
  threads: int = 2
  calls: int = 200
  rounds: int = 5
  rows: int = 32
  starts: int = 3
  clock: str = 'seconds'


class Measure(NamedTuple):
  """How a part of the results is shown.

  Attributes:
    title: of its rows.
    length: the column of tokens.
    aim: of the ratio.
    unit: of times; '' for tokens/s.
    scale: of times, from seconds.
  """

  title: str
  length: str
  aim: str
  unit: str = ''
  scale: float = 1.0

  def shown(self, tokens: int, seconds: float) -> str:
    """A time, or the tokens per second of so many tokens."""
    if self.unit:
      return f'{self.scale * seconds:,.2f} {self.unit}'
    return f'{tokens / seconds:,.0f} tokens/s'

  def ratio(self, ours: float, theirs: float) -> float:
    """Our value to theirs: of times, or of speeds."""
    return ours / theirs if self.unit else theirs / ours


# By the name of the part, in the order of the table.
MEASURES = {
  'one text': Measure('one text', '{length}', 'at most 1.2; 16 tokens: 3 ms', 'ms', 1e3),
  'many texts': Measure('{texts:,} texts', '{length}, at most', 'at least 1.0'),
  'training step': Measure('training step', '{rows} x {length}', 'at least 1.0'),
  'start': Measure('command to first prediction', '{length}', '', 's'),
}


#### Texts ####


def texts_of(tokenizer: Tokenizer, lengths: Sequence[int]) -> list[str]:
  """Texts of the bundled corpus of exactly these numbers of tokens, [CLS] and [SEP] included."""
  words = ' '.join(sample_sentences()).split()
  counts = [len(ids) for ids in tokenizer.encode_arrays(words)]
  texts, place = [], 0
  for length in lengths:
    chosen: list[str] = []
    left = length - 2
    while left:
      if counts[place % len(words)] <= left:
        chosen.append(words[place % len(words)])
        left -= counts[place % len(words)]
      place += 1
    texts.append(' '.join(chosen))
  return texts


def spread_lengths(longest: int, tokens: int) -> list[int]:
  """Lengths from half of the longest to all of it, in turn, of about so many tokens together."""
  lengths: list[int] = []
  while sum(lengths) < tokens:
    lengths.append(longest // 2 + (7 * len(lengths)) % (longest // 2 + 1))
  return lengths


#### Prediction ####


def predict_part(size: str, folder: pathlib.Path, options: Options) -> Iterator[Result]:
  """One text and many texts of each length, and the start of processes."""
  run, peer = open_sides(size, folder)
  for length in options.lengths:
    one, *_ = texts_of(run.tokenizer, [length])
    lengths = spread_lengths(length, TOKENS[size])
    texts = texts_of(run.tokenizer, lengths)
    difference = largest_difference(run, peer, [one, *texts[:64]])
    ours, theirs = functools.partial(run.predict, [one]), functools.partial(peer.batch, [one])
    pairs_of(ours, theirs, 20)
    calls = pairs_of(ours, theirs, options.calls, BLOCK)
    yield result('one text', size, length, calls, tokens=length, difference=difference)
    ours, theirs = functools.partial(run.predict, texts), functools.partial(peer, texts)
    for _ in range(4):  # the planner compiles what repeated calls are worth
      ours()
    theirs()
    rounds = pairs_of(ours, theirs, options.rounds)
    yield result('many texts', size, length, rounds, tokens=sum(lengths), texts=len(texts))
  text = texts_of(run.tokenizer, [16])[0]
  yield result('start', size, 16, starts(folder, text, options.starts), tokens=16)


def largest_difference(run: FineTunedRun, peer: Peer, texts: Sequence[str]) -> float:
  """Of the probabilities of both sides."""
  ours = [[row.probabilities[name] for name in LABELS] for row in run.predict(texts)]
  theirs = peer(texts)
  pairs = zip(sum(ours, []), sum(theirs, []), strict=True)
  return max(abs(a - b) for a, b in pairs)


def result(part: str, size: str, length: int, pairs: Pairs, **more: float | list[float]) -> Result:
  """A line of the results."""
  return {'part': part, 'size': size, 'length': length, **more, **pairs}


#### Training ####


def task_program(
  folder: pathlib.Path, texts: Sequence[str], length: int, dropout: float
) -> TaskProgram:
  """Our program for a task whose training examples are these texts, as one batch."""
  file = folder / f'train-{length}.jsonl'
  rows = [{'text': text, 'label': LABELS[i % 2]} for i, text in enumerate(texts)]
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows), 'utf-8')
  config = default_config()
  config.update(init=f'hf:{folder / "hf"}', task='classification', batch_size=len(texts))
  config.update(max_length=length, bucketed=False, epochs=1e6)  # the rate stays what it is
  config.data.update(train=str(file), dev=str(file))
  config.head.update(style='transformers', dropout=dropout)
  config.model.update(dropout=dropout, attention_dropout=dropout)
  config.optimizer.update(learning_rate=RATE, warmup=0.0, layer_decay=1.0, clip=CLIP)
  config.optimizer.update(weight_decay=DECAY, bias_correction=True, eps=EPS)
  typed = checked_finetuning(config)
  task, start = open_task('classification', typed), initial.open_initial(typed)
  layout = partitioning.make_layout(typed)
  train = training_split(typed, task, start.tokenizer)
  return build_task_program(typed, task, start, layout, train.features, length)


class OurSteps:
  """Training steps of electra_jax, from the weights of a fine-tuned run."""

  def __init__(self, p: TaskProgram, run: FineTunedRun) -> None:
    self.p = p
    functions = p.sum_functions()
    params = jax.tree.map(jnp.array, run.params)  # a copy: the state is donated
    self.runner = StepRunner(p.init_state(params), functions.zeros(), functions)

  def __call__(self, steps: int) -> float:
    """Takes steps from examples to parameters; returns the mean of their losses."""
    p, mesh = self.p, self.p.layout.mesh
    constants = partitioning.replicate(p.inputs, mesh)
    for _ in range(steps):
      batch = p.assemble(np.arange(p.batch_rows), 0)
      inputs = partitioning.on_mesh(batch, mesh) | {'schedules': constants}
      self.runner.take_step(p.train_step, inputs)
    sums = self.runner.take_sums().sums
    return float(sums['total'] / sums['count'])


class TheirSteps:
  """The same steps in PyTorch, with AdamW in its fused form."""

  def __init__(self, model: TorchModel, p: TaskProgram) -> None:
    self.model = model.train()
    batch = p.assemble(np.arange(p.batch_rows), 0)
    ids = torch.from_numpy(batch['token_ids']).long()
    visible = (ids != p.initial.tokenizer.pad_id).long()
    labels = torch.from_numpy(batch['label']).long()
    self.inputs = {'input_ids': ids, 'attention_mask': visible, 'labels': labels}
    self.parameters = list(model.parameters())
    groups = [
      {'params': [x for x in self.parameters if x.ndim > 1], 'weight_decay': DECAY},
      {'params': [x for x in self.parameters if x.ndim <= 1], 'weight_decay': 0.0},
    ]
    self.optimizer = torch.optim.AdamW(groups, lr=RATE, eps=EPS, fused=True)

  def __call__(self, steps: int) -> float:
    """Takes steps from token ids to parameters; returns the mean of their losses."""
    losses = []
    for _ in range(steps):
      loss = self.model(**self.inputs).loss
      loss.backward()
      torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
      self.optimizer.step()
      self.optimizer.zero_grad()
      losses.append(loss.item())
    return statistics.fmean(losses)


def both_steps(
  size: str, folder: pathlib.Path, length: int, rows: int, dropout: float
) -> tuple[OurSteps, TheirSteps]:
  """Training steps of both sides on the same batch of rows of the full length."""
  run = open_finetuned(folder / 'run')
  texts = texts_of(run.tokenizer, [length] * rows)
  p = task_program(folder, texts, length, dropout)
  return OurSteps(p, run), TheirSteps(peer_model(size, dropout), p)


def train_part(size: str, folder: pathlib.Path, options: Options) -> Iterator[Result]:
  """Training steps of each length."""
  open_sides(size, folder)
  for length in options.lengths:
    ours, theirs = both_steps(size, folder, length, options.rows, DROPOUT)
    counts = [steps_of_round(side) for side in (ours, theirs)]
    calls = pairs_of(
      functools.partial(ours, counts[0]), functools.partial(theirs, counts[1]), options.rounds
    )
    per_step: Pairs = {
      clock: [(a / counts[0], b / counts[1]) for a, b in pairs] for clock, pairs in calls.items()
    }
    more = {'rows': options.rows, 'losses': [ours(1), theirs(1)]}
    yield result('training step', size, length, per_step, tokens=options.rows * length, **more)


def steps_of_round(side: Callable[[int], float]) -> int:
  """Steps that take about a second, after one that compiles and one that is timed."""
  side(1)
  return max(1, round(ROUND / timed(lambda: side(1))))


#### Results ####


def table(results: Sequence[Result], clock: str = 'seconds') -> str:
  """The results as Markdown.

  Args:
    results: lines of the results.
    clock: a key of CLOCKS.
  """
  lines = [
    '| what | size | tokens | electra_jax | transformers + PyTorch | ratio, median (range) | aim |',
    '|---|---|---|---|---|---|---|',
  ]
  for one in results:
    measure, pairs = MEASURES[one['part']], one[clock]
    sides = [measure.shown(one['tokens'], statistics.median(x)) for x in zip(*pairs, strict=True)]
    ratios = ratio_text([measure.ratio(*pair) for pair in pairs])
    name = measure.title.format(**one)
    cells = (name, one['size'], measure.length.format(**one), *sides, ratios, measure.aim)
    lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
  return '\n'.join(lines)


def page_section(content: Mapping[str, Any]) -> str:
  """The section of docs/finetuning.md about speed, without its heading."""
  machine, options = content['environment'], content['options']
  versions = machine['versions']
  named = ', '.join(f'{name} {versions[name]}' for name in ('jax', 'torch', 'transformers'))
  paragraphs = (
    '    python benchmarks/finetuning.py speed benchmarks/results/finetuning_speed.json',
    'compares models with the same weights in `transformers` and PyTorch, in float32: `mini` (in '
    "the architecture of ModernBERT) and `small` (ELECTRA's). Prediction is from text to "
    'probabilities, a training step from rows of token ids to updated parameters. '
    f'Threads: {options["threads"]}; cores: {machine["cores"]}, of an {machine["processor"]} '
    f'virtual machine ({", ".join(machine["features"])}), {named}, commit {machine["commit"]}, '
    f'load average {content["load_average"]:.1f} at the start, {CLOCKS[options["clock"]]}:',
    table(content['results'], options['clock']),
    f'- One text: medians of {options["calls"]} calls of `run.predict`, in alternating blocks of '
    f'{BLOCK}; the range of ratios is that without the twentieth at either end.\n'
    f'- Many texts: {options["rounds"]} alternating rounds, texts of half to all of the length, '
    'compiled before; PyTorch in batches of 32 that are sorted by length; tokens without padding.\n'
    f'- Training step: {options["rounds"]} alternating rounds, {options["rows"]} rows of the full '
    f'length, dropout {DROPOUT} of activations and attention probabilities, clipping, AdamW '
    "(PyTorch's is fused); ours includes the assembly of the batch.\n"
    f'- Command to first prediction: {options["starts"]} pairs of processes that read one text '
    'and print its label; programs of the first pair are not compiled yet. Starts of training and '
    'fine-tuning are in [benchmarks/README.md](../benchmarks/README.md).',
    'On a GPU or TPU nothing of this was measured.',
  )
  return '\n' + '\n\n'.join(paragraphs) + '\n\n'


def write_page(file: pathlib.Path, page: pathlib.Path) -> None:
  """Replaces the section about speed of a page.

  Args:
    file: of the results.
    page: in Markdown, with the heading of the section.
  """
  text = page.read_text('utf-8')
  before, rest = text.split(HEADING)
  after = rest[rest.index('\n## ') + 1 :]
  section = page_section(json.loads(file.read_text('utf-8')))
  page.write_text(before + HEADING + section + after, 'utf-8')


#### Processes ####

_PARTS = {'predict': predict_part, 'train': train_part}


def speed(arguments: argparse.Namespace) -> None:
  """Measures all sizes and parts, each in a process, and writes the results."""
  load = os.getloadavg()[0]
  options = {name: getattr(arguments, name) for name in Options._fields}
  results: list[Result] = []
  for size in arguments.sizes:
    for part in _PARTS:
      results += _in_process(part, size, options)
      print(table(results, arguments.clock), flush=True)
  content = {
    'environment': environment(),
    'load_average': load,
    'options': options,
    'results': sorted(results, key=lambda one: list(MEASURES).index(one['part'])),
  }
  arguments.file.write_text(json.dumps(content) + '\n', 'utf-8')


def _in_process(part: str, size: str, options: Mapping[str, Any]) -> list[Result]:
  """Runs a part for a size in a new process; returns its results."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'results.jsonl'
    command = [sys.executable, __file__, part, size, str(path), json.dumps(options)]
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
      raise SystemExit(done.returncode)
    return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def main(part: str, size: str, output: str, options: str) -> None:
  """Measures a part for a size in this process.

  Args:
    part: a key of _PARTS.
    size: a size of prediction.py.
    output: file for the results, a line each.
    options: Options in JSON.
  """
  typed = Options(**json.loads(options))
  torch.set_num_threads(typed.threads)
  if part == 'train':  # as the program does
    devices.execute_in_main_thread()
    allocator.keep_freed_memory()
  with tempfile.TemporaryDirectory() as folder, open(output, 'w', encoding='utf-8') as file:
    for one in _PARTS[part](size, pathlib.Path(folder), typed):
      file.write(json.dumps(one) + '\n')
      file.flush()


if __name__ == '__main__':
  main(*sys.argv[1:])

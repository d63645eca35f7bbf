"""Prediction of texts beside transformers + PyTorch, on the same weights.

python benchmarks/prediction.py --start --output=benchmarks/results/prediction_two_cores.json
taskset -c 0 python benchmarks/prediction.py --threads=1  # where others use the processor, too

Both sides take text and give probabilities: tokenizer, model and softmax. One text: calls alternate
between the sides. Many texts: rounds alternate; PyTorch gets batches of 32 texts that are sorted by
length and padded to the longest of the batch. Where other programs use the processor, one core and
processor seconds compare the sides; threads that wait for each other distort both clocks. Tokens
are counted without padding. The start is that of a process that reads one text from standard input
and prints its label.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import torch
import transformers

import electra_jax
from electra_jax.data.corpus.text_format import SAMPLE_PATH
from electra_jax.file_access import decompressed, open_binary
from electra_jax.finetune.adopt import adopt
from electra_jax.finetune.config import default_config
from electra_jax.finetune.finetuned import FineTunedRun

TorchModel: TypeAlias = Any  # of transformers

LABELS = ('negative', 'positive')
SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
SIZES = ('mini', 'small')
LONGEST = 256  # tokens of a text
PEER_START = """
import sys, transformers
pipe = transformers.pipeline('text-classification', model=sys.argv[1])
print(pipe(sys.stdin.read().strip()))
"""


def peer_model(size: str, dropout: float = 0.0) -> TorchModel:
  """A classifier of transformers with random weights, of the size of a shipped config.

  Args:
    size: one of SIZES.
    dropout: of all layers and of attention probabilities, while it is trained.
  """
  torch.manual_seed(0)
  shared = {'num_labels': 2, 'id2label': dict(enumerate(LABELS))}
  shared |= {'classifier_dropout': dropout, 'attn_implementation': 'sdpa'}
  if size == 'small':
    shared |= {'hidden_dropout_prob': dropout, 'attention_probs_dropout_prob': dropout}
    sizes = {'embedding_size': 128, 'hidden_size': 256, 'intermediate_size': 1024}
    config = transformers.ElectraConfig(
      vocab_size=30_522, num_hidden_layers=12, num_attention_heads=4, **sizes, **shared
    )
    return transformers.ElectraForSequenceClassification(config).eval()
  shared |= {'embedding_dropout': dropout, 'mlp_dropout': dropout, 'attention_dropout': dropout}
  ids = {'pad_token_id': 0, 'cls_token_id': 2, 'sep_token_id': 3, 'bos_token_id': 2}
  config = transformers.ModernBertConfig(
    vocab_size=8_192,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=6,
    num_attention_heads=4,
    global_attn_every_n_layers=1,
    eos_token_id=3,
    **ids,
    **shared,
  )
  return transformers.ModernBertForSequenceClassification(config).eval()


def sample_sentences() -> list[str]:
  """The sentences of the bundled corpus."""
  with open_binary(str(SAMPLE_PATH)) as raw:
    text = decompressed(raw, str(SAMPLE_PATH)).read().decode()
  lines = text.replace('\n', ' ').replace('. ', '.\n').split('\n')
  return [line.strip() for line in lines if 4 <= len(line.split()) <= 90]


def write_peer(folder: pathlib.Path, size: str, sentences: Sequence[str]) -> TorchModel:
  """Writes the model with a WordPiece vocabulary of the corpus's frequent words."""
  made = peer_model(size)
  made.save_pretrained(folder)
  counts: dict[str, int] = {}
  for sentence in sentences:
    for word in ''.join(c if c.isalnum() else ' ' for c in sentence.lower()).split():
      counts[word] = counts.get(word, 0) + 1
  letters = sorted({c for sentence in sentences for c in sentence.lower() if not c.isspace()})
  known = [*SPECIAL, *letters, *(f'##{c}' for c in letters)]
  words = [word for word in sorted(counts, key=lambda w: (-counts[w], w)) if word not in known]
  vocabulary = [*known, *words][: made.config.vocab_size]
  vocabulary += [f'[unused{i}]' for i in range(made.config.vocab_size - len(vocabulary))]
  (folder / 'vocab.txt').write_text('\n'.join(vocabulary) + '\n', 'utf-8')
  settings = {'do_lower_case': True, 'tokenizer_class': 'BertTokenizer'}
  settings['model_max_length'] = LONGEST
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  return made


def our_run(folder: pathlib.Path, workdir: pathlib.Path) -> None:
  """Imports the model."""
  config = default_config()
  config.update(init=f'hf:{folder}', task='classification', max_length=LONGEST)
  adopt(config, str(workdir))


class Peer:
  """The model in PyTorch."""

  def __init__(self, folder: pathlib.Path, made: TorchModel) -> None:
    self.tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    self.model = made
    self.types = made.config.model_type == 'electra'

  @torch.inference_mode()
  def batch(self, texts: Sequence[str]) -> list[list[float]]:
    """Probabilities of some texts, as one batch."""
    inputs = self.tokenizer(
      list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors='pt'
    )
    if not self.types:
      inputs.pop('token_type_ids', None)
    return self.model(**inputs).logits.softmax(-1).tolist()

  def __call__(self, texts: Sequence[str], size: int = 32) -> list[list[float]]:
    """Probabilities of any number of texts."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found: list[list[float]] = [[]] * len(texts)
    for first in range(0, len(order), size):
      chosen = order[first : first + size]
      for i, row in zip(chosen, self.batch([texts[i] for i in chosen]), strict=True):
        found[i] = row
    return found


def open_sides(size: str, folder: pathlib.Path) -> tuple[FineTunedRun, Peer]:
  """Makes the model of a size, and opens it on both sides.

  Args:
    size: one of SIZES.
    folder: gets `hf` and `peer`, folders of transformers, and `run`, of this project.
  """
  made = write_peer(folder / 'hf', size, sample_sentences())
  our_run(folder / 'hf', folder / 'run')
  peer = Peer(folder / 'hf', made)
  made.save_pretrained(folder / 'peer')
  peer.tokenizer.save_pretrained(folder / 'peer')
  return electra_jax.load(folder / 'run'), peer


def timed(function: Callable[[], Any]) -> float:
  """Seconds of a call."""
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def both(function: Callable[[], Any]) -> tuple[float, float]:
  """Seconds of a call, and processor seconds of this process meanwhile."""
  processor = time.process_time()
  seconds = timed(function)
  return seconds, time.process_time() - processor


def pairs_of(
  ours: Callable[[], Any], theirs: Callable[[], Any], count: int, block: int = 1
) -> dict[str, list[tuple[float, float]]]:
  """Calls that alternate between the sides: pairs of seconds, and of processor seconds.

  Args:
    ours: a call.
    theirs: the call that it is compared with.
    count: calls of each.
    block: calls of a side before the other one's turn. Threads of either may wait actively for a
      while after a call, and then slow down the other's next one.
  """
  calls: list[tuple[tuple[float, float], tuple[float, float]]] = []
  while len(calls) < count:
    size = min(block, count - len(calls))
    mine, other = ([both(call) for _ in range(size)] for call in (ours, theirs))
    calls += zip(mine, other, strict=True)
  return {
    'seconds': [(a[0], b[0]) for a, b in calls],
    'processor_seconds': [(a[1], b[1]) for a, b in calls],
  }


def measure(size: str, folder: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
  """All numbers of a size."""
  sentences = sample_sentences()
  run, peer = open_sides(size, folder)
  lengths = [len(ids) + 2 for ids in run.tokenizer.encode_arrays(sentences)]
  one = next(text for text, n in zip(sentences, lengths, strict=True) if n == 16)
  texts = sentences[: options.texts]
  tokens = sum(min(n, LONGEST) for n in lengths[: options.texts])
  ours = [[row.probabilities[name] for name in LABELS] for row in run.predict(texts[:64])]
  difference = max(
    abs(a - b)
    for row, other in zip(ours, peer(texts[:64]), strict=True)
    for a, b in zip(row, other, strict=True)
  )
  for _ in range(20):
    run.predict([one])
    peer.batch([one])
  calls = pairs_of(lambda: run.predict([one]), lambda: peer.batch([one]), options.calls)
  first = timed(lambda: run.predict(texts))
  for _ in range(3):  # the planner compiles what repeated calls are worth
    run.predict(texts)
  peer(texts)
  rounds = pairs_of(lambda: run.predict(texts), lambda: peer(texts), options.rounds)
  return {
    'size': size,
    'largest_difference_of_probabilities': difference,
    'one_text': calls,
    'texts': len(texts),
    'tokens': tokens,
    'first_call_seconds': first,
    'bulk': rounds,
    'programs': len(run._predictor.rows.planner.compiled),
    'start': starts(folder, one, 3) if options.start else None,
  }


def starts(folder: pathlib.Path, text: str, count: int) -> dict[str, list[tuple[float, float]]]:
  """Pairs of seconds, and of processor seconds, from command to first prediction."""
  commands = (
    [
      sys.executable, '-m', 'electra_jax.main', '--mode=predict', f'--workdir={folder / "run"}',
      '--input=-',
    ],
    [sys.executable, '-c', PEER_START, str(folder / 'peer')],
  )  # fmt: skip

  def started(command: list[str]) -> tuple[float, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = timed(
      lambda: subprocess.run(command, input=text, text=True, check=True, capture_output=True)
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, processor

  calls = [tuple(map(started, commands)) for _ in range(count)]
  return {
    'seconds': [(ours[0], peer[0]) for ours, peer in calls],
    'processor_seconds': [(ours[1], peer[1]) for ours, peer in calls],
  }


def ratio_text(ratios: Sequence[float]) -> str:
  """The median and the range of ratios; of many without the twentieth at either end."""
  low, high = min(ratios), max(ratios)
  if len(ratios) >= 20:
    low, *_, high = statistics.quantiles(ratios, n=20)
  return f'{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})'


def table(results: Sequence[dict[str, Any]]) -> str:
  """The results as Markdown."""
  lines = [
    '| size | measure | electra_jax | transformers + PyTorch | ratio, median of pairs (range) |',
    '|---|---|---|---|---|',
  ]

  def add(size: str, name: str, pairs: Sequence[Sequence[float]], scale: float, unit: str) -> None:
    ratios = ratio_text([ours / theirs for ours, theirs in pairs])
    cells = [statistics.median(side) * scale for side in zip(*pairs, strict=True)]
    shown = (size, name, f'{cells[0]:,.2f} {unit}', f'{cells[1]:,.2f} {unit}', ratios)
    lines.append(f'| {" | ".join(shown)} |')

  for result in results:
    for clock, name in (('seconds', ''), ('processor_seconds', ', processor')):
      add(result['size'], f'one text of 16 tokens{name}', result['one_text'][clock], 1e3, 'ms')
      per_second = [
        [result['tokens'] / seconds / 1e3 for seconds in pair] for pair in result['bulk'][clock]
      ]
      what = f'{result["texts"]:,} texts{name}'
      add(result['size'], what, per_second, 1, 'thousand tokens/s')
      if result['start']:
        add(result['size'], f'command to first prediction{name}', result['start'][clock], 1, 's')
  return '\n'.join(lines)


def main() -> None:
  """Measures, prints a table and writes the numbers."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--sizes', nargs='+', default=SIZES, choices=SIZES)
  parser.add_argument('--threads', type=int, default=2, help="PyTorch's; XLA uses all cores")
  parser.add_argument('--calls', type=int, default=200)
  parser.add_argument('--texts', type=int, default=2_000)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--start', action='store_true', help='measure the start of processes, too')
  parser.add_argument('--output', help='JSON file for all numbers')
  options = parser.parse_args()
  torch.set_num_threads(options.threads)
  results = []
  for size in options.sizes:
    with tempfile.TemporaryDirectory() as folder:
      results.append(measure(size, pathlib.Path(folder), options))
      print(table(results[-1:]), flush=True)
  load = os.getloadavg()[0]
  versions = {m.__name__: m.__version__ for m in (electra_jax, torch, transformers)}
  print(f'\n{versions}, load average {load:.1f}')
  if options.output:
    content = {'versions': versions, 'load_average': load, 'results': results}
    pathlib.Path(options.output).write_text(json.dumps(content) + '\n')


if __name__ == '__main__':
  main()

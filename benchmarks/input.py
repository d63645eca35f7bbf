"""Measures the input pipeline: batches from a token store (tf.data and NumPy), and tokenization.

  python benchmarks/input.py                 # a store of the bundled corpus's size
  python benchmarks/input.py --gigabytes=10  # also a synthetic store of 10 GB in --folder (removed)
  python benchmarks/input.py --json=FILE
  python -m venv /tmp/grain && /tmp/grain/bin/pip install grain numpy
  python benchmarks/input.py beside --grain-python=/tmp/grain/bin/python  # Grain and plain tf.data
  python benchmarks/input.py table           # writes the tables of `beside` in benchmarks/README.md

`beside` measures our readers, Grain and tf.data on the same rows, from the disk and from a server
with the latency and the bandwidth of an object store, beside what the shipped configs need.

Each reader runs in its own process, so that its memory can be measured; rounds of the readers
alternate. `resident` is the memory of the process after the first batch and at the end: anonymous
memory, and pages of files.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
import page_tables
from environment import ROOT, environment
from reading import beside, timing
from reading.timing import BATCH, LENGTH

from electra_jax import console
from electra_jax.data.corpus import corpora
from electra_jax.data.prepare import preparation, workers
from electra_jax.data.prepare.recipe import CorpusRecipe
from electra_jax.data.store import row_batches, token_manifest, token_store
from electra_jax.data.tokenizers import tokenization

VOCAB_SIZE = 32_768
SEED = 0
BUNDLED_ROWS = 11_000  # about the number of rows of the bundled corpus at this length
TARGET = 2_000_000  # tokens per second
STEP_SPEED = 4_399  # tokens/s of `small` on two CPU cores, in bfloat16 (benchmarks/README.md)
TARGET_SHARE = 0.8  # of the speed of the tokenizer's library
TEXTS_PER_CALL = 256
LATE_STEP = 1_000_000
_BLOCK_ROWS = 65_536
BESIDE = ROOT / 'benchmarks/results/input_beside.json'
PAGE = ROOT / 'benchmarks/README.md'
TABLE = 'input beside'  # in the page


def synthetic_store(path: pathlib.Path, rows: int) -> None:
  """Writes a store of random ids. Blocks repeat, which makes no difference to a reader."""
  block = np.random.default_rng(0).integers(5, VOCAB_SIZE, (_BLOCK_ROWS, LENGTH), dtype=np.uint16)
  token_store.write_store(
    path,
    (block[: rows - first] for first in range(0, rows, _BLOCK_ROWS)),
    length=LENGTH,
    vocab_size=VOCAB_SIZE,
    pad_id=0,
    tokenizer_fingerprint='synthetic',
    facts={},
  )


def forget_cached(path: pathlib.Path) -> None:
  """Asks the system to drop the store's pages from its cache."""
  for file in path.glob('rows-*.bin'):
    with open(file, 'rb') as shard:
      os.fsync(shard.fileno())
      os.posix_fadvise(shard.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(path: str, reader: str, seconds: float) -> dict:
  """Reads batches for some seconds, see `timing.timed`, and finds a late step.

  Of a store at an address, the first batch includes that its shards are fetched.
  """
  if '://' in path:
    with tempfile.TemporaryDirectory() as cache:
      return timing.timed(lambda: fetched(path, cache, reader), seconds, warm=False)
  store = token_store.open_store(path)

  def make(step: int = 0) -> Iterator[np.ndarray]:
    return row_batches.batches(store, BATCH, SEED, step, use_tf=reader != 'numpy')

  found = timing.timed(make, seconds)
  late, _ = timing.first_batch(lambda: make(LATE_STEP))
  return found | {'first_batch_late': late}


def fetched(path: str, cache: str, reader: str) -> Iterator[np.ndarray]:
  """Batches of a store at an address, as a run reads them."""
  store = token_store.open_store(path, cache)
  store.fetch()
  return row_batches.batches(store, BATCH, SEED, 0, use_tf=reader != 'numpy')


def in_a_process(path: pathlib.Path, reader: str, seconds: float) -> dict:
  """`measure` in its own process."""
  console.quiet_libraries()
  command = [sys.executable, __file__, '--measure', str(path), reader, str(seconds)]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    sys.exit(done.stderr[-2000:])
  return json.loads(done.stdout.splitlines()[-1])


def read_batches(
  title: str, path: pathlib.Path, rounds: int, seconds: float, cold: bool = False
) -> list[dict]:
  """Measures both readers on a store in alternating rounds, and prints a line for each."""
  readers, results = ('tf.data', 'numpy'), []
  found = {reader: [] for reader in readers}
  for _ in range(rounds):
    for reader in readers:
      if cold:
        forget_cached(path)
      found[reader].append(in_a_process(path, reader, seconds))
  for reader, every in found.items():
    middle = {
      key: statistics.median(one[key] for one in every)
      for key in every[0]
      if not isinstance(every[0][key], dict)
    }
    speeds = [one['tokens_per_second'] / 1e6 for one in every]
    memory = '  '.join(
      f'{key[3:].lower()} {every[-1]["before"][key]:.0f} to {every[-1]["after"][key]:.0f}'
      for key in every[-1]['before']
    )
    print(
      f'| {title} | {reader} | {middle["tokens_per_second"] / 1e6:.1f} '
      f'({min(speeds):.1f} to {max(speeds):.1f}) '
      f'| {middle["processor_share"]:.2f} | {middle["first_batch"] * 1e3:.1f} '
      f'| {middle["first_batch_late"] * 1e3:.1f} | {memory} |',
      flush=True,
    )
    results.append({'store': title, 'reader': reader, **middle, 'rounds': every})
  return results


def library_encode(tokenizer: tokenization.Tokenizer, texts: list[str]) -> None:
  """Encodes texts with the tokenizer's library only, with its own threads."""
  if tokenizer.kind == 'sentencepiece':
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.files['tokenizer.model'])

    def encode(part):
      return processor.encode(part, num_threads=workers.cores())
  else:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    library = Tokenizer(
      models.WordPiece(
        {token: i for i, token in enumerate(tokenizer.tokens)},
        unk_token='[UNK]',
        max_input_chars_per_word=100,
      )
    )
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    os.environ['TOKENIZERS_PARALLELISM'] = 'true'

    def encode(part):
      return [one.ids for one in library.encode_batch_fast(part, add_special_tokens=False)]

  for start in range(0, len(texts), TEXTS_PER_CALL):
    encode(texts[start : start + TEXTS_PER_CALL])


def tokenizing(arguments: argparse.Namespace) -> dict:
  """Times the whole preparation of a text file against the tokenizer's library only."""
  if arguments.tokenizer:
    chosen = {path: tokenization.load_tokenizer(path) for path in arguments.tokenizer}
  else:
    chosen = {
      f'{kind}, 8,192 tokens': tokenization.train_tokenizer(
        corpora.read_documents('sample'), tokenization.TokenizerSettings(kind=kind, vocab_size=8192)
      )
      for kind in ('unigram', 'wordpiece')
    }
  texts, megabytes = [], 0.0
  while megabytes < arguments.megabytes:
    for text in corpora.read_documents('sample'):
      texts.append(text)
      megabytes += len(text.encode()) / 1e6
  print(
    f'\nTokenizing {megabytes:.0f} MB of text (the bundled corpus, repeated) on {workers.cores()} '
    f'cores; target: {TARGET_SHARE:.0%} of the library\n'
  )
  print(
    '| tokenizer | library only, MB/s, median (range) | preparation, MB/s, median (range) | share |'
  )
  print('|---|---|---|---|')
  results = []
  with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
    folder = pathlib.Path(folder)
    (folder / 'text.txt').write_text('\n\n'.join(texts))
    for name, tokenizer in chosen.items():
      tokenizer.save(folder / 'tokenizer')
      library, ours = [], []
      for _ in range(arguments.rounds):
        start = time.perf_counter()
        library_encode(tokenizer, texts)
        library.append(megabytes / (time.perf_counter() - start))
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
          preparation.prepare_corpus(
            CorpusRecipe(
              str(folder / 'text.txt'), row_length=LENGTH, tokenizer=str(folder / 'tokenizer')
            ),
            cache=folder,
            output=folder / 'out',
          )
        ours.append(megabytes / (time.perf_counter() - start))
        shutil.rmtree(folder / 'out')
      shutil.rmtree(folder / 'tokenizer')
      share = statistics.median(one / other for one, other in zip(ours, library, strict=True))

      def spread(speeds):
        return f'{statistics.median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f})'

      print(f'| {name} | {spread(library)} | {spread(ours)} | {share:.0%} |', flush=True)
      results.append(
        {
          'tokenizer': name,
          'kind': tokenizer.kind,
          'size': tokenizer.size,
          'library': library,
          'preparing': ours,
          'share': share,
        }
      )
  return {'megabytes': megabytes, 'tokenizing': results}


def sharded_store(path: pathlib.Path, rows: int, shard_bytes: int) -> None:
  """Writes a synthetic store with shards of another size than usual."""
  usual = token_manifest.SHARD_BYTES
  token_manifest.SHARD_BYTES = shard_bytes
  try:
    synthetic_store(path, rows)
  finally:
    token_manifest.SHARD_BYTES = usual


def measure_beside(arguments: argparse.Namespace) -> None:
  """Measures all readers, and writes the results."""
  results = beside.run(sharded_store, arguments)
  where = environment()
  where['versions'] |= versions(arguments.grain_python)
  results |= {
    'environment': where,
    'machine': 'with nothing else running' if arguments.idle else 'beside other programs',
    'rounds': arguments.rounds,
  }
  path = pathlib.Path(arguments.json or BESIDE)
  path.write_text(json.dumps(results, indent=1) + '\n')
  print(beside.markdown(results))


def versions(grain_python: str) -> dict[str, str]:
  """Versions of NumPy and TensorFlow here, and of Grain in its environment."""
  script = 'import importlib.metadata as m; print(m.version("grain"))'
  done = subprocess.run([grain_python, '-c', script], capture_output=True, text=True, check=True)
  found = {name: importlib.metadata.version(name) for name in ('numpy',)}
  tensorflow = ('tensorflow', 'tensorflow-cpu')
  for name in tensorflow:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found['tensorflow'] = importlib.metadata.version(name)
  return found | {'grain': done.stdout.strip()}


def main() -> None:
  """Measures and prints tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('command', nargs='?', choices=('beside', 'table'))
  parser.add_argument('--grain-python', help='of an environment with Grain, for `beside`')
  parser.add_argument('--idle', action='store_true', help='record that nothing else runs')
  parser.add_argument(
    '--gigabytes', type=float, default=0, help='size of an additional synthetic store'
  )
  parser.add_argument('--folder', default=tempfile.gettempdir(), help='folder of temporary stores')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--seconds', type=float, default=3, help='of each measurement')
  parser.add_argument(
    '--megabytes', type=float, default=200, help='of text; of the rows of `beside`'
  )
  parser.add_argument(
    '--tokenizer',
    action='append',
    help='a tokenizer to measure with, instead of ones trained on the bundled corpus',
  )
  parser.add_argument('--json', help='a file for the results')
  parser.add_argument('--measure', nargs=3, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.measure:
    path, reader, seconds = arguments.measure
    print(json.dumps(measure(path, reader, float(seconds))))
    return
  if arguments.command == 'beside':
    if not arguments.grain_python:
      parser.error('beside requires --grain-python, the Python of an environment with Grain')
    measure_beside(arguments)
    return
  if arguments.command == 'table':
    path = pathlib.Path(arguments.json or BESIDE)
    # What the configs need follows from their plans, which are made anew more often.
    results = json.loads(path.read_text()) | {'needs': beside.needs_of_configs()}
    path.write_text(json.dumps(results, indent=1) + '\n')
    page_tables.replace(PAGE, TABLE, beside.markdown(results))
    return

  sizes = {'bundled size': BUNDLED_ROWS}
  if arguments.gigabytes:
    sizes[f'{arguments.gigabytes:g} GB'] = round(arguments.gigabytes * 1e9 / (LENGTH * 2))
  needed = max(sizes.values()) * LENGTH * 2
  if shutil.disk_usage(arguments.folder).free < 1.2 * needed:
    sys.exit(
      f'{arguments.folder} has no space for a store of {needed / 1e9:.1f} GB; use another --folder '
      'or fewer --gigabytes.'
    )
  results = {
    'machine': platform.processor() or platform.machine(),
    'cores': os.cpu_count(),
    'batch': BATCH,
    'length': LENGTH,
    'batches': [],
  }
  print(
    f'Batches of {BATCH} rows of {LENGTH}; target: {TARGET / 1e6:.0f} million tokens/s, and 20 '
    f'times the {STEP_SPEED:,} of a CPU step of small\n'
  )
  print(
    '| store | reader | million tokens/s, median (range) | processors | first batch, ms '
    '| first batch at step 1,000,000, ms | resident MB |'
  )
  print('|---|---|---|---|---|---|---|')
  for title, rows in sizes.items():
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
      path = pathlib.Path(folder) / 'store'
      synthetic_store(path, rows)
      results['batches'] += read_batches(title, path, arguments.rounds, arguments.seconds)
      if rows > BUNDLED_ROWS and hasattr(os, 'posix_fadvise'):
        results['batches'] += read_batches(
          f'{title}, from the disk', path, arguments.rounds, arguments.seconds, cold=True
        )
  results |= tokenizing(arguments)
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
  main()

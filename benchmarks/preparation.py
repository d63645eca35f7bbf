"""Measures preparation: speed beside the datasets library, memory, and opening a large store.

  python benchmarks/preparation.py speed              # beside datasets.map with packing, in pairs
  python benchmarks/preparation.py memory             # 2 GB of text: resident memory
  python benchmarks/preparation.py line               # one line of 100 MB
  python benchmarks/preparation.py opening            # a store of 100 GB beside one of 1 MB
  python benchmarks/preparation.py speed --json=FILE  # adds the raw numbers to FILE

`speed` requires the datasets library. Both sides start from the same file of JSON lines and the
same tokenizer, make rows of 128 tokens with [CLS] and [SEP] around each piece, lose no token, and
end with the packed rows on the disk. The peer is `peer` below: two maps over batches, as the
documentation of datasets describes them, with the fast encoding of the tokenizers library and the
file that this package exports for it; one process per core. Rounds alternate.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from electra_jax.data.corpus import corpora
from electra_jax.data.prepare import preparation
from electra_jax.data.prepare.recipe import CorpusRecipe
from electra_jax.data.store import token_manifest, token_store
from electra_jax.data.tokenizers import tokenization

LENGTH = 128
VOCAB_SIZE = 8_192
PACKAGES = ('electra-jax', 'datasets', 'tokenizers', 'sentencepiece', 'pyarrow', 'numpy')


def make_corpus(path: pathlib.Path, megabytes: float) -> float:
  """Writes the bundled corpus, repeated with a number in each document, as JSON lines.

  Returns:
    MB of text.
  """
  texts = list(corpora.read_documents('sample'))
  written = 0.0
  number = 0
  with open(path, 'w', encoding='utf-8') as file:
    while written < megabytes:
      for text in texts:
        text = f'{number}. {text}'
        file.write(json.dumps({'text': text}, ensure_ascii=False) + '\n')
        written += len(text.encode()) / 1e6
        number += 1
  return written


def make_tokenizer(folder: pathlib.Path, kind: str) -> None:
  """Trains a tokenizer on the bundled corpus; saves it with its tokenizer.json."""
  settings = tokenization.TokenizerSettings(kind=kind, vocab_size=VOCAB_SIZE)
  made = tokenization.train_tokenizer(corpora.read_documents('sample'), settings)
  made.save(folder)
  pipeline = made.to_pipeline()
  assert pipeline is not None
  pipeline.save(str(folder / 'pipeline.json'))


def ours(corpus: pathlib.Path, tokenizer: pathlib.Path, out: pathlib.Path, processes: int) -> None:
  """Prepares the corpus as users do."""
  recipe = CorpusRecipe(
    str(corpus), row_length=LENGTH, tokenizer=str(tokenizer), heldout_fraction=0.0
  )
  with contextlib.redirect_stdout(io.StringIO()):
    preparation.prepare_corpus(recipe, cache=out, output=out / 'rows', processes=processes)


def peer(corpus: pathlib.Path, tokenizer: pathlib.Path, out: pathlib.Path, processes: int) -> None:
  """Tokenizes and packs with datasets.map, and saves the rows."""
  import datasets
  import tokenizers

  datasets.disable_progress_bars()
  pipeline = tokenizers.Tokenizer.from_file(str(tokenizer / 'pipeline.json'))
  special = [pipeline.token_to_id(name) for name in ('[CLS]', '[SEP]', '[PAD]')]
  os.environ['TOKENIZERS_PARALLELISM'] = 'true' if processes == 1 else 'false'

  def encode(batch: dict) -> dict:
    found = pipeline.encode_batch_fast(batch['text'], add_special_tokens=False)
    return {'ids': [one.ids for one in found]}

  def pack(batch: dict) -> dict:
    cls, sep, pad = special
    row: list[int] = []
    rows = []
    for ids in batch['ids']:
      place = 0
      while place < len(ids):
        room = LENGTH - len(row) - 2
        if room < 8:
          rows.append(row + [pad] * (LENGTH - len(row)))
          row = []
          continue
        row += [cls, *ids[place : place + room], sep]
        place += room
    if row:
      rows.append(row + [pad] * (LENGTH - len(row)))
    return {'rows': rows}

  several = processes if processes > 1 else None
  data = datasets.load_dataset(
    'json', data_files=str(corpus), split='train', cache_dir=str(out / 'cache'), num_proc=None
  )
  features = datasets.Features({'rows': datasets.List(datasets.Value('uint16'), length=LENGTH)})
  data = data.map(encode, batched=True, num_proc=several, remove_columns=data.column_names)
  data = data.map(pack, batched=True, num_proc=several, remove_columns=['ids'], features=features)
  data.save_to_disk(str(out / 'rows'), num_proc=several)


def processor_seconds() -> float:
  """Seconds of processors of this process, and of the processes that it started and that ended."""
  found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(one.ru_utime + one.ru_stime for one in found)


def timed(side: str, corpus: str, tokenizer: str, processes: int) -> tuple[float, float]:
  """Seconds that a side takes, without imports, and seconds of processors, of all its processes."""
  with tempfile.TemporaryDirectory(dir=pathlib.Path(corpus).parent) as out:
    command = [sys.executable, __file__, '--side', side, corpus, tokenizer, out, str(processes)]
    cores = sorted(os.sched_getaffinity(0))[:processes]
    done = subprocess.run(
      ['taskset', '-c', ','.join(map(str, cores)), *command], capture_output=True, text=True
    )
    if done.returncode:
      sys.exit(done.stderr[-3000:])
    seconds, processor = map(float, done.stdout.splitlines()[-1].split())
    return seconds, processor


def speed(arguments: argparse.Namespace) -> dict:
  """Times both sides in alternating rounds, on one core and on two."""
  results = []
  print(
    '| tokenizer | cores | electra_jax, MB/s | datasets.map, MB/s | ratio, median (range) | '
    'ratio of processor time |'
  )
  print('|---|---:|---:|---:|---:|---:|')
  with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
    corpus = pathlib.Path(folder) / 'text.jsonl'
    megabytes = make_corpus(corpus, arguments.megabytes)
    for kind in arguments.tokenizer:
      tokenizer = pathlib.Path(folder) / kind
      make_tokenizer(tokenizer, kind)
      for processes in arguments.processes:
        times: dict[str, list[tuple[float, float]]] = {'ours': [], 'peer': []}
        for _ in range(arguments.rounds):
          for side, found in times.items():
            found.append(timed(side, str(corpus), str(tokenizer), processes))
        rates = {
          side: megabytes / statistics.median(seconds for seconds, _ in found)
          for side, found in times.items()
        }
        columns = []
        for which in (0, 1):
          pairs = zip(times['ours'], times['peer'], strict=True)
          ratios = [theirs[which] / own[which] for own, theirs in pairs]
          columns.append(
            f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'
          )
        print(
          f'| {kind}, {VOCAB_SIZE:,} | {processes} | {rates["ours"]:.1f} | {rates["peer"]:.1f} | '
          f'{" | ".join(columns)} |',
          flush=True,
        )
        results.append({'tokenizer': kind, 'processes': processes, 'seconds': times})
  return {'megabytes': megabytes, 'rounds': results}


#### Memory ####


def resident_of(process: int) -> dict[int, int]:
  """Resident memory in kB of a process, and of all processes that it started."""
  found = {}
  todo = [process]
  while todo:
    one = todo.pop()
    with contextlib.suppress(OSError):
      for line in pathlib.Path(f'/proc/{one}/status').read_text().splitlines():
        if line.startswith('VmRSS'):
          found[one] = int(line.split()[1])
      for task in pathlib.Path(f'/proc/{one}/task').iterdir():
        todo += map(int, (task / 'children').read_text().split())
  return found


def watched(corpus: pathlib.Path, megabytes: float, arguments: argparse.Namespace) -> dict:
  """Prepares a corpus, samples the resident memory of all processes, and prints a line."""
  folder = corpus.parent
  tokenizer = folder / 'tokenizer'
  make_tokenizer(tokenizer, arguments.tokenizer[0])
  command = [sys.executable, __file__, '--side', 'ours', str(corpus), str(tokenizer), str(folder)]
  start = time.perf_counter()
  running = subprocess.Popen([*command, str(max(arguments.processes))], stdout=subprocess.PIPE)
  most_of_one = most_of_all = 0
  samples = []
  while running.poll() is None:
    found = resident_of(running.pid)
    most_of_one = max([most_of_one, *found.values()])
    most_of_all = max(most_of_all, sum(found.values()))
    samples.append(sum(found.values()) // 1000)
    time.sleep(0.25)
  seconds = time.perf_counter() - start
  if running.returncode:
    sys.exit('the preparation failed')
  print(
    f'| {megabytes:,.0f} | {seconds:.0f} | {megabytes / seconds:.1f} | {most_of_one / 1000:,.0f} | '
    f'{most_of_all / 1000:,.0f} |',
    flush=True,
  )
  return {
    'megabytes': megabytes,
    'seconds': seconds,
    'most_of_one_kb': most_of_one,
    'most_of_all_kb': most_of_all,
    'samples_mb': samples[:: max(1, len(samples) // 60)],
  }


def print_header() -> None:
  """Prints the header of the tables of memory."""
  print('| text, MB | seconds | MB/s | largest resident set, MB: one process | all processes |')
  print('|---:|---:|---:|---:|---:|')


def memory(arguments: argparse.Namespace) -> dict:
  """Prepares a small corpus and a large one, and samples the resident memory of all processes."""
  results = []
  print_header()
  for megabytes in (arguments.megabytes / 20, arguments.megabytes):
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
      corpus = pathlib.Path(folder) / 'text.jsonl'
      results.append(watched(corpus, make_corpus(corpus, megabytes), arguments))
  return {'memory': results}


def line(arguments: argparse.Namespace) -> dict:
  """Prepares a corpus of one line, which is one document."""
  print_header()
  with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
    corpus = pathlib.Path(folder) / 'line.txt'
    text = ' '.join(' '.join(corpora.read_documents('sample')).split()).encode()
    size = int(arguments.megabytes * 1e6)
    corpus.write_bytes((text * (1 + size // len(text)))[:size].decode(errors='ignore').encode())
    return {'line': watched(corpus, arguments.megabytes, arguments)}


#### Opening ####


def sparse_store(path: pathlib.Path, gigabytes: float) -> None:
  """Writes a store of zeros whose shards take no space on the disk, with a true manifest."""
  rows = int(gigabytes * 1e9) // (LENGTH * 2)
  full = token_manifest.rows_per_shard(LENGTH, VOCAB_SIZE)
  path.mkdir()
  digests: dict[int, str] = {}
  shards = []
  for index, first in enumerate(range(0, rows, full)):
    size = min(full, rows - first) * LENGTH * 2
    file = path / f'rows-{index:05d}.bin'
    with open(file, 'wb') as shard:
      shard.truncate(size)
    if size not in digests:
      digests[size] = token_manifest.file_digest(file)
    shards.append(
      {
        'file': file.name,
        'rows': size // (LENGTH * 2),
        'bytes': size,
        'blake2b': digests[size],
        'tokens': 0,
      }
    )
  token_manifest.write_manifest(
    str(path),
    shards,
    length=LENGTH,
    vocab_size=VOCAB_SIZE,
    pad_id=0,
    tokenizer_fingerprint='sparse',
    facts={},
  )


def open_and_read(path: str) -> dict:
  """Seconds to open a store and to read a batch of it, and the resident memory after."""
  start = time.perf_counter()
  store = token_store.open_store(path)
  opened = time.perf_counter() - start
  rows = np.random.default_rng(0).integers(0, store.rows, 128)
  store.read(np.sort(rows))
  status = pathlib.Path('/proc/self/status').read_text().splitlines()
  resident = next(int(line.split()[1]) for line in status if line.startswith('VmRSS'))
  return {'open': opened, 'batch': time.perf_counter() - start - opened, 'resident_kb': resident}


def opening(arguments: argparse.Namespace) -> dict:
  """Opens a large store and a small one, each in its own process, for the first time."""
  results = []
  print('| store | opened in, ms, median (range) | first batch, ms | resident, MB |')
  print('|---|---:|---:|---:|')
  for gigabytes in (0.001, arguments.gigabytes):
    found = []
    for _ in range(arguments.rounds):
      with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = pathlib.Path(folder) / 'store'
        sparse_store(path, gigabytes)
        command = [sys.executable, __file__, '--open', str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    opened = [1000 * one['open'] for one in found]
    print(
      f'| {gigabytes:g} GB | {statistics.median(opened):.1f} ({min(opened):.1f} to '
      f'{max(opened):.1f}) | {1000 * statistics.median(one["batch"] for one in found):.1f} | '
      f'{statistics.median(one["resident_kb"] for one in found) / 1000:.0f} |',
      flush=True,
    )
    results.append({'gigabytes': gigabytes, 'rounds': found})
  return {'opening': results}


MEASURES = {'speed': speed, 'memory': memory, 'line': line, 'opening': opening}


def versions() -> dict[str, str]:
  """Versions of the packages that are there."""
  found = {'python': platform.python_version()}
  for name in PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def main() -> None:
  """Measures and prints tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('measure', nargs='?', choices=MEASURES)
  parser.add_argument('--megabytes', type=float, help='of text; speed: 50, memory: 2000, line: 100')
  parser.add_argument('--gigabytes', type=float, default=100, help='of the large store')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--processes', type=int, nargs='+', default=[1, 2])
  parser.add_argument('--tokenizer', nargs='+', default=['unigram', 'wordpiece'])
  parser.add_argument('--folder', default=tempfile.gettempdir(), help='folder of temporary files')
  parser.add_argument('--json', help='a file for the results, which are added to it')
  parser.add_argument('--side', nargs=5, help=argparse.SUPPRESS)
  parser.add_argument('--open', help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.open:
    print(json.dumps(open_and_read(arguments.open)))
    return
  if arguments.side:
    side, *paths, processes = arguments.side
    if side == 'peer':
      importlib.import_module('datasets')  # imports are not timed
    start, processor = time.perf_counter(), processor_seconds()
    {'ours': ours, 'peer': peer}[side](*map(pathlib.Path, paths), int(processes))
    print(time.perf_counter() - start, processor_seconds() - processor)
    return
  if not arguments.measure:
    parser.error('name what to measure')
  usual = {'memory': 2000.0, 'line': 100.0}.get(arguments.measure, 50.0)
  arguments.megabytes = arguments.megabytes or usual
  results = {
    'machine': platform.processor() or platform.machine(),
    'cores': os.cpu_count(),
    'versions': versions(),
    **MEASURES[arguments.measure](arguments),
  }
  if arguments.json:
    path = pathlib.Path(arguments.json)
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | {arguments.measure: results}, indent=1) + '\n')


if __name__ == '__main__':
  main()

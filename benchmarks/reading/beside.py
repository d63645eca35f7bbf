"""Our readers beside Grain and tf.data, from a disk and from a slow object store."""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from reading import needs, object_store
from reading.timing import BATCH, LENGTH

PEERS = pathlib.Path(__file__).with_name('peers.py')
INPUT = pathlib.Path(__file__).resolve().parents[1] / 'input.py'
TITLES = {
  'numpy': 'electra_jax, NumPy',
  'tf': 'electra_jax, tf.data',
  'tf.data': 'tf.data, buffer of 10,000 rows',
  'grain': 'Grain',
}
OURS = ('numpy', 'tf')
LOCAL = ('numpy', 'tf', 'tf.data', 'grain')
REMOTE = ('numpy', 'tf.data', 'grain')
# Of the tables: machine, and what else ran there.
Results = dict[str, Any]
Rounds = dict[str, list[dict[str, Any]]]  # by reader: what was measured in each round


def measured(reader: str, store: str, seconds: float, grain_python: str) -> dict[str, Any]:
  """What a reader does with a store, in its own process.

  Args:
    reader: a key of TITLES.
    store: a folder, or an http:// address.
    seconds: to read.
    grain_python: the Python of an environment with Grain.

  Raises:
    RuntimeError: the process failed.
  """
  if reader in OURS:
    command = [sys.executable, str(INPUT), '--measure', store, reader, str(seconds)]
  else:
    python = grain_python if reader == 'grain' else sys.executable
    command = [python, str(PEERS), store, reader, str(seconds)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise RuntimeError(f'{reader} failed:\n{done.stderr[-3000:]}')
  found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
  return found


def rounds_of(
  readers: Sequence[str], rounds: int, measure: Callable[[str], dict[str, Any]]
) -> Rounds:
  """Measures readers in alternating rounds."""
  found: dict[str, list[dict[str, Any]]] = {reader: [] for reader in readers}
  for _ in range(rounds):
    for reader in readers:
      found[reader].append(measure(reader))
      rate = found[reader][-1]['tokens_per_second'] / 1e6
      print(f'  {TITLES[reader]}: {rate:.2f} million tokens/s', flush=True)
  return found


def local(store: pathlib.Path, options: argparse.Namespace) -> Rounds:
  """All readers on a local store, which has been read before.

  Args:
    store: its folder.
    options: of the command line.
  """
  return rounds_of(
    LOCAL,
    options.rounds,
    lambda reader: measured(reader, str(store), options.seconds, options.grain_python),
  )


def remote(store: pathlib.Path, options: argparse.Namespace) -> Rounds:
  """Readers on a store behind a slow server; none has read it before."""
  with object_store.serving(store.parent, object_store.TYPICAL) as address:
    where = f'{address}/{store.name}'

    def measure(reader: str) -> dict[str, Any]:
      return measured(reader, where, options.seconds, options.grain_python)

    return rounds_of(REMOTE, options.rounds, measure)


def run(write_store: Callable[..., None], options: argparse.Namespace) -> Results:
  """Measures all readers on a local store and on a slow one, and the needs of the configs.

  Args:
    write_store: writes a store of some rows: `(path, rows, shard_bytes)`.
    options: of the command line.
  """
  rows = round(options.megabytes * 1e6 / (2 * LENGTH))
  with tempfile.TemporaryDirectory(dir=options.folder) as name:
    store = pathlib.Path(name) / 'store'
    # As many shards as a corpus of a hundred times the size has.
    write_store(store, rows, round(options.megabytes * 1e6 / 16))
    found = {'local': local(store, options), 'remote': remote(store, options)}
  return found | {
    'megabytes': options.megabytes,
    'limits': vars(object_store.TYPICAL),
    'needs': needs_of_configs(),
  }


#### The tables ####


def _spread(values: Iterable[float], digits: int) -> str:
  found = sorted(values)
  ends = f'{found[0]:,.{digits}f} to {found[-1]:,.{digits}f}'
  return f'{statistics.median(found):,.{digits}f} ({ends})'


def _reader_rows(found: dict[str, list[dict[str, Any]]]) -> list[str]:
  lines = []
  for reader, every in found.items():
    rates = [one['tokens_per_second'] / 1e6 for one in every]
    rows = statistics.median(one['tokens_per_second'] / 1e3 / LENGTH for one in every)
    first = _spread((one['first_batch'] for one in every), 2)
    share = statistics.median(one['processor_share'] for one in every)
    cells = [TITLES[reader], f'{rows:,.1f}', _spread(rates, 2), f'{share:.2f}', first]
    lines.append('| ' + ' | '.join(cells) + ' |')
  return lines


def _reader_table(title: str, found: dict[str, list[dict[str, Any]]]) -> list[str]:
  header = f'| {title} | thousand rows/s | million tokens/s | processors | first batch, s |'
  return [header, '|---|---:|---:|---:|---:|', *_reader_rows(found)]


def _rate(found: dict[str, list[dict[str, Any]]], reader: str) -> float:
  return statistics.median(one['tokens_per_second'] for one in found[reader])


def needs_of_configs() -> list[dict[str, Any]]:
  """The tokens per second that the shipped configs need, as JSON."""
  return [vars(need) for need in needs.shipped()]


def markdown(results: Results) -> str:
  """The tables of benchmarks/README.md: readers, the slow store, and what configs need."""
  limits, size = results['limits'], results['megabytes']
  slow = (
    f'object store: {1e3 * limits["latency"]:.0f} ms, {limits["stream"] / 1e6:.0f} MB/s per '
    f'connection, {limits["total"] / 1e6:.0f} in all'
  )
  where = results['environment']
  versions = where['versions']
  lines = _reader_table(f'{size:,g} MB on the disk, in the page cache', results['local'])
  lines += ['', *_reader_table(slow, results['remote']), '']
  lines += [
    '| config | on | hosts | needs, million tokens/s per host | NumPy reader | tf.data reader |',
    '|---|---|---:|---:|---:|---:|',
  ]
  rates = [_rate(results['local'], reader) for reader in OURS]
  for need in results['needs']:
    times = ' | '.join(f'{rate / need["tokens"]:,.1f} times' for rate in rates)
    lines.append(
      f'| `{need["config"]}` | {need["hardware"]} | {need["hosts"]} | {need["tokens"] / 1e6:.3g} | '
      f'{times} |'
    )
  packages = ', '.join(f'{k} {versions[k]}' for k in ('numpy', 'tensorflow', 'grain'))
  lines += [
    '',
    f'Batches of {BATCH} rows of {LENGTH}; medians and ranges of {results["rounds"]} rounds. '
    f'{where["processor"]}, {where["cores"]} cores, {results["machine"]}, '
    f'Python {versions["python"]}, {packages}, commit {where["commit"]}.',
  ]
  return '\n'.join(lines)

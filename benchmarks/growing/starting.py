"""The start of a run over prepared corpora of several sizes, until its first step."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import startup
from environment import ROOT

CONFIG = 'configs/tiny.py'
VERIFIED = 'verified.json'


def prepare(folder: pathlib.Path) -> list[str]:
  """Prepares the bundled corpus, and compiles the programs of the config.

  Returns:
    Arguments of all starts.
  """
  common = [
    f'--config={CONFIG}',
    '--config.steps=1',
    '--config.optimizer.warmup_steps=0',
    '--config.model.num_layers=1',
    '--config.eval_rows=8',
    f'--config.data.cache={folder / "cache"}',
    f'--config.compilation_cache={folder / "xla"}',
  ]
  command = [sys.executable, '-m', 'electra_jax.main', '--mode=prepare', *common]
  command.append(f'--output={folder / "prepared"}')
  subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
  stored = [*common, f'--config.data.store={folder / "prepared"}']
  startup.measure('train', [*stored, f'--workdir={folder / "first"}'], folder)
  return common


def enlarge(prepared: pathlib.Path, target: pathlib.Path, gigabytes: float) -> None:
  """Makes a prepared corpus with a larger store of training rows.

  The rows are those of `prepared`, repeated. Full shards are links to one file, so that they take
  the space of one; sizes, checksums and manifest are those of a real store.

  Args:
    prepared: the folder of a prepared corpus with one shard of training rows.
    target: the new folder.
    gigabytes: of the training rows.
  """
  from electra_jax.data.store import token_manifest

  shutil.copytree(prepared, target)
  manifest = token_manifest.read_manifest(str(prepared / 'train'))
  shape: dict[str, Any] = {
    name: manifest[name] for name in ('length', 'vocab_size', 'pad_id', 'tokenizer_fingerprint')
  }
  row_bytes = manifest['length'] * 2
  full = manifest['rows_per_shard']
  rows = max(1, round(gigabytes * 1e9 / row_bytes))
  content = (target / 'train' / 'rows-00000.bin').read_bytes()
  shutil.rmtree(target / 'train')
  (target / 'train').mkdir()
  written: dict[int, tuple[pathlib.Path, str]] = {}  # size -> a file and its checksum
  shards = []
  for index, first in enumerate(range(0, rows, full)):
    size = min(full, rows - first) * row_bytes
    file = target / 'train' / f'rows-{index:05d}.bin'
    if size in written:
      os.link(written[size][0], file)
    else:
      file.write_bytes((content * (size // len(content) + 1))[:size])
      written[size] = file, token_manifest.file_digest(file)
    shards.append(
      {
        'file': file.name,
        'rows': size // row_bytes,
        'bytes': size,
        'blake2b': written[size][1],
        'tokens': size // 2,
      }
    )
  token_manifest.write_manifest(target / 'train', shards, **shape, facts={'split': 'train'})


def measure(points: list[dict[str, float]]) -> list[dict[str, float]]:
  """Starts a run over a corpus of each size twice: the first start checks the shards.

  Args:
    points: 'gigabytes' of each.

  Returns:
    For each point processor seconds until the first step: `first`, of the first start over the
    corpus, and `processor`, of the next; and `memory`, the most resident bytes of the latter.
  """
  found = []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    common = prepare(folder)
    for number, point in enumerate(points):
      target = folder / 'large'
      enlarge(folder / 'prepared', target, point['gigabytes'])
      (target / 'train' / VERIFIED).unlink(missing_ok=True)
      stored = [*common, f'--config.data.store={target}']
      starts = [
        startup.measure('train', [*stored, f'--workdir={folder / f"{number}-{start}"}'], folder)
        for start in range(2)
      ]
      found.append(
        {
          'first': starts[0]['total'],
          'processor': starts[1]['total'],
          'memory': starts[1]['memory'],
        }
      )
      shutil.rmtree(target)
  return found

"""Tasks of gpu.py for the check of resuming: short runs of the program, and their comparison.

They use typed configs, so they require neither ml_collections nor TensorFlow.
"""

import json
import lzma
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from environment import ROOT

from electra_jax.config import PretrainingConfig
from electra_jax.pretrain.run_start import prepare_data
from electra_jax.pretrain.train import train as train_run
from electra_jax.training import checkpoints
from electra_jax.training.progress import METRICS
from gpu_parts.worker import Answer

CHARACTERS = 200_000  # of the bundled corpus
# Metrics that depend on the clock.
TIMES = ('seconds', 'tokens_per_second', 'utilisation', 'input_wait')


def config_of(folder: str, changes: Mapping[str, Any]) -> PretrainingConfig:
  """The run: `small` with a small vocabulary, on a part of the bundled corpus.

  It has no cache of compiled programs, so that each start compiles anew.
  """
  fields = {
    'name': 'gpu',
    'data.source': f'{folder}/text.txt',
    'data.cache': f'{folder}/cache',
    'data.vocab_size': 1024,
    'data.tokenizer': 'wordpiece',
    'data.workers': 1,
    'data.reader': 'numpy',
    'dtype': 'bfloat16',
    'optimizer.warmup_steps': 2,
    'micro_batches': 1,
    'eval_every': 10**6,
    'eval_rows': 8,
    'eval_batch_size': 8,
    'compilation_cache': '',
    'trackers': (),
  }
  return PretrainingConfig().replace(fields | dict(changes))


def prepare(answer: Answer, folder: str, changes: dict[str, Any]) -> None:
  """Writes the text, and prepares tokenizer and rows."""
  text = lzma.decompress((ROOT / 'electra_jax/data/sample/corpus.txt.xz').read_bytes())
  pathlib.Path(folder, 'text.txt').write_text(text.decode()[:CHARACTERS], encoding='utf-8')
  prepared = prepare_data(config_of(folder, changes))
  answer(rows=prepared.train.rows)


def train(answer: Answer, folder: str, workdir: str, changes: dict[str, Any]) -> None:
  """Trains, or resumes."""
  answer(status=train_run(config_of(folder, changes), workdir))


def arrays_of(workdir: str, step: int) -> dict[str, np.ndarray]:
  """Parameters and optimizer state of a checkpoint, by name."""
  found = {}
  for item in ('params', 'opt_state'):
    tree = checkpoints.read_arrays(workdir, step, item)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
  return found


def metrics_of(workdir: str) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl without times."""
  lines = pathlib.Path(workdir, METRICS).read_text(encoding='utf-8').splitlines()
  return [
    {name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines
  ]


def difference(answer: Answer, workdirs: list[str], step: int) -> None:
  """Compares the last checkpoints and the metrics of two runs, bit for bit."""
  ours, theirs = (arrays_of(workdir, step) for workdir in workdirs)
  lines, others = map(metrics_of, workdirs)
  answer(
    arrays=len(ours),
    elements=sum(x.size for x in ours.values()),
    different=sorted(
      name
      for name in ours.keys() | theirs.keys()
      if name not in ours or name not in theirs or ours[name].tobytes() != theirs[name].tobytes()
    ),
    lines=len(lines),
    different_lines=sum(a != b for a, b in zip(lines, others, strict=False))
    + abs(len(lines) - len(others)),
  )

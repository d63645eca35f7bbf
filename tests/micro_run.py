"""A run of the command line that takes seconds: its corpus, its command and its files.

`run` is in the process of the tests, `start` and `run_process` start one as a user does, by default
with one device. All share a folder of compiled programs, so that each is compiled once.
"""

import atexit
import contextlib
import fcntl
import functools
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings

import in_process
import jax
import numpy as np
import orbax.checkpoint as ocp
import xla_flags

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = 'tests/configs/micro.py'
FINETUNE_CONFIG = 'tests/configs/finetune_micro.py'
TIMES = (
  'seconds',
  'tokens_per_second',
  'utilisation',
  'input_wait',
)  # metrics that depend on the clock
SYLLABLES = 'ba ko ti ru me sa lo ni pe du fa gi'.split()


@functools.cache
def shared() -> pathlib.Path:
  """Returns a folder that lives as long as the test session and that its workers share.

  It holds the corpus, prepared data and the finished run.
  """
  folder = os.environ.get('ELECTRA_JAX_TESTS')
  if folder is None:  # not under pytest
    folder = tempfile.mkdtemp(prefix='electra_jax_tests_')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return pathlib.Path(folder)


def programs() -> pathlib.Path:
  """Returns the folder of compiled programs, one per worker: JAX's writes to it are not atomic."""
  return shared() / f'xla_{os.environ.get("PYTEST_XDIST_WORKER", "main")}'


@contextlib.contextmanager
def locked(name: str):
  """Holds a lock that the session's workers share."""
  with open(shared() / f'{name}.lock', 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


@functools.cache
def corpus() -> pathlib.Path:
  """120 documents of made-up words."""
  rng = random.Random(0)
  words = [''.join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(500)]
  documents = [' '.join(rng.choices(words, k=rng.randint(40, 80))) + '.' for _ in range(120)]
  path = shared() / 'text.txt'
  with locked('corpus'):
    if not path.exists():
      path.write_text('\n\n'.join(documents) + '\n', 'utf-8')
  return path


def arguments(workdir, *more: str, config: str = CONFIG) -> list[str]:
  """Arguments of a training run."""
  return [
    f'--config={config}',
    f'--workdir={workdir}',
    f'--config.data.source={corpus()}',
    f'--config.data.cache={shared() / "cache"}',
    f'--config.compilation_cache={programs()}',
    '--config.data.reader=numpy',
    *more,
  ]


def finetune_arguments(workdir, data, *more: str) -> list[str]:
  """Arguments of a run that fine-tunes the finished run on data of GLUE."""
  return [
    '--mode=finetune',
    f'--config={FINETUNE_CONFIG}',
    f'--config.init={finished()[0]}',
    f'--config.data.source={data}',
    f'--workdir={workdir}',
    f'--config.compilation_cache={programs()}',
    *more,
  ]


def start(*argv: str, devices: int = 1, **popen) -> subprocess.Popen:
  """Starts `python -m electra_jax.main ARGV`, by default with its output in pipes."""
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'PYTHONPATH': str(ROOT),
  }
  # Unoptimized programs are deterministic too, and compile in a third of the time.
  env['XLA_FLAGS'] = f'{xla_flags.QUICK} --xla_force_host_platform_device_count={devices}'
  pipes = {
    'stdout': subprocess.PIPE,
    'stderr': subprocess.PIPE,
    'stdin': subprocess.DEVNULL,
    'text': True,
    'cwd': ROOT,
  } | popen
  return subprocess.Popen([sys.executable, '-m', 'electra_jax.main', *argv], env=env, **pipes)


def run(*argv: str, status: int = 0, devices: int = 1) -> tuple[str, str]:
  """Runs the command here and checks its exit status; returns stdout and stderr."""
  ended, out, err = in_process.run(*argv, devices=devices)
  assert ended == status, f'exit status {ended}\n{out}\n{err}'
  return out, err


def run_process(*argv: str, status: int = 0, devices: int = 1, **popen) -> tuple[str, str]:
  """Runs the command as a process of its own, otherwise as `run`."""
  process = start(*argv, devices=devices, **popen)
  try:
    out, err = process.communicate(timeout=900)
  finally:
    process.kill()
  assert process.returncode == status, f'exit status {process.returncode}\n{out}\n{err}'
  return out, err


@functools.cache
def finished() -> tuple[pathlib.Path, str]:
  """Returns the folder of a run that was never stopped, and what it printed.

  All of its checkpoints are kept. One run serves all workers; tests change only copies of it.
  """
  workdir, printed = shared() / 'finished', shared() / 'finished.txt'
  with locked('finished'):
    if not printed.exists():
      printed.write_text(run_process(*arguments(workdir, '--config.keep=100'))[0])
  return workdir, printed.read_text()


@functools.cache
def saved_often() -> pathlib.Path:
  """Returns the folder of the same run with a checkpoint of every step, all of them kept."""
  workdir, done = shared() / 'saved_often', shared() / 'saved_often.txt'
  with locked('saved_often'):
    if not done.exists():
      run(*arguments(workdir, '--config.keep=100', '--config.save_every=1'))
      done.touch()
  return workdir


def wait_for(condition, process: subprocess.Popen, timeout: float = 900.0):
  """Polls until condition() is true and returns its value. Fails if the process ends before."""
  end = time.monotonic() + timeout
  while not (found := condition()):
    assert process.poll() is None, f'ended with {process.returncode} too early'
    assert time.monotonic() < end, f'not true after {timeout} s'
    time.sleep(0.002)
  return found


def last_step(workdir) -> int:
  """The step of the last complete line of metrics.jsonl, 0 if there is none."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  lines = path.read_text('utf-8').split('\n')[:-1] if path.exists() else []
  return json.loads(lines[-1])['step'] if lines else 0


ITEMS = ('params', 'opt_state', 'counters', 'sums')  # of a checkpoint


def checkpoint(workdir, step: int, items=ITEMS) -> dict[str, np.ndarray]:
  """The arrays of a checkpoint by name, read without knowledge of its contents."""
  folder = pathlib.Path(workdir) / 'checkpoints' / str(step)
  arrays = {}
  with warnings.catch_warnings(), ocp.PyTreeCheckpointer() as reader:
    warnings.simplefilter('ignore')  # Orbax asks for shardings
    for item in items:
      # As NumPy arrays, whatever devices they were on.
      kinds = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        reader.metadata(folder / item).item_metadata.tree,
      )
      for name, value in ocp.tree.to_flat_dict(
        reader.restore(folder / item, restore_args=kinds), sep='/'
      ).items():
        arrays[f'{item}/{name}'] = np.asarray(value)
  return arrays


def checkpoint_steps(workdir) -> list[int]:
  """Steps of the complete checkpoints."""
  return sorted(
    int(path.name)
    for path in (pathlib.Path(workdir) / 'checkpoints').iterdir()
    if path.name.isdigit()
  )


def figures(workdir) -> list[dict]:
  """The lines of metrics.jsonl without the metrics that depend on the clock."""
  lines = [
    json.loads(line)
    for line in (pathlib.Path(workdir) / 'metrics.jsonl').read_text('utf-8').splitlines()
  ]
  return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def differing(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[str]:
  """Names of arrays that are not bitwise equal."""
  return [
    name
    for name in sorted(a.keys() | b.keys())
    if name not in a
    or name not in b
    or a[name].dtype != b[name].dtype
    or a[name].tobytes() != b[name].tobytes()
  ]

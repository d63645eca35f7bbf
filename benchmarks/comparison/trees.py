"""The two trees under comparison, and the subprocesses that record what they lower and compute."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from comparison import samples
from comparison.matrix import HEADS, Cell, Fields

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORDER = pathlib.Path(__file__).with_name('recorder.py')
POLL = 0.2  # seconds

CONFIG = """\
import functools

from {module} import default_config


def get_config():
  c = default_config()
  for field, value in ({older} | {fields}).items():
    *groups, name = field.split('.')
    functools.reduce(lambda group, name: group[name], groups, c)[name] = value
  return c
"""


# In a config: the fields of newer versions to which a run of version 0.1.0 gives another value than
# their default, with that value.
OLDER = """\
from electra_jax.config import {kind}, flat, from_plain

OLDER = {{k: v for k, v in flat(from_plain({{}}, {kind})).items() if v != flat({kind}())[k]}}

"""


@dataclasses.dataclass(frozen=True)
class Tree:
  """A checkout of the project, and the folder for everything that its runs write.

  Attributes:
    name: 'base' or 'head'.
    path: root of the checkout.
    work: folder of its runs, records and prepared corpora.
    older: whether fields that are newer than version 0.1.0 have the values of its runs.
  """

  name: str
  path: pathlib.Path
  work: pathlib.Path
  older: bool = False

  def record(self, mode: str, cell: Cell) -> pathlib.Path:
    """The folder of a cell's record."""
    return self.work / mode / 'records' / cell.name

  def run(self, mode: str, cell: Cell) -> pathlib.Path:
    """The workdir of a cell's command."""
    return self.work / mode / 'runs' / cell.name


@contextlib.contextmanager
def checkout(base: str, folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """The root of BASE: a folder with a tree, or a commit that is checked out in a git worktree.

  Raises:
    ValueError: BASE is neither.
  """
  if (pathlib.Path(base) / 'electra_jax').is_dir():
    yield pathlib.Path(base).resolve()
    return
  git = ['git', '-C', str(ROOT)]
  command = [*git, 'worktree', 'add', '--detach', '--quiet', str(folder), base]
  made = subprocess.run(command, capture_output=True, text=True)
  if made.returncode:
    raise ValueError(f'BASE is {base!r}; expected a commit or a tree. {made.stderr.strip()}')
  try:
    yield folder
  finally:
    subprocess.run([*git, 'worktree', 'remove', '--force', str(folder)], check=True)


# How a process compiles: 'quick', to slower programs in a third of the time, with the same
# optimizations of HLO; 'unfused', as quick with each operation computed by itself, so that the same
# arithmetic gives the same bits whatever was fused; 'full', with the default flags of XLA.
COMPILATIONS = ('quick', 'unfused', 'full')


def compilation_flags(compilation: str) -> str:
  """XLA flags of one of COMPILATIONS."""
  if compilation == 'full':
    return ''
  flags = '--xla_backend_optimization_level=0'
  if compilation == 'unfused':
    flags += ' --xla_disable_hlo_passes=fusion,multi-output-fusion'
  # A flag that XLA does not know ends the process.
  if importlib.metadata.version('jaxlib').startswith('0.10.'):
    flags += ' --xla_cpu_use_fusion_emitters=false'
  return flags


def environment(tree: Tree, devices: int = 1, compilation: str = 'full') -> dict[str, str]:
  """The environment of a process that runs a tree.

  Args:
    tree: the tree.
    devices: number of CPU devices.
    compilation: of COMPILATIONS.
  """
  env = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('JAX_', 'XLA_', 'TPU_', 'PYTHON'))
  }
  count = f'--xla_force_host_platform_device_count={devices}'
  return env | {
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': str(tree.path),
    'XLA_FLAGS': f'{count} {compilation_flags(compilation)}',
  }


def write_samples(folder: pathlib.Path) -> None:
  """Writes the corpus and the labeled data of all tasks, which both trees read."""
  samples.corpus(folder / 'corpus.txt')
  for task in HEADS:
    samples.labeled(folder / 'data' / task, task)


def config_file(module: str, cell: Cell, fields: Fields, older: bool) -> str:
  """The text of a cell's config file.

  Args:
    module: of the package, with the default config.
    cell: the cell.
    fields: the values that the file sets.
    older: as in `Tree`.
  """
  text = CONFIG.format(module=module, fields=repr(fields), older='OLDER' if older else '{}')
  kind = 'FinetuningConfig' if cell.finetune else 'PretrainingConfig'
  return OLDER.format(kind=kind) + text if older else text


def arguments(tree: Tree, mode: str, cell: Cell, inputs: pathlib.Path) -> list[str]:
  """Writes a cell's config file, and returns the arguments of its command.

  Args:
    tree: the tree that runs it.
    mode: 'lower' or 'steps'.
    cell: the cell.
    inputs: the folder of write_samples.
  """
  folders = {'runs': str(tree.work / 'steps' / 'runs'), 'data': str(inputs / 'data')}
  fields = {
    field: value.format(**folders) if isinstance(value, str) else value
    for field, value in cell.fields.items()
  }
  if not cell.finetune:
    fields |= {
      'data.source': str(inputs / 'corpus.txt'),
      'data.cache': str(tree.work / 'cache'),
    }
  module = 'electra_jax.finetune.config' if cell.finetune else 'electra_jax.config'
  path = tree.work / mode / 'configs' / f'{cell.name}.py'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(config_file(module, cell, fields, tree.older))
  return [
    *(['--mode=finetune'] if cell.finetune else []),
    f'--config={path}',
    f'--workdir={tree.run(mode, cell)}',
  ]


def request(tree: Tree, mode: str, cells: Sequence[Cell], inputs: pathlib.Path) -> dict:
  """What the recorder is asked for."""
  return {
    'tree': str(tree.path),
    'mode': mode,
    'cells': [
      {
        'name': cell.name,
        'argv': arguments(tree, mode, cell, inputs),
        'workdir': str(tree.run(mode, cell)),
        'output': str(tree.record(mode, cell)),
        'programs': cell.programs,
      }
      for cell in cells
    ],
  }


class Recorder:
  """The process that records cells of a tree; another takes its place if it crashes."""

  def __init__(
    self, tree: Tree, mode: str, cells: Sequence[Cell], inputs: pathlib.Path, compilation: str
  ) -> None:
    """Starts nothing; the arguments are those of `record`."""
    self._tree, self._mode, self._inputs = tree, mode, inputs
    self._compilation = compilation
    self._cells = list(cells)
    self._process: subprocess.Popen | None = None
    self._errors = tempfile.TemporaryFile('w+')

  def poll(self) -> bool:
    """Starts what is to be started. Returns whether all cells are recorded."""
    if self._process is not None and self._process.poll() is None:
      return False
    missing = [c for c in self._cells if not (self._record(c) / 'record.json').exists()]
    if self._process is not None and missing:
      self._errors.seek(0)
      last = ([line.strip() for line in self._errors if line.strip()] or ['no message'])[-1]
      error = f'the process ended with status {self._process.returncode}: {last[:200]}'
      self._record(missing[0]).mkdir(parents=True, exist_ok=True)
      (self._record(missing[0]) / 'record.json').write_text(json.dumps({'error': error}))
      missing = missing[1:]
    if missing:
      self._start(missing)
    return not missing

  def stop(self) -> None:
    """Ends the process."""
    if self._process is not None and self._process.poll() is None:
      self._process.kill()
      self._process.wait()
    self._errors.close()

  def _record(self, cell: Cell) -> pathlib.Path:
    return self._tree.record(self._mode, cell)

  def _start(self, cells: list[Cell]) -> None:
    path = self._tree.work / f'request-{self._mode}.json'
    path.write_text(json.dumps(request(self._tree, self._mode, cells, self._inputs)))
    self._errors.seek(0)
    self._errors.truncate()
    self._process = subprocess.Popen(
      [sys.executable, '-P', str(RECORDER), str(path)],
      cwd=self._tree.path,
      env=environment(self._tree, cells[0].devices, self._compilation),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=self._errors,
    )


def record(
  trees: Sequence[Tree],
  mode: str,
  cells: Sequence[Cell],
  inputs: pathlib.Path,
  report: Callable[[str], None],
  compilation: str = 'quick',
) -> None:
  """Records cells in all trees, side by side.

  Args:
    trees: the trees.
    mode: 'lower' for their programs, 'steps' for metrics and checkpoints.
    cells: the cells; those that are recorded already are left out.
    inputs: the folder of write_samples.
    report: called with a sentence after each group of cells.
    compilation: of COMPILATIONS.
  """
  for devices in sorted({cell.devices for cell in cells}):
    group, start = [cell for cell in cells if cell.devices == devices], time.monotonic()
    recorders = [Recorder(tree, mode, group, inputs, compilation) for tree in trees]
    try:
      waiting = recorders
      while waiting := [recorder for recorder in waiting if not recorder.poll()]:
        time.sleep(POLL)
    finally:
      for recorder in recorders:
        recorder.stop()
    report(
      f'{mode}: {len(group)} cells on {devices} device{"s" * (devices > 1)} in '
      f'{time.monotonic() - start:.0f} s'
    )

"""Records what one tree of the project lowers or computes for a list of cells.

  python -P recorder.py REQUEST.json

benchmarks/compare.py starts it in a subprocess whose current folder and PYTHONPATH are the tree
under test. It relies only on `electra_jax.main.main(argv)`, on the files in a run's folder, and on
JAX. REQUEST.json holds `tree` (a folder), `mode` and `cells`: a list of `name`, `argv`, `workdir`,
`output` (a folder for the record) and `programs` (numbers of training and evaluation programs).

Mode `lower` replaces `jax.jit` for callers in `electra_jax`: programs are lowered and written down,
and neither compiled nor executed. Mode `steps` runs each command to its end and collects its
metrics and the arrays of its last checkpoint.
"""

import contextlib
import gc
import json
import os
import pathlib
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

PACKAGE = 'electra_jax'
REAL_JIT = jax.jit
Main = Callable[[list[str]], int]
PyTree = Any  # arguments and results of jitted functions


class Recorded(BaseException):
  """Ends a command whose programs are all recorded.

  It is not an Exception, so that the command does not handle it.
  """


class Recording:
  """The programs that one command has lowered.

  Attributes:
    programs: role -> distinct StableHLO texts, in the order in which they were lowered.
    needed: role -> number of programs after which the command is ended.
  """

  def __init__(self, needed: dict[str, int]) -> None:
    """Starts without programs."""
    self.programs: dict[str, list[str]] = {}
    self.needed = needed

  def add(self, text: str) -> None:
    """Records a lowered program under its role.

    Raises:
      Recorded: nothing is missing.
    """
    texts = self.programs.setdefault(role_of(text), [])
    if text not in texts:
      texts.append(text)
    if all(len(self.programs.get(role, ())) >= count for role, count in self.needed.items()):
      raise Recorded


CURRENT = Recording({'train': 1})


def role_of(text: str) -> str:
  """The role of a lowered program by its structure, as names may change.

  Returns:
    'train': computes matrix products and donates its state; 'eval': computes matrix products of two
    or more arguments; 'init': draws random numbers from at most one argument; 'helper': other.
  """
  main = text[text.index('@main(') :]
  signature = main[: main.index('\n')]
  arguments = len(re.findall(r'%arg\d+:', signature))
  if arguments >= 2 and 'stablehlo.dot_general' in text:
    donated = 'tf.aliasing_output' in signature or 'jax.buffer_donor' in signature
    return 'train' if donated else 'eval'
  return 'init' if arguments <= 1 and 'stablehlo.xor' in text else 'helper'


def stand_in(shape: jax.ShapeDtypeStruct) -> jax.Array:
  """An array in place of a result: zeros, or -1 for integer scalars.

  The step of a failure is -1 while there is none, and means can be divided by a count of -1.
  """
  value = np.zeros(shape.shape, shape.dtype)
  if not shape.shape and np.issubdtype(value.dtype, np.integer):
    value = value - np.ones((), value.dtype)
  return jax.device_put(value)


def signature_of(tree: PyTree) -> tuple:
  """The structure of a tree, with shapes and types of its arrays."""
  leaves, structure = jax.tree.flatten(tree)
  return structure, [(x.shape, x.dtype) for x in leaves if hasattr(x, 'dtype')]


def results(out_info: PyTree, arguments: Sequence[PyTree]) -> PyTree:
  """What a program that is not executed returns.

  Args:
    out_info: shapes of the result.
    arguments: of the call.

  Returns:
    For each part of the result an argument of the same signature, or stand-ins.
  """
  parts = out_info if type(out_info) is tuple else (out_info,)
  made = []
  for part in parts:
    wanted = signature_of(part)
    same = [a for a in arguments if jax.tree.leaves(a) and signature_of(a) == wanted]
    made.append(same[0] if same else jax.tree.map(stand_in, part))
  return tuple(made) if type(out_info) is tuple else made[0]


class Proxy:
  """Has the attributes of another object, and its own."""

  def __init__(self, real: object) -> None:
    """Stands for `real`."""
    self._real: Any = real

  def __getattr__(self, name: str) -> object:
    """Attributes that the subclass does not have."""
    return getattr(self._real, name)


class NoMemory:
  """The memory analysis of a program that was not compiled: every field is 0."""

  def __getattr__(self, name: str) -> int:
    """PyTree field."""
    if name.startswith('__'):
      raise AttributeError(name)
    return 0


class NotCompiled(Proxy):
  """Stands for jax.stages.Compiled; its attributes are those of the lowered program."""

  input_shardings = ((), {})
  output_shardings = ()

  def __call__(self, *arguments: PyTree) -> PyTree:
    """Returns stand-ins."""
    return results(self._real.out_info, arguments)

  def memory_analysis(self) -> NoMemory:
    """Zeros."""
    return NoMemory()


class Lowered(Proxy):
  """Stands for jax.stages.Lowered."""

  def compile(self, *args: PyTree, **kwargs: PyTree) -> NotCompiled:
    """Does not compile."""
    del args, kwargs
    return NotCompiled(self._real)


class Traced(Proxy):
  """Stands for jax.stages.Traced."""

  def __init__(self, real: object, record: Callable[[jax.stages.Lowered], Lowered]) -> None:
    """Stands for `real`; what it lowers to goes to `record`."""
    super().__init__(real)
    self._record = record

  def lower(self, *args: PyTree, **kwargs: PyTree) -> Lowered:
    """Lowers and records."""
    return self._record(self._real.lower(*args, **kwargs))


class Jitted(Proxy):
  """Stands for a jitted function: lowers it and records the program, and does not execute it."""

  def __init__(self, function: Callable, options: dict[str, object]) -> None:
    """Stands for `jax.jit(function, **options)`."""
    super().__init__(REAL_JIT(function, **options))
    self._options = options
    self._known: dict = {}
    self.__wrapped__ = function
    self.__name__ = getattr(function, '__name__', 'function')

  def record(self, lowered: jax.stages.Lowered) -> Lowered:
    """Records a lowered program, with the compiler's options where there are any."""
    text = lowered.as_text()
    if options := self._options.get('compiler_options'):
      text = f'// compiler options {sorted(options.items())}\n{text}'
    CURRENT.add(text)
    return Lowered(lowered)

  def lower(self, *args: PyTree, **kwargs: PyTree) -> Lowered:
    """Lowers and records."""
    return self.record(self._real.lower(*args, **kwargs))

  def trace(self, *args: PyTree, **kwargs: PyTree) -> Traced:
    """Traces; lowering is recorded."""
    return Traced(self._real.trace(*args, **kwargs), self.record)

  def __call__(self, *args: PyTree, **kwargs: PyTree) -> PyTree:
    """Records on the first call with arguments of a signature, and returns stand-ins.

    While another function is traced, the real function is traced as part of it.
    """
    leaves, structure = jax.tree.flatten((args, kwargs))
    if is_tracing(leaves):
      return self._real(*args, **kwargs)
    shapes = [(x.shape, str(x.dtype)) if hasattr(x, 'dtype') else repr(x) for x in leaves]
    key = structure, str(shapes)
    if key not in self._known:
      self._known[key] = self.lower(*args, **kwargs).out_info
    return results(self._known[key], args)


def is_tracing(leaves: Sequence[PyTree]) -> bool:
  """Whether a function is called while another is traced."""
  if any(isinstance(x, jax.core.Tracer) for x in leaves):
    return True
  return isinstance(jax.numpy.zeros(()), jax.core.Tracer)


def recording_jit(function: Callable | None = None, **options: object) -> Callable:
  """jax.jit for callers in the package; for all others the real one."""
  module = sys._getframe(1).f_globals.get('__name__') or ''
  if module != PACKAGE and not module.startswith(PACKAGE + '.'):
    return REAL_JIT(**options) if function is None else REAL_JIT(function, **options)
  if function is None:
    return lambda decorated: Jitted(decorated, options)
  return Jitted(function, options)


def lower(main: Main, cell: dict) -> dict:
  """Runs a command until its programs are recorded. Returns the numbers of programs by role."""
  global CURRENT
  train, evaluation = cell['programs']
  CURRENT = Recording({'train': train, 'eval': evaluation})
  ended = 'all programs recorded'
  try:
    ended = f'exit status {main([PACKAGE, *cell["argv"]])}'
  except Recorded:
    pass
  folder = pathlib.Path(cell['output'])
  for role, texts in CURRENT.programs.items():
    for number, text in enumerate(texts):
      if role != 'helper':
        (folder / f'{role}-{number}.mlir').write_text(text)
  counts = {role: len(texts) for role, texts in CURRENT.programs.items()}
  if missing := [role for role, count in CURRENT.needed.items() if counts.get(role, 0) < count]:
    return {'error': f'ended with {ended} and without the programs of: {", ".join(missing)}'}
  return {'programs': counts}


def take_steps(main: Main, cell: dict) -> dict:
  """Runs a command to its end, and collects metrics and the arrays of its last checkpoint."""
  status = main([PACKAGE, *cell['argv']])
  if status:
    return {'error': f'ended with exit status {status}'}
  workdir, arrays, metrics = pathlib.Path(cell['workdir']), {}, []
  for path in sorted(workdir.rglob('metrics.jsonl')):
    metrics += [json.loads(line) for line in path.read_text('utf-8').splitlines()]
  for folder in sorted(workdir.rglob('checkpoints')):
    last = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    run = folder.parent.relative_to(workdir)
    arrays |= {str(run / name): value for name, value in checkpoint(folder / str(last)).items()}
  output = pathlib.Path(cell['output'])
  np.savez(output / 'arrays.npz', **arrays)
  (output / 'metrics.json').write_text(json.dumps(metrics))
  return {'lines': len(metrics), 'arrays': len(arrays)}


def checkpoint(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All arrays of an Orbax checkpoint by name, read without knowledge of its contents."""
  import orbax.checkpoint as ocp

  arrays = {}
  with warnings.catch_warnings(), ocp.PyTreeCheckpointer() as reader:
    warnings.simplefilter('ignore')  # Orbax asks for shardings
    for item in sorted(path.parent for path in folder.glob('*/_METADATA')):
      tree = reader.metadata(item).item_metadata.tree
      kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
      restored = ocp.tree.to_flat_dict(reader.restore(item, restore_args=kinds), sep='/')
      for name, value in restored.items():
        value = np.asarray(value)
        # npz has no bfloat16.
        arrays[f'{item.name}/{name}'] = value if value.dtype.kind in 'iufb' else value.view('u2')
  return arrays


def run_cells(request: dict, main: Main) -> None:
  """Records all cells; each leaves record.json in its output folder."""
  record = {'lower': lower, 'steps': take_steps}[request['mode']]
  gc.disable()  # tracing makes many objects, and takes an eighth longer with it
  for cell in request['cells']:
    output, start = pathlib.Path(cell['output']), (time.monotonic(), time.process_time())
    output.mkdir(parents=True, exist_ok=True)
    with open(output / 'output.txt', 'w') as out:
      with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
          found = record(main, cell)
        except Exception as error:
          traceback.print_exc()
          found = {'error': f'{type(error).__name__}: {error}'[:300]}
    found['seconds'] = time.monotonic() - start[0]
    found['processor_seconds'] = time.process_time() - start[1]
    temporary = output / 'record.tmp'
    temporary.write_text(json.dumps(found))
    temporary.rename(output / 'record.json')
    gc.collect()


def start(request: dict) -> Main:
  """Imports the tree's command line, with jax.jit replaced where programs are to be recorded.

  Raises:
    ImportError: the package of another tree was imported.
  """
  if request['mode'] == 'lower':
    jax.jit = recording_jit
    # Locations are not compared, and take a sixth of the time.
    jax.config.update('jax_traceback_in_locations_limit', 0)
  from electra_jax import main as module

  found, expected = pathlib.Path(module.__file__).resolve(), pathlib.Path(request['tree']).resolve()
  if not found.is_relative_to(expected):
    raise ImportError(f'{found} was imported; expected the package in {expected}.')
  return module.main


if __name__ == '__main__':
  asked = json.loads(pathlib.Path(sys.argv[1]).read_text())
  run_cells(asked, start(asked))
  sys.stdout.flush()
  os._exit(0)  # commands that were ended in the middle leave threads behind

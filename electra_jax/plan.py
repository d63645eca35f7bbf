"""--mode=plan: what a config would need on TPU slices, without having them.

The training step is compiled ahead of time for the slice by libtpu, on this machine's CPU. libtpu
may crash, so this happens in a child process: `python -m electra_jax.plan REQUEST RESULT`.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from electra_jax import console, file_access, json_reader, plan_choices, registry
from electra_jax.config import (
  Phase,
  PretrainingConfig,
  checked_pretraining,
  from_plain,
  phases_of,
  to_plain,
)
from electra_jax.console import say
from electra_jax.errors import UserError, missing_package
from electra_jax.model.config import EncoderConfig
from electra_jax.model.sharing.scheme import SharingScheme
from electra_jax.plan_report import costs, print_plan
from electra_jax.pretrain import budgets, build, pretrain_step
from electra_jax.pretrain.resolve import ResolvedRun, resolve_run
from electra_jax.training import hlo, memory, partitioning, run_folder, slices
from electra_jax.training.encoders import attention_kernel
from electra_jax.training.slices import Slice
from electra_jax.training.update_step import UpdateOptions

SEARCH_COMPILES = 3  # programs per phase that the search for the largest batch compiles at most
SEARCH_SECONDS = 300  # after which the search compiles no further program
LARGEST_TRAFFIC = 40  # instructions that move most, in the JSON of a plan
# Without these, libtpu asks the machine that it believes to be on.
CHILD = {
  'JAX_PLATFORMS': 'cpu',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TF_CPP_MIN_LOG_LEVEL': '3',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TPU_MIN_LOG_LEVEL': '3',
}

Json = dict[str, Any]
Report = Callable[[str], None]  # called with what begins


def _ignore(text: str) -> None:
  del text


class DeviceOptions(TypedDict, total=False):
  """The devices of a plan that is not for a TPU slice; see `plan_choices.device_of`.

  Attributes:
    name: kind of the device; None for the local one.
    count: number of devices; None for all local ones, or one.
    utilization: share of the peak; None for the usual one.
    hours: time that a run may take; None for the default.
  """

  name: str | None
  count: int | None
  utilization: float | None
  hours: float | None


def plan_mode(
  config: ConfigDict | PretrainingConfig,
  topology: str | None = None,
  output: str | None = None,
  price: float | None = None,
  search: bool = True,
  **device: Unpack[DeviceOptions],
) -> Json:
  """Plans a config on a slice, or without a topology compares the shipped configs on a device.

  Args:
    config: as for training.
    topology: name of a slice; None for the table of configs.
    output: a folder; None for runs/CONFIG_NAME.
    price: dollars per chip-hour or device-hour, if known.
    search: whether to search for the largest batch on the slice.
    **device: for the table, see `DeviceOptions`.

  Raises:
    UserError: see `plan` and `plan_choices.choices`.
  """
  if price is not None and price < 0:
    raise UserError(f'--price is {price:g}; expected the dollars of a device-hour, at least 0.')
  if topology:
    return plan(config, topology, output, price, search)
  hours = device.get('hours')
  if hours is not None and not hours > 0:
    raise UserError(f'--hours is {hours:g}; expected a time above 0.')
  devices = plan_choices.device_of(
    device.get('name') or plan_choices.LOCAL, device.get('count'), device.get('utilization')
  )
  return plan_choices.choices(checked_pretraining(config), devices, hours, price, output)


def plan(
  config: ConfigDict | PretrainingConfig,
  topology: str,
  output: str | None = None,
  price: float | None = None,
  search: bool = True,
) -> Json:
  """Plans a run on a slice, prints the plan and writes it to OUTPUT/plan-SLICE.json.

  Args:
    config: as for training.
    topology: name of a slice; see training/slices.py.
    output: a folder; None for runs/CONFIG_NAME.
    price: dollars per chip-hour, if known.
    search: whether to search for the largest batch, which compiles a few more programs.

  Returns:
    What was written; see `compile_plan` and `costs` for its fields.

  Raises:
    UserError: the config or the slice is not valid, or libtpu is missing or crashes.
  """
  config = resolve_run(config, platform='tpu').config
  of = slices.parse_slice(topology)
  for name, reason in (('minutes', 'devices to measure time'), ('epochs', 'prepared corpus')):
    if budget := getattr(config, f'budget_{name}'):
      raise UserError(
        f'config.budget_{name} is {budget:g}, which requires the {reason}; plan with config.steps, '
        'budget_tokens or budget_flops.'
      )
  if importlib.util.find_spec('libtpu') is None:
    raise missing_package('--topology', 'libtpu, the compiler for TPU', 'tpu')
  folder = run_folder.folder(output or os.path.join('runs', config.name))
  console.heading(f'{config.name} on {of.name}')
  request = {'config': to_plain(config), 'topology': topology, 'search': search}
  result = _run_child(request)
  result |= costs(result, of, price)
  with console.results():
    print_plan(result, of)
  path = folder / f'plan-{of.name}.json'
  with file_access.reaching(path, 'written'):
    path.parent.mkdir(parents=True, exist_ok=True)
  run_folder.write_json(path, result)
  say('written', str(path), always=True)
  return result


#### In the child process: compilation ####


def compile_plan(run: ResolvedRun, of: Slice, search: bool, report: Report = _ignore) -> Json:
  """Compiles every phase of a run for a slice.

  Args:
    run: resolved for TPU.
    of: the slice.
    search: whether to search for the largest batch.
    report: called with what begins.

  Returns:
    The slice, the mesh, versions and for each phase the numbers of its compiled step.

  Raises:
    UserError: the config does not fit the slice's mesh.
  """
  layout = partitioning.make_layout(run.config, slices.topology_devices(of))
  run = budgets.resolve_budget(run, build.any_tokenizer(run.config.data.vocab_size), layout, {})
  config = run.config
  return {
    'config': config.name,
    'slice': of.name,
    'chips': of.chips,
    'hosts': of.hosts,
    'mesh': dict(layout.mesh.shape),
    'vocab_size': config.data.vocab_size,
    'jax': jax.__version__,
    'libtpu': importlib.metadata.version('libtpu'),
    'phases': [_plan_phase(run, phase, of, layout, search, report) for phase in run.phases],
  }


def _plan_phase(
  run: ResolvedRun,
  phase: Phase,
  of: Slice,
  layout: partitioning.Layout,
  search: bool,
  report: Report,
) -> Json:
  """Returns the plan of one phase: its steps, memory, FLOPs, collectives and largest batch."""
  c = phase.config
  p = build.program(run.config, phase, build.any_tokenizer(c.data.vocab_size), layout)
  budget = int(memory.SHARE * of.chip.hbm)
  rows = build.check_batch(c, layout.mesh)
  kernel, reason = attention_kernel(c.model, c.sequence_length, c.dtype, 'tpu')
  name = f'steps of {c.batch_size:,} x {c.sequence_length}'
  report(f'counting the products of {name}')
  found: Json = {
    'steps': c.steps,
    'batch': c.batch_size,
    'length': c.sequence_length,
    'rows_per_chip': rows,
    'attention': kernel,
    'why': reason,
    'remat': p.model.discriminator_config.remat,
    'memory': {
      'parameters': _parameter_bytes(p),
      'moments': _moment_bytes(p),
      'available': of.chip.hbm,
      'budget': budget,
    },
    'flops': _count_flops(p),
  }
  start = time.monotonic()
  step = _compile_step(p, budget, rows, lambda text: report(f'{text}, {name}'))
  found |= {
    'micro_batches': step.micro_batches,
    'fits': step.compiled is not None and (step.bytes or 0) <= budget,
    'compile_seconds': round(time.monotonic() - start, 1),
  }
  if step.complaint:
    found['complaint'] = step.complaint
  found['memory']['peak'] = step.bytes
  if step.compiled is not None:
    text = step.compiled.as_text() or ''
    traffic = hlo.memory_traffic(text)
    found |= {
      'collectives': [
        x._asdict() | {'sent': x.sent, 'shape': x.shape[:200]}
        for x in hlo.collectives(text, of.slices)
      ],
      'hbm_traffic': sum(x.per_step for x in traffic),
      'hbm_largest': [x._asdict() | {'shape': x.shape[:200]} for x in traffic[:LARGEST_TRAFFIC]],
      'kernels': [call._asdict() for call in hlo.kernel_calls(text)],
      'largest_array': hlo.largest_array(text),
    }
  if search:
    micro_batches, needed = step.micro_batches, step.bytes
    del step  # its program takes memory
    found['largest'] = _find_largest(p, budget, micro_batches, needed, start, report)
  return found


@dataclasses.dataclass(frozen=True)
class _CompiledStep:
  """The step of a phase.

  Attributes:
    micro_batches: of the step.
    compiled: None if it does not fit.
    bytes: per chip; None if unknown.
    complaint: why it cannot fit, or ''.
  """

  micro_batches: int
  compiled: jax.stages.Compiled | None
  bytes: int | None
  complaint: str = ''


def _compile_step(p: build.Program, budget: int, rows: int, report: Report) -> _CompiledStep:
  """Compiles the step as the trainer would."""
  micro_batches = p.config.micro_batches
  try:
    fitting = build.compile_to_fit(p, budget, micro_batches, lambda _, text: report(text))
    return _CompiledStep(*fitting)
  except UserError as error:  # not even one row at a time fits
    return _CompiledStep(rows, None, None, str(error))
  except jax.errors.JaxRuntimeError as error:  # the micro-batches of the config do not fit
    return _CompiledStep(micro_batches, None, _refused_bytes(error))


def _parameter_bytes(p: build.Program) -> int:
  """Returns the bytes of the parameters on each chip."""
  return partitioning.bytes_per_device(p.shapes.params, p.shardings.params)


def _moment_bytes(p: build.Program) -> int:
  """Returns the bytes of the optimizer's state on each chip."""
  return partitioning.bytes_per_device(p.shapes.opt_state, p.shardings.opt_state)


def _refused_bytes(error: Exception) -> int | None:
  """Returns the bytes of a program that the compiler refused for its size, if it reports them."""
  if 'RESOURCE_EXHAUSTED' not in str(error):
    raise error
  used = re.search(r'Used ([\d.]+)([KMG]) of|\(([\d.]+)([KMG])\) exceeds', str(error))
  if not used:
    return None
  number = float(used[1] or used[3])
  return int(number * 1024 ** ('KMG'.index(used[2] or used[4]) + 1))


def _has_one_encoder(p: build.Program) -> bool:
  scheme: SharingScheme = registry.SHARING_SCHEMES.get(p.model.sharing)
  return scheme.one_encoder


def _count_flops(p: build.Program) -> Json:
  """Counts the FLOPs of a step on all chips.

  The compiler's count of a loop is that of one iteration. So the step is lowered without loops for
  one and two layers per tower, and the count for all layers follows from the line through these.

  Returns:
    'model', our count; 'compiler', the count of the compiler; 'products', that of its matrix
    products.
  """
  generator_layers = p.model.generator_config.num_layers
  layers = p.model.discriminator_config.num_layers
  shallow = _lowered_flops(p, 1, 1)
  deeper = [(_lowered_flops(p, 1, 2), layers - 1)]
  if not _has_one_encoder(p):
    deeper.append((_lowered_flops(p, 2, 1), generator_layers - 1))
  whole, products = (
    first + sum(more * (counts[i] - first) for counts, more in deeper)
    for i, first in enumerate(shallow)
  )
  return {'model': p.step_flops(), 'compiler': whole, 'products': products}


def _lowered_flops(p: build.Program, generator_layers: int, layers: int) -> tuple[float, float]:
  """Returns the compiler's FLOPs of a step with other numbers of layers, and of its products."""
  g, d = (
    dataclasses.replace(
      config, num_layers=n, scan_unroll=n, attention='xla', remat=_recomputed_products(config)
    )
    for config, n in (
      (p.model.generator_config, generator_layers),
      (p.model.discriminator_config, layers),
    )
  )
  model = p.model.clone(generator_config=d if _has_one_encoder(p) else g, discriminator_config=d)
  length = p.config.sequence_length
  shapes, _ = pretrain_step.state_shardings(model, p.optimizer, length, p.layout)
  step = pretrain_step.make_train_step(
    dataclasses.replace(p.computation, model=model, seed=0, schedules={}),
    p.optimizer,
    UpdateOptions(trained=p.trained),
  )
  batch = {'token_ids': jax.ShapeDtypeStruct((p.config.batch_size, length), jnp.int32)}
  lowered = jax.jit(step).lower(shapes, batch)
  analysis: Any = lowered.cost_analysis()
  program: Any = lowered.compiler_ir('hlo')
  return analysis['flops'], hlo.product_flops(program.as_hlo_text())


def _recomputed_products(config: EncoderConfig) -> str:
  """The `remat` of an encoder with XLA's attention that computes as many products.

  Kernels name what they keep, so that `dots` computes no product again. XLA's scores have no name.
  """
  names_all = config.remat == 'dots' and config.attention != 'xla'
  return 'none' if names_all else config.remat


class _RowSearch:
  """Searches the most rows per chip that fit at once.

  Bytes are nearly linear in rows: each guess is on the line through the two largest known programs.

  Attributes:
    fit: the most rows that fit so far.
    unfit: the fewest rows that do not; None if none are known.
  """

  def __init__(self, budget: int, fixed: int, rows: int, needed: int | None) -> None:
    """Starts with one program.

    Args:
      budget: bytes per chip.
      fixed: bytes that do not depend on the rows.
      rows: of the first program.
      needed: its bytes; None if they are unknown and too many.
    """
    fits = needed is not None and needed <= budget
    self.fit = rows if fits else 0
    self.unfit = None if fits else rows
    self._budget = budget
    self._bytes = {0: fixed}
    self._add(rows, needed)

  def _add(self, rows: int, needed: int | None) -> None:
    if needed:
      self._bytes[rows] = needed

  def record(self, rows: int, needed: int | None) -> None:
    """Records the bytes of a program; None if they are unknown and too many."""
    self._add(rows, needed)
    if needed and needed <= self._budget:
      self.fit = rows
    else:
      self.unfit = rows

  def guess(self) -> int:
    """Returns the rows that should just fit."""
    known = self._bytes
    a, b = sorted(known)[-2:] if len(known) > 1 else (0, 0)
    # The bytes for 0 rows are computed from shapes, which makes the first line a little low.
    aim = (0.98 if len(known) > 2 else 0.9) * self._budget
    if known[b] > known[a]:
      rows = a + (aim - known[a]) * (b - a) / (known[b] - known[a])
    else:
      rows = (self.fit + (self.unfit or 4 * self.fit)) / 2
    if self.unfit and not self.fit < rows < self.unfit:
      rows = (self.fit + self.unfit) / 2
    # Tiles of a TPU have eight rows.
    return int(rows) // 8 * 8 if rows >= 16 else int(rows)

  def is_worth_compiling(self, guess: int) -> bool:
    """Whether a guess is more than 1/8 above what fits, and the range is wider than that."""
    is_narrow = self.unfit and self.unfit - self.fit <= max(1, self.fit // 8)
    return guess > self.fit + self.fit // 8 and not is_narrow


def _find_largest(
  p: build.Program,
  budget: int,
  micro_batches: int,
  needed: int | None,
  start: float,
  report: Report,
) -> Json:
  """Finds the most rows that a chip can have at once, without micro-batches.

  Args:
    p: the phase.
    budget: bytes per chip.
    micro_batches: of the compiled step.
    needed: bytes of the compiled step; None if unknown.
    start: time.monotonic() when the first compilation began.
    report: called with what begins.

  Returns:
    'rows_per_chip' that fit and the 'batch' that they make; 'too_many', the fewest rows that did
    not fit (None if none were tried); 'estimate' of what fits; number of 'compiles'.
  """
  shards = partitioning.row_shards(p.layout.mesh)
  rows = p.config.batch_size // shards // micro_batches
  # Parameters, their gradients, with micro-batches the sum of these, and moments.
  fixed = _parameter_bytes(p) * (3 if micro_batches > 1 else 2) + _moment_bytes(p)
  search = _RowSearch(budget, fixed, rows, needed)
  compiles = 0
  while True:
    guess = search.guess()
    is_late = compiles == SEARCH_COMPILES or time.monotonic() - start > SEARCH_SECONDS
    if is_late or not search.is_worth_compiling(guess):
      break
    report(f'{guess} rows per chip at once, to find the most that fit')
    compiles += 1
    config = p.config.replace({'batch_size': guess * shards})
    try:
      compiled = build.compile_step(p._replace(config=config), 1)
      search.record(guess, memory.peak_bytes(compiled))
    except jax.errors.JaxRuntimeError as error:
      search.record(guess, _refused_bytes(error))
  return {
    'rows_per_chip': search.fit,
    'batch': search.fit * shards,
    'too_many': search.unfit,
    'estimate': max(search.fit, guess),
    'compiles': compiles,
  }


def _child_main(request: str, result: str) -> int:
  """Reads a request, compiles, and writes the result or the message of a UserError."""
  asked = json_reader.read(request, rules=json_reader.OWN)
  config = from_plain(asked['config'], PretrainingConfig)
  run = ResolvedRun(config, phases_of(config))  # resolved by the parent

  def report(text: str) -> None:
    print(json.dumps({'doing': text}), flush=True)

  try:
    of = slices.parse_slice(asked['topology'])
    found = compile_plan(run, of, asked['search'], report)
  except UserError as error:
    found = {'error': str(error)}
  pathlib.Path(result).write_text(json.dumps(found))
  return 0


#### In the parent process: the child ####


def _run_child(request: Json) -> Json:
  """Returns the result of a request, and shows meanwhile what the child does.

  Raises:
    UserError: the child reports one, or dies.
  """
  with tempfile.TemporaryDirectory() as folder:
    request_file = os.path.join(folder, 'request')
    result_file = os.path.join(folder, 'result')
    pathlib.Path(request_file).write_text(json.dumps(request))
    command = [sys.executable, '-m', 'electra_jax.plan', request_file, result_file]
    with open(os.path.join(folder, 'errors'), 'w+') as errors:
      child = subprocess.Popen(
        command, env=_child_environment(), stdout=subprocess.PIPE, stderr=errors, text=True
      )
      try:
        doing = _follow(child)
        status = child.wait()
      finally:
        child.kill()
        child.wait()
      errors.seek(0)
      lines = [line.strip() for line in errors if line.strip()]
    if status:
      raise UserError(_failure(status, doing, lines[-1] if lines else 'it gave no reason'))
    result: Json = json_reader.read(result_file, rules=json_reader.OWN)
  if 'error' in result:
    raise UserError(result['error'])
  return result


def _child_environment() -> dict[str, str]:
  env = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('TPU_', 'XLA_FLAGS', 'JAX_'))
  }
  package_parent = str(pathlib.Path(__file__).parents[1])
  paths = filter(None, (package_parent, env.get('PYTHONPATH')))
  return env | CHILD | {'PYTHONPATH': os.pathsep.join(paths)}


def _failure(status: int, doing: str, last_line: str) -> str:
  """Returns the message for a child that died."""
  if status > 0:
    reason = last_line[:300].rstrip('.')
    return f'the compiler for TPU failed while {doing}: {reason}; try another version of libtpu.'
  name = signal.Signals(-status).name
  advice = 'try another slice or another version of libtpu'
  if -status == signal.SIGKILL:
    advice = 'free some memory of this machine'
  return f'the compiler for TPU crashed ({name}) while {doing}; {advice}.'


def _follow(child: subprocess.Popen[str]) -> str:
  """Shows what the child reports until it ends; returns the last report."""
  assert child.stdout is not None
  doing = 'starting'
  while True:
    with console.phase('compiling', doing):
      line = child.stdout.readline()
    if not line:
      return doing
    if line.startswith('{"doing"'):
      doing = json_reader.parse(line, 'what the compiler reports')['doing']


if __name__ == '__main__':
  sys.exit(_child_main(*sys.argv[1:]))

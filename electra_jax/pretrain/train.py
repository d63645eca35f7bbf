"""The pretraining program: from a corpus to a pretrained encoder. The loop is in phase_loop.py."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from electra_jax import console
from electra_jax.config import AnyConfig, has_budget, to_plain
from electra_jax.console import quantity, say
from electra_jax.data.prepare import preparation_report
from electra_jax.data.prepare.preparation import Prepared
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import PREEMPTED, UserError
from electra_jax.folder_lock import FolderLock
from electra_jax.pretrain import budgets, build, guidance, run_start
from electra_jax.pretrain.continued.initial_state import InitialState, initial_state, place_initial
from electra_jax.pretrain.continued.source import RESOLVED, weights_digest
from electra_jax.pretrain.phase_loop import PhasePlan, train_phase
from electra_jax.pretrain.resolve import ResolvedRun, resolve_run
from electra_jax.training import (
  checkpoints,
  devices,
  hosts,
  memory,
  partitioning,
  progress,
  run_folder,
)
from electra_jax.training.encoders import attention_kernel
from electra_jax.training.metrics_writer import MetricsWriter, NoWriter
from electra_jax.training.preemption import Notice
from electra_jax.training.product_types import (
  ProductType,
  choose_training_dtype,
  describe_products,
)
from electra_jax.training.progress import PeakFlops
from electra_jax.training.status import Status
from electra_jax.training.step_loop import RunRecorder, StepRunner, SumFunctions
from electra_jax.training.trackers.tracker import check_trackers, tracking_of

DATA_WAIT = 24 * 3600  # seconds that a process waits until the others have their data
LONG_STEP = 60  # seconds of one step, at the peak, from which smaller steps are suggested

Recorded = Mapping[str, Any]  # content of resolved.json


def train(
  config: AnyConfig,
  workdir: str | os.PathLike[str],
  notice: Notice | None = None,
  take_over: bool = False,
) -> int:
  """Pretrains a config in a folder, or resumes what an earlier start of the same command saved.

  Every process of a run calls this. The first one writes what is written once.

  Args:
    config: a ConfigDict, or a typed config.
    workdir: the run's folder.
    notice: true once this process is asked to stop; None for a new one.
    take_over: whether to take the folder from another process that trains in it.

  Returns:
    The exit status: 0 when the run is done, PREEMPTED when it was asked to stop and is saved.

  Raises:
    UserError: a mistake of the user, or a loss or gradient that is not finite.
    Preempted: the process was asked to stop before there was anything to save.
  """
  lock = FolderLock(workdir, take_over=take_over)
  with lock, Status('train', lock=lock) as status:
    notice = Notice() if notice is None else notice
    with contextlib.ExitStack() as stack:
      return status.end(_train(config, workdir, notice, status, stack))


def _train(
  config: AnyConfig,
  workdir: str | os.PathLike[str],
  notice: Notice,
  status: Status,
  stack: contextlib.ExitStack,
) -> int:
  """Does the work of `train`; `status` is the status file, `stack` what an error closes."""
  folder = run_folder.folder(workdir)
  run, recorded = _claim(config, folder, status)
  layout = _make_layout(run)
  products = _choose_products(run, folder, recorded)
  data = _open_data(run, folder, recorded)
  status.check_held(read=True)
  hosts.from_first(lambda: run_start.keep_run_tokenizer(folder, data.tokenizer))
  run = _with_steps(run, folder, data, layout, recorded)
  _check_rows(run, data)
  initial = None
  if run.source is not None:
    with console.phase('reading', run.config.init):
      initial = initial_state(run.config, run.source, data.tokenizer)
  run = dataclasses.replace(run, source=None)  # frees the weights of the source
  run = run.with_dtype(products.dtype)
  setup = _build(run, folder, data, layout, recorded, products)
  best_by = checkpoints.run_criterion(run.config)
  manager = checkpoints.open_manager(folder, keep=run.config.keep, best_by=best_by)
  saved = hosts.from_first(lambda: manager.latest_step() or 0)
  first = saved or (initial.step if initial else 0)
  guidance.print_expectation(_expectation(setup, first), run.config)
  if not saved:
    guidance.warn_of_export(setup.programs[0].model.discriminator_config)
  status.change(step=first, steps=run.phases[-1].last, restored_step=saved)
  evaluate_first = bool(initial) and not saved
  runner = recorder = None
  stopped = False
  init = None
  if first < run.phases[-1].last and not saved:
    init = _compile_initial(setup)
  for number, phase in enumerate(run.phases):
    if first >= phase.last:
      continue
    compiled = _compile_step(setup, number)
    if runner is None or recorder is None:
      functions = SumFunctions(compiled.out_info[1], layout.mesh)
      if init is None:
        runner = _restored(setup, manager, saved, functions)
      else:
        runner = _fresh(setup, init, initial, functions)
      initial = None  # its weights are on the devices now
      status.check_held(read=True)  # compiling may have taken long
      writer = _writer(run, folder, saved, stack)
      recorder = RunRecorder(manager, writer, status, best_by)
    _record(setup)
    plan = _plan_of_phase(setup, number, compiled, evaluate_first)
    status.change(state='running')
    stopped = train_phase(plan, runner, recorder, notice, first, folder)
    if stopped:
      break
    first, evaluate_first = phase.last, False
  if runner is not None and recorder is not None:
    with console.phase('saving', 'the last checkpoint'):
      recorder.finish(int(jax.device_get(runner.state.step)), runner)
  return _finish(setup, manager, recorder, stopped)


#### Resolve, mesh ####


def _claim(config: AnyConfig, workdir: epath.Path, status: Status) -> tuple[ResolvedRun, Recorded]:
  """Resolves the config and takes the folder. Returns what an earlier start recorded, too."""
  with console.phase('resolving', 'the config and its initial weights'):
    run = resolve_run(config, workdir)
  plain = json.dumps(to_plain(run.config), sort_keys=True)
  hosts.same_everywhere('the config', plain)
  with console.phase('hashing', 'the initial weights'):
    digest = str(weights_digest(run.source))
  hosts.same_everywhere('the weights of config.init', digest)
  hosts.from_first(lambda: check_trackers(run.config.trackers))
  hosts.from_first(lambda: run_folder.check_writable(workdir))
  if status.lock is not None:
    hosts.acquire(status.lock)
  recorded = hosts.from_first(lambda: run_start.claim_workdir(workdir, run.config))
  status.claim(workdir, run.phases[-1].last)
  hosts.check_shared(workdir)
  console.heading(f'{run.config.name}  ({workdir})')
  return run, recorded


def _make_layout(run: ResolvedRun) -> partitioning.Layout:
  """The mesh, on which the batches of all phases divide."""
  layout = partitioning.make_layout(run.config)
  for phase in run.phases:
    build.check_batch(phase.config, layout.mesh)
  say('devices', devices.describe_devices(layout.mesh))
  return layout


def _choose_products(run: ResolvedRun, workdir: epath.Path, recorded: Recorded) -> ProductType:
  """The dtype of matrix products, the same in all processes; a saved run keeps its own."""
  platform = jax.devices()[0].platform
  resumed = hosts.from_first(lambda: checkpoints.any_saved(workdir))
  before = recorded.get('dtype') if resumed else None
  chosen = hosts.from_first(lambda: choose_training_dtype(run.config.dtype, platform, before))
  return ProductType(*chosen)


#### Data ####


@dataclasses.dataclass(frozen=True)
class RunData:
  """The data of a run.

  Attributes:
    prepared: rows of each phase.
    tokenizer: tokenizer of all of them.
    identity: identifies the rows, whatever made them.
    unigram_entropy: entropy in nats of the tokens that can be masked.
  """

  prepared: tuple[Prepared, ...]
  tokenizer: Tokenizer
  identity: str
  unigram_entropy: float


def _open_data(run: ResolvedRun, workdir: epath.Path, recorded: Recorded) -> RunData:
  """Prepares or opens the rows of all phases. An earlier start must have had the same rows."""
  prepared = tuple(run_start.prepare_data(phase.config, run.tokenizer) for phase in run.phases)
  with console.phase('waiting', 'for the data of the other processes'):
    hosts.wait_for_all('the data', DATA_WAIT)
  tokenizer = prepared[0].tokenizer
  identity = '+'.join(run_start.data_identity(p) for p in prepared)
  hosts.same_everywhere('the data', identity)
  if any(p.tokenizer.fingerprint != tokenizer.fingerprint for p in prepared):
    raise UserError(
      'the stores of config.phases were made with different tokenizers; expected the tokenizer of '
      'the first phase for all of them.'
    )
  if 'vocab_size' in recorded and hosts.from_first(lambda: checkpoints.any_saved(workdir)):
    run_start.check_vocabulary(workdir, recorded['vocab_size'], tokenizer)
  if recorded and recorded['data'] != identity:
    if hosts.from_first(lambda: checkpoints.any_saved(workdir)):
      raise UserError(
        f'the corpus {run_start.corpus_name(run.config)} is not the one that {workdir} was '
        'started with; restore it, or use another --workdir.'
      )
  never_masked = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
  entropy = prepared[0].train.unigram_entropy(never_masked)
  return RunData(prepared, tokenizer, identity, entropy)


def _with_steps(
  run: ResolvedRun,
  workdir: epath.Path,
  data: RunData,
  layout: partitioning.Layout,
  recorded: Recorded,
) -> ResolvedRun:
  """The run with the number of steps that its budget allows, where it has one."""
  devices.use_compilation_cache(run.config.compilation_cache)
  run = budgets.resolve_budget(
    run, data.tokenizer, layout, dict(recorded), say, data.prepared[0].train.rows
  )
  if has_budget(run.config):
    plain = to_plain(run.config)
    path = workdir / 'config.json'
    hosts.from_first(lambda: run_folder.write_json(path, plain))
  return run


def _check_rows(run: ResolvedRun, data: RunData) -> None:
  """Fetches the rows, checks that they fill a batch, and prints the size of each phase."""
  for phase, rows in zip(run.phases, data.prepared, strict=True):
    for store in (rows.train, rows.heldout):
      if store is not None:
        store.fetch()  # a step must not wait for a remote shard
    if rows.train.rows < phase.config.batch_size:
      raise UserError(
        f'the corpus has {rows.train.rows} rows and config.batch_size is '
        f'{phase.config.batch_size}; '
        f'expected a batch size of at most {rows.train.rows}, or a larger corpus.'
      )
    if rows.heldout is None:
      say('no evaluation', f'{run_start.corpus_name(phase.config)} has no held-out rows')
    label = 'this run' if len(run.phases) == 1 else f'steps {phase.first:,}+'
    say(label, run_start.describe_phase(phase, rows))
  say(
    'baseline',
    f'unigram entropy {data.unigram_entropy:.2f} nats: the loss of a generator without context',
  )


#### Model, objective, optimizer ####


@dataclasses.dataclass(frozen=True)
class RunSetup:
  """What the phases of a run share.

  Attributes:
    run: the resolved run, without initial weights.
    workdir: the run's folder.
    data: rows and tokenizer.
    layout: mesh and layout of the parameters.
    programs: program of each phase.
    parameters: number of parameters of each top-level module.
    flops: FLOPs of a step of each phase.
    peak: peak of all devices.
    micro_batches: micro-batches of each phase, 0 until they are chosen.
  """

  run: ResolvedRun
  workdir: epath.Path
  data: RunData
  layout: partitioning.Layout
  programs: tuple[build.Program, ...]
  parameters: dict[str, int]
  flops: tuple[int, ...]
  peak: PeakFlops
  micro_batches: list[int]

  @property
  def dtype(self) -> str:
    """Type of the products of matrices."""
    return str(self.programs[0].model.discriminator_config.dtype)


def _build(
  run: ResolvedRun,
  workdir: epath.Path,
  data: RunData,
  layout: partitioning.Layout,
  recorded: Recorded,
  products: ProductType,
) -> RunSetup:
  """Builds the programs of all phases and prints what they consist of."""
  config = run.config
  with console.phase('building', 'the model and the optimizer'):
    programs = tuple(build.program(config, phase, data.tokenizer, layout) for phase in run.phases)
  p = programs[0]
  parameters = {
    name: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    for name, tree in p.shapes.params.items()
  }
  parts = ', '.join(f'{n.replace("_", " ")} {quantity(v)}' for n, v in parameters.items())
  say('parameters', f'{quantity(sum(parameters.values()))}: {parts}')
  for text in partitioning.sharding_table(p.shapes.params, p.shardings.params, layout):
    say('', text)
  platform = jax.devices()[0].platform
  kernel, reason = attention_kernel(config.model, config.sequence_length, config.dtype, platform)
  one_sided = p.model.two_tower and kernel != 'xla'
  more = "; xla in the generator's towers, which see one side" if one_sided else ''
  say('attention', f'{kernel} ({reason}){more}')
  say('products', describe_products(products, config.precision, platform))
  # On another mesh the rows of a device may not divide by the recorded numbers.
  micro_batches = [0] * len(programs)
  shape = dict(layout.mesh.shape)
  if recorded.get('mesh', shape) == shape:  # version 0.1.0 recorded one number
    micro_batches = np.atleast_1d(recorded.get('micro_batches', micro_batches)).tolist()
  return RunSetup(
    run=run,
    workdir=workdir,
    data=data,
    layout=layout,
    programs=programs,
    parameters=parameters,
    flops=tuple(program.step_flops() for program in programs),
    peak=progress.peak_flops(config.peak_flops),
    micro_batches=micro_batches,
  )


def _expectation(setup: RunSetup, first: int) -> guidance.Expectation:
  """What the steps after `first` take, and how often the whole run passes over its corpus."""
  flops, passes = 0.0, np.zeros(1)
  for phase, flops_of_step, prepared in zip(
    setup.run.phases, setup.flops, setup.data.prepared, strict=True
  ):
    flops += flops_of_step * max(0, phase.last - max(first, phase.first))
    of_phase = np.asarray(prepared.train.epochs(phase.config.steps * phase.config.batch_size))
    passes = passes + of_phase if passes.shape == of_phase.shape else passes.max() + of_phase
  c, rows = setup.run.config, setup.data.prepared[0].train.rows
  return guidance.Expectation(
    flops=flops,
    peak=setup.peak.flops,
    utilization=guidance.UTILIZATION.get(jax.devices()[0].platform, guidance.UTILIZATION['gpu']),
    passes=float(passes.max()),
    tokens=rows * c.sequence_length,
  )


#### Compile ####


def _compile_step(setup: RunSetup, number: int) -> jax.stages.Compiled:
  """Compiles the step of a phase, in as many micro-batches as the memory requires."""
  phase = setup.run.phases[number]
  peak, flops = setup.peak, setup.flops[number]
  config = phase.config
  if len(setup.run.phases) > 1:
    console.heading(
      f'phase {number + 1} of {len(setup.run.phases)}: {config.steps:,} steps of '
      f'{config.batch_size:,} x {config.sequence_length}'
      + (', only the generator is trained' if phase.generator_only else '')
    )
  at_peak = ''
  if peak.flops:
    rate = f'{quantity(peak.flops, "FLOP/s")} ({peak.source})'
    at_peak = f'; at least {flops / peak.flops:.3g} s at {rate}'
  say('one step', quantity(flops, 'FLOP') + at_peak)
  start = time.perf_counter()
  free = min(hosts.gather(memory.available()))
  # The number of an earlier start is kept, as it determines the order in which gradients are added.
  rows = build.check_batch(config, setup.layout.mesh)
  recorded = setup.micro_batches[number]
  chosen = recorded if recorded and rows % recorded == 0 else config.micro_batches
  with console.phase('compiling', 'the step'):
    count, compiled, needed = build.compile_to_fit(setup.programs[number], free, chosen, say)
  setup.micro_batches[number] = count
  parts = f'; {count} micro-batches of {config.batch_size // count} rows' if count > 1 else ''
  say('memory', f'{needed / 1e9:.2f} GB per device, {free / 1e9:.1f} GB free{parts}')
  say('compiled', f'in {time.perf_counter() - start:.0f} s, {setup.dtype} products')
  if peak.flops and flops / peak.flops > LONG_STEP:
    say(
      'long steps',
      'a step takes minutes on these devices; reduce it with '
      f'--config=FILE:batch={max(1, config.batch_size // 32)},seq=128, or use a smaller config',
    )
  return compiled


#### State ####


def _restored(
  setup: RunSetup, manager: ocp.CheckpointManager, step: int, functions: SumFunctions
) -> StepRunner:
  """State and sums of a checkpoint."""
  p = setup.programs[0]
  whole = partitioning.replicated(setup.layout.mesh)
  with console.phase('restoring', f'step {step:,}'):
    state, sums = checkpoints.restore_state(
      manager, step, p.shapes, p.shardings, functions.shapes, whole
    )
  say('restored', f'step {step:,}, the last checkpoint in {setup.workdir}')
  return StepRunner(state, sums, functions)


def _compile_initial(setup: RunSetup) -> Callable[[], jax.stages.Compiled]:
  """Starts to compile the initial state; returns a function that waits for it.

  One process compiles it in a thread while it compiles the step. Several processes compile one
  program after the other, in the same order.
  """
  compiling = functools.partial(build.compile_initial, setup.programs[0], setup.run.config)
  if jax.process_count() > 1:
    return compiling
  executor = concurrent.futures.ThreadPoolExecutor(1, 'initial state')
  future = executor.submit(compiling)
  executor.shutdown(wait=False)
  return future.result


def _fresh(
  setup: RunSetup,
  init: Callable[[], jax.stages.Compiled],
  initial: InitialState | None,
  functions: SumFunctions,
) -> StepRunner:
  """State before the first step: initial weights, and random parameters for the rest."""
  p, config = setup.programs[0], setup.run.config
  with console.phase('compiling', 'the initial state'):
    state = init()()
  sums = functions.zeros()
  if initial:
    state = place_initial(initial, state, p.shardings)
    for text in initial.notes:
      say('init', text)
  source = config.continued.generator
  other = f', its generator from {source}' if source.startswith('hf:') else ''
  if config.init:
    say('begins', f'from {config.init}{other}')
  else:
    generator = config.generator.init
    other = f', its generator from {generator}' if generator else ''
    say('begins', f'from scratch, seed {config.seed}{other}')
  return StepRunner(state, sums, functions)


#### Loop, finish ####


def _writer(
  run: ResolvedRun, workdir: epath.Path, saved: int, stack: contextlib.ExitStack
) -> MetricsWriter | NoWriter:
  """The writer of the metrics, which the first process has."""
  if not hosts.first():
    return NoWriter()
  return stack.enter_context(MetricsWriter(workdir, saved, tracking_of(run.config)))


def _record(setup: RunSetup) -> None:
  """Writes what this start has chosen, for later starts and other programs."""
  run, data = setup.run, setup.data
  resolved = {
    'data': data.identity,
    **({'steps': run.config.steps} if has_budget(run.config) else {}),
    'mesh': dict(setup.layout.mesh.shape),
    'micro_batches': setup.micro_batches,
    'vocab_size': data.tokenizer.size,
    'dtype': setup.dtype,
    'unigram_entropy': data.unigram_entropy,
    'train_rows': data.prepared[0].train.rows,
    'parameters': setup.parameters,
    'corpus': _kept_facts(data.prepared),
    **({'revisions': dict(run.revisions)} if run.revisions else {}),
  }
  path = setup.workdir / RESOLVED
  hosts.from_first(functools.partial(run_folder.write_json, path, resolved))


def _kept_facts(prepared: Sequence[Prepared]) -> list[dict[str, Any]]:
  """What was counted of the corpus of each phase, once where phases share it."""
  by_path = {p.path: preparation_report.kept_facts(p.facts, p.path) for p in prepared}
  return list(by_path.values())


def _plan_of_phase(
  setup: RunSetup, number: int, compiled: jax.stages.Compiled, evaluate_first: bool
) -> PhasePlan:
  phases = setup.run.phases
  before = (phase.config for phase in phases[:number])
  return PhasePlan(
    number=number,
    is_last=number == len(phases) - 1,
    phase=phases[number],
    prepared=setup.data.prepared[number],
    program=setup.programs[number],
    train_step=compiled,
    micro_batches=setup.micro_batches[number],
    step_flops=setup.flops[number],
    peak=setup.peak,
    tokens_before=sum(c.steps * c.batch_size * c.sequence_length for c in before),
    evaluate_first=evaluate_first,
  )


def _criterion_name(best_by: checkpoints.Criterion) -> str:
  return {
    checkpoints.REFERENCE_AP: 'average precision on the reference corruption',
    checkpoints.HELDOUT_LOSS: 'held-out loss',
  }.get(best_by, best_by.metric)


def _finish(
  setup: RunSetup, manager: ocp.CheckpointManager, recorder: RunRecorder | None, stopped: bool
) -> int:
  """Prints where the checkpoints are, and returns the exit status."""
  if recorder is None:
    say('done', f'all {setup.run.config.steps:,} steps were made before', always=True)
    manager.close()
    return 0
  if stopped:
    recorder.close('stopped')
    return PREEMPTED
  steps = ', '.join(map(str, sorted(manager.all_steps())))
  best = manager.best_step()
  chosen = f'the best by {_criterion_name(recorder.best_by)} is {best}'
  if best is None:
    chosen = 'the last counts as the best, since none was evaluated'
  say('checkpoints', f'steps {steps} in {setup.workdir / "checkpoints"}; {chosen}', always=True)
  recorder.close()
  evaluated = any(prepared.heldout is not None for prepared in setup.data.prepared)
  modes = ('evaluate', 'inspect', 'report') if evaluated else ('report',)
  for label, mode in zip(('next', '', ''), modes, strict=False):  # one label per mode
    say(label, f'python -m electra_jax.main --mode={mode} --workdir={setup.workdir}')
  return 0

"""--mode=plan: what a config would do on TPU slices that are not here.

The trainer's own step is compiled ahead of time for the slice, on this machine's CPU, by libtpu. That may crash, so it is done in a
process of its own, `python -m electra_jax.plan REQUEST RESULT`.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

import jax
import jax.numpy as jnp

from electra_jax import console
from electra_jax.config import Phase, PretrainingConfig, from_plain, phases_of, to_plain
from electra_jax.console import say
from electra_jax.errors import UserError
from electra_jax.pretrain import budgets, build, pretrain_step
from electra_jax.pretrain.resolve import ResolvedRun, resolve_run
from electra_jax.training import hlo, memory, partitioning, run_folder, slices
from electra_jax.training.encoders import attention_kernel
from electra_jax.training.progress import quantity
from electra_jax.training.update_step import UpdateOptions

SEARCH_COMPILES = 3  # most programs that the search for the largest batch compiles, a phase
SEARCH_SECONDS = 300  # and none is begun after so long
# What libtpu would otherwise ask of the machine that it believes to be on; other TPU_* may be of a machine that is one.
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


def plan(
  config, topology: str, output: str | None = None, price: float | None = None, search: bool = True
) -> dict:
  """Plans a run of a config on a slice, prints it, and writes it to OUTPUT/plan-<slice>.json.

  Args:
    config: as for training.
    topology: the name of a slice, see training/slices.py.
    output: a folder; None for runs/<config name>.
    price: of a chip-hour, in dollars, if known.
    search: for the largest batch too, which takes some more compilations.

  Returns: what was written; see `compiled_for` and `costs` for its fields.

  Raises UserError for a person's mistakes, where libtpu is missing, and where it crashes.
  """
  config = resolve_run(config, platform='tpu').config
  of = slices.parse(topology)
  if price is not None and price < 0:
    raise UserError(f'--price={price:g} is negative; give the dollars of a chip-hour.')
  if config.budget_minutes:
    raise UserError(
      'config.budget_minutes is timed on the devices themselves, which are not here; plan with config.steps, budget_tokens or budget_flops.'
    )
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(
      "--mode=plan needs libtpu, TPU's compiler, and it is not installed; pip install 'electra-jax[tpu]' or libtpu."
    )
  folder = run_folder.folder(output or os.path.join('runs', config.name))
  console.heading(f'{config.name} on {of.name}')
  result = _in_child({'config': to_plain(config), 'topology': topology, 'search': search})
  result |= costs(result, of, price)
  _print(result, of)
  path = folder / f'plan-{of.name}.json'
  with run_folder.reaching(path, 'written'):
    path.parent.mkdir(parents=True, exist_ok=True)
  run_folder.write_json(path, result)
  say('written', str(path))
  return result


#### In the child: compiling #########################################################################################


def compiled_for(run: ResolvedRun, of: slices.Slice, search: bool, doing=lambda text: None) -> dict:
  """What the compiler says of every phase of a config on a slice. `doing` is told what begins. Raises UserError."""
  layout = partitioning.make_layout(run.config, slices.devices(of))
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
    'phases': [_phase(config, phase, of, layout, search, doing) for phase in run.phases],
  }


def _phase(config: PretrainingConfig, phase: Phase, of, layout, search, doing) -> dict:
  c = phase.config
  p = build.program(config, phase, build.any_tokenizer(c.data.vocab_size), layout)
  rows, budget = build.check_batch(c, layout.mesh), int(memory.SHARE * of.chip.hbm)
  kernel, why = attention_kernel(c.model, c.sequence_length, c.dtype, 'tpu')
  name = f'steps of {c.batch_size:,} x {c.sequence_length}'
  found = {
    'steps': c.steps,
    'batch': c.batch_size,
    'length': c.sequence_length,
    'rows_per_chip': rows,
    'attention': kernel,
    'why': why,
    'remat': c.model.remat,
  }
  parameters = partitioning.bytes_per_device(p.shapes.params, p.shardings.params)
  found['memory'] = {
    'parameters': parameters,
    'moments': partitioning.bytes_per_device(p.shapes.opt_state, p.shardings.opt_state),
    'available': of.chip.hbm,
    'budget': budget,
  }
  doing(f'counting the products of {name}')
  found['flops'] = _flops(p)

  #### The step, as the trainer would compile it #####################################################################
  compiled, start = None, time.monotonic()
  try:
    k, compiled, needed = build.compile_to_fit(
      p, budget, c.micro_batches, lambda _, text: doing(f'{text}, {name}')
    )
  except UserError as error:  # not even one row at a time
    k, needed, found['complaint'] = rows, None, str(error)
  except (
    jax.errors.JaxRuntimeError
  ) as error:  # as many micro-batches as the config says, and they do not fit
    k, needed = c.micro_batches, _refused(error)
  found |= {
    'micro_batches': k,
    'fits': compiled is not None and needed <= budget,
    'compile_seconds': round(time.monotonic() - start, 1),
  }
  found['memory']['peak'] = needed
  if compiled is not None:
    text = compiled.as_text()
    found['collectives'] = [
      x._asdict() | {'sent': x.sent, 'shape': x.shape[:200]}
      for x in hlo.collectives(text, of.slices)
    ]
    found |= {'hbm_traffic': hlo.hbm_traffic(text), 'largest_array': hlo.largest_array(text)}
    del text, compiled
  if search:
    found['largest'] = _largest(p, budget, k, needed, start, doing)
  return found


def _refused(error) -> int | None:
  """Bytes that a program would have needed which the compiler refused for its size; None where it does not say."""
  if 'RESOURCE_EXHAUSTED' not in str(error):
    raise error
  said = re.search(r'Used ([\d.]+)([KMG]) of|\(([\d.]+)([KMG])\) exceeds', str(error))
  return said and int(float(said[1] or said[3]) * 1024 ** ('KMG'.index(said[2] or said[4]) + 1))


def _flops(p) -> dict:
  """Of a step over all chips: ours, and the compiler's of the same step without its loops, on the line through small depths."""
  towers = (p.model.generator_config, p.model.discriminator_config)
  batch, length = p.config.batch_size, p.config.sequence_length

  def counted(*layers):
    g, d = (
      dataclasses.replace(c, num_layers=n, scan_unroll=n, attention='xla')
      for c, n in zip(towers, layers, strict=True)
    )
    model = p.model.clone(
      generator_config=d if p.model.sharing == 'all' else g, discriminator_config=d
    )
    shapes, _ = pretrain_step.state_shardings(model, p.optimizer, length, p.layout)
    step = pretrain_step.make_train_step(
      dataclasses.replace(p.computation, model=model, seed=0, schedules={}),
      p.optimizer,
      UpdateOptions(trained=p.trained),
    )
    lowered = jax.jit(step).lower(
      shapes, {'token_ids': jax.ShapeDtypeStruct((batch, length), jnp.int32)}
    )
    return lowered.cost_analysis()['flops'], hlo.product_flops(
      lowered.compiler_ir('hlo').as_hlo_text()
    )

  shallow, deeper = counted(1, 1), counted(1, 2)
  more = [(towers[1].num_layers - 1) * (b - a) for a, b in zip(shallow, deeper, strict=True)]
  if p.model.sharing != 'all':
    more = [
      m + (towers[0].num_layers - 1) * (b - a)
      for m, a, b in zip(more, shallow, counted(2, 1), strict=True)
    ]
  whole, products = (a + m for a, m in zip(shallow, more, strict=True))
  return {'model': p.step_flops(), 'compiler': whole, 'products': products}


def _largest(p, budget, micro_batches, needed, start, doing) -> dict:
  """The most rows that a chip can have at once, without micro-batches, found on the line through what two programs need.

  Returns: rows a chip that fit and the batch that they make, the fewest rows that did not fit (None: none was tried), those that
  the line has fit, and the number of programs compiled.
  """
  shards = partitioning.row_shards(p.layout.mesh)
  rows = p.config.batch_size // shards // micro_batches
  parameters = partitioning.bytes_per_device(p.shapes.params, p.shardings.params)
  # Parameters, their gradients (in micro-batches their sum besides) and the moments do not grow with the rows.
  points = {
    0: parameters * (2 + (micro_batches > 1))
    + partitioning.bytes_per_device(p.shapes.opt_state, p.shardings.opt_state)
  }
  points |= {rows: needed} if needed else {}
  fit, unfit, compiles = (rows, None, 0) if needed and needed <= budget else (0, rows, 0)
  while True:
    a, b = sorted(points)[-2:] if len(points) > 1 else (0, 0)
    aim = (
      0.98 if len(points) > 2 else 0.9
    ) * budget  # what is computed from shapes alone makes a line that is a little low
    guess = (
      a + (aim - points[a]) * (b - a) / (points[b] - points[a])
      if points[b] > points[a]
      else (fit + (unfit or 4 * fit)) / 2
    )
    if unfit and not fit < guess < unfit:
      guess = (fit + unfit) / 2
    guess = (
      int(guess) // 8 * 8 if guess >= 16 else int(guess)
    )  # rows come in eights, the tiles of a TPU
    worth = guess > fit + fit // 8 and not (unfit and unfit - fit <= max(1, fit // 8))
    if not worth or compiles == SEARCH_COMPILES or time.monotonic() - start > SEARCH_SECONDS:
      break
    doing(f'{guess} rows a chip at once, to find the most that fit')
    compiles += 1
    config = p.config.replace({'batch_size': guess * shards})
    try:
      needs = memory.of(build.compile_step(p._replace(config=config), 1))
    except jax.errors.JaxRuntimeError as error:
      needs = _refused(error)
    points |= {guess: needs} if needs else {}
    fit, unfit = (guess, unfit) if needs and needs <= budget else (fit, guess)
  return {
    'rows_per_chip': fit,
    'batch': fit * shards,
    'too_many': unfit,
    'estimate': max(fit, guess),
    'compiles': compiles,
  }


def _child(request: str, result: str) -> int:
  """Reads a request, compiles, and writes the result, or the sentence that a person is to read."""
  asked = json.loads(pathlib.Path(request).read_text())
  config = from_plain(asked['config'], PretrainingConfig)
  run = ResolvedRun(config, phases_of(config))  # resolved by the parent
  try:

    def doing(text):
      return print(json.dumps({'doing': text}), flush=True)

    found = compiled_for(run, slices.parse(asked['topology']), asked['search'], doing)
  except UserError as error:
    found = {'error': str(error)}
  pathlib.Path(result).write_text(json.dumps(found))
  return 0


#### In the parent: the child, and what follows from its figures #######################################################


def _in_child(request: dict) -> dict:
  """The result of a request; meanwhile a line says what is being done and for how long. Raises UserError where the child dies."""
  env = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('TPU_', 'XLA_FLAGS', 'JAX_'))
  } | CHILD
  env['PYTHONPATH'] = os.pathsep.join(
    filter(None, (str(pathlib.Path(__file__).parents[1]), env.get('PYTHONPATH')))
  )
  with tempfile.TemporaryDirectory() as folder:
    paths = [os.path.join(folder, name) for name in ('request', 'result')]
    pathlib.Path(paths[0]).write_text(json.dumps(request))
    with open(os.path.join(folder, 'errors'), 'w+') as errors:
      command = [sys.executable, '-m', 'electra_jax.plan', *paths]
      child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
      try:
        doing = _follow(child)
        status = child.wait()
      finally:
        child.kill()
        child.wait()
      errors.seek(0)
      last = ([line.strip() for line in errors if line.strip()] or ['it gave no reason'])[-1]
    if status < 0:
      cure = (
        'free some memory of this machine'
        if -status == signal.SIGKILL
        else 'another slice or another version of libtpu may do'
      )
      raise UserError(
        f"TPU's compiler crashed ({signal.Signals(-status).name}) while {doing}; {cure}."
      )
    if status:
      raise UserError(
        f"TPU's compiler failed while {doing}: {last[:300].rstrip('.')}; another version of libtpu may do."
      )
    result = json.loads(pathlib.Path(paths[1]).read_text())
  if 'error' in result:
    raise UserError(result['error'])
  return result


def _follow(child) -> str:
  """Shows what the child says it does until it ends; returns the last of it."""
  lines = queue.Queue()

  def read():
    for line in child.stdout:
      lines.put(line)
    lines.put(None)

  threading.Thread(target=read, daemon=True).start()
  doing = 'starting'
  while True:
    with console.progress('compiling') as progress:
      while True:
        try:
          line = lines.get(timeout=0.2)
          break
        except queue.Empty:
          progress(0, doing)
    if line is None:
      return doing
    if line.startswith('{"doing"'):
      doing = json.loads(line)['doing']


def costs(result: dict, of: slices.Slice, price: float | None) -> dict:
  """Times and prices that follow from what the compiler said: a roofline (Williams et al. 2009), all of it 'at best'.

  Seconds a step: of the products at the stated peak, of memory traffic and of what is sent at the stated bandwidths. `at_least` is the
  longest of them, as if all else were done meanwhile; `in_turn` their sum, as if nothing were. `mfu` is that of `at_least`.
  """
  phases, least, most = [], 0.0, 0.0
  for phase in result['phases']:
    if 'hbm_traffic' not in phase:
      return {'phases': result['phases']}
    sent = {
      over: sum(c['sent'] for c in phase['collectives'] if c['over'] == over)
      for over in ('ICI', 'DCN')
    }
    parts = {
      'products': phase['flops']['products'] / of.chips / of.chip.flops,
      'HBM': phase['hbm_traffic'] / of.chip.hbm_bandwidth,
      'ICI': sent['ICI'] / of.ici if of.ici else 0.0,
      'DCN': sent['DCN'] / of.chip.dcn if of.chip.dcn else 0.0,
    }
    seconds = {**parts, 'at_least': max(parts.values()), 'in_turn': sum(parts.values())}
    least, most = (
      least + phase['steps'] * seconds['at_least'],
      most + phase['steps'] * seconds['in_turn'],
    )
    phases.append(
      phase
      | {
        'seconds': seconds,
        'bound': max(parts, key=parts.get),
        'mfu': phase['flops']['model'] / of.chips / of.chip.flops / seconds['at_least'],
      }
    )
  hours = [of.chips * s / 3600 for s in (least, most)]
  run = {'days': [s / 86400 for s in (least, most)], 'chip_hours': hours}
  return {
    'phases': phases,
    'run': run
    | ({'price': price, 'dollars': [price * h for h in hours]} if price is not None else {}),
  }


#### Printing ##########################################################################################################


def _print(result: dict, of: slices.Slice) -> None:
  def gb(value):
    return f'{value / 1e9:.2f}'

  say(
    'slice',
    f'{of.chips} chips of TPU {of.chip.name} ({f"{of.slices} x " if of.slices > 1 else ""}{"x".join(map(str, of.shape))}) on '
    f'{of.hosts} host{"s" * (of.hosts > 1)}; each {quantity(of.chip.flops, "FLOP/s")}, {of.chip.hbm / 2**30:.4g} GiB at '
    f'{quantity(of.chip.hbm_bandwidth, "B/s")}, {quantity(of.ici, "B/s")} to the others',
  )
  say('mesh', ' x '.join(f'{name} {size}' for name, size in result['mesh'].items()))
  for phase in result['phases']:
    rows, m = phase['rows_per_chip'], phase['memory']
    say(
      'steps',
      f'{phase["steps"]:,} of {phase["batch"]:,} x {phase["length"]}: {rows} rows a chip'
      + (
        f' in {phase["micro_batches"]} micro-batches'
        if phase['micro_batches'] > 1 and phase['fits']
        else ''
      ),
    )
    say('attention', f'{phase["attention"]} ({phase["why"]})')
    need = f'{gb(m["peak"])} GB' if m['peak'] else 'more than there is'
    say(
      'memory',
      f'{need} a chip of {gb(m["available"])}, of which the trainer takes up to {gb(m["budget"])}: '
      + ('fits' if phase['fits'] else 'DOES NOT FIT'),
    )
    rest = (
      f'; gradients, activations and the rest {gb(m["peak"] - m["parameters"] - m["moments"])}'
      if m['peak']
      else ''
    )
    say('', f'parameters {gb(m["parameters"])}, optimizer {gb(m["moments"])}{rest}')
    if large := phase.get('largest'):
      beyond = (
        f' ({large["too_many"]} do not fit)'
        if large['too_many']
        else (
          f' (by extrapolation {large["estimate"]})'
          if large['estimate'] > large['rows_per_chip']
          else ''
        )
      )
      say(
        'largest',
        f'{large["rows_per_chip"]} rows a chip at once, a batch of {large["batch"]:,}{beyond}; larger ones in micro-batches',
      )
    if not phase['fits']:
      for text in advice(phase, of):
        say('try', text)
    if 'seconds' in phase:
      _print_step(phase)
    more = (
      f', {large["compiles"]} more to find the largest batch' if large and large['compiles'] else ''
    )
    say('compiled', f'in {console.seconds(phase["compile_seconds"])}{more}')
  if run := result.get('run'):
    (least, most), (hours, more) = run['days'], run['chip_hours']
    cost = (
      f', ${run["dollars"][0]:,.2f} to {run["dollars"][1]:,.2f} at ${run["price"]:g} a chip-hour'
      if 'dollars' in run
      else ''
    )

    def time_of(days):
      return f'{days:.3g} days' if days >= 2 else console.seconds(days * 86400)

    say(
      'whole run',
      f'at best {time_of(least)} to {time_of(most)}, {hours:,.4g} to {more:,.4g} chip-hours{cost}',
    )


def _print_step(phase: dict) -> None:
  flops, seconds = phase['flops'], phase['seconds']
  kinds = {}
  for c in phase['collectives']:
    count, whole, sent = kinds.get(key := (c['over'], c['kind'], c['looped']), (0, 0, 0))
    kinds[key] = count + c['times'], whole + c['times'] * c['payload'], sent + c['sent']
  say(
    'collectives',
    f'{"over":5}{"kind":20}{"a step":>7}{"MB":>10}{"MB sent a chip":>16}' if kinds else 'none',
  )
  for (over, kind, looped), (count, whole, sent) in sorted(
    kinds.items(), key=lambda item: -item[1][2]
  ):
    say(
      '',
      f'{over:5}{kind:20}{count:7g}{whole / 1e6:10.2f}{sent / 1e6:16.2f}'
      + ('  in loops' if looped else ''),
    )
  say(
    'FLOPs',
    f'{quantity(flops["model"])} a step by our count; the compiler counts {quantity(flops["compiler"])} '
    f'({flops["compiler"] / flops["model"]:.3f} of it), {quantity(flops["products"])} in matrix products',
  )
  parts = ', '.join(
    f'{name} {seconds[name] * 1e3:.3g}'
    for name in ('products', 'HBM', 'ICI', 'DCN')
    if seconds[name]
  )
  say(
    'one step',
    f'{seconds["at_least"] * 1e3:.3g} ms if all overlaps, {seconds["in_turn"] * 1e3:.3g} if nothing does: {parts}; '
    f'bound by {phase["bound"]}',
  )
  tokens = phase['batch'] * phase['length'] / seconds['at_least']
  say('at best', f'{phase["mfu"]:.0%} of the peak (MFU), {quantity(tokens)} tokens/s')


def advice(phase: dict, of: slices.Slice) -> list[str]:
  """What would make a phase fit that does not, with numbers where they are known."""
  rows, m, found = phase['rows_per_chip'], phase['memory'], []
  most = (phase.get('largest') or {}).get('rows_per_chip', 0) or (
    int(0.9 * rows / phase['micro_batches'] * m['budget'] / m['peak']) if m['peak'] else 0
  )
  if k := next((k for k in range(1, rows + 1) if rows % k == 0 and rows // k <= most), None):
    found.append(
      f'--config.micro_batches={k}: {rows // k} rows a chip at once; or 0, as many as it takes'
    )
  elif phase['micro_batches'] < rows:
    found.append('--config.micro_batches=0: as many as it takes')
  if phase['remat'] != 'full':
    found.append(
      '--config.model.remat=full: the backward pass computes the layers again, for about a third more FLOPs'
    )
  state = m['parameters'] + m['moments']
  if state > 0.2 * of.chip.hbm:
    found.append(
      '--config.mesh.fsdp=-1 --config.mesh.data=1: parameters and both moments split over all chips, '
      f'{state / 1e9:.1f} GB on each become some {3 * m["parameters"] / of.chips / 1e9:.2f}'
    )
  larger = [
    n for n in (slices.FLAT if of.chip.cores == 1 else slices.DEEP) if n > of.chips // of.slices
  ]
  if larger:
    found.append(
      f'--topology={of.chip.name}-{larger[0] * of.chip.cores}: {larger[0]} chips, fewer rows on each'
    )
  return found


if __name__ == '__main__':
  sys.exit(_child(*sys.argv[1:]))

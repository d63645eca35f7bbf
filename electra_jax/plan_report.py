"""What a plan prints: memory, time and cost of a run on TPU slices, and advice."""

import collections
from typing import Any

from electra_jax import console
from electra_jax.console import quantity, say
from electra_jax.model import pallas_blocks
from electra_jax.training import slices
from electra_jax.training.slices import Slice

Json = dict[str, Any]


def costs(result: Json, of: Slice, price: float | None) -> Json:
  """Returns times and prices by a roofline model (Williams et al. 2009): lower bounds.

  The seconds per step of matrix products follow from the stated peak, those of memory traffic and
  of communication from the stated bandwidths. `at_least` is the longest of them, as if all others
  ran at the same time; `in_turn` is their sum. `mfu` is the model FLOPs utilization of `at_least`.

  Args:
    result: of `compile_plan`.
    of: the slice.
    price: dollars per chip-hour; None if unknown.

  Returns:
    The phases with 'seconds', 'bound' and 'mfu', and 'run' with days, chip-hours and dollars from
    the least to the most; only the phases if one of them does not fit.
  """
  if not all('hbm_traffic' in phase for phase in result['phases']):
    return {'phases': result['phases']}
  phases = [phase | _phase_costs(phase, of) for phase in result['phases']]
  seconds = [
    sum(phase['steps'] * phase['seconds'][name] for phase in phases)
    for name in ('at_least', 'in_turn')
  ]
  hours = [of.chips * s / 3600 for s in seconds]
  run: Json = {'days': [s / 86400 for s in seconds], 'chip_hours': hours}
  if price is not None:
    run |= {'price': price, 'dollars': [price * h for h in hours]}
  return {'phases': phases, 'run': run}


def _phase_costs(phase: Json, of: Slice) -> Json:
  sent = {
    over: sum(c['sent'] for c in phase['collectives'] if c['over'] == over)
    for over in ('ICI', 'DCN')
  }
  kernels = [_kernel_costs(call, of) for call in phase.get('kernels', ())]
  inside = of.chips * sum(kernel['times'] * kernel['kept_flops'] for kernel in kernels)
  parts = {
    'products': max(0.0, phase['flops']['products'] - inside) / of.chips / of.chip.flops,
    'HBM': phase['hbm_traffic'] / of.chip.hbm_bandwidth,
    'kernels': sum(kernel['times'] * kernel['seconds'] for kernel in kernels),
    'ICI': sent['ICI'] / of.ici if of.ici else 0.0,
    'DCN': sent['DCN'] / of.chip.dcn if of.chip.dcn else 0.0,
  }
  # A core runs one kernel or operation at a time; only communication can overlap with kernels.
  on_core = max(parts['products'], parts['HBM']) + parts['kernels']
  at_least = max(on_core, parts['ICI'], parts['DCN'])
  return {
    'kernels': kernels,
    'seconds': {**parts, 'at_least': at_least, 'in_turn': sum(parts.values())},
    'bound': max(parts, key=lambda name: parts[name]),
    'mfu': phase['flops']['model'] / of.chips / of.chip.flops / at_least,
  }


def _kernel_costs(call: Json, of: Slice) -> Json:
  """The modeled seconds of a kernel, and what they follow from."""
  rates = of.chip.kernel_rates
  described = pallas_blocks.described_call(call['metadata'])
  work = pallas_blocks.work(described, rates.matrix_unit)
  seconds = pallas_blocks.bounds_in_seconds(work, rates)
  bound = max(seconds, key=lambda name: seconds[name])
  return {
    **call,
    **described._asdict(),
    **work._asdict(),
    'seconds': seconds[bound],
    'bound': bound,
  }


def advice(phase: Json, of: Slice) -> list[str]:
  """Returns what would make a phase fit that does not, with numbers where they are known."""
  rows = phase['rows_per_chip']
  m = phase['memory']
  found = []
  most = (phase.get('largest') or {}).get('rows_per_chip', 0)
  if not most and m['peak']:  # in proportion
    most = int(0.9 * rows / phase['micro_batches'] * m['budget'] / m['peak'])
  if k := next((k for k in range(1, rows + 1) if rows % k == 0 and rows // k <= most), None):
    found.append(
      f'--config.micro_batches={k}: {rows // k} rows per chip at once; or 0, as many as required'
    )
  elif phase['micro_batches'] < rows:
    found.append('--config.micro_batches=0: as many as required')
  if phase['remat'] != 'full':
    found.append(
      '--config.model.remat=full: the backward pass computes the layers again, for about a third '
      'more FLOPs'
    )
  state = m['parameters'] + m['moments']
  if state > 0.2 * of.chip.hbm:
    split = 3 * m['parameters'] / of.chips
    found.append(
      '--config.mesh.fsdp=-1 --config.mesh.data=1: parameters and both moments are split over all '
      f'chips, {state / 1e9:.1f} GB on each become about {split / 1e9:.2f}'
    )
  larger = [n for n in slices.shapes_of(of.chip) if n > of.chips // of.slices]
  if larger:
    name = f'{of.chip.name}-{larger[0] * of.chip.cores}'
    found.append(f'--topology={name}: {larger[0]} chips, fewer rows on each')
  return found


#### Printing ####


def print_plan(result: Json, of: Slice) -> None:
  """Prints the result of a plan.

  Args:
    result: of `plan`, with costs.
    of: the slices.
  """
  shape = 'x'.join(map(str, of.shape))
  shape = f'{of.slices} x {shape}' if of.slices > 1 else shape
  say(
    'slice',
    f'{of.chips} chips of TPU {of.chip.name} ({shape}) on {of.hosts} '
    f'host{"s" * (of.hosts > 1)}; each {quantity(of.chip.flops, "FLOP/s")}, '
    f'{of.chip.hbm / 2**30:.4g} GiB at {quantity(of.chip.hbm_bandwidth, "B/s")}, '
    f'{quantity(of.ici, "B/s")} to the others',
  )
  say('mesh', ' x '.join(f'{name} {size}' for name, size in result['mesh'].items()))
  for phase in result['phases']:
    _print_phase(phase, of)
  if run := result.get('run'):
    _print_run(run)


def _print_phase(phase: Json, of: Slice) -> None:
  micro_batches = phase['micro_batches']
  parts = f' in {micro_batches} micro-batches' if micro_batches > 1 and phase['fits'] else ''
  say(
    'steps',
    f'{phase["steps"]:,} of {phase["batch"]:,} x {phase["length"]}: {phase["rows_per_chip"]} rows '
    f'per chip{parts}',
  )
  say('attention', f'{phase["attention"]} ({phase["why"]})')
  _print_memory(phase)
  largest = phase.get('largest')
  if largest:
    _print_largest(largest)
  if not phase['fits']:
    for text in advice(phase, of):
      say('try', text)
  if 'seconds' in phase:
    _print_collectives(phase['collectives'])
    _print_step(phase)
  more = ''
  if largest and largest['compiles']:
    more = f', {largest["compiles"]} more to find the largest batch'
  say('compiled', f'in {console.seconds(phase["compile_seconds"])}{more}')


def _print_memory(phase: Json) -> None:
  m = {name: value / 1e9 for name, value in phase['memory'].items() if value is not None}
  needed = f'{m["peak"]:.2f} GB' if m.get('peak') else 'more than available'
  say(
    'memory',
    f'{needed} per chip of {m["available"]:.2f}, of which the trainer uses up to '
    f'{m["budget"]:.2f}: {"fits" if phase["fits"] else "DOES NOT FIT"}',
  )
  rest = ''
  if m.get('peak'):
    others = m['peak'] - m['parameters'] - m['moments']
    rest = f'; gradients, activations and others {others:.2f}'
  say('', f'parameters {m["parameters"]:.2f}, optimizer {m["moments"]:.2f}{rest}')


def _print_largest(largest: Json) -> None:
  beyond = ''
  if largest['too_many']:
    beyond = f' ({largest["too_many"]} do not fit)'
  elif largest['estimate'] > largest['rows_per_chip']:
    beyond = f' (by extrapolation {largest["estimate"]})'
  say(
    'largest',
    f'{largest["rows_per_chip"]} rows per chip at once, a batch of {largest["batch"]:,}{beyond}; '
    'larger ones in micro-batches',
  )


def _print_collectives(found: list[Json]) -> None:
  """Prints the collectives of a step by network and kind, those that send most first."""
  totals: dict[tuple[str, str, bool], list[float]] = collections.defaultdict(lambda: [0, 0, 0])
  for c in found:
    total = totals[c['over'], c['kind'], c['looped']]
    total[0] += c['times']
    total[1] += c['times'] * c['payload']
    total[2] += c['sent']
  header = f'{"over":5}{"kind":20}{"per step":>9}{"MB":>10}{"MB sent per chip":>18}'
  say('collectives', header if totals else 'none')
  for (over, kind, looped), total in sorted(totals.items(), key=lambda item: -item[1][2]):
    times, payload, sent = total
    note = '  in loops' if looped else ''
    say('', f'{over:5}{kind:20}{times:9g}{payload / 1e6:10.2f}{sent / 1e6:18.2f}{note}')


def _print_step(phase: Json) -> None:
  flops = phase['flops']
  seconds = phase['seconds']
  say(
    'FLOPs',
    f'{quantity(flops["model"])} per step by our count; the compiler counts '
    f'{quantity(flops["compiler"])} ({flops["compiler"] / flops["model"]:.3f} of it), '
    f'{quantity(flops["products"])} in matrix products',
  )
  parts = ', '.join(
    f'{name} {seconds[name] * 1e3:.3g}'
    for name in ('products', 'HBM', 'kernels', 'ICI', 'DCN')
    if seconds[name]
  )
  say(
    'one step',
    f'{seconds["at_least"] * 1e3:.3g} ms if all overlaps, {seconds["in_turn"] * 1e3:.3g} if '
    f'nothing does: {parts}; bound by {phase["bound"]}',
  )
  for kernel in phase['kernels']:
    _print_kernel(kernel)
  tokens = phase['batch'] * phase['length'] / seconds['at_least']
  say('at best', f'{phase["mfu"]:.0%} of the peak (MFU), {quantity(tokens)} tokens/s')


def _print_kernel(kernel: Json) -> None:
  shape = ' x '.join(map(str, kernel['shape']))
  window = '' if kernel['reach'] is None else ', local'
  say(
    'kernel',
    f'attention {kernel["direction"]}{window} of {shape}: {kernel["times"]:g} per step, '
    f'{kernel["seconds"] * 1e6:.3g} us each by its {kernel["bound"]} (modeled, not measured)',
  )


def _print_run(run: Json) -> None:
  def time_of(days: float) -> str:
    return f'{days:.3g} days' if days >= 2 else console.seconds(days * 86400)

  least, most = map(time_of, run['days'])
  hours, more_hours = run['chip_hours']
  cost = ''
  if 'dollars' in run:
    dollars, more_dollars = run['dollars']
    cost = f', ${dollars:,.2f} to ${more_dollars:,.2f} at ${run["price"]:g} per chip-hour'
  say('whole run', f'at best {least} to {most}, {hours:,.4g} to {more_hours:,.4g} chip-hours{cost}')

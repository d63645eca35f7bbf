"""Plans for TPU slices: names of slices, numbers that add up, and a compiler that may crash."""

import contextlib
import io
import json
import pathlib
import signal
import subprocess
import sys
import types

import jax
import pytest

from configs import base, base_lamb, tiny
from electra_jax import plan, plan_report
from electra_jax.config import (
  PretrainingConfig,
  checked_pretraining,
  from_plain,
  phases_of,
  to_plain,
)
from electra_jax.errors import UserError
from electra_jax.pretrain.resolve import ResolvedRun
from electra_jax.training import slices
from electra_jax.training.progress import PEAK_FLOPS

needs_libtpu = pytest.mark.skipif(
  plan.importlib.util.find_spec('libtpu') is None,
  reason="libtpu, TPU's compiler, is not installed",
)


#### Slices ####


@pytest.mark.parametrize(
  'name, chips, hosts, shape',
  [
    ('v4-8', 4, 1, (2, 2, 1)),
    ('v4-32', 16, 4, (2, 2, 4)),
    ('v5p-8', 4, 1, (2, 2, 1)),
    ('v5p-32', 16, 4, (2, 2, 4)),
    ('v5p-128', 64, 16, (4, 4, 4)),
    ('v5e-1', 1, 1, (1, 1)),
    ('v5e-4', 4, 1, (2, 2)),
    ('v5e-8', 8, 1, (2, 4)),
    ('v5e-16', 16, 4, (4, 4)),
    ('v5litepod-64', 64, 16, (8, 8)),
    ('v6e-256', 256, 64, (16, 16)),
    ('2xv5e-256', 512, 128, (16, 16)),
    ('V5E-4', 4, 1, (2, 2)),
  ],
)
def test_names_of_slices_give_chips_hosts_and_shape(name, chips, hosts, shape):
  found = slices.parse_slice(name)
  assert (found.chips, found.hosts, found.shape) == (chips, hosts, shape)


@pytest.mark.parametrize(
  'name',
  ['v5e-5', 'v4-9', 'v4-6', 'v5e', 'v9-8', 'h100-8', '0xv5e-4', 'v5p-8192000', '', 'v5e-16x2'],
)
def test_unknown_slices_are_refused_with_the_known_names(name):
  with pytest.raises(UserError, match=r'v5e-N and v6e-N count chips .* v4-N and v5p-N count cores'):
    slices.parse_slice(name)


def test_chips_have_the_peaks_of_the_package_and_their_links():
  for chip in slices.CHIPS.values():
    assert chip.flops == PEAK_FLOPS[f'TPU {chip.name}']
  # A chip at the corner of a 4 x 4 mesh has two neighbours; in 16 x 16 every axis is a ring.
  assert (
    slices.parse_slice('v5e-16').ici == 100e9
    and slices.parse_slice('v5e-256').ici == 200e9
    and slices.parse_slice('v5e-1').ici == 0
  )
  assert slices.parse_slice('v5p-128').ici == 600e9 and slices.parse_slice('v5p-32').ici == 300e9


#### Times, prices and advice ####


def phase(**fields):
  return {
    'steps': 1000,
    'batch': 256,
    'length': 512,
    'rows_per_chip': 16,
    'micro_batches': 1,
    'fits': True,
    'remat': 'none',
    'memory': {
      'parameters': int(5e8),
      'moments': int(1e8),
      'peak': int(1e10),
      'available': 1 << 34,
      'budget': int(1.6e10),
    },
    'flops': {'model': 16 * 197e12, 'compiler': 16 * 197e12, 'products': 2 * 16 * 197e12},
    'hbm_traffic': 819e9,
    'collectives': [{'over': 'ICI', 'sent': 5e10}, {'over': 'DCN', 'sent': 0.0}],
  } | fields


def test_times_and_prices_follow_from_peaks_and_bandwidths():
  found = plan_report.costs(
    {'phases': [phase(), phase(steps=2000)]}, slices.parse_slice('v5e-16'), price=2.0
  )
  seconds = found['phases'][0]['seconds']
  assert (seconds['products'], seconds['HBM'], seconds['ICI'], seconds['DCN']) == (
    2.0,
    1.0,
    0.5,
    0.0,
  )
  assert found['phases'][0]['bound'] == 'products' and found['phases'][0]['mfu'] == 0.5
  assert found['run']['days'] == [3000 * 2 / 86400, 3000 * 3.5 / 86400]
  assert found['run']['dollars'] == pytest.approx([2 * 16 * 6000 / 3600, 2 * 16 * 10500 / 3600])
  over_network = plan_report.costs(
    {'phases': [phase(collectives=[{'over': 'DCN', 'sent': 3.125e10}])]},
    slices.parse_slice('2xv5e-8'),
    None,
  )
  assert over_network['phases'][0]['bound'] == 'DCN' and 'dollars' not in over_network['run']


KERNEL = {
  'times': 12,
  'metadata': {
    'direction': 'forward',
    'shape': '16,12,64,512',
    'itemsize': '2',
    'rate': '0.1',
    'reach': '',
  },
}


def test_kernels_take_their_modeled_time_after_everything_else(capsys):
  """A core runs one of them at a time; only communication can overlap with a kernel."""
  of = slices.parse_slice('v5e-16')
  without, found = (
    plan_report.costs({'phases': [phase(kernels=kernels)], 'mesh': {}}, of, None)['phases'][0]
    for kernels in ([], [KERNEL])
  )
  (kernel,) = found['kernels']
  # 16 operations on each of 512 x 512 / 1024 registers of 192 heads, 4 per cycle.
  assert kernel['bound'] == 'vector operations'
  assert kernel['seconds'] == pytest.approx(192 * 256 * 16 / 4 / 1.5e9)
  seconds = found['seconds']
  assert seconds['kernels'] == pytest.approx(12 * kernel['seconds'])
  # Its products are no longer among those that XLA computes.
  flops = 12 * 192 * 2 * 2 * 512 * 512 * 64
  assert seconds['products'] == pytest.approx(without['seconds']['products'] - flops / 197e12)
  assert seconds['at_least'] == pytest.approx(seconds['products'] + seconds['kernels'])
  # Of the five products backward, XLA has four: it keeps the probabilities.
  backward = KERNEL | {'metadata': KERNEL['metadata'] | {'direction': 'backward'}}
  both = plan_report.costs({'phases': [phase(kernels=[KERNEL, backward])]}, of, None)['phases'][0]
  assert both['seconds']['products'] == pytest.approx(
    without['seconds']['products'] - 3 * flops / 197e12
  )
  plan_report._print_step(found)
  assert '16 x 12 x 64 x 512: 12 per step' in (shown := capsys.readouterr().out)
  assert 'by its vector operations (modeled, not measured)' in shown


def test_a_phase_that_does_not_fit_gets_advice_with_numbers():
  of = slices.parse_slice('v5e-16')
  found = ' '.join(plan_report.advice(phase(fits=False, largest={'rows_per_chip': 6}), of))
  assert (
    '--config.micro_batches=4: 4 rows per chip' in found
    and 'remat=full' in found
    and 'v5e-32' in found
    and 'fsdp' not in found
  )
  found = ' '.join(
    plan_report.advice(phase(fits=False, memory=phase()['memory'] | {'peak': int(5e10)}), of)
  )
  assert '--config.micro_batches=4: 4 rows per chip' in found  # not searched: in proportion
  memory = phase()['memory'] | {'parameters': int(4e9), 'moments': int(8e9)}
  found = ' '.join(plan_report.advice(phase(fits=False, remat='full', memory=memory), of))
  assert (
    'fsdp=-1' in found and '12.0 GB on each become about 0.75' in found and 'remat' not in found
  )
  assert not any(
    'topology' in text for text in plan_report.advice(phase(), slices.parse_slice('v5e-256'))
  )


def test_bytes_are_read_from_refusals_of_the_compiler():
  used = (
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. '
    'Exceeded hbm capacity by 1.75G.'
  )
  assert plan._refused_bytes(RuntimeError(used)) == int(17.5 * 2**30)
  required = (
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries '
    '(128.00G) exceeds available HBM (15.75G).'
  )
  assert plan._refused_bytes(RuntimeError(required)) == 128 << 30
  assert plan._refused_bytes(RuntimeError('RESOURCE_EXHAUSTED: something else')) is None
  with pytest.raises(RuntimeError, match='INTERNAL'):
    plan._refused_bytes(RuntimeError('INTERNAL: something else'))


def test_the_search_finds_the_most_rows_with_few_compilations(monkeypatch):
  tried = []

  def search(fixed, each, budget, rows, reported=True):
    """Searches where each row needs `each` bytes and the rest `fixed`."""
    tried.clear()
    c = base.get_config()
    c.batch_size = rows * 16
    c = checked_pretraining(c)

    def compile_step(p, micro_batches):
      assert micro_batches == 1 and p.config.batch_size % 16 == 0
      tried.append(p.config.batch_size // 16)
      need = fixed + each * tried[-1]
      if need > 1.05 * budget:
        raise plan.jax.errors.JaxRuntimeError(
          f'RESOURCE_EXHAUSTED: Used {need / 2**30:.2f}G of {budget / 2**30:.2f}G hbm'
        )
      return need

    monkeypatch.setattr(plan.build, 'compile_step', compile_step)
    monkeypatch.setattr(plan.memory, 'peak_bytes', lambda compiled: compiled)
    monkeypatch.setattr(plan.partitioning, 'row_shards', lambda mesh: 16)
    monkeypatch.setattr(plan.partitioning, 'bytes_per_device', lambda shapes, shardings: fixed // 3)
    tree = types.SimpleNamespace(params=None, opt_state=None)

    class P(types.SimpleNamespace):
      def _replace(self, **fields):
        return P(**vars(self) | fields)

    p = P(config=c, layout=types.SimpleNamespace(mesh=None), shapes=tree, shardings=tree)
    return plan._find_largest(
      p,
      budget,
      1,
      fixed + each * rows if reported else None,
      plan.time.monotonic(),
      lambda text: None,
    )

  found = search(fixed=1 << 30, each=1 << 28, budget=15 << 30, rows=16)
  assert (
    48 <= found['rows_per_chip'] <= 56
    and found['batch'] == 16 * found['rows_per_chip']
    and found['compiles'] == len(tried) <= 2
  )
  found = search(fixed=1 << 30, each=1 << 30, budget=15 << 30, rows=13)
  assert found['rows_per_chip'] == 13 and not tried  # another row is not worth a compilation
  for reported in (True, False):  # whether the refusal has the bytes
    found = search(fixed=1 << 30, each=1 << 30, budget=15 << 30, rows=32, reported=reported)
    assert 12 <= found['rows_per_chip'] <= 14 and len(tried) <= (2 if reported else 3), found


#### The child process and whole plans ####


def test_mistakes_are_reported_before_compilation(monkeypatch, tmp_path):
  monkeypatch.setattr(plan, '_run_child', lambda request: pytest.fail('compiled'))
  c = tiny.get_config()
  with pytest.raises(UserError, match="--topology is 'v5e'; expected a TPU slice"):
    plan.plan(c, 'v5e', output=str(tmp_path))
  with pytest.raises(UserError, match='--price'):
    plan.plan_mode(c, 'v5e-4', price=-1, output=str(tmp_path))
  c.optimizer.warmup_steps = 10**9
  with pytest.raises(UserError, match='warmup'):
    plan.plan(c, 'v5e-4', output=str(tmp_path))
  with pytest.raises(UserError, match='budget_minutes is 10, which requires the devices'):
    c = tiny.get_config()
    c.budget_minutes = 10.0
    plan.plan(c, 'v5e-4', output=str(tmp_path))


def test_missing_libtpu_is_reported(monkeypatch, tmp_path):
  real = plan.importlib.util.find_spec
  monkeypatch.setattr(
    plan.importlib.util, 'find_spec', lambda name: None if name == 'libtpu' else real(name)
  )
  with pytest.raises(UserError, match=r'libtpu.*the extra tpu'):
    plan.plan(tiny.get_config(), 'v5e-4', output=str(tmp_path))


@pytest.mark.parametrize(
  'code, message',
  [
    (
      'os.kill(os.getpid(), 11)',
      r'crashed \(SIGSEGV\) while compiling the step; try another slice',
    ),
    ('os.kill(os.getpid(), 9)', r'crashed \(SIGKILL\) while compiling the step; free some memory'),
    (
      'raise RuntimeError("no such thing")',
      'failed while compiling the step: RuntimeError: no such thing; try another version',
    ),
  ],
)
def test_a_crash_of_the_compiler_is_reported_in_one_sentence(code, message, monkeypatch):
  real = subprocess.Popen
  script = (
    f'import os\nprint(\'{{"doing": "compiling the step"}}\', flush=True)\nprint("noise")\n{code}'
  )
  monkeypatch.setattr(
    plan.subprocess, 'Popen', lambda command, **kw: real([sys.executable, '-c', script], **kw)
  )
  with pytest.raises(UserError, match=message):
    plan._run_child({})


def test_the_child_is_killed_when_the_parent_is_interrupted(monkeypatch):
  children, real = [], subprocess.Popen

  def start(command, **kw):
    children.append(real([sys.executable, '-c', 'import time; time.sleep(60)'], **kw))
    return children[0]

  monkeypatch.setattr(plan.subprocess, 'Popen', start)
  monkeypatch.setattr(plan, '_follow', lambda child: (_ for _ in ()).throw(KeyboardInterrupt))
  with pytest.raises(KeyboardInterrupt):
    plan._run_child({})
  assert children[0].poll() == -signal.SIGKILL


@needs_libtpu
def test_the_plan_refuses_what_the_trainer_refuses():
  c = tiny.get_config()
  c.batch_size = 30
  with pytest.raises(UserError, match='config.batch_size 30 does not divide over 4 devices'):
    plan._run_child({'config': to_plain(c), 'topology': 'v5e-4', 'search': False})


def test_the_steps_of_a_budget_are_planned(monkeypatch):
  c = tiny.get_config()
  c.budget_tokens = 64 * 32 * 2_600.0
  monkeypatch.setattr(plan.slices, 'topology_devices', lambda of: jax.devices()[:1])
  monkeypatch.setattr(plan, '_plan_phase', lambda run, phase, *_: {'steps': phase.config.steps})
  c = checked_pretraining(c)
  run = ResolvedRun(c, phases_of(c))
  assert plan.compile_plan(run, slices.parse_slice('v5e-1'), False)['phases'] == [{'steps': 2_600}]


def test_phases_survive_the_way_to_the_child():
  plain = json.loads(json.dumps(to_plain(base_lamb.get_config())))
  c = checked_pretraining(from_plain(plain, PretrainingConfig))
  assert [p.config.batch_size for p in phases_of(c)] == [67_584, 27_648]


@pytest.fixture(scope='module')
def tiny_plan(tmp_path_factory):
  """Returns the plan of configs/tiny.py for a v5e-4, and what was printed."""
  folder, c = tmp_path_factory.mktemp('plan'), tiny.get_config()
  # Without a kernel, `dots` recomputes products of attention, which our count does not include.
  c.model.remat = 'none'
  with contextlib.redirect_stdout(io.StringIO()) as out:
    plan.plan(c, 'v5e-4', output=str(folder), price=1.2, search=False)
  return json.loads((folder / 'plan-v5e-4.json').read_text()), out.getvalue()


@needs_libtpu
def test_the_plan_of_tiny_adds_up(tiny_plan):
  found, _ = tiny_plan
  (step,) = found['phases']
  assert found['chips'] == 4 and found['mesh'] == {'data': 4, 'fsdp': 1, 'tensor': 1}
  assert (step['batch'], step['rows_per_chip'], step['micro_batches'], step['fits']) == (
    32,
    8,
    1,
    True,
  )
  memory = step['memory']
  assert (
    memory['parameters'] + memory['moments']
    < memory['peak']
    < 1e9
    < memory['budget']
    < memory['available']
  )
  assert step['flops']['compiler'] == pytest.approx(step['flops']['model'], rel=0.05)
  assert step['flops']['products'] == pytest.approx(step['flops']['model'], rel=0.005)
  assert 0 < step['mfu'] < 1 and step['seconds']['at_least'] < step['seconds']['in_turn']
  assert found['run']['dollars'][0] == pytest.approx(
    1.2 * 4 * 2500 * step['seconds']['at_least'] / 3600
  )


@needs_libtpu
def test_the_plan_of_tiny_moves_one_gradient_and_the_parameters(tiny_plan):
  (step,) = tiny_plan[0]['phases']

  def whole(*kinds):
    return sum(c['times'] * c['payload'] for c in step['collectives'] if c['kind'] in kinds)

  parameters = step['memory']['parameters']
  assert whole('all-reduce', 'reduce-scatter') == pytest.approx(parameters, rel=0.05)
  # Small parameters are not split, so they are not gathered.
  assert 0.5 * parameters < whole('all-gather') < 1.05 * parameters
  assert not any(c['looped'] for c in step['collectives']) and not whole('all-to-all')
  assert step['largest_array'] < 8 * 64 * 2000


@needs_libtpu
def test_the_plan_is_printed(tiny_plan):
  lines = tiny_plan[1].splitlines()
  labels = [line[2:14].strip() for line in lines if line.startswith('  ')]
  for label in (
    'slice',
    'mesh',
    'attention',
    'memory',
    'collectives',
    'FLOPs',
    'one step',
    'at best',
    'whole run',
    'written',
  ):
    assert label in labels, label
  assert (
    '4 chips of TPU v5e (2x2) on 1 host' in tiny_plan[1]
    and 'fits' in tiny_plan[1]
    and '$0.00' in tiny_plan[1]
  )


@needs_libtpu
def test_libtpu_has_every_kind_of_slice():
  # In a child process, since libtpu may abort.
  names = (
    'v4-8',
    'v4-64',
    'v5p-8',
    'v5p-32',
    'v5p-128',
    'v5e-1',
    'v5e-8',
    'v5e-256',
    'v6e-4',
    'v6e-64',
    '2xv5e-4',
    '3xv5p-16',
  )
  program = f"""
import os
os.environ.update({plan.CHILD!r})
from electra_jax.training import partitioning, slices
for name in {names!r}:
  of = slices.parse_slice(name)
  devices = slices.topology_devices(of)
  assert len(devices) == of.chips, (name, len(devices))
  # libtpu has machines of at most 4 chips.
  assert len({{d.process_index for d in devices}}) in (of.hosts, 2 * of.hosts), name
  shape = dict(partitioning.make_mesh(devices, tensor=min(2, of.chips)).shape)
  assert shape['data'] == of.chips // shape['tensor'], (name, shape)
"""
  done = subprocess.run(
    [sys.executable, '-c', program],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert done.returncode == 0, done.stderr[-2000:]

"""The smaller shipped configs compile for a v5e-4, fit, and move only what they should.

These are the long variants, run by `make test-tpu`. `make test` compiles tiny for a v5e-4 in
cli/plan_test.py and checks the collectives of every layout on CPU devices in
training/sharding_invariance_test.py.
"""

import concurrent.futures
import importlib.util
import math

import flax.linen as nn
import jax
import pytest

from configs import modern_small, small, tiny
from electra_jax import plan
from electra_jax.config import checked_pretraining, to_plain
from electra_jax.pretrain import build, pretrain_step

pytestmark = [
  pytest.mark.tpu,
  pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason="libtpu, TPU's compiler, is not installed"
  ),
]


def laid_out(**mesh):
  """Returns tiny with two layers and all parameters split over the mesh."""
  c = tiny.get_config()
  c.mesh.update(mesh)
  c.sharding.smallest = 0
  c.model.num_layers = 2
  return c


def unrolled(remat):
  """Returns tiny with unrolled layers, whose activations are most of the memory."""
  c = tiny.get_config()
  c.model.num_layers = c.model.scan_unroll = 4
  c.model.remat = remat
  c.batch_size, c.micro_batches = 2_048, 1
  return c


CONFIGS = {
  'unrolled': unrolled('none'),
  'recomputed': unrolled('full'),
  'small': small.get_config(),
  'modern_small': modern_small.get_config(),
  'fsdp': laid_out(data=2, fsdp=2),
  'tensor': laid_out(data=2, tensor=2),
}


@pytest.fixture(scope='module')
def compiled():
  """Returns the plan of the phase of each of CONFIGS, compiled two at a time."""

  def one(c):
    (found,) = plan._run_child({'config': to_plain(c), 'topology': 'v5e-4', 'search': False})[
      'phases'
    ]
    return found

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return dict(zip(CONFIGS, pool.map(one, CONFIGS.values()), strict=True))


def parameter_sizes(c) -> list[int]:
  """Returns the number of elements of every parameter."""
  model = build.build_model(checked_pretraining(c), c.data.vocab_size, 'cpu')
  return [
    math.prod(x.shape)
    for x in jax.tree.leaves(
      jax.eval_shape(lambda: nn.unbox(pretrain_step.init_params(model, 0, c.sequence_length)))
    )
  ]


def moved(found, *kinds) -> float:
  return sum(c['times'] * c['payload'] for c in found['collectives'] if c['kind'] in kinds)


@pytest.mark.parametrize('name', ['small', 'modern_small'])
def test_it_fits_without_micro_batches(name, compiled):
  found = compiled[name]
  assert (
    found['fits']
    and found['micro_batches'] == 1
    and found['rows_per_chip'] == CONFIGS[name].batch_size // 4
  )
  assert found['memory']['peak'] <= found['memory']['budget']


@pytest.mark.parametrize('name', ['small', 'modern_small'])
def test_the_plan_has_the_attention_kernel(name, compiled):
  assert compiled[name]['attention'] == 'pallas'


@pytest.mark.parametrize('name', ['small', 'modern_small'])
def test_data_parallel_sums_each_gradient_once_and_gathers_only_parameters(name, compiled):
  found, sizes = compiled[name], parameter_sizes(CONFIGS[name])
  whole = 4 * sum(sizes)
  assert moved(found, 'all-reduce', 'reduce-scatter') == pytest.approx(whole, rel=0.05)
  assert 0.9 * whole < moved(found, 'all-gather') <= whole
  assert moved(found, 'all-to-all', 'collective-permute', 'collective-broadcast') < 0.01 * whole
  assert not [c for c in found['collectives'] if c['looped']], (
    'a collective in the loop over layers'
  )
  for c in found['collectives']:
    if c['kind'] == 'all-gather':
      assert c['payload'] / 4 in sizes, f'{c["shape"]} is gathered but no parameter: {c["origin"]}'


@pytest.mark.parametrize('name', ['small', 'modern_small'])
def test_flops_equal_those_of_the_compiler(name, compiled):
  flops = compiled[name]['flops']
  assert flops['compiler'] == pytest.approx(flops['model'], rel=0.05) and flops[
    'products'
  ] == pytest.approx(flops['model'], rel=0.005)


@pytest.mark.parametrize('name', CONFIGS)
def test_there_is_no_array_of_batch_x_length_x_vocabulary(name, compiled):
  c, found = CONFIGS[name], compiled[name]
  on_a_chip = found['rows_per_chip'] * c.sequence_length * (c.data.vocab_size // c.mesh.tensor)
  assert found['largest_array'] < on_a_chip


def test_fully_sharded_runs_gather_only_parameters(compiled):
  c, found = CONFIGS['fsdp'], compiled['fsdp']
  sizes = parameter_sizes(c)
  # All layers of a parameter, or one.
  allowed = set(sizes) | {size // c.model.num_layers for size in sizes}
  for gathered in (x for x in found['collectives'] if x['kind'] == 'all-gather'):
    # In bfloat16 or float32, and over data or fsdp: half of what fsdp splits.
    parts = {gathered['payload'] / width * half for width in (2, 4) for half in (1, 2)}
    assert parts & allowed, (
      f'{gathered["shape"]} is gathered but no parameter: {gathered["origin"]}'
    )


def test_tensor_parallel_gathers_no_logits(compiled):
  c, found = CONFIGS['tensor'], compiled['tensor']
  logits = (
    found['rows_per_chip']
    * build.masking.max_predictions(c.objective.mask_rate, c.sequence_length)
    * c.data.vocab_size
  )
  sizes = parameter_sizes(c)
  assert logits > max(sizes)
  for gathered in (x for x in found['collectives'] if x['kind'] == 'all-gather'):
    assert gathered['payload'] < 2 * logits, f'{gathered["shape"]}: {gathered["origin"]}'


def test_unrolled_layers_that_are_recomputed_hold_less(compiled):
  none, full = (
    memory['peak'] - memory['parameters'] - memory['moments']
    for memory in (compiled[name]['memory'] for name in ('unrolled', 'recomputed'))
  )
  assert full < 0.6 * none

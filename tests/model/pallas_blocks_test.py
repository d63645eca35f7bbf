"""The model of a kernel's cost equals what is counted while its grid is executed."""

import collections
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax.model import pallas_attention, pallas_blocks
from electra_jax.model.pallas_attention import KernelSettings
from electra_jax.model.pallas_blocks import Blocks, Call, described_call

CASES = {
  'several rows and heads per step': ((4, 6, 16, 128), KernelSettings(0.1), None),
  'no dropout': ((1, 2, 16, 128), KernelSettings(), None),
  'a window': ((2, 1, 16, 256), KernelSettings(0.1, reach=20), Blocks(1, 1, 128, 256)),
  'blocks of queries': ((2, 3, 8, 256), KernelSettings(0.1), Blocks(1, 1, 128, 256)),
  'blocks of queries and keys': (
    (1, 2, 8, 512),
    KernelSettings(0.1, reach=9),
    Blocks(1, 1, 128, 384),
  ),
}


class Observer:
  """Counts what kernels do while they are interpreted.

  Attributes:
    products: dimensions (rows, contracted, columns) of each product that was executed.
    steps: places in the grid, in the order of execution.
    blocks: specs of the blocks, with the type of their array, of each call.
  """

  def __init__(self, monkeypatch):
    self.products = collections.defaultdict(list)
    self.steps = collections.defaultdict(list)
    self.blocks = {}
    self.scalars = {}
    self._call = ''
    self._dot, self._pallas_call = pallas_attention._dot, pallas_attention.pl.pallas_call
    monkeypatch.setattr(pallas_attention, '_dot', self.dot)
    monkeypatch.setattr(pallas_attention.pl, 'pallas_call', self.pallas_call)

  def dot(self, x, y, contracted, exact):
    rows, columns = x.shape[1 - contracted[0]], y.shape[1 - contracted[1]]
    dimensions, call = (rows, x.shape[contracted[0]], columns), self._call
    jax.debug.callback(lambda: self.products[call].append(dimensions))
    return self._dot(x, y, contracted, exact)

  def pallas_call(self, kernel, *, grid_spec, out_shape, name, **options):
    def observed(*refs):
      self._call = name
      ids = [pallas_attention.pl.program_id(axis) for axis in range(3)]
      jax.debug.callback(lambda *ids: self.steps[name].append(tuple(map(int, ids))), *ids)
      kernel(*refs)

    compute = self._pallas_call(
      observed, grid_spec=grid_spec, out_shape=out_shape, name=name, **options
    )

    def called(*arrays):
      scalars, inputs = arrays[: grid_spec.num_scalar_prefetch], arrays[len(arrays) - len(specs) :]
      self.scalars[name] = sum(x.nbytes for x in scalars)
      types = [x.dtype for x in (*inputs, *out_shape)]
      self.blocks[name] = list(zip((*specs, *grid_spec.out_specs), types, strict=True))
      return compute(*arrays)

    specs = grid_spec.in_specs
    return called

  def moved(self, name) -> int:
    """Bytes of the blocks whose place changed, in tiles of 8 x 128 (1 x 128 for single rows)."""
    total = self.scalars[name]
    for spec, dtype in self.blocks[name]:
      places = [tuple(map(int, spec.index_map(*ids))) for ids in self.steps[name]]
      changes = 1 + sum(a != b for a, b in itertools.pairwise(places))
      *leading, rows, lanes = spec.block_shape
      rows = rows if rows == 1 else -(-rows // 8) * 8
      total += changes * math.prod(leading) * rows * -(-lanes // 128) * 128 * dtype.itemsize
    return total


def executed(shape, computation):
  """A call of both passes, in the order of the grid."""
  rng = np.random.default_rng(0)
  query, key, value, gradient = jnp.asarray(rng.standard_normal((4, *shape)), jnp.float32)
  ids = jnp.ones((shape[0], shape[-1]), jnp.int32)
  words, heads = jnp.arange(shape[0], dtype=jnp.uint32), jnp.arange(shape[1])

  def attend(query, key, value):
    return pallas_attention.attend(computation, query, key, value, ids, words, heads)

  _, pullback = jax.vjp(attend, query, key, value)
  jax.block_until_ready(pullback(gradient))
  jax.effects_barrier()


def full(size) -> int:
  """The size in whole matrix units."""
  return -(-size // 128) * 128


@pytest.mark.parametrize('case', CASES)
def test_bytes_and_products_equal_those_counted_in_the_grid(case, monkeypatch):
  shape, computation, blocks = CASES[case]
  if blocks:
    monkeypatch.setattr(pallas_blocks, 'blocks_of', lambda *_: blocks)
  observer = Observer(monkeypatch)
  executed(shape, KernelSettings(computation.rate, computation.reach, interpret=True))
  for direction in ('forward', 'backward'):
    name = f'attention_{direction}'
    call = Call(direction, shape, 4, computation.rate, computation.reach)
    found = pallas_blocks.work(call, 128)
    grid = call.blocks().grid(shape)
    assert observer.steps[name] == list(itertools.product(*map(range, grid)))
    assert found.hbm == observer.moved(name)
    counted = observer.products[name]
    assert found.flops == 2 * sum(math.prod(dimensions) for dimensions in counted)
    padded = sum(-(-rows // 8) * 8 * full(size) * full(columns) for rows, size, columns in counted)
    assert found.padded_flops == 6 * 2 * padded


ELEMENTWISE = (
  'add sub mul max ge le eq and or xor shift_right_logical select_n reduce_max reduce_sum'
).split()
# Of these, only those to another width are work: integers only change their meaning.
CONVERSIONS = {'convert_element_type'}


def vector_operations(jaxpr, shape) -> int:
  """Operations on whole arrays of scores in a kernel."""
  count = 0
  for equation in jaxpr.eqns:
    for inner in jax.core.jaxprs_in_params(equation.params):
      count += vector_operations(inner, shape)
    operands = [x.aval for x in (*equation.invars, *equation.outvars) if hasattr(x, 'aval')]
    if not any(getattr(aval, 'shape', None) == shape for aval in operands):
      continue
    name = equation.primitive.name
    count += name in ELEMENTWISE
    count += name in CONVERSIONS and len({aval.dtype.itemsize for aval in operands}) == 2
  return count


@pytest.mark.parametrize('direction', ['forward', 'backward'])
@pytest.mark.parametrize('rate, reach', [(0.0, None), (0.1, None), (0.1, 5)])
def test_vector_operations_equal_those_of_the_kernel(direction, rate, reach):
  """Of one row and head, so that scores are one array of a shape that nothing else has."""
  shape = 1, 1, 16, 128
  call = Call(direction, shape, 2, rate, reach)
  array = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  integers = [jax.ShapeDtypeStruct(s, t) for s, t in (((1, 128), jnp.int32), ((1,), jnp.uint32))]

  def both(query, key, value, gradient, ids, words):
    def attend(query, key, value):
      here = KernelSettings(rate, reach, interpret=False)
      return pallas_attention.attend(here, query, key, value, ids, words, jnp.arange(1))

    return jax.vjp(attend, query, key, value)[1](gradient)

  traced = jax.make_jaxpr(both)(*[array] * 4, *integers)
  (kernel,) = (
    equation.params['jaxpr']
    for equation in traced.jaxpr.eqns
    if equation.params.get('name') == f'attention_{direction}'
  )
  registers = 128 // 8
  assert pallas_blocks.work(call, 128).vector == registers * vector_operations(kernel, (128, 128))


def test_a_description_in_a_program_is_read_back():
  for reach in (None, 64):
    call = Call('backward', (2, 3, 64, 128), 2, 0.1, reach)
    assert described_call(call.metadata()) == call


def test_the_bound_is_the_longest_part():
  rates = pallas_blocks.Rates(matrix_unit=128, flops=2.0, vector=4.0, hbm=8.0)
  found = pallas_blocks.bounds_in_seconds(pallas_blocks.Work(1, 1, 4, 4, 4), rates)
  assert found == {'products': 2.0, 'vector operations': 1.0, 'HBM': 0.5}

"""Attention in one Pallas kernel per pass for TPU, with dropout of the probabilities inside.

Scores, probabilities and masks exist only in the vector memory of a core. Both passes compute the
mask of dropout from counters (model/counter.py), so that nothing of it is stored, and it equals
that of XLA's attention bit for bit.

Arrays are `[batch, heads, head_size, length]`. A head has at most 128 elements and a row several
hundred positions: the positions, on the 128 lanes of a register, leave none of them empty. Scores
are held transposed, `[keys, queries]`, so that what belongs to a query (maximum, sum, state of the
hash) is a row that is broadcast over sublanes, and so that all products but those of `_scores` use
the operands as they are.

A step of the grid computes some queries of some heads of some rows with all their keys, which fit
(1,024 positions are 2 MiB of scores): the softmax needs no second pass.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from electra_jax.model import counter
from electra_jax.model.kernel_choice import LANES
from electra_jax.model.pallas_blocks import Blocks, Call

# Products of float32 arrays in several passes, and their operands, take more than the default of
# 16 MiB where rows are long.
_MEMORY_IN_FLOAT32 = 48 << 20
_HIDDEN = -0.7 * float(np.finfo(np.float32).max)  # a score; finite, so that no difference is NaN
_LOG2_E = math.log2(math.e)

Ref: TypeAlias = Any  # a block of an array in the memory of a core
Refs: TypeAlias = dict[str, Ref]
Index: TypeAlias = Any  # an integer, which may be traced, or a slice


@dataclasses.dataclass(frozen=True)
class KernelSettings:
  """What a kernel computes, apart from shapes.

  Attributes:
    rate: of dropout.
    reach: positions that a query attends to on each side; None for all.
    exact: whether products of float32 arrays are float32, not a single pass of bfloat16.
    name: of residuals, for policies of jax.checkpoint.
    interpret: how Pallas interprets the kernel, for tests; False on a TPU.
  """

  rate: float = 0.0
  reach: int | None = None
  exact: bool = True
  name: str = 'attention_residuals'
  interpret: Any = False


#### Inside the kernels ####


def _dot(x: jax.Array, y: jax.Array, contracted: tuple[int, int], exact: bool) -> jax.Array:
  """Product over one axis of each operand, accumulated in float32."""
  precision = jax.lax.Precision.HIGHEST if exact and x.dtype == jnp.float32 else None
  return jax.lax.dot_general(
    x,
    y,
    (((contracted[0],), (contracted[1],)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )


def _column(row: jax.Array) -> jax.Array:
  """`[1, n]` -> `[n, 1]`."""
  return jnp.broadcast_to(row, (8, row.shape[1])).T[:, :1]


class _Step:
  """A step of the grid: where its queries and keys are, and which pairs are visible or kept."""

  def __init__(self, refs: Refs, computation: KernelSettings, blocks: Blocks) -> None:
    self.refs, self.computation, self.blocks = refs, computation, blocks
    length = refs['key'].shape[-1]
    split = blocks.queries < length
    self.first_query: Index = pl.program_id(2) * blocks.queries if split else 0
    self.first_key: Index = 0
    self.queries: Index = slice(None)
    self.keys: Index = slice(None)
    if split:
      self.queries = pl.ds(pl.multiple_of(jnp.asarray(self.first_query), LANES), blocks.queries)
    if blocks.keys < length:
      before = (blocks.keys - blocks.queries) // 2
      first = jnp.clip(self.first_query - before, 0, length - blocks.keys)
      self.first_key = pl.multiple_of(first, LANES)
      self.keys = pl.ds(self.first_key, blocks.keys)

  def units(self) -> list[tuple[int, int]]:
    """The (row, head) of a block, which are computed one after the other."""
    return list(itertools.product(range(self.blocks.rows), range(self.blocks.heads)))

  def _positions(self) -> tuple[jax.Array, jax.Array]:
    """Positions of the keys, `[keys, 1]`, and of the queries, `[1, queries]`."""
    keys = jax.lax.broadcasted_iota(jnp.int32, (self.blocks.keys, 1), 0)
    queries = jax.lax.broadcasted_iota(jnp.int32, (1, self.blocks.queries), 1)
    return keys + self.first_key, queries + self.first_query

  def visible(self, row: int) -> jax.Array:
    """Which keys each query attends to, boolean `[keys, queries]`."""
    ids = self.refs['ids']
    visible: jax.Array = _column(ids[row, :, self.keys]) == ids[row, :, self.queries]
    reach = self.computation.reach
    if reach is None:
      return visible
    key, query = self._positions()
    # Two compares in one: without its sign, a negative number is a large one.
    ahead = (key - (query - reach)).astype(jnp.uint32)
    return jnp.logical_and(visible, ahead <= np.uint32(2 * reach))

  def kept(self, row: int, head: int) -> jax.Array:
    """Which probabilities are kept, boolean `[keys, queries]`."""
    of_row = self.refs['row_keys'][row + pl.program_id(0) * self.blocks.rows]
    of_head = self.refs['heads'][head + pl.program_id(1) * self.blocks.heads]
    key, query = (x.astype(jnp.uint32) for x in self._positions())
    states = counter.query_states(counter.fold_words(of_row, of_head.astype(jnp.uint32)), query)
    return counter.kept_mask(states, key, self.computation.rate)

  def scores(self, unit: Index, visible: jax.Array) -> jax.Array:
    """Scaled scores in units of log 2, `[keys, queries]`."""
    query, key = self.refs['query'][unit], self.refs['key'][(*unit, self.keys)]
    scale = np.float32(query.shape[0] ** -0.5 * _LOG2_E)
    scores = _dot(key, query, (0, 0), self.computation.exact) * scale
    return jnp.where(visible, scores, np.float32(_HIDDEN))


def _forward_kernel(refs: Refs, computation: KernelSettings, blocks: Blocks) -> None:
  """Outputs, and the logarithm (base 2) of the sum of the exponentials of each query's scores."""
  step = _Step(refs, computation, blocks)
  factor = 1 / (1 - computation.rate)
  visible = [step.visible(row) for row in range(blocks.rows)]
  for row, head in step.units():
    unit = (row, head, slice(None))
    value = refs['value'][(*unit, step.keys)]
    scores = step.scores(unit, visible[row])
    highest = scores.max(axis=0, keepdims=True)  # [1, queries]
    weights = jnp.exp2(scores - highest)
    total = weights.sum(axis=0, keepdims=True)  # before dropout
    if computation.rate:
      weights = jnp.where(step.kept(row, head), weights, np.float32(0))
    out = _dot(value, weights.astype(value.dtype), (1, 0), computation.exact)
    refs['out'][unit] = (out * (np.float32(factor) / total)).astype(value.dtype)
    refs['log'][unit] = highest + jnp.log2(total)


def _backward_kernel(refs: Refs, computation: KernelSettings, blocks: Blocks) -> None:
  """Gradients of query, key and value (Dao et al. 2022, appendix B.2, with dropout).

  With the probabilities P, the kept elements K and the factor c of dropout, the gradient of P is
  G = c K * (value^T gradient), and that of the scores P * (G - d). Here d is the sum of P * G over
  the keys of a query, which is also the product of output and gradient. The factors of dropout and
  of the scores are applied to the results.
  """
  step = _Step(refs, computation, blocks)
  rate, exact = computation.rate, computation.exact
  factor = 1 / (1 - rate)
  by = np.float32(factor * refs['query'].shape[-2] ** -0.5)
  visible = [step.visible(row) for row in range(blocks.rows)]
  for row, head in step.units():
    unit = (row, head, slice(None))
    query, gradient = refs['query'][unit], refs['gradient'][unit]
    key, value = (refs[name][(*unit, step.keys)] for name in ('key', 'value'))
    weights = jnp.exp2(step.scores(unit, visible[row]) - refs['log'][unit])
    of_weights = _dot(value, gradient, (0, 0), exact)
    products = gradient.astype(jnp.float32) * refs['out'][unit].astype(jnp.float32)
    inner = products.sum(axis=0, keepdims=True) * np.float32(1 - rate)  # [1, queries]
    dropped = weights
    if rate:
      kept = step.kept(row, head)
      of_weights, dropped = (jnp.where(kept, x, np.float32(0)) for x in (of_weights, weights))
    of_scores = (weights * (of_weights - inner)).astype(query.dtype)
    of_query = _dot(key, of_scores, (1, 0), exact)  # [head_size, queries]
    refs['of_query'][unit] = (of_query * by).astype(query.dtype)
    of_key = _dot(query, of_scores, (1, 1), exact)  # [head_size, keys]
    of_value = _dot(gradient, dropped.astype(gradient.dtype), (1, 1), exact)
    _write(refs, 'of_key', of_key, by, unit, step.keys)
    _write(refs, 'of_value', of_value, np.float32(factor), unit, step.keys)


def _write(
  refs: Refs, name: str, result: jax.Array, by: np.float32, unit: Index, keys: Index
) -> None:
  """Writes a gradient of keys or values, which may be the sum over several blocks of queries."""
  ref = refs[name]
  if f'{name}_sum' not in refs:
    ref[unit] = (result * by).astype(ref.dtype)
    return
  total = refs[f'{name}_sum']

  @pl.when(pl.program_id(2) == 0)
  def _() -> None:
    total[unit] = jnp.zeros_like(total[unit])

  total[(*unit, keys)] += result

  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _() -> None:
    ref[unit] = (total[unit] * by).astype(ref.dtype)


#### The calls ####


Array: TypeAlias = jax.Array | jax.ShapeDtypeStruct

# Kinds of blocks by the names of the arrays; others are of keys.
_KINDS = {
  'ids': 'ids',
  'log': 'log',
  'query': 'query',
  'out': 'query',
  'gradient': 'query',
  'of_query': 'query',
}


def _block(name: str, blocks: Blocks, shape: tuple[int, ...]) -> pl.BlockSpec:
  """The block of an array in a step of the grid (row, head, block of queries)."""
  size, length = shape[2:]
  rows, heads, queries, _ = blocks

  def at_queries(row: Index, head: Index, block: Index, *_: Index) -> tuple[Index, ...]:
    return row, head, 0, block

  def whole(row: Index, head: Index, block: Index, *_: Index) -> tuple[Index, ...]:
    return row, head, 0, 0

  def of_row(row: Index, *_: Index) -> tuple[Index, ...]:
    return row, 0, 0

  return {
    'ids': pl.BlockSpec((rows, 1, length), of_row),
    'query': pl.BlockSpec((rows, heads, size, queries), at_queries),
    'key': pl.BlockSpec((rows, heads, size, length), whole),
    'log': pl.BlockSpec((rows, heads, 1, queries), at_queries),
  }[_KINDS.get(name, 'key')]


def _call(
  kernel: Callable[[Refs, KernelSettings, Blocks], None],
  computation: KernelSettings,
  scalars: dict[str, jax.Array],
  inputs: dict[str, jax.Array],
  outputs: dict[str, Array],
) -> list[jax.Array]:
  """Calls a kernel.

  Args:
    kernel: the function of a step.
    computation: what it computes.
    scalars: arrays that are held in the memory of scalars, by name.
    inputs: arrays by name.
    outputs: their shapes and types, by name.
  """
  query = inputs['query']
  direction = kernel.__name__.strip('_').removesuffix('_kernel')
  call = Call(direction, query.shape, query.dtype.itemsize, computation.rate, computation.reach)
  blocks = call.blocks()
  names = [*scalars, *inputs, *outputs]
  sums = [f'{name}_sum' for name in outputs if name in ('of_key', 'of_value')]
  if blocks.queries == query.shape[-1]:
    sums = []
  total = pltpu.VMEM((blocks.rows, blocks.heads, *query.shape[2:]), jnp.float32)

  def step(*refs: Ref) -> None:
    kernel(dict(zip(names + sums, refs, strict=True)), computation, blocks)

  compute = pl.pallas_call(
    step,
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs.values()],
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=blocks.grid(query.shape),
      in_specs=[_block(name, blocks, query.shape) for name in inputs],
      out_specs=[_block(name, blocks, query.shape) for name in outputs],
      scratch_shapes=[total] * len(sums),
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'arbitrary'),
      vmem_limit_bytes=_MEMORY_IN_FLOAT32 if query.dtype == jnp.float32 else None,
    ),
    interpret=computation.interpret,
    name=f'attention_{call.direction}',
    metadata=call.metadata(),
  )
  found: list[jax.Array] = compute(*scalars.values(), *inputs.values())
  return found


Saved = tuple[jax.Array, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
  computation: KernelSettings,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segment_ids: jax.Array,
  row_keys: jax.Array,
  heads: jax.Array,
) -> jax.Array:
  """Attention of the rows and heads of one device.

  Args:
    computation: what is computed.
    query: not scaled, `[batch, heads, head_size, length]`.
    key: of the same type and shape.
    value: of the same type and shape.
    segment_ids: int32 `[batch, length]`.
    row_keys: of `counter.row_keys`, uint32 `[batch]`.
    heads: int32 `[heads]`, their numbers among the heads of all devices.

  Returns:
    `[batch, heads, head_size, length]`.
  """
  return _forward(computation, query, key, value, segment_ids, row_keys, heads)[0]


def _forward(computation: KernelSettings, *given: jax.Array) -> tuple[jax.Array, Saved]:
  query, key, value, segment_ids, row_keys, heads = given
  batch, count, _, length = query.shape
  out, log = _call(
    _forward_kernel,
    computation,
    {'row_keys': row_keys, 'heads': heads},
    {'ids': segment_ids[:, None], 'query': query, 'key': key, 'value': value},
    {'out': query, 'log': jax.ShapeDtypeStruct((batch, count, 1, length), jnp.float32)},
  )
  out, log = (checkpoint_name(x, computation.name) for x in (out, log))
  return out, (*given, out, log)


def _backward(
  computation: KernelSettings, saved: Saved, gradient: jax.Array
) -> tuple[jax.Array | None, ...]:
  query, key, value, segment_ids, row_keys, heads, out, log = saved
  arrays = {'query': query, 'key': key, 'value': value}
  results: dict[str, Array] = {f'of_{name}': array for name, array in arrays.items()}
  gradients = _call(
    _backward_kernel,
    computation,
    {'row_keys': row_keys, 'heads': heads},
    {'ids': segment_ids[:, None], **arrays, 'out': out, 'log': log, 'gradient': gradient},
    results,
  )
  return (*gradients, None, None, None)


attend.defvjp(_forward, _backward)

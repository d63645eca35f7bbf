"""The blocks of the kernels of model/pallas_attention.py, and what they compute and move.

A compiler does not see inside a kernel. The plan therefore uses this model: its time is the longest
of those of matrix products, vector operations and memory traffic, as if these overlapped perfectly.
Nothing of it was measured on a chip.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from electra_jax.model.kernel_choice import LANES, PALLAS_WHOLE_ROWS

_QUERIES_IN_WINDOW = 256
# (row, head) of a step at most, which are unrolled, and scores of a step if one of them has fewer.
_UNITS = 12
_SCORES = _UNITS * 128 * 128


class Blocks(NamedTuple):
  """What a step of the grid computes.

  Attributes:
    rows: rows of the batch.
    heads: heads.
    queries: positions whose outputs are computed.
    keys: positions that these attend to, a part of the row where a window is narrow.
  """

  rows: int
  heads: int
  queries: int
  keys: int

  def grid(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Steps over rows, heads and queries of arrays `[batch, heads, head_size, length]`."""
    batch, heads, _, length = shape
    return batch // self.rows, heads // self.heads, length // self.queries


def _largest_divisor(number: int, most: int, multiple: int = 1) -> int:
  """The largest divisor of a number that is a multiple and not above `most`; 0 if none is."""
  divisors = (n for n in range(multiple, most + 1, multiple) if number % n == 0)
  return max(divisors, default=0)


def blocks_of(shape: tuple[int, ...], reach: int | None) -> Blocks:
  """The blocks of a kernel.

  Args:
    shape: of the queries, `[batch, heads, head_size, length]`.
    reach: positions that a query attends to on each side; None for all.
  """
  batch, heads, _, length = shape
  queries, keys = length, length
  if length > PALLAS_WHOLE_ROWS:
    queries = _largest_divisor(length, PALLAS_WHOLE_ROWS, LANES)
    narrow = _largest_divisor(length, _QUERIES_IN_WINDOW, LANES)
    visited = narrow + 2 * -(-(reach or 0) // LANES) * LANES
    if reach is not None and visited < length:
      queries, keys = narrow, visited
  units = min(_UNITS, max(1, _SCORES // (queries * keys)))
  heads_of_step = _largest_divisor(heads, units)
  return Blocks(_largest_divisor(batch, units // heads_of_step), heads_of_step, queries, keys)


class Call(NamedTuple):
  """A call of a kernel, as the compiled program describes it.

  Attributes:
    direction: 'forward' or 'backward'.
    shape: of the queries, `[batch, heads, head_size, length]`.
    itemsize: bytes of an element.
    rate: of dropout.
    reach: positions that a query attends to on each side; None for all.
  """

  direction: str
  shape: tuple[int, ...]
  itemsize: int
  rate: float = 0.0
  reach: int | None = None

  def blocks(self) -> Blocks:
    """What a step computes."""
    return blocks_of(self.shape, self.reach)

  def metadata(self) -> dict[str, str]:
    """The description that the compiled program contains."""
    return {
      'direction': self.direction,
      'shape': ','.join(map(str, self.shape)),
      'itemsize': str(self.itemsize),
      'rate': str(self.rate),
      'reach': '' if self.reach is None else str(self.reach),
    }


def described_call(metadata: Mapping[str, str]) -> Call:
  """The call of a description in a compiled program."""
  return Call(
    metadata['direction'],
    tuple(map(int, metadata['shape'].split(','))),
    int(metadata['itemsize']),
    float(metadata['rate']),
    int(metadata['reach']) if metadata['reach'] else None,
  )


#### Costs ####

SUBLANES = 8  # of a register of 32-bit numbers, beside LANES
# Passes of a product of float32 arrays in a matrix unit for bfloat16.
_PASSES = 6
# Vector operations per score. `exp2` is of another unit, and `convert` is to the type of products.
_OF_ROW = {'segments': 1, 'window': 3}  # of the mask of what is visible, which the heads share
_HASH = 8  # add, two of (shift, xor, multiply), compare
_FORWARD = 6  # scale, select, maximum, subtract, sum, convert
_BACKWARD = 7  # scale, select, subtract; subtract, multiply; two of convert
_SELECTS = {'forward': 1, 'backward': 2}  # of what is kept


class Work(NamedTuple):
  """What a call of a kernel computes and moves.

  Attributes:
    flops: of its matrix products, without padding.
    kept_flops: of those that attention outside of a kernel has as well. It keeps the probabilities,
      of which the backward pass of a kernel computes the scores again.
    padded_flops: with contracted dimensions and columns rounded up to those of the matrix unit, and
      rows, which stream through it, to those of a register.
    vector: operations on registers of 8 x 128 numbers.
    hbm: bytes that are read and written, blocks that are read again included.
  """

  flops: float
  kept_flops: float
  padded_flops: float
  vector: float
  hbm: float


class Rates(NamedTuple):
  """What a chip does per second.

  Attributes:
    matrix_unit: rows and columns of a matrix unit.
    flops: of matrix products.
    vector: operations on registers.
    hbm: bytes.
  """

  matrix_unit: int
  flops: float
  vector: float
  hbm: float


def _rounded(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple


def products(call: Call, blocks: Blocks) -> list[tuple[int, int, int]]:
  """Dimensions (rows, contracted, columns) of the products of a (row, head) in a step."""
  size = call.shape[2]
  scores = (blocks.keys, size, blocks.queries)
  if call.direction == 'forward':
    return [scores, (size, blocks.keys, blocks.queries)]
  of_keys = (size, blocks.queries, blocks.keys)
  return [scores, scores, (size, blocks.keys, blocks.queries), of_keys, of_keys]


def _vector(call: Call, blocks: Blocks) -> int:
  """Operations on registers in a step, of arrays of scores only."""
  registers = math.ceil(blocks.keys / SUBLANES) * math.ceil(blocks.queries / LANES)
  of_row = _OF_ROW['segments'] + (_OF_ROW['window'] if call.reach is not None else 0)
  forward = call.direction == 'forward'
  # Nothing is converted for products of float32 arrays.
  converts = (1 if forward else 2) if call.itemsize == 4 else 0
  of_unit = (_FORWARD if forward else _BACKWARD) - converts
  if call.rate:
    of_unit += _HASH + _SELECTS[call.direction]
  return registers * blocks.rows * (of_row + blocks.heads * of_unit)


def _hbm(call: Call, blocks: Blocks) -> int:
  """Bytes between HBM and the memory of a core.

  A block whose place does not change from one step to the next is not moved again.
  """
  batch, heads, size, length = call.shape
  rows, of_heads, of_queries = blocks.grid(call.shape)
  units = blocks.rows * blocks.heads

  def array(positions: int) -> int:
    return units * _rounded(size, SUBLANES) * _rounded(positions, LANES) * call.itemsize

  of_query = 2 if call.direction == 'forward' else 4  # query, out; gradient, of_query
  of_key = 2 if call.direction == 'forward' else 4  # key, value; of_key, of_value
  every_step = of_query * array(blocks.queries) + 4 * units * _rounded(blocks.queries, LANES)
  of_row = 4 * blocks.rows * _rounded(length, LANES)  # segments
  moved = rows * (of_row + of_heads * (of_key * array(length) + of_queries * every_step))
  return moved + 4 * (batch + heads)  # with the words of the counters


def work(call: Call, matrix_unit: int) -> Work:
  """What a call computes and moves.

  Args:
    call: of a kernel.
    matrix_unit: rows and columns of a matrix unit, to which dimensions are rounded up.
  """
  blocks = call.blocks()
  steps = math.prod(blocks.grid(call.shape))
  units = steps * blocks.rows * blocks.heads
  dimensions = products(call, blocks)
  passes = _PASSES if call.itemsize == 4 else 1
  padded = sum(
    _rounded(rows, SUBLANES) * _rounded(contracted, matrix_unit) * _rounded(columns, matrix_unit)
    for rows, contracted, columns in dimensions
  )
  again = 0 if call.direction == 'forward' else 1
  return Work(
    flops=2.0 * units * sum(math.prod(d) for d in dimensions),
    kept_flops=2.0 * units * sum(math.prod(d) for d in dimensions[again:]),
    padded_flops=2.0 * units * passes * padded,
    vector=float(steps * _vector(call, blocks)),
    hbm=float(_hbm(call, blocks)),
  )


def bounds_in_seconds(found: Work, rates: Rates) -> Mapping[str, float]:
  """Seconds by what takes them; the kernel takes at least the longest."""
  return {
    'products': found.padded_flops / rates.flops,
    'vector operations': found.vector / rates.vector,
    'HBM': found.hbm / rates.hbm,
  }

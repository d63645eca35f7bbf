"""Batches of rows of different lengths, for prediction: how many rows, padded to which length.

Each shape of a batch is a program, which takes seconds to compile, and each token of padding is
computed in vain. Batches are chosen so that the sum of both costs is least, in units of the
computation of one token:

- tokens, padding included, and a constant per batch,
- for each shape that is not compiled yet, a part of what its compilation costs: programs serve
  later calls too and, in config.compilation_cache, later processes.

Padding that earlier calls computed for the lack of a better shape lowers the second cost. Calls
that repeat therefore compile the shapes that fit them, after as much wasted time as compilation
takes (the rule of the ski rental problem, Karlin et al. 1988), and one call compiles little. A
single row has the next power of two at once: whoever asks for one text after the other waits for
few programs, and for less than twice its tokens.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SHORTEST = 16
# Tokens per device and batch, by platform; ACCELERATOR_TOKENS on all others. On a CPU the
# activations of more tokens do not fit its caches.
BATCH_TOKENS = {'cpu': 2_048}
ACCELERATOR_TOKENS = 32_768
# Start of a batch and its way to the device and back, as tokens.
_BATCH = 48
# FLOPs that a platform computes in a quarter of the time that a program takes to compile.
_PROGRAM_FLOPS = {'cpu': 2e10}
_ACCELERATOR_PROGRAM_FLOPS = 2e13


class Shape(NamedTuple):
  """Rows and length of a batch."""

  rows: int
  length: int


class PlannedBatch(NamedTuple):
  """Some of the given rows, and the shape that they are padded to.

  Attributes:
    rows: indices, int64 `[at most shape.rows]`.
    shape: of the batch.
  """

  rows: np.ndarray
  shape: Shape


def batch_tokens(platform: str) -> int:
  """Tokens per device and batch, padding included, on a platform."""
  return BATCH_TOKENS.get(platform, ACCELERATOR_TOKENS)


def program_tokens(platform: str, flops_per_token: float) -> float:
  """The cost of a program's compilation, in tokens.

  Args:
    platform: 'cpu', 'gpu' or 'tpu'.
    flops_per_token: of the model's forward pass.
  """
  flops = _PROGRAM_FLOPS.get(platform, _ACCELERATOR_PROGRAM_FLOPS)
  return flops / max(flops_per_token, 1.0)


def powers_of_two(longest: int) -> tuple[int, ...]:
  """Lengths of rows: powers of two from 16 below `longest`, and `longest`."""
  lengths = [SHORTEST]
  while lengths[-1] < longest:
    lengths.append(2 * lengths[-1])
  return (*lengths[:-1], longest)


def rounded_up(length: int) -> int:
  """The next of 4, 8, 12, ... 64, 72, 80, ... 128, 144, ...: eight to a power of two beyond 32.

  There are few of these, which bounds the number of programs: 24 lengths up to 128, 40 up to 512.
  """
  step = max(4, 1 << max((length - 1).bit_length() - 4, 0))
  return -(-length // step) * step


@dataclasses.dataclass(eq=False)
class BatchPlanner:
  """Chooses the batches of each call, and remembers which shapes are compiled.

  It depends only on the lengths of the rows of all calls, so that all processes of a run choose the
  same batches. Where it does not remember, it depends only on those of one call, so that a resumed
  run computes the same numbers.

  Attributes:
    lengths: that rows may be padded to, ascending, the last one for the longest rows.
    tokens: most tokens of a batch, padding included, unless a single row per shard has more.
    shards: devices that rows are split over; the rows of a batch are a multiple.
    program: the cost of a compilation, in tokens.
    between: whether the lengths of `rounded_up` may be used, too.
    remember: whether earlier calls count.
    compiled: shapes that were used.
  """

  lengths: tuple[int, ...]
  tokens: int
  shards: int = 1
  program: float = 0.0
  between: bool = True
  remember: bool = True
  compiled: set[Shape] = dataclasses.field(default_factory=set)
  _wasted: float = 0.0

  def plan(self, lengths: np.ndarray) -> list[PlannedBatch]:
    """The batches of some rows, each row in one of them, the shortest rows first.

    Args:
      lengths: tokens of each row, int64 `[rows]`, none above the last of `self.lengths`.
    """
    if not len(lengths):
      return []
    if len(lengths) == 1 and (shape := self._row_that_fits(int(lengths[0]))):
      self._wasted += shape.length - int(lengths[0])
      return [PlannedBatch(np.zeros(1, np.int64), shape)]
    order = np.argsort(lengths, kind='stable')
    shapes = self._shapes(lengths[order])
    found = list(_cut(order, shapes))
    if not self.remember:
      return found
    chosen = {shape for _, shape in shapes}
    padded = sum(batch.shape.rows * batch.shape.length for batch in found)
    if not chosen <= self.compiled:
      self._wasted = 0.0
    self._wasted += padded - int(lengths.sum())
    self.compiled |= chosen
    return found

  def _row_that_fits(self, length: int) -> Shape | None:
    """The shape of a single row, if it is compiled and no other one could be shorter.

    It is what `_shapes` finds, in a twentieth of a millisecond less: one text after the other is
    predicted in about one.
    """
    if not (self.remember and self.between and self.shards == 1):
      return None
    shape = Shape(1, min(rounded_up(length), self.lengths[-1]))
    return shape if shape in self.compiled else None

  def _candidates(self, ascending: np.ndarray) -> list[int]:
    """Lengths that rows of these lengths may be padded to."""
    longest = self.lengths[-1]
    fitting = {min(rounded_up(int(n)), longest) for n in np.unique(ascending)}
    compiled = {shape.length for shape in self.compiled}
    possible = {*self.lengths, *(fitting if self.between else ()), *compiled}
    shortest = int(ascending[0])
    # Of the lengths above the longest row any may be compiled already.
    return sorted(length for length in possible if length >= shortest)

  def _shapes(self, ascending: np.ndarray) -> list[tuple[int, Shape]]:
    """The number of rows of each bucket, in ascending order of the rows, and the shape it has.

    The least cost for the rows up to each candidate length, by dynamic programming.
    """
    candidates = self._candidates(ascending)
    below = [0, *np.searchsorted(ascending, candidates, 'right').tolist()]
    costs = [0.0]
    last: list[tuple[int, Shape | None]] = [(0, None)]
    for end, length in enumerate(candidates, 1):
      best: tuple[float, int, Shape | None] = (np.inf, 0, None)
      for start in range(end):
        rows = below[end] - below[start]
        cost, shape = self._cheapest(rows, length) if rows else (0.0, None)
        if costs[start] + cost < best[0]:
          best = (costs[start] + cost, start, shape)
      costs.append(best[0])
      last.append(best[1:])
    # Lengths above the first that holds all rows compete with it.
    end = min(
      (i for i in range(len(costs)) if below[i] == len(ascending)), key=lambda i: (costs[i], i)
    )
    found: list[tuple[int, Shape]] = []
    while end:
      start, shape = last[end]
      if shape is not None:
        found.append((below[end] - below[start], shape))
      end = start
    return found[::-1]

  def _cheapest(self, rows: int, length: int) -> tuple[float, Shape]:
    """The least cost of some rows of at most `length` tokens, and the shape of their batches."""
    per_program = self.program
    if self.remember and rows <= self.shards and length in self.lengths:
      per_program = 0.0
    best: tuple[float, Shape] | None = None
    size = self.shards
    while True:
      shape = Shape(size, length)
      cost: float = -(-rows // size) * (size * length + _BATCH)
      if shape not in self.compiled:
        cost += max(per_program - self._wasted, 0.0)
      if best is None or cost < best[0]:
        best = cost, shape
      size *= 2
      if size * length > self.tokens * self.shards or size >= 2 * rows * self.shards:
        return best


def _cut(order: np.ndarray, shapes: list[tuple[int, Shape]]) -> Iterator[PlannedBatch]:
  """Cuts sorted rows into batches of the shapes of their buckets."""
  first = 0
  for count, shape in shapes:
    end = first + count
    for start in range(first, end, shape.rows):
      yield PlannedBatch(order[start : min(start + shape.rows, end)], shape)
    first = end

"""The series: what grows, with what, and how much growth the design explains."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from growing import steps

Point = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Quantity:
  """Something that is measured at each point.

  Attributes:
    key: in the results.
    title: in the table.
    unit: 's' or 'B', of the numbers in the results.
    expected: the largest exponent that the design explains.
  """

  key: str
  title: str
  unit: str
  expected: float = 1.0


@dataclasses.dataclass(frozen=True)
class Series:
  """Points that differ in one size.

  Attributes:
    name: of the series.
    part: what measures it, a key of PARTS.
    title: of the size, in the table.
    unit: after sizes in the table.
    key: of the size, in the points.
    sizes: its values, ascending.
    quantities: what is measured.
    others: more values of each point.
    reason: why it grows so, or what was found.
  """

  name: str
  part: str
  title: str
  unit: str
  key: str
  sizes: tuple[float, ...]
  quantities: tuple[Quantity, ...]
  others: Point = dataclasses.field(default_factory=dict)
  reason: str = ''

  def points(self) -> list[Point]:
    """What is measured, one value of the size after the other."""
    return [{**self.others, self.key: size} for size in self.sizes]


@dataclasses.dataclass(frozen=True)
class Part:
  """A program that measures points.

  Attributes:
    function: module and name.
    together: whether it takes all points of a series at once, and returns a list.
    flags: XLA_FLAGS of the process.
    base: values of a point that does not state them, so that series share a point.
  """

  function: str
  together: bool = False
  flags: str = ''
  base: Point = dataclasses.field(default_factory=dict)

  def load(self) -> Callable[[Any], Any]:
    """The function."""
    module, _, name = self.function.partition(':')
    found: Callable[[Any], Any] = getattr(importlib.import_module(f'growing.{module}'), name)
    return found


HOST_DEVICES = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
PARTS = {
  'step': Part('steps:measure', base=steps.BASE),
  'communication': Part('communication:measure', together=True, flags=HOST_DEVICES),
  'preparation': Part('preparing:measure'),
  'near-duplicates': Part('preparing:compare'),
  'files': Part('preparing:reopen'),
  'checkpoint': Part('saving:measure'),
  'evaluation': Part('evaluating:measure'),
  'start': Part('starting:measure', together=True),
}


def _step(expected: float) -> tuple[Quantity, ...]:
  return (
    Quantity('processor', 'a step, processor', 's', expected),
    Quantity('memory', 'memory of the compiled step', 'B', expected),
  )


_SENT = (
  Quantity('sent', 'sent by each device in a step', 'B', 0.6),
  Quantity('payload', 'arrays that take part', 'B', 0.0),
)
_PREPARED = (
  Quantity('processor', 'preparation, processor', 's'),
  Quantity('memory', 'most memory of a process', 'B'),
)

SERIES = (
  Series(
    *('batch', 'step', 'rows of a batch', ''),
    *('batch', (8, 16, 32, 64), _step(1)),
    reason='The update of the parameters is the constant.',
  ),
  Series(
    *('length', 'step', 'tokens of a row', ''),
    *('length', (64, 128, 256, 512), _step(2)),
    reason='Attention is quadratic, everything else linear.',
  ),
  Series(
    *('width', 'step', 'hidden size', ''),
    *('width', (64, 128, 256), _step(2)),
    reason='Kernels have width x width elements; activations grow linearly.',
  ),
  Series(*('layers', 'step', 'layers', ''), *('layers', (2, 4, 8, 16), _step(1))),
  Series(
    *('vocabulary', 'step', 'tokens of the vocabulary', ''),
    *('vocabulary', (8_000, 32_000, 64_000, 128_000), _step(1)),
    reason='Logits exist at masked positions only.',
  ),
  *(
    Series(
      *(f'communication-{axis}', 'communication', f'devices along `{axis}`', ''),
      *('devices', (2, 4, 8), _SENT),
      others={'axis': axis},
      reason='Rings send less than twice the arrays, however many devices there are.',
    )
    for axis in ('data', 'fsdp', 'tensor')
  ),
  Series(
    *('corpus', 'preparation', 'text', 'MB'),
    *('megabytes', (16, 32, 64, 128), _PREPARED),
    others={'processes': 1},
  ),
  Series(
    *('processes', 'preparation', 'processes, a core for each', ''),
    *('processes', (1, 2)),
    (
      Quantity('processor', 'preparation of 128 MB, processor', 's', 0.2),
      Quantity('clock', 'the same, clock', 's', -0.3),
    ),
    reason='Two cores are busy at both points, since cores that are busy together are slower. '
    'Starting two workers takes 0.9 s of processor time, for 16 MB as for 64.',
    others={'megabytes': 128, 'busy': 2},
  ),
  Series(
    *('documents', 'near-duplicates', 'documents that are compared', ''),
    *('documents', (1_000, 2_000, 4_000, 8_000), _PREPARED),
    others={'repeated': 0.5},
  ),
  Series(
    *('files', 'files', 'files of a prepared corpus', ''),
    *('files', (100, 400, 1_600, 6_400), (Quantity('processor', 'finding it again', 's'),)),
  ),
  Series(
    *('parameters', 'checkpoint', 'parameters', ''),
    *('parameters', (2**23, 2**24, 2**25, 2**26)),
    (
      Quantity('blocking', 'training waits, clock', 's'),
      Quantity('processor', 'saving, processor', 's'),
      Quantity('restore', 'restoring, processor', 's'),
      Quantity('disk', 'files', 'B'),
      Quantity('memory', 'memory beside the state', 'B'),
    ),
    reason='One copy of the state is made, so that training continues while it is written.',
  ),
  Series(
    *('rows', 'evaluation', 'held-out rows', ''),
    *('rows', (4_096, 8_192, 16_384)),
    (
      Quantity('processor', 'evaluation, processor', 's'),
      Quantity('memory', 'memory that it adds', 'B', 0.0),
    ),
    reason='The memory is that of 1,000 bootstrap samples of at most 256 groups of rows.',
  ),
  Series(
    *('start', 'start', 'training rows', 'GB'),
    *('gigabytes', (0.004, 0.064, 1, 16)),
    (
      Quantity('processor', 'start to first step, processor', 's', 0.0),
      Quantity('memory', 'most memory', 'B', 0.0),
      Quantity('first', 'first start, processor', 's'),
    ),
    reason='The first start checks at most 2 GB before it trains, and the rest in the background.',
  ),
)

"""TPU slices by name: their chips, the network between these, and the peak rates of a chip."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax

from electra_jax.errors import UserError
from electra_jax.model.pallas_blocks import Rates

VECTOR_SLOTS = 4  # operations on registers per cycle, by the schedules that libtpu 0.0.42 reports


class Chip(NamedTuple):
  """A generation of TPU, by the manufacturer's numbers.

  Attributes:
    name: of the generation.
    compiler: its name in topologies of libtpu.
    cores: TensorCores per chip. Names of slices count cores where there are two.
    flops: bfloat16 FLOPs per second.
    hbm: bytes of memory that a program can use.
    hbm_bandwidth: bytes per second.
    link: bytes per second over one link to a neighbor, in one direction.
    ring: an axis is a ring if its length is a multiple of this number of chips.
    dcn: bytes per second and chip over the data center network; 0 if not stated.
    chips_per_host: chips of one machine.
    matrix_unit: rows and columns of a matrix unit.
    clock: cycles per second.
  """

  name: str
  compiler: str
  cores: int
  flops: float
  hbm: int
  hbm_bandwidth: float
  link: float
  ring: int
  dcn: float
  chips_per_host: int
  matrix_unit: int
  clock: float

  @property
  def kernel_rates(self) -> Rates:
    """What the chip does per second, for the models of kernels."""
    vector = self.cores * VECTOR_SLOTS * self.clock
    return Rates(self.matrix_unit, self.flops, vector, self.hbm_bandwidth)


# Peaks, bandwidths and chips per host: cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e.
# Links: the stated all-reduce bandwidth of a pod over its chips and their ports (v5e 51.2 TB/s over
# 256 x 4, v6e 102.4 TB/s over 256 x 4); half of the stated 1,200 GB/s in both directions over 6
# ports (v5p); 50 GB/s (v4: Jouppi et al. 2023, table 4).
# Network: 2 x 100 and 4 x 200 Gbit/s per host of 8 chips (v5e, v6e), 50 Gbit/s per chip (v5p).
# Clock: the peak over the operations per cycle of the matrix units, 4 of 128 x 128 per core (v4,
# v5e, v5p) and, for want of a better number, 4 of 256 x 256 (v6e).
# HBM: what libtpu 0.0.42 reports as available when it refuses a program that is too large.
_GB = 1e9
_GIB = 2**30
CHIPS = {
  'v4': Chip('v4', 'v4', 2, 275e12, int(30.75 * _GIB), 1200 * _GB, 50 * _GB, 4, 0, 4, 128, 1.05e9),
  'v5e': Chip(
    'v5e', 'v5e', 1, 197e12, int(15.75 * _GIB), 819 * _GB, 50 * _GB, 16, 3.125 * _GB, 4, 128, 1.5e9
  ),
  'v5p': Chip(
    'v5p', 'v5', 2, 459e12, int(95.74 * _GIB), 2765 * _GB, 100 * _GB, 4, 6.25 * _GB, 4, 128, 1.75e9
  ),
  'v6e': Chip(
    'v6e',
    'v6e',
    1,
    918e12,
    int(31.25 * _GIB),
    1638 * _GB,
    100 * _GB,
    16,
    12.5 * _GB,
    4,
    256,
    1.75e9,
  ),
}
ALIASES = {'v5litepod': 'v5e', 'v5lite': 'v5e', 'v6lite': 'v6e', 'trillium': 'v6e'}
# Chips along each axis by number of chips: two axes for v5e and v6e, three for v4 and v5p, whose
# shapes are the usual ones of the manufacturer's tables.
SHAPES_2D = {
  1: (1, 1),
  4: (2, 2),
  8: (2, 4),
  16: (4, 4),
  32: (4, 8),
  64: (8, 8),
  128: (8, 16),
  256: (16, 16),
}
SHAPES_3D = {
  4: (2, 2, 1),
  8: (2, 2, 2),
  16: (2, 2, 4),
  32: (2, 4, 4),
  64: (4, 4, 4),
  128: (4, 4, 8),
  256: (4, 8, 8),
  512: (8, 8, 8),
  1024: (8, 8, 16),
  2048: (8, 16, 16),
  4096: (16, 16, 16),
}


class Slice(NamedTuple):
  """One or several equal slices, which the data center network connects.

  Attributes:
    name: such as 'v5e-16' or '2xv5e-256'.
    chip: of the slices.
    shape: chips along each axis of one slice.
    slices: number of slices.
  """

  name: str
  chip: Chip
  shape: tuple[int, ...]
  slices: int

  @property
  def chips(self) -> int:
    """Number of chips of all slices."""
    return self.slices * math.prod(self.shape)

  @property
  def hosts(self) -> int:
    """Number of machines of all slices."""
    chips = math.prod(self.shape)
    # Up to 8 chips of v5e and v6e are one machine; larger slices have machines of 4 chips.
    if chips <= 8 and self.chip.cores == 1:
      return self.slices
    return self.slices * max(1, chips // self.chip.chips_per_host)

  @property
  def links(self) -> int:
    """Number of links of the chip with the fewest, which limit its traffic."""
    # For v4 and v5p, all axes are rings or none is (cloud.google.com/tpu/docs/v4#3d-mesh).
    rings = [size % self.chip.ring == 0 for size in self.shape]
    if len(self.shape) == 3:
      rings = [all(rings)] * 3
    return sum(0 if size == 1 else 1 + ring for size, ring in zip(self.shape, rings, strict=True))

  @property
  def ici(self) -> float:
    """Bytes per second that a chip can send to the others of its slice, in one direction."""
    return self.links * self.chip.link


def shapes_of(chip: Chip) -> dict[int, tuple[int, ...]]:
  """Returns the shapes of a chip's slices by number of chips."""
  return {**(SHAPES_2D if chip.cores == 1 else SHAPES_3D)}


def parse_slice(name: str) -> Slice:
  """Returns the slice of a name such as v5e-16, v5litepod-16, v4-8 (4 chips) or 2xv5e-256.

  Raises:
    UserError: there is no such slice.
  """
  match = re.fullmatch(r'(?:(\d+)x)?(?:tpu-?)?(v\d+[a-z]*|trillium)-(\d+)', name.strip().lower())
  kind = ALIASES.get(match[2], match[2]) if match else ''
  if not match or kind not in CHIPS:
    raise UserError(f'--topology is {name!r}; expected a TPU slice: {_known_names()}.')
  slices = int(match[1] or 1)
  number = int(match[3])
  chip = CHIPS[kind]
  shapes = shapes_of(chip)
  count, remainder = divmod(number, chip.cores)
  if remainder or count not in shapes or slices < 1:
    raise UserError(f'--topology is {name!r}, which does not exist; expected {_known_names()}.')
  short_name = f'{kind}-{number}'
  return Slice(f'{slices}x{short_name}' if slices > 1 else short_name, chip, shapes[count], slices)


def _known_names() -> str:
  chips = ', '.join(map(str, SHAPES_2D))
  cores = ', '.join(str(2 * n) for n in SHAPES_3D)
  return (
    f'v5e-N and v6e-N count chips (N: {chips}), v4-N and v5p-N count cores, two per chip (N: '
    f'{cores}), and 2xv5e-256 is two slices'
  )


def topology_devices(of: Slice) -> Sequence[jax.Device]:
  """Returns the devices of a slice, for ahead-of-time compilation by libtpu.

  Call it in a process that may die, since libtpu may abort. See jax.experimental.topologies.
  """
  from jax.experimental import topologies

  options: dict[str, object] = {'num_slices': of.slices} if of.slices > 1 else {}
  if of.chip.cores == 2:
    options['chip_config_name'] = 'megacore'  # one device per chip, not per core
  if of.chips == of.slices:
    options['chips_per_host_bounds'] = (1, 1, 1)
  topology = f'{of.chip.compiler}:{"x".join(map(str, of.shape))}'
  description = topologies.get_topology_desc(platform='tpu', topology_name=topology, **options)
  return list(description.devices)

"""TPU slices by the names people use: their chips, how these are joined, and what one of them can do."""

import math
import re
from typing import NamedTuple

from electra_jax.errors import UserError


class Chip(NamedTuple):
  """One generation, as its maker states it."""

  name: str  # of the generation
  compiler: str  # its name in topologies of libtpu
  cores: int  # TensorCores a chip; names of slices count them where there are two
  flops: float  # bfloat16 products a second
  hbm: int  # bytes that a program can have
  hbm_bandwidth: float  # bytes a second
  link: float  # bytes a second over one link to a neighbour, in one direction
  ring: int  # an axis of a multiple of so many chips is a ring
  dcn: float  # bytes a second a chip over the data center network; 0: not stated
  chips_per_host: int


# Peaks, bandwidths and chips a host: cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e. A link is the stated all-reduce bandwidth of a
# pod over its chips and their ports (v5e 51.2 TB/s over 256 x 4, v6e 102.4 TB/s over 256 x 4), half of the stated 1,200 GB/s in both
# directions over 6 ports (v5p), or 50 GB/s (v4: Jouppi et al. 2023, table 4). Network: 2 x 100 and 4 x 200 Gbit/s a host of 8 chips
# (v5e, v6e), 50 Gbit/s a chip (v5p). HBM: what libtpu 0.0.42 says is available when it refuses a program that is too large.
_GB, _GIB = 1e9, 2**30
CHIPS = {
  'v4': Chip('v4', 'v4', 2, 275e12, int(30.75 * _GIB), 1200 * _GB, 50 * _GB, 4, 0, 4),
  'v5e': Chip('v5e', 'v5e', 1, 197e12, int(15.75 * _GIB), 819 * _GB, 50 * _GB, 16, 3.125 * _GB, 4),
  'v5p': Chip('v5p', 'v5', 2, 459e12, int(95.74 * _GIB), 2765 * _GB, 100 * _GB, 4, 6.25 * _GB, 4),
  'v6e': Chip('v6e', 'v6e', 1, 918e12, int(31.25 * _GIB), 1638 * _GB, 100 * _GB, 16, 12.5 * _GB, 4),
}
ALIASES = {'v5litepod': 'v5e', 'v5lite': 'v5e', 'v6lite': 'v6e', 'trillium': 'v6e'}
# Chips along each axis. v5e and v6e are flat; of v4 and v5p the usual shapes of the maker's tables.
FLAT = {
  1: (1, 1),
  4: (2, 2),
  8: (2, 4),
  16: (4, 4),
  32: (4, 8),
  64: (8, 8),
  128: (8, 16),
  256: (16, 16),
}
DEEP = {
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
  """One or several slices of the same kind, joined by the data center network."""

  name: str
  chip: Chip
  shape: tuple  # chips along each axis of one slice
  slices: int

  @property
  def chips(self) -> int:
    return self.slices * math.prod(self.shape)

  @property
  def hosts(self) -> int:
    of_one = math.prod(self.shape)
    # A v5e or v6e of up to 8 chips is one machine; larger ones have machines of 4.
    return self.slices * (
      1 if of_one <= 8 and self.chip.cores == 1 else max(1, of_one // self.chip.chips_per_host)
    )

  @property
  def links(self) -> int:
    """Links of a chip at the end of every axis that is not a ring: what all that it sends and receives goes through."""
    # Of v4 and v5p all axes are rings or none is (cloud.google.com/tpu/docs/v4#3d-mesh).
    rings = [size % self.chip.ring == 0 for size in self.shape]
    rings = rings if len(self.shape) == 2 else [all(rings)] * 3
    return sum(0 if size == 1 else 1 + ring for size, ring in zip(self.shape, rings, strict=True))

  @property
  def ici(self) -> float:
    """Bytes a second, in one direction, that a chip sends to the others of its slice at most."""
    return self.links * self.chip.link


def names() -> str:
  """A sentence on what there is."""
  flat, deep = ', '.join(map(str, FLAT)), ', '.join(str(2 * n) for n in DEEP)
  return f'v5e-N and v6e-N count chips (N: {flat}), v4-N and v5p-N count cores, two a chip (N: {deep}), and 2xv5e-256 is two slices'


def parse(name: str) -> Slice:
  """The slice of a name such as v5e-16, v5litepod-16, v4-8 (4 chips) or 2xv5e-256. Raises UserError for others."""
  match = re.fullmatch(r'(?:(\d+)x)?(?:tpu-?)?(v\d+[a-z]*|trillium)-(\d+)', name.strip().lower())
  if not match:
    raise UserError(f'--topology={name} is no TPU slice; {names()}.')
  slices, number = int(match[1] or 1), int(match[3])
  kind = ALIASES.get(match[2], match[2])
  if kind not in CHIPS:
    raise UserError(f'--topology={name}: of TPU {match[2]} nothing is known here; {names()}.')
  chip = CHIPS[kind]
  shapes = FLAT if chip.cores == 1 else DEEP
  count, odd = divmod(number, chip.cores)
  if odd or count not in shapes or slices < 1:
    wanted = (
      f'{slices} slices'
      if slices < 1
      else f'a {kind} of {number}' + (' cores' if chip.cores > 1 else ' chips')
    )
    raise UserError(f'--topology={name}: there is no such thing as {wanted}; {names()}.')
  return Slice(
    f'{slices}x{kind}-{number}' if slices > 1 else f'{kind}-{number}', chip, shapes[count], slices
  )


def devices(of: Slice) -> list:
  """Devices to compile for, from libtpu; in a process of its own, since libtpu may abort. See jax.experimental.topologies."""
  from jax.experimental import topologies

  options = {'num_slices': of.slices} if of.slices > 1 else {}
  if of.chip.cores == 2:
    options['chip_config_name'] = 'megacore'  # a device a chip, not a core
  if of.chips == of.slices:
    options['chips_per_host_bounds'] = (1, 1, 1)
  topology = f'{of.chip.compiler}:{"x".join(map(str, of.shape))}'
  return topologies.get_topology_desc(platform='tpu', topology_name=topology, **options).devices

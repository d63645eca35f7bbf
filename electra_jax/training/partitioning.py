"""The mesh, where each array lives on it, and state that is born there.

Mesh axes: `data` splits the rows of a batch and the optimizer's state (ZeRO-1, Rajbhandari et al. 2020), `fsdp` rows and parameters,
`tensor` heads, feed-forward and vocabulary.
"""

import collections
import dataclasses
import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from electra_jax.errors import UserError

MESH_AXES = ('data', 'fsdp', 'tensor')
ROWS = ('data', 'fsdp')  # mesh axes over which the rows of a batch are split
SMALLEST = 65_536  # config.sharding.smallest, where there is no config
LOGICAL_AXES = (
  'vocab',
  'heads',
  'mlp',
  'embed',
  'embed_out',
  'positions',
)  # of parameters, which config.sharding lays out
# And those too small for it to be of use.
NEVER_SPLIT = ('types', 'norm', 'one', 'layers')


class Layout(NamedTuple):
  """Where arrays live: the mesh, and the axes of it that split what."""

  mesh: jax.sharding.Mesh
  rules: tuple  # (logical axis, mesh axes or None), as linen has them
  optimizer: (
    str | None
  )  # the mesh axis that also splits the optimizer's state; None: it lies as the parameters do
  smallest: int  # tensors of fewer elements stay whole on each device


def mesh_shape(count: int, data: int = -1, fsdp: int = 1, tensor: int = 1) -> tuple[int, int, int]:
  """Sizes of the mesh axes over `count` devices; one of them may be -1, the rest of the devices. Raises UserError."""
  sizes = dict(zip(MESH_AXES, (data, fsdp, tensor), strict=True))
  wrong = [name for name, size in sizes.items() if size != -1 and size < 1]
  if wrong:
    raise UserError(
      f'config.mesh.{wrong[0]} is {sizes[wrong[0]]}; give a number of devices, or -1 for what the other axes leave.'
    )
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) > 1:
    raise UserError(
      f'config.mesh.{free[0]} and config.mesh.{free[1]} are both -1; only one axis can take the rest of the devices.'
    )
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if count % fixed or (not free and count != fixed):
    asked = ' x '.join(f'{name} {size}' for name, size in sizes.items() if size != -1)
    raise UserError(
      f'config.mesh asks for {asked} = {fixed} devices'
      + (' or a multiple' if free else '')
      + f' and there are {count}; '
      'change it, -1 takes what the other axes leave.'
    )
  return tuple(count // fixed if size == -1 else size for size in sizes.values())


def make_mesh(
  devices=None, *, data: int = -1, fsdp: int = 1, tensor: int = 1, slices: int = 0
) -> jax.sharding.Mesh:
  """A mesh of all the given (default: all) devices, neighbours in hardware neighbours in the mesh.

  Args:
    devices: to lay out.
    data, fsdp, tensor: sizes of the axes, see mesh_shape.
    slices: TPU slices (or other groups of devices) joined by a slower network; `data` spans them, the other axes stay
      inside one. 0: as many as the devices say.

  Raises UserError for sizes that do not fit the devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  shape = mesh_shape(len(devices), data, fsdp, tensor)
  of_slice = collections.defaultdict(list)
  for device in devices:
    of_slice[getattr(device, 'slice_index', None) or 0].append(device)
  groups = list(of_slice.values())
  if (
    len(groups) == 1 and slices > 1
  ):  # devices that do not say, as CPU's and GPU's: neighbours are a slice
    if len(devices) % slices:
      raise UserError(
        f'config.mesh.slices {slices} does not divide {len(devices)} devices; change it.'
      )
    groups = np.array_split(np.array(devices, object), slices)
  if slices and len(groups) != slices:
    raise UserError(
      f'config.mesh.slices is {slices} and the devices are of {len(groups)} slices; leave it 0.'
    )
  if shape[0] % len(groups):
    raise UserError(
      f'the data axis of {shape[0]} does not span {len(groups)} slices evenly; make config.mesh.data a multiple of {len(groups)}.'
    )
  inside = (shape[0] // len(groups), *shape[1:])
  if devices[0].platform == 'tpu':
    groups = [
      mesh_utils.create_device_mesh(inside, devices=list(group), allow_split_physical_axes=True)
      for group in groups
    ]
  else:
    groups = [np.array(group, object).reshape(inside) for group in groups]
  # Linen's logical constraints need Auto axes.
  return jax.sharding.Mesh(
    np.concatenate(groups, axis=0), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES)
  )


def rules_of(sharding) -> tuple:
  """config.sharding -> rules as linen has them. Raises UserError for names that are not mesh axes."""
  rules = [('batch', ROWS)] + [(name, None) for name in NEVER_SPLIT]
  for name, axes in sharding.items():
    if name in ('optimizer', 'smallest'):
      continue
    axes = tuple(filter(None, axes.replace(' ', '').split(',')))
    for axis in axes:
      if axis not in MESH_AXES or axis == 'data':
        raise UserError(
          f'config.sharding.{name} is {axis!r}; parameters are split over fsdp, tensor, both (fsdp,tensor) or nothing.'
        )
    if twice := [axis for axis in axes if axes.count(axis) > 1]:
      raise UserError(f'config.sharding.{name} names {twice[0]!r} twice; name each mesh axis once.')
    rules.append((name, axes or None))
  return tuple(rules)


def make_layout(config=None, devices=None) -> Layout:
  """The layout that a config asks for on all the given (default: all) devices. Raises UserError where it cannot be.

  Without a config: all devices along `data`, the parameters whole, and the optimizer's state split.
  """
  if config is None:
    return Layout(make_mesh(devices), rules_of(dict.fromkeys(LOGICAL_AXES, '')), 'data', SMALLEST)
  mesh, sharding = make_mesh(devices, **dataclasses.asdict(config.mesh)), config.sharding
  if sharding.optimizer not in ('', 'data'):
    raise UserError(
      f"config.sharding.optimizer is {sharding.optimizer!r}; it is 'data' (split over that mesh axis too) or ''."
    )
  return Layout(
    mesh, rules_of(dataclasses.asdict(sharding)), sharding.optimizer or None, sharding.smallest
  )


def within(layout: Layout, function):
  """`function`, to be traced by jax.jit, with the model's logical axes meaning this layout."""

  # Where parameters are used, their parts over fsdp are gathered.
  def without(axes):
    return tuple(axis for axis in axes or () if axis != 'fsdp') or None

  rules = tuple((name, axes if name == 'batch' else without(axes)) for name, axes in layout.rules)

  @functools.wraps(function)
  def traced(*args):
    with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh), nn.logical_axis_rules(rules):
      return function(*args)

  return traced


def replicated(mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh) -> NamedSharding:
  """Of arrays whose first axis is the global batch."""
  return NamedSharding(mesh, PartitionSpec(ROWS))


def replicate(tree, mesh):
  """A tree of NumPy arrays, the same on every process, as arrays that are whole on every device."""
  whole = replicated(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, whole, lambda index: x[index]), tree
  )


def row_shards(mesh) -> int:
  """The number of parts that the rows of a batch are split into."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


def process_rows(mesh, batch_size: int) -> np.ndarray:
  """Rows of a global batch that this process's devices hold, int64, ascending, each once."""
  indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  return np.unique(np.concatenate([np.arange(batch_size)[rows] for (rows,) in indices.values()]))


def global_batch(local_rows: np.ndarray, mesh, batch_size: int) -> jax.Array:
  """The sharded array `[batch_size, ...]` of which this process has the rows of `process_rows`, `[rows, ...]`."""
  local_rows, mine = np.asarray(local_rows), process_rows(mesh, batch_size)
  if len(local_rows) != len(mine):
    raise ValueError(
      f'{len(local_rows)} rows of the batch given, where this process holds {len(mine)}'
    )

  def of_device(index):
    start, stop, _ = index[0].indices(batch_size)
    first = np.searchsorted(mine, start)
    return local_rows[first : first + stop - start]

  return jax.make_array_from_callback(
    (batch_size, *local_rows.shape[1:]), batch_sharding(mesh), of_device
  )


def parameter_shardings(boxed_shapes, layout: Layout):
  """Shardings of parameters from their logical axes; `boxed_shapes` is jax.eval_shape of the model's init.

  A tensor of fewer than `layout.smallest` elements stays whole, and so does an axis that the mesh axis does not divide.
  """

  def sharding(boxed):
    shape, rules = boxed.value.shape, dict(layout.rules)
    axes = [rules[name] for name in boxed.names]
    if math.prod(shape) < layout.smallest:
      axes = [None] * len(shape)
    spec, used = [], set()
    for size, over in zip(shape, axes, strict=True):
      over = tuple(a for a in over or () if layout.mesh.shape[a] > 1 and a not in used)
      fits = over and size % math.prod(layout.mesh.shape[a] for a in over) == 0
      spec.append((over[0] if len(over) == 1 else over) if fits else None)
      used |= set(over) if fits else set()
    return NamedSharding(layout.mesh, PartitionSpec(*spec))

  return jax.tree.map(sharding, boxed_shapes, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def _shards(entry, mesh) -> int:
  return math.prod(mesh.shape[a] for a in ((entry,) if isinstance(entry, str) else entry or ()))


def moment_shardings(shapes, shardings, layout: Layout):
  """Shardings of what the optimizer keeps of each parameter: split over `layout.optimizer` too (ZeRO-1).

  Each tensor is split along one axis: one that is whole so far, whose parts fill whole (8, 128) tiles of a TPU where there is such
  an axis, and the largest of those. `shapes` and `shardings`: of the parameters.
  """
  mesh, axis = layout.mesh, layout.optimizer
  count = mesh.shape[axis] if axis else 1

  def sharding(shape, of_parameter):
    shape, spec = (
      shape.shape,
      list(of_parameter.spec) + [None] * (len(shape.shape) - len(of_parameter.spec)),
    )
    best = None
    for i, size in enumerate(shape):
      part, rest = divmod(size, _shards(spec[i], mesh) * count)
      if rest or math.prod(shape) < layout.smallest:
        continue
      tile = {len(shape) - 1: 128, len(shape) - 2: 8}.get(i, 1)
      best = max(best or (), (spec[i] is None, part % tile == 0, part // tile, -i))
    if count == 1 or best is None:
      return of_parameter
    i = -best[-1]
    spec[i] = (
      axis if spec[i] is None else (axis, *((spec[i],) if isinstance(spec[i], str) else spec[i]))
    )
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(sharding, shapes, shardings)


def sum_over_data(layout: Layout, function, moments):
  """`function(params, examples, counts) -> (sums, gradients)` on each device's own rows, and both added up over `data`.

  Gradients arrive as the moments lie: a device gets the sums of its part alone. So a step sends each gradient once, after the last
  micro-batch, and in float32. Left to itself the partitioner reduces every layer's and every micro-batch's gradient by itself. That
  is how it goes where `fsdp` or `tensor` splits the parameters too: XLA's partitioner fails on axes of which some are taken care of here.

  Args:
    layout: of the mesh.
    function: of parameters, rows `[batch, ...]`, and counts over the global batch.
    moments: shardings of moment_shardings.
  """
  if layout.mesh.shape['data'] == 1 or layout.mesh.size != layout.mesh.shape['data']:
    return function
  axes = jax.tree.map(
    lambda sharding: next((i for i, entry in enumerate(sharding.spec) if entry), None), moments
  )

  def is_axis(x):
    return x is None or isinstance(x, int)

  def add_up(axis, gradient):
    if axis is None:
      return jax.lax.psum(gradient, 'data')
    return jax.lax.psum_scatter(gradient, 'data', scatter_dimension=axis, tiled=True)

  def on_own_rows(params, examples, counts):
    with nn.logical_axis_rules(()):  # inside every device has all it needs
      sums, gradients = function(params, examples, counts)
    return jax.lax.psum(sums, 'data'), jax.tree.map(add_up, axes, gradients, is_leaf=is_axis)

  whole, parts = PartitionSpec(), jax.tree.map(lambda sharding: sharding.spec, moments)
  return jax.shard_map(
    on_own_rows,
    mesh=layout.mesh,
    in_specs=(whole, PartitionSpec('data'), whole),
    out_specs=(whole, parts),
    check_vma=False,
  )


def bytes_per_device(shapes, shardings) -> int:
  """Bytes that a tree of arrays takes on each device."""
  sizes = jax.tree.map(
    lambda x, s: math.prod(s.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize, shapes, shardings
  )
  return sum(jax.tree.leaves(sizes))


def describe(shapes, shardings, layout: Layout) -> list[str]:
  """Lines that say how each parameter lies on the mesh and what it and its two moments cost a device; none on one device."""
  if layout.mesh.size == 1:
    return []
  moments = moment_shardings(shapes, shardings, layout)
  rows, small = [], [0, 0, 0, 0]
  for (path, shape), sharding, moment in zip(
    jax.tree_util.tree_leaves_with_path(shapes),
    jax.tree.leaves(shardings),
    jax.tree.leaves(moments),
    strict=True,
  ):
    cost = [bytes_per_device(shape, s) / 1e6 for s in (sharding, moment, moment)]
    if math.prod(shape.shape) < layout.smallest:
      small = [a + b for a, b in zip(small, (1, cost[0], *cost[1:]), strict=True)]
      continue
    rows.append(
      (
        jax.tree_util.keystr(path, simple=True, separator='/').replace('/layers', ''),
        'x'.join(map(str, shape.shape)),
        _places(sharding, shape),
        cost[0],
        _places(moment, shape),
        cost[1] + cost[2],
      )
    )
  whole = [bytes_per_device(shapes, tree) / 1e6 for tree in (shardings, moments, moments)]
  if small[0]:
    rows.append((f'{small[0]} small ones', '', 'whole', small[1], 'whole', small[2] + small[3]))
  rows.append(('each device holds', '', '', whole[0], '', whole[1] + whole[2]))
  name, shape, at, moments_at = (max(len(row[i]) for row in rows) for i in (0, 1, 2, 4))
  at, moments_at = max(at, len('split')), max(moments_at, len('moments split'))
  lines = [
    f'{"parameter":{name}} {"shape":>{shape}}  {"split":{at}} {"MB":>8}  {"moments split":{moments_at}} {"MB":>8}'
  ]
  return lines + [
    f'{a:{name}} {b:>{shape}}  {c:{at}} {d:8.1f}  {e:{moments_at}} {f:8.1f}'
    for a, b, c, d, e, f in rows
  ]


def _places(sharding, shape) -> str:
  """'axis 1 by data 16', or 'whole'."""
  places = [
    f'axis {i} by '
    + ' '.join(
      f'{a} {sharding.mesh.shape[a]}' for a in ((entry,) if isinstance(entry, str) else entry)
    )
    for i, entry in enumerate(sharding.spec)
    if entry and _shards(entry, sharding.mesh) > 1
  ]
  return ', '.join(places) or 'whole'

"""The mesh, and how parameters, optimizer state and batches are split over it.

Mesh axes: `data` splits the rows of a batch and the optimizer state (ZeRO-1, Rajbhandari et al.
2020), `fsdp` rows and parameters, `tensor` heads, feed-forward layers and the vocabulary.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from electra_jax.errors import UserError

if TYPE_CHECKING:  # the benchmarks run without the packages that configs need
  from electra_jax.config import FinetuningConfig, PretrainingConfig

PyTree = Any
Entry = str | tuple[str, ...] | None  # of a PartitionSpec
Axes = tuple[str, ...] | None  # mesh axes that split an axis of an array

MESH_AXES = ('data', 'fsdp', 'tensor')
ROWS = ('data', 'fsdp')  # mesh axes over which the rows of a batch are split
SMALLEST = 65_536  # default of config.sharding.smallest
# Logical axes of parameters that config.sharding assigns to mesh axes, and those too small for it.
LOGICAL_AXES = ('vocab', 'heads', 'mlp', 'embed', 'embed_out', 'positions')
NEVER_SPLIT = ('types', 'norm', 'one', 'layers')


class Layout(NamedTuple):
  """The mesh, and what its axes split.

  Attributes:
    mesh: the mesh.
    rules: pairs of a logical axis and mesh axes or None, as flax.linen takes them.
    optimizer: mesh axis that splits the optimizer state further than the parameters; None for none.
    smallest: tensors with fewer elements are not split.
  """

  mesh: jax.sharding.Mesh
  rules: tuple[tuple[str, Axes], ...]
  optimizer: str | None
  smallest: int


#### The mesh ####


def mesh_shape(count: int, data: int = -1, fsdp: int = 1, tensor: int = 1) -> tuple[int, ...]:
  """Sizes of the mesh axes.

  Args:
    count: number of devices.
    data: size of the axis `data`; for at most one axis -1, all remaining devices.
    fsdp: size of the axis `fsdp`.
    tensor: size of the axis `tensor`.

  Raises:
    UserError: the sizes do not fit the number of devices.
  """
  sizes = dict(zip(MESH_AXES, (data, fsdp, tensor), strict=True))
  wrong = [name for name, size in sizes.items() if size != -1 and size < 1]
  if wrong:
    raise UserError(
      f'config.mesh.{wrong[0]} is {sizes[wrong[0]]}; expected a number of devices, or -1 for the '
      'devices that the other axes leave.'
    )
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) > 1:
    raise UserError(
      f'config.mesh.{free[0]} and config.mesh.{free[1]} are both -1; only one axis can take the '
      'remaining devices.'
    )
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if count % fixed or (not free and count != fixed):
    product = ' x '.join(f'{name} {size}' for name, size in sizes.items() if size != -1)
    multiple = ' or a multiple' if free else ''
    raise UserError(
      f'config.mesh asks for {product} = {fixed} devices{multiple} and there are {count}; change a '
      'size, or set one axis to -1 for the devices that the other axes leave.'
    )
  return tuple(count // fixed if size == -1 else size for size in sizes.values())


def make_mesh(
  devices: Sequence[jax.Device] | None = None,
  *,
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  slices: int = 0,
) -> jax.sharding.Mesh:
  """Makes a mesh on which devices that are close in hardware are close.

  Args:
    devices: devices of the mesh; None for all.
    data: size of the axis `data`, see `mesh_shape`.
    fsdp: size of the axis `fsdp`.
    tensor: size of the axis `tensor`.
    slices: TPU slices (or other groups of devices) that a slower network connects; 0 for the number
      that the devices report. `data` spans them; the other axes stay within one.

  Raises:
    UserError: the sizes do not fit the devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  shape = mesh_shape(len(devices), data, fsdp, tensor)
  groups = _slices(devices, slices)
  if shape[0] % len(groups):
    raise UserError(
      f'the data axis of {shape[0]} does not span {len(groups)} slices evenly; make '
      f'config.mesh.data a multiple of {len(groups)}.'
    )
  inside = (shape[0] // len(groups), *shape[1:])
  if devices[0].platform == 'tpu':
    arrays = [
      mesh_utils.create_device_mesh(inside, devices=group, allow_split_physical_axes=True)
      for group in groups
    ]
  else:
    arrays = [np.array(group, object).reshape(inside) for group in groups]
  # flax.linen's logical constraints require axes of the type Auto.
  return jax.sharding.Mesh(
    np.concatenate(arrays, axis=0), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES)
  )


def _slices(devices: Sequence[jax.Device], slices: int) -> list[list[jax.Device]]:
  """Groups devices by slice. CPUs and GPUs report none; then consecutive devices are a slice."""
  of_slice = collections.defaultdict(list)
  for device in devices:
    of_slice[getattr(device, 'slice_index', None) or 0].append(device)
  groups = list(of_slice.values())
  if len(groups) == 1 and slices > 1:
    if len(devices) % slices:
      raise UserError(
        f'config.mesh.slices {slices} does not divide {len(devices)} devices; change it.'
      )
    size = len(devices) // slices
    groups = [list(devices[i : i + size]) for i in range(0, len(devices), size)]
  if slices and len(groups) != slices:
    raise UserError(
      f'config.mesh.slices is {slices} and the devices are of {len(groups)} slices; leave it 0.'
    )
  return groups


#### Rules ####


def rules_of(sharding: Mapping[str, Any]) -> tuple[tuple[str, Axes], ...]:
  """Rules of flax.linen from the fields of config.sharding.

  Raises:
    UserError: a field names something else than mesh axes that can split parameters.
  """
  rules: list[tuple[str, Axes]] = [('batch', ROWS)]
  rules += [(name, None) for name in NEVER_SPLIT]
  for name, value in sharding.items():
    if name in ('optimizer', 'smallest'):
      continue
    axes = tuple(filter(None, value.replace(' ', '').split(',')))
    for axis in axes:
      if axis not in MESH_AXES or axis == 'data':
        raise UserError(
          f'config.sharding.{name} is {axis!r}; parameters are split over fsdp, tensor, both '
          '(fsdp,tensor) or nothing.'
        )
    if twice := [axis for axis in axes if axes.count(axis) > 1]:
      raise UserError(f'config.sharding.{name} names {twice[0]!r} twice; name each mesh axis once.')
    rules.append((name, axes or None))
  return tuple(rules)


def make_layout(
  config: 'PretrainingConfig | FinetuningConfig | None' = None,
  devices: Sequence[jax.Device] | None = None,
) -> Layout:
  """The layout of a config.

  Args:
    config: a typed config with the groups `mesh` and `sharding`. With None all devices are along
      `data`, the parameters are not split, and the optimizer state is.
    devices: devices of the mesh; None for all.

  Raises:
    UserError: the config does not fit the devices.
  """
  if config is None:
    return Layout(make_mesh(devices), rules_of(dict.fromkeys(LOGICAL_AXES, '')), 'data', SMALLEST)
  mesh, sharding = make_mesh(devices, **dataclasses.asdict(config.mesh)), config.sharding
  if sharding.optimizer not in ('', 'data'):
    raise UserError(
      f"config.sharding.optimizer is {sharding.optimizer!r}; expected 'data' (split over that mesh "
      "axis too) or ''."
    )
  return Layout(
    mesh, rules_of(dataclasses.asdict(sharding)), sharding.optimizer or None, sharding.smallest
  )


def within(layout: Layout, function: Callable[..., Any]) -> Callable[..., Any]:
  """Wraps a function for jax.jit so that the layout splits the logical axes of the model.

  Parameters that are split over `fsdp` are gathered where they are used.
  """

  def without_fsdp(axes: Axes) -> Axes:
    return tuple(axis for axis in axes or () if axis != 'fsdp') or None

  rules = tuple(
    (name, axes if name == 'batch' else without_fsdp(axes)) for name, axes in layout.rules
  )

  @functools.wraps(function)
  def traced(*args: PyTree) -> PyTree:
    with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh), nn.logical_axis_rules(rules):
      return function(*args)

  return traced


#### Batches ####


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The sharding of arrays that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The sharding of arrays whose first axis is the global batch."""
  return NamedSharding(mesh, PartitionSpec(ROWS))


def replicate(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
  """Puts NumPy arrays, the same on every process, on every device."""
  whole = replicated(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, whole, lambda index: x[index]), tree
  )


def row_shards(mesh: jax.sharding.Mesh) -> int:
  """The number of parts that the rows of a batch are split into."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


def padded_batch_size(batch_size: int, mesh: jax.sharding.Mesh) -> int:
  """The smallest batch size of at least `batch_size` that divides over the mesh."""
  shards = row_shards(mesh)
  return -(-batch_size // shards) * shards


def process_rows(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray:
  """Numbers of the rows of a global batch that this process's devices hold, int64, ascending."""
  indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  rows = np.arange(batch_size)
  return np.unique(np.concatenate([rows[index] for index in indices.values()]))


def global_batch(local_rows: np.ndarray, mesh: jax.sharding.Mesh, batch_size: int) -> jax.Array:
  """Makes a global batch from the rows of each process.

  Args:
    local_rows: rows of this process, those of `process_rows`, `[rows, ...]`.
    mesh: the mesh.
    batch_size: rows of the global batch.

  Returns:
    `[batch_size, ...]`, with its rows split over the mesh.
  """
  local_rows, mine = np.asarray(local_rows), process_rows(mesh, batch_size)
  if len(local_rows) != len(mine):
    raise ValueError(f'{len(local_rows)} rows were given; this process holds {len(mine)}.')

  def of_device(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None  # as the array has a global shape
    start, stop, _ = index[0].indices(batch_size)
    first = np.searchsorted(mine, start)
    return local_rows[first : first + stop - start]

  return jax.make_array_from_callback(
    (batch_size, *local_rows.shape[1:]), batch_sharding(mesh), of_device
  )


def on_mesh(batch: Mapping[str, Any], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
  """Puts a batch on the devices: rows are split over the mesh, scalars are replicated."""

  def place(value: np.ndarray) -> jax.Array:
    if value.ndim == 0:
      return jax.make_array_from_callback((), replicated(mesh), lambda index: value)
    rows = process_rows(mesh, len(value))
    return global_batch(value[rows], mesh, len(value))

  return {name: place(np.asarray(value)) for name, value in batch.items()}


#### Parameters and optimizer state ####


def parameter_shardings(boxed_shapes: PyTree, layout: Layout) -> PyTree:
  """Shardings of parameters by their logical axes.

  Tensors of fewer than `layout.smallest` elements are not split, nor are axes that the mesh axes do
  not divide.

  Args:
    boxed_shapes: result of jax.eval_shape of the model's init.
    layout: the mesh and its rules.
  """
  rules: dict[str | None, Axes] = dict(layout.rules)

  def sharding(boxed: nn.Partitioned[Any]) -> NamedSharding:
    shape = boxed.value.shape
    axes = [rules[name] for name in boxed.names]
    if math.prod(shape) < layout.smallest:
      axes = [None] * len(shape)
    spec: list[Any] = []
    used: set[str] = set()
    for size, over in zip(shape, axes, strict=True):
      over = tuple(a for a in over or () if layout.mesh.shape[a] > 1 and a not in used)
      fits = over and size % math.prod(layout.mesh.shape[a] for a in over) == 0
      spec.append((over[0] if len(over) == 1 else over) if fits else None)
      used |= set(over) if fits else set()
    return NamedSharding(layout.mesh, PartitionSpec(*spec))

  return jax.tree.map(sharding, boxed_shapes, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def _axes_of(entry: Entry) -> tuple[str, ...]:
  """Mesh axes of an entry of a PartitionSpec."""
  return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _shards(entry: Entry, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
  return math.prod(mesh.shape[axis] for axis in _axes_of(entry))


def moment_shardings(shapes: PyTree, shardings: PyTree, layout: Layout) -> PyTree:
  """Shardings of the optimizer's moments: as the parameters, and over `layout.optimizer` too.

  This is ZeRO-1 (Rajbhandari et al. 2020). Each tensor is split along one more axis. Preferred are
  axes that are not split yet, then axes whose parts fill whole (8, 128) tiles of a TPU, and then
  the axis with the most tiles.

  Args:
    shapes: shapes of the parameters.
    shardings: shardings of the parameters.
    layout: the mesh and its rules.
  """
  mesh, axis = layout.mesh, layout.optimizer
  count = mesh.shape[axis] if axis else 1

  def sharding(parameter: jax.ShapeDtypeStruct, of_parameter: NamedSharding) -> NamedSharding:
    shape = parameter.shape
    spec: list[Any] = list(of_parameter.spec)
    spec += [None] * (len(shape) - len(spec))
    best: tuple[Any, ...] = ()
    for i, size in enumerate(shape):
      part, rest = divmod(size, _shards(spec[i], mesh) * count)
      if rest or math.prod(shape) < layout.smallest:
        continue
      tile = {len(shape) - 1: 128, len(shape) - 2: 8}.get(i, 1)
      best = max(best, (spec[i] is None, part % tile == 0, part // tile, -i))
    if count == 1 or not best:
      return of_parameter
    i = -best[-1]
    spec[i] = axis if spec[i] is None else (axis, *_axes_of(spec[i]))
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(sharding, shapes, shardings)


def sum_over_data(
  layout: Layout, function: Callable[..., tuple[PyTree, PyTree]], moments: PyTree
) -> Callable[..., tuple[PyTree, PyTree]]:
  """Applies a function to the rows of each device, and adds up its results over `data`.

  Gradients are split as the moments are: each device gets only the sums of its part. So a step
  sends each gradient once, after the last micro-batch, in float32. By default XLA's partitioner
  would reduce the gradient of every layer and micro-batch by itself. It still does if `fsdp` or
  `tensor` split the parameters: it fails on a mesh of which only some axes are mapped here.

  Args:
    layout: the mesh and its rules.
    function: `(params, examples, counts) -> (sums, gradients)`, where examples are rows
      `[batch, ...]` and counts those of the global batch.
    moments: of `moment_shardings`.
  """
  if layout.mesh.shape['data'] == 1 or layout.mesh.size != layout.mesh.shape['data']:
    return function
  axes = jax.tree.map(
    lambda sharding: next((i for i, entry in enumerate(sharding.spec) if entry), None), moments
  )

  def is_axis(x: object) -> bool:
    return x is None or isinstance(x, int)

  def add_up(axis: int | None, gradient: PyTree) -> PyTree:
    if axis is None:
      return jax.lax.psum(gradient, 'data')
    return jax.lax.psum_scatter(gradient, 'data', scatter_dimension=axis, tiled=True)

  def on_own_rows(params: PyTree, examples: PyTree, counts: PyTree) -> tuple[PyTree, PyTree]:
    with nn.logical_axis_rules(()):  # within the map, each device has all that it needs
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


def bytes_per_device(shapes: PyTree, shardings: PyTree) -> int:
  """Bytes of a tree of arrays on each device."""
  sizes = jax.tree.map(
    lambda x, s: math.prod(s.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize, shapes, shardings
  )
  return sum(jax.tree.leaves(sizes))


#### The table for the console ####


class _Row(NamedTuple):
  """A row of the table. Sizes are MB per device."""

  name: str
  shape: str
  split: str
  size: float
  moments_split: str
  moments_size: float


def sharding_table(shapes: PyTree, shardings: PyTree, layout: Layout) -> list[str]:
  """Lines of a table: how each parameter is split, and its size and that of its two moments.

  Args:
    shapes: shapes of the parameters.
    shardings: shardings of the parameters.
    layout: the mesh and its rules.

  Returns:
    The lines; none on one device.
  """
  if layout.mesh.size == 1:
    return []
  moments = moment_shardings(shapes, shardings, layout)
  rows: list[_Row] = []
  small: list[_Row] = []
  for (path, x), sharding, moment in zip(
    jax.tree_util.tree_leaves_with_path(shapes),
    jax.tree.leaves(shardings),
    jax.tree.leaves(moments),
    strict=True,
  ):
    row = _Row(
      jax.tree_util.keystr(path, simple=True, separator='/').replace('/layers', ''),
      'x'.join(map(str, x.shape)),
      _places(sharding),
      bytes_per_device(x, sharding) / 1e6,
      _places(moment),
      2 * bytes_per_device(x, moment) / 1e6,
    )
    (small if math.prod(x.shape) < layout.smallest else rows).append(row)
  every = rows + small
  if small:
    size, moments_size = _sizes(small)
    rows.append(_Row(f'{len(small)} small ones', '', 'whole', size, 'whole', moments_size))
  size, moments_size = _sizes(every)
  rows.append(_Row('each device holds', '', '', size, '', moments_size))
  return _lines(rows)


def _sizes(rows: Sequence[_Row]) -> tuple[float, float]:
  return sum(row.size for row in rows), sum(row.moments_size for row in rows)


def _lines(rows: Sequence[_Row]) -> list[str]:
  """A header and the rows, aligned."""
  name = max(len(row.name) for row in rows)
  shape = max(len(row.shape) for row in rows)
  split = max(len('split'), *(len(row.split) for row in rows))
  moments = max(len('moments split'), *(len(row.moments_split) for row in rows))
  header = (
    f'{"parameter":{name}} {"shape":>{shape}}  {"split":{split}} {"MB":>8}  '
    f'{"moments split":{moments}} {"MB":>8}'
  )
  return [header] + [
    f'{row.name:{name}} {row.shape:>{shape}}  {row.split:{split}} {row.size:8.1f}  '
    f'{row.moments_split:{moments}} {row.moments_size:8.1f}'
    for row in rows
  ]


def _places(sharding: NamedSharding) -> str:
  """Which axes of a tensor are split by what, such as 'axis 1 by data 16', or 'whole'."""
  mesh = sharding.mesh
  places = [
    f'axis {i} by ' + ' '.join(f'{axis} {mesh.shape[axis]}' for axis in _axes_of(entry))
    for i, entry in enumerate(sharding.spec)
    if entry and _shards(entry, mesh) > 1
  ]
  return ', '.join(places) or 'whole'

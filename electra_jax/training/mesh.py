"""The mesh, the logical axis rules, and state that is born sharded."""

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

MESH_AXES = ('data', 'fsdp', 'tensor')

# Logical axis -> mesh axes. Parameters are whole on every device unless a mesh axis other than `data` is larger than 1.
AXIS_RULES = (
    ('batch', ('data', 'fsdp')),
    ('vocab', 'tensor'),
    ('heads', 'tensor'),
    ('mlp', 'tensor'),
    ('embed', 'fsdp'),
    ('embed_out', None),
    ('positions', None),
    ('types', None),
    ('norm', None),
    ('one', None),
    ('layers', None),
)


def make_mesh(devices=None) -> jax.sharding.Mesh:
  """A mesh of all the given (default: all) devices along `data`; the other axes have size 1."""
  devices = jax.devices() if devices is None else devices
  # Linen's logical constraints need Auto axes; jax.make_mesh defaults to Explicit ones since 0.9.
  return jax.make_mesh((len(devices), 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def replicated(mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh) -> NamedSharding:
  """Of arrays whose first axis is the global batch."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def process_rows(mesh, batch_size: int) -> np.ndarray:
  """Rows of a global batch that this process's devices hold, int64, ascending, each once."""
  indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows, in indices.values()]))


def global_batch(local_rows: np.ndarray, mesh, batch_size: int) -> jax.Array:
  """The sharded array `[batch_size, ...]` of which this process has the rows of `process_rows`, `[rows, ...]`."""
  local_rows, mine = np.asarray(local_rows), process_rows(mesh, batch_size)
  if len(local_rows) != len(mine):
    raise ValueError(f'{len(local_rows)} rows of the batch given, where this process holds {len(mine)}')

  def of_device(index):
    start, stop, _ = index[0].indices(batch_size)
    first = np.searchsorted(mine, start)
    return local_rows[first:first + stop - start]
  return jax.make_array_from_callback((batch_size, *local_rows.shape[1:]), batch_sharding(mesh), of_device)


def parameter_shardings(boxed_shapes, mesh):
  """Shardings of parameters from their logical axes; `boxed_shapes` is jax.eval_shape of the model's init."""
  specs = nn.get_partition_spec(boxed_shapes)
  return nn.logical_to_mesh_sharding(specs, mesh, list(AXIS_RULES))

"""The mesh, the logical axis rules, and state that is born sharded."""

import flax.linen as nn
import jax
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


def parameter_shardings(boxed_shapes, mesh):
  """Shardings of parameters from their logical axes; `boxed_shapes` is jax.eval_shape of the model's init."""
  specs = nn.get_partition_spec(boxed_shapes)
  return nn.logical_to_mesh_sharding(specs, mesh, list(AXIS_RULES))

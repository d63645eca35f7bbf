"""Fused attention kernels: our own in Pallas (TPU), Pallas splash (TPU) and cuDNN (GPU).

None holds the scores of all pairs of positions. Only our own has dropout; it scales the query
itself, and the others take a scaled one. Shapes are those of model/attention.py.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from electra_jax.model.kernel_choice import KERNELS, LANES
from electra_jax.model.products import precision_of

# Positions per side of a block. Its float32 scores take 1 MiB of VMEM, of which a kernel may use 16
# on a v5e.
LARGEST_BLOCK = 512
# Names what Pallas kernels keep for their backward passes, for policies of jax.checkpoint.
RESIDUALS = 'attention_residuals'
INTERPRET: Any = False  # tests set it, to run Pallas kernels without a TPU

Kernel: TypeAlias = Any  # a SplashAttentionKernel, a tree of the arrays of its mask


class Pallas(NamedTuple):
  """What our own kernel computes.

  Attributes:
    reach: positions that a local layer attends to on each side.
    precision: as of `splash`.
    dropout_rate: of the probabilities.
    row_keys: of `counter.row_keys`, uint32 `[batch]`; None for no dropout.
  """

  reach: int
  precision: str = 'float32'
  dropout_rate: float = 0.0
  row_keys: jax.Array | None = None


def pallas(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segment_ids: jax.Array,
  is_global: jax.Array | bool | None,
  computation: Pallas,
) -> jax.Array:
  """Attention of model/pallas_attention.py.

  Args:
    query: not scaled, `[batch, length, heads, head_size]`.
    key: `[batch, length, heads, head_size]`.
    value: `[batch, length, heads, head_size]`.
    segment_ids: int32 `[batch, length]`.
    is_global: as of `attention`.
    computation: window, precision and dropout.

  Returns:
    `[batch, length, heads, head_size]`.

  Raises:
    ValueError: the length is not supported.
  """
  # It imports Pallas, which takes time.
  from electra_jax.model import pallas_attention

  _, length, heads, _ = query.shape
  if obstacle := KERNELS['pallas'].lengths(length):
    raise ValueError(f"attention 'pallas' {obstacle.reason}; set {obstacle.remedy}.")
  row_keys, reach = computation.row_keys, computation.reach
  given = pallas_attention.KernelSettings(
    rate=0.0 if row_keys is None else computation.dropout_rate,
    exact=precision_of(computation.precision, query.dtype) is not None,
    name=RESIDUALS,
    interpret=INTERPRET,
  )

  def on_device(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    row_keys: jax.Array,
    heads: jax.Array,
    is_global: jax.Array | bool | None,
  ) -> jax.Array:
    def attend(reach: int | None) -> jax.Array:
      computation = dataclasses.replace(given, reach=reach)
      return pallas_attention.attend(computation, query, key, value, segment_ids, row_keys, heads)

    if is_global is None or reach >= length - 1:
      return attend(None)
    by_kind: jax.Array = jax.lax.cond(is_global, lambda: attend(None), lambda: attend(reach))
    return by_kind

  by_head = [x.transpose(0, 2, 3, 1) for x in (query, key, value)]
  if row_keys is None:
    row_keys = jnp.zeros(query.shape[:1], jnp.uint32)
  out = _on_each_device(
    on_device,
    (*by_head, segment_ids, row_keys, jnp.arange(heads), is_global),
    (_BY_HEAD, _BY_HEAD, _BY_HEAD, _ROWS, _ROWS, ('heads',), ()),
  )
  return out.transpose(0, 3, 1, 2)


def splash(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segment_ids: jax.Array,
  is_global: jax.Array | bool | None,
  reach: int,
  precision: str = 'float32',
) -> jax.Array:
  """Splash attention of jax.experimental.pallas.

  Args:
    query: scaled, `[batch, length, heads, head_size]`.
    key: `[batch, length, heads, head_size]`.
    value: `[batch, length, heads, head_size]`.
    segment_ids: int32 `[batch, length]`.
    is_global: as of `attention`.
    reach: positions that a local layer attends to on each side.
    precision: of float32 products, see model/products.py. Kernels for TPU have no product of three
      passes, so `tensorfloat32` is computed as `float32`.

  Returns:
    `[batch, length, heads, head_size]`.

  Raises:
    ValueError: the length is not a multiple of 128.
  """
  length = query.shape[1]
  if length % LANES:
    raise ValueError(
      f"the rows have {length} positions, and attention 'splash' takes multiples of {LANES}; "
      'expected such a length, or attention xla.'
    )

  def on_device(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    is_global: jax.Array | bool | None,
  ) -> jax.Array:
    by_head = [x.swapaxes(1, 2) for x in (query, key, value)]  # [batch, heads, length, head_size]

    def attend(reach: int | None) -> jax.Array:
      kernel = _splash_row(length, query.shape[2], reach)
      exact = precision_of(precision, query.dtype) is not None
      row: Callable[..., jax.Array] = _row_in_float32 if exact else _row
      return jax.vmap(row, (None, 0, 0, 0, 0))(kernel, *by_head, segment_ids)

    if is_global is None:
      return attend(None).swapaxes(1, 2)
    # Masks are created when the kernel is traced, so the one body of the scanned layers has a
    # kernel for global layers and one for local layers.
    by_kind: jax.Array = jax.lax.cond(is_global, lambda: attend(None), lambda: attend(reach))
    return by_kind.swapaxes(1, 2)

  given = (query, key, value, segment_ids, is_global)
  return _on_each_device(on_device, given, (_POSITIONS, _POSITIONS, _POSITIONS, _ROWS, ()))


def _splash_row(length: int, heads: int, reach: int | None) -> Kernel:
  """The kernel of one row, for arrays `[heads, length, head_size]` and segments `[length]`.

  Blocks that are farther away than `reach` are skipped.
  """
  # It is experimental in JAX, so it is imported only where it is used.
  from jax.experimental.pallas.ops.tpu import splash_attention as sa

  local = reach is not None and reach < length - 1
  mask = (
    sa.LocalMask((length, length), (reach, reach), offset=0)
    if local
    else sa.FullMask((length, length))
  )
  block = max(size for size in range(LANES, LARGEST_BLOCK + 1, LANES) if length % size == 0)
  # One kernel for all gradients computes the scores once instead of twice, but holds the gradient
  # of the query once per block of keys, in float32.
  fused = block == length
  kernel = sa.make_splash_mha(
    sa.MultiHeadMask([mask] * heads),
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=RESIDUALS,
    interpret=INTERPRET,
    block_sizes=sa.BlockSizes(
      block_q=block,
      block_kv=block,
      block_kv_compute=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_kv_dkv_compute=block,
      use_fused_bwd_kernel=fused,
      block_q_dq=None if fused else block,
      block_kv_dq=None if fused else block,
    ),
  )
  return kernel


def _row(
  kernel: Kernel, query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array
) -> jax.Array:
  """Attention of one row; arrays as of `_splash_row`."""
  from jax.experimental.pallas.ops.tpu import splash_attention as sa

  out: jax.Array = kernel(query, key, value, sa.SegmentIds(segment_ids, segment_ids))
  return out


# Kernels take no precision, but follow JAX's default. JAX traces the backward pass later than the
# forward pass, so both set it.
_float32_products = functools.partial(jax.default_matmul_precision, 'float32')


@jax.custom_vjp
def _row_in_float32(
  kernel: Kernel, query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array
) -> jax.Array:
  """`_row` whose products, those of its gradients included, are float32."""
  with _float32_products():
    return _row(kernel, query, key, value, segment_ids)


def _forward_in_float32(
  kernel: Kernel, query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array
) -> tuple[jax.Array, Any]:
  with _float32_products():
    return jax.vjp(
      lambda query, key, value: _row(kernel, query, key, value, segment_ids), query, key, value
    )


def _backward_in_float32(
  backward: Callable[[jax.Array], tuple[Any, ...]], gradient: jax.Array
) -> tuple[Any, ...]:
  with _float32_products():
    return (None, *backward(gradient), None)


_row_in_float32.defvjp(_forward_in_float32, _backward_in_float32)


def cudnn(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  visible: jax.Array,
  implementation: Literal['xla', 'cudnn'] = 'cudnn',
) -> jax.Array:
  """Attention of cuDNN, by jax.nn.dot_product_attention.

  The kernel supports padding and causal windows, but neither packed rows nor windows to both sides.
  It therefore gets a dense mask of the visible positions, which becomes a bias in the type of the
  inputs. The bias takes 2 * batch * length**2 bytes, held for the backward pass (once for all
  layers, or once per layer where layers differ), and as many temporarily for a gradient that is not
  used. For 64 rows of 512 positions this is 32 MiB, where the probabilities of 12 heads that XLA's
  attention holds for each layer are 384 MiB in bfloat16.

  Args:
    query: scaled, bfloat16 or float16 `[batch, length, heads, head_size]`.
    key: of the same type and shape.
    value: of the same type and shape.
    visible: boolean `[batch, 1, length, length]`.
    implementation: of jax.nn.dot_product_attention; 'xla' computes the same without a GPU.

  Returns:
    `[batch, length, heads, head_size]`.
  """

  # On each device separately: the partitioning of the kernel itself does not split the mask as it
  # splits the query.
  def on_device(
    query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array
  ) -> jax.Array:
    return jax.nn.dot_product_attention(
      query, key, value, mask=visible, scale=1.0, implementation=implementation
    )

  given = (query, key, value, visible)
  return _on_each_device(on_device, given, (_POSITIONS, _POSITIONS, _POSITIONS, _ROWS))


def divided(mesh: jax.sharding.AbstractMesh, name: str | None, size: int) -> tuple[str, ...] | None:
  """The mesh axes that split a logical axis by the current rules; None where they do not divide it.

  Args:
    mesh: the mesh.
    name: of the logical axis.
    size: elements of the axis.
  """
  spec = nn.logical_to_mesh_axes((name,))
  assert spec is not None  # None is returned only for no names
  axes = spec[0] or ()
  axes = (axes,) if isinstance(axes, str) else axes
  return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else None


# Logical axes of arrays, as far as they are split.
_ROWS = ('batch',)
_POSITIONS = ('batch', None, 'heads')  # [batch, length, heads, head_size]
_BY_HEAD = ('batch', 'heads')  # [batch, heads, head_size, length]

Axes: TypeAlias = tuple[str | None, ...]


def _on_each_device(
  function: Callable[..., jax.Array], given: tuple[Any, ...], axes: tuple[Axes, ...]
) -> jax.Array:
  """Applies a function to each device's rows and heads, by the current mesh and logical axis rules.

  XLA cannot partition a kernel that it did not generate. An axis that does not divide (`tensor` and
  a generator of one head) is replicated, and those devices compute the same.

  Args:
    function: of the arrays; its result has the axes of the first one.
    given: the arrays; None or a Python value is the same for all devices.
    axes: of each array.
  """
  mesh = jax.sharding.get_abstract_mesh()
  # No mesh: one device, or the inside of a function that already runs on each device separately.
  if mesh.empty or not nn.get_logical_axis_rules():
    return function(*given)

  def spec(x: jax.Array | bool, names: Axes) -> PartitionSpec:
    sizes = zip(names, jnp.shape(x), strict=False)
    return PartitionSpec(*(name and divided(mesh, name, size) for name, size in sizes))

  pairs = zip(given, axes, strict=True)
  inputs = tuple(PartitionSpec() if x is None else spec(x, names) for x, names in pairs)
  # check_vma: Pallas kernels do not declare along which axes their results vary.
  return jax.shard_map(function, in_specs=inputs, out_specs=inputs[0], check_vma=False)(*given)

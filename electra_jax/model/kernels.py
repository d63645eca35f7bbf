"""Attention by fused kernels, which never hold the scores of all pairs of positions: Pallas splash (TPU) and cuDNN (GPU).

Both take a scaled query and know no dropout. Shapes as in model/attention.py.
"""

import math
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec

LANES = 128  # of a TPU: splash takes lengths that are multiples of it
LARGEST_BLOCK = 512  # positions to a side: a block's float32 scores are 1 MiB of VMEM, of which a kernel may take 16 on a v5e
RESIDUALS = 'attention_residuals'  # the name of what splash keeps for its backward pass, for policies of jax.checkpoint
INTERPRET = False  # tests set it, to run splash without a TPU


def splash(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segment_ids: jax.Array,
  is_global: jax.Array | bool | None,
  reach: int,
) -> jax.Array:
  """Splash attention of jax.experimental.pallas. Raises ValueError for a length that is not a multiple of 128."""
  length = query.shape[1]
  if length % LANES:
    raise ValueError(
      f'splash attention takes lengths that are multiples of {LANES}, not {length}; attention xla takes any.'
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
      return jax.vmap(_splash_row(length, query.shape[2], reach))(*by_head, segment_ids)

    if is_global is None:
      return attend(None).swapaxes(1, 2)
    # Masks are made when the kernel is traced, so the one body of scanned layers has a kernel for each kind.
    by_kind: jax.Array = jax.lax.cond(is_global, lambda: attend(None), lambda: attend(reach))
    return by_kind.swapaxes(1, 2)

  return _on_each_device(on_device, query, key, value, segment_ids, is_global)


def _splash_row(length: int, heads: int, reach: int | None) -> Callable[..., jax.Array]:
  """Attention of one row, [heads, length, head_size] and [length]. A `reach` skips the blocks that lie beyond it."""
  # Experimental in JAX, so it is asked for only where it is used.
  from jax.experimental.pallas.ops.tpu import splash_attention as sa

  local = reach is not None and reach < length - 1
  mask = (
    sa.LocalMask((length, length), (reach, reach), offset=0)
    if local
    else sa.FullMask((length, length))
  )
  block = max(size for size in range(LANES, LARGEST_BLOCK + 1, LANES) if length % size == 0)
  # One kernel for all gradients computes the scores once, not twice, but holds the query's once a block of keys, in float32.
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
  return lambda query, key, value, segment_ids: kernel(
    query, key, value, sa.SegmentIds(segment_ids, segment_ids)
  )


def cudnn(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  visible: jax.Array,
  implementation: Literal['xla', 'cudnn'] = 'cudnn',
) -> jax.Array:
  """cuDNN's attention, through jax.nn.dot_product_attention.

  The kernel knows padding and causal windows, but neither packed rows nor windows to both sides, so it is given what is visible
  as a dense mask. That becomes a bias in the inputs' type: 2 * batch * length**2 bytes, held for the backward pass (once for all
  layers, or once a layer where layers differ), and as many again in passing for a gradient that nobody reads. 64 rows of 512: 32
  MiB, where the probabilities of 12 heads that XLA's attention holds for every layer are 384 MiB in bfloat16.

  Args:
    query: bfloat16 or float16 [batch, length, heads, head_size], scaled.
    key: of the same type and shape.
    value: of the same type and shape.
    visible: boolean [batch, 1, length, length].
    implementation: of jax.nn.dot_product_attention; 'xla' computes the same without a GPU.
  """

  # A device at a time: left to itself the kernel's partitioning does not divide the mask as it does the query.
  def on_device(
    query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array, _: None
  ) -> jax.Array:
    return jax.nn.dot_product_attention(
      query, key, value, mask=visible, scale=1.0, implementation=implementation
    )

  return _on_each_device(on_device, query, key, value, visible, None)


def divided(mesh: jax.sharding.AbstractMesh, name: str | None, size: int) -> tuple[str, ...] | None:
  """The mesh axes that a logical axis of so many elements goes over by the rules in force; None where they do not divide it."""
  spec = nn.logical_to_mesh_axes((name,))
  assert spec is not None  # None is for no names at all
  axes = spec[0] or ()
  axes = (axes,) if isinstance(axes, str) else axes
  return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else None


def _on_each_device(
  function: Callable[..., jax.Array],
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  of_rows: jax.Array,
  scalar: jax.Array | bool | None,
) -> jax.Array:
  """`function` of each device's rows and heads, by the mesh and the logical axis rules in force, if there are any.

  XLA cannot divide a kernel that it did not make. `of_rows` has the batch first and no heads; `scalar` is whole. An axis that
  does not divide (`tensor` and a generator of one head) is left whole: each of those devices then computes the same.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if (
    mesh.empty or not nn.get_logical_axis_rules()
  ):  # one device, or inside of what each device does by itself
    return function(query, key, value, of_rows, scalar)

  rows, heads = divided(mesh, 'batch', query.shape[0]), divided(mesh, 'heads', query.shape[2])
  inputs = PartitionSpec(rows, None, heads)
  # check_vma: Pallas kernels do not say along which axes their results vary.
  return jax.shard_map(
    function,
    in_specs=(inputs, inputs, inputs, PartitionSpec(rows), PartitionSpec()),
    out_specs=inputs,
    check_vma=False,
  )(query, key, value, of_rows, scalar)

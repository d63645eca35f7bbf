"""Attention: one function for all kernels, and the choice of the kernel."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from electra_jax.config.declarations import one_of
from electra_jax.model import kernels
from electra_jax.model.config import KERNELS
from electra_jax.model.dropout import DropoutSettings, dropout
from electra_jax.model.products import ProductSettings, batched_product, row_major

# `auto` chooses splash from this length on. The reason is memory, not time, which was not measured
# on a chip: compiled for a v5e, forward and backward pass of a base encoder on 8,192 tokens hold
# 29% less with splash in rows of 512, 12% less in rows of 256, and 1% less in rows of 128.
SPLASH_FROM_LENGTH = 512


@dataclasses.dataclass(frozen=True)
class AttentionSettings:
  """What attention computes, and with which kernel.

  Attributes:
    kernel: 'xla', 'splash' or 'cudnn', as `choose_attention` returns it.
    reach: positions that a local layer attends to on each side.
    direction: 'both', 'left' or 'right': the side that a position attends to, itself included.
      One side requires the kernel 'xla'.
    dropout_rate: dropout of the probabilities; above 0 it requires the kernel 'xla'.
    dropout_site: see model/dropout.py.
    dropout: see model/dropout.py.
    products: how products are computed.

  Raises:
    ValueError: the kernel does not support the dropout or the direction.
  """

  kernel: str
  reach: int
  direction: str = 'both'
  dropout_rate: float = 0.0
  dropout_site: int = 1
  dropout: DropoutSettings = DropoutSettings()
  products: ProductSettings = ProductSettings()

  def __post_init__(self) -> None:
    if self.kernel == 'xla':
      return
    if self.dropout_rate:
      raise ValueError(
        f'attention {self.kernel!r} has no dropout of its probabilities, and the rate is '
        f'{self.dropout_rate}; expected 0, or attention xla.'
      )
    if self.direction != 'both':
      raise ValueError(
        f'attention {self.kernel!r} does not support direction {self.direction!r}; expected both, '
        'or attention xla.'
      )


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segment_ids: jax.Array,
  is_global: jax.Array | bool | None,
  settings: AttentionSettings,
  dropout_keys: jax.Array | None = None,
) -> jax.Array:
  """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1) inside segments.

  A position attends to the positions of its segment. Packed documents therefore do not attend
  to each other, and no token attends to padding (segment 0). The softmax and its input are
  float32, the products have the type of the inputs.

  Args:
    query: `[batch, length, heads, head_size]`.
    key: `[batch, length, heads, head_size]`.
    value: `[batch, length, heads, head_size]`.
    segment_ids: int32 `[batch, length]`, 0 at padding.
    is_global: None for all positions, or a boolean, which may be traced: where it is false,
      positions attend to positions at most `settings.reach` away.
    settings: what is computed, and with which kernel.
    dropout_keys: one threefry key per row, `[batch]`; None for no dropout.

  Returns:
    `[batch, length, heads, head_size]`.
  """
  # Scaling the query and not the scores saves a quarter of the time of attention on a CPU.
  query = (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)
  if settings.kernel == 'splash':
    return kernels.splash(
      query, key, value, segment_ids, is_global, settings.reach, settings.products.precision
    )
  visible = visible_positions(segment_ids, is_global, settings.reach, settings.direction)
  if settings.kernel == 'cudnn':
    return kernels.cudnn(query, key, value, visible)
  return weighted_values(
    scores_of(query, key, settings.products), value, visible, settings, dropout_keys
  )


def scores_of(query: jax.Array, key: jax.Array, products: ProductSettings) -> jax.Array:
  """Products of each query and each key: float32 `[batch, heads, length, length]`."""
  if products.here().row_major:
    return batched_product(_by_head(query), _by_head(key), 1)
  return jnp.einsum(
    'bqnd,bknd->bnqk',
    query,
    key,
    precision=products.of(query.dtype),
    preferred_element_type=jnp.float32,
  )


def _by_head(x: jax.Array) -> jax.Array:
  """Exchanges the axes of positions and heads, in memory too."""
  return row_major(x.swapaxes(1, 2))


def weighted_values(
  scores: jax.Array,
  value: jax.Array,
  visible: jax.Array,
  settings: AttentionSettings,
  dropout_keys: jax.Array | None = None,
) -> jax.Array:
  """Values weighted by the softmax of scores, with the kernel 'xla'.

  Args:
    scores: float32 `[batch, heads, length, length]`, scaled.
    value: `[batch, length, heads, head_size]`.
    visible: of `visible_positions`.
    settings: as of `attention`.
    dropout_keys: as of `attention`.

  Returns:
    `[batch, length, heads, head_size]`.
  """
  probabilities = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(jnp.float32).min), axis=-1)
  if settings.dropout.scale == 'dtype':
    probabilities = probabilities.astype(value.dtype)
  probabilities = dropout(
    probabilities, settings.dropout_rate, dropout_keys, settings.dropout_site, settings.dropout
  )
  probabilities = probabilities.astype(value.dtype)
  if settings.products.here().row_major:
    values = batched_product(probabilities, _by_head(value), 0)
    return _by_head(values.astype(value.dtype))
  precision = settings.products.of(value.dtype)
  return jnp.einsum('bnqk,bknd->bqnd', probabilities, value, precision=precision)


def visible_positions(
  segment_ids: jax.Array, is_global: jax.Array | bool | None, reach: int, direction: str = 'both'
) -> jax.Array:
  """The positions that each position attends to.

  Args:
    segment_ids: as of `attention`.
    is_global: as of `attention`.
    reach: as of `AttentionSettings`.
    direction: as of `AttentionSettings`.

  Returns:
    boolean `[batch, 1, length, length]`, the query's position before the key's.
  """
  length = segment_ids.shape[1]
  visible = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
  # Positions from the query to the key.
  ahead = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
  if is_global is not None:
    visible &= is_global | (jnp.abs(ahead) <= reach)
  if direction != 'both':
    visible &= ahead <= 0 if direction == 'left' else ahead >= 0
  return visible


def choose_attention(
  wanted: str,
  *,
  platform: str,
  length: int,
  head_size: int,
  attention_dropout: float,
  dtype: DTypeLike,
  compute_capability: str | None = None,
) -> tuple[str, str]:
  """Chooses the attention kernel of a run.

  `auto` is XLA's attention where attention_dropout is not 0, since the other kernels do not have
  it. Without dropout it is XLA's on a CPU; splash on a TPU for rows of at least 512 tokens (because
  of memory, not measured on a chip); and cuDNN on a GPU with 16-bit products, whose dense mask
  takes 2 * batch * length**2 bytes (see kernels.cudnn) where XLA's probabilities take as much per
  head.

  Args:
    wanted: 'auto', 'xla', 'splash' or 'cudnn'.
    platform: of the devices: 'cpu', 'gpu' or 'tpu'.
    length: of the rows.
    head_size: of both towers.
    attention_dropout: the rate.
    dtype: of the products.
    compute_capability: of the GPU, as JAX's devices have it ('8.0'); None if unknown.

  Returns:
    The kernel and, in a few words, why.

  Raises:
    ValueError: the wanted kernel is not available here.
  """
  if wanted not in ('auto', *KERNELS):
    raise ValueError(f'attention is {wanted!r}; expected {one_of(("auto", *KERNELS))}.')
  if wanted == 'xla':
    return 'xla', 'as configured'
  kernel = {'tpu': 'splash', 'gpu': 'cudnn'}.get(platform, 'xla') if wanted == 'auto' else wanted
  if kernel == 'xla':
    return 'xla', f'the only one on {platform.upper()}'
  obstacle, remedy = _obstacle(
    kernel, platform, length, head_size, attention_dropout, jnp.dtype(dtype), compute_capability
  )
  if wanted != 'auto':
    if obstacle:
      remedies = ' or '.join(filter(None, [remedy, 'attention to auto']))
      raise ValueError(f'attention {kernel!r} {obstacle}; set {remedies}.')
    return kernel, 'as configured'
  if obstacle:
    return 'xla', f'{kernel} {obstacle}' + (f'; set {remedy} to use it' if remedy else '')
  if kernel == 'splash' and length < SPLASH_FROM_LENGTH:
    return 'xla', f'rows of {length} are short; splash is used from {SPLASH_FROM_LENGTH} on'
  return kernel, 'attention_dropout is 0' + (
    '; segments are a dense mask' if kernel == 'cudnn' else ''
  )


def _obstacle(
  kernel: str,
  platform: str,
  length: int,
  head_size: int,
  attention_dropout: float,
  dtype: np.dtype[Any],
  compute_capability: str | None,
) -> tuple[str | None, str | None]:
  """Why a fused kernel cannot be used, or None; and what to set so that it can, if possible."""
  home = {'splash': 'tpu', 'cudnn': 'gpu'}[kernel]
  if platform != home:
    return f'runs on {home.upper()}, not on {platform.upper()}', None
  if attention_dropout:
    return 'has no attention dropout', 'attention_dropout to 0'
  if kernel == 'splash':
    if length % kernels.LANES:
      return (
        f'takes multiples of {kernels.LANES} positions, not {length}',
        f'sequence_length to a multiple of {kernels.LANES}',
      )
    return None, None
  # The limits of the implementation of jax.nn.dot_product_attention with a mask, on the oldest GPUs
  # that it supports.
  if dtype not in (jnp.bfloat16, jnp.float16):
    return f'takes bfloat16 and float16, not {dtype}', 'dtype to bfloat16'
  if head_size % 8 or head_size > 128:
    return (
      f'takes head sizes up to 128 that are multiples of 8, not {head_size}',
      'hidden_size or num_heads',
    )
  if length % 2:
    return f'takes even lengths, not {length}', 'sequence_length to an even number'
  if compute_capability is not None and not _at_least(compute_capability, 8):
    return f'requires a GPU of compute capability 8.0 or more, not {compute_capability}', None
  return None, None


def _at_least(compute_capability: str, major: int) -> bool:
  """Whether a capability such as '8.0' is large enough; those of AMD ('gfx90a') are not numbers."""
  number = compute_capability.partition('.')[0]
  return number.isdigit() and int(number) >= major


def rotary_tables(
  positions: jax.Array, head_size: int, theta: float
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of rotary positions (Su et al. 2021, section 3.2.2).

  Args:
    positions: int32 `[batch, length]`.
    head_size: of the attention heads, even.
    theta: the base of the frequencies.

  Returns:
    Two arrays, float32 `[batch, length, 1, head_size / 2]`.
  """
  frequencies = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
  angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates queries or keys by their positions.

  Element i of the first half of a head is paired with element i of the second.

  Args:
    x: `[batch, length, heads, head_size]`.
    tables: of `rotary_tables`.
  """
  cos, sin = tables
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(
    x.dtype
  )

"""Attention: one function for all kernels."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from electra_jax.model import counter, kernels
from electra_jax.model.dropout import DropoutSettings, dropout
from electra_jax.model.kernel_choice import KERNELS, require_dropout
from electra_jax.model.products import ProductSettings, batched_product, row_major


@dataclasses.dataclass(frozen=True)
class AttentionSettings:
  """What attention computes, and with which kernel.

  Attributes:
    kernel: a key of KERNELS in model/kernel_choice.py.
    reach: positions that a local layer attends to on each side.
    direction: 'both', 'left' or 'right': the side that a position attends to, itself included.
      One side requires the kernel 'xla'.
    dropout_rate: dropout of the probabilities.
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
    require_dropout(self.kernel, self.dropout_rate, self.dropout)
    if self.direction != 'both' and not KERNELS[self.kernel].general:
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
  inputs = _Inputs(query, key, value, segment_ids, is_global, dropout_keys)
  return _BY_KERNEL[settings.kernel](inputs, settings)


class _Inputs(NamedTuple):
  """The arrays of `attention`."""

  query: jax.Array
  key: jax.Array
  value: jax.Array
  segment_ids: jax.Array
  is_global: jax.Array | bool | None
  dropout_keys: jax.Array | None


def _scaled(query: jax.Array) -> jax.Array:
  # Scaling the query and not the scores saves a quarter of the time of attention on a CPU.
  scaled: jax.Array = (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)
  return scaled


def _by_xla(x: _Inputs, settings: AttentionSettings) -> jax.Array:
  visible = visible_positions(x.segment_ids, x.is_global, settings.reach, settings.direction)
  scores = scores_of(_scaled(x.query), x.key, settings.products)
  return weighted_values(scores, x.value, visible, settings, x.dropout_keys)


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


def _by_pallas(x: _Inputs, settings: AttentionSettings) -> jax.Array:
  row_keys = None
  if x.dropout_keys is not None and settings.dropout_rate:
    row_keys = counter.row_keys(x.dropout_keys, settings.dropout_site)
  computation = kernels.Pallas(
    settings.reach, settings.products.precision, settings.dropout_rate, row_keys
  )
  return kernels.pallas(x.query, x.key, x.value, x.segment_ids, x.is_global, computation)


def _by_splash(x: _Inputs, settings: AttentionSettings) -> jax.Array:
  reach, precision = settings.reach, settings.products.precision
  query = _scaled(x.query)
  return kernels.splash(query, x.key, x.value, x.segment_ids, x.is_global, reach, precision)


def _by_cudnn(x: _Inputs, settings: AttentionSettings) -> jax.Array:
  visible = visible_positions(x.segment_ids, x.is_global, settings.reach, settings.direction)
  return kernels.cudnn(_scaled(x.query), x.key, x.value, visible)


_BY_KERNEL: dict[str, Callable[[_Inputs, AttentionSettings], jax.Array]] = {
  'xla': _by_xla,
  'pallas': _by_pallas,
  'splash': _by_splash,
  'cudnn': _by_cudnn,
}


def weighted_values(
  scores: jax.Array,
  value: jax.Array,
  visible: jax.Array,
  settings: AttentionSettings,
  dropout_keys: jax.Array | None = None,
) -> jax.Array:
  """Values weighted by the softmax of scores, with the kernel 'xla'.

  The values are multiplied by the exponentials of the scores, and the result is divided by the sum
  of these. To divide the exponentials would take another pass over all pairs of positions, and one
  more for the gradient.

  Args:
    scores: float32 `[batch, heads, length, length]`, scaled.
    value: `[batch, length, heads, head_size]`.
    visible: of `visible_positions`.
    settings: as of `attention`.
    dropout_keys: as of `attention`.

  Returns:
    `[batch, length, heads, head_size]`.
  """
  # Added, not selected, so that the gradient of the scores needs no mask.
  scores += jnp.where(visible, 0.0, jnp.finfo(jnp.float32).min)
  weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
  divisor = weights.sum(-1, keepdims=True)  # [batch, heads, length, 1]
  if settings.dropout.scale == 'dtype':
    weights = weights.astype(value.dtype)
  weights = dropout(
    weights, settings.dropout_rate, dropout_keys, settings.dropout_site, settings.dropout
  )
  weights = weights.astype(value.dtype)
  if settings.products.here().row_major:
    values = batched_product(weights, _by_head(value), 0) / divisor
    return _by_head(values.astype(value.dtype))
  values = jnp.einsum(
    'bnqk,bknd->bqnd',
    weights,
    value,
    precision=settings.products.of(value.dtype),
    preferred_element_type=jnp.float32,
  )
  return (values / divisor.swapaxes(1, 2)).astype(value.dtype)


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


def rotary_tables(
  positions: jax.Array, head_size: int, theta: float, in_memory: bool = False
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of rotary positions (Su et al. 2021, section 3.2.2).

  Args:
    positions: int32 `[batch, length]`.
    head_size: of the attention heads, even.
    theta: the base of the frequencies.
    in_memory: whether XLA has to keep them. XLA for CPUs would fuse sines and cosines into what
      uses them, and compute them again for each head of each layer.

  Returns:
    Two arrays, float32 `[batch, length, 1, head_size / 2]`.
  """
  frequencies = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
  angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
  if not in_memory:
    return jnp.cos(angles), jnp.sin(angles)

  def table(_: None, is_sine: jax.Array) -> tuple[None, jax.Array]:
    return None, jnp.where(is_sine, jnp.sin(angles), jnp.cos(angles))

  # Nothing is fused with a loop; a barrier would be removed before fusion.
  _, (cos, sin) = jax.lax.scan(table, None, jnp.arange(2) == 1)
  return cos, sin


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

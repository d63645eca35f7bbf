"""Disentangled attention of DeBERTa (He et al. 2021, DeBERTa, section 3.1; DeBERTaV3).

The score of a query and a key has two more terms: the query with the table row of their distance,
and the key with it. Distances are in buckets, which are logarithmic from half of them on. Positions
are differences, so packed documents need no restart.
"""

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.model.attention import (
  AttentionSettings,
  scores_of,
  visible_positions,
  weighted_values,
)

_TERMS = 3  # summands of a score, by whose number its variance is divided


def bucket_rows(length: int, buckets: int, longest: int) -> np.ndarray:
  """The row of the table for each distance from the key to the query.

  Args:
    length: tokens of a row.
    buckets: distances to each side that have a row. Those below half of it have one each.
    longest: distances from here on share the last rows.

  Returns:
    int32 `[2 * length - 1]`, for query - key = length - 1, ..., -(length - 1).
  """
  distance = np.arange(length - 1, -length, -1)
  middle = buckets // 2
  size = np.abs(distance).astype(np.float32)
  # float32 as in `transformers`, whose rounding decides at the borders of buckets.
  far = np.maximum(size, max(middle - 1, 1)) / np.float32(middle)
  scale = np.log(np.float32((longest - 1) / middle))
  logarithmic = np.ceil(np.log(far) / scale * np.float32(middle - 1)) + middle
  bucket = np.where(size <= middle, distance, logarithmic * np.sign(distance))
  rows: np.ndarray = np.clip(bucket + buckets, 0, 2 * buckets - 1).astype(np.int32)
  return rows


def disentangled_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  distances: tuple[jax.Array, ...],
  segment_ids: jax.Array,
  settings: AttentionSettings,
  dropout_keys: jax.Array | None = None,
) -> jax.Array:
  """Attention inside segments, whose scores depend on contents and distances.

  Each of the two terms with distances is a product with the rows of all of them,
  `[length, 2 * length - 1]` per head, which is then shifted row by row: there is no gather or
  scatter of scores, which are slow on accelerators.

  Args:
    query: `[batch, length, heads, head_size]`.
    key: `[batch, length, heads, head_size]`.
    value: `[batch, length, heads, head_size]`.
    distances: queries and keys of the rows of `bucket_rows`, `[2 * length - 1, heads, head_size]`.
    segment_ids: int32 `[batch, length]`, 0 at padding.
    settings: what is computed; the kernel is 'xla'.
    dropout_keys: one threefry key per row, `[batch]`; None for no dropout.

  Returns:
    `[batch, length, heads, head_size]`.
  """
  position_query, position_key = distances
  scale: float = (_TERMS * query.shape[-1]) ** -0.5
  precision = settings.products.of(query.dtype)

  def scaled(x: jax.Array) -> jax.Array:
    found: jax.Array = (x.astype(jnp.float32) * scale).astype(x.dtype)
    return found

  def product(form: str, x: jax.Array, y: jax.Array) -> jax.Array:
    found: jax.Array = jnp.einsum(
      form, x, y, precision=precision, preferred_element_type=jnp.float32
    )
    return found

  query = scaled(query)
  scores = scores_of(query, key, settings.products)
  scores += _shifted(product('bqnd,rnd->bnqr', query, position_key))
  # For a key the distances are in the opposite order.
  of_keys = product('bknd,rnd->bnkr', key, scaled(position_query)[::-1])
  scores += _shifted(of_keys).swapaxes(2, 3)
  visible = visible_positions(segment_ids, None, 0)
  return weighted_values(scores, value, visible, settings, dropout_keys)


def _shifted(scores: jax.Array) -> jax.Array:
  """Element (i, j) of the result is element (i, j - i + length - 1).

  Args:
    scores: `[..., length, 2 * length - 1]`.

  Returns:
    `[..., length, length]`.
  """
  *first, length, width = scores.shape
  flat = jnp.pad(scores, [(0, 0)] * (scores.ndim - 1) + [(0, 1)]).reshape(*first, -1)
  rows = flat[..., : length * width].reshape(*first, length, width)
  return rows[..., length - 1 :]

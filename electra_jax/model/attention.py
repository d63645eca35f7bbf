"""Attention behind one function."""

import jax
import jax.numpy as jnp

from electra_jax.model.dropout import dropout


def attention(query, key, value, segment_ids, is_global=None, *, reach, kernel, dropout_rate, dropout_keys, dropout_site,
              dropout_generator):
  """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1) inside segments.

  A position attends to the positions of its own segment, so packed documents do not see each other and no real token sees
  padding (segment 0). Softmax and its input are float32, the products are in the inputs' type.

  Args:
    query, key, value: [batch, length, heads, head_size].
    segment_ids: [batch, length], 0 at padding.
    is_global: None for all positions, or a boolean (may be traced): where it is false, only positions at most `reach` apart
      see each other.
    reach: positions that a local layer sees to either side, a Python integer.
    kernel: 'xla'.
    dropout_rate, dropout_keys, dropout_site, dropout_generator: dropout of the probabilities, see model/dropout.py.

  Returns: [batch, length, heads, head_size].
  """
  length, head_size = query.shape[1], query.shape[-1]
  # Scaling the query and not the scores saves a quarter of attention's time on a CPU.
  query = (query.astype(jnp.float32) * head_size**-0.5).astype(query.dtype)
  scores = jnp.einsum('bqnd,bknd->bnqk', query, key, preferred_element_type=jnp.float32)
  visible = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]                    # [batch, 1, length, length]
  if is_global is not None:
    distance = jnp.abs(jnp.arange(length)[:, None] - jnp.arange(length)[None, :])
    visible &= is_global | (distance <= reach)
  probabilities = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(jnp.float32).min), axis=-1)
  probabilities = dropout(probabilities.astype(value.dtype), dropout_rate, dropout_keys, dropout_site, dropout_generator)
  return jnp.einsum('bnqk,bknd->bqnd', probabilities, value)


def rotary_tables(positions, head_size, theta):
  """Cosines and sines of rotary positions (Su et al. 2021, section 3.2.2), float32 [batch, length, 1, head_size / 2]."""
  frequencies = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
  angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x, tables):
  """Rotates x [batch, length, heads, head_size] by its positions: element i of the first half pairs with i of the second."""
  cos, sin = tables
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)

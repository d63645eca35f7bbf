"""Random bits of dropout from counters, by the same operations inside and outside of TPU kernels.

A bit is a pure function of a row's key and of the position of the element in the row, so it does
not depend on the mesh, on blocks of a kernel, or on who computes it again in a backward pass.

The hash has two levels, so that most of its operations are per query and not per element: a key of
each (row, head), a state of each query, and a bit of each (query, key position). `mix` is lowbias32
(Wellons 2018, "Prospecting for hash functions"). The bits are good enough to choose what is
dropped; masks and samples of pretraining never use them.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Odd numbers without structure; the first is 2**32 over the golden ratio.
_STEP = np.uint32(0x9E3779B9)
_ELEMENT = np.uint32(0x85EBCA77)
_MULTIPLIERS = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)


def _mix_all_but_last_shift(x: jax.Array) -> jax.Array:
  x = (x ^ (x >> 16)) * _MULTIPLIERS[0]
  return (x ^ (x >> 15)) * _MULTIPLIERS[1]


def mix(x: jax.Array) -> jax.Array:
  """A permutation of the 32-bit numbers in which each bit of x changes about half of the others."""
  x = _mix_all_but_last_shift(x)
  return x ^ (x >> 16)


def fold_words(key: jax.Array, word: jax.Array) -> jax.Array:
  """Folds a number into a key.

  Args:
    key: uint32, of any shape.
    word: uint32, of a shape that broadcasts with it.
  """
  return mix(key * _STEP + word + np.uint32(1))


def row_keys(keys: jax.Array, site: int) -> jax.Array:
  """The numbers that the elements of each row start from.

  Args:
    keys: threefry keys `[batch]`, of (seed, step, row of the global batch, layer).
    site: number of the place in the layer.

  Returns:
    uint32 `[batch]`.
  """
  words = jax.vmap(jax.random.key_data)(keys)  # [batch, 2]
  return fold_words(
    fold_words(fold_words(jnp.zeros((), jnp.uint32), words[:, 0]), words[:, 1]), jnp.uint32(site)
  )


def query_states(key: jax.Array, queries: jax.Array) -> jax.Array:
  """The state of each query.

  Args:
    key: uint32, of a (row, head).
    queries: uint32 positions, of a shape that broadcasts with the key.
  """
  return mix(queries * _STEP + key)


def kept_mask(states: jax.Array, positions: jax.Array, rate: float) -> jax.Array:
  """Whether elements are kept.

  The product of the position keeps neighbors apart: with the position only, masks of neighbors are
  correlated.

  Args:
    states: of `query_states`.
    positions: uint32 positions of the keys, of a shape that broadcasts with the states.
    rate: probability of False, below 1.

  Returns:
    Booleans.
  """
  bits = _mix_all_but_last_shift(states + positions * _ELEMENT)
  # The compare is of the high bits, which the last shift of `mix` would not change. It is signed,
  # since on some TPUs an unsigned one takes an operation more.
  threshold = min(round(rate * 2**32), 2**32 - 1) - 2**31
  return jax.lax.bitcast_convert_type(bits, jnp.int32) >= np.int32(threshold)


def mask(keys: jax.Array, shape: tuple[int, ...], site: int, rate: float) -> jax.Array:
  """The elements of each row that are kept.

  Args:
    keys: threefry keys `[batch]`.
    shape: of a row's elements. The last axis is that of the key positions, the one before it that
      of the queries, and those before are folded into the key.
    site: number of the place in the layer.
    rate: probability of False.

  Returns:
    boolean `[batch, *shape]`.
  """
  rank = len(shape)

  def index(axis: int) -> jax.Array:
    size = shape[axis] if rank + axis >= 0 else 1
    along = jax.lax.iota(jnp.uint32, size)
    return along.reshape((size,) + (1,) * (-1 - axis))

  key = row_keys(keys, site).reshape((-1,) + (1,) * max(rank, 1))
  for axis in range(-rank, -2):
    key = fold_words(key, index(axis))
  return kept_mask(query_states(key, index(-2)), index(-1), rate)

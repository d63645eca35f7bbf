"""Dropout from one key a row, so that it does not depend on the mesh or on the number of micro-batches."""

import math
from typing import overload

import jax
import jax.numpy as jnp

from electra_jax.model.randomness import threefry_bits


@overload
def fold_in(keys: None, data: jax.Array | int) -> None: ...


@overload
def fold_in(keys: jax.Array, data: jax.Array | int) -> jax.Array: ...


def fold_in(keys: jax.Array | None, data: jax.Array | int) -> jax.Array | None:
  """Folds one integer into every row's key: keys [batch] -> keys [batch]. None (no dropout) stays None."""
  return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def _hash_bits(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Random uint32 [batch, *shape]: a counter and the two words of a row's key through a bit mixer.

  The mixer is the finaliser of MurmurHash3 (Appleby, public domain) with the second word of the key between its rounds: a few
  integer operations a number that fuse with what uses them, where threefry takes twenty rounds. It is good enough to
  decide which activations are dropped; masks and samples never use it.
  """
  words = jax.vmap(jax.random.key_data)(keys)  # [batch, 2]

  def column(word: int) -> jax.Array:
    return words[:, word].reshape((-1,) + (1,) * len(shape))

  counter = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape((1,) + shape)
  bits: jax.Array = counter * jnp.uint32(0x9E3779B9) ^ column(
    0
  )  # the golden ratio spreads neighbours apart
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B) ^ column(1)
  bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
  return bits ^ (bits >> 16)


def dropout(
  x: jax.Array, rate: float, keys: jax.Array | None, site: int, generator: str
) -> jax.Array:
  """Zeroes each element of x [batch, ...] with probability `rate` and scales the rest by 1 / (1 - rate).

  Args:
    x: activations, the first axis is the batch.
    rate: probability of zero; 0 returns x.
    keys: one threefry key a row [batch], or None for no dropout.
    site: a number for the place in the layer, so that no two places share a mask.
    generator: 'hash' (cheap) or 'threefry' (JAX's own).
  """
  if keys is None or rate == 0:
    return x
  keys = fold_in(keys, site)
  if generator == 'hash':
    bits = _hash_bits(keys, x.shape[1:])
  else:
    bits = threefry_bits(keys, x.shape[1:])
  keep = bits < jnp.uint32(round((1 - rate) * 2**32))
  return jnp.where(keep, x * jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros((), x.dtype))

"""Dropout from one key per row, independent of the mesh and of the number of micro-batches."""

import math
from collections.abc import Callable
from typing import NamedTuple, overload

import jax
import jax.numpy as jnp

from electra_jax.model import counter
from electra_jax.model.randomness import threefry_bits


@overload
def fold_in(keys: None, data: jax.Array | int) -> None: ...


@overload
def fold_in(keys: jax.Array, data: jax.Array | int) -> jax.Array: ...


def fold_in(keys: jax.Array | None, data: jax.Array | int) -> jax.Array | None:
  """Folds an integer into each row's key.

  Args:
    keys: threefry keys `[batch]`; None for no dropout.
    data: the integer.

  Returns:
    Keys `[batch]`; None for None.
  """
  return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def _hash_bits(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Random bits, uint32 `[batch, *shape]`: a bit mixer of a counter and the words of a row's key.

  The mixer is the finalizer of MurmurHash3 (Appleby, public domain), with the second word of the
  key between its rounds. It takes a few integer operations per number, which fuse with what uses
  them, where threefry takes twenty rounds. It is good enough to choose the activations that are
  dropped; masks and samples never use it.
  """
  words = jax.vmap(jax.random.key_data)(keys)  # [batch, 2]

  def column(word: int) -> jax.Array:
    return words[:, word].reshape((-1,) + (1,) * len(shape))

  counter = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape((1,) + shape)
  # A multiple of the golden ratio separates the bits of neighboring numbers.
  bits: jax.Array = counter * jnp.uint32(0x9E3779B9) ^ column(0)
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B) ^ column(1)
  bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
  return bits ^ (bits >> 16)


def _below(
  bits: Callable[[jax.Array, tuple[int, ...]], jax.Array],
) -> Callable[[jax.Array, tuple[int, ...], int, float], jax.Array]:
  """A mask from random bits: what is kept has bits below a threshold."""

  def mask(keys: jax.Array, shape: tuple[int, ...], site: int, rate: float) -> jax.Array:
    below: jax.Array = bits(fold_in(keys, site), shape) < jnp.uint32(round((1 - rate) * 2**32))
    return below

  return mask


_MASKS = {
  'counter': counter.mask,
  'hash': _below(_hash_bits),
  'threefry': _below(threefry_bits),
}


class DropoutSettings(NamedTuple):
  """How dropout is computed.

  Attributes:
    generator: of the random bits: 'counter' (model/counter.py, also inside kernels), 'hash' (as in
      version 0.1.0) or 'threefry' (that of JAX).
    scale: type of the factor 1 / (1 - rate) and of the product with it: 'float32', or 'dtype' for
      that of the activations, where bfloat16 rounds 1 / 0.9 to 1.1094 and biases the mean.
  """

  generator: str = 'counter'
  scale: str = 'float32'


def dropout(
  x: jax.Array, rate: float, keys: jax.Array | None, site: int, settings: DropoutSettings
) -> jax.Array:
  """Sets each element to zero with probability `rate` and scales the rest by 1 / (1 - rate).

  Args:
    x: activations `[batch, ...]`.
    rate: probability of zero; 0 returns x.
    keys: one threefry key per row, `[batch]`; None for no dropout.
    site: number of the place in the layer, so that no two places have the same mask.
    settings: random bits, and the type of the scale.

  Returns:
    Activations of the type of x.
  """
  if keys is None or rate == 0:
    return x
  keep = _MASKS[settings.generator](keys, x.shape[1:], site, rate)
  dtype = jnp.float32 if settings.scale == 'float32' else x.dtype
  scaled = (x.astype(dtype) * jnp.asarray(1 / (1 - rate), dtype)).astype(x.dtype)
  return jnp.where(keep, scaled, jnp.zeros((), x.dtype))

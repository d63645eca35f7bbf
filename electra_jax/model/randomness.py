"""One threefry key a row, and random bits and Gumbel noise from it: JAX's numbers, as operations that fuse.

On a CPU jax.random runs threefry's rounds as a loop over whole arrays; written out, they become part of the vectorised
loop that uses the bits, five times as fast. On GPU and TPU both are the same.
"""

import math

import jax
import jax.numpy as jnp

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def row_keys(seed: int, step: jax.Array | int, rows: jax.Array) -> jax.Array:
  """One threefry key a row, from (seed, step, row of the global batch) and nothing else: keys [batch].

  So the randomness of a step is bitwise the same on every mesh and for every number of micro-batches.

  Args:
    seed: the run's seed.
    step: int32 scalar, may be traced.
    rows: int32 [batch], the rows' numbers in the global batch.
  """
  key = jax.random.fold_in(jax.random.key(seed, impl='threefry2x32'), step)
  return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def threefry_bits(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Random uint32 [batch, *shape], equal to jax.random.bits(key, shape) of each row's key with partitionable threefry.

  Threefry-2x32 with 20 rounds (Salmon et al. 2011) of the counter (0, index in the row); the two words are XORed.
  `keys`: threefry keys [batch]. A row has at most 2**32 numbers.
  """
  words = jax.vmap(jax.random.key_data)(keys)  # [batch, 2]
  first, second = (words[:, i].reshape((-1,) + (1,) * len(shape)) for i in range(2))
  schedule = (first, second, first ^ second ^ jnp.uint32(0x1BD11BDA))
  x = schedule[0]
  y = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape((1,) + tuple(shape)) + schedule[1]
  for group in range(5):
    for rotation in _ROTATIONS[group % 2]:
      x += y
      y = ((y << rotation) | (y >> (32 - rotation))) ^ x
    x += schedule[(group + 1) % 3]
    y += schedule[(group + 2) % 3] + jnp.uint32(group + 1)
  return x ^ y


def gumbel(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Gumbel noise float32 [batch, *shape], equal to jax.random.gumbel of each row's key."""
  # 23 random bits after the point of a number in [1, 2); 1 off gives [0, 1), and the smallest float stands for 0.
  uniform = (
    jax.lax.bitcast_convert_type(
      (threefry_bits(keys, shape) >> 9) | jnp.uint32(0x3F800000), jnp.float32
    )
    - 1
  )
  return -jnp.log(-jnp.log(jnp.maximum(uniform, jnp.finfo(jnp.float32).tiny)))

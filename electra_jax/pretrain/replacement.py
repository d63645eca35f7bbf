"""Samples of the generator: Gumbel sampling, corrupted tokens and their labels."""

import math

import jax
import jax.numpy as jnp

from electra_jax.model.randomness import gumbel
from electra_jax.pretrain.masking import Masks, write_tokens


def argmax(scores: jax.Array) -> jax.Array:
  """The first index of the largest score: [..., vocab] -> int32 [...], as jnp.argmax.

  On CPUs XLA vectorizes a maximum, but neither an argmax nor the noise inside of one, so the best
  block of 128 is found first. On accelerators blocks would be copies of the scores.
  """
  found: jax.Array = jax.lax.platform_dependent(
    scores,
    cpu=_argmax_by_blocks,
    default=lambda scores: jnp.argmax(scores, axis=-1).astype(jnp.int32),
  )
  return found


def _argmax_by_blocks(scores: jax.Array) -> jax.Array:
  block = math.gcd(scores.shape[-1], 128)
  blocks = scores.reshape(*scores.shape[:-1], -1, block)
  best = jnp.argmax(blocks.max(-1), axis=-1)
  inside = jnp.take_along_axis(blocks, best[..., None, None], axis=-2)[..., 0, :]
  return (best * block + jnp.argmax(inside, axis=-1)).astype(jnp.int32)


def sample(
  logits: jax.Array,
  keys: jax.Array,
  *,
  temperature: jax.typing.ArrayLike,
  disallow: jax.Array | None = None,
) -> jax.Array:
  """One token per masked position from softmax(logits / temperature), in float32.

  argmax(logits / t + g) with Gumbel noise g is a draw from the softmax (Maddison et al. 2014).
  Written as argmax(logits + t g), its limit t = 0 is the argmax itself. No gradient passes.

  Args:
    logits: float32 [batch, predictions, vocab].
    keys: one key per row [batch].
    temperature: scalar, at least 0; a Python 0 draws no noise at all.
    disallow: int32 [batch, predictions], tokens that may not be drawn, or None.

  Returns:
    int32 [batch, predictions].
  """
  logits = jax.lax.stop_gradient(logits.astype(jnp.float32))
  if disallow is not None:
    vocabulary = jax.lax.iota(jnp.int32, logits.shape[-1])
    logits = jnp.where(disallow[..., None] == vocabulary, jnp.finfo(jnp.float32).min, logits)
  if not (isinstance(temperature, (int, float)) and temperature == 0):
    logits = logits + temperature * gumbel(keys, logits.shape[1:])
  return argmax(logits)


def corrupt(token_ids: jax.Array, masks: Masks, samples: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The tokens that the discriminator reads, and its labels.

  All chosen positions get the sample, also those that kept their token. A sample that equals the
  original is labeled as original (Clark et al. 2020, section 2).

  Args:
    token_ids: int32 [batch, length], before masking.
    masks: the masked positions.
    samples: int32 [batch, predictions].

  Returns:
    Corrupted tokens int32 [batch, length]; labels float32 [batch, length], 1 where a token was
    replaced.
  """
  corrupted = write_tokens(token_ids, masks.positions, samples, masks.weights)
  return corrupted, (corrupted != token_ids).astype(jnp.float32)

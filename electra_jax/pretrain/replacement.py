"""What the generator puts at the masked positions: Gumbel sampling, corrupted tokens and their labels."""

import math

import jax
import jax.numpy as jnp

from electra_jax.model.randomness import gumbel
from electra_jax.pretrain.masking import write


def argmax(scores):
  """The first index of the largest score: [..., vocab] -> int32 [...], as jnp.argmax.

  By way of the best block of 128: on a CPU XLA vectorises a maximum, but not an argmax nor the noise inside of one.
  """
  block = math.gcd(scores.shape[-1], 128)
  blocks = scores.reshape(*scores.shape[:-1], -1, block)
  best = jnp.argmax(blocks.max(-1), axis=-1)
  inside = jnp.take_along_axis(blocks, best[..., None, None], axis=-2)[..., 0, :]
  return (best * block + jnp.argmax(inside, axis=-1)).astype(jnp.int32)


def sample(logits, keys, *, temperature, disallow: jax.Array | None = None):
  """One token a masked position, drawn from softmax(logits / temperature) by Gumbel-argmax in float32.

  argmax(logits / t + g) with Gumbel noise g is a draw from the softmax (Maddison et al. 2014); written as
  argmax(logits + t g) its limit t = 0 is the argmax itself. No gradient passes.

  Args:
    logits: float32 [batch, predictions, vocab].
    keys: one key a row [batch].
    temperature: scalar, at least 0; a Python 0 draws no noise at all.
    disallow: int32 [batch, predictions] of tokens that may not be drawn, or None.

  Returns: int32 [batch, predictions].
  """
  logits = jax.lax.stop_gradient(logits.astype(jnp.float32))
  if disallow is not None:
    vocabulary = jax.lax.iota(jnp.int32, logits.shape[-1])
    logits = jnp.where(disallow[..., None] == vocabulary, jnp.finfo(jnp.float32).min, logits)
  if not (isinstance(temperature, (int, float)) and temperature == 0):
    logits = logits + temperature * gumbel(keys, logits.shape[1:])
  return argmax(logits)


def corrupt(token_ids, masks, samples):
  """The tokens that the discriminator reads, and its labels.

  All chosen positions get the sample, those that kept their token included. A sample that equals the original is labelled
  original (Clark et al. 2020, section 2).

  Args:
    token_ids: int32 [batch, length], before masking.
    masks: pretrain.masking.Masks.
    samples: int32 [batch, predictions].

  Returns: corrupted int32 [batch, length]; labels float32 [batch, length], 1 where a token was replaced.
  """
  corrupted = write(token_ids, masks.positions, samples, masks.weights)
  return corrupted, (corrupted != token_ids).astype(jnp.float32)

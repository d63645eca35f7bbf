"""Log-probabilities of given tokens at every position, without an array of all logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def token_log_probabilities(
  logits_of: Callable[[jax.Array], jax.Array],
  hidden: jax.Array,
  token_ids: jax.Array,
  *,
  chunk: int,
) -> jax.Array:
  """Returns log p(token) of each given token at each position; differentiable.

  Positions are processed in chunks, the same ones of all rows. The backward pass recomputes each
  chunk's logits. No array has more than batch x chunk x vocabulary elements, forward and backward;
  the price is a second product per chunk.

  Args:
    logits_of: pure function of hidden states [batch, positions, hidden] to float32 logits
      [batch, positions, vocab], such as a module's `apply`; gradients reach what it closes over.
    hidden: [batch, length, hidden].
    token_ids: int32 [batch, length, tokens], the tokens asked for at each position.
    chunk: most positions at a time. With the number of slots for masked positions, arrays are as
      large as the logits at those.

  Returns:
    float32 [batch, length, tokens].
  """
  length = hidden.shape[1]
  steps = -(-length // chunk)
  size = -(-length // steps)

  def split(x: jax.Array) -> jax.Array:
    """[batch, length, ...] -> [steps, batch, size, ...]; the last chunk is padded.

    Rows stay whole, as devices hold them.
    """
    x = jnp.pad(x, [(0, 0), (0, steps * size - length), (0, 0)])
    return jnp.moveaxis(x.reshape(x.shape[0], steps, size, x.shape[-1]), 1, 0)

  @jax.checkpoint
  def one(hidden: jax.Array, token_ids: jax.Array) -> jax.Array:
    logits = logits_of(hidden)
    return jnp.take_along_axis(logits, token_ids, axis=-1) - jax.nn.logsumexp(
      logits, axis=-1, keepdims=True
    )

  found = jax.lax.map(lambda x: one(*x), (split(hidden), split(token_ids)))
  return jnp.moveaxis(found, 0, 1).reshape(hidden.shape[0], steps * size, -1)[:, :length]

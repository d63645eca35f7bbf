"""Log-probabilities of given tokens at every position, from logits that exist for a few positions at a time."""

import jax
import jax.numpy as jnp


def token_log_probabilities(logits_of, hidden, token_ids, *, chunk: int):
  """log p(token) of each of the given tokens at each position, and its gradients, without an array of all logits.

  The positions of all rows are walked over in chunks; the backward pass makes each chunk's logits again and keeps none. So no
  array has more than batch x chunk x vocabulary elements, forward and backward, at the price of a second product a chunk.

  Args:
    logits_of: hidden [batch, positions, hidden] -> float32 logits [batch, positions, vocab]; pure (a module goes in as its
      `apply`); gradients reach what it closes over.
    hidden: [batch, length, hidden].
    token_ids: int32 [batch, length, tokens], the tokens asked for at each position.
    chunk: most positions at a time; the slots for masked positions make it as large as the logits at those.

  Returns: float32 [batch, length, tokens].
  """
  length = hidden.shape[1]
  steps = -(-length // chunk)
  size = -(-length // steps)

  def split(x):
    """[batch, length, ...] -> [steps, batch, size, ...]; rows stay whole, as devices hold them; the last chunk is filled up."""
    x = jnp.pad(x, [(0, 0), (0, steps * size - length), (0, 0)])
    return jnp.moveaxis(x.reshape(x.shape[0], steps, size, x.shape[-1]), 1, 0)

  @jax.checkpoint
  def one(hidden, token_ids):
    logits = logits_of(hidden)
    return jnp.take_along_axis(logits, token_ids, axis=-1) - jax.nn.logsumexp(
      logits, axis=-1, keepdims=True
    )

  found = jax.lax.map(lambda x: one(*x), (split(hidden), split(token_ids)))
  return jnp.moveaxis(found, 0, 1).reshape(hidden.shape[0], steps * size, -1)[:, :length]

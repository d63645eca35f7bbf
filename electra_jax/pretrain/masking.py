"""Which positions are masked, and what stands there (Clark et al. 2020, section 3.1; Devlin et al. 2019)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKING, GUMBEL, DROPOUT = 0, 1, 2       # folded into a row's key, one stream of randomness each


class Masks(NamedTuple):
  """The masked positions of a batch. Slots past a row's number of masks have weight 0."""
  positions: jax.Array      # int32 [batch, predictions]
  weights: jax.Array        # float32 [batch, predictions], 1 for a mask and 0 for an empty slot
  token_ids: jax.Array      # int32 [batch, length]: what the generator reads


def stream(keys, number: int):
  """The rows' keys for one use of randomness (MASKING, GUMBEL or DROPOUT)."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def max_predictions(rate: float, length: int) -> int:
  """The fixed number of slots for masks: int((rate + 0.005) x length) as in the original; 19 of 128, 79 of 512."""
  return max(1, int((rate + 0.005) * length))


def write(token_ids, positions, values, weights):
  """token_ids [batch, length] with `values` [batch, predictions] at `positions`, where the slot's weight is 1.

  A position that stands in several slots gets the integer mean of its values, as in the original; slots of weight 0
  write nothing.
  """
  slots = weights.astype(jnp.int32)
  row = jax.vmap(lambda position, value: jnp.zeros(token_ids.shape[1], jnp.int32).at[position].add(value))
  count = row(positions, slots)
  return jnp.where(count > 0, row(positions, values * slots) // jnp.maximum(count, 1), token_ids)


def choose(token_ids, maskable, keys, *, rate: float, slots: int, mask_id: int, mask_share: float = 0.85,
           google: bool = False, pad_id: int = 0) -> Masks:
  """Draws the masked positions of each row, uniformly over `maskable`, and what the generator sees there.

  The number is round(rate x maskable tokens), halves to even, at least 1 where there is one and at most `slots`; positions are drawn
  without replacement (the largest of independent uniform numbers). `google` draws as the original program does: with replacement, and
  the number counts special tokens too.

  Args:
    token_ids: int32 [batch, length].
    maskable: bool [batch, length], False at special tokens and padding.
    keys: one key a row [batch].
    rate: share of tokens to mask, 0.15 in the paper (0.25 for large).
    slots: most masks in a row, see max_predictions.
    mask_id: id of [MASK].
    mask_share: share of the chosen positions that get [MASK]; the rest keep their token (0.85 in the original).
    google: the original's quirks.
    pad_id: of padding, which `google` leaves out of its count.
  """
  counted = token_ids != pad_id if google else maskable
  number = jnp.clip(jnp.round(rate * counted.sum(1)).astype(jnp.int32), 1, slots) * maskable.any(1)

  def one_row(maskable, key):
    where, what = jax.random.split(key)
    if google:
      positions = jax.random.categorical(where, jnp.where(maskable, 0.0, -jnp.inf), shape=(slots,))
    else:
      scores = jnp.where(maskable, jax.random.uniform(where, maskable.shape), -1.0)
      positions = jax.lax.top_k(scores, slots)[1]
    return positions.astype(jnp.int32), jax.random.uniform(what, (slots,)) < mask_share

  positions, masked = jax.vmap(one_row)(maskable, keys)
  weights = (jnp.arange(slots) < number[:, None]).astype(jnp.float32)
  shown = write(token_ids, positions, jnp.full_like(positions, mask_id), weights * masked)
  return Masks(positions=positions, weights=weights, token_ids=shown)

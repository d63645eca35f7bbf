"""Which positions are masked, and what stands there (Clark et al. 2020, section 3.1; Devlin et al. 2019; Joshi et al. 2020)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

METHODS = ('uniform', 'words', 'spans')
PASSES = 8  # over the words of a row, to fill the number of masks to the last
MASKING, GUMBEL, DROPOUT = 0, 1, 2  # folded into a row's key, one stream of randomness each


class Masks(NamedTuple):
  """The masked positions of a batch. Slots past a row's number of masks have weight 0."""

  positions: jax.Array  # int32 [batch, predictions]
  weights: jax.Array  # float32 [batch, predictions], 1 for a mask and 0 for an empty slot
  token_ids: jax.Array  # int32 [batch, length]: what the generator reads


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
  row = jax.vmap(
    lambda position, value: jnp.zeros(token_ids.shape[1], jnp.int32).at[position].add(value)
  )
  count = row(positions, slots)
  return jnp.where(count > 0, row(positions, values * slots) // jnp.maximum(count, 1), token_ids)


def choose(
  token_ids,
  maskable,
  keys,
  *,
  rate: float,
  slots: int,
  mask_id: int,
  mask_share: float = 0.85,
  google: bool = False,
  pad_id: int = 0,
  method: str = 'uniform',
  word_starts=None,
  span_p: float = 0.2,
  span_max: int = 10,
) -> Masks:
  """Draws the masked positions of each row among `maskable`, and what the generator sees there.

  The number is round(rate x maskable tokens), halves to even, at least 1 where there is one and at most `slots`. Of `method`

  - 'uniform': positions are drawn without replacement (the largest of independent uniform numbers). `google` draws as the original
    program does: with replacement, and the number counts special tokens too.
  - 'words': whole words are drawn without replacement; one that would exceed the number is passed over for the next, as in BERT's
    whole word masking. So there are fewer masks than the number only where no other word is short enough. Where even the first is too
    long and nothing fits, it is masked in part, its first pieces, up to the number.
  - 'spans': the words of spans, taken span by span (Joshi et al. 2020, section 3.1). Each begins at a word drawn without replacement
    and has a length in words that is geometric with `span_p` up to `span_max`, and less where a special token or the row ends it.
    Spans may overlap, which counts once. Words that would exceed the number are passed over here, too.

  A token begins a word where `word_starts` says so, and after what is not maskable, such as a special token.

  Args:
    token_ids: int32 [batch, length].
    maskable: bool [batch, length], False at special tokens and padding.
    keys: one key a row [batch].
    rate: share of tokens to mask, 0.15 in the paper (0.25 for large).
    slots: most masks in a row, see max_predictions.
    mask_id: id of [MASK].
    mask_share: share of the chosen positions that get [MASK]; the rest keep their token (0.85 in the original). Drawn for each
      position, or for each word or span as a whole: a piece that is shown would give away the others.
    google: the original's quirks; of 'uniform' alone.
    pad_id: of padding, which `google` leaves out of its count.
    method: one of METHODS.
    word_starts: bool [vocab], the tokens that begin a word; of 'words' and 'spans'.
    span_p, span_max: of 'spans'; 0.2 and 10 give 3.8 words on average.
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

  if method == 'uniform':
    positions, masked = jax.vmap(one_row)(maskable, keys)
  else:
    lengths = _span_lengths(span_p, span_max) if method == 'spans' else None
    whole = functools.partial(
      _whole_words, slots=slots, mask_share=mask_share, span_lengths=lengths
    )
    positions, masked, number = jax.vmap(whole)(
      jnp.asarray(word_starts)[token_ids], maskable, number, keys
    )
  weights = (jnp.arange(slots) < number[:, None]).astype(jnp.float32)
  shown = write(token_ids, positions, jnp.full_like(positions, mask_id), weights * masked)
  return Masks(positions=positions, weights=weights, token_ids=shown)


def packed(word_starts: np.ndarray) -> bytes:
  """A bool array [vocab] as bits, which settings that are hashed hold at little cost."""
  return np.packbits(word_starts).tobytes()


def unpacked(bits: bytes) -> np.ndarray:
  """What `packed` made the bits of, padded with False to a multiple of 8."""
  return np.unpackbits(np.frombuffer(bits, np.uint8)).astype(bool)


def _span_lengths(p: float, most: int) -> np.ndarray:
  """Shares of spans that are no longer than 1, 2, ... most - 1 words, float32: a geometric distribution cut at `most` (SpanBERT's)."""
  left = np.float64(1 - p) ** np.arange(1, most + 1)
  return ((1 - left) / (1 - left[-1]))[:-1].astype(np.float32)


def _whole_words(begins, maskable, number, key, *, slots, mask_share, span_lengths):
  """One row of `choose` by words, or by spans where there are `span_lengths`: positions [slots], which get [MASK], how many count.

  `begins`, `maskable`: bool [length]; number: most tokens to mask. Words are numbered from 0 in the row's order.
  """
  length = len(maskable)
  place, (where, what) = jnp.arange(length), jax.random.split(key)
  opens = maskable & ~jnp.concatenate(
    [jnp.zeros(1, bool), maskable[:-1]]
  )  # nothing before it that can be masked
  first = opens | maskable & begins  # token of a word
  word = jnp.maximum(jnp.cumsum(first) - 1, 0)
  size = jnp.zeros(length, jnp.int32).at[word].add(maskable)[word]  # tokens of its word
  scores, draws = jax.random.uniform(where, (2, length))  # of each word: the lowest score is first
  unit = word
  if span_lengths is not None:  # the word that begins the first span to come over this one
    reach = 1 + (draws[:, None] >= span_lengths).sum(1)
    part = jnp.cumsum(
      jnp.zeros(length, jnp.int32).at[word].add(opens)
    )  # what special tokens divide, of each word

    def nearer(back, found):
      best, begin = found
      before = functools.partial(jnp.roll, shift=back)
      over = (
        (place >= back) & (before(reach) > back) & (before(part) == part) & (before(scores) < best)
      )
      return jnp.where(over, before(scores), best), jnp.where(over, place - back, begin)

    unit = jax.lax.fori_loop(1, len(span_lengths) + 1, nearer, (scores, place))[1][word]
  order = jnp.argsort(
    jnp.where(maskable, scores[unit], 2.0), stable=True
  )  # words one after the other, each from left to right
  to_come = (size - 1 - (place - jax.lax.cummax(jnp.where(first, place, 0))))[
    order
  ]  # tokens of the word after this one
  size, real = size[order], maskable[order]

  def take(_, taken):
    left = number - taken.sum()
    short = real & ~taken & (size <= left)
    return taken | short & (
      jnp.cumsum(short) + to_come <= left
    )  # all up to the first that no longer fits

  # The word at which a pass ends is shorter than the one before, so as many passes are enough for words of as many lengths.
  taken = jax.lax.fori_loop(0, PASSES, take, jnp.zeros(length, bool))
  taken |= ~taken.any() & (place < number)  # no word is so short: a part of the first
  positions = order[jnp.argsort(~taken, stable=True)[:slots]]  # those taken first, in order
  masked = jax.random.uniform(what, (length,))[unit] < mask_share
  return positions.astype(jnp.int32), masked[positions], taken.sum(dtype=jnp.int32)

"""Which positions are masked, and what the generator reads there.

Sources: Clark et al. 2020, section 3.1; Devlin et al. 2019; Joshi et al. 2020.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.pretrain.objectives.settings import Settings

PASSES = 8  # over the words of a row, to fill the number of masks
# Folded into a row's key, for one stream of random numbers each.
MASKING = 0
GUMBEL = 1
DROPOUT = 2


class Masks(NamedTuple):
  """The masked positions of a batch. Slots past a row's number of masks have weight 0.

  Attributes:
    positions: int32 [batch, predictions].
    weights: float32 [batch, predictions], 1 for a mask and 0 for an empty slot.
    token_ids: int32 [batch, length], what the generator reads.
  """

  positions: jax.Array
  weights: jax.Array
  token_ids: jax.Array


def stream(keys: jax.Array, number: int) -> jax.Array:
  """The rows' keys for one use of random numbers: MASKING, GUMBEL or DROPOUT."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def max_predictions(rate: float, length: int) -> int:
  """The fixed number of slots for masks, as in the original program: 19 of 128, 79 of 512."""
  return max(1, int((rate + 0.005) * length))


def write_tokens(
  token_ids: jax.Array, positions: jax.Array, values: jax.Array, weights: jax.Array
) -> jax.Array:
  """Tokens with other values at some positions.

  A position that is in several slots gets the integer mean of its values, as in the original.

  Args:
    token_ids: int32 [batch, length].
    positions: int32 [batch, predictions].
    values: int32 [batch, predictions].
    weights: [batch, predictions]; slots of weight 0 write nothing.
  """
  slots = weights.astype(jnp.int32)

  @jax.vmap
  def row_of_sums(position: jax.Array, value: jax.Array) -> jax.Array:
    return jnp.zeros(token_ids.shape[1], jnp.int32).at[position].add(value)

  count = row_of_sums(positions, slots)
  return jnp.where(
    count > 0, row_of_sums(positions, values * slots) // jnp.maximum(count, 1), token_ids
  )


def choose(settings: Settings, token_ids: jax.Array, maskable: jax.Array, keys: jax.Array) -> Masks:
  """Draws the masked positions of each row, and sets what the generator reads there.

  Their number is round(mask_rate x maskable tokens), halves to even, at least 1 if a token is
  maskable, at most max_predictions. The unit is `settings.masking`:

  - 'uniform': positions are drawn without replacement, as the largest of independent uniform
    numbers. With `google` they are drawn as in the original program: with replacement, and special
    tokens are included in the number of tokens.
  - 'words': whole words are drawn without replacement. A word that would exceed the number is
    skipped, as in BERT's whole word masking, so there are fewer masks only if no other word is
    short enough. If even the first word is too long and nothing fits, its first pieces are masked,
    up to the number.
  - 'spans': the words of spans, one span after the other (Joshi et al. 2020, section 3.1). A span
    starts at a word drawn without replacement. Its length in words is geometric with `span_p`, up
    to `span_max`, and ends early at a special token and at the end of the row; 0.2 and 10 give 3.8
    words on average. Spans may overlap. Words that would exceed the number are skipped as above.

  A fraction `mask_share` of the chosen positions reads [MASK], the others keep their token. This is
  drawn for each position, or for each word or span as a whole: a visible piece would reveal the
  others. `word_starts` marks the tokens that start a word; a word also starts after a token of
  `word_ends` and after a token that is not maskable.

  Args:
    settings: of the objective. `mask_rate` may be a traced scalar.
    token_ids: int32 [batch, length].
    maskable: bool [batch, length], False at special tokens and padding.
    keys: one key per row [batch].
  """
  slots = settings.max_predictions
  counted = token_ids != settings.pad_id if settings.google else maskable
  number = jnp.clip(jnp.round(settings.mask_rate * counted.sum(1)).astype(jnp.int32), 1, slots)
  number = number * maskable.any(1)

  def single_tokens(maskable: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    where, what = jax.random.split(key)
    if settings.google:
      positions = jax.random.categorical(where, jnp.where(maskable, 0.0, -jnp.inf), shape=(slots,))
    else:
      scores = jnp.where(maskable, jax.random.uniform(where, maskable.shape), -1.0)
      positions = jax.lax.top_k(scores, slots)[1]
    return positions.astype(jnp.int32), jax.random.uniform(what, (slots,)) < settings.mask_share

  if settings.masking == 'uniform':
    positions, masked = jax.vmap(single_tokens)(maskable, keys)
  else:
    in_spans = settings.masking == 'spans'
    lengths = _span_lengths(settings.span_p, settings.span_max) if in_spans else None
    whole = functools.partial(
      _whole_words, slots=slots, mask_share=settings.mask_share, span_lengths=lengths
    )
    starts = jnp.asarray(unpacked(settings.word_starts))[token_ids]
    if settings.word_ends:
      ends = jnp.asarray(unpacked(settings.word_ends))[token_ids[:, :-1]]
      starts = starts.at[:, 1:].max(ends)
    positions, masked, number = jax.vmap(whole)(starts, maskable, number, keys)
  weights = (jnp.arange(slots) < number[:, None]).astype(jnp.float32)
  shown = write_tokens(
    token_ids, positions, jnp.full_like(positions, settings.mask_id), weights * masked
  )
  return Masks(positions=positions, weights=weights, token_ids=shown)


def packed(word_starts: np.ndarray) -> bytes:
  """A bool array [vocab] as bits, so that settings are cheap to hash."""
  return np.packbits(word_starts).tobytes()


def unpacked(bits: bytes) -> np.ndarray:
  """The array of `packed`, padded with False to a multiple of 8."""
  return np.unpackbits(np.frombuffer(bits, np.uint8)).astype(bool)


def _span_lengths(p: float, most: int) -> np.ndarray:
  """Cumulative probabilities of span lengths, as in SpanBERT.

  Args:
    p: parameter of the geometric distribution.
    most: the longest span, in words.

  Returns:
    float32 [most - 1]: the probability of at most 1, 2, ... most - 1 words.
  """
  left = np.float64(1 - p) ** np.arange(1, most + 1)
  lengths: np.ndarray = ((1 - left) / (1 - left[-1]))[:-1].astype(np.float32)
  return lengths


def _whole_words(
  begins: jax.Array,
  maskable: jax.Array,
  number: jax.Array,
  key: jax.Array,
  *,
  slots: int,
  mask_share: float,
  span_lengths: np.ndarray | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """One row of `choose` for words, or for spans where there are `span_lengths`.

  Words are numbered from 0 in the order of the row.

  Args:
    begins: bool [length], tokens that start a word.
    maskable: bool [length].
    number: most tokens to mask.
    key: of the row.
    slots: most masks of a row.
    mask_share: fraction of the words or spans that read [MASK].
    span_lengths: see _span_lengths; None for words.

  Returns:
    Positions int32 [slots]; bool [slots], whether they read [MASK]; how many of them count.
  """
  length = len(maskable)
  place, (where, what) = jnp.arange(length), jax.random.split(key)
  # The token before it is not maskable.
  opens = maskable & ~jnp.concatenate([jnp.zeros(1, bool), maskable[:-1]])
  first = opens | maskable & begins  # token of a word
  word = jnp.maximum(jnp.cumsum(first) - 1, 0)
  size = jnp.zeros(length, jnp.int32).at[word].add(maskable)[word]  # tokens of its word
  scores, draws = jax.random.uniform(where, (2, length))  # of each word: the lowest score is first
  unit = word
  if span_lengths is not None:  # the first word of the first span that covers this one
    reach = 1 + (draws[:, None] >= span_lengths).sum(1)
    # The number of each word's segment; special tokens separate segments.
    part = jnp.cumsum(jnp.zeros(length, jnp.int32).at[word].add(opens))

    def nearer(back: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
      best, begin = found
      before = functools.partial(jnp.roll, shift=back)
      over = (
        (place >= back) & (before(reach) > back) & (before(part) == part) & (before(scores) < best)
      )
      return jnp.where(over, before(scores), best), jnp.where(over, place - back, begin)

    unit = jax.lax.fori_loop(1, len(span_lengths) + 1, nearer, (scores, place))[1][word]
  # Words in the order in which they are drawn, the tokens of each from left to right.
  order = jnp.argsort(jnp.where(maskable, scores[unit], 2.0), stable=True)
  # Tokens of the word after this one.
  to_come = (size - 1 - (place - jax.lax.cummax(jnp.where(first, place, 0))))[order]
  size, real = size[order], maskable[order]

  def take(_: jax.Array, taken: jax.Array) -> jax.Array:
    left = number - taken.sum()
    short = real & ~taken & (size <= left)
    # All words up to the first that no longer fits.
    return taken | short & (jnp.cumsum(short) + to_come <= left)

  # The word at which a pass ends is shorter than that of the pass before, so n passes are enough
  # for words of n lengths.
  taken = jax.lax.fori_loop(0, PASSES, take, jnp.zeros(length, bool))
  taken |= ~taken.any() & (place < number)  # every word is too long: a part of the first
  positions = order[jnp.argsort(~taken, stable=True)[:slots]]  # taken tokens first, in order
  masked = jax.random.uniform(what, (length,))[unit] < mask_share
  return positions.astype(jnp.int32), masked[positions], taken.sum(dtype=jnp.int32)

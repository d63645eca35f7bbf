"""The reference corruption: held-out rows whose tokens were replaced without a generator.

Metrics on a generator's samples are not comparable over time or between runs, because a better
generator makes the discriminator's task harder. Here, the replaced positions and the tokens are
drawn once: they depend only on the seed, the number of the row and the held-out rows, whatever the
run, its objective, its step, its mesh and its batches are.

In each row a fraction `RATE` of the tokens that are not special, drawn uniformly, is replaced by
tokens of the unigram distribution of the held-out rows, never by the original token. To draw from
that distribution p and reject the original would show frequent tokens too rarely. Therefore tokens
are drawn from q, the solution of

    q(r) (sum_o p(o) / (1 - q(o)) - p(r) / (1 - q(r))) = p(r)   for every token r,

with which the displayed tokens follow p at replaced positions as at the others. A classifier that
sees only the displayed token is then at chance, on average over draws: whatever is above it is due
to context.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from electra_jax.data.store.token_store import Store

SEED = 7919
RATE = 0.15
MOST_TOKENS = 4_000_000  # counted for the unigram distribution, in evenly spaced rows
_ITERATIONS = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
  """How held-out rows are corrupted.

  Attributes:
    probabilities: the unigram distribution, float64 `[vocab_size]`, 0 for special tokens.
    special_ids: tokens that are neither replaced nor judged.
    seed: of all draws.
  """

  probabilities: np.ndarray
  special_ids: Sequence[int]
  seed: int = SEED

  def corrupt(self, token_ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Replaces tokens of rows.

    Args:
      token_ids: int32 `[rows, length]`.
      numbers: of the rows in the store, `[rows]`.

    Returns:
      int32 `[rows, length]`, which differs from `token_ids` exactly at the replaced positions.
    """
    result = token_ids.copy()
    if np.count_nonzero(self.probabilities) < 2:  # no other token to show
      return result
    candidates = ~np.isin(token_ids, self.special_ids)
    for row, number in enumerate(numbers):
      places = np.flatnonzero(candidates[row])
      count = min(len(places), max(1, round(RATE * len(places))))
      rng = np.random.Generator(
        np.random.Philox(key=[self.seed, 0], counter=[0, 0, 0, int(number)])
      )
      places = rng.permutation(places)[:count]
      result[row, places] = self._draw(token_ids[row, places], rng.random(count))
    return result

  def _draw(self, original: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Tokens of the proposal distribution without the original ones, by their inverse CDF."""
    q, cumulative = self._proposal
    before = cumulative[original] - q[original]
    at = uniform * (1 - q[original])
    at = np.where(at >= before, at + q[original], at)
    drawn = np.minimum(np.searchsorted(cumulative, at, 'right'), len(q) - 1)
    # Where rounding leads back to the original or to a token without probability.
    first, second = self._most_probable
    other = np.where(original == first, second, first)
    result: np.ndarray = np.where((drawn == original) | (q[drawn] == 0), other, drawn)
    return result

  @functools.cached_property
  def _proposal(self) -> tuple[np.ndarray, np.ndarray]:
    """Q of the module's text and its cumulative sums, float64 `[vocab_size]`."""
    p = self.probabilities
    q = p
    if p.max() < 0.5:  # otherwise no q exists
      for _ in range(_ITERATIONS):
        shares = p / (1 - q)
        q = p / (shares.sum() - shares)
        q = q / q.sum()
    return q, np.cumsum(q)

  @functools.cached_property
  def _most_probable(self) -> tuple[int, int]:
    """The two most probable tokens, of equal ones those with the lowest ids."""
    first, second = np.argsort(-self.probabilities, kind='stable')[:2]
    return int(first), int(second)

  def ranks(self, bins: int) -> np.ndarray:
    """The order of tokens by unigram probability, in bins: the rarest are in the last one.

    Args:
      bins: their number. A bin has about the same probability as any other.

    Returns:
      int32 `[vocab_size]`.
    """
    values, places = np.unique(-self.probabilities, return_inverse=True)
    mass = np.bincount(places, self.probabilities, minlength=len(values))
    middle = np.cumsum(mass) - mass / 2
    return np.minimum(middle * bins, bins - 1).astype(np.int32)[places]

  def noise_log_odds(self) -> np.ndarray:
    """Log p(token) + log(RATE / (1 - RATE)), float32 `[vocab_size]`; see Objective."""
    log_p = np.log(np.maximum(self.probabilities, np.finfo(np.float32).tiny))
    result: np.ndarray = (log_p + np.log(RATE / (1 - RATE))).astype(np.float32)
    return result


def reference_of(store: Store, special_ids: Sequence[int]) -> Reference:
  """The reference corruption of held-out rows.

  Args:
    store: the held-out rows.
    special_ids: of the tokenizer.
  """
  frequencies = store.token_frequencies(MOST_TOKENS)
  frequencies[list(special_ids)] = 0
  total = frequencies.sum()
  return Reference(frequencies / total if total else frequencies, tuple(special_ids))

"""Several token stores read as one, in set proportions."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable

import numpy as np

from electra_jax.data.store.permutation import derived_seed, in_pieces, permutation
from electra_jax.data.store.token_store import Store, entropy
from electra_jax.errors import UserError

DEAL = 1000  # rows of a run in which the proportions are kept

_PIECE = 8  # thousands whose rows are computed at once


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
  """Several stores read together. Rows are numbered through: those of the first store, then those of the second, ...

  Attributes:
    stores: rows of one length, made by one tokenizer.
    weights: the share of each in the rows of a run; any positive numbers, kept so that they sum to 1.

  Raises:
    UserError: a weight is not positive, or gives its store no row in a thousand; the stores do not go together, or one
      has no rows.
  """

  stores: tuple[Store, ...]
  weights: tuple[float, ...]

  def __post_init__(self):
    if not self.stores or len(self.stores) != len(self.weights):
      raise ValueError(f'{len(self.stores)} stores and {len(self.weights)} weights')
    for store, weight in zip(self.stores, self.weights, strict=True):
      if not (weight > 0 and math.isfinite(weight)):
        raise UserError(
          f'the weight {weight} of {store.path} is not a positive number; give one, or leave it out'
        )
      if store.rows == 0:
        raise UserError(f'{store.path} has no rows to mix; leave it out')
      for name in ('length', 'pad_id', 'vocab_size', 'tokenizer_fingerprint'):
        if (found := getattr(store, name)) != (first := getattr(self.stores[0], name)):
          raise UserError(
            f'{self.stores[0].path} and {store.path} cannot be mixed: their {name.replace("_", " ")} is {first!r} and '
            f'{found!r}; prepare them together'
          )
    total = math.fsum(self.weights)
    object.__setattr__(self, 'stores', tuple(self.stores))
    object.__setattr__(self, 'weights', tuple(weight / total for weight in self.weights))
    for store, weight, share in zip(self.stores, self.weights, self.shares, strict=True):
      if share == 0:
        raise UserError(
          f'the weight of {store.path} is {weight:.2g} of all, which is not one row in {DEAL:,}; raise it, or leave it '
          'out'
        )

  @functools.cached_property
  def shares(self) -> tuple[int, ...]:
    """Rows of each store in every thousand of the run, by the method of largest remainders."""
    quotas = DEAL * np.array(self.weights)
    shares = np.floor(quotas).astype(int)
    most = np.argsort(shares - quotas, kind='stable')  # of equal remainders the first
    shares[most[: DEAL - shares.sum()]] += 1
    return tuple(shares.tolist())

  @property
  def path(self) -> str:
    return ' + '.join(store.path for store in self.stores)

  @property
  def rows(self) -> int:
    return sum(store.rows for store in self.stores)

  @property
  def length(self) -> int:
    """Tokens a row."""
    return self.stores[0].length

  @property
  def pad_id(self) -> int:
    return self.stores[0].pad_id

  @property
  def tokens(self) -> int:
    """Tokens in all rows, [CLS] and [SEP] included and padding not."""
    return sum(store.tokens for store in self.stores)

  @property
  def vocab_size(self) -> int:
    return self.stores[0].vocab_size

  @property
  def tokenizer_fingerprint(self) -> str:
    return self.stores[0].tokenizer_fingerprint

  @property
  def identity(self) -> str:
    """A hash of the rows and of how they are mixed."""
    parts = [
      f'{store.identity} {share}' for store, share in zip(self.stores, self.shares, strict=True)
    ]
    return hashlib.blake2b('\n'.join(parts).encode(), digest_size=16).hexdigest()

  def read(self, indices: np.ndarray) -> np.ndarray:
    """The rows of `indices` `[n]`, as int32 `[n, length]`. Raises what `Store.read` raises."""
    indices = np.asarray(indices, np.int64)
    result = np.empty((len(indices), self.length), np.int32)
    first = 0
    for store in self.stores:
      here = (indices >= first) & (indices < first + store.rows)
      result[here] = store.read(indices[here] - first)
      first += store.rows
    if len(indices) and (indices.min() < 0 or indices.max() >= first):
      raise IndexError(
        f'rows of the mixture are 0..{first - 1}; found {indices.min()}..{indices.max()}'
      )
    return result

  def epochs(self, rows: int) -> tuple[float, ...]:
    """How often a run of so many rows goes through each store."""
    return tuple(
      rows * share / DEAL / store.rows
      for store, share in zip(self.stores, self.shares, strict=True)
    )

  def fetch(self) -> None:
    """Brings all shards of stores at addresses to this machine."""
    for store in self.stores:
      store.fetch()

  def unigram_entropy(self, left_out: Iterable[int] = (), most_tokens: int = 10_000_000) -> float:
    """Entropy of the tokens' frequencies in the rows of a run, in nats a token; see `Store.unigram_entropy`."""
    frequencies = (
      store.token_frequencies(most_tokens // len(self.stores)) for store in self.stores
    )
    return entropy(
      sum(share * each for share, each in zip(self.shares, frequencies, strict=True)), left_out
    )


def mixture_rows(
  step: int,
  batch_size: int,
  num_rows: tuple[int, ...],
  shares: tuple[int, ...],
  seed: int,
  rows: slice | np.ndarray = slice(None),
) -> np.ndarray:
  """`batch_rows` for a mixture, in the numbering of `Mixture`.

  A permutation deals the positions of each thousand of the run to the stores by their shares, and a store's k-th row in
  the run is the k-th of its own epochs, permuted with a seed of its own. A mixture of one store is read as that store.

  Args:
    num_rows: of each store.
    shares: rows of each store in a thousand; they sum to `DEAL`.
  """
  position = step * batch_size + np.arange(batch_size)[rows]
  return in_pieces(position, _PIECE * DEAL, _piece, tuple(num_rows), tuple(shares), seed)


@functools.lru_cache(maxsize=64)
def _piece(number, num_rows, shares, seed):
  """Rows at the positions of `_PIECE` thousands of the run, int64 `[_PIECE * DEAL]`."""
  deals = number * _PIECE + np.arange(_PIECE)
  slots = permutation(
    np.tile(np.arange(DEAL), _PIECE), DEAL, _seed_of(seed, -1), np.repeat(deals, DEAL)
  )
  sources = np.repeat(np.arange(len(shares)), shares)[slots]
  rows, first = np.empty(_PIECE * DEAL, np.int64), 0
  for source, (n, share) in enumerate(zip(num_rows, shares, strict=True)):
    k = (deals[:, None] * share + np.arange(share)).reshape(-1)
    rows[sources == source] = first + permutation(k % n, n, _seed_of(seed, source), k // n)
    first += n
  return rows


def _seed_of(seed, source):
  """A seed for each store of a mixture, the run's own for the first; -1 is for dealing."""
  return seed if source == 0 else derived_seed(seed, source)

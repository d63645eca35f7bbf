"""Several token stores that are read as one, in fixed proportions."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Sequence

import numpy as np

from electra_jax.data.store.permutation import derived_seed, in_pieces, permutation
from electra_jax.data.store.token_store import Store, unigram_entropy
from electra_jax.errors import UserError

DEAL = 1000  # consecutive rows of a run in which the proportions are exact

_DEALS_PER_PIECE = 8  # deals whose rows are computed at a time


@dataclasses.dataclass(frozen=True)
class Mixing:
  """How the sources of a corpus are weighted, in place of the weights that it was prepared with.

  Attributes:
    weights: of each source, any positive numbers; empty for none.
    temperature: T of weights in proportion to n ** (1 / T), where n is the number of tokens of a
      source (Arivazhagan et al. 2019, section 4.2; multilingual BERT has an exponent of 0.7, XLM of
      0.5, XLM-R of 0.3). 1 weights sources by their size, large values make them equal; 0 for none.
  """

  weights: tuple[float, ...] = ()
  temperature: float = 0.0

  def __bool__(self) -> bool:
    return bool(self.weights or self.temperature)

  def of_sources(self, tokens: Sequence[int], path: str) -> tuple[float, ...]:
    """The weights of the sources of a corpus.

    Args:
      tokens: of each source.
      path: of the corpus, for messages.

    Raises:
      UserError: there are more or fewer weights than sources.
    """
    if not self.weights:
      return tuple(float(max(n, 1)) ** (1 / self.temperature) for n in tokens)
    if len(self.weights) != len(tokens):
      raise UserError(
        f'config.data.weights has {len(self.weights)} weights and the corpus {path!r} has '
        f'{len(tokens)} sources that are stored apart; expected a weight for each.'
      )
    return self.weights


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
  """Several stores that are read together. Rows are numbered through all stores, in their order.

  Attributes:
    stores: have rows of one length, made by one tokenizer.
    weights: the fraction of each store in the rows of a run; any positive numbers, stored so that
      they sum to 1.

  Raises:
    UserError: a weight is not positive, or gives its store no row in a thousand; the stores cannot
      be mixed, or one has no rows.
  """

  stores: tuple[Store, ...]
  weights: tuple[float, ...]

  def __post_init__(self) -> None:
    if not self.stores or len(self.stores) != len(self.weights):
      raise ValueError(f'{len(self.stores)} stores and {len(self.weights)} weights')
    for store, weight in zip(self.stores, self.weights, strict=True):
      if not (weight > 0 and math.isfinite(weight)):
        raise UserError(f'the weight of {store.path} is {weight}; expected a number above 0.')
      if store.rows == 0:
        raise UserError(f'{store.path} has no rows to mix; leave it out')
      for name in ('length', 'pad_id', 'vocab_size', 'tokenizer_fingerprint'):
        if (found := getattr(store, name)) != (first := getattr(self.stores[0], name)):
          raise UserError(
            f'{self.stores[0].path} and {store.path} cannot be mixed: their '
            f'{name.replace("_", " ")} is {first!r} and {found!r}; prepare them together'
          )
    total = math.fsum(self.weights)
    object.__setattr__(self, 'stores', tuple(self.stores))
    object.__setattr__(self, 'weights', tuple(weight / total for weight in self.weights))
    for store, weight, share in zip(self.stores, self.weights, self.shares, strict=True):
      if share == 0:
        raise UserError(
          f'the weight of {store.path} is {weight:.2g} of all, less than one row in {DEAL:,}; '
          'raise it, or leave the source out'
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
    """The paths of the stores, for messages."""
    return ' + '.join(store.path for store in self.stores)

  @property
  def rows(self) -> int:
    """The number of rows of all stores."""
    return sum(store.rows for store in self.stores)

  @property
  def length(self) -> int:
    """Tokens per row."""
    return self.stores[0].length

  @property
  def pad_id(self) -> int:
    """The id of padding."""
    return self.stores[0].pad_id

  @property
  def tokens(self) -> int:
    """Tokens of all rows, with [CLS] and [SEP] and without padding."""
    return sum(store.tokens for store in self.stores)

  @property
  def vocab_size(self) -> int:
    """The number of ids of the tokenizer."""
    return self.stores[0].vocab_size

  @property
  def tokenizer_fingerprint(self) -> str:
    """The fingerprint of the tokenizer."""
    return self.stores[0].tokenizer_fingerprint

  @property
  def identity(self) -> str:
    """A hash of the rows and of how they are mixed."""
    parts = [
      f'{store.identity} {share}' for store, share in zip(self.stores, self.shares, strict=True)
    ]
    return hashlib.blake2b('\n'.join(parts).encode(), digest_size=16).hexdigest()

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Reads rows. Raises what `Store.read` raises.

    Args:
      indices: integers `[n]`.

    Returns:
      int32 `[n, length]`.
    """
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
    """How often a run of `rows` rows reads each store."""
    return tuple(
      rows * share / DEAL / store.rows
      for store, share in zip(self.stores, self.shares, strict=True)
    )

  def fetch(self) -> None:
    """Fetches all shards of stores at addresses to this machine."""
    for store in self.stores:
      store.fetch()

  def unigram_entropy(self, left_out: Iterable[int] = (), most_tokens: int = 10_000_000) -> float:
    """Entropy of the tokens' frequencies in a run, in nats per token. See `Store`."""
    frequencies = [
      share * store.token_frequencies(most_tokens // len(self.stores))
      for share, store in zip(self.shares, self.stores, strict=True)
    ]
    return unigram_entropy(sum(frequencies, np.zeros(self.vocab_size)), left_out)


def mixture_rows(
  step: int,
  batch_size: int,
  num_rows: tuple[int, ...],
  shares: tuple[int, ...],
  seed: int,
  rows: slice | np.ndarray = slice(None),
) -> np.ndarray:
  """`row_batches.batch_rows` for a mixture, in the numbering of `Mixture`.

  A permutation deals the positions of each thousand of the run to the stores by their shares. The
  k-th row of a store in the run is the k-th of the store's own epochs, which are permuted with the
  store's own seed. A mixture of one store is read like that store.

  Args:
    step: of the run.
    batch_size: rows of the global batch.
    num_rows: of each store.
    shares: rows of each store in a thousand; they sum to `DEAL`.
    seed: of the run.
    rows: the rows of the batch to compute, a slice or ascending numbers.

  Returns:
    int64 `[batch_size]`, or one number for each of `rows`.
  """
  position = step * batch_size + np.arange(batch_size)[rows]
  size = _DEALS_PER_PIECE * DEAL
  return in_pieces(position, size, _piece, tuple(num_rows), tuple(shares), seed)


@functools.lru_cache(maxsize=64)
def _piece(
  number: int, num_rows: tuple[int, ...], shares: tuple[int, ...], seed: int
) -> np.ndarray:
  """Rows at the positions of one piece of the run, int64 `[_DEALS_PER_PIECE * DEAL]`."""
  deals = number * _DEALS_PER_PIECE + np.arange(_DEALS_PER_PIECE)
  slots = permutation(
    np.tile(np.arange(DEAL), _DEALS_PER_PIECE), DEAL, _seed_of(seed, -1), np.repeat(deals, DEAL)
  )
  sources = np.repeat(np.arange(len(shares)), shares)[slots]
  rows = np.empty(_DEALS_PER_PIECE * DEAL, np.int64)
  first = 0
  for source, (n, share) in enumerate(zip(num_rows, shares, strict=True)):
    k = (deals[:, None] * share + np.arange(share)).reshape(-1)
    rows[sources == source] = first + permutation(k % n, n, _seed_of(seed, source), k // n)
    first += n
  return rows


def _seed_of(seed: int, source: int) -> int:
  """The seed of each store of a mixture, the run's own for the first; -1 is for dealing."""
  return seed if source == 0 else derived_seed(seed, source)

"""Pseudo-random permutations that are computed index by index."""

from collections.abc import Callable, Hashable

import numpy as np

_FEISTEL_ROUNDS = 8


def permutation(index: np.ndarray, n: int, seed: int, epoch: int | np.ndarray) -> np.ndarray:
  """Values of a pseudo-random permutation of 0..n-1. No array of size n is made.

  A Feistel network (Luby and Rackoff 1988) permutes the smallest power of two that is at least n.
  It is applied again to values outside of the range (cycle walking; Black and Rogaway 2002), on
  average at most twice per value.

  Args:
    index: integers in 0..n-1, any shape.
    n: size of the permutation, at least 1.
    seed: of the run.
    epoch: the number of the permutation under this seed, one for all or one per index.

  Returns:
    int64 array of index's shape.
  """
  index = np.asarray(index)
  values = np.atleast_1d(index).astype(np.uint64)
  shape = values.shape
  values = values.reshape(-1)
  epochs = np.broadcast_to(np.asarray(epoch, np.uint64), shape).reshape(-1)
  bits = max(2, (n - 1).bit_length())
  key = _mix(_mix(np.full_like(epochs, seed % 2**64)) + epochs)
  todo = np.arange(len(values))
  while len(todo):
    values[todo] = _feistel(values[todo], bits, key[todo])
    todo = todo[values[todo] >= n]
  return values.astype(np.int64).reshape(index.shape)


def in_pieces(
  position: np.ndarray, size: int, piece: Callable[..., np.ndarray], *arguments: Hashable
) -> np.ndarray:
  """Values at positions of an endless sequence, computed piece by piece.

  NumPy is slow for few values at a time.

  Args:
    position: int64 `[n]`.
    size: positions per piece.
    piece: a cached function of a piece's number and `arguments` that returns int64 `[size]`.
    arguments: of `piece`.

  Returns:
    int64 `[n]`.
  """
  if not len(position):
    return np.zeros(0, np.int64)
  first = int(position.min()) // size
  last = int(position.max()) // size
  pieces = [piece(number, *arguments) for number in range(first, last + 1)]
  values: np.ndarray = np.concatenate(pieces)[position - first * size]
  return values


def derived_seed(seed: int, number: int) -> int:
  """A seed in 0..2**64 - 1 that is computed from a seed and a number."""
  return int(_mix(_mix(np.full(1, seed % 2**64, np.uint64)) ^ np.uint64(number % 2**64))[0])


def _feistel(values: np.ndarray, bits: int, key: np.ndarray) -> np.ndarray:
  """One pass of the network over values `[n]` of `bits` bits with a key each, uint64."""
  left_bits = np.uint64(bits // 2)
  right_bits = np.uint64(bits - bits // 2)
  left = values >> right_bits
  right = values & _mask(right_bits)
  # An even number of rounds, so that the halves, whose sizes differ, end in their places.
  for i in range(_FEISTEL_ROUNDS):
    scrambled = _mix(key + right * np.uint64(_FEISTEL_ROUNDS) + np.uint64(i))
    left, right = right, left ^ (scrambled & _mask(left_bits))
    left_bits, right_bits = right_bits, left_bits
  return (left << right_bits) | right


def _mask(bits: np.uint64) -> np.uint64:
  return (np.uint64(1) << bits) - np.uint64(1)


def _mix(values: np.ndarray) -> np.ndarray:
  """SplitMix64's increment and finalizer (Steele, Lea and Flood 2014) of uint64, which wraps."""
  values = values + np.uint64(0x9E3779B97F4A7C15)
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  mixed: np.ndarray = values ^ (values >> np.uint64(31))
  return mixed

"""Pseudo-random permutations, computed index by index."""

import numpy as np

_FEISTEL_ROUNDS = 8


def permutation(index: np.ndarray, n: int, seed: int, epoch: int | np.ndarray) -> np.ndarray:
  """Where a pseudo-random permutation of 0..n-1 sends each index; no array of n is made.

  A Feistel network (Luby and Rackoff 1988) permutes the smallest power of two that holds n, and is applied again to
  what falls outside (cycle walking; Black and Rogaway 2002), on average at most twice a value.

  Args:
    index: integers in 0..n-1, any shape.
    n: how many there are, at least 1.
    seed: of the run.
    epoch: which permutation of the seed's, one for all or one an index.

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


def in_pieces(position: np.ndarray, size: int, piece, *arguments) -> np.ndarray:
  """Numbers at positions of an endless sequence that is computed by the piece, since NumPy is slow in small portions.

  Args:
    position: int64 `[n]`.
    size: positions a piece.
    piece: a function, cached, of a piece's number and `arguments`: int64 `[size]`.

  Returns:
    int64 `[n]`.
  """
  if not len(position):
    return np.zeros(0, np.int64)
  first, last = int(position.min()) // size, int(position.max()) // size
  return np.concatenate([piece(number, *arguments) for number in range(first, last + 1)])[
    position - first * size
  ]


def derived_seed(seed: int, number: int) -> int:
  """A seed made of a seed and a number, 0 to 2**64 - 1."""
  return int(_mix(_mix(np.full(1, seed % 2**64, np.uint64)) ^ np.uint64(number % 2**64))[0])


def _feistel(values, bits, key):
  """One pass of the network over values `[n]` of so many bits, uint64, with a key `[n]` each."""
  left_bits, right_bits = np.uint64(bits // 2), np.uint64(bits - bits // 2)
  left, right = values >> right_bits, values & _mask(right_bits)
  for i in range(
    _FEISTEL_ROUNDS
  ):  # an even number of rounds, so the unequal halves end where they began
    scrambled = _mix(key + right * np.uint64(_FEISTEL_ROUNDS) + np.uint64(i))
    left, right = right, left ^ (scrambled & _mask(left_bits))
    left_bits, right_bits = right_bits, left_bits
  return (left << right_bits) | right


def _mask(bits):
  return (np.uint64(1) << bits) - np.uint64(1)


def _mix(values):
  """SplitMix64's increment and finaliser (Steele, Lea and Flood 2014), uint64 arrays that wrap around."""
  values = values + np.uint64(0x9E3779B97F4A7C15)
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))

"""Near-duplicate documents: MinHash signatures, and which documents to drop by them."""

import re
import zlib
from collections.abc import Iterable

import numpy as np

PERMUTATIONS = 128
SHINGLE_WORDS = 5
_SCHEME = {'num_perm': PERMUTATIONS, 'scheme': 'affine32', 'seed': 1}
_BATCH = 8192
_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)

# Words; in scripts without spaces each character is one.
_WORDS = re.compile(r'[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+')


def signature(text: str) -> np.ndarray:
  """MinHash (Broder 1997) of a document's runs of five words, without case and punctuation.

  The fraction of equal entries of two signatures estimates the Jaccard similarity of the documents'
  sets of runs. A document of fewer than five words is one run. One without words is hashed whole.

  Args:
    text: the document.

  Returns:
    uint32 `[PERMUTATIONS]`.
  """
  from datasketch import MinHash

  hashes = [
    zlib.crc32(word.encode('utf-8', 'surrogatepass')) for word in _WORDS.findall(text.lower())
  ]
  words = np.array(hashes or [zlib.crc32(text.encode('utf-8', 'surrogatepass'))], np.uint64)
  width = min(SHINGLE_WORDS, len(words))
  shingles = np.zeros(len(words) - width + 1, np.uint64)
  for i in range(width):  # a polynomial of the words' hashes, modulo 2^64
    shingles = shingles * _HASH_FACTOR + words[i : i + len(shingles)]
  shingles = np.unique(shingles >> np.uint64(32))
  result = MinHash(hashfunc=_identity, **_SCHEME)
  for start in range(0, len(shingles), _BATCH):
    result.update_batch(shingles[start : start + _BATCH])
  values: np.ndarray = result.hashvalues
  return values


def near_duplicates(signatures: Iterable[np.ndarray], threshold: float) -> list[int]:
  """The documents that are near-duplicates of an earlier one that is kept.

  Locality-sensitive hashing of the signatures finds candidates. They are duplicates if the
  estimated Jaccard similarity reaches the threshold. A similar document is therefore kept for each
  one that is dropped.

  Args:
    signatures: of all documents in order, each uint32 `[PERMUTATIONS]`.
    threshold: similarity, above 0 and up to 1.

  Returns:
    Indices of the documents to drop, ascending.
  """
  from datasketch import MinHash, MinHashLSH

  # The weights favor finding duplicates over avoiding false candidates, which the estimate rejects.
  # Above 0.98 too few bands would remain.
  lsh = MinHashLSH(threshold=min(threshold, 0.98), num_perm=PERMUTATIONS, weights=(0.1, 0.9))
  kept: dict[int, np.ndarray] = {}
  dropped = []
  for number, values in enumerate(signatures):
    minhash = MinHash(hashvalues=values, **_SCHEME)
    if any(np.mean(kept[other] == values) >= threshold for other in lsh.query(minhash)):
      dropped.append(number)
    else:
      lsh.insert(number, minhash)
      kept[number] = values
  return dropped


def _identity(value: int) -> int:
  return value

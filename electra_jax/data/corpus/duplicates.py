"""Near-duplicate documents: MinHash signatures, block by block, and which documents go."""

import re
import zlib
from collections.abc import Iterable

import numpy as np

PERMUTATIONS = 128
SHINGLE_WORDS = 5
_SCHEME = {'num_perm': PERMUTATIONS, 'scheme': 'affine32', 'seed': 1}
_BATCH = 8192

# Words; scripts written without spaces count by the character.
_WORDS = re.compile(r'[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+')


def signature(text: str) -> np.ndarray:
  """MinHash (Broder 1997) of a document's runs of five words, case and punctuation aside, uint32 `[PERMUTATIONS]`.

  The share of equal entries in two signatures estimates the Jaccard similarity of the documents' sets of runs. A
  document of fewer words is one run; one without words is known by its whole text.
  """
  from datasketch import MinHash

  words = [
    zlib.crc32(word.encode('utf-8', 'surrogatepass')) for word in _WORDS.findall(text.lower())
  ]
  words = np.array(words or [zlib.crc32(text.encode('utf-8', 'surrogatepass'))], np.uint64)
  width = min(SHINGLE_WORDS, len(words))
  shingles = np.zeros(len(words) - width + 1, np.uint64)
  for i in range(width):  # a polynomial of the words' hashes, modulo 2^64
    shingles = shingles * np.uint64(0x9E3779B97F4A7C15) + words[i : i + len(shingles)]
  shingles = np.unique(shingles >> np.uint64(32))
  result = MinHash(hashfunc=lambda value: value, **_SCHEME)
  for start in range(0, len(shingles), _BATCH):
    result.update_batch(shingles[start : start + _BATCH])
  return result.hashvalues


def duplicates(signatures: Iterable[np.ndarray], threshold: float) -> list[int]:
  """Which documents are near-duplicates of an earlier one that stays: their numbers, ascending.

  Candidates come from locality-sensitive hashing of the signatures, and are duplicates where the estimated Jaccard
  similarity reaches the threshold. So each document that goes leaves one much like it behind.

  Args:
    signatures: of all documents in order, each uint32 `[PERMUTATIONS]`.
    threshold: similarity, above 0 and up to 1.
  """
  from datasketch import MinHash, MinHashLSH

  # Missing a duplicate is worse here than looking at a candidate in vain, which the estimate then turns down. Beyond
  # 0.98 too few bands would be left to look by.
  lsh = MinHashLSH(threshold=min(threshold, 0.98), num_perm=PERMUTATIONS, weights=(0.1, 0.9))
  kept, gone = {}, []
  for number, values in enumerate(signatures):
    minhash = MinHash(hashvalues=values, **_SCHEME)
    if any(np.mean(kept[other] == values) >= threshold for other in lsh.query(minhash)):
      gone.append(number)
    else:
      lsh.insert(number, minhash)
      kept[number] = values
  return gone

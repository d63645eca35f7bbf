"""Where the documents of a store begin, and groups of rows that bootstrap intervals resample.

Preparation writes documents.bin beside the shards of the held-out rows: for each document the place
of its first token in the store, row x length + column, as ascending little-endian int64. The
manifest names the file under 'documents'. The rows and their identity do not depend on it, and
stores of version 0.1.0 have none.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from electra_jax import file_access
from electra_jax.errors import UserError

FILE = 'documents.bin'
MOST_GROUPS = 256
BLOCK_ROWS = 16  # in a store without the file


#### The file ####


def write_starts(folder: str | os.PathLike[str], starts: np.ndarray) -> dict[str, Any]:
  """Writes the places of the documents of a store.

  Args:
    folder: of the store, a path or an address.
    starts: integers `[documents]`, ascending.

  Returns:
    Facts for the store's manifest.
  """
  content = np.asarray(starts, '<i8').tobytes()
  file_access.write_bytes(file_access.join(folder, FILE), content)
  return {'documents': {'file': FILE, 'count': len(starts), 'blake2b': _digest(content)}}


def read_starts(folder: str, manifest: Mapping[str, Any]) -> np.ndarray | None:
  """The places of the documents of a store, int64 `[documents]`; None if it does not have them.

  Args:
    folder: of the store, a path or an address.
    manifest: of the store.

  Raises:
    UserError: the file is missing or damaged.
  """
  entry = manifest.get('documents')
  if not isinstance(entry, Mapping):
    return None
  path = file_access.join(folder, FILE)
  content = file_access.read_bytes(path) if file_access.exists(path) else b''
  if _digest(content) != entry.get('blake2b') or len(content) != 8 * entry.get('count', -1):
    raise UserError(
      f'{path} is missing or damaged; expected the starts of {entry.get("count")} documents; '
      'restore it, or prepare the corpus again.'
    )
  return np.frombuffer(content, '<i8').astype(np.int64)


def _digest(content: bytes) -> str:
  return hashlib.blake2b(content, digest_size=16).hexdigest()


#### Groups of rows ####


@dataclasses.dataclass(frozen=True, eq=False)
class RowGroups:
  """Groups of rows that are resampled together.

  Attributes:
    of_row: int64 `[rows]`, the group of each row, ascending from 0.
    source_of: int64 `[groups]`, the source that the rows of each group are from.
    unit: what a group consists of, such as 'documents'.
  """

  of_row: np.ndarray
  source_of: np.ndarray
  unit: str

  @property
  def count(self) -> int:
    """The number of groups."""
    return len(self.source_of)


def group_rows(
  numbers: np.ndarray, length: int, starts: np.ndarray | None, source_rows: Sequence[int] = ()
) -> RowGroups:
  """Groups rows of a store, at most `MOST_GROUPS` of them and one more per source.

  A row is assigned to the document that has most of its positions, the first of several. A group
  consists of all rows of consecutive documents, so a document is never distributed over groups but
  for the part of a row that it shares with the next one. Groups depend only on the rows: not on
  batches, devices or processes.

  Args:
    numbers: the rows, ascending `[rows]`.
    length: tokens per row.
    starts: places of the documents; None for blocks of at least `BLOCK_ROWS` consecutive rows.
    source_rows: rows of each source in the store, in order; empty for one source.
  """
  ends = np.cumsum(source_rows) if len(source_rows) else np.array([np.iinfo(np.int64).max])
  sources = np.searchsorted(ends, numbers, 'right')
  most = max(1, MOST_GROUPS - len(np.unique(sources)) + 1)
  share = -(-len(numbers) // most)  # rows of a group, at least
  if starts is None:
    share = max(BLOCK_ROWS, share)
    units = np.arange(len(numbers))
    unit = f'blocks of {share} rows'
  else:
    units = _documents_of(numbers, length, starts)
    unit = 'documents'
  groups = np.zeros(len(numbers), np.int64)
  first = 0  # row in which the group begins
  for row in range(1, len(numbers)):
    full = row - first >= share and units[row] != units[row - 1]
    if full or sources[row] != sources[row - 1]:
      first = row
    groups[row] = groups[row - 1] + (first == row)
  _, firsts = np.unique(groups, return_index=True)
  return RowGroups(groups, sources[firsts], unit)


def _documents_of(numbers: np.ndarray, length: int, starts: np.ndarray) -> np.ndarray:
  """The document that has most positions of each row, int64 `[rows]`. Padding counts as before."""
  begins = numbers * length
  firsts = np.maximum(np.searchsorted(starts, begins, 'right') - 1, 0)
  lasts = np.maximum(np.searchsorted(starts, begins + length - 1, 'right') - 1, 0)
  found = firsts.copy()
  for row in np.flatnonzero(firsts < lasts):
    inside = starts[firsts[row] + 1 : lasts[row] + 1]
    sizes = np.diff(inside, prepend=begins[row], append=begins[row] + length)
    found[row] += sizes.argmax()
  return found

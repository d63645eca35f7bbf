"""Token stores: folders of shards, which are matrices of token ids, with a manifest."""

import dataclasses
import errno
import itertools
import os
import pathlib
import shutil
import uuid
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from electra_jax import console, file_access
from electra_jax.data.store import document_starts, shard_cache
from electra_jax.data.store.background_check import BackgroundCheck
from electra_jax.data.store.token_manifest import (
  MANIFEST_FILE,
  REMEDY,
  Manifest,
  check_shards,
  read_manifest,
  rows_per_shard,
  write_manifest,
)
from electra_jax.data.store.token_shards import write_shard, writing
from electra_jax.errors import UserError

_BLOCK_ROWS = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
  """An open token store.

  Threads and forked processes may read it together. A pickled store opens its files again.

  Attributes:
    path: its folder or address, as it was opened.
    manifest: the content of its manifest.json.
    folder: the local folder of its shards; those at an address are fetched when they are first
      read.
    check: of checksums, while it is under way; None otherwise.
  """

  path: str
  manifest: Manifest
  folder: pathlib.Path
  check: BackgroundCheck | None = None
  # Open files by the index of the shard.
  _descriptors: dict[int, int] = dataclasses.field(default_factory=dict, init=False, repr=False)

  def __post_init__(self) -> None:
    weakref.finalize(self, _close, self._descriptors).atexit = False

  def __reduce__(self) -> tuple[Any, ...]:
    return Store, (self.path, self.manifest, self.folder)

  @property
  def rows(self) -> int:
    """The number of rows."""
    return int(self.manifest['rows'])

  @property
  def length(self) -> int:
    """Tokens per row."""
    return int(self.manifest['length'])

  @property
  def pad_id(self) -> int:
    """The id of padding."""
    return int(self.manifest['pad_id'])

  @property
  def tokens(self) -> int:
    """Tokens of all rows, with [CLS] and [SEP] and without padding."""
    return int(self.manifest['tokens'])

  @property
  def vocab_size(self) -> int:
    """The number of ids of the tokenizer."""
    return int(self.manifest['vocab_size'])

  @property
  def tokenizer_fingerprint(self) -> str:
    """The fingerprint of the tokenizer that made the rows."""
    return str(self.manifest['tokenizer_fingerprint'])

  @property
  def identity(self) -> str:
    """A hash of the rows, which does not depend on where the store is."""
    return str(self.manifest['blake2b'])

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Reads rows.

    Args:
      indices: integers `[n]`.

    Returns:
      int32 `[n, length]`.

    Raises:
      IndexError: there is no such row.
      UserError: a shard is missing, damaged, or cannot be fetched.
    """
    if self.check is not None:
      self.check.raise_failure()
    indices = np.asarray(indices, np.int64)
    dtype = np.dtype(self.manifest['dtype'])
    length = self.length
    if not len(indices):
      return np.zeros((0, length), np.int32)
    if indices.min() < 0 or indices.max() >= self.rows:
      raise IndexError(
        f'rows of the token store are 0..{self.rows - 1}; found {indices.min()}..{indices.max()}'
      )
    shards, places = np.divmod(indices, self.manifest['rows_per_shard'])
    # Consecutive rows of a shard are read with one call. pread keeps the resident memory flat,
    # unlike a memory map of a large store, and waits for the disk without Python's lock.
    starts = np.flatnonzero((np.diff(indices, prepend=-2) != 1) | (places == 0))
    row_bytes = length * dtype.itemsize
    offsets = places[starts] * row_bytes
    sizes = np.diff(starts, append=len(indices)) * row_bytes
    runs = [
      (self._descriptor(shard), size, offset)
      for shard, size, offset in zip(
        shards[starts].tolist(), sizes.tolist(), offsets.tolist(), strict=True
      )
    ]
    if hasattr(os, 'posix_fadvise') and len(runs) > 1:  # the disk may start with all of them
      for file, size, offset in runs:
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_WILLNEED)
    content = b''.join([os.pread(file, size, offset) for file, size, offset in runs])
    if len(content) != len(indices) * row_bytes:
      raise UserError(f'the token store {self.path!r} was cut short while it was read; {REMEDY}')
    return np.frombuffer(content, dtype).reshape(-1, length).astype(np.int32)

  def epochs(self, rows: int) -> tuple[float]:
    """How often a run of `rows` rows reads the store."""
    return (rows / self.rows,)

  def document_starts(self) -> np.ndarray | None:
    """The place of each document's first token, row x length + column; see document_starts.py.

    Returns:
      int64 `[documents]`, ascending; None if preparation did not record them.

    Raises:
      UserError: their file is missing or damaged.
    """
    return document_starts.read_starts(self.path, self.manifest)

  def fetch(self) -> None:
    """Fetches all shards of a store at an address, so that no read waits for them."""
    if file_access.is_remote(self.path):
      shard_cache.fetch_shards(self.path, self.manifest['shards'], self.folder)

  def token_frequencies(self, most_tokens: int = 10_000_000) -> np.ndarray:
    """The average number of times that each id occurs in a row, with padding.

    Args:
      most_tokens: of a larger store, evenly spaced rows of about so many tokens are counted.

    Returns:
      float64 `[vocab_size]`, which sums to `length`.
    """
    rows = min(self.rows, max(1, most_tokens // self.length))
    chosen = evenly_spaced(self.rows, rows)
    counts = np.zeros(self.vocab_size, np.int64)
    for start in range(0, rows, _BLOCK_ROWS):
      ids = self.read(chosen[start : start + _BLOCK_ROWS]).reshape(-1)
      counts += np.bincount(ids, minlength=len(counts))
    frequencies: np.ndarray = counts / max(rows, 1)
    return frequencies

  def unigram_entropy(self, left_out: Iterable[int] = (), most_tokens: int = 10_000_000) -> float:
    """Entropy of the tokens' frequencies, in nats per token.

    It is the cross-entropy of the best prediction without context.

    Args:
      left_out: ids that do not count, such as padding and special tokens.
      most_tokens: see `token_frequencies`.
    """
    return unigram_entropy(self.token_frequencies(most_tokens), left_out)

  def _descriptor(self, shard: int) -> int:
    """The open file of a shard, opened when it is first read."""
    if (descriptor := self._descriptors.get(shard)) is not None:
      return descriptor
    entry = self.manifest['shards'][shard]
    if file_access.is_remote(self.path) and not shard_cache.is_fetched(entry, self.folder):
      with console.progress('fetching', entry['bytes'], 'B') as line:

        def show(count: int) -> None:
          line(count, f'{entry["file"]} of {self.path}')

        shard_cache.fetch_shard(self.path, entry, self.folder, show)
    try:
      opened = os.open(self.folder / entry['file'], os.O_RDONLY)
    except OSError as error:
      remedy = (
        'raise the limit of open files (ulimit -n 65536)' if error.errno == errno.EMFILE else REMEDY
      )
      raise UserError(
        f'the token store {self.path!r} cannot be read anymore ({entry["file"]}: '
        f'{error.strerror}); {remedy}'
      ) from None
    descriptor = self._descriptors.setdefault(shard, opened)
    if descriptor != opened:  # another thread was faster
      os.close(opened)
    return descriptor


def evenly_spaced(rows: int, chosen: int) -> np.ndarray:
  """Evenly spaced row numbers, ascending.

  Args:
    rows: the number of rows to choose from.
    chosen: how many to choose, at most all.

  Returns:
    int64 `[chosen]`.
  """
  return np.arange(chosen, dtype=np.int64) * rows // max(chosen, 1)


def unigram_entropy(frequencies: np.ndarray, left_out: Iterable[int] = ()) -> float:
  """Entropy of token frequencies, in nats.

  Args:
    frequencies: of each id, in any unit, `[vocab_size]`.
    left_out: ids that do not count.
  """
  counts = np.array(frequencies, np.float64)
  counts[list(left_out)] = 0
  shares = counts[counts > 0] / counts.sum()
  return float(-(shares * np.log(shares)).sum())


#### Writing ####


def write_store(
  path: str | os.PathLike[str],
  blocks: Iterable[np.ndarray],
  *,
  length: int,
  vocab_size: int,
  pad_id: int,
  tokenizer_fingerprint: str,
  facts: dict[str, Any],
) -> Store:
  """Writes rows to a new store, with one block in memory at a time.

  A local store is written beside `path` and renamed at the end, so that a store at `path` is
  complete. At an address, a folder without a manifest is not a store.

  Args:
    path: the new folder or address.
    blocks: integer arrays `[rows, length]` of ids below `vocab_size`, with any numbers of rows.
    length: tokens per row.
    vocab_size: number of ids of the tokenizer.
    pad_id: id of padding.
    tokenizer_fingerprint: of the tokenizer.
    facts: JSON values that are added to the manifest; read after the last block.

  Raises:
    UserError: it cannot be written, or `path` exists.
  """
  remote = file_access.is_remote(path)
  target = os.fspath(path)
  if file_access.exists(file_access.join(target, MANIFEST_FILE) if remote else target):
    raise UserError(f'{target!r} exists already; remove it or name another folder')
  local = pathlib.Path(target)
  partial = local.with_name(f'.{local.name}.{uuid.uuid4().hex[:8]}.partial')
  folder = target if remote else os.fspath(partial)
  shape = {'length': length, 'vocab_size': vocab_size, 'pad_id': pad_id}
  try:
    pieces = itertools.groupby(
      _split_at_shards(blocks, rows_per_shard(length, vocab_size)), key=lambda piece: piece[0]
    )
    shards = [
      write_shard(folder, index, (rows for _, rows in group), **shape) for index, group in pieces
    ]
    write_manifest(
      folder, shards, **shape, tokenizer_fingerprint=tokenizer_fingerprint, facts=facts
    )
    if not remote:
      with writing(target):
        os.rename(folder, target)
  finally:
    if not remote:
      shutil.rmtree(folder, ignore_errors=True)
  return open_store(target)


def _split_at_shards(blocks: Iterable[np.ndarray], full: int) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (index of the shard, its rows) of every part of the blocks; a full shard has `full`."""
  row = 0
  for block in blocks:
    rest = block
    while len(rest):
      room = full - row % full
      piece = rest[:room]
      rest = rest[room:]
      yield row // full, piece
      row += len(piece)


#### Opening ####


def open_store(
  path: str | os.PathLike[str], local_cache: str | os.PathLike[str] | None = None
) -> Store:
  """Opens a store after checking it.

  The sizes and checksums of all shards of a local store are checked. What was found right is
  recorded beside them, so the next time costs nothing. The checksums of more than a few GB are
  checked while rows are read already, and a damaged shard is raised by the next read. Shards at an
  address are checked when they arrive.

  Args:
    path: its folder, or its address (scheme://...).
    local_cache: the local folder for shards of an address; None for a folder of
      `shard_cache.default_cache()`.

  Raises:
    UserError: there is no store, it has another format version, or its rows are damaged, missing or
      cut short.
  """
  path = os.fspath(path)
  manifest = read_manifest(path)
  if not file_access.is_remote(path):
    folder = pathlib.Path(path)
    return Store(path, manifest, folder, check_shards(folder, manifest))
  cache = (
    shard_cache.default_cache() / 'shards' if local_cache is None else pathlib.Path(local_cache)
  )
  return Store(path, manifest, cache / manifest['blake2b'])


def _close(descriptors: dict[int, int]) -> None:
  while descriptors:
    os.close(descriptors.popitem()[1])

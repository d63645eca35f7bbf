"""Token stores: folders of shards, matrices of token ids, with a manifest that says what they are; read by row."""

import dataclasses
import errno
import itertools
import os
import pathlib
import shutil
import uuid
import weakref
from collections.abc import Iterable

import numpy as np

from electra_jax import console, file_access
from electra_jax.data.store import shard_cache
from electra_jax.data.store.token_manifest import (
  MANIFEST_FILE,
  REMEDY,
  read_manifest,
  rows_per_shard,
  verify,
  write_manifest,
)
from electra_jax.data.store.token_shards import write_shard, writing
from electra_jax.errors import UserError

_BLOCK_ROWS = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
  """An open token store. Threads and forked processes may read it together; pickled, it opens its files anew.

  Attributes:
    path: its folder or address, as it was opened.
    manifest: what its manifest.json says.
    folder: where its shards are on this machine; those of an address come there when they are first read.
  """

  path: str
  manifest: dict
  folder: pathlib.Path
  _descriptors: dict = dataclasses.field(
    default_factory=dict, init=False, repr=False
  )  # shard -> open file

  def __post_init__(self):
    weakref.finalize(self, _close, self._descriptors).atexit = False

  def __reduce__(self):
    return Store, (self.path, self.manifest, self.folder)

  @property
  def rows(self) -> int:
    return self.manifest['rows']

  @property
  def length(self) -> int:
    """Tokens a row."""
    return self.manifest['length']

  @property
  def pad_id(self) -> int:
    return self.manifest['pad_id']

  @property
  def tokens(self) -> int:
    """Tokens in all rows, [CLS] and [SEP] included and padding not."""
    return self.manifest['tokens']

  @property
  def vocab_size(self) -> int:
    return self.manifest['vocab_size']

  @property
  def tokenizer_fingerprint(self) -> str:
    return self.manifest['tokenizer_fingerprint']

  @property
  def identity(self) -> str:
    """A hash of its rows: equal for stores of equal rows, wherever they are."""
    return self.manifest['blake2b']

  def read(self, indices: np.ndarray) -> np.ndarray:
    """The rows of `indices` `[n]`, as int32 `[n, length]`.

    Raises:
      IndexError: there is no such row.
      UserError: a shard is gone, or cannot be fetched.
    """
    indices = np.asarray(indices, np.int64)
    dtype, length = np.dtype(self.manifest['dtype']), self.length
    if not len(indices):
      return np.zeros((0, length), np.int32)
    if indices.min() < 0 or indices.max() >= self.rows:
      raise IndexError(
        f'rows of the token store are 0..{self.rows - 1}; found {indices.min()}..{indices.max()}'
      )
    shards, places = np.divmod(indices, self.manifest['rows_per_shard'])
    # Rows that follow one another in a shard are read at once. pread keeps the resident memory flat, which a memory map
    # of a large store does not, and waits for the disk without Python's lock.
    starts = np.flatnonzero((np.diff(indices, prepend=-2) != 1) | (places == 0))
    row_bytes = length * dtype.itemsize
    offsets, sizes = places[starts] * row_bytes, np.diff(starts, append=len(indices)) * row_bytes
    runs = [
      (self._descriptor(shard), size, offset)
      for shard, size, offset in zip(
        shards[starts].tolist(), sizes.tolist(), offsets.tolist(), strict=True
      )
    ]
    if hasattr(os, 'posix_fadvise') and len(runs) > 1:  # the disk may begin with all of them
      for file, size, offset in runs:
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_WILLNEED)
    content = b''.join([os.pread(file, size, offset) for file, size, offset in runs])
    if len(content) != len(indices) * row_bytes:
      raise UserError(f'the token store {self.path!r} was cut short while it was read; {REMEDY}')
    return np.frombuffer(content, dtype).reshape(-1, length).astype(np.int32)

  def epochs(self, rows: int) -> tuple[float]:
    """How often a run of so many rows goes through the store."""
    return (rows / self.rows,)

  def fetch(self) -> None:
    """Brings all shards of a store at an address to this machine, so that no reading waits for them."""
    if file_access.is_remote(self.path):
      shard_cache.fetch_shards(self.path, self.manifest['shards'], self.folder)

  def token_frequencies(self, most_tokens: int = 10_000_000) -> np.ndarray:
    """How often each id stands in a row, padding included, on average: float64 `[vocab_size]` that sums to `length`.

    Args:
      most_tokens: of a larger store, rows that make about so many are taken at even distances.
    """
    rows = min(self.rows, max(1, most_tokens // self.length))
    chosen = evenly(self.rows, rows)
    counts = np.zeros(self.vocab_size, np.int64)
    for start in range(0, rows, _BLOCK_ROWS):
      counts += np.bincount(
        self.read(chosen[start : start + _BLOCK_ROWS]).reshape(-1), minlength=len(counts)
      )
    return counts / max(rows, 1)

  def unigram_entropy(self, left_out: Iterable[int] = (), most_tokens: int = 10_000_000) -> float:
    """Entropy of the tokens' frequencies in nats a token: the cross-entropy of the best guess that sees no context.

    Args:
      left_out: ids that do not count, padding and special tokens say.
      most_tokens: see `token_frequencies`.
    """
    return entropy(self.token_frequencies(most_tokens), left_out)

  def _descriptor(self, shard):
    """The open file of a shard, opened when it is first read."""
    if (descriptor := self._descriptors.get(shard)) is not None:
      return descriptor
    facts = self.manifest['shards'][shard]
    if file_access.is_remote(self.path) and not shard_cache.is_fetched(facts, self.folder):
      with console.progress('fetching', facts['bytes']) as line:

        def show(count):
          return line(count, f'{facts["file"]} of {self.path}')

        shard_cache.fetch_shard(self.path, facts, self.folder, show)
    try:
      opened = os.open(self.folder / facts['file'], os.O_RDONLY)
    except OSError as error:
      remedy = (
        'raise the limit of open files (ulimit -n 65536)' if error.errno == errno.EMFILE else REMEDY
      )
      reason = f'{facts["file"]}: {error.strerror}'
      raise UserError(
        f'the token store {self.path!r} cannot be read any more ({reason}); {remedy}'
      ) from None
    descriptor = self._descriptors.setdefault(shard, opened)
    if descriptor != opened:  # another thread was first
      os.close(opened)
    return descriptor


def evenly(rows: int, chosen: int) -> np.ndarray:
  """So many of `rows` row numbers, at most all, at even distances and ascending: int64 `[chosen]`."""
  return np.arange(chosen, dtype=np.int64) * rows // max(chosen, 1)


def entropy(frequencies: np.ndarray, left_out: Iterable[int] = ()) -> float:
  """Entropy in nats of ids that come in these proportions `[vocab_size]`, some left out."""
  counts = np.array(frequencies, np.float64)
  counts[list(left_out)] = 0
  shares = counts[counts > 0] / counts.sum()
  return float(-(shares * np.log(shares)).sum())


#### Writing ###########################################################################################################


def write_store(
  path: str | os.PathLike,
  blocks: Iterable[np.ndarray],
  *,
  length: int,
  vocab_size: int,
  pad_id: int,
  tokenizer_fingerprint: str,
  facts: dict,
) -> Store:
  """Writes rows to a new store, one block in memory at a time; one that is cut short is no store.

  On this machine it is written beside `path` and renamed at the end, so that what is at `path` is whole.

  Args:
    path: the folder or address to be; no store may be there.
    blocks: integer arrays `[n, length]` of ids below `vocab_size`, of any n.
    facts: JSON values that go into the manifest beside its own, read when the last row has been written.

  Raises:
    UserError: it cannot be written, or something is there already.
  """
  remote = file_access.is_remote(path)
  path = os.fspath(path) if remote else pathlib.Path(path)
  if file_access.exists(file_access.join(path, MANIFEST_FILE) if remote else path):
    raise UserError(
      f'there is something at {str(path)!r} already; remove it or name another folder'
    )
  folder = path if remote else path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.partial')
  kind = {'length': length, 'vocab_size': vocab_size, 'pad_id': pad_id}
  try:
    pieces = itertools.groupby(
      _pieces(blocks, rows_per_shard(length, vocab_size)), key=lambda piece: piece[0]
    )
    shards = [
      write_shard(folder, index, (rows for _, rows in group), **kind) for index, group in pieces
    ]
    write_manifest(folder, shards, **kind, tokenizer_fingerprint=tokenizer_fingerprint, facts=facts)
    if not remote:
      with writing(path):
        os.rename(folder, path)
  finally:
    if not remote:
      shutil.rmtree(folder, ignore_errors=True)
  return open_store(path)


#### Opening ###########################################################################################################


def open_store(path: str | os.PathLike, local_cache: str | os.PathLike | None = None) -> Store:
  """Opens a store, refusing one that is damaged or something else.

  Of a store on this machine the sizes and checksums of all shards are checked, and what was found right is remembered
  beside them, so it costs nothing the next time. Shards of a store at an address are checked when they arrive.

  Args:
    path: its folder, or its address (scheme://...).
    local_cache: where shards of an address are kept on this machine; None is a folder of `shard_cache.default_cache()`.

  Raises:
    UserError: no store there; one of another format version; its rows are damaged, missing or cut short.
  """
  path = os.fspath(path)
  manifest = read_manifest(path)
  if not file_access.is_remote(path):
    folder = pathlib.Path(path)
    verify(folder, manifest)
    return Store(path, manifest, folder)
  cache = (
    shard_cache.default_cache() / 'shards' if local_cache is None else pathlib.Path(local_cache)
  )
  return Store(path, manifest, cache / manifest['blake2b'])


def _pieces(blocks, full):
  """(index of the shard, rows of it) of every part of the blocks."""
  row = 0
  for block in blocks:
    while len(block):
      piece, block = block[: full - row % full], block[full - row % full :]
      yield row // full, piece
      row += len(piece)


def _close(descriptors):
  while descriptors:
    os.close(descriptors.popitem()[1])

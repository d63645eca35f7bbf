"""Writes the shards of a token store."""

import contextlib
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from electra_jax import file_access
from electra_jax.data.store.token_manifest import ids_dtype, rows_per_shard


def write_shard(
  folder: str | os.PathLike[str],
  index: int,
  blocks: Iterable[np.ndarray],
  *,
  length: int,
  vocab_size: int,
  pad_id: int,
) -> dict[str, Any]:
  """Writes a shard, whole or not at all. Writing it again, in any process, gives the same file.

  Args:
    folder: of the store, a path or an address.
    index: of the shard; all but the store's last must have `rows_per_shard(length, vocab_size)`
      rows.
    blocks: integer arrays `[rows, length]` of ids below `vocab_size`.
    length: tokens per row.
    vocab_size: number of ids of the tokenizer.
    pad_id: id of padding.

  Returns:
    The shard's entry in the manifest.

  Raises:
    file_access.Unwritable: it cannot be written.
    ValueError: ids are out of range, rows have another length, or are more than a shard holds.
  """
  dtype = ids_dtype(vocab_size)
  most = rows_per_shard(length, vocab_size)
  digest = hashlib.blake2b(digest_size=16)
  rows = 0
  tokens = 0
  name = f'rows-{index:05}.bin'
  target = file_access.join(folder, name)
  remote = file_access.is_remote(folder)
  place = tempfile.gettempdir() if remote else os.fspath(folder)
  temporary = os.path.join(place, f'{name}.{uuid.uuid4().hex[:8]}.partial')
  with writing(target):
    try:
      os.makedirs(place, exist_ok=True)
      with open(temporary, 'wb') as file:
        for block in blocks:
          _check_block(block, length, vocab_size)
          content = block.astype(dtype).tobytes()
          digest.update(content)
          file.write(content)
          rows += len(block)
          tokens += int((block != pad_id).sum())
          if rows > most:
            raise ValueError(f'more than {most} rows for shard {index}')
        file.flush()
        os.fsync(file.fileno())
      if remote:
        file_access.upload(temporary, target)
      else:
        os.replace(temporary, target)
    finally:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
  return {
    'file': name,
    'rows': rows,
    'bytes': rows * length * dtype.itemsize,
    'blake2b': digest.hexdigest(),
    'tokens': tokens,
  }


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
  """Raises an OSError in the block as an Unwritable that names the store."""
  try:
    yield
  except OSError as error:
    raise file_access.Unwritable(
      f'the token store {str(path)!r} cannot be written: {error.strerror or error}'
    ) from None


def _check_block(block: np.ndarray, length: int, vocab_size: int) -> None:
  if block.ndim != 2 or block.shape[1] != length:
    raise ValueError(f'a block of rows has shape {block.shape}; expected (n, {length})')
  if len(block) and (block.min() < 0 or block.max() >= vocab_size):
    raise ValueError(f'token ids are {block.min()}..{block.max()}; expected 0..{vocab_size - 1}')

"""Writing the shards of a token store."""

import contextlib
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterable

import numpy as np

from electra_jax import file_access
from electra_jax.data.store.token_manifest import ids_dtype, rows_per_shard


def write_shard(
  folder: str | os.PathLike,
  index: int,
  blocks: Iterable[np.ndarray],
  *,
  length: int,
  vocab_size: int,
  pad_id: int,
) -> dict:
  """Writes a shard, whole or not at all; doing it again, there or in another process, gives the same file.

  Args:
    folder: of the store to be, a path or an address.
    index: which shard; all but the store's last must have `rows_per_shard(length, vocab_size)` rows.
    blocks: integer arrays `[n, length]` of ids below `vocab_size`.

  Returns:
    what `write_manifest` wants to know of it.

  Raises:
    files.Unwritable: it cannot be written.
    ValueError: ids out of range, rows of another length, more rows than a shard holds.
  """
  dtype, most = ids_dtype(vocab_size), rows_per_shard(length, vocab_size)
  digest = hashlib.blake2b(digest_size=16)
  rows = tokens = 0
  name = f'rows-{index:05}.bin'
  target, remote = file_access.join(folder, name), file_access.is_remote(folder)
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
      if remote:  # objects appear when their upload is complete
        file_access.upload(temporary, target)
      else:
        os.replace(temporary, target)
    finally:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
  size = rows * length * dtype.itemsize
  return {
    'file': name,
    'rows': rows,
    'bytes': size,
    'blake2b': digest.hexdigest(),
    'tokens': tokens,
  }


@contextlib.contextmanager
def writing(path: str | os.PathLike):
  """What the system refuses to write becomes an Unwritable that names the store."""
  try:
    yield
  except OSError as error:
    raise file_access.Unwritable(
      f'the token store {str(path)!r} cannot be written: {error.strerror or error}'
    ) from None


def _check_block(block, length, vocab_size):
  if block.ndim != 2 or block.shape[1] != length:
    raise ValueError(f'a block of rows has shape {block.shape}, not (n, {length})')
  if len(block) and (block.min() < 0 or block.max() >= vocab_size):
    raise ValueError(
      f'token ids must be in 0..{vocab_size - 1}; found {block.min()}..{block.max()}'
    )

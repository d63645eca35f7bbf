"""A folder with a memory-mapped matrix of token ids and the manifest that says what it is."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterable

import numpy as np

from electra_jax.config import UserError

FORMAT = 'electra_jax token store'
FORMAT_VERSION = 1
MANIFEST_FILE = 'manifest.json'
ROWS_FILE = 'rows.bin'

# Larger stores are checked by size alone when opened: a checksum would read them whole.
CHECKSUM_BYTES = 256 * 1024 * 1024
_REMEDY = 'delete it and prepare the corpus again'
_BLOCK_ROWS = 4096
_MANIFEST_KEYS = {'rows', 'length', 'dtype', 'tokens', 'vocab_size', 'pad_id', 'tokenizer_fingerprint', 'blake2b'}


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
  """An open token store.

  Attributes:
    path: its folder.
    manifest: what its manifest.json says.
    matrix: the token ids, `[rows, length]`, mapped from the disk, in the store's own dtype.
  """

  path: pathlib.Path
  manifest: dict
  matrix: np.ndarray

  @property
  def rows(self) -> int:
    return self.matrix.shape[0]

  @property
  def length(self) -> int:
    """Tokens a row."""
    return self.matrix.shape[1]

  @property
  def pad_id(self) -> int:
    return self.manifest['pad_id']

  @property
  def tokens(self) -> int:
    """Tokens in all rows, [CLS] and [SEP] included and padding not."""
    return self.manifest['tokens']

  @property
  def tokenizer_fingerprint(self) -> str:
    return self.manifest['tokenizer_fingerprint']

  def read(self, indices: np.ndarray) -> np.ndarray:
    """The rows of `indices` `[n]`, as int32 `[n, length]`."""
    return self.matrix[np.asarray(indices, np.int64)].astype(np.int32)

  def unigram_entropy(self, left_out: Iterable[int] = (), most_tokens: int = 10_000_000) -> float:
    """Entropy of the tokens' frequencies in nats a token: the cross-entropy of the best guess that sees no context.

    Args:
      left_out: ids that do not count, padding and special tokens say.
      most_tokens: of a larger store, rows that make about so many are taken at even distances.
    """
    rows = min(self.rows, max(1, most_tokens // self.length))
    chosen = np.arange(rows) * self.rows // max(rows, 1)
    counts = np.zeros(self.manifest['vocab_size'], np.int64)
    for start in range(0, rows, _BLOCK_ROWS):
      counts += np.bincount(self.read(chosen[start : start + _BLOCK_ROWS]).reshape(-1), minlength=len(counts))
    counts[list(left_out)] = 0
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def write_store(
  path: str | os.PathLike,
  rows: Iterable[np.ndarray],
  row_length: int,
  vocab_size: int,
  pad_id: int,
  tokenizer_fingerprint: str,
  facts: dict,
) -> Store:
  """Writes rows to a new store, in a folder beside `path` that is renamed at the end: one cut short is never at `path`.

  Args:
    path: the folder to be; nothing may be there.
    rows: integer arrays `[row_length]` of ids below `vocab_size`.
    facts: JSON values that go into the manifest beside its own, read when the last row has been written.

  Raises:
    UserError: the folder cannot be written, or something is there already.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.partial')
  dtype = np.dtype('<u2' if vocab_size <= 2**16 else '<u4')
  digest = hashlib.blake2b(digest_size=16)
  count = tokens = 0
  try:
    temporary.mkdir(parents=True)
    with open(temporary / ROWS_FILE, 'wb') as file:
      for block in _blocks(rows, row_length):
        if block.min() < 0 or block.max() >= vocab_size:
          raise ValueError(f'token ids must be in 0..{vocab_size - 1}; found {block.min()}..{block.max()}')
        content = block.astype(dtype).tobytes()
        digest.update(content)
        file.write(content)
        count += len(block)
        tokens += int((block != pad_id).sum())
      file.flush()
      os.fsync(file.fileno())
    manifest = {
      'format': FORMAT,
      'format_version': FORMAT_VERSION,
      'rows': count,
      'length': row_length,
      'dtype': dtype.str,
      'tokens': tokens,
      'vocab_size': vocab_size,
      'pad_id': pad_id,
      'tokenizer_fingerprint': tokenizer_fingerprint,
      'blake2b': digest.hexdigest(),
      **facts,
    }
    (temporary / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + '\n', 'utf-8')
    if path.exists():
      raise UserError(f'there is something at {str(path)!r} already; remove it or name another folder')
    os.rename(temporary, path)
  except OSError as error:
    raise UserError(f'the token store {str(path)!r} cannot be written: {error.strerror or error}') from None
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return open_store(path)


def open_store(path: str | os.PathLike) -> Store:
  """Opens a store, refusing one that is damaged or something else.

  Its size is checked always, its checksum where it is smaller than `CHECKSUM_BYTES`.

  Raises:
    UserError: no store there; one of another format version; its rows are damaged or cut short.
  """
  path = pathlib.Path(path)
  try:
    manifest = json.loads((path / MANIFEST_FILE).read_text('utf-8'))
  except FileNotFoundError:
    raise UserError(f'no token store at {str(path)!r}: it has no {MANIFEST_FILE}; prepare the corpus again') from None
  except (OSError, ValueError) as error:
    raise UserError(f'the token store {str(path)!r} has a damaged manifest ({error}); {_REMEDY}') from None
  if not isinstance(manifest, dict) or manifest.get('format') != FORMAT:
    raise UserError(f'{str(path)!r} is not a token store: its {MANIFEST_FILE} is of another kind; {_REMEDY}')
  if manifest.get('format_version') != FORMAT_VERSION:
    raise UserError(
      f'the token store {str(path)!r} has format version {manifest.get("format_version")} where {FORMAT_VERSION} is '
      f'read; {_REMEDY}'
    )
  if missing := _MANIFEST_KEYS - set(manifest):
    raise UserError(f'the manifest of the token store {str(path)!r} lacks {min(missing)!r}; {_REMEDY}')
  rows, length, dtype = manifest['rows'], manifest['length'], np.dtype(manifest['dtype'])
  file = path / ROWS_FILE
  expected = rows * length * dtype.itemsize
  found = file.stat().st_size if file.is_file() else 0
  if found != expected:
    raise UserError(
      f'the token store {str(path)!r} is damaged: {ROWS_FILE} has {found:,} bytes, not {expected:,}; {_REMEDY}'
    )
  if rows == 0:
    matrix = np.zeros((0, length), dtype)
  else:
    matrix = np.memmap(file, dtype, mode='r', shape=(rows, length))
  if expected < CHECKSUM_BYTES and hashlib.blake2b(matrix, digest_size=16).hexdigest() != manifest['blake2b']:
    raise UserError(f'the token store {str(path)!r} is damaged: the checksum of {ROWS_FILE} is wrong; {_REMEDY}')
  return Store(path, manifest, matrix)


def _blocks(rows, row_length):
  """Rows gathered into arrays `[up to _BLOCK_ROWS, row_length]`."""
  block = []
  for row in rows:
    if row.shape != (row_length,):
      raise ValueError(f'a row has shape {row.shape}, not ({row_length},)')
    block.append(row)
    if len(block) == _BLOCK_ROWS:
      yield np.stack(block)
      block = []
  if block:
    yield np.stack(block)

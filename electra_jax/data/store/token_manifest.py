"""The manifest of a token store: what it says, and whether the shards beside it are what it says."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from electra_jax import console, file_access
from electra_jax.errors import UserError

FORMAT = 'electra_jax token store'
FORMAT_VERSION = 2
MANIFEST_FILE = 'manifest.json'
VERIFIED_FILE = 'verified.json'
SHARD_BYTES = 256_000_000  # the most that a shard has

REMEDY = 'delete it and prepare the corpus again'
_SHARD_KEYS = {'file', 'rows', 'bytes', 'blake2b', 'tokens'}
_MANIFEST_KEYS = {
  *(
    'rows',
    'length',
    'dtype',
    'rows_per_shard',
    'shards',
    'tokens',
    'vocab_size',
    'pad_id',
    'tokenizer_fingerprint',
  ),
  'blake2b',
}


def rows_per_shard(length: int, vocab_size: int) -> int:
  """Rows of each shard but the last, so that none is larger than `SHARD_BYTES`."""
  return max(1, SHARD_BYTES // (length * ids_dtype(vocab_size).itemsize))


def ids_dtype(vocab_size: int) -> np.dtype:
  """How ids are stored: two bytes each where that is enough, or four; little-endian."""
  return np.dtype('<u2' if vocab_size <= 2**16 else '<u4')


def write_manifest(
  folder: str | os.PathLike,
  shards: Iterable[dict],
  *,
  length: int,
  vocab_size: int,
  pad_id: int,
  tokenizer_fingerprint: str,
  facts: dict,
) -> None:
  """Makes a store of a folder whose shards are all written; a folder without a manifest is none.

  Args:
    shards: what `write_shard` returned, in the order of their indices.
    facts: JSON values that go into the manifest beside its own.

  Raises:
    UserError: it cannot be written.
    ValueError: the shards do not make a store: one is missing, or not full and not the last.
  """
  shards, dtype = list(shards), ids_dtype(vocab_size).str
  manifest = {
    'format': FORMAT,
    'format_version': FORMAT_VERSION,
    'rows': sum(shard['rows'] for shard in shards),
    'length': length,
    'dtype': dtype,
    'rows_per_shard': rows_per_shard(length, vocab_size),
    'shards': shards,
    'tokens': sum(shard['tokens'] for shard in shards),
    'vocab_size': vocab_size,
    'pad_id': pad_id,
    'tokenizer_fingerprint': tokenizer_fingerprint,
    'blake2b': rows_identity(length, dtype, shards),
  }
  if taken := set(facts) & set(manifest):
    raise ValueError(f'the manifest says {min(taken)!r} itself')
  if complaint := complaint_of(manifest):
    raise ValueError(complaint)
  content = json.dumps(manifest | facts, indent=2, ensure_ascii=False) + '\n'
  file_access.write_bytes(file_access.join(folder, MANIFEST_FILE), content.encode('utf-8'))


def read_manifest(path: str) -> dict:
  """The manifest of the store at a path or address.

  Raises:
    UserError: there is none; it is damaged, of another format version, or of something else.
  """
  file = file_access.join(path, MANIFEST_FILE)
  if not file_access.exists(file):
    raise UserError(
      f'no token store at {path!r}: it has no {MANIFEST_FILE}; prepare the corpus again'
    )
  try:
    manifest = json.loads(file_access.read_bytes(file).decode('utf-8'))
  except ValueError as error:
    raise UserError(
      f'the token store {path!r} has a damaged manifest ({error}); {REMEDY}'
    ) from None
  if not isinstance(manifest, dict) or manifest.get('format') != FORMAT:
    raise UserError(
      f'{path!r} is not a token store: its {MANIFEST_FILE} is of another kind; {REMEDY}'
    )
  if manifest.get('format_version') != FORMAT_VERSION:
    raise UserError(
      f'the token store {path!r} has format version {manifest.get("format_version")} where {FORMAT_VERSION} is '
      f'read; {REMEDY}'
    )
  if missing := _MANIFEST_KEYS - set(manifest):
    raise UserError(f'the manifest of the token store {path!r} lacks {min(missing)!r}; {REMEDY}')
  try:
    complaint = complaint_of(manifest)
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    complaint = f'{type(error).__name__}: {error}'
  if complaint:
    raise UserError(f'the token store {path!r} has a damaged manifest ({complaint}); {REMEDY}')
  return manifest


def complaint_of(manifest: dict) -> str | None:
  """What is wrong with the shards that a manifest tells of, None where nothing is."""
  shards, full = manifest['shards'], manifest['rows_per_shard']
  if manifest['dtype'] != ids_dtype(manifest['vocab_size']).str:
    return f'ids of type {manifest["dtype"]!r}'
  row_bytes = manifest['length'] * np.dtype(manifest['dtype']).itemsize
  for i, shard in enumerate(shards):
    if missing := _SHARD_KEYS - set(shard):
      return f'shard {i} lacks {min(missing)!r}'
    if shard['file'] != f'rows-{i:05}.bin':
      return f'shard {i} is called {shard["file"]!r}'
    if shard['bytes'] != shard['rows'] * row_bytes:
      return f'shard {i} has {shard["bytes"]} bytes for {shard["rows"]} rows'
    if not (0 < shard['rows'] == full or i == len(shards) - 1 and 0 < shard['rows'] <= full):
      return f'shard {i} of {len(shards)} has {shard["rows"]} rows where a full one has {full}'
  for key in ('rows', 'tokens'):
    if manifest[key] != sum(shard[key] for shard in shards):
      return f'its {key} are not those of its shards'
  if manifest['blake2b'] != rows_identity(manifest['length'], manifest['dtype'], shards):
    return 'its checksum is not that of its shards'
  return None


def verify(folder: pathlib.Path, manifest: dict) -> None:
  """Checks the sizes and checksums of the shards in a folder, and notes beside them what was found right.

  A shard whose size and time of change are as noted is not read again. A folder that cannot be written is checked each
  time.

  Raises:
    UserError: a shard is missing or not what the manifest says.
  """
  note, todo, seen = folder / VERIFIED_FILE, [], {}
  try:
    known = json.loads(note.read_bytes())
  except (OSError, ValueError):
    known = None
  known = known if isinstance(known, dict) else {}
  for shard in manifest['shards']:
    name = shard['file']
    try:
      facts = os.stat(folder / name)
    except OSError:
      raise UserError(
        f'the token store {str(folder)!r} is damaged: {name} is missing; {REMEDY}'
      ) from None
    if facts.st_size != shard['bytes']:
      raise UserError(
        f'the token store {str(folder)!r} is damaged: {name} has {facts.st_size:,} bytes, not '
        f'{shard["bytes"]:,}; {REMEDY}'
      )
    seen[name] = {
      'bytes': facts.st_size,
      'mtime_ns': facts.st_mtime_ns,
      'blake2b': shard['blake2b'],
    }
    if known.get(name) != seen[name]:
      todo.append(shard)
  if not todo:
    return
  total, done = sum(shard['bytes'] for shard in todo), 0
  workers = min(8, os.cpu_count() or 1)
  with (
    console.progress('checking', total) as line,
    concurrent.futures.ThreadPoolExecutor(workers) as pool,
  ):
    digests = pool.map(lambda shard: _file_digest(folder / shard['file']), todo)
    for shard, digest in zip(todo, digests, strict=True):
      if digest != shard['blake2b']:
        raise UserError(
          f'the token store {str(folder)!r} is damaged: the checksum of {shard["file"]} is wrong; {REMEDY}'
        )
      done += shard['bytes']
      line(done, f'{done / 1e9:.1f} of {total / 1e9:.1f} GB of {folder}')
  with contextlib.suppress(UserError):
    file_access.write_bytes(note, json.dumps(seen, indent=2).encode('utf-8'))


def rows_identity(length: int, dtype: str, shards: list[dict]) -> str:
  """A hash of the rows by those of their shards."""
  parts = [f'{length} {dtype}', *(shard['blake2b'] for shard in shards)]
  return hashlib.blake2b('\n'.join(parts).encode(), digest_size=16).hexdigest()


def _file_digest(file):
  with open(file, 'rb') as content:
    return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

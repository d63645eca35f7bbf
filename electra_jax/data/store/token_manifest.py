"""The manifest of a token store: writing it, reading it, and checking the shards against it."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from electra_jax import console, file_access, input_limits, json_reader
from electra_jax.data.store.background_check import BackgroundCheck
from electra_jax.errors import UserError

FORMAT = 'electra_jax token store'
FORMAT_VERSION = 2
MANIFEST_FILE = 'manifest.json'
VERIFIED_FILE = 'verified.json'
SHARD_BYTES = 256_000_000  # the most bytes of a shard
WAIT_BYTES = 2_000_000_000  # of shards that are checked before a store is open; seconds of reading

REMEDY = 'delete it and prepare the corpus again'
_SHARD_KEYS = {'file', 'rows', 'bytes', 'blake2b', 'tokens'}
_SHAPE: dict[str, Any] = {
  'rows': int,
  'length': int,
  'dtype': str,
  'rows_per_shard': int,
  'shards': [{'file?': str, 'rows?': int, 'bytes?': int, 'blake2b?': str, 'tokens?': int}],
  'tokens': int,
  'vocab_size': int,
  'pad_id': int,
  'tokenizer_fingerprint': str,
  'blake2b': str,
}
_MANIFEST_KEYS = set(_SHAPE)
_SIZES = ('length', 'vocab_size')  # which are positive and no larger than those of an encoder

Manifest = dict[str, Any]  # JSON values
Shard = dict[str, Any]  # the entry of a shard in a manifest


def rows_per_shard(length: int, vocab_size: int) -> int:
  """Rows of each shard but the last, such that none is larger than `SHARD_BYTES`."""
  return max(1, SHARD_BYTES // (length * ids_dtype(vocab_size).itemsize))


def ids_dtype(vocab_size: int) -> np.dtype[Any]:
  """The type of stored ids: little-endian, two bytes if that is enough, or four."""
  return np.dtype('<u2' if vocab_size <= 2**16 else '<u4')


#### Writing ####


def write_manifest(
  folder: str | os.PathLike[str],
  shards: Iterable[Shard],
  *,
  length: int,
  vocab_size: int,
  pad_id: int,
  tokenizer_fingerprint: str,
  facts: dict[str, Any],
) -> None:
  """Turns a folder whose shards are written into a store. A folder without a manifest is none.

  Args:
    folder: of the store, a path or an address.
    shards: what `write_shard` returned, in the order of their indices.
    length: tokens per row.
    vocab_size: number of ids of the tokenizer.
    pad_id: id of padding.
    tokenizer_fingerprint: of the tokenizer.
    facts: JSON values that are added to the manifest.

  Raises:
    UserError: it cannot be written.
    ValueError: the shards do not form a store, because one is missing, or is not full and not the
      last; or `facts` has a key of the manifest.
  """
  shards = list(shards)
  dtype = ids_dtype(vocab_size).str
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
  if used := set(facts) & set(manifest):
    raise ValueError(f'{min(used)!r} is a key of the manifest; expected another name for the fact')
  if complaint := complaint_of(manifest):
    raise ValueError(complaint)
  content = json.dumps(manifest | facts, indent=2, ensure_ascii=False) + '\n'
  file_access.write_bytes(file_access.join(folder, MANIFEST_FILE), content.encode('utf-8'))


def rows_identity(length: int, dtype: str, shards: Iterable[Shard]) -> str:
  """A hash of the rows, computed from those of their shards."""
  parts = [f'{length} {dtype}', *(shard['blake2b'] for shard in shards)]
  return hashlib.blake2b('\n'.join(parts).encode(), digest_size=16).hexdigest()


#### Reading ####


def read_manifest(path: str) -> Manifest:
  """The manifest of the store at a path or address.

  Raises:
    UserError: there is none, it is damaged, or it has another format or format version.
  """
  file = file_access.join(path, MANIFEST_FILE)
  if not file_access.exists(file):
    raise UserError(
      f'no token store at {path!r}: it has no {MANIFEST_FILE}; prepare the corpus again'
    )
  try:
    manifest = json_reader.read(file, rules=json_reader.OWN)
  except json_reader.InvalidJson as error:
    raise UserError(
      f'the token store {path!r} has a damaged manifest ({error.reason}); {REMEDY}'
    ) from None
  if not isinstance(manifest, dict) or manifest.get('format') != FORMAT:
    raise UserError(
      f'{path!r} is not a token store: its {MANIFEST_FILE} has another format; {REMEDY}'
    )
  if manifest.get('format_version') != FORMAT_VERSION:
    raise UserError(
      f'the token store {path!r} has format version {manifest.get("format_version")}; expected '
      f'{FORMAT_VERSION}; {REMEDY}'
    )
  if missing := _MANIFEST_KEYS - set(manifest):
    raise UserError(f'the manifest of the token store {path!r} lacks {min(missing)!r}; {REMEDY}')
  try:
    json_reader.check(manifest, _SHAPE, 'it')
    complaint = complaint_of(manifest)
  except json_reader.InvalidJson as error:
    complaint = error.reason
  if complaint:
    raise UserError(f'the token store {path!r} has a damaged manifest ({complaint}); {REMEDY}')
  return manifest


def complaint_of(manifest: Manifest) -> str | None:
  """What is wrong with the shards of a manifest; None if they are right."""
  shards = manifest['shards']
  full = manifest['rows_per_shard']
  for key in _SIZES:
    if not 0 < manifest[key] <= input_limits.scaled(input_limits.ENCODER_SIZE):
      return f'its {key} is {manifest[key]}'
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


#### Checking the shards ####


def check_shards(folder: pathlib.Path, manifest: Manifest) -> BackgroundCheck | None:
  """Checks the sizes and checksums of the shards in a local folder.

  What was found right is recorded beside the shards. A shard whose size and time of change are as
  recorded is not read again. A folder that cannot be written is checked each time.

  Args:
    folder: of the store.
    manifest: of the store.

  Returns:
    A check that is under way, of more than `WAIT_BYTES`; None where all is checked.

  Raises:
    UserError: a shard is missing or differs from the manifest.
  """
  record = folder / VERIFIED_FILE
  seen = {shard['file']: _state(folder, shard) for shard in manifest['shards']}
  known = _read_record(record)
  todo = [shard for shard in manifest['shards'] if known.get(shard['file']) != seen[shard['file']]]
  if not todo:
    return None
  if sum(shard['bytes'] for shard in todo) > WAIT_BYTES:
    by_name = {shard['file']: shard for shard in todo}
    return BackgroundCheck(
      list(by_name), lambda name: _check_digest(folder, by_name[name]), seen, record
    )
  _check_digests(folder, todo)
  with contextlib.suppress(UserError):
    file_access.write_bytes(record, json.dumps(seen, indent=2).encode('utf-8'))
  return None


def _state(folder: pathlib.Path, shard: Shard) -> dict[str, Any]:
  """What is recorded of a shard that is right.

  Raises:
    UserError: the file is missing, or its size is wrong.
  """
  name = shard['file']
  try:
    stat = os.stat(folder / name)
  except OSError:
    raise UserError(
      f'the token store {str(folder)!r} is damaged: {name} is missing; {REMEDY}'
    ) from None
  if stat.st_size != shard['bytes']:
    raise UserError(
      f'the token store {str(folder)!r} is damaged: {name} has {stat.st_size:,} bytes, not '
      f'{shard["bytes"]:,}; {REMEDY}'
    )
  return {'bytes': stat.st_size, 'mtime_ns': stat.st_mtime_ns, 'blake2b': shard['blake2b']}


def _read_record(record: pathlib.Path) -> dict[str, Any]:
  try:
    known: dict[str, Any] = json_reader.read(record, {})
  except UserError:
    return {}
  return known


def shard_damage(folder: str | os.PathLike[str], shards: Sequence[Shard]) -> Iterator[str]:
  """Reads all shards, whatever was recorded before.

  Args:
    folder: of the store, a path or an address.
    shards: the entries of the manifest.

  Yields:
    For each shard that is missing or differs, its name and what is wrong.
  """
  for shard in shards:
    path = file_access.join(folder, shard['file'])
    if not file_access.exists(path):
      yield f'{shard["file"]} is missing'
    elif file_digest(path) != shard['blake2b']:
      yield f'{shard["file"]} differs from its checksum'


def _check_digests(folder: pathlib.Path, shards: Sequence[Shard]) -> None:
  """Compares the checksums of shards with the manifest.

  Raises:
    UserError: one differs.
  """
  total = sum(shard['bytes'] for shard in shards)
  done = 0
  with (
    console.progress('checking', total, 'B') as line,
    concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
  ):
    checked = pool.map(lambda shard: _check_digest(folder, shard), shards)
    for shard, _ in zip(shards, checked, strict=True):
      done += shard['bytes']
      line(done, f'{done / 1e9:.1f} of {total / 1e9:.1f} GB of {folder}')


def _check_digest(folder: pathlib.Path, shard: Shard) -> None:
  """Compares the checksum of a shard with the manifest. Raises UserError where it differs."""
  if file_digest(folder / shard['file']) != shard['blake2b']:
    raise UserError(
      f'the token store {str(folder)!r} is damaged: the checksum of {shard["file"]} is wrong; '
      f'{REMEDY}'
    )


def file_digest(file: str | os.PathLike[str]) -> str:
  """The checksum of a shard, as a manifest has it."""
  return file_access.digest(file, lambda: hashlib.blake2b(digest_size=16))

"""Checksums of the files of a folder: SHA256SUMS, in the format of the program sha256sum.

Checkpoints, tokenizers and exports have one. `sha256sum --check SHA256SUMS` reads it too. SHA-256
is in the standard library, and processors of the last years compute it in hardware, several times
as fast as BLAKE2.
"""

import concurrent.futures
import hashlib
import os
import re
from collections.abc import Iterable, Mapping

from electra_jax import file_access
from electra_jax.errors import UserError

SUMS = 'SHA256SUMS'
CARD = 'README.md'  # of an export: its authors edit it, so it is not compared

_THREADS = 8  # hashing and reading release Python's lock
_LINE = re.compile(r'([0-9a-f]{64})  (\S[^\n]*)')


def digest(path: str | os.PathLike[str]) -> str:
  """The SHA-256 of a file, in hexadecimal digits.

  Raises:
    UserError: it cannot be read.
  """
  return file_access.digest(path, 'sha256')


def digests(folder: str | os.PathLike[str], names: Iterable[str]) -> dict[str, str]:
  """The checksums of files.

  Args:
    folder: a folder or address.
    names: the files, relative to the folder, with slashes.

  Raises:
    UserError: a file cannot be read.
  """
  names = sorted(names)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(lambda name: digest(file_access.join(folder, name)), names)
    return dict(zip(names, found, strict=True))


def sums_content(sums: Mapping[str, str]) -> bytes:
  """The content of SHA256SUMS.

  Args:
    sums: checksum of each file.
  """
  return ''.join(f'{sums[name]}  {name}\n' for name in sorted(sums)).encode()


def sums_of(files: Mapping[str, bytes]) -> bytes:
  """The content of SHA256SUMS for files that are in memory, by name."""
  return sums_content({name: hashlib.sha256(x).hexdigest() for name, x in files.items()})


def read_sums(folder: str | os.PathLike[str]) -> dict[str, str] | None:
  """The checksums that are recorded in a folder; None if there are none.

  That of a model card, which earlier exports recorded, is left out.

  Raises:
    UserError: SHA256SUMS is damaged or cannot be read.
  """
  path = file_access.join(folder, SUMS)
  if not file_access.exists(path):
    return None
  lines = file_access.read_bytes(path).decode('utf-8', 'replace').split('\n')
  found = [_LINE.fullmatch(line) for line in lines[:-1]]
  if lines[-1] or not found or not all(found):
    raise UserError(
      f'{path!r} is damaged; restore it, or remove it to read the files beside it unchecked.'
    )
  return {match[2]: match[1] for match in found if match and match[2] != CARD}


def find_damage(
  folder: str | os.PathLike[str], sums: Mapping[str, str], names: Iterable[str] | None = None
) -> dict[str, str]:
  """Compares files with their checksums.

  Args:
    folder: a folder or address.
    sums: checksum of each file.
    names: the files to read; None for all.

  Returns:
    For each file that is not as it was written, what is wrong with it.
  """
  chosen = sorted(sums if names is None else names)

  def complaint(name: str) -> str:
    path = file_access.join(folder, name)
    try:
      if not file_access.exists(path):
        return 'is missing'
      return '' if digest(path) == sums[name] else 'differs from its checksum'
    except file_access.Unreachable:  # not damage
      raise
    except UserError as error:
      return f'cannot be read ({error})'

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = zip(chosen, pool.map(complaint, chosen), strict=True)
    return {name: text for name, text in found if text}


def check(folder: str | os.PathLike[str], names: Iterable[str] | None = None) -> None:
  """Checks files against SHA256SUMS in their folder, if there is one.

  Args:
    folder: a folder or address.
    names: the files that are going to be read; None for all that have a checksum. Files without a
      checksum are not read.

  Raises:
    UserError: a file was changed or damaged; it is named.
  """
  sums = read_sums(folder)
  if sums is None:
    return
  chosen = sums if names is None else [name for name in names if name in sums]
  for name, text in find_damage(folder, sums, chosen).items():
    raise UserError(
      f'{file_access.join(folder, name)!r} {text}; restore the file, or remove '
      f'{file_access.join(folder, SUMS)} if the change is intended.'
    )

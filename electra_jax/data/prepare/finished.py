"""Folders that are finished or not, made by one process at a time and resumed after a kill."""

import contextlib
import json
import re
import time
from collections.abc import Iterator
from typing import Any

from electra_jax import console, file_access, json_reader
from electra_jax.data.prepare import workers
from electra_jax.data.tokenizers import loss_report
from electra_jax.errors import UserError
from electra_jax.folder_lock import FolderInUse, FolderLock, is_lock_file

FORMAT = 'electra_jax prepared corpus'
FACTS_FILE = 'facts.json'  # written last: a folder without it is not finished

_WORK = '.work'
_OURS = re.compile(r'\.work|tokenizer|report\.md|heldout|train(-\d+)?')
_PARTIAL = re.compile(r'(facts\.json|report\.md)\.[0-9a-f]{8}\.partial')
_POLL = 1.0  # seconds between two looks at a folder that another process works on
_REMOTE_POLL = 5.0
# After these errors, the same command or one with another flag continues.
_WORK_IS_GOOD = (
  file_access.Unwritable,
  file_access.Unreachable,
  workers.WorkerDied,
  FolderInUse,
  loss_report.LostText,
)


@contextlib.contextmanager
def building(
  path: str, fingerprint: str = '', lock: FolderLock | None = None
) -> Iterator[str | None]:
  """Yields the folder for unfinished work in `path`; None if `path` is finished.

  A second process, on any machine, waits for the first. Unfinished work is kept for the next
  process if this one ends early. After a UserError it is removed, unless the cause was outside of
  the corpus and the recipe, or a flag allows it.

  Args:
    path: a path or an address.
    fingerprint: of what is made; '' where the name of the folder contains it.
    lock: of the folder; None for a new one.

  Raises:
    UserError: the folder cannot be written, holds something else, or was taken by another process.
  """
  work = file_access.join(path, _WORK)
  with lock or FolderLock(path) as lock:
    if _finished_before(path, fingerprint, lock):
      yield None
      return
    _start(path, fingerprint)
    try:
      yield work
      lock.check(read=True)
    except _WORK_IS_GOOD:
      raise
    except UserError:
      lock.check(read=True)
      _remove_unfinished(path)
      raise
    file_access.remove(work)
    _remove_partial_files(path)


def _finished_before(path: str, fingerprint: str, lock: FolderLock) -> bool:
  """Whether the folder is finished, after waiting for a process that works on it.

  If it is not, this process holds the lock. A finished folder is not locked: it may be read-only.
  """
  reported = False
  while not _is_finished(path, fingerprint):
    found = lock.attempt()
    if found is None:
      return _is_finished(path, fingerprint)
    if not reported:
      reported = True
      console.say('waiting', f'for {found[0].describe()}, which is preparing {path}')
    time.sleep(_REMOTE_POLL if file_access.is_remote(path) else _POLL)
  if file_access.listing(file_access.join(path, _WORK)) and lock.attempt() is None:
    file_access.remove(file_access.join(path, _WORK))  # a process was killed just before it did
  return True


def read_facts(path: str) -> dict[str, Any] | None:
  """What was counted when a folder was made; None if it is not finished.

  Raises:
    UserError: the file is damaged.
  """
  file = file_access.join(path, FACTS_FILE)
  if not file_access.exists(file):
    return None
  try:
    facts: dict[str, Any] = json_reader.read(file, {'format': str}, rules=json_reader.OWN)
  except json_reader.InvalidJson:
    facts = {}
  if facts.get('format') != FORMAT:
    raise UserError(
      f'the prepared corpus {path!r} is damaged: its {FACTS_FILE} cannot be read; delete the '
      'folder and prepare the corpus again'
    )
  return facts


def write_facts(path: str, facts: dict[str, Any], indent: int | None = None) -> None:
  """Marks a folder as finished."""
  content = json.dumps({'format': FORMAT} | facts, indent=indent) + '\n'
  file_access.write_bytes(file_access.join(path, FACTS_FILE), content.encode())


def _start(path: str, fingerprint: str) -> None:
  """Marks a folder as unfinished; removes unfinished work with another fingerprint.

  Raises:
    UserError: the folder holds something else.
  """
  mark = file_access.join(path, _WORK, 'begun.json')
  content = {'fingerprint': fingerprint}
  marked = file_access.exists(mark)
  others = [n for n in file_access.listing(path) if n != _WORK and not is_lock_file(n)]
  if not marked and others:
    raise UserError(f'{path!r} is not empty and not a prepared corpus; name another --output')
  written = json.dumps(content).encode()
  if not marked or _read_mark(mark) != content:
    _remove_unfinished(path)
  file_access.write_bytes(mark, written)


def _read_mark(mark: str) -> json_reader.Json:
  """The content of a mark; None where it is damaged, so that the work begins again."""
  try:
    return json_reader.read(mark)
  except json_reader.InvalidJson:
    return None


def _is_finished(path: str, fingerprint: str) -> bool:
  """Whether a folder is finished.

  Raises:
    UserError: it is, but with another fingerprint.
  """
  facts = read_facts(path)
  if facts and fingerprint and facts.get('fingerprint') != fingerprint:
    raise UserError(
      f'{path!r} holds another corpus, or one with other settings; name another --output, or '
      'delete the folder'
    )
  return facts is not None


def _remove_unfinished(path: str) -> None:
  """Removes the files of a preparation from a folder, and none that a user added.

  The mark that they are a preparation's is in the work folder, which is therefore the last.
  """
  for name in sorted(file_access.listing(path), key=lambda name: name == _WORK):
    if _OURS.fullmatch(name):
      file_access.remove(file_access.join(path, name))
  _remove_partial_files(path)


def _remove_partial_files(path: str) -> None:
  """Removes what processes that were killed while they wrote a file have left."""
  for name in file_access.listing(path):
    if _PARTIAL.fullmatch(name):
      file_access.remove(file_access.join(path, name))

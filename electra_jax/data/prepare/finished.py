"""Folders that are finished or not, made by one process at a time and resumed after a kill."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import IO, Any

from electra_jax import console, file_access, json_reader
from electra_jax.data.prepare import workers
from electra_jax.errors import UserError

FORMAT = 'electra_jax prepared corpus'
FACTS_FILE = 'facts.json'  # written last: a folder without it is not finished

_WORK = '.work'
_OURS = re.compile(r'\.work|tokenizer|report\.md|heldout|train(-\d+)?')


@contextlib.contextmanager
def building(path: str, fingerprint: str = '') -> Iterator[str | None]:
  """Yields the folder for unfinished work in `path`; None if `path` is finished.

  Where files can be locked, a second process waits for the first. Unfinished work is kept for the
  next process if this one ends early. After a UserError it is removed, unless another process may
  use it or the cause was outside of the corpus and the recipe.

  Args:
    path: a path or an address.
    fingerprint: of what is made; '' where the name of the folder contains it.

  Raises:
    UserError: the folder cannot be written, or holds something else.
  """
  work = file_access.join(path, _WORK)
  with contextlib.ExitStack() as stack:
    locked = not file_access.is_remote(path) and stack.enter_context(_locked(path))
    if _is_finished(path, fingerprint):
      file_access.remove(work)  # a process was killed just before it did
      yield None
      return
    _start(path, fingerprint)
    try:
      yield work
    except (file_access.Unwritable, file_access.Unreachable, workers.WorkerDied):
      raise  # the finished work is good
    except UserError:
      if locked:
        _remove_unfinished(path)
      elif _is_finished(path, fingerprint):
        return  # another process was faster and has removed what this one worked on
      raise
    file_access.remove(work)


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


@contextlib.contextmanager
def _locked(path: str) -> Iterator[bool]:
  """Holds the lock of a local folder, beside it; yields False where files cannot be locked."""
  folder, name = os.path.split(os.path.abspath(path))
  with contextlib.ExitStack() as stack:
    try:
      os.makedirs(folder, exist_ok=True)
      file = stack.enter_context(open(os.path.join(folder, f'.{name}.lock'), 'w'))
      locked = _lock(file)
    except OSError as error:
      raise UserError(
        f'{folder!r} cannot be written: {error.strerror}; name another folder'
      ) from None
    yield locked


def _lock(file: IO[str]) -> bool:
  """Waits until this process holds the lock; False where files cannot be locked."""
  try:
    import fcntl
  except ImportError:
    return False
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    console.say('waiting', 'for another run that is preparing the same corpus')
    fcntl.flock(file, fcntl.LOCK_EX)
  except OSError:
    return False
  return True


def _start(path: str, fingerprint: str) -> None:
  """Marks a folder as unfinished; removes unfinished work with another fingerprint.

  Raises:
    UserError: the folder holds something else.
  """
  mark = file_access.join(path, _WORK, 'begun.json')
  content = {'fingerprint': fingerprint}
  marked = file_access.exists(mark)
  if not marked and any(name != _WORK for name in file_access.listing(path)):
    raise UserError(f'{path!r} is not empty and not a prepared corpus; name another --output')
  if not marked or _read_mark(mark) != content:
    _remove_unfinished(path)
  file_access.write_bytes(mark, json.dumps(content).encode())


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
  """Removes the files of a preparation from a folder, and none that a user added."""
  for name in file_access.listing(path):
    if _OURS.fullmatch(name):
      file_access.remove(file_access.join(path, name))
  if not file_access.is_remote(path) and file_access.exists(path) and not file_access.listing(path):
    file_access.remove(path)

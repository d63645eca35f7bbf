"""A folder that is finished or not: made by one process at a time, gone on with after a kill, never half there."""

import contextlib
import json
import os
import re

from electra_jax import console, file_access
from electra_jax.data.prepare import workers
from electra_jax.errors import UserError

FORMAT = 'electra_jax prepared corpus'
FACTS_FILE = 'facts.json'  # written last: a folder without it is not finished

_WORK = '.work'
_OURS = re.compile(r'\.work|tokenizer|report\.md|heldout|train(-\d+)?')


@contextlib.contextmanager
def building(path, fingerprint=''):
  """Yields a folder for unfinished work inside of `path`; None where `path` is finished.

  The work is kept when this process ends early, for the next. A mistake in the corpus or the recipe leaves nothing
  behind, where this process alone is at work on it. Raises UserError where the place cannot be written, or holds
  something else.
  """
  work, mark, begun = (
    file_access.join(path, _WORK),
    file_access.join(path, _WORK, 'begun.json'),
    {'fingerprint': fingerprint},
  )
  with contextlib.ExitStack() as stack:
    alone = False
    if not file_access.is_remote(path):
      folder, name = os.path.split(os.path.abspath(path))
      try:
        os.makedirs(folder, exist_ok=True)
        alone = _lock(stack.enter_context(open(os.path.join(folder, f'.{name}.lock'), 'w')))
      except OSError as error:
        raise UserError(
          f'{folder!r} cannot be written: {error.strerror}; name another folder'
        ) from None
    if _finished(path, fingerprint):
      file_access.remove(work)  # of a process that was killed just before it did
      yield None
      return
    there = [name for name in file_access.listing(path) if name != _WORK]
    if there and not file_access.exists(mark):
      raise UserError(f'{path!r} is not empty and no prepared corpus; name another --output')
    if not file_access.exists(mark) or json.loads(file_access.read_bytes(mark)) != begun:
      _remove_unfinished(path)
    file_access.write_bytes(mark, json.dumps(begun).encode())
    try:
      yield work
    except (
      file_access.Unwritable,
      file_access.Unreachable,
      workers.WorkerDied,
    ):  # what is done so far is good
      raise
    except UserError:
      if alone:
        _remove_unfinished(path)
      elif _finished(
        path, fingerprint
      ):  # another process was first, and has taken away what this one worked on
        return
      raise
    file_access.remove(work)


def _finished(path, fingerprint):
  """Whether a folder holds all that was to be made. Raises UserError where it holds something else that is finished."""
  facts = read_facts(path)
  if facts and fingerprint and facts['fingerprint'] != fingerprint:
    raise UserError(
      f'{path!r} holds another corpus, or one prepared in another way; name another --output, or delete it'
    )
  return facts is not None


def _remove_unfinished(path):
  """Removes what preparing puts into a folder, and nothing that a person may have put there since."""
  for name in file_access.listing(path):
    if _OURS.fullmatch(name):
      file_access.remove(file_access.join(path, name))
  if not file_access.is_remote(path) and file_access.exists(path) and not file_access.listing(path):
    file_access.remove(path)


def _lock(file):
  """Waits until this process alone holds the lock; False where files cannot be locked."""
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


def read_facts(path):
  """What was counted, of a finished folder; None where there is none. Raises UserError where it is damaged."""
  if not file_access.exists(file_access.join(path, FACTS_FILE)):
    return None
  try:
    facts = json.loads(file_access.read_bytes(file_access.join(path, FACTS_FILE)))
  except ValueError:
    facts = None
  if not isinstance(facts, dict) or facts.get('format') != FORMAT:
    raise UserError(
      f'the prepared corpus {path!r} is damaged: its {FACTS_FILE} cannot be read; delete it and prepare the corpus '
      'again'
    )
  return facts

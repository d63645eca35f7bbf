"""Compares the shards of a large store with their checksums while its rows are read already."""

import json
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from electra_jax import file_access
from electra_jax.errors import UserError

THREAD = 'electra_jax checksums'
_RECORD_EVERY = 16  # shards between two updates of the record

State = Mapping[str, Any]  # what is recorded of a shard that is right


class BackgroundCheck:
  """A thread that checks shards one after another, and records those that are right.

  A process that ends before the thread does leaves the rest to the next one.
  """

  def __init__(
    self,
    names: Sequence[str],
    check: Callable[[str], None],
    states: Mapping[str, State],
    record: pathlib.Path,
  ) -> None:
    """Starts the thread.

    Args:
      names: of the shards to check.
      check: raises UserError for a shard that is damaged.
      states: of all shards, to record those that are right.
      record: the file of the record.
    """
    self._names = names
    self._check = check
    self._states = states
    self._record = record
    self._failure: UserError | None = None
    self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
    self._thread.start()

  def raise_failure(self) -> None:
    """Raises the UserError of a damaged shard, if one was found."""
    if self._failure is not None:
      raise self._failure

  def wait(self) -> None:
    """Waits until all shards are checked. Raises the UserError of a damaged one."""
    self._thread.join()
    self.raise_failure()

  def _run(self) -> None:
    right = {name: state for name, state in self._states.items() if name not in self._names}
    try:
      for number, name in enumerate(self._names, 1):
        self._check(name)
        right[name] = self._states[name]
        if number % _RECORD_EVERY == 0 or number == len(self._names):
          self._write(right)
    except UserError as error:  # raised by the next read
      self._failure = error

  def _write(self, right: Mapping[str, State]) -> None:
    try:
      file_access.write_bytes(self._record, json.dumps(right, indent=2).encode('utf-8'))
    except UserError:  # a folder that cannot be written is checked each time
      pass

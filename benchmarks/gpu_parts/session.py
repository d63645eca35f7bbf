"""Processes of gpu.py: started with a task, asked in lines of JSON, ended at a limit.

An error, a lack of memory or a crash of a task is a `PartError` here, with its reason.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType

from environment import ROOT

# Caches of compiled programs would make a cold start a warm one.
CACHES = ('JAX_COMPILATION_CACHE_DIR', 'TRITON_CACHE_DIR')
REASON_LENGTH = 300  # characters of an error that a table and a JSON file can take
IMPORTED_FROM = (ROOT, ROOT / 'benchmarks', ROOT / 'tests/model')


class PartError(Exception):
  """Why a task has no result, in one line."""


class TimeLimit(PartError):
  """A task did not answer in time."""


@dataclasses.dataclass
class Session:
  """What the parts share.

  Attributes:
    folder: for files that nobody needs afterwards.
    deadline: when all must end, of time.monotonic.
    tiny: whether sizes are those of a test.
    unroll: layers per iteration of our loop over layers; 0 as the program chooses.
    device: of the task `probe`; empty before.
    memory: of contenders of base at 512: their batch and what `Memory` in speed_tasks.py has.
  """

  folder: pathlib.Path
  deadline: float
  tiny: bool = False
  unroll: int = 0
  device: dict[str, object] = dataclasses.field(default_factory=dict)
  memory: dict[str, dict[str, int | None]] = dataclasses.field(default_factory=dict)
  _numbers: itertools.count = dataclasses.field(default_factory=itertools.count)
  _workers: list['Worker'] = dataclasses.field(default_factory=list)

  @property
  def left(self) -> float:
    """Seconds until the deadline."""
    return self.deadline - time.monotonic()

  def until(self, seconds: float) -> float:
    """When a limit of some seconds from now ends, at most the deadline."""
    return min(time.monotonic() + seconds, self.deadline)

  def start(
    self, task: str, settings: Mapping[str, object], variables: Mapping[str, str] | None = None
  ) -> 'Worker':
    """Starts a task.

    Args:
      task: a name of gpu_parts/worker.py.
      settings: its arguments, which JSON can hold.
      variables: of its environment, besides those of this process.
    """
    folder = self.folder / f'{next(self._numbers):02d}-{task}'
    folder.mkdir()
    worker = Worker(task, settings, self._environment(folder) | dict(variables or {}), folder)
    self._workers.append(worker)
    return worker

  def close(self) -> None:
    """Ends all processes, and all that waits for them."""
    self.deadline = 0.0
    for worker in self._workers:
      worker.close()

  def once(
    self,
    task: str,
    settings: Mapping[str, object],
    deadline: float,
    variables: Mapping[str, str] | None = None,
  ) -> dict[str, object]:
    """The only answer of a task. Raises PartError."""
    with self.start(task, settings, variables) as worker:
      return worker.answer(deadline)

  def _environment(self, folder: pathlib.Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in CACHES}
    # What comes first in PYTHONPATH stays there: a test hides packages in this way.
    paths = [*filter(None, [inherited.get('PYTHONPATH')]), *map(str, IMPORTED_FROM)]
    if 'cpu' not in (platforms := inherited.get('JAX_PLATFORMS', '')) and platforms:
      inherited['JAX_PLATFORMS'] = f'{platforms},cpu'  # where masks are computed, too
    return inherited | {
      'PYTHONPATH': os.pathsep.join(paths),
      # Several processes share one card; by default each reserves three quarters of its memory.
      'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
      'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.95',
      'TORCHINDUCTOR_CACHE_DIR': str(folder / 'inductor'),
      'HF_HUB_OFFLINE': '1',
    }


class Worker:
  """A process that does one task. As a context manager it ends with the block."""

  def __init__(
    self,
    task: str,
    settings: Mapping[str, object],
    environment: Mapping[str, str],
    folder: pathlib.Path,
  ) -> None:
    """Starts the process; its errors go to a file in the folder."""
    self.started = time.monotonic()
    self.log = folder / 'stderr.txt'
    command = [sys.executable, '-m', 'gpu_parts.worker', task, json.dumps(settings)]
    with self.log.open('w') as log:
      self.process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        cwd=folder,
        text=True,
        start_new_session=True,  # so that processes that it starts end with it
      )
    self._messages: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=self._read, daemon=True).start()

  def _read(self) -> None:
    for line in self.process.stdout:
      self._messages.put(line)
    self._messages.put(None)

  def answer(self, deadline: float) -> dict[str, object]:
    """The next message of the task.

    Args:
      deadline: of time.monotonic.

    Raises:
      PartError: the task failed, ended, or did not answer until the deadline.
    """
    waits = max(0.0, deadline - time.monotonic())
    try:
      line = self._messages.get(timeout=waits)
    except queue.Empty:
      self.close()
      seconds = time.monotonic() - self.started
      raise TimeLimit(f'stopped after {seconds:.0f} s without an answer') from None
    if line is None:
      raise PartError(self._ending())
    message = json.loads(line)
    if 'error' in message:
      raise PartError(shortened(message['error']))
    return message

  def ask(self, command: Mapping[str, object], deadline: float) -> dict[str, object]:
    """Sends a command and returns the answer. Raises PartError as `answer` does."""
    with contextlib.suppress(BrokenPipeError):  # the answer is then the reason
      self.process.stdin.write(json.dumps(command) + '\n')
      self.process.stdin.flush()
    return self.answer(deadline)

  def _ending(self) -> str:
    status = self.process.wait()
    how = f'signal {-status}' if status < 0 else f'exit status {status}'
    lines = self.log.read_text(errors='replace').strip().splitlines()
    return shortened(': '.join([f'ended with {how}', *lines[-1:]]))

  def close(self) -> None:
    """Ends the process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.process.pid, signal.SIGKILL)
    self.process.wait()

  def __enter__(self) -> 'Worker':
    """Returns the worker itself."""
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    """Ends the process."""
    self.close()


def shortened(text: str) -> str:
  """A text on one line, cut where it is too long."""
  line = ' '.join(text.split())
  return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 1] + '…'

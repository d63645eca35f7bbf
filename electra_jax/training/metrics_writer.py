"""Writes the metrics of a run, metrics.jsonl and TensorBoard's event files, without delaying it.

A thread writes. Training puts metrics into a bounded queue and never waits for the disk, except for
a limited time before a checkpoint is saved. Lines that a disk refuses are kept and written later,
in order; a run is worth more than its log, so no line ends it.
"""

import collections
import contextlib
import dataclasses
import importlib
import json
import math
import os
import queue
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from electra_jax import console, file_access
from electra_jax.training import run_folder
from electra_jax.training.progress import METRICS, read_metrics

QUEUED = 1_000  # most lines that wait for the thread
BACKLOG = 10_000  # most lines that wait for the disk
PATIENCE = 30.0  # seconds to wait for the disk before a checkpoint is saved, and at the end
RETRY_EVERY = 5.0  # seconds between attempts to write what a disk refused
NOT_DRAWN = ('tokens', 'seconds')  # metrics that TensorBoard does not get


class MetricsWriter:
  """Appends metrics to WORKDIR/metrics.jsonl and to TensorBoard's event files.

  When a run resumes at a step, lines of later steps are removed: those steps are taken again. In a
  bucket the files are replaced from time to time, see `run_folder.Spool`.

  Attributes:
    seconds: time of training, over all starts.
  """

  def __init__(self, workdir: str | os.PathLike[str], step: int) -> None:
    """Opens the files.

    Args:
      workdir: folder of the run or trial.
      step: step that the run resumes at; 0 for a new run.

    Raises:
      UserError: the files cannot be written.
    """
    lines = [line for line in read_metrics(workdir) if line['step'] <= step] if step else []
    self.seconds: float = max((line.get('seconds') or 0.0 for line in lines), default=0.0)
    self._spool = run_folder.Spool(run_folder.folder(workdir))
    path = self._spool.path / METRICS
    file_access.write_bytes(path, ''.join(json.dumps(line) + '\n' for line in lines).encode())
    self._lines = _GrowingFile(os.fspath(path))
    self._board = _EventFile(os.fspath(self._spool.path / 'tensorboard'), step)
    self._queue: queue.Queue[_Record | _Request] = queue.Queue(QUEUED)
    self._backlog: collections.deque[_Record] = collections.deque()
    self._warned: set[str] = set()
    self._stuck = False  # whether the disk did not answer the last time
    _tensorboard()  # here, because what it does to the imports must not happen in a thread
    self._thread = threading.Thread(target=self._work, name='metrics', daemon=True)
    self._thread.start()

  def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
    """Appends a line, soon. Values that are not finite become null.

    Args:
      kind: 'train', 'heldout' or 'dev'.
      step: steps that were taken.
      metrics: name -> value.
    """
    plain = {
      name: float(value) if math.isfinite(value) else None for name, value in metrics.items()
    }
    try:
      self._queue.put_nowait(_Record(kind, step, plain, time.time()))
    except queue.Full:
      self._warn_once('the disk does not answer; metrics are dropped until it does')

  def keep(self) -> str | None:
    """Waits until all lines so far are on the disk; called before a checkpoint is saved.

    Otherwise a run that resumes from the checkpoint could lack them. A disk that does not answer
    is waited for once.

    Returns:
      A sentence if the bucket could not be written, else None. It is tried again later.
    """
    self._flush()
    return self._spool.now(METRICS)

  def close(self) -> None:
    """Writes what is left and closes the files.

    Raises:
      UserError: the last lines could not be written to the bucket; they stay on this machine.
    """
    if not self._thread.is_alive():
      return
    if not self._flush(last=True) or self._backlog:
      console.warn(
        f'the last metrics could not be written to {self._lines.path}; the run itself is complete.'
      )
    self._spool.close()

  def _flush(self, last: bool = False) -> bool:
    """Waits for the thread to write all there is. Returns whether it answered in time."""
    request = _Request(last=last)
    patience = 0.0 if self._stuck else PATIENCE
    with contextlib.suppress(queue.Full):
      self._queue.put(request, timeout=patience)
      if request.done.wait(patience):
        self._stuck = False
        return True
    if not self._stuck:
      self._stuck = True
      console.warn(f'{self._lines.path} could not be written within {PATIENCE:g} s.')
    return False

  def _work(self) -> None:
    """The thread: writes lines as they come, and from time to time those that it could not."""
    while True:
      try:
        item = self._queue.get(timeout=RETRY_EVERY if self._backlog else None)
      except queue.Empty:
        item = None
      if isinstance(item, _Record):
        if len(self._backlog) < BACKLOG:
          self._backlog.append(item)
        else:
          self._warn_once('metrics are dropped, because they could not be written for long')
      self._write_backlog(sync=isinstance(item, _Request))
      self._spool.soon()
      if isinstance(item, _Request):
        item.done.set()
        if item.last:
          self._lines.close()
          self._board.close()
          return

  def _write_backlog(self, sync: bool) -> None:
    """Writes the lines that wait. TensorBoard's file is second: a line is in both or in the first.

    Args:
      sync: whether to wait until they are on the disk.
    """
    try:
      while self._backlog:
        record = self._backlog[0]
        self._lines.append(record.line())
        self._backlog.popleft()
        self._board.add(record)
      if sync:
        self._lines.sync()
    except OSError as error:
      reason = file_access.reason(error)
      self._warn_once(f'metrics cannot be written ({reason}); they are written later, if possible')

  def _warn_once(self, text: str) -> None:
    if text not in self._warned:
      self._warned.add(text)
      console.warn(f'{self._lines.path}: {text}; the run continues.')


class NoWriter:
  """Takes the place of a `MetricsWriter` in all processes except the first. Writes nothing."""

  def __init__(self) -> None:
    """Starts at 0 seconds."""
    self.seconds = 0.0

  def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
    """Does nothing."""

  def keep(self) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""


@dataclasses.dataclass(frozen=True)
class _Record:
  """Metrics of a step.

  Attributes:
    kind: 'train', 'heldout' or 'dev'.
    step: steps that were taken.
    metrics: name -> value, None where it is not finite.
    time: when they were logged, in seconds since 1970.
  """

  kind: str
  step: int
  metrics: Mapping[str, float | None]
  time: float

  def line(self) -> bytes:
    """The line of metrics.jsonl."""
    return (json.dumps({'kind': self.kind, 'step': self.step, **self.metrics}) + '\n').encode()


@dataclasses.dataclass
class _Request:
  """Asks the thread to write all there is.

  Attributes:
    last: whether to end then.
    done: set when the thread has tried.
  """

  last: bool = False
  done: threading.Event = dataclasses.field(default_factory=threading.Event)


class _GrowingFile:
  """A file that grows by whole pieces: a write that fails leaves no part of a piece behind."""

  def __init__(self, path: str) -> None:
    self.path = path
    self._descriptor: int | None = None
    self._torn: int | None = None  # size to cut the file to, where that failed before

  def append(self, piece: bytes) -> None:
    """Appends a piece.

    Raises:
      OSError: it cannot be written; the file is as before, if it can be cut.
    """
    if self._descriptor is None:
      flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
      self._descriptor = os.open(self.path, flags, 0o644)
    if self._torn is not None:
      os.ftruncate(self._descriptor, self._torn)
      self._torn = None
    size = os.fstat(self._descriptor).st_size
    rest = memoryview(piece)
    try:
      while rest:
        rest = rest[os.write(self._descriptor, rest) :]
    except OSError:
      self._torn = size
      os.ftruncate(self._descriptor, size)
      self._torn = None
      raise

  def sync(self) -> None:
    """Waits until the file is on the disk."""
    if self._descriptor is not None:
      os.fsync(self._descriptor)

  def close(self) -> None:
    """Closes the file."""
    if self._descriptor is not None:
      os.close(self._descriptor)
      self._descriptor = None


class _EventFile:
  """A file of TensorBoard's events, in the format of TensorFlow's records.

  Each record has its length (8 bytes), the checksum of these, the event as a protocol buffer, and
  its checksum.
  """

  def __init__(self, folder: str, step: int) -> None:
    """Names the file. It is created with the first event.

    Args:
      folder: folder of the event files.
      step: step that the run resumes at; TensorBoard then hides earlier events of later steps.
    """
    self._folder = folder
    name = f'events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}'
    self._file = _GrowingFile(os.path.join(folder, name))
    self._step = step
    self._started = False

  def add(self, record: _Record) -> None:
    """Appends the metrics of a step.

    Raises:
      OSError: they cannot be written.
    """
    board = _tensorboard()
    if not self._started:
      self._start(board)
      self._started = True
    pieces = []
    for name, value in record.metrics.items():
      if value is not None and name not in NOT_DRAWN:
        summary = board.summary.scalar(f'{record.kind}/{name}', value)
        event = board.Event(wall_time=record.time, step=record.step, summary=summary)
        pieces.append(_framed(board, event))
    self._file.append(b''.join(pieces))

  def _start(self, board: Any) -> None:  # noqa: ANN401  not annotated
    os.makedirs(self._folder, exist_ok=True)
    now = time.time()
    events = [board.Event(wall_time=now, file_version='brain.Event:2')]
    if self._step:
      start = board.SessionLog(status=board.SessionLog.START)
      events.append(board.Event(wall_time=now, step=self._step + 1, session_log=start))
    self._file.append(b''.join(_framed(board, event) for event in events))

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def _framed(board: Any, event: Any) -> bytes:  # noqa: ANN401  not annotated
  """The record of an event."""
  content: bytes = event.SerializeToString()
  header = struct.pack('<Q', len(content))
  sums = (struct.pack('<I', board.masked_crc32c(part)) for part in (header, content))
  return header + next(sums) + content + next(sums)


@dataclasses.dataclass(frozen=True)
class _Board:
  """What is used of tensorboardX: its protocol buffers and its checksum."""

  Event: Any
  SessionLog: Any
  summary: Any
  masked_crc32c: Any


_board: _Board | None = None


def _tensorboard() -> _Board:
  """Imports parts of tensorboardX, without torch.

  tensorboardX imports torch if it is installed. Scalars do not need it, and it costs seconds.
  """
  global _board
  if _board is None:
    hidden = 'torch' not in sys.modules
    if hidden:
      sys.modules['torch'] = None  # type: ignore[assignment]  # documented: import then fails
    try:
      events = importlib.import_module('tensorboardX.proto.event_pb2')
      summary = importlib.import_module('tensorboardX.summary')
      records = importlib.import_module('tensorboardX.record_writer')
    finally:
      if hidden:
        del sys.modules['torch']
    _board = _Board(events.Event, events.SessionLog, summary, records.masked_crc32c)
  return _board

"""TensorBoard's event files, in WORKDIR/tensorboard."""

import dataclasses
import importlib
import os
import socket
import struct
import sys
import time
from typing import Any, ClassVar

from electra_jax.training.growing_file import GrowingFile
from electra_jax.training.trackers.tracker import MetricsLine, Outcome, TrackedRun, Tracker

NOT_DRAWN = ('tokens', 'seconds')  # metrics that TensorBoard does not get


class TensorBoardFiles(Tracker):
  """A file of TensorBoard's events, in the format of TensorFlow's records.

  Each record has its length (8 bytes), the checksum of these, the event as a protocol buffer, and
  its checksum.
  """

  writes_files: ClassVar[bool] = True

  def __init__(self, run: TrackedRun) -> None:
    """Names the file. It is created with the first event.

    TensorBoard hides earlier events of steps after that which the run resumes at.
    """
    self._folder = os.path.join(run.folder, 'tensorboard')
    name = f'events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}'
    self._file = GrowingFile(os.path.join(self._folder, name))
    self._step = run.step
    self._started = False
    _tensorboard()  # here, because what it does to the imports must not happen in a thread

  def add(self, line: MetricsLine) -> None:
    """Appends the metrics of a step.

    Raises:
      OSError: they cannot be written.
    """
    board = _tensorboard()
    if not self._started:
      self._start(board)
      self._started = True
    pieces = []
    for name, value in line.metrics.items():
      if value is not None and name not in NOT_DRAWN:
        summary = board.summary.scalar(f'{line.kind}/{name}', value)
        event = board.Event(wall_time=line.time, step=line.step, summary=summary)
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

  def close(self, outcome: Outcome) -> None:
    """Closes the file."""
    del outcome
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

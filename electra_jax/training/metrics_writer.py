"""Writes the metrics of a run, and gives them to its trackers, without delaying it.

A thread writes. Training puts metrics into a bounded queue and never waits for the disk, except for
a limited time before a checkpoint is saved. Lines that a disk refuses are kept and written later,
in order; a run is worth more than its log, so no line ends it. Trackers that do more than append to
files have separate threads and queues.
"""

import collections
import contextlib
import dataclasses
import json
import math
import os
import queue
import threading
import time
import types
from collections.abc import Iterator, Mapping

from etils import epath

from electra_jax import console, file_access, registry
from electra_jax.errors import UserError
from electra_jax.training import run_folder
from electra_jax.training.growing_file import GrowingFile
from electra_jax.training.progress import METRICS, read_metrics
from electra_jax.training.trackers.background import BackgroundTracker
from electra_jax.training.trackers.tracker import (
  MetricsLine,
  Outcome,
  TrackedRun,
  Tracker,
  Tracking,
  named_reason,
)

QUEUED = 1_000  # most lines that wait for a thread
BACKLOG = 10_000  # most lines that wait for the disk
PATIENCE = 30.0  # seconds to wait for the disk before a checkpoint is saved, and at the end
FAILED_PATIENCE = 5.0  # seconds to wait for trackers where an error ends the program
RETRY_EVERY = 5.0  # seconds between attempts to write what a disk refused
IDS = 'trackers.json'  # what trackers call the run: {"wandb": "3k9x..."}


class MetricsWriter:
  """Appends metrics to WORKDIR/metrics.jsonl, and gives them to trackers.

  When a run resumes at a step, lines of later steps are removed: those steps are taken again. In a
  bucket the files are replaced from time to time, see `run_folder.Spool`. As a context manager it
  ends the run for the trackers as failed where an exception leaves the block.

  Attributes:
    seconds: time of training, over all starts.
  """

  def __init__(
    self, workdir: str | os.PathLike[str], step: int, tracking: Tracking | None = None
  ) -> None:
    """Opens the files.

    Args:
      workdir: folder of the run or trial.
      step: step that the run resumes at; 0 for a new run.
      tracking: the trackers; None for TensorBoard's files.

    Raises:
      UserError: the files cannot be written.
    """
    lines = [line for line in read_metrics(workdir) if line['step'] <= step] if step else []
    self.seconds: float = max((line.get('seconds') or 0.0 for line in lines), default=0.0)
    folder = run_folder.folder(workdir)
    self._spool = run_folder.Spool(folder)
    path = self._spool.path / METRICS
    file_access.write_bytes(path, ''.join(json.dumps(line) + '\n' for line in lines).encode())
    self._lines = GrowingFile(os.fspath(path))
    self._queue: queue.Queue[MetricsLine | _Request] = queue.Queue(QUEUED)
    self._backlog: collections.deque[MetricsLine] = collections.deque()
    self._warned: set[str] = set()
    self._stuck = False  # whether the disk did not answer the last time
    self._ids_lock = threading.Lock()
    self._ids = _kept_ids(folder, step)
    self._files: dict[str, Tracker] = {}  # those that the thread calls
    self._others: list[BackgroundTracker] = []
    self._open_trackers(tracking or Tracking(), step)
    self._thread = threading.Thread(target=self._work, name='metrics', daemon=True)
    self._thread.start()

  def _open_trackers(self, tracking: Tracking, step: int) -> None:
    for name in tracking.trackers:
      kind: type[Tracker] = registry.TRACKERS.get(name)
      run = TrackedRun(tracking, os.fspath(self._spool.path), step, self._ids.get(name, ''))
      if kind.writes_files:
        with self._without_error(name):
          self._files[name] = kind(run)
      else:
        self._others.append(BackgroundTracker(name, kind, run, QUEUED, self._keep_id))

  def _keep_id(self, name: str, id: str) -> None:
    """Keeps a tracker's name of the run, so that a resumed run continues it."""
    with self._ids_lock:
      if self._ids.get(name) != id or self._spool.remote:
        self._ids[name] = id
        run_folder.write_json(self._spool.path / IDS, self._ids)

  def __enter__(self) -> 'MetricsWriter':
    """Returns the writer itself."""
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: types.TracebackType | None,
  ) -> None:
    """Ends the run for the trackers where an exception ends the program."""
    if error is not None:
      self._end_trackers('failed', FAILED_PATIENCE)

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
    line = MetricsLine(kind, step, plain, time.time())
    try:
      self._queue.put_nowait(line)
    except queue.Full:
      self._warn_once('the disk does not answer; metrics are dropped until it does')
    for other in self._others:
      other.add(line)

  def keep(self) -> str | None:
    """Waits until all lines so far are on the disk; called before a checkpoint is saved.

    Otherwise a run that resumes from the checkpoint could lack them. A disk that does not answer
    is waited for once.

    Returns:
      A sentence if the bucket could not be written, else None. It is tried again later.
    """
    self._flush()
    return self._spool.now(METRICS)

  def close(self, outcome: Outcome = 'finished') -> None:
    """Writes the remaining lines, closes the files and ends the run for the trackers.

    Args:
      outcome: 'stopped' where the run will be resumed.

    Raises:
      UserError: the last lines could not be written to the bucket; they stay on this machine.
    """
    if not self._thread.is_alive():
      return
    self._end_trackers(outcome, PATIENCE)
    answered = self._flush(last=True)
    if answered:
      self._thread.join()
    if not answered or self._backlog:
      console.warn(
        f'the last metrics could not be written to {self._lines.path}; the run itself is complete.'
      )
    self._spool.close()

  def _end_trackers(self, outcome: Outcome, patience: float) -> None:
    """Ends the run for the trackers, and waits for them together, at most so many seconds."""
    others, self._others = self._others, []
    for other in others:
      other.end(outcome)
    end = time.monotonic() + patience
    for other in others:
      other.wait(max(0.0, end - time.monotonic()))

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
      if isinstance(item, MetricsLine):
        if len(self._backlog) < BACKLOG:
          self._backlog.append(item)
        else:
          self._warn_once('metrics are dropped, because they could not be written for long')
      self._write_backlog(sync=isinstance(item, _Request))
      self._spool.soon()
      if isinstance(item, _Request):
        if item.last:
          self._close_files()
        item.done.set()
        if item.last:
          return

  def _close_files(self) -> None:
    try:
      self._lines.close()
      for name, tracker in list(self._files.items()):
        with self._without_error(name):
          tracker.close('finished')
    except OSError as error:
      self._warn_once(f'a file of metrics could not be closed ({file_access.reason(error)})')

  def _write_backlog(self, sync: bool) -> None:
    """Writes the lines that wait. Other files are second: a line is in all or in the first.

    Args:
      sync: whether to wait until they are on the disk.
    """
    try:
      while self._backlog:
        line = self._backlog[0]
        self._lines.append(_content(line))
        self._backlog.popleft()
        for name, tracker in list(self._files.items()):
          with self._without_error(name):
            tracker.add(line)
      if sync:
        self._lines.sync()
    except OSError as error:
      why = file_access.reason(error)
      self._warn_once(f'metrics cannot be written ({why}); they are written later, if possible')

  @contextlib.contextmanager
  def _without_error(self, name: str) -> Iterator[None]:
    """Drops a tracker whose call in the block fails, unless it is the disk that refuses a line."""
    try:
      yield
    except OSError:
      raise
    except Exception as error:  # of any kind: no tracker is worth a run
      self._files.pop(name, None)
      self._warn_once(
        f'the tracker {name!r} failed ({named_reason(error)}) and gets no more metrics'
      )

  def _warn_once(self, text: str) -> None:
    if text not in self._warned:
      self._warned.add(text)
      console.warn(f'{self._lines.path}: {text}; the run continues.')


class NoWriter:
  """Takes the place of a `MetricsWriter` in all processes except the first. Writes nothing."""

  def __init__(self) -> None:
    """Starts at 0 seconds."""
    self.seconds = 0.0

  def __enter__(self) -> 'NoWriter':
    """Returns the writer itself."""
    return self

  def __exit__(self, *_: object) -> None:
    """Does nothing."""

  def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
    """Does nothing."""

  def keep(self) -> None:
    """Does nothing."""

  def close(self, outcome: Outcome = 'finished') -> None:
    """Does nothing."""


def _kept_ids(folder: epath.Path, step: int) -> dict[str, str]:
  """What trackers called the run that is resumed at a step, by the trackers' names."""
  path = folder / IDS
  if not file_access.exists(path):
    return {}
  if not step:  # a start that saved nothing does not bind the next one
    with file_access.reaching(path, 'removed'):
      path.unlink()
    return {}
  try:
    return dict(run_folder.read_json(path, {str: str}))
  except UserError as error:
    console.warn(f'{str(error).rstrip(".")}; trackers begin new runs.')
    return {}


def _content(line: MetricsLine) -> bytes:
  """The line of metrics.jsonl."""
  return (json.dumps({'kind': line.kind, 'step': line.step, **line.metrics}) + '\n').encode()


@dataclasses.dataclass
class _Request:
  """Asks the thread to write all there is.

  Attributes:
    last: whether to close the files and end then.
    done: set when the thread has tried.
  """

  last: bool = False
  done: threading.Event = dataclasses.field(default_factory=threading.Event)

"""A thread that gives metrics to a tracker: no tracker delays a run or ends it."""

import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable

from electra_jax import console
from electra_jax.training.trackers import tracker
from electra_jax.training.trackers.tracker import MetricsLine, Outcome, TrackedRun, Tracker


class BackgroundTracker:
  """A tracker in a separate thread, with a bounded queue.

  At the first exception, and when the queue is full, there is one warning, and the tracker gets
  nothing more.
  """

  def __init__(
    self,
    name: str,
    kind: type[Tracker],
    run: TrackedRun,
    queued: int,
    keep: Callable[[str, str], None],
  ) -> None:
    """Starts the thread, which opens the tracker.

    Args:
      name: of the tracker, in config.trackers.
      kind: the tracker.
      run: what it is opened for.
      queued: most lines that wait for it.
      keep: takes the tracker's name and its name of the run, to be kept for a resumed run.
    """
    self.name = name
    self._kind = kind
    self._run = run
    self._keep = keep
    self._queue: queue.Queue[MetricsLine | _End] = queue.Queue(queued)
    self._dropped = threading.Event()
    self._called: float | None = time.monotonic()  # when the call began that has not returned
    self._thread = threading.Thread(target=self._work, name=name, daemon=True)
    self._thread.start()

  def add(self, line: MetricsLine) -> None:
    """Gives the tracker the metrics of a step, soon."""
    if self._dropped.is_set():
      return
    try:
      self._queue.put_nowait(line)
    except queue.Full:
      self._drop('does not answer')

  def end(self, outcome: Outcome) -> None:
    """Asks the tracker to end the run after what waits for it."""
    try:
      self._queue.put_nowait(_End(outcome))
    except queue.Full:
      self._drop('does not answer')

  def wait(self, patience: float) -> None:
    """Waits until the tracker has ended the run, at most so many seconds.

    The time in which it did not return from a call before counts.
    """
    called = self._called
    waited = time.monotonic() - called if called is not None else 0.0
    if not self._dropped.is_set():
      self._thread.join(max(0.0, patience - waited))
      if self._thread.is_alive():
        self._drop('does not answer')

  def _work(self) -> None:
    """The thread."""
    opened = None
    try:
      opened = self._kind(self._run)
      if opened.id:
        self._keep(self.name, opened.id)
      if opened.address:
        console.say('tracker', f'{self.name}: {opened.address}')
      while not self._dropped.is_set():
        self._called = None
        item = self._queue.get()
        self._called = time.monotonic()
        if isinstance(item, _End):
          opened.close(item.outcome)
          return
        opened.add(item)
    except BaseException as error:  # of any kind: no tracker is worth a run
      self._drop(f'failed ({tracker.named_reason(error)})')
      if opened is not None:
        with contextlib.suppress(BaseException):
          opened.close('failed')

  def _drop(self, what: str) -> None:
    """Gives the tracker nothing more, with a warning the first time."""
    if not self._dropped.is_set():
      self._dropped.set()
      console.warn(
        f'the tracker {self.name!r} {what}; it gets no more metrics of this run, which continues.'
      )


@dataclasses.dataclass(frozen=True)
class _End:
  """Asks the thread to end the run."""

  outcome: Outcome

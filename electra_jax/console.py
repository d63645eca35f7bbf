"""Lines on the console, and the progress of long work.

Lines of a program and its results go to stdout; warnings, errors and progress go to stderr. `quiet`
keeps all but results, warnings and errors from being printed.
"""

import contextlib
import logging
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
  from rich.live import Live
  from rich.table import Table

REFRESH_EVERY = 0.25  # seconds between two updates of the line on a terminal
LOG_EVERY = 30.0  # seconds between two lines where stderr is not a terminal, unless set otherwise
NAME_AFTER = 10.0  # seconds after which work that is silent so far is named there


def quiet_libraries() -> None:
  """Hides messages of XLA and TensorFlow, unless the environment asks for them.

  Must be called before the libraries are loaded. Errors of the disk, too, reach the user as one
  sentence, and not as the tracebacks of all threads that met them.
  """
  for name in ('asyncio', 'concurrent.futures'):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)
  sys.unraisablehook = _print_unraisable
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  # On some processors TensorFlow reports oneDNN before it reads the level. It is not used here.
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')


@contextlib.contextmanager
def without_library_warnings() -> Iterator[None]:
  """In the block, libraries that log with absl only log errors.

  Orbax and TFDS warn of what this package asks them for on purpose.
  """
  from absl import logging as absl_logging

  before = absl_logging.get_verbosity()
  absl_logging.set_verbosity(min(before, absl_logging.ERROR))
  try:
    yield
  finally:
    absl_logging.set_verbosity(before)


def _print_unraisable(unraisable: 'sys.UnraisableHookArgs') -> None:
  """Prints an exception of a callback, except of writes that nobody waits for anymore.

  When one array cannot be written, Orbax stops to wait for the others, and TensorStore finds its
  event loop closed.
  """
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


class LastingOutput:
  """An output stream whose loss does not end the program.

  Training continues where the reader of its output is gone, as after `| head`, or where the disk of
  its log is full. What cannot be printed is dropped, with one warning on stderr.
  """

  def __init__(self, stream: TextIO) -> None:
    """Takes the stream that it stands for."""
    self._stream = stream
    self._warned = False

  def __getattr__(self, name: str) -> object:
    """All but writing is the stream's."""
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Prints a text, if possible. Returns its length."""
    try:
      self._stream.write(text)
    except OSError as error:
      self._lost(error)
    return len(text)

  def flush(self) -> None:
    """Prints what waits, if possible."""
    try:
      self._stream.flush()
    except OSError as error:
      self._lost(error)

  def _lost(self, error: OSError) -> None:
    if isinstance(error, BrokenPipeError):  # for good
      silence(self._stream)
    if not self._warned:
      self._warned = True
      reason = error.strerror or type(error).__name__
      warn(f'the output cannot be printed ({reason}); the program continues without.')


def silence(stream: TextIO) -> None:
  """Discards what a stream prints from now on, and what waits in it."""
  with contextlib.suppress(OSError, ValueError):  # ValueError: a stream without a descriptor
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
  """In the block, printing raises no error of the output."""
  stream = sys.stdout
  sys.stdout = LastingOutput(stream)
  try:
    yield
    sys.stdout.flush()
  finally:
    sys.stdout = stream


_is_quiet = False
_shows_progress = True
_log_every = LOG_EVERY


def quiet(enabled: bool) -> None:
  """Whether only warnings, errors and results are printed from now on (--quiet)."""
  global _is_quiet
  _is_quiet = enabled


def show_progress(enabled: bool) -> None:
  """Whether this process shows progress; only the first process of a run does."""
  global _shows_progress
  _shows_progress = enabled


def log_every(interval: float) -> None:
  """Sets the seconds between two lines where stderr is not a terminal; 0 for no lines."""
  global _log_every
  _log_every = interval or math.inf


def say(label: str, text: str, always: bool = False) -> None:
  """Prints one aligned line: `label` in its column, then `text`.

  Args:
    label: a word or two.
    text: the rest of the line.
    always: whether --quiet prints it too, as a result or a warning.
  """
  line(f'  {label:<12} {text}', always)


def line(text: str, always: bool = False) -> None:
  """Prints a line on stdout, above the progress on a terminal.

  Args:
    text: the line.
    always: whether --quiet prints it too, as a result or a warning.
  """
  if always or not _is_quiet:
    _screen.print(text, sys.stdout)


@contextlib.contextmanager
def results() -> Iterator[None]:
  """Lines that are printed in the `with` block are results, which --quiet prints too."""
  global _is_quiet
  before, _is_quiet = _is_quiet, False
  try:
    yield
  finally:
    _is_quiet = before


def warn(sentence: str) -> None:
  """Prints a warning on stderr. That it cannot be printed is no error."""
  with contextlib.suppress(OSError):
    _screen.print(f'electra_jax: {sentence}', sys.stderr)


def heading(text: str) -> None:
  """Prints an empty line and a line that starts a new part of the output."""
  line(f'\n{text}')


def seconds(value: float) -> str:
  """Formats a duration, such as `8s`, `3m20s` or `2h05m`."""
  value = int(round(value))
  if value < 60:
    return f'{value}s'
  if value < 3600:
    return f'{value // 60}m{value % 60:02d}s'
  return f'{value // 3600}h{value % 3600 // 60:02d}m'


def quantity(value: float, unit: str = '') -> str:
  """Formats a number with an SI prefix: 1234567 becomes '1.23 M'."""
  for factor, prefix in ((1e18, 'E'), (1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= factor:
      return f'{value / factor:.3g} {prefix}{unit}'
  return f'{value:.3g} {unit}'.rstrip()


#### Progress ####


class Progress:
  """Long work: how much of it is done, its speed and the time left. See `progress`.

  Calling it only notes what is done. A thread prints, so that the work never waits for a terminal.
  """

  def __init__(
    self,
    label: str,
    total: float | None = None,
    unit: str = '',
    per: float = 1,
    before: str = 'starting',
  ) -> None:
    """Starts the clock.

    Args:
      label: label of the line.
      total: amount of work; None if it is not known.
      unit: what the speed is stated in, such as 'rows', or 'B' for bytes; '' for no speed.
      per: units in one of `total`.
      before: what is done until the first amount is, such as 'compiling'.
    """
    self.label = label
    self._total = total
    self._unit = unit
    self._per = per
    self._before = before
    self._done = (0.0, '')  # amount and text, replaced together
    self._start = time.monotonic()
    # The speed is measured from the first amount on, which may have waited for a compilation.
    self._first: tuple[float, float] | None = None  # amount, time
    self._phase: tuple[str, float] | None = None  # what is done meanwhile, and since when
    self.named = False  # whether the work was named where stderr is no terminal

  def __call__(self, done: float, text: str = '') -> None:
    """Notes how much is done, and what the line shows of it."""
    if self._first is None:
      self._first = done, time.monotonic()
    self._done = done, text

  def skip(self, amount: float) -> None:
    """Leaves an amount that was done before, or takes no time, out of the speed."""
    if self._first is not None:
      self._first = self._first[0] + amount, self._first[1]

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Names other work, such as 'evaluating', and leaves its time out of the speed."""
    start = time.monotonic()
    self._phase, self.named = (name, start), False
    try:
      yield
    finally:
      self._phase = None
      if self._first is not None:
        self._first = self._first[0], self._first[1] + time.monotonic() - start

  def seconds_left(self) -> float | None:
    """The remaining time at the speed so far; None where it is not known."""
    speed = self._speed()
    return (self._total - self._done[0]) / speed if self._total and speed else None

  def _speed(self) -> float | None:
    """Amount per second, without phases."""
    if self._first is None:
      return None
    phase = self._phase
    elapsed = (phase[1] if phase else time.monotonic()) - self._first[1]
    done = self._done[0] - self._first[0]
    return done / elapsed if done > 0 and elapsed > 0 else None

  def unnamed_since(self) -> float | None:
    """When work began that reports no amount and was not named yet; None for other work."""
    if self.named or not self._phase and self._total and self._first is not None:
      return None
    return self._phase[1] if self._phase else self._start

  def share(self) -> float | None:
    """The part that is done, from 0 to 1; None where the total is not known."""
    return min(self._done[0] / self._total, 1.0) if self._total else None

  def text(self) -> str:
    """What is done, the speed, and the time left or, where the total is not known, so far."""
    phase = self._phase
    if phase:
      return f'{phase[0]}, {seconds(time.monotonic() - phase[1])} so far'
    if self._total and self._first is None:
      return f'{self._before}, {seconds(time.monotonic() - self._start)} so far'
    parts = [self._done[1]] if self._done[1] else []
    speed, left = self._speed(), self.seconds_left()
    if speed and self._unit:
      rate = speed * self._per
      parts.append(
        quantity(rate, 'B/s') if self._unit == 'B' else f'{quantity(rate)} {self._unit}/s'
      )
    if left is not None:
      parts.append(f'{seconds(left)} left')
    elif not self._total:
      parts.append(f'{seconds(time.monotonic() - self._start)} so far')
    return ', '.join(parts)


class _Screen:
  """What is being worked on, innermost last, and the thread that shows it on stderr."""

  def __init__(self) -> None:
    self._stack: list[Progress] = []
    self._lock = threading.RLock()
    self._ended: threading.Event | None = None  # ends the thread
    self._live: Live | None = None  # while a line is on the terminal
    self._printed = time.monotonic()  # when a line was printed last

  def begin(self, work: Progress) -> None:
    """Shows work from now on."""
    with self._lock:
      self._stack.append(work)
      if self._ended is None:
        self._printed = time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, args=(self._ended,), daemon=True).start()

  def end(self, work: Progress) -> None:
    """Shows the work around it, if any."""
    with self._lock:
      self._stack.remove(work)
      if not self._stack:
        if self._ended:
          self._ended.set()
        self._ended = None
        self._erase()

  def print(self, text: str, stream: TextIO) -> None:
    """Prints a line, above the progress where both are on a terminal."""
    self._printed = time.monotonic()
    with self._lock:
      live = self._live
      if live is not None and stream.isatty():
        live.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        return
    print(text, file=stream, flush=True)

  def refresh(self) -> None:
    """Shows the innermost work, where that is due."""
    work = self._stack[-1] if self._stack else None
    if work is None or _is_quiet or not _shows_progress:
      return
    if _is_terminal(sys.stderr):
      with self._lock:
        if self._stack:
          live = self._live or self._open()
          live.update(_table(self._stack, live.console.options.ascii_only), refresh=True)
      return
    now = time.monotonic()
    since = work.unnamed_since()
    name_after = NAME_AFTER if _log_every < math.inf else math.inf
    unnamed = since is not None and now - max(since, self._printed) >= name_after
    if unnamed or now - self._printed >= _log_every:
      work.named, self._printed = True, now
      share = work.share()
      percent = '' if share is None else f'{share:4.0%}  '
      print(f'  {work.label:<12} {percent}{work.text()}', file=sys.stderr, flush=True)

  def _watch(self, ended: threading.Event) -> None:
    """The thread, which ends quietly where the line cannot be shown."""
    with contextlib.suppress(Exception):  # of any kind: no progress line is worth a run
      while not ended.wait(REFRESH_EVERY):
        self.refresh()

  def _open(self) -> 'Live':
    from rich.console import Console  # takes time to load, and only a terminal needs it
    from rich.live import Live

    stream = LastingOutput(sys.stderr)
    self._live = Live(
      console=Console(file=stream, force_terminal=True),  # type: ignore[arg-type]  # it forwards
      auto_refresh=False,
      transient=True,
      redirect_stdout=sys.stdout.isatty(),
    )
    self._live.start()
    return self._live

  def _erase(self) -> None:
    live, self._live = self._live, None
    if live is not None:
      with contextlib.suppress(Exception):  # as above
        live.stop()


_screen = _Screen()


def _is_terminal(stream: TextIO) -> bool:
  """Whether a line of a stream can be replaced."""
  return stream.isatty() and os.environ.get('TERM', '').lower() not in ('', 'dumb', 'unknown')


def _table(stack: list[Progress], ascii_only: bool) -> 'Table':
  """The line of the innermost work, with the share of what is around it."""
  from rich.progress_bar import ProgressBar
  from rich.table import Table
  from rich.text import Text

  work = stack[-1]
  row = Table.grid(padding=(0, 1), expand=True)
  row.add_column(no_wrap=True, min_width=14)
  cells: list[Text | ProgressBar] = [Text(f'  {work.label}')]
  share = work.share()
  if share is not None:
    row.add_column(width=20)
    row.add_column(no_wrap=True, justify='right', width=4)
    cells += [ProgressBar(total=1.0, completed=share, width=20), Text(f'{share:.0%}')]
  row.add_column(no_wrap=True, overflow='crop' if ascii_only else 'ellipsis', ratio=1)
  parts = ((outer.label, outer.share()) for outer in stack[:-1])
  around = [f'{label} {part:.0%}' for label, part in parts if part is not None]
  cells.append(Text(', '.join([work.text(), *around])))
  row.add_row(*cells)
  return row


@contextlib.contextmanager
def progress(
  label: str,
  total: float | None = None,
  unit: str = '',
  per: float = 1,
  before: str = 'starting',
) -> Iterator[Progress]:
  """Shows the progress of the work in a `with` block on stderr.

  On a terminal one line is updated and removed at the end. Elsewhere a line is printed if nothing
  was for 30 seconds, so that logs stay short. Of work inside other work, the innermost is shown.

  Args:
    label: label of the line.
    total: amount of work; None if it is not known.
    unit: what the speed is stated in, such as 'rows', or 'B' for bytes; '' for no speed.
    per: units in one of `total`.
    before: what is done until the first amount is, such as 'compiling'.

  Yields:
    A function `(done, text)` to call with the work that is done.
  """
  work = Progress(label, total, unit, per, before)
  _screen.begin(work)
  try:
    yield work
  finally:
    _screen.end(work)


@contextlib.contextmanager
def phase(label: str, text: str) -> Iterator[None]:
  """Names the work in a `with` block that reports no progress, such as a compilation.

  Elsewhere than on a terminal it is named once it has taken 10 seconds.

  Args:
    label: label of the line.
    text: what is being done.
  """
  with progress(label) as work:
    work(0, text)
    yield

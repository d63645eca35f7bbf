"""Lines on the console, and progress displays for long work."""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
  from rich.progress import Progress as Display

REFRESH_EVERY = 0.2  # seconds between two updates of the display on a terminal
LOG_EVERY = 30.0  # seconds between two progress lines where the output is not a terminal


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


def say(label: str, text: str) -> None:
  """Prints one aligned line: `label` in its column, then `text`."""
  print(f'  {label:<12} {text}', flush=True)


def warn(sentence: str) -> None:
  """Prints a warning on stderr. That it cannot be printed is no error."""
  with contextlib.suppress(OSError):
    print(f'electra_jax: {sentence}', file=sys.stderr, flush=True)


def seconds(value: float) -> str:
  """Formats a duration, such as `8s`, `3m20s` or `2h05m`."""
  value = int(round(value))
  if value < 60:
    return f'{value}s'
  if value < 3600:
    return f'{value // 60}m{value % 60:02d}s'
  return f'{value // 3600}h{value % 3600 // 60:02d}m'


def heading(text: str) -> None:
  """Prints an empty line and a line that starts a new part of the output."""
  print(f'\n{text}', flush=True)


class Progress:
  """The progress of long work. See `progress`.

  Attributes:
    terminal: whether the output is a terminal.
  """

  def __init__(self, label: str, total: float | None) -> None:
    """Starts the clock.

    Args:
      label: label of the line.
      total: amount of work; None if it is not known.
    """
    self.terminal = sys.stdout.isatty()
    self._label = label
    self._total = total
    self._start = self._shown = time.monotonic()
    self._display: Display | None = None  # while it is on the screen

  def __call__(self, done: float, text: str = '') -> None:
    """Shows `text` and, if the total is known, the share that is done and the time left."""
    now = time.monotonic()
    if now - self._shown < (REFRESH_EVERY if self.terminal else LOG_EVERY):
      return
    self._shown = now
    if self.terminal:
      display = self._display or self._open_display()
      display.update(display.task_ids[0], completed=done, text=text, refresh=True)
    else:
      say(self._label, self._line(done, text))

  def above(self, text: str) -> None:
    """Prints a line that stays, above the progress display."""
    if self._display:
      self._display.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
    else:
      print(text, flush=True)
    if not self.terminal:
      self._shown = time.monotonic()

  def close(self) -> None:
    """Removes the display from the screen."""
    if self._display:
      self._display.stop()
      self._display = None

  def _line(self, done: float, text: str) -> str:
    elapsed = time.monotonic() - self._start
    if not self._total:
      return f'{text}, {seconds(elapsed)} so far'
    share = min(done / self._total, 1.0)
    left = f', {seconds(elapsed / share - elapsed)} left' if share > 0 else ''
    return f'{share:4.0%}  {text}{left}'

  def _open_display(self) -> 'Display':
    # rich takes time to load, and only a terminal needs it.
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    known = (
      BarColumn(bar_width=20),
      TextColumn('{task.percentage:>3.0f}%'),
      TextColumn('{task.fields[text]}', markup=False),
      TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    unknown = (TextColumn('{task.fields[text]}', markup=False), TimeElapsedColumn())
    label = TextColumn('  {task.description:<12}', markup=False)
    # Without automatic refreshes there is no thread, which processes that fork could not have.
    display = Display(
      label, *(known if self._total else unknown), transient=True, auto_refresh=False
    )
    display.add_task(self._label, total=self._total, text='')
    display.start()
    self._display = display
    return display


@contextlib.contextmanager
def progress(label: str, total: float | None = None) -> Iterator[Progress]:
  """Shows the progress of the work in a `with` block.

  On a terminal a display is updated and removed at the end. Elsewhere a line is printed if nothing
  was for 30 seconds, so that logs stay short.

  Args:
    label: label of the line.
    total: amount of work; None if it is not known.

  Yields:
    A function `(done, text)` to call with the work that is done.
  """
  line = Progress(label, total)
  try:
    yield line
  finally:
    line.close()

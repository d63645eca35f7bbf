"""Lines on the console: aligned, and while long work runs, a progress line that stays in its place."""

import contextlib
import os
import sys
import time


def quiet_libraries() -> None:
  """Keeps what XLA and TensorFlow say of themselves off stderr, unless the environment asks for it. Call it before they start."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  # TensorFlow says that oneDNN is on before it reads the level above, on processors with AVX512_VNNI; here it computes nothing.
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')


def say(label: str, text: str) -> None:
  """Prints one aligned line: `label` in its column, then `text`."""
  print(f'  {label:<12} {text}', flush=True)


def seconds(value: float) -> str:
  """A duration in words, such as `8s`, `3m20s` or `2h05m`."""
  value = int(round(value))
  if value < 60:
    return f'{value}s'
  if value < 3600:
    return f'{value // 60}m{value % 60:02d}s'
  return f'{value // 3600}h{value % 3600 // 60:02d}m'


def heading(text: str) -> None:
  """Prints the line that begins a screen."""
  print(f'\n{text}', flush=True)


class Progress:
  """A line that stays in its place while long work runs. See `progress`."""

  def __init__(self, label: str, total: float | None):
    self.terminal = sys.stdout.isatty()
    self._label, self._total = label, total
    self._interval = 0.2 if self.terminal else 30.0
    self._start = self._shown = time.monotonic()
    self._width = 0

  def __call__(self, done: float, text: str = '') -> None:
    """Shows `text`, and with a total the share done and the time left."""
    now = time.monotonic()
    if now - self._shown < self._interval:
      return
    self._shown = now
    elapsed = now - self._start
    if self._total:
      share = min(done / self._total, 1.0)
      left = f', {seconds(elapsed / share - elapsed)} left' if share > 0 else ''
      text = f'{share:4.0%}  {text}{left}'
    else:
      text = f'{text}, {seconds(elapsed)} so far'
    if self.terminal:
      line = f'  {self._label:<12} {text}'
      print('\r' + line.ljust(self._width), end='', flush=True)
      self._width = len(line)
    else:
      say(self._label, text)

  def above(self, text: str) -> None:
    """Prints a line that stays, above the one that moves."""
    self.wipe()
    print(text, flush=True)
    self._shown = time.monotonic() if not self.terminal else 0.0

  def wipe(self) -> None:
    """Takes the moving line away."""
    if self.terminal and self._width:
      print('\r' + ' ' * self._width + '\r', end='', flush=True)
      self._width = 0


@contextlib.contextmanager
def progress(label: str, total: float | None = None):
  """Yields a Progress.

  On a terminal its line is rewritten, at most five times a second; elsewhere one is printed where nothing else was for thirty
  seconds, so logs stay short. The line is wiped at the end.
  """
  line = Progress(label, total)
  try:
    yield line
  finally:
    line.wipe()

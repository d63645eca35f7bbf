"""Lines on the console: aligned, and while long work runs, a progress line that stays in its place."""

import contextlib
import sys
import time


def say(label: str, text: str) -> None:
  """Prints one aligned line: `label` in its column, then `text`."""
  print(f"  {label:<12} {text}", flush=True)


def seconds(value: float) -> str:
  """A duration in words, such as `8s`, `3m20s` or `2h05m`."""
  value = int(round(value))
  if value < 60:
    return f"{value}s"
  if value < 3600:
    return f"{value // 60}m{value % 60:02d}s"
  return f"{value // 3600}h{value % 3600 // 60:02d}m"


@contextlib.contextmanager
def progress(label: str, total: float | None = None):
  """Yields `update(done, text)`, which shows `text`, and with a `total` the share done and the time left.

  On a terminal the line is rewritten, at most five times a second; elsewhere one is printed every thirty seconds, so logs stay
  short. The line is wiped at the end.
  """
  terminal = sys.stdout.isatty()
  interval = 0.2 if terminal else 30.0
  start = shown = time.monotonic()
  width = 0

  def update(done: float, text: str = "") -> None:
    nonlocal shown, width
    now = time.monotonic()
    if now - shown < interval:
      return
    shown = now
    elapsed = now - start
    if total:
      share = min(done / total, 1.0)
      left = f", {seconds(elapsed / share - elapsed)} left" if share > 0 else ""
      text = f"{share:4.0%}  {text}{left}"
    else:
      text = f"{text}, {seconds(elapsed)} so far"
    if terminal:
      line = f"  {label:<12} {text}"
      print("\r" + line.ljust(width), end="", flush=True)
      width = len(line)
    else:
      say(label, text)

  try:
    yield update
  finally:
    if terminal and width:
      print("\r" + " " * width + "\r", end="", flush=True)

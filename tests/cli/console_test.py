"""Progress on a terminal and in a log file."""

import io
import sys

import pytest

from electra_jax import console


class Terminal(io.StringIO):
  """Output that is a terminal."""

  def isatty(self):
    return True


@pytest.fixture
def now(monkeypatch):
  """A clock that the test sets."""
  clock = [1000.0]
  monkeypatch.setattr(console.time, 'monotonic', lambda: clock[0])
  return clock


def test_a_log_file_gets_a_line_after_30_quiet_seconds(now, monkeypatch):
  out = io.StringIO()
  monkeypatch.setattr(sys, 'stdout', out)
  with console.progress('rows', 200) as live:
    live(10, 'early')
    now[0] += 31
    live(50, 'file 1')
    now[0] += 20
    live.above('a line that stays [bold]')
    now[0] += 20  # 20 seconds after the last line
    live(60, 'file 2')
    now[0] += 11
    live(100, 'file 3')
  assert out.getvalue().splitlines() == [
    '  rows          25%  file 1, 1m33s left',
    'a line that stays [bold]',
    '  rows          50%  file 3, 1m22s left',
  ]


def test_a_terminal_shows_a_display_and_keeps_lines_as_they_are(now, monkeypatch):
  out = Terminal()
  monkeypatch.setattr(sys, 'stdout', out)
  monkeypatch.setenv('TERM', 'xterm')
  with console.progress('rows', 200) as live:
    now[0] += 1
    live(50, 'file [1]')
    live.above('a line that stays [bold] :smile:')
  shown = out.getvalue()
  assert 'file [1]' in shown and ' 25%' in shown
  assert 'a line that stays [bold] :smile:' in shown


def test_without_a_total_the_time_so_far_is_shown(now, monkeypatch):
  out = io.StringIO()
  monkeypatch.setattr(sys, 'stdout', out)
  with console.progress('compiling') as live:
    now[0] += 60
    live(1, 'the step')
  assert out.getvalue() == '  compiling    the step, 1m00s so far\n'


@pytest.mark.parametrize(
  'value, text', [(7.6, '8s'), (59.6, '1m00s'), (200, '3m20s'), (7500, '2h05m')]
)
def test_durations(value, text):
  assert console.seconds(value) == text

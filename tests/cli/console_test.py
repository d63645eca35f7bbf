"""Progress on a terminal and in a log file, and what --quiet leaves."""

import io
import os
import re
import sys

import pytest

from electra_jax import console
from electra_jax.cli import command_line
from electra_jax.errors import UserError

COLOR = re.compile(r'\x1b\[(?:3[0-8]|4[0-8]|9[0-7])')  # an escape sequence that sets a color


class Terminal(io.StringIO):
  """Output that is a terminal."""

  encoding = 'utf-8'

  def isatty(self):
    return True


@pytest.fixture
def now(monkeypatch):
  """A clock that the test sets. Nothing is shown but by `refresh`."""
  clock = [1000.0]
  monkeypatch.setattr(console.time, 'monotonic', lambda: clock[0])
  monkeypatch.setattr(console, 'REFRESH_EVERY', 3600.0)
  monkeypatch.setattr(console, '_screen', console._Screen())
  monkeypatch.setenv('TERM', 'xterm-256color')
  monkeypatch.setenv('COLUMNS', '100')
  monkeypatch.delenv('NO_COLOR', raising=False)
  monkeypatch.setattr(console, '_log_every', console.LOG_EVERY)
  yield clock
  console.quiet(False)
  console.show_progress(True)


def refresh():
  console._screen.refresh()


@pytest.fixture
def streams(monkeypatch):
  """stdout and stderr; replaces them by terminals or files."""

  def replace(out=io.StringIO, err=io.StringIO):
    monkeypatch.setattr(sys, 'stdout', out())
    monkeypatch.setattr(sys, 'stderr', err())
    return sys.stdout, sys.stderr

  return replace


def test_a_log_gets_a_line_on_stderr_after_30_quiet_seconds(now, streams):
  out, err = streams()
  with console.progress('rows', 200, 'rows') as live:
    live(0)
    now[0] += 10
    live(20, 'file 0')
    refresh()
    now[0] += 20
    live(50, 'file 1')
    refresh()
    now[0] += 20
    console.line('a line that stays [bold]')
    now[0] += 20  # 20 seconds after the last line
    live(60, 'file 2')
    refresh()
    now[0] += 11
    live(100, 'file 3')
    refresh()
  assert err.getvalue().splitlines() == [
    '  rows          25%  file 1, 1.67 rows/s, 1m30s left',
    '  rows          50%  file 3, 1.23 rows/s, 1m21s left',
  ]
  assert out.getvalue() == 'a line that stays [bold]\n'


def test_the_time_left_leaves_out_compilation_phases_and_what_was_done_before(now):
  live = console.Progress('training', 100, 'tokens', per=1000)
  now[0] += 500  # compilation, before the first step
  assert live.seconds_left() is None
  live(1)
  now[0] += 10
  live(11)
  with live.phase('evaluating'):
    now[0] += 400
    assert live.text() == 'evaluating, 6m40s so far'
    assert live.seconds_left() == 89.0
  assert live.seconds_left() == 89.0
  assert live.text() == '1 k tokens/s, 1m29s left'
  live.skip(40)
  live(51)
  assert live.seconds_left() == 49.0


def test_silent_work_is_named_in_a_log_once_after_10_seconds(now, streams):
  out, err = streams()
  with console.phase('compiling', 'the step'):
    now[0] += 9
    refresh()
    assert not err.getvalue()
    for _ in range(4):
      now[0] += 5
      refresh()
  assert err.getvalue() == '  compiling    the step, 14s so far\n' and not out.getvalue()


def test_what_precedes_the_first_amount_is_named(now, streams):
  _, err = streams()
  with console.progress('evaluating', 200, before='compiling') as live:
    now[0] += 12
    refresh()
    now[0] += 12
    refresh()
    live(100)
    now[0] += 12
    refresh()
  assert err.getvalue() == '  evaluating     0%  compiling, 12s so far\n'


def test_a_terminal_shows_one_line_and_keeps_lines_as_they_are(now, streams):
  _, err = streams(Terminal, Terminal)
  with console.progress('rows', 200) as live:
    now[0] += 1
    live(50, 'file [1] ' + 200 * 'x')
    refresh()
    shown = err.getvalue()
    console.line('a line that stays [bold] :smile: ' + 'long ' * 40)
  assert 'file [1]' in shown and ' 25%' in shown and '…' in shown and '\n' not in shown
  assert COLOR.search(shown)
  assert 'a line that stays [bold] :smile: ' + 'long ' * 40 in err.getvalue()


def test_a_terminal_of_ascii_gets_ascii(now, streams, monkeypatch):
  monkeypatch.setattr(Terminal, 'encoding', 'ascii')
  _, err = streams(Terminal, Terminal)
  with console.progress('rows', 200) as live:
    live(50, 200 * 'x')
    refresh()
  assert ' 25%' in err.getvalue() and err.getvalue().isascii()


def test_lines_go_to_a_log_while_the_terminal_shows_progress(now, streams):
  out, err = streams(io.StringIO, Terminal)
  with console.progress('rows', 200) as live:
    live(50)
    refresh()
    console.say('label', 'text')
  assert out.getvalue() == '  label        text\n'
  assert ' 25%' in err.getvalue() and 'label' not in err.getvalue()


def test_no_color_leaves_the_line_without_colors(now, streams, monkeypatch):
  monkeypatch.setenv('NO_COLOR', '1')
  _, err = streams(Terminal, Terminal)
  with console.progress('rows', 200) as live:
    live(50, 'file')
    refresh()
  assert ' 25%' in err.getvalue() and not COLOR.search(err.getvalue())


def test_a_terminal_that_cannot_replace_a_line_gets_lines(now, streams, monkeypatch):
  monkeypatch.setenv('TERM', 'dumb')
  _, err = streams(Terminal, Terminal)
  with console.progress('rows', 200) as live:
    live(50, 'file')
    now[0] += 31
    refresh()
  assert err.getvalue() == '  rows          25%  file\n'


def test_of_work_inside_other_work_the_inner_is_shown(now, streams):
  _, err = streams(Terminal, Terminal)
  with console.progress('sweep', 4) as sweep:
    sweep(1, 'run 2 of 4')
    with console.progress('training', 10) as live:
      live(5)
      refresh()
    assert 'training' in err.getvalue() and 'sweep 25%' in err.getvalue()
    refresh()
    assert 'run 2 of 4' in err.getvalue()


def test_quiet_leaves_warnings_and_results(now, streams):
  out, err = streams()
  console.quiet(True)
  console.heading('a heading')
  console.say('corpus', 'text')
  with console.progress('rows', 200) as live:
    live(50)
    now[0] += 60
    refresh()
  console.warn('a warning.')
  console.say('written', 'a file', always=True)
  with console.results():
    console.say('plan', 'fits')
  console.say('corpus', 'text')
  assert out.getvalue() == '  written      a file\n  plan         fits\n'
  assert err.getvalue() == 'electra_jax: a warning.\n'


def test_processes_but_the_first_show_no_progress(now, streams):
  _, err = streams()
  console.show_progress(False)
  with console.progress('rows', 200) as live:
    live(50)
    now[0] += 60
    refresh()
  assert not err.getvalue()


def test_the_environment_sets_the_interval(now, streams, monkeypatch):
  _, err = streams()
  monkeypatch.setenv(command_line.PROGRESS, '5')
  console.log_every(command_line._progress_interval())
  with console.progress('rows', 200) as live:
    live(50)
    now[0] += 5
    refresh()
    monkeypatch.setenv(command_line.PROGRESS, '0')
    console.log_every(command_line._progress_interval())
    now[0] += 5000
    refresh()
  assert err.getvalue().count('\n') == 1
  for wrong in ('often', '-1', 'nan'):
    monkeypatch.setenv(command_line.PROGRESS, wrong)
    with pytest.raises(UserError, match=f"ELECTRA_JAX_PROGRESS is '{wrong}'; expected"):
      command_line._progress_interval()


def test_a_terminal_that_does_not_answer_delays_no_work(monkeypatch):
  """The thread waits in a write to a full pipe; the work continues."""
  read, write = os.pipe()
  os.set_blocking(write, False)
  with open(write, 'w') as full:
    while True:
      try:
        os.write(write, bytes(65536))
      except BlockingIOError:
        break
    os.set_blocking(write, True)
    monkeypatch.setattr(sys, 'stderr', full)
    monkeypatch.setattr(console, 'REFRESH_EVERY', 0.001)
    monkeypatch.setattr(console, '_log_every', 0.0)
    screen = console._Screen()
    monkeypatch.setattr(console, '_screen', screen)
    waiting = console.threading.Event()
    line = console.Progress.text
    monkeypatch.setattr(console.Progress, 'text', lambda self: (waiting.set(), line(self))[1])
    with console.progress('rows', 10**6) as live:
      assert waiting.wait(60)
      for done in range(10**4):
        live(done)
    monkeypatch.undo()
    os.set_blocking(read, False)
    while True:  # lets the thread end
      try:
        if not os.read(read, 65536):
          break
      except BlockingIOError:
        break
  os.close(read)


@pytest.mark.parametrize(
  'value, text', [(7.6, '8s'), (59.6, '1m00s'), (200, '3m20s'), (7500, '2h05m')]
)
def test_durations(value, text):
  assert console.seconds(value) == text

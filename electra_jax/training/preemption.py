"""SIGTERM, as clusters send it before they take a machine away."""

import signal

PREEMPTED = 42      # exit status: saved and left early; the same command goes on


class Notice:
  """True once the process was asked to stop. Ctrl-C counts the first time; the second time it interrupts."""

  def __init__(self):
    self._asked = False
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._ask)

  def _ask(self, number, frame):
    if self._asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._asked = True

  def __bool__(self):
    return self._asked

"""How a program ends before its time. Apart from config.py, since the step and the benchmarks run without ml_collections."""

PREEMPTED = 42  # exit status: asked to stop, all saved; the same command goes on
INTERRUPTED = 130  # exit status of a program that Ctrl-C ended


class UserError(Exception):
  """A person's mistake: one sentence that names the thing and what would do. main.py prints it and exits with 1."""


class Preempted(BaseException):
  """The process was asked to stop before there was anything to save. main.py says so and exits with PREEMPTED.

  No Exception, as KeyboardInterrupt is none: it comes at any moment, and is not what is wrong with what was being read then.
  """

"""How a program ends early: exit statuses and exceptions.

This module imports nothing, as the training step and the benchmarks run without ml_collections.
"""

PREEMPTED = 42  # exit status: asked to stop, everything is saved; the same command resumes
INTERRUPTED = 130  # exit status of a program that Ctrl-C ended


class UserError(Exception):
  """A mistake of the user: one sentence that names it and what would work.

  The command line prints it and exits with status 1. Control characters, which names and values in
  hostile files can have, are shown as escapes.
  """

  def __str__(self) -> str:
    text = super().__str__()
    if text.isprintable():
      return text
    return ''.join(
      character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


class Preempted(BaseException):
  """The process was asked to stop before there was anything to save.

  The command line reports it and exits with status PREEMPTED. Like KeyboardInterrupt it is not an
  Exception: it may be raised anywhere, and must not be mistaken for an error of the code there.
  """


def missing_package(what: str, package: str, extra: str) -> UserError:
  """The error of something that needs a package which is not installed.

  Args:
    what: what needs it, as the beginning of a sentence.
    package: its name.
    extra: the extra of electra-jax that installs it.
  """
  return UserError(
    f'{what} needs {package}, which is not installed; expected the extra {extra}, by '
    f"pip install -e '.[{extra}]' in a checkout of electra_jax."
  )

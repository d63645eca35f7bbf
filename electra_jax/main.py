"""Entry point: `electra-jax MODE ...`, or `python -m electra_jax.main --mode=MODE ...`.

`--help` lists the modes. cli/modes.py declares them, cli/command_line.py parses and runs them.
"""

import errno
import glob
import importlib.util
import os
import sys
import traceback

from absl import logging

from electra_jax import allocator, console
from electra_jax.cli.command_line import parse_flags, run_mode, with_mode_flag
from electra_jax.errors import INTERRUPTED, PREEMPTED, Preempted, UserError

OUTPUT_LOST = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # errors of a file that is printed to
GPU_PLUGINS = ('jax_cuda12_plugin', 'jax_cuda13_plugin', 'jax_rocm7_plugin', 'jax_rocm60_plugin')


def main(argv: list[str] | None = None) -> int:
  """Runs the command line and returns the exit status.

  A user's mistake is one sentence on stderr and status 1.

  Args:
    argv: the program's name and its arguments; None for those of the process.
  """
  logging.use_absl_handler()
  # Orbax logs each error that it raises, with its traceback, in each of its threads.
  logging.set_verbosity(logging.FATAL)
  console.quiet_libraries()
  _choose_platform()
  if _on_cpu():
    allocator.keep_freed_memory()
  try:
    argv = with_mode_flag(sys.argv if argv is None else argv)
    status = run_mode(parse_flags(argv), argv[1:])
    sys.stdout.flush()
  except UserError as error:
    status = _complain(str(error), 1)
  except BrokenPipeError:  # the reader of the output has closed it, as `| head` does
    console.silence(sys.stdout)
    status = 1
  except OSError as error:
    if error.filename or error.errno not in OUTPUT_LOST:
      return _unexpected()
    console.silence(sys.stdout)
    status = _complain(f'the output cannot be printed ({error.strerror}).', 1)
  except KeyboardInterrupt:
    status = _complain(
      'interrupted; the same command resumes from the last checkpoint, if there is one.',
      INTERRUPTED,
    )
  except Preempted as error:
    return _leave(_complain(str(error), PREEMPTED), agreed=False)
  except Exception:
    return _unexpected()
  return _leave(status, agreed=status in (0, PREEMPTED))


def _unexpected() -> int:
  """Prints the exception that is handled, which is a bug, and returns the exit status."""
  if hosts := sys.modules.get('electra_jax.training.hosts'):
    hosts.give_way()  # the other processes must not wait for this one
  traceback.print_exc()
  return _leave(1, agreed=False)


def _choose_platform() -> None:
  """Sets JAX's platform to CPU where libtpu is installed without a TPU or GPU plugin.

  libtpu may be installed only for --mode=plan. JAX would look for a TPU, and warn at length.
  """
  if _has_tpu() or not importlib.util.find_spec('libtpu'):
    return
  if not any(map(importlib.util.find_spec, GPU_PLUGINS)):
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')


def _has_tpu() -> bool:
  """Whether there are the device files that Cloud TPU VMs have."""
  return bool(glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'))


def _on_cpu() -> bool:
  """Whether JAX will compute on the CPU, without importing it."""
  if platforms := os.environ.get('JAX_PLATFORMS'):
    return platforms == 'cpu'
  return not _has_tpu() and not any(map(importlib.util.find_spec, GPU_PLUGINS))


def _complain(sentence: str, status: int) -> int:
  """Prints a sentence on stderr, with the number of the process if there are several."""
  # Only where it was imported before: it imports JAX, which takes a second.
  hosts = sys.modules.get('electra_jax.training.hosts')
  console.warn(f'{hosts.name() if hosts else ""}{sentence}')
  return status


def _leave(status: int, agreed: bool) -> int:
  """Disconnects from the other processes of the run, if there are any, and returns the status.

  Args:
    status: exit status.
    agreed: whether the other processes end now as well.
  """
  hosts = sys.modules.get('electra_jax.training.hosts')
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except OSError:  # Python would flush again at exit, and change the status
      console.silence(stream)
  if hosts and hosts.leave(agreed) and not agreed:
    # JAX's exit handler would wait for processes that have ended, or are about to.
    os._exit(status)
  return status


if __name__ == '__main__':
  sys.exit(main())

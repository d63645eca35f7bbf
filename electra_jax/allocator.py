"""Freed memory stays with the process, so that a training step finds its buffers mapped.

XLA allocates a step's temporary buffers from the C library in each step and frees them after it.
glibc returns such blocks to the kernel at once, and the kernel maps and clears each page anew. What
this costs, and how much more memory the process holds, is in benchmarks/README.md.
"""

import ctypes
import platform

# Parameters of mallopt (glibc, malloc.h) and their values.
_OPTIONS = (
  (-4, 0),  # M_MMAP_MAX: no block has a mapping of its own, which free would unmap
  (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: free memory at the end of the heap is kept
  (-2, 2**30),  # M_TOP_PAD: the heap grows by this much, which is reserved and not used yet
)


def keep_freed_memory() -> bool:
  """Keeps what this process frees, for programs that train on a CPU; before JAX starts.

  The process then holds as much memory as it ever used. glibc has blocks of such sizes on its heap
  only for the main thread, so steps are executed there: see
  training.devices.execute_in_main_thread.

  Returns:
    Whether the C library is glibc, and accepted all settings.
  """
  if platform.libc_ver()[0] != 'glibc':
    return False
  mallopt = ctypes.CDLL(None).mallopt
  accepted = [mallopt(option, value) for option, value in _OPTIONS]
  return accepted == [1] * len(_OPTIONS)

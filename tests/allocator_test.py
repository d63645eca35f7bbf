"""Memory that the program keeps when it is freed."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from electra_jax import allocator

def faults(size):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.ones(size, np.uint8)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert KEEP == 'freed' or allocator.keep_freed_memory()
faults(2**27)
print(faults(2**27))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc has the settings')
def test_a_block_that_was_freed_is_used_again_without_page_faults():
  def second_time(keep):
    program = PROGRAM.replace('KEEP', repr(keep))
    command = [sys.executable, '-c', program]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

  assert second_time('kept') < 100 < second_time('freed')

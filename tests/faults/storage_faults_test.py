"""Checkpoints and metrics while the disk fails at any operation, and after bits have flipped."""

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
COMPILER = shutil.which('cc') or shutil.which('gcc')


@pytest.fixture(scope='module')
def failing_files(tmp_path_factory):
  """The library that makes file operations fail."""
  if COMPILER is None or not sys.platform.startswith('linux'):
    pytest.skip('needs a C compiler and LD_PRELOAD')
  library = tmp_path_factory.mktemp('faults') / 'failing_files.so'
  source = HERE / 'failing_files.c'
  subprocess.run([COMPILER, '-shared', '-fPIC', '-o', library, source, '-ldl'], check=True)
  return library


def save_under_faults(library, folder, cases):
  """Runs saving_child.py; returns its results and what it printed on stderr."""
  folder.mkdir()
  env = os.environ | {
    'LD_PRELOAD': str(library),
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
  }
  command = [sys.executable, str(HERE / 'saving_child.py'), str(folder), json.dumps(cases)]
  done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=3000, cwd=ROOT)
  assert done.returncode == 0, done.stderr[-4000:]
  return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def check(results, stderr):
  """No case may lose a checkpoint or a line, hang, or print anything but sentences."""
  assert results[0]['sentence'] is None and results[0]['steps'] == [2]
  for result in results:
    assert all(result['right']), result
    assert result['lines'] == [1, 2] and not result['damaged'], result
    if result['sentence'] is None:
      assert result['steps'] == [2], result
    else:
      assert result['steps'] in ([1], [1, 2]), result
      assert 'the checkpoint of step 1 is kept; make room in' in result['sentence']
      assert '\n' not in result['sentence']
  strange = [line for line in stderr.splitlines() if not line.startswith('electra_jax: ')]
  assert strange == []


@pytest.mark.parametrize(
  'cases',
  [
    # The first operation, some in the middle of the data, and those that complete the checkpoint.
    pytest.param(
      [
        [1, errno.ENOSPC, False],
        [20, errno.ENOSPC, True],
        [45, errno.EIO, False],
        [75, errno.ENOSPC, True],
        [90, errno.EROFS, True],
      ],
      id='five',
    ),
    pytest.param(
      [
        [nth, error, lasting]
        for nth in range(1, 110)
        for error in (errno.ENOSPC, errno.EIO, errno.EDQUOT)
        for lasting in (False, True)
      ],
      id='every',
      marks=pytest.mark.faults,
    ),
  ],
)
def test_a_disk_that_fails_at_an_operation_costs_no_checkpoint(failing_files, tmp_path, cases):
  results, stderr = save_under_faults(failing_files, tmp_path / 'runs', cases)
  assert len(results) == 1 + len(cases)
  check(results, stderr)
  lasting = [result for result in results if result['case'][2]]
  assert all(result['sentence'] for result in lasting if result['case'][0] < 75)

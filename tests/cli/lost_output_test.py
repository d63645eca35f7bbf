"""A program whose output is closed or full goes on, or ends quietly if it only prints."""

import os
import subprocess
import sys

import micro_run
import pytest

from electra_jax import console, main
from electra_jax.cli.modes import MODES

LASTING = """
import sys
from electra_jax import console
with console.lasting_output():
  for i in range(20_000):
    print('x' * 50)
  console.say('done', 'at last')
print('the end', file=sys.stderr)
"""


def python(*arguments, **popen):
  env = os.environ | {'PYTHONPATH': str(micro_run.ROOT)}
  command = [sys.executable, *arguments]
  return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, **popen)


def test_a_closed_pipe_does_not_end_a_program_that_writes_files():
  process = python('-c', LASTING, stdout=subprocess.PIPE)
  assert process.stdout.readline() == 'x' * 50 + '\n'
  process.stdout.close()
  assert process.stderr.read().splitlines() == [
    'electra_jax: the output cannot be printed (Broken pipe); the program continues without.',
    'the end',
  ]
  assert process.wait() == 0


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_a_full_disk_below_the_log_does_not_end_it_either():
  with open('/dev/full', 'w') as full:
    process = python('-c', LASTING, stdout=full)
    assert process.stderr.read().splitlines() == [
      'electra_jax: the output cannot be printed (No space left on device); the program continues '
      'without.',
      'the end',
    ]
    assert process.wait() in (0, 120)  # Python's status where its last flush fails


def test_a_program_that_only_prints_ends_quietly_when_its_output_is_closed():
  process = python('-m', 'electra_jax.main', '--help', stdout=subprocess.PIPE)
  process.stdout.close()
  assert process.stderr.read() == '' and process.wait() == 1


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_a_full_disk_below_printed_help_is_one_sentence():
  with open('/dev/full', 'w') as full:
    process = python('-m', 'electra_jax.main', '--help', stdout=full)
    assert process.stderr.read() == (
      'electra_jax: the output cannot be printed (No space left on device).\n'
    )
    assert process.wait() == 1


def test_modes_that_train_or_write_go_on():
  assert {name for name, mode in MODES.items() if mode.prints_only} == {'evaluate', 'inspect'}


def test_a_home_folder_is_expanded_in_flags(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  found = []
  monkeypatch.setattr('electra_jax.verify.verify', lambda **given: found.append(given))
  assert main.main(['main', '--mode=verify', '--workdir=~/run', '--store=~/rows']) == 0
  assert found == [{'workdir': f'{tmp_path}/run', 'store': f'{tmp_path}/rows'}]


def test_a_warning_that_cannot_be_printed_is_no_error(monkeypatch):
  class Closed:
    def write(self, text):
      raise BrokenPipeError

  monkeypatch.setattr(sys, 'stderr', Closed())
  console.warn('nobody reads this')

"""Several processes train as one does, stop and resume together, and never wait for a lost one.

The processes are real, on loopback: two with two devices each. Every tensor that divides is split
(ZeRO-1) over all four devices.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import micro_run
import numpy as np
import pytest

from electra_jax.errors import PREEMPTED
from electra_jax.training.hosts import LOST

STEPS = 18
# The length of a run is an input of the step: the program is the same for all. It is saved only at
# the end: a save takes as long as many steps.
PAIR = ('--config.sharding.smallest=0', f'--config.steps={STEPS}', '--config.save_every=20')
# What Gloo prints on each connection, in pieces; those of several threads can alternate.
GLOO = re.compile(
  r'\[Gloo\] Rank |\d+| is connected to | peer ranks\. '
  r'|Expected number of connected peer ranks is : |\n'
)


# A mistake of the program: the first process fails when it logs.
BROKEN = """
import jax
from electra_jax.training import step_loop

log = step_loop.RunRecorder.log_training

def broken(*arguments):
  return 1 / 0 if jax.process_index() == 0 else log(*arguments)

step_loop.RunRecorder.log_training = broken
"""


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def start_pair(workdir, *more, other=(), devices=2):
  """Starts both processes of a run; `other`: arguments of the second one only."""
  address = f'127.0.0.1:{free_port()}'
  return [
    micro_run.start(
      *micro_run.arguments(
        workdir,
        f'--coordinator={address}',
        '--processes=2',
        f'--process={i}',
        *PAIR,
        *more,
        *(other if i else ()),
      ),
      devices=devices,
    )
    for i in range(2)
  ]


def ends(processes, timeout=300):
  """(exit status, stdout, stderr) of each."""
  printed = [process.communicate(timeout=timeout) for process in processes]
  return [(process.returncode, *texts) for process, texts in zip(processes, printed, strict=True)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('pair')


@pytest.fixture(scope='module')
def pair(folder):
  """The folder of an undisturbed run of two processes, and how they ended."""
  ended = ends(start_pair(folder / 'whole'))
  for status, _, err in ended:
    assert status == 0, err[-3000:]
  return folder / 'whole', ended


@pytest.fixture(scope='module')
def single(folder):
  """The folder of the same run by one process with one device, whose program other tests share."""
  micro_run.run(*micro_run.arguments(folder / 'single', *PAIR[1:]))
  return folder / 'single'


def assert_alike(ours, theirs, step=STEPS):
  """Checks that parameters and moments are equal except for rounding."""
  ours, theirs = (micro_run.checkpoint(workdir, step) for workdir in (ours, theirs))
  assert ours.keys() == theirs.keys()
  for name, value in ours.items():
    if np.issubdtype(value.dtype, np.floating) and name.startswith('params'):
      np.testing.assert_allclose(
        value, theirs[name], rtol=0, atol=2e-3 * max(np.abs(value).max(), 1e-3), err_msg=name
      )


def test_two_processes_train_as_one_does(pair, single):
  workdir, _ = pair
  assert_alike(workdir, single)
  for ours, theirs in zip(micro_run.figures(workdir), micro_run.figures(single), strict=True):
    assert ours['step'] == theirs['step'] and ours['kind'] == theirs['kind']
    np.testing.assert_allclose(ours['generator_loss'], theirs['generator_loss'], rtol=1e-3)
    np.testing.assert_allclose(ours['discriminator_loss'], theirs['discriminator_loss'], rtol=1e-3)


def test_only_the_first_process_prints_and_writes(pair):
  workdir, ((_, first, first_err), (_, second, second_err)) = pair
  assert '4 x cpu of 2 processes, mesh data 4' in first and 'axis' in first
  assert GLOO.sub('', second) == '' and first_err == second_err == ''
  assert len(re.findall(r'\d+', second)) <= 3 * second.count('[Gloo] Rank ')  # no other numbers
  steps = [line['step'] for line in micro_run.figures(workdir) if line['kind'] == 'train']
  assert steps == sorted(set(steps)) and len(list((workdir / 'tensorboard').glob('events*'))) == 1


@pytest.mark.faults
def test_a_killed_process_ends_the_other_and_the_run_resumes_bitwise_equal(folder, pair):
  workdir = folder / 'killed'
  processes = start_pair(workdir, '--config.save_every=5')
  micro_run.wait_for(lambda: micro_run.last_step(workdir) >= 8, processes[0])
  processes[1].kill()
  start = time.monotonic()
  (status, _, err), _ = ends(processes)
  assert time.monotonic() - start < 30
  assert (
    status == LOST == 43
    and 'another process of the run ended; this one ends too' in err
    and 'Traceback' not in err
  )
  written = json.loads((workdir / 'status.json').read_text())
  assert (written['state'], written['exit_status']) == ('failed', LOST)
  assert written['exit_reason'].startswith('another process of the run ended')
  for status, _, err in ends(start_pair(workdir, '--config.save_every=5')):
    assert status == 0, err[-3000:]
  whole, _ = pair
  assert (
    micro_run.differing(micro_run.checkpoint(workdir, STEPS), micro_run.checkpoint(whole, STEPS))
    == []
  )
  assert micro_run.figures(workdir) == micro_run.figures(whole)


@pytest.mark.long
def test_a_request_to_one_process_stops_both_at_one_step_and_one_process_can_resume(folder, single):
  workdir = folder / 'stopped'
  processes = start_pair(workdir)
  micro_run.wait_for(lambda: micro_run.last_step(workdir) >= 6, processes[0])
  processes[1].send_signal(signal.SIGTERM)  # the other one gets no signal
  (status, out, _), (other, _, _) = ends(processes)
  assert status == other == PREEMPTED
  stopped = micro_run.checkpoint_steps(workdir)[-1]
  assert 6 <= stopped < STEPS and f'saved step {stopped}' in out
  # What was chosen for the mesh of two processes does not apply to another mesh.
  resolved = json.loads((workdir / 'resolved.json').read_text())
  (workdir / 'resolved.json').write_text(json.dumps(resolved | {'micro_batches': [4]}))
  out, _ = micro_run.run(*micro_run.arguments(workdir, *PAIR), devices=1)
  assert f'restored     step {stopped}' in out
  now = json.loads((workdir / 'resolved.json').read_text())
  assert (resolved['mesh']['data'], now['mesh']['data'], now['micro_batches']) == (4, 1, [1])
  assert_alike(workdir, single)


def test_different_configs_of_processes_are_reported_by_both(folder):
  for status, _, err in ends(start_pair(folder / 'different', other=('--config.seed=5',))):
    assert (
      status == 1
      and 'the config of process 2 is not that of process 1' in err
      and 'Traceback' not in err
    )
  assert not (folder / 'different' / 'config.json').exists()


@pytest.mark.long  # as test_different_configs_of_processes_are_reported_by_both
def test_an_error_is_reported_by_both_processes_and_neither_waits(folder, pair):
  workdir, _ = pair
  start = time.monotonic()
  for status, _, err in ends(start_pair(workdir, '--config.optimizer.learning_rate=0.5')):
    assert status == 1 and 'holds a run of another config' in err and 'Traceback' not in err
  assert time.monotonic() - start < 60


def test_a_failure_of_one_process_does_not_leave_the_other_waiting(folder):
  (status, _, err), (alone, _, alone_err) = ends(
    start_pair(
      folder / 'alone',
      '--config.batch_size=8',
      other=('--config.data.reader=tf', '--config.data.cache=/proc/no'),
    )
  )
  assert alone == 1 and 'process 2 of 2: ' in alone_err
  assert status in (1, LOST) and 'Traceback' not in err


@pytest.mark.long
def test_an_unexpected_error_of_the_first_process_ends_both_without_waiting(folder):
  broken = folder / 'broken.py'
  broken.write_text(BROKEN)
  processes = start_pair(folder / 'unexpected', f'--plugins={broken}')
  (status, _, err), (other, _, other_err) = ends(processes, timeout=120)
  assert status == 1 and 'ZeroDivisionError' in err
  assert (
    other == LOST
    and 'another process of the run ended' in other_err
    and 'Check failure' not in other_err
  )


def test_integers_above_32_bits_are_gathered():
  program = (
    'import sys; from electra_jax.training import hosts\n'
    'hosts.join_processes("auto", sys.argv[1], 2, int(sys.argv[2]))\n'
    'print(hosts.gather(50_000_000_000 + int(sys.argv[2])), file=sys.stderr); hosts.leave(True)'
  )
  address = f'127.0.0.1:{free_port()}'
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', program, address, str(i)],
      stderr=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      text=True,
      cwd=micro_run.ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(micro_run.ROOT)},
    )
    for i in range(2)
  ]
  for process in processes:
    _, err = process.communicate(timeout=120)
    assert '[50000000000, 50000000001]' in err


@pytest.mark.parametrize(
  'arguments, sentence',
  [
    (['--coordinator=127.0.0.1:1'], '--processes is missing'),
    (['--coordinator=127.0.0.1', '--processes=2', '--process=0'], "--coordinator is '127.0.0.1'"),
    (['--coordinator=127.0.0.1:1', '--processes=2', '--process=2'], '--process is 2 of 2'),
    (
      ['--coordinator=127.0.0.1:1', '--processes=2', '--process=0', '--distributed=off'],
      'contradict',
    ),
  ],
)
def test_wrong_flags_are_named(tmp_path, arguments, sentence):
  _, err = micro_run.run(*micro_run.arguments(tmp_path / 'run', *arguments), status=1)
  assert sentence in err and 'Traceback' not in err


def test_a_cluster_that_is_none_is_named(tmp_path):
  argv = micro_run.arguments(tmp_path / 'run', '--distributed=cluster')
  _, err = micro_run.run_process(*argv, status=1)
  assert 'did not come together' in err and 'Traceback' not in err

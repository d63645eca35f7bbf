"""SIGTERM, which clusters send: the run saves, exits with a status, and resumes."""

import json
import os
import signal
import threading
import types

import micro_run
import pytest

from electra_jax.errors import PREEMPTED, Preempted
from electra_jax.training import checkpoints
from electra_jax.training.preemption import Notice


def status_of(folder):
  """state, step, restored_step, last_checkpoint and exit_status of a run's status file."""
  status = json.loads((folder / 'status.json').read_text())
  names = ('state', 'step', 'restored_step', 'last_checkpoint', 'exit_status')
  return tuple(status[name] for name in names)


@pytest.mark.long
def test_sigterm_saves_and_the_same_command_resumes_bitwise_equal(tmp_path):
  whole, _ = micro_run.finished()
  workdir = tmp_path / 'stopped'
  process = micro_run.start(*micro_run.arguments(workdir))
  micro_run.wait_for(lambda: micro_run.last_step(workdir) >= 6, process)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=900)
  assert process.returncode == PREEMPTED == 42 and not err
  stopped = micro_run.checkpoint_steps(workdir)[-1]
  assert 6 <= stopped < 30
  assert f'asked to stop: saved step {stopped}; the same command resumes' in out
  assert status_of(workdir) == ('stopped', stopped, 0, stopped, PREEMPTED)
  # The checkpoint is equal to that of a run that saves at every step.
  saved = micro_run.checkpoint(micro_run.saved_often(), stopped)
  assert micro_run.differing(micro_run.checkpoint(workdir, stopped), saved) == []
  out, _ = micro_run.run(*micro_run.arguments(workdir))
  assert f'restored     step {stopped}' in out
  assert status_of(workdir) == ('finished', 30, stopped, 30, 0)
  assert (
    micro_run.differing(micro_run.checkpoint(workdir, 30), micro_run.checkpoint(whole, 30)) == []
  )
  assert micro_run.figures(workdir) == micro_run.figures(whole)


def test_a_notice_is_false_until_asked(handlers):
  assert threading.current_thread() is threading.main_thread()
  notice = Notice()
  notice.heed()
  assert not notice
  os.kill(os.getpid(), signal.SIGTERM)
  assert notice


def test_before_the_first_step_the_process_exits_at_once(handlers):
  Notice()
  with pytest.raises(Preempted, match='before the first step'):
    os.kill(os.getpid(), signal.SIGTERM)
    signal.sigtimedwait([], 0)


def test_a_request_to_stop_while_a_checkpoint_is_read_is_not_reported_as_damage(handlers, tmp_path):
  Notice()

  def restore(step, args):
    os.kill(os.getpid(), signal.SIGTERM)
    signal.sigtimedwait([], 0)

  with pytest.raises(Preempted):
    checkpoints._read(types.SimpleNamespace(directory=tmp_path, restore=restore), 3, {})


def test_the_second_interrupt_raises_at_once(handlers):
  notice = Notice()
  notice.heed()
  os.kill(os.getpid(), signal.SIGINT)
  assert notice
  with pytest.raises(KeyboardInterrupt):
    os.kill(os.getpid(), signal.SIGINT)
    signal.sigtimedwait([], 0)  # lets Python run the handler

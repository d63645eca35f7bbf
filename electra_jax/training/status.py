"""The status file of a run, `WORKDIR/status.json`, for scripts that start and watch the program.

docs/reference/status.md describes the file for those who read it.
"""

import dataclasses
import datetime
import os
import pathlib
import socket
import sys
import threading
import types
from typing import Any, Literal

from etils import epath

from electra_jax import file_access
from electra_jax.errors import INTERRUPTED, PREEMPTED, Preempted, UserError
from electra_jax.folder_lock import FolderLock
from electra_jax.training import checkpoints, hosts, run_folder

FILE = 'status.json'
COPY = 'ELECTRA_JAX_STATUS'  # environment variable: a file of this machine with the same content
FORMAT = 1
PATIENCE = 60.0  # seconds to wait for a write to a bucket that is still in progress

FieldValue = Any  # of a field of StatusRecord
Mode = Literal['train', 'finetune']
State = Literal['preparing', 'running', 'stopped', 'finished', 'failed']


@dataclasses.dataclass
class StatusRecord:
  """The fields of a status file, in their order.

  Attributes:
    format: of the file; it changes when a field gets another meaning.
    mode: the program that writes the file.
    state: 'preparing' (data, model, compilation), 'running' (training steps), 'stopped' (asked to
      stop, everything is saved), 'finished' or 'failed'.
    step: optimizer steps that were made; in fine-tuning, of the current trial.
    steps: optimizer steps in total, null until known; in fine-tuning, of the current trial.
    restored_step: optimizer steps that were saved when this start began, 0 for a fresh start. In
      pretraining the step of the checkpoint that was restored, in fine-tuning the sum over all
      tasks and trials.
    last_checkpoint: step of the newest complete checkpoint, null where there is none; in
      fine-tuning, of the current trial.
    exit_reason: one sentence for 'stopped' and 'failed', else null.
    exit_status: the exit status of the program, null while it runs.
    pid: process ID of the process that writes the file, the first of the run.
    host: name of its machine.
    started: when this start of the program began, ISO 8601 in UTC.
    updated: when the file was written, ISO 8601 in UTC.
  """

  mode: Mode
  format: int = FORMAT
  state: State = 'preparing'
  step: int = 0
  steps: int | None = None
  restored_step: int = 0
  last_checkpoint: int | None = None
  exit_reason: str | None = None
  exit_status: int | None = None
  pid: int = 0
  host: str = ''
  started: str = ''
  updated: str = ''

  def plain(self) -> dict[str, Any]:
    """The fields as they are written, 'format' first."""
    return {'format': self.format, **dataclasses.asdict(self)}


@dataclasses.dataclass
class TrialStatusRecord(StatusRecord):
  """The content of the status file of a program that runs trials.

  Attributes:
    task: the current task, null before the first.
    trial: the current trial, counted from 1, null before the first.
  """

  task: str | None = None
  trial: int | None = None


class Status:
  """Keeps the status file of a run up to date. Only the first process of a run writes.

  Use it as a context manager around a program. `claim` names the run's folder, once it is this
  run's; before that, only the copy that ELECTRA_JAX_STATUS names is written, and only when the
  program fails. `end` writes a normal end. An exception that leaves the block is written as the
  reason of the end.

  A write that fails is reported once, on stderr, and does not end the program. Files of this
  machine are written whole or not at all at each call; a bucket is written when the state changes
  and, in the background, when a checkpoint is saved.

  Args:
    mode: the program that writes.
    trials: whether it runs trials, which the file then names.
    lock: of the run's folder; None for a program that needs none.
  """

  def __init__(self, mode: Mode, trials: bool = False, lock: FolderLock | None = None) -> None:
    self.lock = lock
    record = TrialStatusRecord if trials else StatusRecord
    self._record = record(mode, pid=os.getpid(), host=socket.gethostname(), started=_now())
    self._copy = os.environ.get(COPY)
    self._path: epath.Path | None = None
    self._saved_in: epath.Path | None = None  # the folder whose checkpoints count
    self._reported = False
    self._lock = threading.Lock()
    self._upload: threading.Thread | None = None

  def __enter__(self) -> 'Status':
    """Returns the status itself."""
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: types.TracebackType | None,
  ) -> None:
    """Writes why the program ends, where an exception ends it."""
    if error is not None:
      state, reason, status = ending(error)
      self.change(state=state, exit_reason=reason, exit_status=status)
    # After an unexpected exception another process may turn out to be lost: then this process ends
    # for that reason, and the file has to name it.
    if error is None or isinstance(error, (UserError, Preempted, KeyboardInterrupt)):
      hosts.forget_exit(self._lost)

  def claim(self, workdir: str | os.PathLike[str], steps: int | None = None) -> None:
    """Writes into a run's folder from now on, first that the run is prepared.

    Args:
      workdir: the run's folder.
      steps: optimizer steps in total, where they are known.
    """
    self._saved_in = run_folder.folder(workdir)
    self._path = self._saved_in / FILE
    hosts.before_exit(self._lost)
    self.change(steps=steps)

  def check_held(self, read: bool = False) -> None:
    """Checks that the run's folder is still this process's, see `FolderLock.check`."""
    if self.lock is not None:
      self.lock.check(read)

  def change(self, **fields: FieldValue) -> None:
    """Sets fields of the record by name and writes the file, in a bucket as well."""
    self._record = dataclasses.replace(self._record, **fields)
    self._write()

  def begin_trial(self, folder: epath.Path, task: str, trial: int, first: int, steps: int) -> None:
    """Writes that a trial of fine-tuning runs.

    Args:
      folder: the trial's folder, with its checkpoints.
      task: name of the task.
      trial: number of the trial, from 1.
      first: steps of the trial that were made and saved by an earlier start.
      steps: steps of the trial in total.
    """
    self._saved_in = folder
    self.change(
      state='running',
      task=task,
      trial=trial,
      step=first,
      steps=steps,
      last_checkpoint=None,
      restored_step=self._record.restored_step + first,
    )

  def progress(self, step: int, saved: bool = False) -> None:
    """Writes how many steps were made.

    Args:
      step: optimizer steps that were made.
      saved: whether a checkpoint is saved at this step. Buckets are written only then.
    """
    self._record.step = step
    if self._path is None or not file_access.is_remote(self._path):
      self._write()
    elif hosts.first():
      self._record.updated = _now()
      self._write_copy()
      if saved and not (self._upload and self._upload.is_alive()):
        self._upload = threading.Thread(target=self._write_workdir, daemon=True)
        self._upload.start()

  def end(self, exit_status: int) -> int:
    """Writes a normal end and returns its exit status.

    Args:
      exit_status: 0 for a run that is done, PREEMPTED for one that was asked to stop and saved.
    """
    if exit_status == PREEMPTED:
      step = self._record.step
      reason = f'asked to stop; step {step:,} is saved, and the same command resumes from it.'
      self.change(state='stopped', exit_reason=reason, exit_status=exit_status)
    else:
      self.change(state='finished', exit_status=exit_status)
    return exit_status

  def _lost(self) -> None:
    self.change(
      state='failed',
      exit_reason='another process of the run ended; the same command resumes from the last '
      'checkpoint.',
      exit_status=hosts.LOST,
    )

  def _write(self) -> None:
    if self._path is None and not self._copy:
      return
    try:
      if not hosts.first():
        return
    except RuntimeError:  # JAX found no device, which may be what the program ends for
      pass
    if self._upload:
      self._upload.join(PATIENCE)
    self._record.updated = _now()
    self._write_workdir()
    self._write_copy()

  def _write_workdir(self) -> None:
    if self._path is None or self._saved_in is None:
      return
    if self.lock is not None and self.lock.lost:  # the folder is another process's now
      return
    try:
      self._record.last_checkpoint = checkpoints.latest_saved(self._saved_in)
    except Exception:  # of any kind, as a bucket's client raises; the last known one stays
      pass
    self._write_to(self._path)

  def _write_copy(self) -> None:
    if self._copy:
      self._write_to(pathlib.Path(self._copy))

  def _write_to(self, path: os.PathLike[str]) -> None:
    try:
      with self._lock:
        run_folder.write_json(path, self._record.plain())
    except Exception as error:  # of any kind: no status is worth a run
      if not self._reported:
        self._reported = True
        reason = ' '.join(str(error).split()).rstrip('.') or type(error).__name__
        print(
          f'electra_jax: {os.fspath(path)} cannot be written ({reason}); the run continues without '
          'an up-to-date status.',
          file=sys.stderr,
        )


def ending(error: BaseException) -> tuple[State, str, int]:
  """State, reason and exit status of a program that an exception ends, as in main.py."""
  if isinstance(error, UserError):
    return 'failed', str(error), 1
  if isinstance(error, Preempted):
    return 'stopped', str(error), PREEMPTED
  if isinstance(error, KeyboardInterrupt):
    reason = 'interrupted; the same command resumes from the last checkpoint, if there is one.'
    return 'failed', reason, INTERRUPTED
  text = ' '.join(str(error).split())[:300]
  return 'failed', f'{type(error).__name__}: {text}' if text else type(error).__name__, 1


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')

"""Saves checkpoints in the background, notices at once when one fails, and tries again."""

import time

import jax
import orbax.checkpoint as ocp

from electra_jax import console, file_access
from electra_jax.errors import UserError
from electra_jax.training import checkpoints
from electra_jax.training.checkpoints import Criterion
from electra_jax.training.update_step import PyTree, TrainState

# Seconds before each further attempt. Training continues meanwhile, where it can.
RETRY_WAITS = (5.0, 15.0, 30.0)


class CheckpointSaver:
  """Saves the state of a run or trial, with further attempts where the disk refuses.

  A save runs in the background. What it was to write may not exist anymore when it fails, as the
  next step reuses the memory. A further attempt therefore saves the state of a later step.

  In a run of several processes there is one attempt: they would have to agree on the next one. The
  process that cannot write ends, the others end with it, and the same command resumes.
  """

  def __init__(self, manager: ocp.CheckpointManager, best_by: Criterion) -> None:
    """Takes the manager of the checkpoints, and how the best one is chosen."""
    self._manager = manager
    self._best_by = best_by
    self._saving: int | None = None  # the step that is being saved
    self._failures = 0  # in a row
    self._due: float | None = None  # when to try again
    self._reason = ''

  def save(self, step: int, state: TrainState, sums: PyTree, value: float | None) -> None:
    """Starts to save a checkpoint.

    Args:
      step: steps that were taken.
      state: state after that step.
      sums: sums of training metrics since the last log line.
      value: metric that the best checkpoint is chosen by, if it was computed at this step.

    Raises:
      UserError: this was the last attempt, and it failed.
    """
    self._settle()
    if self._due is not None and time.monotonic() < self._due:
      return  # the next attempt is due later
    self._due = None
    self._saving = step
    try:
      checkpoints.save(self._manager, step, state, sums, value, self._best_by)
    except file_access.Unwritable as error:
      self._failed(error)

  def is_due(self) -> bool:
    """Whether a save has failed and the next attempt is due now.

    Notices a save that has failed as soon as it is over. Costs nothing while all is well; to be
    called after every step.

    Raises:
      UserError: the last attempt has failed.
    """
    if self._saving is not None and not self._manager.is_saving_in_progress():
      self._settle()
    return self._due is not None and time.monotonic() >= self._due

  def finish(self, step: int, state: TrainState, sums: PyTree) -> None:
    """Waits until the state is saved, with further attempts where that fails.

    Arguments and errors are those of `save`.
    """
    self._settle()
    while self._due is not None:
      time.sleep(max(0.0, self._due - time.monotonic()))
      self.save(step, state, sums, None)
      self._settle()

  def _settle(self) -> None:
    """Waits for the save in progress, and takes note of how it ended."""
    if self._saving is None:
      return
    try:
      checkpoints.wait(self._manager)
    except file_access.Unwritable as error:
      self._failed(error)
    else:
      self._saving = None
      self._failures = 0

  def _failed(self, error: file_access.Unwritable) -> None:
    """Reports a save that failed and plans the next attempt.

    Raises:
      UserError: there is none.
    """
    step = self._saving
    self._saving = None
    reason = str(error).rstrip('.')
    several = jax.process_count() > 1
    if not several:
      checkpoints.recover(self._manager)
    if checkpoints.latest_saved(self._manager.directory.parent) == step:
      console.warn(f'checkpoints before step {step:,} could not be removed ({reason}).')
      return
    if several or self._failures == len(RETRY_WAITS):
      kept = checkpoints.latest_saved(self._manager.directory.parent)
      state = f'the checkpoint of step {kept:,} is kept' if kept else 'no checkpoint was saved yet'
      tried = '' if several else f', {self._failures + 1} times in a row'
      raise UserError(
        f'the checkpoint of step {step:,} could not be written{tried} ({reason}); {state}; make '
        f'room in {self._manager.directory} or repair it, and start the same command again.'
      ) from None
    wait = RETRY_WAITS[self._failures]
    self._failures += 1
    self._due = time.monotonic() + wait
    console.warn(
      f'the checkpoint of step {step:,} could not be written ({reason}); the run continues, and '
      f'saves again in {wait:g} s.'
    )

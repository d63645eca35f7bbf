"""Weights & Biases. Its own settings apply: `wandb login` or WANDB_API_KEY, WANDB_MODE, WANDB_DIR.

The library would also send the command line, paths, the state of the Git repository, the installed
packages, what the program prints, and its own errors. All of that is turned off.
"""

import os
import uuid
from typing import Any

from electra_jax.errors import UserError
from electra_jax.training.trackers.tracker import MetricsLine, Outcome, TrackedRun, Tracker

STEP = 'step'  # metric that others are drawn over: steps that are taken again are not refused
PATIENCE = 30.0  # seconds to wait for the server at the start and at the end
OFFLINE = ('offline', 'dryrun', 'disabled')


class WandbRun(Tracker):
  """A run of Weights & Biases: the project is config.tracking.project."""

  @classmethod
  def check(cls) -> None:
    """Checks that there is a key, or that none is needed.

    Raises:
      UserError: there is none.
    """
    wandb = _wandb()
    offline = os.environ.get('WANDB_MODE') in OFFLINE
    if not offline and not wandb.login(prompt=False, verify=False):
      raise UserError(
        "the tracker 'wandb' of config.trackers has no API key; expected one by `wandb login` or "
        'in WANDB_API_KEY, or WANDB_MODE=offline.'
      )

  def __init__(self, run: TrackedRun) -> None:
    """Begins a run, or continues the one of `run.id`."""
    wandb, tracking = _wandb(), run.tracking
    self.id = run.id or uuid.uuid4().hex[:12]
    self._run: Any = wandb.init(
      project=tracking.project,
      name=tracking.name,
      group=tracking.group or None,
      id=self.id,
      resume='allow',
      config=dict(tracking.fields),
      reinit='create_new',  # runs of this process beside this one are not its concern
      settings=_settings(wandb, run.folder),
    )
    self._run.define_metric('*', step_metric=STEP)
    self.address = self._run.url or f'offline, {self._run.dir}; wandb sync sends it'

  def add(self, line: MetricsLine) -> None:
    """Takes the metrics of a step."""
    self._run.log({**line.values(), STEP: line.step})

  def close(self, outcome: Outcome) -> None:
    """Ends the run; one that will be resumed counts as finished until then."""
    self._run.finish(exit_code=int(outcome == 'failed'))


def _wandb() -> Any:  # noqa: ANN401  a module
  """The library, with its console output and its error reports turned off."""
  os.environ.setdefault('WANDB_SILENT', 'true')
  os.environ.setdefault('WANDB_ERROR_REPORTING', 'false')
  import wandb

  return wandb


def _settings(wandb: Any, folder: str) -> Any:  # noqa: ANN401  not imported at the top
  """Settings that send metrics and the config, and nothing that the library finds by itself."""
  where = {} if 'WANDB_DIR' in os.environ else {'root_dir': folder}
  return wandb.Settings(
    console='off',
    disable_code=True,
    disable_git=True,
    disable_job_creation=True,
    save_code=False,
    silent=True,
    symlink=False,
    init_timeout=PATIENCE,
    finish_timeout=PATIENCE,
    x_disable_machine_info=True,
    x_disable_meta=True,
    x_disable_stats=True,
    x_save_requirements=False,
    **where,
  )

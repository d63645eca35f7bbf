"""MLflow. Its own settings apply: MLFLOW_TRACKING_URI and those of its client.

Runs are made by the client, which adds no tags; the fluent interface would send the
user's name and the path of the program.
"""

import os
import re
from typing import Any

from electra_jax.errors import UserError
from electra_jax.training.trackers.tracker import MetricsLine, Outcome, TrackedRun, Tracker

AT_ONCE = 100  # most parameters of one request
LONGEST = 500  # characters of a parameter's value that every store takes
STATES: dict[Outcome, str] = {'finished': 'FINISHED', 'stopped': 'KILLED', 'failed': 'FAILED'}


class MlflowRun(Tracker):
  """A run of MLflow: the experiment is config.tracking.project."""

  @classmethod
  def check(cls) -> None:
    """Checks that there is an address, and that the installed package can open it.

    Raises:
      UserError: there is none.
    """
    if not os.environ.get('MLFLOW_TRACKING_URI'):
      raise UserError(
        "the tracker 'mlflow' of config.trackers has no address; expected one in "
        'MLFLOW_TRACKING_URI, such as http://HOST:5000 or file:FOLDER.'
      )
    _client(_mlflow())

  def __init__(self, run: TrackedRun) -> None:
    """Begins a run, or continues the one of `run.id`."""
    mlflow, tracking = _mlflow(), run.tracking
    self._entities = mlflow.entities
    self._client = _client(mlflow)
    if run.id and self._exists(mlflow, run.id):
      self.id = run.id
      self._client.update_run(run.id, status='RUNNING')
    else:
      experiment = self._experiment(mlflow, tracking.project)
      tags = {'group': tracking.group} if tracking.group else {}
      self.id = self._client.create_run(experiment, run_name=tracking.name, tags=tags).info.run_id
      items = [(name, str(value)[:LONGEST]) for name, value in tracking.fields.items()]
      parameters = [self._entities.Param(name, value) for name, value in items]
      for first in range(0, len(parameters), AT_ONCE):
        self._client.log_batch(self.id, params=parameters[first : first + AT_ONCE])
    self.address = f'run {self.id} of the experiment {tracking.project}'

  def _exists(self, mlflow: Any, id: str) -> bool:  # noqa: ANN401  a module
    try:
      self._client.get_run(id)
    except mlflow.exceptions.MlflowException as error:
      if error.error_code != 'RESOURCE_DOES_NOT_EXIST':
        raise
      return False
    return True

  def _experiment(self, mlflow: Any, name: str) -> str:  # noqa: ANN401  a module
    """The ID of an experiment, which another run may create at the same time."""
    if not (found := self._client.get_experiment_by_name(name)):
      try:
        return str(self._client.create_experiment(name))
      except mlflow.exceptions.MlflowException as error:
        if error.error_code != 'RESOURCE_ALREADY_EXISTS':
          raise
      found = self._client.get_experiment_by_name(name)
    return str(found.experiment_id)

  def add(self, line: MetricsLine) -> None:
    """Takes the metrics of a step."""
    at = int(line.time * 1000)
    metrics = [
      # Other characters are refused.
      self._entities.Metric(re.sub(r'[^\w\-. /]', '_', name), value, at, line.step)
      for name, value in line.values().items()
    ]
    self._client.log_batch(self.id, metrics=metrics)

  def close(self, outcome: Outcome) -> None:
    """Ends the run."""
    self._client.set_terminated(self.id, STATES[outcome])


def _mlflow() -> Any:  # noqa: ANN401  a module
  """The library, with its telemetry turned off."""
  os.environ.setdefault('MLFLOW_DISABLE_TELEMETRY', 'true')
  os.environ.setdefault('MLFLOW_ALLOW_FILE_STORE', 'true')  # otherwise file: is refused
  import mlflow

  return mlflow


def _client(mlflow: Any) -> Any:  # noqa: ANN401  not imported at the top
  return mlflow.MlflowClient(tracking_uri=os.environ['MLFLOW_TRACKING_URI'])

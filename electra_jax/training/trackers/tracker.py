"""What a tracker is, and what it learns of a run.

A tracker gets numbers: metrics, and the fields of the config that are numbers, switches or names of
closed lists. It gets no text of corpora or examples, and fields that can hold paths, addresses or
names of data only where config.tracking.send_paths asks for them.
"""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from electra_jax import file_access, registry
from electra_jax.config import FinetuningConfig, PretrainingConfig, flat
from electra_jax.config.declarations import Declaration, fields_of
from electra_jax.errors import UserError, missing_package

EXTRA = 'trackers'  # the extra of the package that installs what trackers need

Outcome = Literal['finished', 'stopped', 'failed']


@dataclasses.dataclass(frozen=True)
class MetricsLine:
  """Metrics of a step.

  Attributes:
    kind: 'train', 'heldout' or 'dev'.
    step: steps that were taken.
    metrics: name -> value, None where it is not finite.
    time: when they were logged, in seconds since 1970.
  """

  kind: str
  step: int
  metrics: Mapping[str, float | None]
  time: float

  def values(self) -> dict[str, float]:
    """'<kind>/<name>' -> value of the metrics that are finite."""
    finite = {name: value for name, value in self.metrics.items() if value is not None}
    return {f'{self.kind}/{name}': value for name, value in finite.items()}


@dataclasses.dataclass(frozen=True)
class Tracking:
  """The trackers of a run or trial, and what they learn of it.

  Attributes:
    trackers: their names.
    project: a name for runs that are compared.
    name: of the run or trial.
    group: name that the trials of a run share; '' for a run.
    fields: fields of the config that are sent, by name with dots.
  """

  trackers: tuple[str, ...] = ('tensorboard',)
  project: str = ''
  name: str = ''
  group: str = ''
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TrackedRun:
  """A run, as a tracker opens it.

  Attributes:
    tracking: name and fields of the run.
    folder: a folder of this machine for the tracker's files.
    step: step that the run resumes at; 0 for a new run.
    id: the tracker's name of the run that is resumed; '' for a new one.
  """

  tracking: Tracking
  folder: str
  step: int
  id: str = ''


class Tracker:
  """A tracker, open for one run. Subclasses are the specs of registry.TRACKERS.

  All methods but `check` are called by one thread, which is not that of the training. The first
  exception of a method ends the tracker with a warning, and not the run.

  Attributes:
    writes_files: whether it only appends to files of the run's folder. The thread that writes
      metrics.jsonl then calls it, and a line that a disk refuses (OSError) does not end it.
    id: its name of the run, kept in the run's folder for `TrackedRun.id` when the run resumes; ''
      for none.
    address: where the run can be seen, for the console; '' for none.
  """

  writes_files: ClassVar[bool] = False
  id: str = ''
  address: str = ''

  @classmethod
  def check(cls) -> None:
    """Checks, before a run starts, that the tracker can be used. Connects to nothing.

    Raises:
      UserError: a package or a setting is missing.
    """

  def __init__(self, run: TrackedRun) -> None:
    """Opens the tracker for a run, or for one that is resumed."""

  def add(self, line: MetricsLine) -> None:
    """Takes the metrics of a step. Steps after `TrackedRun.step` may come again."""
    raise NotImplementedError

  def close(self, outcome: Outcome) -> None:
    """Ends the run."""


def check_trackers(names: Sequence[str]) -> None:
  """Checks that the trackers of config.trackers can be used.

  Raises:
    UserError: one is not registered, or a package or a setting that it needs is missing.
  """
  for name in names:
    entry = registry.TRACKERS.entry(name)
    what = f'the tracker {name!r} of config.trackers'
    if entry.package and importlib.util.find_spec(entry.package) is None:
      raise missing_package(what, entry.package, EXTRA)
    try:
      registry.TRACKERS.get(name).check()
    except UserError:
      raise
    except Exception as error:  # of any kind, as a package raises that is not installed well
      raise UserError(
        f'{what} cannot be used ({named_reason(error)}); install the extra {EXTRA}, or leave it '
        'out of config.trackers.'
      ) from None


def named_reason(error: BaseException) -> str:
  """The first line of an error's text, with its type, for a message."""
  text = file_access.reason_text(str(error))
  return f'{type(error).__name__}: {text}' if text else type(error).__name__


#### What is sent ####


def tracking_of(config: PretrainingConfig | FinetuningConfig, trial: str = '') -> Tracking:
  """The trackers of a run.

  Args:
    config: of the run.
    trial: task and number of a trial, such as 'cola, trial 1'; '' for the run itself.
  """
  name = config.tracking.run_name or config.name
  return Tracking(
    tuple(dict.fromkeys(config.trackers)),
    config.tracking.project,
    f'{name}, {trial}' if trial else name,
    name if trial else '',
    sent_fields(config),
  )


def sent_fields(config: PretrainingConfig | FinetuningConfig) -> dict[str, Any]:
  """The fields that a tracker gets, by name with dots: numbers, switches, names of closed lists.

  With config.tracking.send_paths, all fields.
  """
  known, values = fields_of(type(config)), flat(config)
  if config.tracking.send_paths:
    return values
  return {name: v for name, v in values.items() if _is_closed(v, known[name].declaration)}


def _is_closed(value: object, declaration: Declaration) -> bool:
  """Whether a value holds no text but names of closed lists."""
  if isinstance(value, str):
    names = set(declaration.choices).union(*registry.LISTS.values(), ('',))
    return all(part.strip() in names for part in value.split(','))
  if isinstance(value, Mapping):
    return all(_is_closed(item, declaration) for item in value.values())
  if isinstance(value, tuple):
    return all(_is_closed(item, declaration) for item in value)
  return isinstance(value, int | float)

"""Values that change over a run: learning rates, and settings of the objective.

A schedule is a function of the step. Its constants (rates, numbers of steps) are inputs of the
compiled training step, so that another rate or length does not compile another program: the step
calls `schedule(step, inputs)` with `inputs` of `schedule.inputs()`. Without inputs the constants
are Python numbers, as for lines of metrics.

XLA compiles a division by a constant into a product with its float32 reciprocal. The inputs
therefore hold reciprocals, and a step computes bitwise the same as with constants.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Inputs: TypeAlias = Any  # a tree of NumPy scalars and vectors, or of JAX arrays of them


class Schedule(Protocol):
  """A value for each step."""

  def inputs(self) -> Inputs:
    """The constants, as a compiled step takes them."""
    ...

  def __call__(self, step: jax.typing.ArrayLike, inputs: Inputs | None = None) -> jax.Array:
    """The value at a step, float32.

    Args:
      step: number of updates before this one.
      inputs: the constants, of `inputs()`; None for Python numbers.
    """
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class WarmupDecay:
  """Polynomial decay to 0, times a linear warm-up, which starts at 0.

  rate x (1 - t / T)^power x min(1, step / warmup_steps), and 0 past the end. (t, T) is (step,
  steps), as in the original program (power 1), or, with `after_warmup`, (max(0, step -
  warmup_steps), steps - warmup_steps), as in NVIDIA's LAMB recipe (power 0.5; DeepLearningExamples,
  TensorFlow2/LanguageModeling/ELECTRA/optimization.py), where the peak is the rate itself.

  Attributes:
    rate: the learning rate that both factors multiply.
    warmup_steps: less than `steps`; 0 for no warm-up.
    steps: number of updates until the rate is 0.
    power: of the decay; 1 is linear.
    after_warmup: whether the decay starts at the end of the warm-up.
  """

  rate: float
  warmup_steps: int
  steps: int
  power: float = 1.0
  after_warmup: bool = False

  @property
  def _start(self) -> int:
    return self.warmup_steps if self.after_warmup else 0

  def inputs(self) -> dict[str, Inputs]:
    """`rate`, and where they are used `start` and the reciprocals of both lengths; float32."""
    found: dict[str, Inputs] = {
      'rate': np.float32(self.rate),
      'per_step': _reciprocal(self.steps - self._start),
    }
    if self.warmup_steps:
      found['per_warmup_step'] = _reciprocal(self.warmup_steps)
    return found | ({'start': np.float32(self._start)} if self._start else {})

  def __call__(self, step: jax.typing.ArrayLike, inputs: Inputs | None = None) -> jax.Array:
    """The rate at a step, see Schedule."""
    i = inputs or {}
    step = jnp.asarray(step, jnp.float32)
    warmup: Any = 1.0
    if self.warmup_steps:
      warmup = jnp.minimum(1.0, _share(step, self.warmup_steps, i.get('per_warmup_step')))
    start = i.get('start', self._start)
    decayed = jnp.maximum(0.0, step - start) if self._start else step
    share = _share(decayed, self.steps - self._start, i.get('per_step'))
    decay = jnp.maximum(0.0, 1.0 - share)
    decay = decay if self.power == 1 else decay**self.power
    rate: jax.Array = i.get('rate', self.rate) * decay * warmup
    return rate


@dataclasses.dataclass(frozen=True, eq=False)
class Piecewise:
  """Schedules one after another, each from its own step 0.

  Attributes:
    parts: the schedules.
    boundaries: the steps at which the second and each later one starts, ascending.

  Raises:
    ValueError: there is not one boundary between each two schedules, or they do not ascend.
  """

  parts: Sequence[Schedule]
  boundaries: Sequence[int]

  def __post_init__(self) -> None:
    between, given = len(self.parts) - 1, list(self.boundaries)
    if len(given) != between or given != sorted(given):
      raise ValueError(
        f'the boundaries of {len(self.parts)} schedules are {given}; expected {between} ascending '
        'steps.'
      )

  def inputs(self) -> dict[str, list[Any]]:
    """`parts`: of each schedule; `boundaries`: int32."""
    return {
      'parts': [part.inputs() for part in self.parts],
      'boundaries': [np.int32(boundary) for boundary in self.boundaries],
    }

  def __call__(self, step: jax.typing.ArrayLike, inputs: Inputs | None = None) -> jax.Array:
    """The value at a step, see Schedule."""
    constants = inputs['parts'] if inputs else [None] * len(self.parts)
    boundaries = inputs['boundaries'] if inputs else self.boundaries
    value = _at(self.parts[0], step, constants[0])
    for boundary, part, of_part in zip(boundaries, self.parts[1:], constants[1:], strict=True):
      value = jnp.where(step < boundary, value, _at(part, step - boundary, of_part))
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class Approach:
  """From one value to another, linearly or, with `decay`, exponentially.

  With share = step / steps, clipped to [0, 1], the value is start + (end - start) share, or end +
  (start - end) exp(-share / decay). A falling temperature makes the replacements of a frozen
  generator harder to detect over time (Dong et al. 2024, Fast-ELECTRA).

  Attributes:
    start: the first value.
    end: the value that is approached.
    steps: of the run.
    decay: the share of the run in which the distance falls by a factor of e; None: linear.
  """

  start: float
  end: float
  steps: int
  decay: float | None = None

  def inputs(self) -> dict[str, Inputs]:
    """`end`, `distance` to it, and reciprocals; float32."""
    found: dict[str, Inputs] = {
      'end': np.float32(self.end),
      'distance': np.float32(self.start - self.end),
      'per_step': _reciprocal(self.steps),
    }
    return found | ({} if self.decay is None else {'per_decay': _reciprocal(self.decay)})

  def __call__(self, step: jax.typing.ArrayLike, inputs: Inputs | None = None) -> jax.Array:
    """The value at a step, see Schedule."""
    i = inputs or {}
    step = jnp.asarray(step, jnp.float32)
    share = jnp.clip(_share(step, self.steps, i.get('per_step')), 0.0, 1.0)
    if self.decay is None:
      left = 1.0 - share
    else:
      left = jnp.exp(_share(-share, self.decay, i.get('per_decay')))
    distance = i.get('distance', self.start - self.end)
    value: jax.Array = i.get('end', self.end) + distance * left
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
  """Linear between points, constant before the first and after the last.

  Attributes:
    points: (step, value), with ascending steps.
  """

  points: Sequence[tuple[float, float]]

  def inputs(self) -> dict[str, Inputs]:
    """`steps` and `values` of the points, float32 [points]."""
    steps, values = zip(*self.points, strict=True)
    return {'steps': np.asarray(steps, np.float32), 'values': np.asarray(values, np.float32)}

  def __call__(self, step: jax.typing.ArrayLike, inputs: Inputs | None = None) -> jax.Array:
    """The value at a step, see Schedule."""
    i = inputs or self.inputs()
    return jnp.interp(
      jnp.asarray(step, jnp.float32), jnp.asarray(i['steps']), jnp.asarray(i['values'])
    )


def from_form(form: Sequence[Any], steps: int) -> Schedule:
  """The schedule of a form of config.objective.schedules.

  Args:
    form: ('linear', start, end), ('exponential', start, end, decay) or
      ('points', (step, value), ...).
    steps: of the run.
  """
  kind, *numbers = form
  if kind == 'points':
    return Points(numbers)
  start, end, *decay = numbers
  return Approach(start, end, steps, *decay)


def upper_bound(form: Sequence[Any]) -> float:
  """An upper bound on the values of `from_form`."""
  kind, *numbers = form
  values = [value for _, value in numbers] if kind == 'points' else numbers[:2]
  return float(max(values))


def constants(schedules: Mapping[str, Schedule]) -> dict[str, Inputs]:
  """The inputs of several schedules by name, for the `schedules` of a step's batch."""
  return {name: schedule.inputs() for name, schedule in schedules.items()}


def values(
  schedules: Mapping[str, Schedule],
  step: jax.typing.ArrayLike,
  inputs: Mapping[str, Inputs] | None,
) -> dict[str, jax.Array]:
  """The values of several schedules at a step.

  Args:
    schedules: by name.
    step: number of updates before this one.
    inputs: of `constants`, which may have more names; None for Python numbers.
  """
  given = inputs or {}
  return {name: _at(schedule, step, given.get(name)) for name, schedule in schedules.items()}


def _at(schedule: Schedule, step: jax.typing.ArrayLike, inputs: Inputs | None) -> jax.Array:
  # Without inputs, any function of the step is a schedule.
  return schedule(step) if inputs is None else schedule(step, inputs)


def _reciprocal(length: float) -> np.float32:
  """1 / length as XLA folds it: the float32 quotient of float32 numbers."""
  return np.float32(1) / np.float32(length)


def _share(step: jax.Array, length: float, reciprocal: jax.Array | None) -> jax.Array:
  return step / length if reciprocal is None else step * reciprocal

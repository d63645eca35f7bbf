"""How a quantity grows with a size: a power of the size, beside a constant where there is one."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

FLAT = 1.1  # largest value over smallest, up to which a quantity does not grow
SHARE = 0.1  # of the smallest value, from which a constant is fitted
GAIN = 2.0  # by which a constant must reduce the error to be kept
EXPONENTS = np.round(np.arange(-2, 3.501, 0.01), 2)
# Bounds of the exponents that have a name.
NAMED = ((-0.15, 0.15, 'constant'), (0.85, 1.15, 'linear'), (1.85, 2.15, 'quadratic'))
TOLERANCE = 0.15  # of an exponent beyond what is expected; measured ones repeat within it


@dataclasses.dataclass(frozen=True)
class Fit:
  """The law constant + factor * size ** exponent.

  Attributes:
    exponent: of the part that grows.
    factor: of the part that grows.
    constant: 0 where none is needed.
    share: the constant's share of the smallest value.
    error: root of the mean square of relative errors.
  """

  exponent: float
  factor: float
  constant: float
  share: float
  error: float

  def __call__(self, size: float) -> float:
    """The value at a size."""
    return float(self.constant + self.factor * size**self.exponent)


def fit(sizes: Sequence[float], values: Sequence[float]) -> Fit:
  """Fits a law to measured values by least squares of relative errors.

  A constant is part of it only if it is a tenth of the smallest value and halves the error: over
  few points a constant and an exponent can replace each other. Two points give the exponent between
  them.

  Args:
    sizes: positive, ascending, at least two.
    values: positive, one for each.

  Raises:
    ValueError: sizes or values are not as expected.
  """
  x, y = np.asarray(sizes, float), np.asarray(values, float)
  if len(x) < 2 or len(x) != len(y) or (x <= 0).any() or (y <= 0).any() or (np.diff(x) <= 0).any():
    raise ValueError(f'sizes are {sizes} and values {values}; expected ascending, positive ones.')
  if y.max() / y.min() <= FLAT:
    mean = float(y.mean())
    return Fit(0.0, 0.0, mean, 1.0, _error(np.full_like(y, mean), y))
  exponent, intercept = np.polyfit(np.log(x), np.log(y), 1)
  power = Fit(float(exponent), float(math.exp(intercept)), 0.0, 0.0, 0.0)
  power = dataclasses.replace(power, error=_error(np.array([power(s) for s in x]), y))
  if len(x) < 4 or exponent < 0:
    return power
  shifted = min((_with_constant(x, y, p) for p in EXPONENTS if p > 0), key=lambda one: one.error)
  keeps = shifted.share >= SHARE and shifted.error * GAIN <= power.error
  return shifted if keeps else power


def _with_constant(x: np.ndarray, y: np.ndarray, exponent: float) -> Fit:
  """The best law of an exponent, with neither part below zero."""
  columns = np.stack([1 / y, x**exponent / y], 1)
  solution, *_ = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)
  if solution.min() < 0:  # one part is absent
    factors = columns.sum(0) / (columns**2).sum(0)
    errors = [_error(factors[i] * columns[:, i] * y, y) for i in (0, 1)]
    solution = np.where(np.arange(2) == int(np.argmin(errors)), factors, 0)
  constant, factor = map(float, solution)
  found = constant + factor * x**exponent
  return Fit(float(exponent), factor, constant, constant / float(y[0]), _error(found, y))


def _error(found: np.ndarray, y: np.ndarray) -> float:
  return float(np.sqrt(np.mean((found / y - 1) ** 2)))


def verdict(exponent: float, expected: float) -> str:
  """An exponent in words, and whether it is beyond what is expected.

  Args:
    exponent: of a fit.
    expected: the largest that the design explains.
  """
  name = next((name for low, high, name in NAMED if low <= exponent <= high), '')
  if not name:
    below = ((-0.15, 'falling'), (0.85, 'below linear'), (1.85, 'between linear and quadratic'))
    name = next((text for high, text in below if exponent < high), 'above quadratic')
  return f'{name}, **above what is expected**' if exponent > expected + TOLERANCE else name

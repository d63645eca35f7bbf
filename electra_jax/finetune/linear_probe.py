"""Softmax regression on frozen features: of one layer, or of a learned mix of layers.

The objective is convex for one layer. L-BFGS minimizes it from zero, so a probe has no seed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

CHUNK = 8192  # rows of features that a pass over several layers reads at a time


class Fitted(NamedTuple):
  """A fitted probe.

  Attributes:
    kernel: `[features, labels]`.
    bias: `[labels]`.
    layers: weights of the layers, which sum to 1.
    scale: factor of the mix; 1 for a single layer.
    loss: the mean cross-entropy on the training data, in nats.
    converged: whether L-BFGS ended before its last step.
  """

  kernel: np.ndarray
  bias: np.ndarray
  layers: np.ndarray
  scale: float
  loss: float
  converged: bool

  def logits(self, states: Sequence[np.ndarray]) -> np.ndarray:
    """Logits `[rows, labels]`.

    Args:
      states: of each layer with a weight, `[rows, features]`.
    """
    mixed = sum(w * x for w, x in zip(self.layers, states, strict=True))
    found: np.ndarray = self.scale * (mixed @ self.kernel) + self.bias
    return found


def fit(
  states: Sequence[np.ndarray],
  labels: np.ndarray,
  classes: int,
  penalty: float,
  max_steps: int,
  tolerance: float = 1e-8,
) -> Fitted:
  """Fits a probe.

  The loss is the sum of the cross-entropies plus penalty / 2 times the squared norm of the kernel:
  that of scikit-learn's LogisticRegression with C = 1 / penalty, for more than two classes. Several
  layers are mixed as in ELMo (Peters et al. 2018, equation 1): scale * sum of softmax(a)_l h_l,
  with a and the scale learned; their weights start equal.

  Args:
    states: of each layer, float `[rows, features]`; they may be on disk (numpy.memmap).
    labels: int `[rows]`.
    classes: number of labels.
    penalty: of the kernel.
    max_steps: of L-BFGS, at most.
    tolerance: relative change of the loss at which it ends.
  """
  from scipy.optimize import minimize

  problem = _Problem(states, np.asarray(labels), classes, penalty)
  found: Any = minimize(
    problem.loss_and_gradient,
    problem.start(),
    jac=True,
    method='L-BFGS-B',
    options={'maxiter': max_steps, 'maxcor': 20, 'ftol': tolerance, 'gtol': 1e-9},
  )
  kernel, bias, mix, scale = problem.parts(found.x)
  squares = float(np.square(kernel).sum())
  mean = float(found.fun) - penalty * squares / (2 * max(1, len(labels)))
  return Fitted(kernel, bias, _softmax(mix), float(scale), mean, bool(found.success))


class _Problem:
  """The objective of `fit`, divided by the number of rows, and its gradient."""

  def __init__(
    self, states: Sequence[np.ndarray], labels: np.ndarray, classes: int, penalty: float
  ) -> None:
    self._states, self._labels, self._classes, self._penalty = states, labels, classes, penalty
    self._width = states[0].shape[1]
    self._several = len(states) > 1

  def start(self) -> np.ndarray:
    """Zeros, and a scale of 1."""
    start = np.zeros(self._width * self._classes + self._classes + len(self._states) + 1)
    start[-1] = 1.0
    return start

  def parts(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Kernel, bias, logits of the layers, scale."""
    size = self._width * self._classes
    kernel = x[:size].reshape(self._width, self._classes)
    return kernel, x[size : size + self._classes], x[size + self._classes : -1], float(x[-1])

  def loss_and_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
    kernel, bias, mix, scale = self.parts(x)
    weights, dtype = _softmax(mix), self._states[0].dtype
    narrow = kernel.astype(dtype)
    loss, of_bias, of_scale = 0.0, np.zeros_like(bias), 0.0
    of_kernel, of_weights = np.zeros_like(kernel), np.zeros_like(weights)
    rows = len(self._labels)
    step = CHUNK if self._several else rows
    for first in range(0, rows, step):
      parts = [np.asarray(layer[first : first + step]) for layer in self._states]
      mixed = parts[0] if not self._several else np.tensordot(weights.astype(dtype), parts, 1)
      product = mixed @ narrow
      some, errors = _cross_entropy(scale * product + bias, self._labels[first : first + step])
      loss += some
      of_bias += errors.sum(0)
      of_kernel += scale * (mixed.T @ errors.astype(dtype))
      if self._several:
        of_scale += float((errors * product).sum())
        of_mixed = scale * (errors.astype(dtype) @ narrow.T)
        of_weights += [float(np.vdot(part, of_mixed)) for part in parts]
    loss += self._penalty / 2 * float(np.square(kernel).sum())
    of_kernel += self._penalty * kernel
    of_mix = weights * (of_weights - weights @ of_weights)
    gradient = np.concatenate([of_kernel.ravel(), of_bias, of_mix, [of_scale]])
    return loss / rows, gradient / rows


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
  """The sum of the losses, and its gradient for the logits, float64 `[rows, labels]`."""
  shifted = logits.astype(np.float64)
  shifted -= shifted.max(-1, keepdims=True)
  shares = np.exp(shifted)
  totals = shares.sum(-1, keepdims=True)
  index = np.arange(len(labels))
  loss = float((np.log(totals[:, 0]) - shifted[index, labels]).sum())
  shares /= totals
  shares[index, labels] -= 1
  return loss, shares


def _softmax(logits: np.ndarray) -> np.ndarray:
  shares = np.exp(logits - logits.max())
  total: np.ndarray = shares / shares.sum()
  return total

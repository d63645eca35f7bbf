"""A classifier of texts in the interface of scikit-learn."""

import contextlib
import io
import numbers
import os
import tarfile
import tempfile
from collections.abc import Sequence
from typing import Any, Self, TypeAlias

import numpy as np

from electra_jax.errors import UserError
from electra_jax.finetune.finetuned import FineTunedRun, open_finetuned
from electra_jax.python_api import finetune

try:
  from sklearn.base import BaseEstimator, ClassifierMixin
  from sklearn.utils import check_random_state
  from sklearn.utils.validation import check_consistent_length, check_is_fitted
except ImportError as error:
  raise UserError(
    'ElectraClassifier needs scikit-learn, which is not installed; run pip install scikit-learn.'
  ) from error

Texts: TypeAlias = Sequence[str] | Sequence[tuple[str, str]] | np.ndarray


class ElectraClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # no annotations
  """Fine-tunes an encoder on texts and their labels; see `electra_jax.finetune`.

  It can be cloned, used in pipelines and searches, and pickled: a pickle contains the run.

  Attributes:
    classes_: the labels, sorted, `[classes]`.
    result_: of `electra_jax.finetune`.

  Args:
    init: the folder of a pretraining run, hf:... or tf:...
    epochs: passes over the data; 0 for the task's default.
    learning_rate: 0 for the published one by the width of the encoder.
    batch_size: rows per step.
    max_length: tokens per row at most; 0 for the task's default.
    dev_fraction: part of the texts that `fit` evaluates on and does not train on.
    random_state: seed of the run and of the choice of these texts: a number, a RandomState, or None
      for a random one.
    config: further config fields, such as {'head.pooling': 'mean'}; None for none.
    workdir: the run's folder, which holds one fit; None for a temporary one, which cross-validation
      and searches require.
    verbose: whether `fit` prints what `--mode=finetune` prints.
  """

  def __init__(
    self,
    init: str | os.PathLike[str] | None = None,
    *,
    epochs: float = 0.0,
    learning_rate: float = 0.0,
    batch_size: int = 32,
    max_length: int = 0,
    dev_fraction: float = 0.1,
    random_state: int | np.random.RandomState | None = 0,
    config: dict[str, Any] | None = None,
    workdir: str | os.PathLike[str] | None = None,
    verbose: bool = False,
  ) -> None:
    self.init = init
    self.epochs = epochs
    self.learning_rate = learning_rate
    self.batch_size = batch_size
    self.max_length = max_length
    self.dev_fraction = dev_fraction
    self.random_state = random_state
    self.config = config
    self.workdir = workdir
    self.verbose = verbose

  def fit(self, X: Texts, y: Sequence[Any] | np.ndarray) -> Self:
    """Fine-tunes the encoder.

    Args:
      X: texts, or pairs of texts, `[texts]`.
      y: their labels, of any type that sorts, `[texts]`.

    Raises:
      electra_jax.errors.UserError: a parameter or the data is wrong.
    """
    if self.init is None:
      raise UserError(
        'init is None; expected the folder of a pretraining run, or hf:... or tf:... weights.'
      )
    if not 0 <= self.dev_fraction < 1:
      raise UserError(f'dev_fraction is {self.dev_fraction}; expected at least 0 and below 1.')
    items, labels = _items(X), _labels(y)
    check_consistent_length(items, labels)
    try:
      self.classes_, targets = np.unique(labels, return_inverse=True)
    except TypeError:
      raise UserError('y has labels of types that do not sort; expected a single type.') from None
    if len(self.classes_) < 2:
      raise UserError(f'y has {len(self.classes_)} class; expected at least two.')
    rows = [_labeled(item, name) for item, name in zip(items, self._names[targets], strict=True)]
    seed = self.random_state
    if not isinstance(seed, numbers.Integral):
      seed = check_random_state(seed).randint(2**31 - 1)
    dev = _held_out(targets, self.dev_fraction, int(seed))
    train = np.setdiff1d(np.arange(len(rows)), dev)
    fields = {
      'epochs': float(self.epochs),
      'optimizer.learning_rate': float(self.learning_rate),
      'batch_size': int(self.batch_size),
      'max_length': int(self.max_length),
      'seed': int(seed),
      'num_trials': 1,
    }
    self._run: FineTunedRun | None = None
    self._temporary: tempfile.TemporaryDirectory[str] | None = None
    if self.workdir is None:
      self._temporary = tempfile.TemporaryDirectory(prefix='electra_jax_')
    shown = contextlib.nullcontext() if self.verbose else contextlib.redirect_stdout(io.StringIO())
    with shown:
      self.result_ = finetune(
        self.init,
        self._folder,
        train=[rows[i] for i in train],
        dev=[rows[i] for i in (dev if len(dev) else train[:1])],
        config=fields | (self.config or {}),
      )
    return self

  def predict_proba(self, X: Texts) -> np.ndarray:
    """Probabilities of the classes, float64 `[texts, classes]`.

    Args:
      X: texts, or pairs of texts.
    """
    check_is_fitted(self, 'classes_')
    found: list[Any] = self._opened.predict(_items(X))
    rows = [[one.probabilities[name] for name in self._names] for one in found]
    return np.array(rows, np.float64).reshape(len(found), len(self.classes_))

  def predict(self, X: Texts) -> np.ndarray:
    """The likeliest class of each text, `[texts]`.

    Args:
      X: texts, or pairs of texts.
    """
    probabilities = self.predict_proba(X)
    likeliest: np.ndarray = self.classes_[probabilities.argmax(1)]
    return likeliest

  @property
  def _names(self) -> np.ndarray:
    """The labels of the run: the classes where they are plain strings, else their numbers."""
    plain = all(isinstance(x, str) and x and x == x.strip() for x in self.classes_.tolist())
    if plain:
      return self.classes_.astype(object)
    width = len(str(len(self.classes_)))
    return np.array([f'{i:0{width}d}' for i in range(len(self.classes_))], object)

  @property
  def _folder(self) -> str:
    return self._temporary.name if self._temporary else os.fspath(self.workdir or '')

  @property
  def _opened(self) -> FineTunedRun:
    if self._run is None:
      self._run = open_finetuned(self._folder)
    return self._run

  def __getstate__(self) -> dict[str, Any]:
    state = dict(super().__getstate__())
    state.pop('_run', None)
    if '_temporary' in state:
      content = io.BytesIO()
      with tarfile.open(fileobj=content, mode='w') as archive:
        archive.add(self._folder, '.')
      state['_temporary'] = content.getvalue()
    return state

  def __setstate__(self, state: dict[str, Any]) -> None:
    content = state.pop('_temporary', None)
    super().__setstate__(state)
    if content is not None:
      self._run = None
      self._temporary = tempfile.TemporaryDirectory(prefix='electra_jax_')
      with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(self._temporary.name, filter='data')

  def __sklearn_tags__(self) -> Any:  # noqa: ANN401 - scikit-learn has no annotations
    tags = super().__sklearn_tags__()
    tags.input_tags.string = True
    tags.input_tags.two_d_array = False
    tags.input_tags.one_d_array = True
    return tags


def _items(texts: Texts) -> list[Any]:
  """Texts or pairs as a list. Rows of an array or data frame with two columns are pairs."""
  if isinstance(texts, str):
    raise UserError('X is a single string; expected a list of texts, or of pairs of texts.')
  if len(getattr(texts, 'shape', ())) == 2:  # iterating over a data frame would give its columns
    table = np.asarray(texts, object)
    texts = table[:, 0] if table.shape[1:] == (1,) else table
  items: list[Any] = []
  for number, item in enumerate(texts, 1):
    pair = item if isinstance(item, str | tuple) else tuple(np.atleast_1d(np.asarray(item, object)))
    if not isinstance(pair, str) and (len(pair) != 2 or not all(isinstance(x, str) for x in pair)):
      raise UserError(f'text {number} of X is {item!r}; expected a string, or a pair of strings.')
    items.append(pair)
  return items


def _labels(y: Sequence[Any] | np.ndarray) -> np.ndarray:
  """The labels as an array `[texts]`.

  Raises:
    UserError: one is missing, or a text has several.
  """
  labels = np.asarray(y)
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.ndim != 1:
    shape = 'no list' if labels.ndim == 0 else f'an array of the shape {labels.shape}'
    raise UserError(
      f"y is {shape}; expected a label per text (several labels per text: the task 'multilabel' of "
      'electra_jax.finetune).'
    )
  for number, label in enumerate(labels.tolist(), 1):
    if label is None or type(label).__name__ in ('NAType', 'NaTType') or label != label:
      raise UserError(f'label {number} of y is {label}; expected none to be missing.')
  return labels


def _labeled(item: str | tuple[str, str], label: str) -> dict[str, str]:
  if isinstance(item, str):
    return {'text': item, 'label': label}
  first, second = item
  return {'text': first, 'pair': second, 'label': label}


def _held_out(targets: np.ndarray, fraction: float, seed: int) -> np.ndarray:
  """Indices of the same part of each class, rounded down, so that training has every class."""
  rng = np.random.default_rng(seed)
  found: list[np.ndarray] = []
  for value in np.unique(targets):
    mine = rng.permutation(np.flatnonzero(targets == value))
    found.append(mine[: int(len(mine) * fraction)])
  return np.sort(np.concatenate(found))

"""The classifier for scikit-learn follows its interface; docs/python.md fits one."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks

from electra_jax import ElectraClassifier, estimator
from electra_jax.errors import UserError

# Those that fit no arrays of numbers.
CHECKS = (
  'cloneable',
  'get_params_invariance',
  'mixin_order',
  'no_attributes_set_in_init',
  'parameters_default_constructible',
  'repr',
  'set_params',
  'tags_renamed',
  'valid_tag_types',
)


@pytest.mark.parametrize('name', CHECKS)
def test_the_checks_of_scikit_learn_that_apply_to_text_pass(name):
  found = next(
    check
    for full in (f'check_{name}', f'check_estimator_{name}', f'check_estimators_{name}')
    if (check := getattr(estimator_checks, full, None))
  )
  found('ElectraClassifier', ElectraClassifier())


def test_the_check_of_an_estimator_passes():
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # it warns that its other checks need arrays of numbers
    estimator_checks.check_estimator(ElectraClassifier())


def test_parameters_are_kept_as_given_and_cloned():
  made = ElectraClassifier('runs/mini', epochs=2.0, config={'head.pooling': 'mean'})
  assert clone(made).get_params() == made.get_params()
  assert made.set_params(epochs=1.0).epochs == 1.0


def test_held_out_texts_are_the_same_part_of_each_class():
  targets = np.array([0] * 30 + [1] * 12 + [2] * 3)
  found = estimator._held_out(targets, 0.1, 0)
  assert np.bincount(targets[found], minlength=3).tolist() == [3, 1, 0]
  assert not np.array_equal(found, estimator._held_out(targets, 0.1, 1))
  assert len(estimator._held_out(targets, 0.0, 0)) == 0


@pytest.mark.parametrize(
  'labels, names',
  [
    (['b', 'a', 'b'], ['a', 'b']),
    ([3, -1, 3], ['0', '1']),
    ([True, False, True], ['0', '1']),
    ([' a', 'a', 'a'], ['0', '1']),
  ],
)
def test_labels_of_any_type_have_names_that_sort_like_them(labels, names):
  made = ElectraClassifier()
  made.classes_ = np.unique(labels)
  assert made._names.tolist() == names == sorted(names)


@pytest.fixture
def calls(monkeypatch):
  """The keyword arguments of `electra_jax.finetune`, which does nothing."""
  found = []
  monkeypatch.setattr(estimator, 'finetune', lambda *_, **given: found.append(given))
  return found


class Frame:
  """The part of a data frame that is used; iterating over one gives the names of its columns."""

  def __init__(self, *columns):
    self._values = np.array(columns, object).T
    self.shape = self._values.shape

  def __iter__(self):
    return iter([f'column {i}' for i in range(self.shape[1])])

  def __array__(self, dtype=None, copy=None):
    return self._values


@pytest.mark.parametrize(
  'texts, expected',
  [
    (Frame(['a', 'b']), {'text': 'a'}),
    (np.array([['a'], ['b']]), {'text': 'a'}),
    (Frame(['a', 'b'], ['c', 'd']), {'text': 'a', 'pair': 'c'}),
    (np.array([['a', 'c'], ['b', 'd']]), {'text': 'a', 'pair': 'c'}),
  ],
)
def test_columns_of_frames_and_arrays_are_texts_or_pairs(calls, texts, expected):
  ElectraClassifier('runs/mini', dev_fraction=0).fit(texts, np.array([['y'], ['n']]))
  assert calls[0]['train'][0] == expected | {'label': 'y'} and len(calls[0]['train']) == 2


def test_parameters_may_be_numbers_of_numpy_and_seeds_those_of_scikit_learn(calls):
  for seed in (np.int64(3), np.random.RandomState(0), None):
    made = ElectraClassifier('runs/mini', batch_size=np.int64(8), random_state=seed)
    made.fit(['a', 'b'], ['x', 'y'])
    config = calls[-1]['config']
    assert config['batch_size'] == 8 and type(config['batch_size']) is type(config['seed']) is int
  assert calls[0]['config']['seed'] == 3


@pytest.mark.parametrize(
  'texts, labels, message',
  [
    (['a', 'b'], ['x', None], 'label 2 of y is None; expected none to be missing'),
    (['a', 'b'], [np.nan, 1.0], 'label 1 of y is nan'),
    (['a', 'b'], np.array([1, 'x'], object), 'y has labels of types that do not sort'),
    (['a', 'b'], None, 'y is no list; expected a label per text'),
    (
      ['a', 'b'],
      [[0, 1], [1, 0]],
      r'y is an array of the shape \(2, 2\); expected a label per text',
    ),
    (Frame(['a', 'b'], ['c', 'd'], ['e', 'f']), ['x', 'y'], 'text 1 of X'),
    ('a text', ['a'], 'X is a single string'),
    (['a', 'b'], ['x', 'x'], 'y has 1 class; expected at least two'),
    ([1, 2], ['x', 'y'], 'text 1 of X is 1; expected a string'),
    ([('a', 'b', 'c'), 'd'], ['x', 'y'], 'text 1 of X'),
  ],
)
def test_mistakes_are_one_sentence(texts, labels, message):
  with pytest.raises(UserError, match=message):
    ElectraClassifier('runs/mini').fit(texts, labels)


@pytest.mark.parametrize('fraction', [-0.1, 1.0])
def test_a_part_of_the_texts_remains_for_training(fraction):
  with pytest.raises(UserError, match='dev_fraction is .*; expected at least 0 and below 1'):
    ElectraClassifier('runs/mini', dev_fraction=fraction).fit(['a', 'b'], ['x', 'y'])


def test_without_an_encoder_or_a_fit_nothing_is_predicted():
  with pytest.raises(UserError, match='init is None; expected the folder of a pretraining run'):
    ElectraClassifier().fit(['a', 'b'], ['x', 'y'])
  with pytest.raises(NotFittedError):
    ElectraClassifier('runs/mini').predict(['a'])

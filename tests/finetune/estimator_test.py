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


@pytest.mark.parametrize(
  'texts, labels, message',
  [
    ('a text', ['a'], 'X is a single string'),
    (['a', 'b'], ['x', 'x'], 'y has 1 class; expected at least two'),
    ([1, 2], ['x', 'y'], 'text 1 of X is 1; expected a string'),
    ([('a', 'b', 'c'), 'd'], ['x', 'y'], 'text 1 of X'),
  ],
)
def test_mistakes_are_one_sentence(texts, labels, message):
  with pytest.raises(UserError, match=message):
    ElectraClassifier('runs/mini').fit(texts, labels)


def test_without_an_encoder_or_a_fit_nothing_is_predicted():
  with pytest.raises(UserError, match='init is None; expected the folder of a pretraining run'):
    ElectraClassifier().fit(['a', 'b'], ['x', 'y'])
  with pytest.raises(NotFittedError):
    ElectraClassifier('runs/mini').predict(['a'])

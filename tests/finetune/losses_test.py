"""Losses of classification equal those of PyTorch: class weights, label smoothing, multi-label."""

import jax
import numpy as np
import pytest
import sklearn.utils.class_weight
import torch
from torch.nn import functional

from electra_jax.errors import UserError
from electra_jax.finetune import losses, task_program
from electra_jax.finetune.losses import LossSettings

ROWS, LABELS = 6, 4


def batch(seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.standard_normal((ROWS, LABELS)).astype(np.float32)
  several = (rng.random((ROWS, LABELS)) < 0.4).astype(np.float32)
  several[1] = np.nan
  label = rng.integers(0, LABELS, ROWS)
  label[1] = -1
  weights = np.array([1, 1, 1, 0, 1, 1], np.float32)
  return {'logits': logits}, {'label': label, 'labels': several, 'weights': weights}


REAL = [0, 2, 4, 5]  # rows with a target that are no padding


@pytest.mark.parametrize('weights', [(), (0.5, 2.0, 1.0, 3.0)])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_class_weights_and_label_smoothing_equal_pytorch(weights, smoothing):
  outputs, targets = batch()
  settings = LossSettings(label_smoothing=smoothing, class_weights=weights)
  total, count, sums = losses.head_loss('classification', outputs, targets, settings)
  theirs = functional.cross_entropy(
    torch.tensor(outputs['logits'][REAL]),
    torch.tensor(targets['label'][REAL]),
    weight=torch.tensor(weights) if weights else None,
    label_smoothing=smoothing,
  )
  np.testing.assert_allclose(total / count, theirs.item(), rtol=1e-6)
  assert count == losses.loss_denominator('classification', targets, settings)
  assert sums['count'] == len(REAL) and ('loss_weight' in sums) == bool(weights)


def test_the_multi_label_loss_equals_pytorch():
  outputs, targets = batch()
  total, count, sums = losses.head_loss('multilabel', outputs, targets)
  theirs = functional.binary_cross_entropy_with_logits(
    torch.tensor(outputs['logits'][REAL]), torch.tensor(targets['labels'][REAL])
  )
  np.testing.assert_allclose(total / count, theirs.item(), rtol=1e-6)
  right = ((outputs['logits'] > 0) == (targets['labels'] > 0.5)).all(-1)[REAL].sum()
  assert (count, sums['correct']) == (len(REAL), right)


@pytest.mark.parametrize('kind', ['classification', 'multilabel'])
def test_rows_without_a_target_have_no_gradient(kind):
  outputs, targets = batch()
  settings = LossSettings(label_smoothing=0.1, class_weights=(1.0, 2.0, 3.0, 4.0))
  settings = settings if kind == 'classification' else losses.DEFAULTS
  gradient = jax.grad(lambda o: losses.head_loss(kind, o, targets, settings)[0])(outputs)['logits']
  assert np.isfinite(gradient).all() and not np.asarray(gradient)[[1, 3]].any()
  assert np.abs(gradient)[REAL].min(-1).all()


def test_balanced_class_weights_equal_scikit_learn():
  labels = [0] * 7 + [1] * 2 + [2] * 3
  ours = task_program.class_weights('balanced', ('a', 'b', 'c'), np.bincount(labels))
  theirs = sklearn.utils.class_weight.compute_class_weight(
    'balanced', classes=np.arange(3), y=np.array(labels)
  )
  np.testing.assert_allclose(ours, theirs)


def test_class_weights_are_given_by_name():
  counts = np.array([1, 1, 0])
  assert task_program.class_weights('b=2.5, a=1', ('a', 'b', 'c'), counts) == (1.0, 2.5, 1.0)
  for text, message in (
    ('balanced', "label 'c' has no training examples"),
    ('b', "class_weights has 'b'; expected balanced"),
    ('x=1', "class_weights has 'x=1'"),
    ('a=0', "class_weights has 'a=0'"),
    ('a=nan', "class_weights has 'a=nan'"),
  ):
    with pytest.raises(UserError, match=message):
      task_program.class_weights(text, ('a', 'b', 'c'), counts)

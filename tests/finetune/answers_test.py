"""How much answers differ is counted over what has a target, for each kind of head."""

import numpy as np
import pytest

from electra_jax.finetune.answers import all_the_same, answer_statistics
from electra_jax.finetune.tasks.task import Features


def features(**targets) -> Features:
  rows = len(next(iter(targets.values())))
  ids = [np.zeros(3, np.int32)] * rows
  return Features(ids, targets, np.arange(rows, dtype=np.int32), [None] * rows)


def test_of_classification():
  labels = np.array([0, 1, 1, -1, 0, 1])
  logits = np.eye(2)[[1, 1, 1, 0, 1, 1]]
  found = answer_statistics('classification', features(label=labels), {'logits': logits})
  assert found == {'same_answer': 1.0, 'same_target': 0.6} and all_the_same(found)
  found = answer_statistics(
    'classification', features(label=labels), {'logits': np.eye(2)[[1, 0, 1, 0, 1, 1]]}
  )
  assert found['same_answer'] == 0.8 and not all_the_same(found)


def test_of_regression():
  values = np.array([0.0, 0.5, np.nan, 1.0], np.float32)
  found = answer_statistics(
    'regression', features(value=values), {'value': np.array([0.5, 0.501, 9.0, 0.5])}
  )
  assert found['answer_deviation'] == pytest.approx(0.00115, rel=0.01) and all_the_same(found)


def test_of_tagging():
  tags = [np.array([-1, 0, 0, 2]), np.array([-1, 1, -1, 0])]
  logits = [np.eye(3)[[2, 0, 0, 0]], np.eye(3)[[1, 0, 2, 0]]]
  found = answer_statistics('tagging', features(tags=tags), {'logits': logits})
  assert found == {'same_answer': 1.0, 'same_target': 0.6}


def test_of_spans():
  targets = {'start': [3, 0, 5], 'end': [4, 0, 5], 'impossible': [0.0, 1.0, 0.0]}
  outputs = {
    'start_index': np.array([[3, 1], [3, 1], [5, 1]]),
    'end_index': np.array([[[4], [0]], [[4], [0]], [[5], [0]]]),
    'impossible': np.array([-1.0, -2.0, 3.0]),
  }
  made = features(**{name: np.array(x) for name, x in targets.items()})
  found = answer_statistics('span', made, outputs)
  assert found == pytest.approx({'same_answer': 2 / 3, 'same_target': 1 / 3})


def test_nothing_is_known_without_targets_that_differ():
  for labels in ([], [-1, -1], [1, 1]):
    made = features(label=np.array(labels))
    logits = np.ones((len(labels), 2))
    assert answer_statistics('classification', made, {'logits': logits}) == {}
  assert all_the_same({}) is None

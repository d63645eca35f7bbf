"""However many micro-batches: the same update."""

import jax
import numpy as np
import pytest
from conftest import same_training, train_steps


def test_one_micro_batch_and_four_train_alike():
  # Of the modern family the same, over eight devices, stands in training/sharding_invariance_test.py.
  same_training(
    train_steps('electra', devices=1, micro_batches=4),
    train_steps('electra', devices=1, micro_batches=1),
  )


def test_the_sums_are_those_of_the_batch():
  _, _, every = train_steps('electra', devices=1, micro_batches=4)
  for sums in every:
    assert sums['steps'] == 1
    assert sums['masked'] > 16 and sums['scores'].sum() > 16 * 16


def test_a_difference_in_training_is_noticed():
  before, state, every = train_steps('electra', devices=1, micro_batches=1)
  nudged = jax.tree.map(np.array, state.params)
  nudged['generator']['layers']['value']['kernel'][1, 3, 5] += 1e-4
  for other in ((before, state._replace(params=nudged), every), (before, state, every[::-1])):
    with pytest.raises(AssertionError):
      same_training(other, (before, state, every))

"""The update does not depend on the number of micro-batches."""

import jax
import numpy as np
import pytest
from conftest import same_training, train_steps


def test_one_and_four_micro_batches_train_alike():
  # sharding_invariance_test.py checks the modern family, on eight devices.
  same_training(
    train_steps('electra', devices=1, micro_batches=4),
    train_steps('electra', devices=1, micro_batches=1),
  )


def test_sums_cover_the_whole_batch():
  _, _, every = train_steps('electra', devices=1, micro_batches=4)
  for sums in every:
    assert sums['steps'] == 1
    assert sums['masked'] > 16 and sums['scores'].sum() > 16 * 16


def test_the_comparison_detects_a_difference_in_training():
  before, state, every = train_steps('electra', devices=1, micro_batches=1)
  nudged = jax.tree.map(np.array, state.params)
  nudged['generator']['layers']['value']['kernel'][1, 3, 5] += 1e-4
  for other in ((before, state._replace(params=nudged), every), (before, state, every[::-1])):
    with pytest.raises(AssertionError):
      same_training(other, (before, state, every))

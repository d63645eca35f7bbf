"""Documents packed into one row are independent, bit for bit."""

import jax
import numpy as np
import pytest
from conftest import CLS, MASK, PAD, SEP, random_params, tiny_electra

from electra_jax.model.encoder import packed_inputs

LENGTH, VOCAB = 32, 50


def row_of(*pieces):
  ids = np.concatenate([[CLS, *piece, SEP] for piece in pieces])
  return np.concatenate([ids, np.full(LENGTH - len(ids), PAD)])[None].astype(np.int32)


@pytest.mark.parametrize('family', ['electra', 'modern'])
def test_changing_one_document_does_not_change_the_outputs_of_others(family):
  model = tiny_electra(family=family, vocab_size=VOCAB)
  params = random_params(model)
  run = jax.jit(
    lambda params, row: model.apply(
      {'params': params}, packed_inputs(row, PAD, CLS, SEP), method='hidden_states'
    )
  )
  rng = np.random.default_rng(0)
  first, second, third = (rng.integers(MASK + 1, VOCAB, n) for n in (7, 9, 6))
  before = np.asarray(run(params, row_of(first, second, third)))[0]
  for place in range(len(second)):
    other = second.copy()
    other[place] = MASK + 1 + (other[place] - MASK) % (VOCAB - MASK - 1)
    after = np.asarray(run(params, row_of(first, other, third)))[0]
    own = slice(len(first) + 2, len(first) + len(second) + 4)
    assert np.array_equal(np.delete(after, np.r_[own], 0), np.delete(before, np.r_[own], 0))
    assert not np.array_equal(after[own], before[own]), 'the document itself does see the change'


def test_gradients_do_not_cross_documents():
  model = tiny_electra(vocab_size=VOCAB)
  params = random_params(model)
  rng = np.random.default_rng(1)
  first, second = (
    np.arange(MASK + 1, MASK + 8),
    np.arange(MASK + 10, MASK + 18),
  )  # no word in common

  def loss(params):
    hidden = model.apply(
      {'params': params},
      packed_inputs(row_of(first, second), PAD, CLS, SEP),
      method='hidden_states',
    )
    return (
      hidden[0, : len(first) + 2] * rng.standard_normal(hidden.shape[-1]).astype(np.float32)
    ).sum()

  words = np.asarray(jax.jit(jax.grad(loss))(params)['embeddings']['word'])
  assert np.abs(words[first]).max(axis=1).all()
  assert not words[second].any()


def test_types_and_positions_restart_in_each_document():
  pair = [CLS, 10, 11, SEP, 12, SEP]
  row = np.array([[*pair, CLS, 13, SEP, *pair, PAD, PAD]], np.int32)
  inputs = packed_inputs(row, PAD, CLS, SEP)
  assert inputs.type_ids[0].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0]
  assert inputs.segment_ids[0].tolist() == [1] * 6 + [2] * 3 + [3] * 6 + [0, 0]
  assert inputs.positions[0].tolist() == [*range(6), *range(3), *range(6), 0, 0]

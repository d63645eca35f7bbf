"""The compiled step has no array of batch x length x vocabulary elements.

Logits exist only at masked positions. Electric and all_tokens_mlm score every position, in chunks.
training/sharding_invariance_test.py checks the steps of several devices, which it compiles.
"""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import adamw, tiny_electra

from electra_jax import registry
from electra_jax.model.electra import Electra
from electra_jax.model.randomness import row_keys
from electra_jax.pretrain import pretrain_step
from electra_jax.pretrain.objectives import chunked, electric
from electra_jax.pretrain.objectives.parts import LossContext
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.training import partitioning

# Other arrays are smaller: tables have 2,048 rows of 16, logits 4 x 9 x 2,048 elements.
BATCH = 4
LENGTH = 64
VOCAB = 2000
SLOTS = 9


class ScoresEveryPosition(Electra):
  """A wrong model: it computes logits at all positions, and then takes the masked ones."""

  def generator_logits(self, inputs, positions, keys=None):
    everywhere = jnp.broadcast_to(jnp.arange(inputs.token_ids.shape[1]), inputs.token_ids.shape)
    return jnp.take_along_axis(
      super().generator_logits(inputs, everywhere, keys), positions[:, :, None], axis=1
    )


def largest_array(compiled) -> int:
  """Elements of the largest array of a compiled program, including temporaries in fusions."""
  shapes = re.findall(r'\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]', compiled.as_text())
  assert len(shapes) > 1000
  return max(math.prod(map(int, shape.split(','))) for shape in shapes)


def towers(kind, family, name):
  """The model, the objective and its settings."""
  objective = registry.OBJECTIVES.get(name)
  model = tiny_electra(family, dropout=0.1, vocab_size=VOCAB, vocab_multiple=128)
  model = kind(
    model.generator_config,
    model.discriminator_config,
    heads=objective.heads,
    two_tower=objective.two_tower_generator,
  )
  return model, objective, Settings(name=name, max_predictions=SLOTS)


def train(kind, family):
  model, objective, settings = towers(kind, family, 'electra')
  optimizer = adamw(lambda step: 1e-3)
  layout = partitioning.make_layout(devices=jax.devices()[:1])
  shapes, shardings = pretrain_step.state_shardings(model, optimizer, LENGTH, layout)
  computation = pretrain_step.Computation(model, objective, settings, seed=0)
  train_step = pretrain_step.make_train_step(computation, optimizer)
  batch = {'token_ids': jax.ShapeDtypeStruct((BATCH, LENGTH), np.int32)}
  return pretrain_step.jit_train_step(train_step, shardings, layout).lower(shapes, batch).compile()


def evaluate(kind, family, name='electra'):
  model, objective, settings = towers(kind, family, name)
  params = jax.eval_shape(lambda: nn.unbox(pretrain_step.init_params(model, 0, LENGTH)))
  ids = jax.ShapeDtypeStruct((BATCH, LENGTH), np.int32)
  eval_step = pretrain_step.make_eval_step(model, objective, settings, seed=0)
  batch = {'token_ids': ids, 'rows': jax.ShapeDtypeStruct((BATCH,), np.int32)}
  return jax.jit(eval_step).lower(params, batch).compile()


def differentiate(kind, family, name):
  """Loss and gradients, without an update."""
  model, objective, settings = towers(kind, family, name)
  params = jax.eval_shape(lambda: nn.unbox(pretrain_step.init_params(model, 0, LENGTH)))

  def gradients(params, token_ids):
    batch = objective.examples(settings, token_ids, row_keys(0, 0, jnp.arange(BATCH)))
    counts = objective.counts(settings, batch)
    context = LossContext(settings, model, batch, counts, train=True)
    return jax.grad(lambda params: objective.loss(params, context)[0])(params)

  return jax.jit(gradients).lower(params, jax.ShapeDtypeStruct((BATCH, LENGTH), np.int32)).compile()


@pytest.mark.parametrize('program, family', [(train, 'electra'), (evaluate, 'modern')])
def test_no_array_of_batch_times_length_times_vocabulary(program, family):
  assert BATCH * SLOTS * VOCAB <= largest_array(program(Electra, family)) < BATCH * LENGTH * VOCAB


@pytest.mark.parametrize(
  'name', ['electric', pytest.param('all_tokens_mlm', marks=pytest.mark.long)]
)
def test_gradients_of_objectives_that_score_every_position_have_none_either(name):
  assert (
    BATCH * SLOTS * VOCAB
    <= largest_array(differentiate(Electra, 'electra', name))
    < BATCH * LENGTH * VOCAB
  )


def test_such_an_array_is_found_in_a_wrong_model():
  assert largest_array(evaluate(ScoresEveryPosition, 'electra')) >= BATCH * LENGTH * VOCAB


def test_such_an_array_is_found_without_chunks(monkeypatch):
  def whole(logits_of, hidden, token_ids, chunk):
    return jnp.take_along_axis(jax.nn.log_softmax(logits_of(hidden)), token_ids, axis=-1)

  assert electric.token_log_probabilities is chunked.token_log_probabilities
  monkeypatch.setattr(electric, 'token_log_probabilities', whole)
  assert largest_array(evaluate(Electra, 'electra', 'electric')) >= BATCH * LENGTH * VOCAB

"""Counted FLOPs equal XLA's count of the step, and in the paper's convention those of the paper."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax import registry
from electra_jax.model.config import EncoderConfig, generator_config
from electra_jax.model.electra import Electra
from electra_jax.model.randomness import row_keys
from electra_jax.pretrain.objectives.electra import OBJECTIVE
from electra_jax.pretrain.objectives.parts import LossContext
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.pretrain.pretrain_step import init_params
from electra_jax.training import flops


def counted_by_xla(settings, model, batch, length):
  """XLA's count for loss and gradients, before optimization; it counts a loop once."""
  objective = registry.OBJECTIVES.get(settings.name)
  params = jax.eval_shape(lambda: nn.unbox(init_params(model, 0, length)))

  def gradients(params, token_ids):
    examples = objective.examples(settings, token_ids, row_keys(0, 0, jnp.arange(batch)))
    counts = objective.counts(settings, examples)

    context = LossContext(settings, model, examples, counts, train=True)
    return jax.grad(lambda params: objective.loss(params, context), has_aux=True)(params)

  lowered = jax.jit(gradients).lower(params, jax.ShapeDtypeStruct((batch, length), np.int32))
  return lowered.cost_analysis()['flops']


@pytest.mark.parametrize(
  'name, family, embedding_size',
  [
    *((name, 'modern', 128) for name in registry.OBJECTIVES),
    ('electra', 'electra', 128),
    ('electra', 'electra', 512),
    ('electra', 'modern', 512),
    ('electric', 'electra', 512),
    ('electra', 'deberta-v2', 512),
    ('electra', 'bert', 512),
  ],
)
def test_model_flops_equal_the_count_of_xla(name, family, embedding_size):
  layers, length = 2, 128
  objective = registry.OBJECTIVES.get(name)
  discriminator = EncoderConfig(
    family=family,
    vocab_size=4096,
    hidden_size=512,
    embedding_size=embedding_size,
    num_layers=layers,
    num_heads=4,
    intermediate_size=2048,
    dropout=0.0,
    attention_dropout=0.0,
    scan_unroll=layers,
  )
  generator = discriminator if objective.one_tower else generator_config(discriminator, 0.5, 1.0)
  model = Electra(
    generator,
    discriminator,
    sharing='all' if objective.one_tower else 'embeddings',
    heads=objective.heads,
    two_tower=objective.two_tower_generator,
  )
  # Predictions at every position are a loop over chunks. Here it has one chunk, whose logits the
  # backward pass recomputes.
  every = name in ('all_tokens_mlm', 'electric')
  settings = Settings(name=name, max_predictions=length if every else 19)
  ours = objective.step_flops(settings, model, (4, length))
  head = discriminator if name == 'all_tokens_mlm' else generator
  width = head.hidden_size * (2 if name == 'electric' else 1)
  recomputed = 4 * 2 * length * head.embedding_size * (width + head.vocab_size) if every else 0
  assert ours + recomputed == pytest.approx(
    counted_by_xla(settings, model, batch=4, length=length), rel=0.05
  )


@pytest.mark.parametrize(
  'sizes, fraction, shape, predictions, steps, published',
  [
    ((256, 12, 4, 128), 1 / 4, (128, 128), 20, 1_000_000, 1.294e18),
    ((768, 12, 12, 768), 1 / 3, (256, 512), 80, 766_000, 6.425e19),
    ((1024, 24, 16, 1024), 1 / 4, (2048, 512), 80, 400_000, 7.118e20),
  ],
  ids=['small', 'base', 'large'],
)
def test_paper_flops_equal_the_published_ones(
  sizes, fraction, shape, predictions, steps, published
):
  # Printed by the authors' calculator; it masks 0.15625 of the positions.
  hidden, layers, heads, embedding = sizes
  discriminator = EncoderConfig(
    hidden_size=hidden,
    embedding_size=embedding,
    num_layers=layers,
    num_heads=heads,
    intermediate_size=4 * hidden,
  )
  model = Electra(generator_config(discriminator, fraction, 1.0), discriminator)
  settings = Settings(max_predictions=predictions)
  ours = steps * OBJECTIVE.step_flops(settings, model, shape, 'paper')
  assert ours == pytest.approx(published, rel=0.02)


def test_flops_of_an_unknown_convention_are_refused():
  with pytest.raises(ValueError, match='model, paper'):
    flops.step_flops([flops.Part(EncoderConfig(), 0)], 1, 128, 'dense')

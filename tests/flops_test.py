"""The FLOPs we print are those of the step that runs, and in the paper's convention those of the paper."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax.model.config import EncoderConfig, generator_config
from electra_jax.model.electra import Electra
from electra_jax.model.randomness import row_keys
from electra_jax.pretrain import masking
from electra_jax.pretrain.objectives import electra as objective
from electra_jax.pretrain.step import init_params
from electra_jax.training import flops


def counted_by_xla(generator, discriminator, batch, length, predictions):
  """FLOPs of loss and gradients as XLA counts them before it optimises; layers unrolled, as it counts a loop once."""
  model = Electra(generator, discriminator)
  settings = objective.Settings(max_predictions=predictions)
  params = jax.eval_shape(lambda: nn.unbox(init_params(model, 0, length)))

  def gradients(params, token_ids):
    keys = row_keys(0, 0, jnp.arange(batch))
    examples = objective.examples(settings, token_ids, keys)
    counts = objective.counts(settings, examples)
    loss = lambda params: objective.loss(settings, model, params, examples, counts, train=True)
    return jax.grad(loss, has_aux=True)(params)

  lowered = jax.jit(gradients).lower(params, jax.ShapeDtypeStruct((batch, length), np.int32))
  return lowered.cost_analysis()['flops']


@pytest.mark.parametrize('family', ['electra', 'modern'])
@pytest.mark.parametrize('embedding_size', [128, 512])
def test_model_flops_are_what_xla_counts(family, embedding_size):
  layers = 2
  discriminator = EncoderConfig(
      family=family, vocab_size=4096, hidden_size=512, embedding_size=embedding_size, num_layers=layers, num_heads=4,
      intermediate_size=2048, dropout=0.0, attention_dropout=0.0, scan_unroll=layers)
  generator = generator_config(discriminator, 0.5, 1.0)
  ours = flops.step_flops(generator, discriminator, batch=4, length=128, predictions=19)
  theirs = counted_by_xla(generator, discriminator, batch=4, length=128, predictions=19)
  assert ours == pytest.approx(theirs, rel=0.03)


@pytest.mark.parametrize('hidden, layers, heads, fraction, embedding, batch, length, predictions, steps, published', [
    (256, 12, 4, 1 / 4, 128, 128, 128, 20, 1_000_000, 1.294e18),
    (768, 12, 12, 1 / 3, 768, 256, 512, 80, 766_000, 6.425e19),
    (1024, 24, 16, 1 / 4, 1024, 2048, 512, 80, 400_000, 7.118e20),
])
def test_paper_flops_are_the_published_ones(hidden, layers, heads, fraction, embedding, batch, length, predictions,
                                            steps, published):
  # What the authors' calculator prints for small, base and large; it masks 0.15625 of the positions.
  discriminator = EncoderConfig(hidden_size=hidden, embedding_size=embedding, num_layers=layers, num_heads=heads,
                                intermediate_size=4 * hidden)
  generator = generator_config(discriminator, fraction, 1.0)
  ours = steps * flops.step_flops(generator, discriminator, batch, length, predictions, 'paper')
  assert ours == pytest.approx(published, rel=0.02)


def test_flops_of_an_unknown_convention_are_refused():
  with pytest.raises(ValueError, match='model, paper'):
    flops.step_flops(EncoderConfig(), EncoderConfig(), 1, 128, 19, 'dense')

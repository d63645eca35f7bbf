"""The FLOPs we print are those of the step that runs, and in the paper's convention those of the paper."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax.model.config import EncoderConfig, generator_config
from electra_jax.model.electra import Electra
from electra_jax.model.randomness import row_keys
from electra_jax.pretrain import objectives
from electra_jax.pretrain.objectives import common
from electra_jax.pretrain.objectives import electra as objective
from electra_jax.pretrain.pretrain_step import init_params
from electra_jax.training import flops


def counted_by_xla(settings, model, batch, length):
  """FLOPs of loss and gradients as XLA counts them before it optimises; layers unrolled, as it counts a loop once."""
  objective = objectives.named(settings.name)
  params = jax.eval_shape(lambda: nn.unbox(init_params(model, 0, length)))

  def gradients(params, token_ids):
    examples = objective.examples(settings, token_ids, row_keys(0, 0, jnp.arange(batch)))
    counts = objective.counts(settings, examples)

    def loss(params):
      return objective.loss(settings, model, params, examples, counts, train=True)

    return jax.grad(loss, has_aux=True)(params)

  lowered = jax.jit(gradients).lower(params, jax.ShapeDtypeStruct((batch, length), np.int32))
  return lowered.cost_analysis()['flops']


@pytest.mark.parametrize(
  'name, family, embedding_size',
  [
    *((name, 'modern', 128) for name in objectives.NAMES),
    ('electra', 'electra', 128),
    ('electra', 'electra', 512),
    ('electra', 'modern', 512),
    ('electric', 'electra', 512),
  ],
)
def test_model_flops_are_what_xla_counts(name, family, embedding_size):
  layers, length = 2, 128
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
  generator = discriminator if name == 'mlm' else generator_config(discriminator, 0.5, 1.0)
  model = Electra(
    generator,
    discriminator,
    sharing='all' if name == 'mlm' else 'embeddings',
    heads=objectives.named(name).HEADS,
    two_tower=name == 'electric',
  )
  # What predicts at every position does so in chunks, a loop; here it is one of them, whose logits the backward pass makes again.
  every = name in ('all_tokens_mlm', 'electric')
  settings = common.Settings(name=name, max_predictions=length if every else 19)
  ours = common.step_flops(settings, model, batch=4, length=length)
  head = discriminator if name == 'all_tokens_mlm' else generator
  width = head.hidden_size * (2 if name == 'electric' else 1)
  again = 4 * 2 * length * head.embedding_size * (width + head.vocab_size) if every else 0
  assert ours + again == pytest.approx(
    counted_by_xla(settings, model, batch=4, length=length), rel=0.05
  )


@pytest.mark.parametrize(
  'hidden, layers, heads, fraction, embedding, batch, length, predictions, steps, published',
  [
    (256, 12, 4, 1 / 4, 128, 128, 128, 20, 1_000_000, 1.294e18),
    (768, 12, 12, 1 / 3, 768, 256, 512, 80, 766_000, 6.425e19),
    (1024, 24, 16, 1 / 4, 1024, 2048, 512, 80, 400_000, 7.118e20),
  ],
)
def test_paper_flops_are_the_published_ones(
  hidden, layers, heads, fraction, embedding, batch, length, predictions, steps, published
):
  # What the authors' calculator prints for small, base and large; it masks 0.15625 of the positions.
  discriminator = EncoderConfig(
    hidden_size=hidden,
    embedding_size=embedding,
    num_layers=layers,
    num_heads=heads,
    intermediate_size=4 * hidden,
  )
  generator = generator_config(discriminator, fraction, 1.0)
  settings = objective.Settings(max_predictions=predictions)
  ours = steps * common.step_flops(
    settings, Electra(generator, discriminator), batch, length, 'paper'
  )
  assert ours == pytest.approx(published, rel=0.02)


def test_flops_of_an_unknown_convention_are_refused():
  with pytest.raises(ValueError, match='model, paper'):
    flops.step_flops([flops.Part(EncoderConfig(), 0)], 1, 128, 'dense')

"""Parameter counts equal those of transformers and of Clark et al. 2020, table 6."""

import dataclasses
import math

import jax
import pytest
import torch
import transformers

from electra_jax.model.config import EncoderConfig, generator_config
from electra_jax.model.electra import Electra
from electra_jax.pretrain import pretrain_step

ELECTRA = {
  name: EncoderConfig(vocab_multiple=1, **sizes)
  for name, sizes in {
    'small': {
      'hidden_size': 256,
      'embedding_size': 128,
      'num_layers': 12,
      'num_heads': 4,
      'intermediate_size': 1024,
    },
    'base': {
      'hidden_size': 768,
      'embedding_size': 768,
      'num_layers': 12,
      'num_heads': 12,
      'intermediate_size': 3072,
    },
    'large': {
      'hidden_size': 1024,
      'embedding_size': 1024,
      'num_layers': 24,
      'num_heads': 16,
      'intermediate_size': 4096,
    },
  }.items()
}
FRACTIONS = {'small': 1 / 4, 'base': 1 / 3, 'large': 1 / 4}
MODERN = {
  name: EncoderConfig(family='modern', vocab_multiple=1, layer_norm_eps=1e-5, **sizes)
  for name, sizes in {
    'small': {
      'hidden_size': 256,
      'embedding_size': 256,
      'num_layers': 12,
      'num_heads': 4,
      'intermediate_size': 512,
    },
    'base': {
      'vocab_size': 50368,
      'hidden_size': 768,
      'embedding_size': 768,
      'num_layers': 22,
      'num_heads': 12,
      'intermediate_size': 1152,
    },
  }.items()
}


def ours(model) -> dict[str, int]:
  """Number of parameters of each part, without allocating them."""
  shapes = jax.eval_shape(lambda: pretrain_step.init_params(model, 0, 8))
  return {
    part: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    for part, tree in shapes.items()
  }


def theirs(kind, config) -> int:
  """Number of parameters of a model of transformers, tied ones once, without allocating them."""
  with torch.device('meta'):
    model = kind(config)
  return sum(parameter.numel() for parameter in model.parameters())


def electra(c):
  return transformers.ElectraConfig(
    vocab_size=c.vocab_size,
    embedding_size=c.embedding_size,
    hidden_size=c.hidden_size,
    num_hidden_layers=c.num_layers,
    num_attention_heads=c.num_heads,
    intermediate_size=c.intermediate_size,
    max_position_embeddings=c.max_positions,
  )


def modern(c):
  return transformers.ModernBertConfig(
    vocab_size=c.vocab_size,
    hidden_size=c.hidden_size,
    num_hidden_layers=c.num_layers,
    num_attention_heads=c.num_heads,
    intermediate_size=c.intermediate_size,
    num_labels=1,
    pad_token_id=0,
  )


@pytest.mark.parametrize('size, millions', [('small', 14), ('base', 110), ('large', 335)])
def test_counts_of_published_electra_models(size, millions):
  discriminator = ELECTRA[size]
  generator = generator_config(discriminator, FRACTIONS[size], 1.0)
  parts = ours(Electra(generator, discriminator, sharing='none'))
  published = parts['embeddings'] + parts['discriminator'] + parts['discriminator_head']
  assert published == theirs(transformers.ElectraForPreTraining, electra(discriminator))
  assert abs(published / 1e6 - millions) < 0.6
  assert parts['generator_embeddings'] + parts['generator'] + parts['generator_head'] == theirs(
    transformers.ElectraForMaskedLM, electra(generator)
  )
  shared = ours(Electra(generator, discriminator))
  assert shared == {part: count for part, count in parts.items() if part != 'generator_embeddings'}


def test_counts_of_published_generators():
  sizes = {name: generator_config(c, FRACTIONS[name], 1.0) for name, c in ELECTRA.items()}
  assert {
    name: (c.hidden_size, c.intermediate_size, c.num_heads, c.num_layers)
    for name, c in sizes.items()
  } == {'small': (64, 256, 1, 12), 'base': (256, 1024, 4, 12), 'large': (256, 1024, 4, 24)}


@pytest.mark.parametrize('size', MODERN)
def test_counts_of_modern_encoders(size):
  discriminator = MODERN[size]
  generator = generator_config(
    discriminator, 1 / 2, 1 / 2, embedding_size=discriminator.hidden_size // 2
  )
  parts = ours(Electra(generator, discriminator, sharing='none'))
  assert parts['embeddings'] + parts['discriminator'] + parts['discriminator_head'] == theirs(
    transformers.ModernBertForTokenClassification, modern(discriminator)
  )
  assert parts['generator_embeddings'] + parts['generator'] + parts['generator_head'] == theirs(
    transformers.ModernBertForMaskedLM, modern(generator)
  )


def test_counts_of_one_tower_for_both():
  c = ELECTRA['small']
  parts = ours(Electra(c, c, sharing='all'))
  assert sorted(parts) == ['discriminator', 'discriminator_head', 'embeddings', 'generator_head']
  assert parts['embeddings'] + parts['discriminator'] + parts['generator_head'] == theirs(
    transformers.ElectraForMaskedLM, electra(c)
  )


def test_padding_the_vocabulary_adds_only_its_rows():
  c = dataclasses.replace(ELECTRA['small'], vocab_multiple=128)
  padded, plain = ours(Electra(c, c)), ours(Electra(ELECTRA['small'], ELECTRA['small']))
  rows = 30592 - 30522
  assert padded['embeddings'] - plain['embeddings'] == rows * c.embedding_size
  assert padded['generator_head'] - plain['generator_head'] == rows

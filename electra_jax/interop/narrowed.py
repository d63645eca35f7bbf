"""A generator cut out of a discriminator, where people have the discriminator alone."""

import dataclasses
import math

import numpy as np

from electra_jax.errors import UserError
from electra_jax.interop.weights import Weights
from electra_jax.model.config import EncoderConfig


def evenly(count: int, of: int) -> np.ndarray:
  """`count` different numbers below `of`, evenly spread, the first and the last among them."""
  return np.linspace(0, of - 1, count).round().astype(int)


def check(d: EncoderConfig, g: EncoderConfig, source: str) -> None:
  """Raises UserError where a generator `g` cannot be cut out of a discriminator `d`: whole heads are kept, and nothing is made up."""
  if g.head_size != d.head_size or any(
    getattr(g, name) > getattr(d, name) for name in ('num_heads', 'num_layers', 'intermediate_size')
  ):

    def said(c):
      return f'{c.num_layers} layers with {c.num_heads} heads of {c.head_size} and a feed-forward of {c.intermediate_size}'

    raise UserError(
      f'a generator of {said(g)} cannot be cut out of {source}, which has {said(d)}; set config.generator.hidden_fraction so that whole heads '
      'are left, or --config.continued.generator=scratch.'
    )


def generator(weights: Weights, config: EncoderConfig) -> dict:
  """The subtrees `generator` and, where it can be had, `generator_head`, of a narrower and shallower tower.

  Layers, heads, hidden units and units of the feed-forward are kept at even distances. What is summed over fewer inputs is multiplied by
  the square root of the share that is left, so that sums of independent inputs stay as large. Where embeddings are as wide as the
  discriminator, the generator's projection picks out the units that it keeps, and its head puts them back. (Where they are as wide as the generator there is no
  projection, and it has to learn to read them.)

  Args:
    weights: with a discriminator.
    config: of the generator, whose heads are as large as the discriminator's.

  Raises UserError where heads are of another size.
  """
  d, params = weights.discriminator, weights.params['discriminator']
  check(d, config, weights.source)
  layers, units = evenly(config.num_layers, d.num_layers), evenly(config.hidden_size, d.hidden_size)
  heads = evenly(config.num_heads, d.num_heads)
  columns = (heads[:, None] * d.head_size + np.arange(d.head_size)).ravel()
  inner = evenly(config.intermediate_size, d.intermediate_size)
  # Of each kernel: which inputs and which outputs stay.
  kept = dict.fromkeys(('query', 'key', 'value'), (units, columns)) | {
    'attention_output': (columns, units),
    'mlp_output': (inner, units),
  }
  kept |= dict.fromkeys(('mlp_in', 'mlp_gate'), (units, inner))

  def cut(name, leaves):
    inputs, outputs = kept.get(name, (None, units))
    found = {}
    for leaf, value in leaves.items():
      value = value[layers]
      if leaf == 'kernel':
        value = value[:, inputs][:, :, outputs] * np.float32(
          math.sqrt(value.shape[1] / len(inputs))
        )
      else:
        value = value[:, outputs]
      found[leaf] = np.ascontiguousarray(value, np.float32)
    return found

  tower = {'layers': {name: cut(name, leaves) for name, leaves in params['layers'].items()}}
  found = {'generator': tower}
  if config.embedding_size == config.hidden_size:
    return found
  if 'embeddings_project' in params:
    tower['embeddings_project'] = {
      leaf: np.ascontiguousarray(value[..., units])
      for leaf, value in params['embeddings_project'].items()
    }
    return found
  picked = np.zeros((d.hidden_size, config.hidden_size), np.float32)
  picked[units, np.arange(len(units))] = 1
  tower['embeddings_project'] = {'kernel': picked} | (
    {'bias': np.zeros(config.hidden_size, np.float32)} if config.use_bias else {}
  )
  norm = {'scale': np.ones(d.embedding_size, np.float32)} | (
    {'bias': np.zeros(d.embedding_size, np.float32)} if config.use_bias else {}
  )
  dense = {'kernel': np.ascontiguousarray(picked.T)} | (
    {'bias': np.zeros(d.embedding_size, np.float32)} if config.use_bias else {}
  )
  return found | {
    'generator_head': {'dense': dense, 'norm': norm, 'bias': np.zeros(d.vocab_size, np.float32)}
  }


def with_generator(weights: Weights, config: EncoderConfig, sharing: str) -> Weights:
  """The same weights with such a generator beside the discriminator; see `generator`."""
  params = weights.params | (generator(weights, config) if sharing != 'all' else {})
  if sharing == 'none':
    params['generator_embeddings'] = weights.params['embeddings']
  return dataclasses.replace(weights, generator=config, sharing=sharing, params=params)

"""A generator that is cut out of a discriminator, for weights without a generator."""

import dataclasses
import math
from typing import Any, TypeAlias

import numpy as np

from electra_jax import registry
from electra_jax.errors import UserError
from electra_jax.interop.weights import Weights
from electra_jax.model.config import EncoderConfig

PyTree: TypeAlias = Any


def _evenly_spaced(count: int, total: int) -> np.ndarray:
  """`count` different numbers below `total`, evenly spaced, the first and the last among them."""
  return np.linspace(0, total - 1, count).round().astype(int)


def check_narrowed(d: EncoderConfig, g: EncoderConfig, source: str) -> None:
  """Checks that a generator can be cut out of a discriminator: only whole heads can be kept.

  Args:
    d: config of the discriminator.
    g: config of the generator.
    source: where the discriminator is from, for the message.

  Raises:
    UserError: heads have another size, or the generator is larger in some way.
  """
  sizes = ('num_heads', 'num_layers', 'intermediate_size')
  if g.head_size == d.head_size and all(getattr(g, n) <= getattr(d, n) for n in sizes):
    return

  def described(c: EncoderConfig) -> str:
    return (
      f'{c.num_layers} layers with {c.num_heads} heads of {c.head_size} and a feed-forward width '
      f'of {c.intermediate_size}'
    )

  raise UserError(
    f'a generator of {described(g)} cannot be cut out of {source}, which has {described(d)}; set '
    'config.generator.hidden_fraction so that whole heads are kept, or '
    '--config.continued.generator=scratch.'
  )


@dataclasses.dataclass(frozen=True)
class _Kept:
  """What a narrower and shallower tower keeps of a tower.

  Attributes:
    layers: numbers of the layers.
    units: numbers of the hidden units.
    columns: numbers of the columns of the attention heads.
    inner: numbers of the units of the feed-forward layers.
  """

  layers: np.ndarray
  units: np.ndarray
  columns: np.ndarray
  inner: np.ndarray

  def of_kernel(self, name: str) -> tuple[np.ndarray | None, np.ndarray]:
    """Inputs and outputs that are kept of a layer; None for a layer without a kernel."""
    if name in ('query', 'key', 'value'):
      return self.units, self.columns
    if name == 'attention_output':
      return self.columns, self.units
    if name in ('mlp_in', 'mlp_gate'):
      return self.units, self.inner
    return (self.inner if name == 'mlp_output' else None), self.units

  def narrowed(self, name: str, leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A layer of the tower, scaled so that sums over fewer inputs have the same size."""
    inputs, outputs = self.of_kernel(name)
    found = {}
    for leaf, value in leaves.items():
      value = value[self.layers]
      if leaf == 'kernel':
        assert inputs is not None
        scale = np.float32(math.sqrt(value.shape[1] / len(inputs)))
        value = value[:, inputs][:, :, outputs] * scale
      else:
        value = value[:, outputs]
      found[leaf] = np.ascontiguousarray(value, np.float32)
    return found

  def tower(self, params: PyTree) -> PyTree:
    """The layers of a tower, and its table of distances if it has one."""
    found: dict[str, Any] = {}
    for group, layers in params.items():
      if group == 'layers':
        found[group] = {name: self.narrowed(name, leaves) for name, leaves in layers.items()}
      elif group == 'shared_layer':  # one layer for all
        one = dataclasses.replace(self, layers=np.zeros(1, int))
        found[group] = {
          name: {
            leaf: value[0]
            for leaf, value in one.narrowed(
              name, {leaf: value[None] for leaf, value in leaves.items()}
            ).items()
          }
          for name, leaves in layers.items()
        }
      elif group == 'distances':
        found[group] = np.ascontiguousarray(layers[:, self.units])
      elif group == 'distances_norm':
        found[group] = {leaf: value[self.units] for leaf, value in layers.items()}
    return found


def narrowed_generator(weights: Weights, config: EncoderConfig) -> PyTree:
  """A narrower and shallower tower of a discriminator.

  Layers, heads, hidden units and feed-forward units are kept at even distances. Kernels are
  multiplied by sqrt(inputs / kept inputs), so that sums of independent inputs keep their size.
  Where embeddings are as wide as the discriminator, the projection of the generator selects the
  units that it keeps, and its head maps them back. Where they are as wide as the generator there is
  no projection, and the generator has to adapt to them in training. The head of a masked language
  model is kept, with the inputs that remain.

  Args:
    weights: with a discriminator.
    config: config of the generator, with heads of the discriminator's size.

  Returns:
    The top-level parameters `generator` and, where it can be derived, `generator_head`.

  Raises:
    UserError: heads have another size, or the generator is larger in some way.
  """
  d, params = weights.discriminator, weights.params['discriminator']
  assert d is not None
  check_narrowed(d, config, weights.source)
  heads = _evenly_spaced(config.num_heads, d.num_heads)
  kept = _Kept(
    layers=_evenly_spaced(config.num_layers, d.num_layers),
    units=_evenly_spaced(config.hidden_size, d.hidden_size),
    columns=(heads[:, None] * d.head_size + np.arange(d.head_size)).ravel(),
    inner=_evenly_spaced(config.intermediate_size, d.intermediate_size),
  )
  tower: dict[str, Any] = kept.tower(params)
  project, head = _ends(weights, config, kept.units)
  if project:
    tower['embeddings_project'] = project
  return {'generator': tower} | ({'generator_head': head} if head else {})


def _ends(weights: Weights, config: EncoderConfig, units: np.ndarray) -> tuple[PyTree, PyTree]:
  """Returns the projection of the embeddings and the head of a generator; None for none.

  Args:
    weights: with a discriminator.
    config: config of the generator.
    units: numbers of the hidden units that it keeps.
  """
  d, params = weights.discriminator, weights.params['discriminator']
  assert d is not None
  head = weights.params.get('generator_head')  # of a masked language model
  if head:
    scale = np.float32(math.sqrt(d.hidden_size / len(units)))
    dense = {
      **head['dense'],
      'kernel': np.ascontiguousarray(head['dense']['kernel'][units] * scale),
    }
    head = {**head, 'dense': dense}
  if config.embedding_size == config.hidden_size:
    return None, head
  if 'embeddings_project' in params:
    project = {
      leaf: np.ascontiguousarray(value[..., units])
      for leaf, value in params['embeddings_project'].items()
    }
    return project, head
  selection = np.zeros((d.hidden_size, config.hidden_size), np.float32)
  selection[units, np.arange(len(units))] = 1
  project = {'kernel': selection} | _bias(config, config.hidden_size)
  return project, head or {
    'dense': {'kernel': np.ascontiguousarray(selection.T)} | _bias(config, d.embedding_size),
    'norm': {'scale': np.ones(d.embedding_size, np.float32)} | _bias(config, d.embedding_size),
    'bias': np.zeros(d.vocab_size, np.float32),
  }


def _bias(config: EncoderConfig, size: int) -> dict[str, np.ndarray]:
  return {'bias': np.zeros(size, np.float32)} if config.use_bias else {}


def with_generator(weights: Weights, config: EncoderConfig, sharing: str) -> Weights:
  """The weights with a generator that is cut out of their discriminator.

  Args:
    weights: with a discriminator.
    config: config of the generator, with heads of the discriminator's size.
    sharing: name of the sharing scheme of the result.

  Raises:
    UserError: as of `narrowed_generator`.
  """
  scheme = registry.SHARING_SCHEMES.get(sharing)
  params = weights.params | ({} if scheme.one_encoder else narrowed_generator(weights, config))
  if scheme.separate_embeddings:
    params['generator_embeddings'] = weights.params['embeddings']
  return dataclasses.replace(weights, generator=config, sharing=sharing, params=params)

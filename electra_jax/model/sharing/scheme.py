"""The base of sharing schemes, and how the parameters of a pretraining model are named.

A model has these top-level parameters: `discriminator` (the encoder that is kept) and the heads;
the discriminator's embeddings, `embeddings` or, where they are a difference from the generator's,
`embeddings_difference`; and what only the generator has. The names of the latter start with
`generator`: `generator_embeddings`, `generator` (its encoder; `generator_ltr` and `generator_rtl`
where it has one per direction) and `generator_head`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax

from electra_jax.model.config import EncoderConfig
from electra_jax.model.encoder import Embeddings, Inputs

PyTree: TypeAlias = Any
Modules: TypeAlias = Mapping[str, Embeddings]


def is_generator_parameter(name: str) -> bool:
  """Whether a top-level parameter is only the generator's. Shared ones are the discriminator's."""
  return name.startswith('generator')


def is_difference(name: str) -> bool:
  """Whether a top-level parameter is a difference from another, initialized with zeros."""
  return name.endswith('_difference')


@dataclasses.dataclass(frozen=True)
class SharingScheme:
  """What the two towers share.

  The methods are those of schemes whose towers share their embeddings or have one table each. A
  scheme that differs is a subclass.

  Attributes:
    name: as config.sharing has it.
    one_encoder: whether one encoder serves as both towers, which then have equal sizes.
    separate_embeddings: whether the generator has separate embeddings, `generator_embeddings`.
    equal_embedding_sizes: whether the embeddings of both towers must be equally wide, although
      they are separate.
    folds_into: name of the scheme that `fold` turns weights into; '' where it changes nothing.
  """

  name: str
  one_encoder: bool = False
  separate_embeddings: bool = False
  equal_embedding_sizes: bool = False
  folds_into: str = ''

  @property
  def exported_as(self) -> str:
    """Name of the scheme of exported weights, which other programs can read."""
    return self.folds_into or self.name

  #### The model ####

  def embeddings(self, generator: EncoderConfig, discriminator: EncoderConfig) -> Modules:
    """The embedding modules of a model, by the names of their parameters.

    Args:
      generator: config of the generator.
      discriminator: config of the discriminator.
    """
    modules = {'embeddings': Embeddings(discriminator)}
    if self.separate_embeddings:
      modules['generator_embeddings'] = Embeddings(generator)
    return modules

  def generator_embeddings(self, modules: Modules) -> Embeddings:
    """The embeddings that the generator reads and that predict its tokens.

    Args:
      modules: those of `embeddings`, bound to the model.
    """
    return modules['generator_embeddings' if self.separate_embeddings else 'embeddings']

  def embed(self, modules: Modules, inputs: Inputs, keys: jax.Array | None) -> jax.Array:
    """What the discriminator's encoder reads.

    Args:
      modules: those of `embeddings`, bound to the model.
      inputs: token ids and so on, int32 `[batch, length]` each.
      keys: of dropout, `[batch]`; None for no dropout.

    Returns:
      `[batch, length, embedding_size]`.
    """
    return modules['embeddings'](inputs, keys)

  def word_table(self, modules: Modules) -> jax.Array:
    """The discriminator's word embeddings, float32 `[padded vocab, embedding_size]`.

    Args:
      modules: those of `embeddings`, bound to the model.
    """
    return modules['embeddings'].word

  #### Training ####

  def trained_with_generator(self, keep_discriminator: bool) -> tuple[str, ...]:
    """Top-level parameters that steps of only the generator train, where the model has them.

    Args:
      keep_discriminator: whether the discriminator is initialized from pretrained weights, so that
        the embeddings that it reads stay as they are.
    """
    names = (
      'generator',
      'generator_ltr',
      'generator_rtl',
      'generator_head',
      'generator_embeddings',
    )
    return names if keep_discriminator else (*names, 'embeddings')

  #### Weights: trees of NumPy arrays by the names of parameters ####

  def fold(self, tree: PyTree, values: bool = True) -> PyTree:
    """Parameters as those of the scheme `exported_as`.

    Args:
      tree: top-level parameters by name.
      values: True for parameters; False for Adam's moments.
    """
    return tree

  def unfold(self, tree: PyTree, values: bool = True) -> PyTree:
    """The inverse of `fold`, up to rounding."""
    return tree

  def can_hold(self, other: str, equal_embedding_sizes: bool) -> bool:
    """Whether weights of another scheme can initialize a model of this one.

    Otherwise a run that is initialized from weights has their scheme.

    Args:
      other: name of the scheme of the weights.
      equal_embedding_sizes: whether the embeddings of both towers of the weights are equally wide.
    """
    return other == self.name

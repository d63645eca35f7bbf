"""Gradient-disentangled embedding sharing, GDES (He et al. 2021, DeBERTaV3, section 3.3).

The discriminator's tables are those of the generator plus a difference that is initialized with
zeros. No gradient of the discriminator reaches the generator's tables.
"""

import dataclasses

import jax

from electra_jax.model.config import EncoderConfig
from electra_jax.model.encoder import Embeddings, Inputs
from electra_jax.model.sharing.scheme import Modules, PyTree, SharingScheme


@dataclasses.dataclass(frozen=True)
class Disentangled(SharingScheme):
  """Embeddings in two parts: `generator_embeddings` and `embeddings_difference`."""

  def embeddings(self, generator: EncoderConfig, discriminator: EncoderConfig) -> Modules:
    """The generator's embeddings, and the discriminator's as a difference from them."""
    return {
      'embeddings_difference': Embeddings(discriminator, difference=True),
      'generator_embeddings': Embeddings(generator),
    }

  def embed(self, modules: Modules, inputs: Inputs, keys: jax.Array | None) -> jax.Array:
    """What the discriminator's encoder reads: the sum of both parts."""
    base = modules['generator_embeddings'].tables()
    return modules['embeddings_difference'](inputs, keys, base=base)

  def word_table(self, modules: Modules) -> jax.Array:
    """The discriminator's word embeddings, the sum of both parts."""
    base = modules['generator_embeddings'].tables()
    return modules['embeddings_difference'].tables(base)['word']

  def trained_with_generator(self, keep_discriminator: bool) -> tuple[str, ...]:
    """A pretrained discriminator reads the generator's embeddings too, so they stay as they are."""
    names = super().trained_with_generator(keep_discriminator)
    if not keep_discriminator:
      return names
    return tuple(name for name in names if name != 'generator_embeddings')

  def fold(self, tree: PyTree, values: bool = True) -> PyTree:
    """Parameters as those of towers that share nothing: the two parts are added up.

    The moments of the sum are those of the difference: both have the same gradient.

    Args:
      tree: top-level parameters by name, NumPy arrays.
      values: True for parameters; False for Adam's moments.
    """
    difference = tree['embeddings_difference']
    base = tree.get('generator_embeddings')  # a frozen generator has no moments
    summed = {
      name: difference[name] + base[name] if values and name != 'norm' else difference[name]
      for name in difference
    }
    rest = {name: x for name, x in tree.items() if name != 'embeddings_difference'}
    return rest | {'embeddings': summed}

  def unfold(self, tree: PyTree, values: bool = True) -> PyTree:
    """The inverse of `fold`, up to rounding.

    Weights without a generator's embeddings become the generator's, and the difference is zero.
    """
    tables = tree['embeddings']
    base = tree.get('generator_embeddings', tables)
    difference = {
      name: tables[name] - base[name] if values and name != 'norm' else tables[name]
      for name in tables
    }
    rest = {name: x for name, x in tree.items() if name != 'embeddings'}
    found = rest | {'embeddings_difference': difference}
    return {'generator_embeddings': tables} | found if values else found

  def can_hold(self, other: str, equal_embedding_sizes: bool) -> bool:
    """Separate embeddings of one size can be expressed in two parts."""
    return other == self.name or (other == self.exported_as and equal_embedding_sizes)


SCHEME = Disentangled(
  'disentangled', separate_embeddings=True, equal_embedding_sizes=True, folds_into='none'
)

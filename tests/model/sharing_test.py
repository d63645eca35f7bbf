"""Each sharing scheme has the parameters that it states, and folds them for other programs."""

import jax
import numpy as np
import pytest
from conftest import tiny_electra

from electra_jax import registry
from electra_jax.interop.weights import same_bits
from electra_jax.model.sharing.scheme import is_difference, is_generator_parameter
from electra_jax.pretrain import pretrain_step

ENCODER = {'discriminator', 'discriminator_head', 'generator_head'}
PARAMETERS = {
  'embeddings': ENCODER | {'embeddings', 'generator'},
  'none': ENCODER | {'embeddings', 'generator_embeddings', 'generator'},
  'all': ENCODER | {'embeddings'},
  'disentangled': ENCODER | {'embeddings_difference', 'generator_embeddings', 'generator'},
}


def test_every_scheme_is_registered_by_its_name():
  for name in registry.SHARING_SCHEMES:
    assert registry.SHARING_SCHEMES.get(name).name == name
  assert set(registry.SHARING_SCHEMES) == set(PARAMETERS)


@pytest.mark.parametrize('sharing', PARAMETERS)
def test_a_model_has_the_parameters_of_its_scheme(sharing):
  model = tiny_electra(sharing=sharing)
  shapes = jax.eval_shape(lambda: pretrain_step.init_params(model, 0, 8))
  assert set(shapes) == PARAMETERS[sharing]
  names = [name for name in shapes if is_generator_parameter(name)]
  assert ('generator_embeddings' in names) == model.scheme.separate_embeddings
  assert ('generator' not in names) == model.scheme.one_encoder
  assert [name for name in shapes if is_difference(name)] == (
    ['embeddings_difference'] if model.scheme.folds_into else []
  )


@pytest.mark.parametrize('values', [True, False], ids=['parameters', 'moments'])
@pytest.mark.parametrize('sharing', PARAMETERS)
def test_unfolded_weights_fold_to_themselves(sharing, values):
  scheme = registry.SHARING_SCHEMES.get(sharing)
  rng = np.random.default_rng(0)
  names = PARAMETERS[scheme.exported_as]
  # Whole numbers, whose differences are exact.
  tree = {
    name: {'word': rng.integers(0, 9, (3, 2)).astype(np.float32), 'norm': np.ones(2, np.float32)}
    for name in names
  }
  unfolded = scheme.unfold(tree, values)
  assert set(unfolded) == PARAMETERS[sharing]
  assert same_bits(scheme.fold(unfolded, values), tree)


@pytest.mark.parametrize('sharing', PARAMETERS)
def test_steps_of_only_the_generator_keep_what_a_pretrained_discriminator_reads(sharing):
  scheme = registry.SHARING_SCHEMES.get(sharing)
  kept = set(scheme.trained_with_generator(keep_discriminator=True)) & PARAMETERS[sharing]
  free = set(scheme.trained_with_generator(keep_discriminator=False)) & PARAMETERS[sharing]
  assert kept <= free and not kept & {'embeddings', 'discriminator', 'embeddings_difference'}
  assert ('generator_embeddings' in kept) == (sharing == 'none')

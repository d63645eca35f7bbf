"""Weights survive TensorFlow checkpoint -> transformers -> TensorFlow checkpoint bit for bit."""

import google_variables
import pytest

from electra_jax import file_access
from electra_jax.interop import google, huggingface
from electra_jax.interop.weights import same_bits
from electra_jax.model.electra import Electra


def folders(weights, place):
  """Writes both towers for transformers; returns the folder."""
  for tower in ('discriminator', 'generator'):
    for name, content in huggingface.model_files(weights, tower).items():
      file_access.write_bytes(file_access.join(place, tower, name), content)
  return str(place)


def variables_of(which):
  if which != 'untied':
    return google_variables.variables_of(which)
  variables = google_variables.untied(google_variables.variables_of('tied'))
  name = 'generator/embeddings/position_embeddings'
  return variables | {name: variables[name][::-1].copy()}


@pytest.mark.parametrize('which', google_variables.WHICH + ('untied',))
def test_a_checkpoint_survives_the_way_through_transformers(which, tmp_path):
  variables = variables_of(which)
  first = google.read_weights(google_variables.save(tmp_path / 'theirs', variables) + ';heads=4')
  second = huggingface.read_weights(folders(first, tmp_path / 'folders'))
  assert (second.discriminator, second.generator, second.sharing) == (
    first.discriminator,
    first.generator,
    first.sharing,
  )
  assert same_bits(second.params, first.params)
  google.write_checkpoint(second, str(tmp_path / 'back' / 'model.ckpt'))
  google_variables.assert_same(
    google_variables.read_variables(tmp_path / 'back' / 'model.ckpt'), variables
  )


@pytest.mark.parametrize('sharing', ['embeddings', 'none', 'all'])
def test_our_weights_survive_the_way_through_both_formats(sharing, tmp_path):
  generator, discriminator = google_variables.small_towers(embedding_size=64)
  first = google_variables.weights_of(
    Electra(discriminator if sharing == 'all' else generator, discriminator, sharing)
  )
  second = huggingface.read_weights(folders(first, tmp_path / 'folders'))
  google.write_checkpoint(second, str(tmp_path / 'original' / 'model.ckpt'))
  third = google.read_weights(str(tmp_path / 'original'))
  assert (third.discriminator, third.generator, third.sharing) == (
    first.discriminator,
    first.generator,
    sharing,
  )
  assert same_bits(third.params, first.params)

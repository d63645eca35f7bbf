"""TensorFlow's checkpoint -> ours -> folders of transformers -> ours -> TensorFlow's checkpoint: every bit of every variable."""

import google_checkpoint_test as checkpoints
import pytest

from electra_jax import file_access
from electra_jax.interop import google, huggingface
from electra_jax.interop.weights import same_bits


def folders(weights, place):
  """Both towers as transformers has them."""
  for tower in ('discriminator', 'generator'):
    for name, content in huggingface.files(weights, tower).items():
      file_access.write_bytes(file_access.join(place, tower, name), content)
  return str(place)


def variables_of(which):
  if which != 'untied':
    return checkpoints.variables_of(which)
  variables = checkpoints.untied(checkpoints.variables_of('tied'))
  name = 'generator/embeddings/position_embeddings'
  return variables | {name: variables[name][::-1].copy()}


@pytest.mark.parametrize('which', checkpoints.WHICH + ('untied',))
def test_from_the_original_through_ours_and_transformers_and_back(which, tmp_path):
  variables = variables_of(which)
  first = google.read(checkpoints.saved(tmp_path / 'theirs', variables) + ';heads=4')
  second = huggingface.read(folders(first, tmp_path / 'folders'))
  assert (second.discriminator, second.generator, second.sharing) == (
    first.discriminator,
    first.generator,
    first.sharing,
  )
  assert same_bits(second.params, first.params)
  google.write(second, str(tmp_path / 'back' / 'model.ckpt'))
  checkpoints.same(checkpoints.contents(tmp_path / 'back' / 'model.ckpt'), variables)


@pytest.mark.parametrize('sharing', ['embeddings', 'none', 'all'])
def test_from_ours_through_transformers_and_the_original_and_back(sharing, tmp_path):
  generator, discriminator = checkpoints.small_towers(embedding_size=64)
  first = checkpoints.weights_of(
    checkpoints.Electra(discriminator if sharing == 'all' else generator, discriminator, sharing)
  )
  second = huggingface.read(folders(first, tmp_path / 'folders'))
  google.write(second, str(tmp_path / 'original' / 'model.ckpt'))
  third = google.read(str(tmp_path / 'original'))
  assert (third.discriminator, third.generator, third.sharing) == (
    first.discriminator,
    first.generator,
    sharing,
  )
  assert same_bits(third.params, first.params)

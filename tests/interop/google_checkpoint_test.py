"""Checkpoints of the original give its losses and survive reading and writing bit for bit."""

import dataclasses
import json
import shutil
import sys

import golden_tensors as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny_electra
from google_variables import (
  WHICH,
  assert_same,
  read_variables,
  save,
  save_with_saver,
  small_towers,
  tf1,
  untied,
  variables_of,
  weights_of,
  with_optimizer,
)

from electra_jax.errors import UserError
from electra_jax.interop import google
from electra_jax.interop.weights import Head, same_bits
from electra_jax.model.config import EncoderConfig, generator_config
from electra_jax.model.electra import Electra
from electra_jax.model.encoder import Inputs


def refusal(address, *words):
  """Checks that reading raises UserError with all words, in one line."""
  with pytest.raises(UserError) as raised:
    google.read_weights(str(address))
  for word in words:
    assert word in str(raised.value), str(raised.value)
  assert '\n' not in str(raised.value)


def model_of(weights):
  return Electra(
    weights.generator or weights.discriminator,
    weights.discriminator or weights.generator,
    sharing=weights.sharing,
  )


def logits_of(file, model, params, discriminator=True):
  """Returns logits of a golden run.

  Those of the generator are at the masked positions, those of the discriminator on the corrupted
  tokens.
  """
  inputs = Inputs(
    *(
      jnp.asarray(x)
      for x in (
        file['masked/input_ids'],
        file['input_mask'],
        np.tile(np.arange(32, dtype=np.int32), (4, 1)),
        file['segment_ids'],
      )
    )
  )
  return (
    model.apply(
      {'params': params},
      inputs,
      jnp.asarray(file['masked/masked_lm_positions']),
      method='generator_logits',
    ),
    model.apply(
      {'params': params},
      inputs._replace(token_ids=jnp.asarray(file['fake_ids'])),
      method='discriminator_logits',
    )
    if discriminator
    else None,
  )


#### Reading ####


@pytest.mark.parametrize('which', WHICH)
def test_the_golden_variables_as_a_checkpoint_give_the_golden_losses(which, tmp_path):
  file = np.load(golden.GOLDEN / f'{which}.npz')
  weights = google.read_weights(save_with_saver(tmp_path, variables_of(which)) + ';heads=4')
  model = golden.towers(file)
  assert (weights.generator, weights.discriminator, weights.sharing) == (
    model.generator_config,
    model.discriminator_config,
    model.sharing,
  )
  assert (
    weights.step is None
    and weights.moments is None
    and weights.tokenizer is None
    and not weights.notes
  )
  assert same_bits(weights.params, golden.load(file, model))
  # Gradients: model/golden_parity_test.py has the same parameters and model.
  mlm_logits, disc_logits = jax.jit(lambda params: logits_of(file, model_of(weights), params))(
    weights.params
  )
  golden.close(mlm_logits, file['mlm_logits'], 'mlm_logits')
  log_probs = np.asarray(jax.nn.log_softmax(mlm_logits))
  likelihoods = np.take_along_axis(log_probs, file['masked/masked_lm_ids'][:, :, None], 2)[..., 0]
  masked, real = file['masked/masked_lm_weights'], file['input_mask']
  mlm_loss = -(likelihoods * masked).sum() / masked.sum()
  disc_loss = (
    np.logaddexp(0, np.where(file['is_fake'] > 0, -disc_logits, disc_logits)) * real
  ).sum() / real.sum()
  for name, loss in {
    'mlm_loss': mlm_loss,
    'disc_loss': disc_loss,
    'total': mlm_loss + 50 * disc_loss,
  }.items():
    golden.close(loss, file[name], name)


def test_a_generator_with_untied_embeddings_gives_the_golden_losses(tmp_path):
  file = np.load(golden.GOLDEN / 'tied.npz')
  weights = google.read_weights(save(tmp_path, untied(variables_of('tied'))) + ';heads=4')
  assert weights.sharing == 'none' and same_bits(
    weights.params['embeddings'], weights.params['generator_embeddings']
  )
  outputs = jax.jit(lambda params: logits_of(file, model_of(weights), params))
  mlm_logits, disc_logits = outputs(weights.params)
  golden.close(mlm_logits, file['mlm_logits'], 'mlm_logits')

  changed = untied(variables_of('tied'))
  changed['generator/embeddings/word_embeddings'] = (
    changed['generator/embeddings/word_embeddings'] * 2
  )
  others = outputs(google.read_weights(save(tmp_path / 'changed', changed) + ';heads=4').params)
  assert np.array_equal(others[1], disc_logits) and np.abs(others[0] - mlm_logits).max() > 0.1


def test_a_masked_language_model_is_a_generator(tmp_path):
  file = np.load(golden.GOLDEN / 'all_tied.npz')
  variables = {
    name: value
    for name, value in variables_of('all_tied').items()
    if not name.startswith('discriminator_')
  }
  weights = google.read_weights(save(tmp_path, variables) + ';heads=4')
  assert (
    weights.discriminator is None and weights.generator.num_heads == 4 and weights.sharing == 'none'
  )
  logits = jax.jit(
    lambda params: logits_of(file, model_of(weights), params, discriminator=False)[0]
  )(weights.params)
  golden.close(logits, file['mlm_logits'], 'mlm_logits')


def test_checkpoints_of_one_tower_are_read(tmp_path):
  variables = variables_of('tied')
  single = {name: value for name, value in variables.items() if not name.startswith('generator')}
  weights = google.read_weights(save(tmp_path / 'discriminator', single) + ';heads=4')
  assert weights.generator is None and set(weights.params) == {
    'embeddings',
    'discriminator',
    'discriminator_head',
  }
  single = {
    name: value
    for name, value in variables.items()
    if name.startswith('generator') or '/embeddings/' in name
  }
  weights = google.read_weights(save(tmp_path / 'generator', single))  # heads follow from the width
  assert weights.discriminator is None and set(weights.params) == {
    'generator_embeddings',
    'generator',
    'generator_head',
  }
  assert (
    weights.generator.num_layers,
    weights.generator.hidden_size,
    weights.generator.num_heads,
  ) == (2, 24, 1)


def test_moments_and_step_are_read(tmp_path):
  variables = with_optimizer(variables_of('tied'), 1_000_000)
  weights = google.read_weights(save(tmp_path, variables) + ';heads=4')
  assert weights.step == 1_000_000
  assert jax.tree.structure(weights.moments) == jax.tree.structure(
    {'mu': weights.params, 'nu': weights.params}
  )
  layer = 'electra/encoder/layer_2/intermediate/dense/kernel'
  for name, slot in {'mu': 'adam_m', 'nu': 'adam_v'}.items():
    assert np.array_equal(
      weights.moments[name]['discriminator']['layers']['mlp_in']['kernel'][2],
      variables[f'{layer}/{slot}'],
    )
    assert np.array_equal(
      weights.moments[name]['generator_head']['bias'],
      variables[f'generator_predictions/output_bias/{slot}'],
    )


def test_a_fine_tuned_checkpoint_is_an_encoder_with_a_note(tmp_path):
  encoder = {
    name: value for name, value in variables_of('tied').items() if name.startswith('electra/')
  }
  head = {
    f'task_specific/cola/dense/{leaf}': np.ones(shape, np.float32)
    for leaf, shape in (('kernel', (48, 2)), ('bias', 2))
  }
  weights = google.read_weights(save(tmp_path, with_optimizer(encoder | head)) + ';heads=4')
  assert (
    set(weights.params) == {'embeddings', 'discriminator'}
    and weights.moments is None
    and weights.step is None
  )
  assert 'task_specific/' in weights.notes[0] and 'discriminator_predictions' in weights.notes[1]


#### Addresses ####


def test_a_checkpoint_is_found_by_prefix_file_or_folder(tmp_path):
  prefix = save_with_saver(tmp_path / 'run', variables_of('tied'))
  (tmp_path / 'run' / 'vocab.txt').write_text('[PAD]\n')
  expected = google.read_weights(prefix + ';heads=4')
  assert expected.tokenizer == str(tmp_path / 'run' / 'vocab.txt') and expected.source == prefix
  moved = shutil.copytree(tmp_path / 'run', tmp_path / 'elsewhere')
  # The state file still has the old path.
  assert str(tmp_path / 'run') in (moved / 'checkpoint').read_text()
  shutil.rmtree(tmp_path / 'run')
  names = [''] + [path.name for path in moved.iterdir() if path.name != 'vocab.txt']
  assert len(names) == 5
  for name in ('/model.ckpt-7', '', *(f'/{name}' for name in names)):
    weights = google.read_weights(f'{moved}{name};heads=4')
    assert same_bits(weights.params, expected.params) and weights.source == f'{moved}/model.ckpt-7'
  (moved / 'checkpoint').unlink()
  assert google.read_weights(f'{moved};heads=4').source == f'{moved}/model.ckpt-7'


def test_the_state_file_chooses_among_several_checkpoints(tmp_path):
  for step in (5, 6):
    save_with_saver(
      tmp_path, variables_of('tied') | {'global_step': np.int64(step)}, f'model.ckpt-{step}'
    )
  assert google.read_weights(f'{tmp_path};heads=4').step == 6
  assert google.read_weights(f'{tmp_path}/model.ckpt-5;heads=4').step == 5
  (tmp_path / 'checkpoint').unlink()
  refusal(tmp_path, 'model.ckpt-5, model.ckpt-6')


def test_the_older_format_and_remote_checkpoints_are_read(tmp_path):
  import fsspec

  expected = google.read_weights(save(tmp_path / 'new', variables_of('tied')) + ';heads=4')
  older = save_with_saver(
    tmp_path / 'old', variables_of('tied'), write_version=tf1.train.SaverDef.V1
  )
  assert same_bits(google.read_weights(older + ';heads=4').params, expected.params)
  assert same_bits(google.read_weights(f'{tmp_path / "old"};heads=4').params, expected.params)

  google.write_checkpoint(expected, 'memory://google_test/run/model.ckpt-3')
  assert fsspec.filesystem('memory').exists('/google_test/run/checkpoint')
  assert same_bits(google.read_weights('memory://google_test/run').params, expected.params)


def test_the_number_of_heads_is_the_option_or_recorded_or_follows_from_the_width(tmp_path):
  prefix = save(tmp_path, variables_of('tied'))
  refusal(prefix, 'width 48', 'heads=')
  refusal(prefix + ';heads=5', 'width 48', '5 heads')
  for option in ('heads=four', 'heads=0', 'head=4', 'heads'):
    refusal(f'{prefix};{option}', repr(option), 'heads=4')
  (tmp_path / 'hparams.json').write_text(
    json.dumps({'model_hparam_overrides': {'num_attention_heads': 6}, 'vocab_size': 300})
  )
  assert google.read_weights(prefix).discriminator.num_heads == 6
  assert google.read_weights(prefix + ';heads=4').discriminator.num_heads == 4
  for other in ('{}', '[]', '{"model_hparam_overrides": {"num_attention_heads": "many"}}', '{'):
    (tmp_path / 'hparams.json').write_text(other)
    refusal(prefix, 'heads=')

  google.write_checkpoint(
    weights_of(Electra(*small_towers())), str(tmp_path / 'wide' / 'model.ckpt')
  )
  (tmp_path / 'wide' / 'hparams.json').unlink()
  wide = google.read_weights(str(tmp_path / 'wide'))
  assert (wide.discriminator.num_heads, wide.generator.num_heads) == (2, 1)


#### Writing ####


@pytest.mark.parametrize('which', WHICH + ('untied', 'discriminator', 'generator'))
def test_variables_survive_reading_and_writing_bit_for_bit(which, tmp_path):
  variables = variables_of(which if which in WHICH else 'tied')
  if which == 'untied':
    variables = untied(variables)
    variables['generator/embeddings/word_embeddings'] = variables[
      'generator/embeddings/word_embeddings'
    ][::-1]
  elif which not in WHICH:
    other = (
      'generator'
      if which == 'discriminator'
      else ('electra/encoder', 'electra/embeddings_project', 'discriminator')
    )
    variables = {name: value for name, value in variables.items() if not name.startswith(other)}
  variables = with_optimizer(variables)
  prefix = save(tmp_path / 'theirs', variables)
  weights = google.read_weights(prefix + ';heads=4' if which != 'generator' else prefix)
  google.write_checkpoint(weights, str(tmp_path / 'ours' / 'model.ckpt-7'))
  assert_same(read_variables(tmp_path / 'ours' / 'model.ckpt-7'), variables)
  again = google.read_weights(str(tmp_path / 'ours'))  # heads are in hparams.json
  assert same_bits(dataclasses.asdict(again)['params'], weights.params) and same_bits(
    again.moments, weights.moments
  )
  assert (again.discriminator, again.generator, again.sharing, again.step) == (
    weights.discriminator,
    weights.generator,
    weights.sharing,
    weights.step,
  )


def test_tensorflow_1_restores_written_checkpoints(tmp_path):
  variables = with_optimizer(variables_of('base_like'))
  weights = google.read_weights(save(tmp_path / 'theirs', variables) + ';heads=4')
  google.write_checkpoint(weights, str(tmp_path / 'run' / 'model.ckpt-7'))
  google.write_checkpoint(weights, str(tmp_path / 'run' / 'model.ckpt-7'))  # again, over it
  assert sorted(path.name for path in (tmp_path / 'run').iterdir()) == [
    'checkpoint',
    'hparams.json',
    'model.ckpt-7.data-00000-of-00001',
    'model.ckpt-7.index',
  ]
  latest = tf1.train.latest_checkpoint(str(tmp_path / 'run'))
  assert latest == str(tmp_path / 'run' / 'model.ckpt-7')
  with tf1.Graph().as_default(), tf1.Session() as session:
    made = {
      name: tf1.get_variable(name, np.shape(value), value.dtype, trainable=False)
      for name, value in variables.items()
    }
    tf1.train.Saver().restore(session, latest)
    assert_same(session.run(made), variables)


@pytest.mark.parametrize('sharing', ['embeddings', 'all', 'none'])
def test_the_settings_give_the_same_towers_by_the_rules_of_the_original(sharing, tmp_path):
  generator, discriminator = small_towers(
    embedding_size=64 if sharing == 'none' else 32, num_layers=3, num_heads=4, type_vocab_size=3
  )
  generator = discriminator if sharing == 'all' else dataclasses.replace(generator, num_heads=1)
  weights = weights_of(Electra(generator, discriminator, sharing))
  settings = google.write_checkpoint(weights, str(tmp_path / 'model.ckpt'))
  assert settings == json.loads((tmp_path / 'hparams.json').read_text())
  # As get_bert_config and get_generator_config of the original compute them.
  sizes = settings['model_hparam_overrides']
  assert discriminator == EncoderConfig(
    vocab_size=settings['vocab_size'],
    embedding_size=settings['embedding_size'],
    hidden_size=sizes['hidden_size'],
    num_layers=sizes['num_hidden_layers'],
    num_heads=sizes['num_attention_heads'],
    intermediate_size=sizes['intermediate_size'],
    max_positions=sizes['max_position_embeddings'],
    type_vocab_size=sizes['type_vocab_size'],
    vocab_multiple=1,
  )
  assert (settings['untied_generator'], settings['untied_generator_embeddings']) == (
    sharing != 'all',
    sharing == 'none',
  )
  if sharing != 'all':
    hidden = int(round(sizes['hidden_size'] * settings['generator_hidden_size']))
    layers = int(round(sizes['num_hidden_layers'] * settings['generator_layers']))
    assert (hidden, layers, 4 * hidden, max(1, hidden // 64)) == (
      generator.hidden_size,
      generator.num_layers,
      generator.intermediate_size,
      generator.num_heads,
    )
  assert same_bits(google.read_weights(str(tmp_path)).params, weights.params)


def test_published_small_has_its_true_shapes(tmp_path):
  discriminator = EncoderConfig(vocab_multiple=1)
  weights = weights_of(Electra(generator_config(discriminator, 0.25, 1.0), discriminator))
  google.write_checkpoint(weights, str(tmp_path / 'electra_small'))
  (tmp_path / 'hparams.json').unlink()
  again = google.read_weights(str(tmp_path / 'electra_small'))
  assert (again.discriminator, again.generator) == (weights.discriminator, weights.generator)
  assert same_bits(again.params, weights.params)
  shapes = tf.train.load_checkpoint(str(tmp_path / 'electra_small')).get_variable_to_shape_map()
  assert len(shapes) == 5 + 2 + 2 + 2 * 12 * 16 + 5 + 4  # tables, projections, layers, heads
  assert shapes['generator/embeddings_project/kernel'] == [128, 64]
  assert shapes['generator/encoder/layer_11/intermediate/dense/kernel'] == [64, 256]


def test_models_that_the_original_does_not_have_are_refused_with_the_reason(tmp_path):
  def refused(model, *words, **fields):
    with pytest.raises(UserError) as error:
      google.write_checkpoint(
        dataclasses.replace(weights_of(model), **fields), str(tmp_path / 'model.ckpt')
      )
    for word in words:
      assert word in str(error.value), str(error.value)
    assert not list(tmp_path.iterdir())

  generator, discriminator = small_towers()
  refused(tiny_electra('modern'), 'modern')
  refused(
    Electra(generator, dataclasses.replace(discriminator, layer_norm_eps=1e-5)), 'epsilon', '1e-05'
  )
  refused(Electra(dataclasses.replace(generator, num_heads=2), discriminator), '1 heads', '2 heads')
  refused(
    Electra(dataclasses.replace(generator, intermediate_size=128), discriminator),
    'feed-forward',
    '128',
  )
  refused(
    Electra(generator, discriminator, 'none'), 'does not share embeddings', '32 for a width of 64'
  )
  wide = dataclasses.replace(generator, embedding_size=64)
  refused(
    Electra(dataclasses.replace(wide, max_positions=30), discriminator, 'none'),
    'max_positions',
    '24 and 30',
  )
  refused(
    Electra(generator, discriminator),
    'fine-tuned',
    head=Head('classification', 'published', ('a', 'b'), 'cls', {}),
  )


def test_an_unwritable_place_is_reported(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot be written'):
    google.write_checkpoint(
      weights_of(Electra(*small_towers())), str(tmp_path / 'file' / 'model.ckpt')
    )


#### Refused checkpoints ####


def test_checkpoints_of_other_models_are_refused(tmp_path):
  right = variables_of('tied')

  def refused(variables, *words):
    shutil.rmtree(tmp_path / 'run', ignore_errors=True)
    refusal(save(tmp_path / 'run', variables) + ';heads=4', *words)

  def without(*names):
    return {name: value for name, value in right.items() if not name.startswith(names)}

  bert = {
    name.replace('electra/', 'bert/'): value
    for name, value in right.items()
    if name.startswith('electra/')
  }
  refused(bert, 'electra/embeddings/word_embeddings', 'bert/embeddings/')
  refused({'global_step': np.int64(3)}, 'electra/embeddings/word_embeddings')
  electric = {name.replace('generator/', 'generator_ltr/'): value for name, value in right.items()}
  refused(electric, 'Electric', 'generator_ltr/encoder')
  refused(
    without('electra/encoder/layer_1/'),
    'electra/encoder/layer_1/attention/output/dense/kernel is missing',
    'and 12 more',
  )
  refused(
    without('electra/encoder/layer_0/'), 'electra/encoder/layer_0/attention/self/query/kernel'
  )
  refused(without('electra/embeddings_project/'), 'electra/embeddings_project/kernel is missing')
  refused(without('electra/embeddings/position'), 'electra/embeddings/position_embeddings')
  refused(
    without('electra/', 'generator/', 'electra/encoder')
    | {name: value for name, value in right.items() if '/embeddings/' in name},
    'no layers',
  )
  refused(
    without('generator_predictions/dense/bias'), 'generator_predictions/dense/bias is missing'
  )
  refused(
    right | {'generator_predictions/output_bias': np.zeros(299, np.float32)},
    'generator_predictions/output_bias is 299 and not 300',
  )
  refused(
    right | {'electra/encoder/layer_2/output/dense/kernel': np.zeros((96, 47), np.float32)},
    'electra/encoder/layer_2/output/dense/kernel is 96 x 47 and not 96 x 48',
  )
  refused(
    right | {'cls/seq_relationship/output_bias': np.zeros(2, np.float32)},
    'cls/seq_relationship/output_bias',
  )
  refused(
    right | {'electra/pooler/dense/kernel/adam_m': np.zeros(2, np.float32)},
    'electra/pooler/dense/kernel/adam_m',
  )
  refused(
    right | {'electra/embeddings/token_type_embeddings': np.zeros((2, 24), np.int32)},
    'token_type_embeddings as int32',
  )
  broken = right['electra/embeddings/LayerNorm/gamma'].copy()
  broken[3] = np.nan
  refused(
    right | {'electra/embeddings/LayerNorm/gamma': broken}, 'embeddings/norm/scale', 'not finite'
  )


def test_incomplete_moments_are_refused(tmp_path):
  variables = with_optimizer(variables_of('tied'))
  name = 'generator/encoder/layer_1/output/dense/bias'
  refusal(
    save(
      tmp_path / 'a', {key: value for key, value in variables.items() if key != f'{name}/adam_v'}
    )
    + ';heads=4',
    f'{name}/adam_v is missing',
  )
  refusal(
    save(tmp_path / 'b', variables | {f'{name}/adam_m': np.zeros(3, np.float32)}) + ';heads=4',
    f'{name}/adam_m has another shape',
  )


def test_damaged_files_are_refused(tmp_path):
  prefix = save(tmp_path, variables_of('tied'))
  data, index = tmp_path / 'model.ckpt-7.data-00000-of-00001', tmp_path / 'model.ckpt-7.index'
  whole, whole_index = data.read_bytes(), index.read_bytes()

  def refused(*words):
    return refusal(prefix + ';heads=4', prefix, *words)

  data.write_bytes(whole[:-200])
  refused('cut short', '/')
  data.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
  refused('Checksum', '/')
  pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 54\n'
  data.write_bytes(pointer)
  refused('data-00000-of-00001', 'Git LFS')
  data.unlink()
  refused('data-00000-of-00001 is missing')
  data.write_bytes(whole)
  for content in (whole_index[:-3], whole_index[:10], b''):
    index.write_bytes(content)
    refused('cannot be read')
  index.write_bytes(whole_index)
  assert google.read_weights(prefix + ';heads=4').params
  for name in ('', 'nothing', 'nothing.index', 'checkpoint.old'):
    refusal(tmp_path / 'none' / name if not name else tmp_path / name, 'no TensorFlow checkpoint')
  (tmp_path / 'empty').mkdir()
  refusal(tmp_path / 'empty', 'no TensorFlow checkpoint')
  (tmp_path / 'notes.txt').write_text('hello')
  refusal(tmp_path / 'notes.txt', 'cannot be read')


def test_missing_tensorflow_is_reported(tmp_path, monkeypatch):
  prefix = save(tmp_path, variables_of('tied'))
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  refusal(prefix, 'TensorFlow', 'the extra tfds')

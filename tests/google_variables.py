"""Checkpoints of the original TensorFlow program: variables of the golden runs, saved and read."""

import golden_tensors as golden
import numpy as np
import tensorflow as tf
from conftest import random_params

from electra_jax.interop.weights import Weights
from electra_jax.model.config import EncoderConfig, generator_config

tf1 = tf.compat.v1
WHICH = ('tied', 'base_like', 'all_tied')


def variables_of(which):
  """Returns the variables of a golden run, by the names of the original."""
  file = np.load(golden.GOLDEN / f'{which}.npz')
  return {name[4:-2]: file[name] for name in file.files if name.startswith('var/')}


def untied(variables):
  """Adds embeddings of the generator, as untied_generator_embeddings does."""
  tables = [name for name in variables if '/embeddings/' in name]
  return variables | {name.replace('electra/', 'generator/'): variables[name] for name in tables}


def with_optimizer(variables, step=7):
  """Adds moments and the step."""
  rng = np.random.default_rng(3)
  slots = {
    f'{name}/{slot}': rng.standard_normal(value.shape).astype(np.float32)
    for name, value in variables.items()
    for slot in ('adam_m', 'adam_v')
  }
  return variables | slots | {'global_step': np.int64(step)}


def save(folder, variables, name='model.ckpt-7'):
  """Saves a checkpoint, ten times faster than a Saver; returns its prefix."""
  folder.mkdir(parents=True, exist_ok=True)
  tf.raw_ops.SaveV2(
    prefix=str(folder / name),
    tensor_names=list(variables),
    shape_and_slices=[''] * len(variables),
    tensors=list(variables.values()),
  )
  return str(folder / name)


def save_with_saver(folder, variables, name='model.ckpt-7', **saver):
  """Saves a checkpoint by a Saver of TensorFlow 1, with all its files; returns its prefix."""
  folder.mkdir(parents=True, exist_ok=True)
  with tf1.Graph().as_default(), tf1.Session() as session:
    made = {
      key: tf1.get_variable(key, initializer=value, trainable=False)
      for key, value in variables.items()
    }
    session.run(tf1.global_variables_initializer())
    tf1.train.Saver(made, **saver).save(session, str(folder / name))
  return str(folder / name)


def read_variables(prefix):
  """Returns all variables of a checkpoint."""
  reader = tf.train.load_checkpoint(str(prefix))
  return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def assert_same(found, expected):
  """Checks that variables are equal bit for bit."""
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert np.asarray(found[name]).dtype == np.asarray(value).dtype and np.array_equal(
      np.asarray(found[name]).reshape(-1).view(np.uint8),
      np.ascontiguousarray(value).reshape(-1).view(np.uint8),
    ), name
    assert np.shape(found[name]) == np.shape(value), name


def weights_of(model, **fields):
  """Returns random weights of a model."""
  both = {'discriminator': model.discriminator_config, 'generator': model.generator_config} | fields
  return Weights('a run', **both, sharing=model.sharing, params=random_params(model))


def small_towers(**fields):
  """Returns towers that the original supports: heads of 64, feed-forward of 4 times the width."""
  sizes = {
    'vocab_size': 60,
    'hidden_size': 128,
    'embedding_size': 32,
    'num_layers': 2,
    'num_heads': 2,
    'intermediate_size': 512,
    'max_positions': 24,
  }
  tower = EncoderConfig(vocab_multiple=1, **sizes | fields)
  return generator_config(tower, 0.5, 0.5), tower

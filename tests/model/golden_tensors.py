"""Losses, logits and gradients of the original program (tests/golden), and ours of the same.

It imports neither pytest nor TensorFlow, so that benchmarks/gpu.py can use it.
"""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.model.config import EncoderConfig
from electra_jax.model.electra import Electra
from electra_jax.model.encoder import Inputs
from electra_jax.pretrain.masking import Masks
from electra_jax.pretrain.objectives.electra import OBJECTIVE
from electra_jax.pretrain.objectives.parts import LossContext
from electra_jax.pretrain.objectives.settings import Settings

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
FILES = ('tied', 'base_like', 'all_tied')
TOLERANCE = 1e-5  # of a tensor's largest value, in float32
SETTINGS = Settings()
# Our name inside a layer -> the original's.
LAYER = {
  'query': 'attention/self/query',
  'key': 'attention/self/key',
  'value': 'attention/self/value',
  'attention_output': 'attention/output/dense',
  'attention_norm': 'attention/output/LayerNorm',
  'mlp_in': 'intermediate/dense',
  'mlp_output': 'output/dense',
  'mlp_norm': 'output/LayerNorm',
}
LEAF = {'kernel': 'kernel', 'bias': 'bias', 'scale': 'gamma'}
TABLES = {
  'word': 'word_embeddings',
  'position': 'position_embeddings',
  'type': 'token_type_embeddings',
}


def original_name(path):
  """The original's name of a parameter, with {} for the number of the layer."""
  top, *rest = path
  scope = {'embeddings': 'electra', 'discriminator': 'electra', 'generator': 'generator'}.get(top)
  if top == 'embeddings':
    return f'{scope}/embeddings/' + (
      'LayerNorm/' + ('gamma' if rest[1] == 'scale' else 'beta')
      if rest[0] == 'norm'
      else TABLES[rest[0]]
    )
  if top in ('discriminator', 'generator'):
    if rest[0] == 'embeddings_project':
      return f'{scope}/embeddings_project/{rest[1]}'
    leaf = 'beta' if rest[1].endswith('norm') and rest[2] == 'bias' else LEAF[rest[2]]
    return f'{scope}/encoder/layer_{{}}/{LAYER[rest[1]]}/{leaf}'
  if top == 'generator_head':
    return 'generator_predictions/' + {
      ('bias',): 'output_bias',
      ('norm', 'scale'): 'LayerNorm/gamma',
      ('norm', 'bias'): 'LayerNorm/beta',
    }.get(tuple(rest), '/'.join(rest))
  return 'discriminator_predictions/' + '/'.join(rest).replace('prediction', 'dense_1')


def towers(file, **fields):
  """The model of a file; fields of EncoderConfig change how it is computed."""
  shapes = {name[4:-2]: file[name].shape for name in file.files if name.startswith('var/')}
  embedding = shapes['electra/embeddings/word_embeddings'][1]
  fields |= {
    'vocab_size': 300,
    'embedding_size': embedding,
    'intermediate_size': 96,
    'max_positions': 40,
    'vocab_multiple': 1,
  }
  discriminator = EncoderConfig(hidden_size=48, num_layers=3, num_heads=4, **fields)
  if 'generator/encoder/layer_0/intermediate/dense/kernel' not in shapes:
    return Electra(discriminator, discriminator, sharing='all')
  generator = EncoderConfig(hidden_size=24, num_layers=2, num_heads=1, **fields)
  return Electra(generator, discriminator)


def load(file, model):
  """Our parameters from the original's variables, all of which are used."""
  used = set()
  shapes = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), Inputs(*[jnp.zeros((1, 8), jnp.int32)] * 4), jnp.zeros((1, 1), jnp.int32)
    )
  )['params']

  def read(path, shape):
    name = 'var/' + original_name([entry.key for entry in path if hasattr(entry, 'key')]) + ':0'
    names = [name.format(i) for i in range(shape.shape[0])] if '{}' in name else [name]
    used.update(names)
    value = np.stack([file[n] for n in names]) if '{}' in name else file[name]
    assert value.shape == shape.shape, name
    return jnp.asarray(value)

  params = jax.tree_util.tree_map_with_path(read, nn.unbox(shapes))
  assert used == {name for name in file.files if name.startswith('var/')}
  return params


def inputs_of(file):
  """The batch of a file: 4 rows of 32 tokens."""
  positions = np.tile(np.arange(32, dtype=np.int32), (4, 1))
  arrays = (file['input_ids'], file['input_mask'], positions, file['segment_ids'])
  return Inputs(*map(jnp.asarray, arrays))


def run(file, model, params):
  inputs = inputs_of(file)
  masks = Masks(
    positions=jnp.asarray(file['masked/masked_lm_positions']),
    weights=jnp.asarray(file['masked/masked_lm_weights']),
    token_ids=jnp.asarray(file['masked/input_ids']),
  )
  # The file has tokens, not samples. A position that was drawn twice holds the mean of two samples;
  # that mean as the sample of both slots gives the same token.
  samples = np.take_along_axis(file['fake_ids'], file['masked/masked_lm_positions'], 1)
  batch = {'inputs': inputs, 'masks': masks, 'keys': None}
  counts = OBJECTIVE.counts(SETTINGS, batch)

  def loss(params):
    context = LossContext(SETTINGS, model, batch, counts, train=False, samples=jnp.asarray(samples))
    return OBJECTIVE.loss(params, context)

  corrupted = inputs._replace(token_ids=jnp.asarray(file['fake_ids']))

  def everything(params):
    (total, sums), grads = jax.value_and_grad(loss, has_aux=True)(params)
    shown = inputs._replace(token_ids=masks.token_ids)
    verdicts = model.apply({'params': params}, corrupted, method='discriminator_logits')
    return {
      'total': total,
      'mlm_loss': sums['generator_loss'] / counts['masked'],
      'disc_loss': sums['discriminator_loss'] / counts['tokens'],
      'mlm_logits': model.apply(
        {'params': params}, shown, masks.positions, method='generator_logits'
      ),
      'disc_probs': jax.nn.sigmoid(verdicts),
      'grads': grads,
    }

  return jax.jit(everything)(params)


def error(ours, theirs):
  """The largest difference, relative to the tensor's largest value; 1e-8 of the loss (40) is free.

  The latter is for the gradients of the keys' biases, which are zero in exact arithmetic.
  """
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  assert ours.shape == theirs.shape
  # A number that is not finite is an infinite difference.
  differences = np.where(np.isfinite(ours), np.abs(ours - theirs), np.inf)
  return max(differences.max() - 4e-7, 0) / np.abs(theirs).max()


def close(ours, theirs, what):
  """Asserts equality to float32 rounding."""
  assert (found := error(ours, theirs)) <= TOLERANCE, (what, found)


def errors(file, result):
  """`error` of each tensor of a file, by its name."""
  found = {
    name: error(result[name], file[name])
    for name in ('mlm_loss', 'disc_loss', 'total', 'mlm_logits')
  }
  real = file['input_mask'] > 0
  found['disc_probs'] = error(np.asarray(result['disc_probs'])[real], file['disc_probs'][real])
  for path, grad in jax.tree_util.tree_leaves_with_path(result['grads']):
    name = 'grad/' + original_name([entry.key for entry in path]) + ':0'
    for i in range(grad.shape[0]) if '{}' in name else [None]:
      found[name.format(i)] = error(grad if i is None else grad[i], file[name.format(i)])
  assert {x for x in found if x.startswith('grad/')} == {
    x for x in file.files if x.startswith('grad/')
  }
  return found


def compare(file, result):
  """Asserts equality of all tensors of a file to float32 rounding."""
  found = errors(file, result)
  assert max(found.values()) <= TOLERANCE, max(found.items(), key=lambda item: item[1])

"""Layer-wise learning rates: as in the original program, or by depth; on any mesh."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import adamw
from jax.sharding import NamedSharding, PartitionSpec

from electra_jax.model import heads
from electra_jax.model.config import EncoderConfig
from electra_jax.training import optimizers, partitioning, schedules

GOLDEN, PREFIX = (
  pathlib.Path(__file__).parents[1] / 'golden' / 'optimizer.npz',
  'finetune_layerwise_0.8/',
)
# Tensors of the original program by their paths in our tree. Those of some layers are missing in
# the file, and are zeros here.
PLACES = {
  ('embeddings', 'word'): 'electra/embeddings/word_embeddings',
  ('embeddings', 'norm', 'scale'): 'electra/embeddings/LayerNorm/gamma',
  ('discriminator', 'embeddings_project', 'kernel'): 'electra/embeddings_project/kernel',
  ('discriminator', 'embeddings_project', 'bias'): 'electra/embeddings_project/bias',
  (
    'discriminator',
    'layers',
    'query',
    'kernel',
  ): 'electra/encoder/layer_{}/attention/self/query/kernel',
  (
    'discriminator',
    'layers',
    'attention_norm',
    'bias',
  ): 'electra/encoder/layer_{}/attention/output/LayerNorm/beta',
  (
    'discriminator',
    'layers',
    'mlp_output',
    'kernel',
  ): 'electra/encoder/layer_{}/output/dense/kernel',
  ('discriminator', 'layers', 'mlp_output', 'bias'): 'electra/encoder/layer_{}/output/dense/bias',
  ('head', 'dense', 'kernel'): 'task_specific/cola/dense/kernel',
}


def flat(tree):
  return {
    tuple(entry.key for entry in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def original(file, prefix, step=None):
  """The tensors of the file as our tree, and how many were read."""
  nested, read = {}, 0

  def get(name):
    nonlocal read
    if prefix + name not in file.files:
      return None
    read += 1
    return file[prefix + name] if step is None else file[prefix + name][step]

  for path, name in PLACES.items():
    if '{}' in name:
      layers = [get(name.format(i)) for i in range(2)]
      like = next(x for x in layers if x is not None)
      value = np.stack([np.zeros_like(like) if x is None else x for x in layers])
    else:
      value = get(name)
    inner = nested
    for key in path[:-1]:
      inner = inner.setdefault(key, {})
    inner[path[-1]] = jnp.asarray(value)
  return nested, read


def eight_steps(published, file):
  """Largest difference from the original program over all tensors and steps, in tolerances."""
  params, read = original(file, PREFIX + 'param/0/')
  assert read == sum(name.startswith(PREFIX + 'param/0/') for name in file.files) == 9
  rates = optimizers.layerwise_rates(params, 2, 0.8, published)
  optimizer = adamw(schedules.WarmupDecay(1e-2, 3, 20), layer_rates=rates)
  state, worst = optimizer.init(params), 0
  step = jax.jit(lambda grads, state, params: optimizer.update(grads, state, params))
  for i in range(8):
    updates, state = step(original(file, PREFIX + 'grad/', i)[0], state, params)
    params = optax.apply_updates(params, updates)
    theirs = original(file, f'{PREFIX}param/{i + 1}/')[0]
    for ours, expected in zip(jax.tree.leaves(params), jax.tree.leaves(theirs), strict=True):
      worst = max(worst, (np.abs(ours - expected) / (1e-7 + 2e-6 * np.abs(expected))).max())
  return worst


def test_eight_steps_agree_with_the_original_program():
  file = np.load(GOLDEN)
  assert eight_steps(True, file) <= 1
  assert eight_steps(False, file) > 100  # rates by depth differ, which the comparison detects


@pytest.mark.parametrize('family', ['electra', 'modern'])
@pytest.mark.parametrize('published', [True, False])
def test_every_parameter_has_the_rate_of_its_depth(family, published):
  config = EncoderConfig(
    family=family,
    vocab_size=20,
    hidden_size=16,
    embedding_size=8,
    num_layers=3,
    num_heads=2,
    intermediate_size=8,
    max_positions=8,
  )
  for kind in heads.KINDS:
    shapes = nn.unbox(
      jax.eval_shape(
        lambda kind=kind: heads.init_finetuned(heads.FineTuned(config, kind, labels=2), 0)
      )
    )
    rates = optimizers.layerwise_rates(shapes, 3, 0.5, published)
    assert jax.tree.structure(rates) == jax.tree.structure(shapes)
    more = 0.5 if published else 1
    for path, rate in flat(rates).items():
      shape = flat(shapes)[path].shape
      assert rate.dtype == np.float32 and np.broadcast_shapes(rate.shape, shape) == shape
      if path[0] == 'head':
        expected = 1
      elif 'layers' in path:
        assert rate.shape == (3, *(1,) * (len(shape) - 1))
        expected = np.array([0.125, 0.25, 0.5]) * more
      else:
        expected = 0.0625 * more
      np.testing.assert_array_equal(rate.reshape(-1), expected, err_msg='/'.join(path))


def test_a_decay_of_one_has_no_effect():
  params, _ = original(np.load(GOLDEN), PREFIX + 'param/0/')
  plain = adamw(lambda step: 1e-2)
  rates = optimizers.layerwise_rates(params, 2, 1.0, True)
  with_rates = adamw(lambda step: 1e-2, layer_rates=rates)
  updates = [
    optimizer.update(params, optimizer.init(params), params)[0] for optimizer in (plain, with_rates)
  ]
  for a, b in zip(*map(jax.tree.leaves, updates), strict=True):
    np.testing.assert_array_equal(a, b)
  # Without factors the state has the form of version 0.1.0, so that its checkpoints are read.
  assert len(plain.init(params)) == 4


def test_a_parameter_without_a_depth_is_refused_by_name():
  leaf = jnp.ones((2, 3))
  with pytest.raises(ValueError, match='generator_head/dense/kernel'):
    optimizers.layerwise_rates({'generator_head': {'dense': {'kernel': leaf}}}, 2, 0.8, True)
  with pytest.raises(ValueError, match='has 2 layers; expected 12'):
    optimizers.layerwise_rates(
      {'discriminator': {'layers': {'query': {'kernel': leaf}}}}, 12, 0.8, True
    )
  for wrong in (0, -1, 1.1):
    with pytest.raises(ValueError, match='above 0 and at most 1'):
      optimizers.layerwise_rates({'head': {'dense': {'kernel': leaf}}}, 2, wrong, True)


@pytest.mark.parametrize('axis', [0, 1], ids=['layers', 'rows'])
def test_updates_on_shards_need_no_communication_and_agree(axis):
  rng = np.random.default_rng(0)
  params = {
    'discriminator': {
      'layers': {'query': {'kernel': rng.standard_normal((8, 16, 4)).astype(np.float32)}}
    }
  }
  rates = optimizers.layerwise_rates(params, 8, 0.8, False)
  optimizer = adamw(lambda step: 1e-2, clip=0.0, layer_rates=rates)
  state = optimizer.init(params)
  mesh = partitioning.make_mesh()
  split = NamedSharding(mesh, PartitionSpec(*[None] * axis, 'data'))

  def place(tree):
    return jax.tree.map(lambda x: split if np.ndim(x) == 3 else partitioning.replicated(mesh), tree)

  shardings = place(params), place(state), place(params)
  compiled = (
    jax.jit(optimizer.update, in_shardings=shardings, out_shardings=shardings[:2])
    .lower(params, state, params)
    .compile()
  )
  for moving in ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute', 'reduce-scatter'):
    assert moving not in compiled.as_text()
  ours, _ = compiled(*jax.device_put((params, state, params), shardings))
  for a, b in zip(
    jax.tree.leaves(ours), jax.tree.leaves(optimizer.update(params, state, params)[0]), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6)

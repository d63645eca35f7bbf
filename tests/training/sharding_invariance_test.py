"""Masks and samples are bitwise equal on every mesh, and training is to rounding."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import (
  STEP_LENGTH,
  STEP_ROWS,
  STEP_VOCAB,
  compiled_step,
  packed_rows,
  random_params,
  same_training,
  tiny_electra,
  train_steps,
)
from no_full_vocab_array_test import largest_array

from electra_jax.config import PretrainingConfig
from electra_jax.model.randomness import row_keys
from electra_jax.pretrain import masking, pretrain_step, replacement
from electra_jax.pretrain.objectives.electra import OBJECTIVE
from electra_jax.pretrain.objectives.parts import LossContext
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.training import partitioning

SETTINGS = Settings(max_predictions=5)
ROWS, LENGTH = 16, 32
MESHES = {
  'data 2 x fsdp 2 x tensor 2': {'fsdp': 2, 'tensor': 2},
  'fsdp 4 x tensor 2': {'fsdp': 4, 'tensor': 2},
  'fsdp 8': {'fsdp': 8},
}
# The mesh with all axes is in make test, the others in make test-long.
NAMES = [
  pytest.param(name, id=name, marks=() if number == 0 else pytest.mark.long)
  for number, name in enumerate(MESHES)
]


# Micro-batches over eight devices, of one family, are in make test, the others in make test-long.
DEFAULT_LAYOUT = [
  ('electra', 2),
  pytest.param('electra', 1, marks=pytest.mark.long),
  pytest.param('modern', 2, marks=pytest.mark.long),
]


@pytest.mark.parametrize('family, micro_batches', DEFAULT_LAYOUT)
def test_one_device_and_eight_train_equally(family, micro_batches):
  same_training(
    train_steps(family, devices=8, micro_batches=micro_batches),
    train_steps(family, devices=1, micro_batches=1),
  )


@pytest.mark.parametrize('name', NAMES)
def test_every_mesh_trains_as_one_device(name):
  same_training(
    train_steps('electra', devices=8, micro_batches=1, **MESHES[name]),
    train_steps('electra', devices=1, micro_batches=1),
  )


@pytest.mark.long
def test_eight_devices_with_a_whole_optimizer_train_as_one():
  same_training(
    train_steps('electra', devices=8, micro_batches=1, optimizer=''),
    train_steps('electra', devices=1, micro_batches=1),
  )


@pytest.fixture(scope='module')
def on_meshes():
  """Results on one device and on eight, with dropout.

  Masks, noise, logits, samples of these and of given logits, and losses and gradients with given
  samples.
  """
  model = tiny_electra(dropout=0.1)
  rng = np.random.default_rng(0)
  ids = packed_rows(ROWS, LENGTH, 60, empty_rows=1)
  given = rng.standard_normal((ROWS, 5, 64)).astype(np.float32)
  forced = rng.integers(5, 60, (ROWS, 5)).astype(np.int32)

  def run(params, ids, given, forced):
    keys = row_keys(3, 7, jnp.arange(ROWS))
    examples = OBJECTIVE.examples(SETTINGS, ids, keys)
    masks, counts = examples['masks'], OBJECTIVE.counts(SETTINGS, examples)

    def loss(params):
      context = LossContext(SETTINGS, model, examples, counts, train=True, samples=forced)
      return OBJECTIVE.loss(params, context)

    (total, sums), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    logits = model.apply(
      {'params': params},
      examples['inputs']._replace(token_ids=masks.token_ids),
      masks.positions,
      masking.stream(keys, masking.DROPOUT),
      method='generator_logits',
    )

    def sample(logits):
      return replacement.sample(logits, masking.stream(keys, masking.GUMBEL), temperature=1.0)

    noise = replacement.gumbel(masking.stream(keys, masking.GUMBEL), logits.shape[1:])
    return {
      'masks': masks,
      'logits': logits,
      'noise': noise,
      'samples': sample(logits),
      'samples of given logits': sample(given),
      'total': total,
      'sums': sums,
      'gradients': gradients,
    }

  def on(devices):
    mesh = partitioning.make_mesh(jax.devices()[:devices])
    rows, whole = partitioning.batch_sharding(mesh), partitioning.replicated(mesh)
    compiled = jax.jit(run, in_shardings=(whole, rows, rows, rows))
    results = compiled(random_params(model), ids, given, forced)
    assert len(results['samples'].sharding.device_set) == devices
    return jax.device_get(results)

  return on(1), on(8)


def test_masks_and_noise_are_bitwise_equal(on_meshes):
  one, eight = on_meshes
  for ours, theirs in zip(one['masks'], eight['masks'], strict=True):
    assert np.array_equal(ours, theirs)
  np.testing.assert_array_equal(one['noise'], eight['noise'])


def test_samples_of_equal_logits_are_bitwise_equal(on_meshes):
  one, eight = on_meshes
  assert np.array_equal(one['samples of given logits'], eight['samples of given logits'])


def test_samples_of_logits_equal_to_rounding_differ_at_most_in_near_ties(on_meshes):
  one, eight = on_meshes
  np.testing.assert_allclose(one['logits'], eight['logits'], rtol=1e-5, atol=1e-5)
  scores = np.sort(one['logits'] + one['noise'], axis=-1)
  near_tie = scores[..., -1] - scores[..., -2] < 1e-4
  assert near_tie.mean() < 0.05
  assert np.array_equal(one['samples'][~near_tie], eight['samples'][~near_tie])


def test_with_samples_forced_losses_and_gradients_agree_to_rounding(on_meshes):
  one, eight = on_meshes
  np.testing.assert_allclose(one['total'], eight['total'], rtol=1e-6)
  for name in ('generator_loss', 'discriminator_loss'):
    np.testing.assert_allclose(one['sums'][name], eight['sums'][name], rtol=1e-6)
  paths = jax.tree_util.tree_leaves_with_path(one['gradients'])
  for (path, ours), theirs in zip(paths, jax.tree.leaves(eight['gradients']), strict=True):
    close = 1e-5 * np.abs(theirs).max() + 4e-7  # gradients of the biases of keys are only rounding
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=close, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope='module')
def on_layouts():
  """A function of devices and one of MESHES, with parameters laid out as in training.

  Masks, noise, logits, samples of these and of given logits.
  """
  model = tiny_electra(dropout=0.1, num_heads=2)
  boxed = jax.eval_shape(lambda: pretrain_step.init_params(model, 0, LENGTH))
  ids = packed_rows(ROWS, LENGTH, 60, empty_rows=1)
  given = np.random.default_rng(0).standard_normal((ROWS, 5, 64)).astype(np.float32)

  def run(params, ids, given):
    keys = row_keys(3, 7, jnp.arange(ROWS))
    examples = OBJECTIVE.examples(SETTINGS, ids, keys)
    masks, gumbel_keys = examples['masks'], masking.stream(keys, masking.GUMBEL)
    logits = model.apply(
      {'params': params},
      examples['inputs']._replace(token_ids=masks.token_ids),
      masks.positions,
      masking.stream(keys, masking.DROPOUT),
      method='generator_logits',
    )

    def sample(logits):
      return replacement.sample(logits, gumbel_keys, temperature=1.0)

    return {
      'masks': masks,
      'noise': replacement.gumbel(gumbel_keys, logits.shape[1:]),
      'samples of given logits': sample(given),
      'logits': logits,
      'samples': sample(logits),
    }

  @functools.cache
  def on(devices, mesh=None):
    sizes = {f'mesh.{axis}': size for axis, size in MESHES.get(mesh, {}).items()}
    config = PretrainingConfig().replace(sizes | {'sharding.smallest': 0})
    layout = partitioning.make_layout(config, jax.devices()[:devices])
    shardings, rows = (
      partitioning.parameter_shardings(boxed, layout),
      partitioning.batch_sharding(layout.mesh),
    )
    compiled = jax.jit(partitioning.within(layout, run), in_shardings=(shardings, rows, rows))
    return jax.device_get(compiled(jax.device_put(random_params(model), shardings), ids, given))

  return on


@pytest.mark.parametrize('name', NAMES)
def test_masks_noise_and_samples_are_bitwise_equal_on_every_mesh(on_layouts, name):
  one, ours = on_layouts(1), on_layouts(8, name)
  for what in ('masks', 'noise', 'samples of given logits'):
    jax.tree.map(np.testing.assert_array_equal, ours[what], one[what])
  np.testing.assert_allclose(ours['logits'], one['logits'], rtol=1e-5, atol=1e-5)
  scores = np.sort(one['logits'] + one['noise'], axis=-1)
  near_tie = scores[..., -1] - scores[..., -2] < 1e-4
  assert near_tie.mean() < 0.05
  assert np.array_equal(ours['samples'][~near_tie], one['samples'][~near_tie])


#### Communication between devices ####


def sent(compiled) -> dict[str, list]:
  """Kind of collective -> shapes of the float arrays that it returns, without scalars."""
  found = {}
  kinds = 'all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute'
  for shapes, kind, rest in re.findall(
    rf' = (\([^)]*\)|\S+) ({kinds})(?:-start)?\((.*)', compiled.as_text()
  ):
    if '/top_k"' in rest:  # on CPU XLA does not split this call, and gathers batch x length numbers
      continue
    for dimensions in re.findall(r'\bf32\[([\d,]+)\]', shapes):
      found.setdefault(kind, []).append(tuple(map(int, dimensions.split(','))))
  return found


def sizes(shapes) -> int:
  return sum(math.prod(shape) for shape in shapes)


@pytest.mark.long
def test_no_loop_of_the_default_layout_has_a_collective():
  entry = re.search(
    r'^ENTRY .*?^}', compiled_step('modern', 8, 2).compiled.as_text(), re.MULTILINE | re.DOTALL
  )[0]
  whole = compiled_step('modern', 8, 2).compiled.as_text()
  collective = (
    r' (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\('
  )
  assert len(re.findall(collective, entry)) == len(re.findall(collective, whole)) > 10
  assert ' while(' in entry  # loops over micro-batches and layers


@pytest.mark.parametrize('family, micro_batches', DEFAULT_LAYOUT)
def test_each_gradient_is_sent_once_per_step_and_only_parameters_are_gathered(
  family, micro_batches
):
  made = compiled_step(family, 8, micro_batches)
  parameters, moments = jax.tree.leaves(made.shapes.params), jax.tree.leaves(made.moments)
  split = [
    x.shape
    for x, sharding in zip(parameters, moments, strict=True)
    if sharding.shard_shape(x.shape) != x.shape
  ]
  whole = [x.shape for x in parameters if x.shape not in split]
  assert len(split) > 10 and whole
  found = sent(made.compiled)
  assert found.keys() == {'reduce-scatter', 'all-gather', 'all-reduce'}
  assert sizes(found['reduce-scatter']) * 8 == sizes(split)
  assert sorted(found['all-gather']) == sorted(split)
  assert sizes(found['all-reduce']) == sizes(whole)


@pytest.mark.long
def test_with_a_replicated_optimizer_gradients_are_summed_once_and_nothing_is_gathered():
  made = compiled_step('electra', 8, 1, optimizer='')
  found = sent(made.compiled)
  assert found.keys() == {'all-reduce'}
  assert sizes(found['all-reduce']) == sizes(x.shape for x in jax.tree.leaves(made.shapes.params))


@pytest.mark.long
def test_with_parameters_split_over_fsdp_no_activation_is_gathered():
  made = compiled_step('electra', 8, 1, fsdp=8)
  shapes = {x.shape for x in jax.tree.leaves(made.shapes.params)}
  shapes |= {(1, *shape[1:]) for shape in shapes} | {shape[1:] for shape in shapes}  # of a layer
  found = sent(made.compiled)
  assert found['all-gather'] and set(found['all-gather']) <= shapes


def test_with_the_vocabulary_split_over_tensor_no_logits_are_gathered():
  made = compiled_step('electra', 8, 1, fsdp=2, tensor=2)
  logits = STEP_ROWS // 4 * 5 * STEP_VOCAB  # of the rows of a device, over the whole vocabulary
  assert logits > max(math.prod(x.shape) for x in jax.tree.leaves(made.shapes.params))
  found = sent(made.compiled)
  assert found['all-gather'] and max(map(math.prod, found['all-gather'])) < logits


@pytest.mark.parametrize(
  'family, micro_batches, sizes',
  [
    ('electra', 2, {}),
    ('electra', 1, {'fsdp': 2, 'tensor': 2}),
    pytest.param('electra', 1, {}, marks=pytest.mark.long),
    pytest.param('modern', 2, {}, marks=pytest.mark.long),
    pytest.param('electra', 1, {'fsdp': 4, 'tensor': 2}, marks=pytest.mark.long),
    pytest.param('electra', 1, {'fsdp': 8}, marks=pytest.mark.long),
  ],
  ids=str,
)
def test_no_mesh_has_a_part_of_an_array_of_batch_x_length_x_vocabulary(
  family, micro_batches, sizes
):
  masked = STEP_ROWS // 8 // micro_batches * 5 * STEP_VOCAB
  everywhere = STEP_ROWS // 8 // micro_batches * STEP_LENGTH * STEP_VOCAB
  assert (
    masked <= largest_array(compiled_step(family, 8, micro_batches, **sizes).compiled) < everywhere
  )

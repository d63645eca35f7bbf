"""One device or eight: bitwise the same masks and samples, and the same training to float32 rounding, dropout on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import packed_rows, random_params, same_training, tiny_electra, train_steps
from electra_jax.pretrain import masking, replacement
from electra_jax.pretrain.objectives import electra as objective
from electra_jax.training import mesh as meshes

SETTINGS = objective.Settings(max_predictions=5)
ROWS, LENGTH = 16, 32


def test_one_device_and_eight_train_alike():
  same_training(train_steps('electra', devices=8, micro_batches=1), train_steps('electra', devices=1, micro_batches=1))


def test_micro_batches_over_eight_devices_train_alike():
  same_training(train_steps('modern', devices=8, micro_batches=2), train_steps('modern', devices=1, micro_batches=1))


@pytest.fixture(scope='module')
def on_meshes():
  """On one device and on eight, dropout on: masks, noise, logits, samples of these and of given ones, and losses and
  gradients with samples forced."""
  model = tiny_electra(dropout=0.1)
  rng = np.random.default_rng(0)
  ids = packed_rows(ROWS, LENGTH, 60, empty_rows=1)
  given = rng.standard_normal((ROWS, 5, 64)).astype(np.float32)
  forced = rng.integers(5, 60, (ROWS, 5)).astype(np.int32)

  def run(params, ids, given, forced):
    keys = masking.row_keys(3, 7, jnp.arange(ROWS))
    examples = objective.examples(SETTINGS, ids, keys)
    masks, counts = examples['masks'], objective.counts(SETTINGS, examples)
    loss = lambda params: objective.loss(SETTINGS, model, params, examples, counts, train=True, samples=forced)
    (total, sums), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    logits = model.apply({'params': params}, examples['inputs']._replace(token_ids=masks.token_ids), masks.positions,
                         masking.stream(keys, masking.DROPOUT), method='generator_logits')
    sample = lambda logits: replacement.sample(logits, masking.stream(keys, masking.GUMBEL), temperature=1.0)
    noise = replacement.gumbel(masking.stream(keys, masking.GUMBEL), logits.shape[1:])
    return {'masks': masks, 'logits': logits, 'noise': noise, 'samples': sample(logits),
            'samples of given logits': sample(given), 'total': total, 'sums': sums, 'gradients': gradients}

  def on(devices):
    mesh = meshes.make_mesh(jax.devices()[:devices])
    rows, whole = meshes.batch_sharding(mesh), meshes.replicated(mesh)
    compiled = jax.jit(run, in_shardings=(whole, rows, rows, rows))
    results = compiled(random_params(model), ids, given, forced)
    assert len(results['samples'].sharding.device_set) == devices
    return jax.device_get(results)
  return on(1), on(8)


def test_masks_and_noise_are_bitwise_the_same(on_meshes):
  one, eight = on_meshes
  for ours, theirs in zip(one['masks'], eight['masks']):
    assert np.array_equal(ours, theirs)
  np.testing.assert_array_equal(one['noise'], eight['noise'])


def test_samples_of_the_same_logits_are_bitwise_the_same(on_meshes):
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
    close = 1e-5 * np.abs(theirs).max() + 4e-7               # the keys' biases have gradients that are all rounding
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=close, err_msg=jax.tree_util.keystr(path))

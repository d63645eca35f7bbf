"""With the original program's weights, masks and samples, losses and all gradients are equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import adamw
from golden_tensors import FILES, GOLDEN, compare, load, run, towers

from electra_jax.training import schedules


@pytest.mark.parametrize('which', FILES)
def test_losses_logits_probabilities_and_gradients_equal_the_original(which):
  file = np.load(GOLDEN / f'{which}.npz')
  model = towers(file)
  compare(file, run(file, model, load(file, model)))


def test_a_change_of_one_weight_is_detected():
  file = np.load(GOLDEN / 'tied.npz')
  model = towers(file)
  params = load(file, model)
  kernel = params['generator']['layers']['value']['kernel']
  params['generator']['layers']['value']['kernel'] = kernel.at[1, 3, 5].add(1e-3)
  with pytest.raises(AssertionError):
    compare(file, run(file, model, params))


def test_eight_steps_of_the_optimizer_equal_the_original():
  file = np.load(GOLDEN / 'optimizer.npz')
  names = [
    name[len('pretrain/grad/') :] for name in file.files if name.startswith('pretrain/grad/')
  ]

  def ours(name):
    return (
      name.replace('LayerNorm', 'norm')
      .replace('gamma', 'scale')
      .replace('beta', 'bias')
      .replace('/', '.')
    )

  def tree(prefix, index=None):
    nested = {}
    for name in names:
      *scope, leaf = ours(name).split('.')
      value = file[prefix + name]
      nested.setdefault('/'.join(scope), {}).setdefault(
        leaf, np.asarray(value if index is None else value[index])
      )
    return {scope: {scope.split('/')[-1]: leaves} for scope, leaves in nested.items()}

  optimizer = adamw(schedules.WarmupDecay(1e-2, 3, 20))

  @jax.jit
  def update(gradients, state, params):
    updates, state = optimizer.update(gradients, state, params)
    return jax.tree.map(jnp.add, params, updates), state

  params = tree('pretrain/param/0/')
  state = jax.jit(optimizer.init)(params)
  for step in range(8):
    params, state = update(tree('pretrain/grad/', step), state, params)
    for ours_leaf, theirs_leaf in zip(
      jax.tree.leaves(params), jax.tree.leaves(tree(f'pretrain/param/{step + 1}/')), strict=True
    ):
      np.testing.assert_allclose(ours_leaf, theirs_leaf, rtol=2e-6, atol=1e-7)
  assert np.array_equal(file['pretrain/param/0/' + names[0]], file['pretrain/param/1/' + names[0]])

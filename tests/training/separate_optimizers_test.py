"""With its own learning rate, the generator is trained as with a separate optimizer."""

import conftest
import jax
import numpy as np
import optax
import pytest
from conftest import micro_config

from electra_jax.config import checked_pretraining
from electra_jax.errors import UserError
from electra_jax.model.sharing.scheme import is_generator_parameter
from electra_jax.pretrain import build
from electra_jax.training import optimizers, schedules

ADAM = {'b1': 0.9, 'b2': 0.99, 'eps': 1e-6, 'weight_decay': 0.05, 'clip': 1.0}
RATES = {
  True: schedules.WarmupDecay(3e-2, 2, 9),
  False: schedules.WarmupDecay(1e-2, 4, 9, power=0.5),
}  # of the generator and of all else


def parameters(*names):
  """For each name three tensors: a kernel of stacked layers, a bias, and the scale of a norm."""
  rng = np.random.default_rng(1)

  def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  return {
    name: {
      'layers': {'query': {'kernel': draw(2, 4, 3)}},
      'dense': {'bias': draw(5)},
      'norm': {'scale': draw(3)},
    }
    for name in names
  }


def gradients(params, steps=4):
  """Gradients of the generator that are small where the others are large, and vice versa."""
  rng = np.random.default_rng(0)

  def size(name, step):
    return 10.0 ** (step % 2 if name.startswith('generator') else -(step % 2))

  def drawn(size, tree):
    return jax.tree.map(lambda x: size * rng.standard_normal(x.shape).astype(np.float32), tree)

  return [
    {name: drawn(size(name, step), tree) for name, tree in params.items()} for step in range(steps)
  ]


def run(optimizer, params, grads):
  state, every, update = optimizer.init(params), [], jax.jit(optimizer.update)
  for tree in grads:
    updates, state = update(tree, state, params)
    params = optax.apply_updates(params, updates)
    every.append(params)
  return every, state


@pytest.mark.parametrize(
  'kind, bias_correction', [('adamw', False), ('adamw', True), ('lamb', True)]
)
def test_one_chain_equals_an_optimizer_per_tower(kind, bias_correction):
  params = parameters(
    'discriminator',
    'discriminator_head',
    'embeddings_difference',
    'generator',
    'generator_embeddings',
    'generator_head',
    'predictor_head',
  )
  generators = ('generator', 'generator_embeddings', 'generator_head')
  assert {name for name in params if is_generator_parameter(name)} == set(generators)
  make, grads = getattr(optimizers, kind), gradients(params)
  fields = ADAM | {'bias_correction': bias_correction}
  ours, state = run(
    make(conftest.optimizer_settings(RATES[False], RATES[True], **fields)),
    params,
    grads,
  )

  for own in (True, False):

    def part(tree, own=own):
      return {name: x for name, x in tree.items() if (name in generators) == own}

    if kind == 'adamw' and bias_correction:  # that of optax
      alone = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
          RATES[own],
          ADAM['b1'],
          ADAM['b2'],
          ADAM['eps'],
          weight_decay=ADAM['weight_decay'],
          mask=lambda params: jax.tree_util.tree_map_with_path(
            lambda path, _: optimizers.is_decayed(path), params
          ),
        ),
      )
    else:
      alone = make(conftest.optimizer_settings(RATES[own], **fields))
    theirs, _ = run(alone, part(params), [part(tree) for tree in grads])
    for a, b in zip(ours, theirs, strict=True):
      jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-8), part(a), b)

  # One optimizer for both towers gives other parameters; the state has the same form.
  one, form = run(make(conftest.optimizer_settings(RATES[False], **fields)), params, grads)
  assert jax.tree.structure(state) == jax.tree.structure(form)
  for name in params:
    differ = max(
      np.abs(a - b).max()
      for a, b in zip(jax.tree.leaves(ours[-1][name]), jax.tree.leaves(one[-1][name]), strict=True)
    )
    assert differ > 1e-5, name


def test_shared_parameters_have_the_rate_of_the_discriminator():
  params = parameters('discriminator', 'embeddings', 'generator', 'generator_head')
  still = conftest.adamw(lambda step: 0.0, generator_schedule=lambda step: 1e-2, **ADAM)
  (after,), _ = run(still, params, gradients(params, 1))
  moved = {
    name
    for name in params
    if any(
      (a != b).any()
      for a, b in zip(jax.tree.leaves(params[name]), jax.tree.leaves(after[name]), strict=True)
    )
  }
  assert moved == {'generator', 'generator_head'}


def test_rates_follow_the_config_and_its_phases():
  config = checked_pretraining(micro_config('optimizer.generator_learning_rate=4e-3'))
  _, schedule = build.build_optimizer(config)
  own = build.build_rates(config)['generator_learning_rate']
  for step in (0, 1, 2, 10, 29):
    np.testing.assert_allclose(own(step), 4 * schedule(step), rtol=1e-6)
  assert (
    build.build_rates(checked_pretraining(micro_config())).get('generator_learning_rate') is None
  )
  config = micro_config('optimizer.generator_learning_rate=4e-3')
  config.phases = (
    {'steps': 10},
    {'steps': 20, 'optimizer.learning_rate': 2e-3, 'optimizer.generator_learning_rate': 1e-3},
  )
  config = checked_pretraining(config)
  (_, schedule), own = (
    build.build_optimizer(config),
    build.build_rates(config)['generator_learning_rate'],
  )
  np.testing.assert_allclose([own(5), own(15)], [4 * schedule(5), schedule(15) / 2], rtol=1e-6)


@pytest.mark.parametrize(
  'fields, sentence',
  [
    (('optimizer.generator_learning_rate=-1',), 'is -1.0; expected at least 0'),
    (
      ('optimizer.generator_learning_rate=1e-3', 'sharing=all', 'generator.hidden_fraction=1.0'),
      "config.sharing 'all' makes one tower of both",
    ),
    (
      ('optimizer.generator_learning_rate=1e-3', 'objective.name=mlm'),
      "config.objective.name 'mlm' has one tower",
    ),
  ],
)
def test_invalid_configs_are_refused(fields, sentence):
  with pytest.raises(UserError, match=sentence) as error:
    checked_pretraining(micro_config(*fields))
  assert 'config.optimizer.generator_learning_rate' in str(error.value)

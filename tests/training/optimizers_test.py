"""LAMB is the algorithm of its paper, per layer and on any sharding; schedules are as published."""

import runpy

import conftest
import jax
import jax.numpy as jnp
import micro_run
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from electra_jax import registry
from electra_jax.config import PretrainingConfig, checked_pretraining
from electra_jax.errors import UserError
from electra_jax.pretrain import build, pretrain_step
from electra_jax.training import optimizers, partitioning, schedules
from electra_jax.training.update_step import layout_of_state, with_moments

RECIPE = {'b1': 0.878, 'b2': 0.974, 'eps': 1e-6, 'weight_decay': 0.01}
STEPS = 5


def rate(step):
  return 6e-3 / (1 + step)


def lamb(schedule, **fields):
  settings = conftest.optimizer_settings(schedule, **RECIPE | {'bias_correction': True} | fields)
  return optimizers.lamb(settings)


def gradients(params, steps=STEPS, seed=1):
  """Trees of gradients, of which the first are too small to be clipped and the last are clipped."""
  rng = np.random.default_rng(seed)

  def draw(scale):
    return jax.tree.map(lambda x: (scale * rng.standard_normal(x.shape)).astype(np.float32), params)

  return [draw(0.001 * 4**i) for i in range(steps)]


def run(optimizer, params, grads):
  """Parameters after each step."""

  @jax.jit
  def step(params, state, grads):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state, every = optimizer.init(params), []
  for tree in grads:
    params, state = step(params, state, tree)
    every.append(jax.tree.map(np.asarray, params))
  return every


def same(ours, theirs, rtol=1e-5):
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
  ):
    np.testing.assert_allclose(
      a, b, rtol=0, atol=rtol * np.abs(b).max(), err_msg=jax.tree_util.keystr(path)
    )


def lamb_in_numpy(params, grads, clip, bias_correction, excluded, stacked):
  """You et al. 2020, algorithm 2, in float64, on flat dicts of tensors, per layer if stacked."""
  params = {name: x.astype(np.float64) for name, x in params.items()}
  m = {name: np.zeros_like(x) for name, x in params.items()}
  v = {name: np.zeros_like(x) for name, x in params.items()}
  for t, tree in enumerate(grads, 1):
    whole = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in tree.values()))
    for name, g in tree.items():
      g = g.astype(np.float64) * (min(1, clip / whole) if clip else 1)
      m[name] = RECIPE['b1'] * m[name] + (1 - RECIPE['b1']) * g
      v[name] = RECIPE['b2'] * v[name] + (1 - RECIPE['b2']) * g * g
      corrections = (1 - RECIPE['b1'] ** t, 1 - RECIPE['b2'] ** t) if bias_correction else (1, 1)
      direction = m[name] / corrections[0] / (np.sqrt(v[name] / corrections[1]) + RECIPE['eps'])
      x = params[name]
      layers = range(len(x)) if name in stacked else [...]
      for layer in layers:
        update, ratio = direction[layer], 1
        if name not in excluded:
          update = update + RECIPE['weight_decay'] * x[layer]
          norms = np.linalg.norm(x[layer]), np.linalg.norm(update)
          ratio = norms[0] / norms[1] if min(norms) > 0 else 1
        x[layer] -= rate(t - 1) * ratio * update
  return params


def flat(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


@pytest.mark.parametrize('clip', [0.0, 1.0])
def test_lamb_equals_optax_lamb_without_stacked_or_excluded_tensors(clip):
  rng = np.random.default_rng(0)
  params = {
    f'layer_{i}': {'kernel': rng.standard_normal((4, 3)).astype(np.float32) * 2**i}
    for i in range(3)
  }
  params['start'] = {'kernel': np.zeros((5,), np.float32)}  # trust ratio 1, as its norm is 0
  theirs = optax.chain(
    optax.clip_by_global_norm(clip) if clip else optax.identity(),
    optax.lamb(
      rate, RECIPE['b1'], RECIPE['b2'], RECIPE['eps'], weight_decay=RECIPE['weight_decay']
    ),
  )
  ours = lamb(rate, clip=clip)
  for a, b in zip(
    run(ours, params, gradients(params)), run(theirs, params, gradients(params)), strict=True
  ):
    same(a, b, rtol=1e-6)


@pytest.mark.parametrize('family, bias_correction', [('electra', True), ('modern', False)])
def test_lamb_of_a_model_agrees_with_the_algorithm_in_numpy(family, bias_correction):
  params = conftest.random_params(conftest.tiny_electra(family))
  params['embeddings']['word'] = np.zeros_like(params['embeddings']['word'])
  grads = gradients(params)
  for tree in grads:
    tree['discriminator']['layers']['query']['kernel'][1] = 0  # only one layer: its own ratio
  names = list(flat(params))
  excluded = {name for name in names if name.endswith(('bias', 'scale'))}
  stacked = {name for name in names if '/layers/' in name}
  assert excluded and stacked - excluded and set(names) - excluded - stacked
  args = [flat(tree) for tree in grads], 1.0, bias_correction
  ours = flat(run(lamb(rate, bias_correction=bias_correction), params, grads)[-1])
  same(ours, lamb_in_numpy(flat(params), *args, excluded, stacked))
  # The comparison detects stacks that are one tensor, and biases and norms that are scaled and
  # decayed.
  for wrong in ((excluded, ()), (set(), stacked)):
    with pytest.raises(AssertionError):
      same(ours, lamb_in_numpy(flat(params), *args, *wrong))


def test_lamb_moves_a_layer_by_its_norm_times_the_rate():
  params = {
    'layers': {
      'query': {
        'kernel': np.stack([np.full((3, 4), 1.0, np.float32), np.full((3, 4), 100.0, np.float32)])
      }
    }
  }
  grads = jax.tree.map(np.ones_like, params)
  after = run(lamb(lambda step: 0.01, clip=0.0), params, [grads])[0]
  np.testing.assert_allclose(
    after['layers']['query']['kernel'], 0.99 * params['layers']['query']['kernel'], rtol=1e-6
  )


@pytest.mark.parametrize('axis', [0, 1, 2], ids=['layers', 'rows', 'columns'])
def test_lamb_on_shards_gathers_no_tensor_and_agrees(axis):
  shape = (8, 16, 24)
  rng = np.random.default_rng(2)
  params = {
    'layers': {'query': {'kernel': rng.standard_normal(shape).astype(np.float32)}},
    'embeddings': {'word': rng.standard_normal(shape[:axis] + shape[axis:]).astype(np.float32)},
  }
  mesh = partitioning.make_mesh()
  sharded = NamedSharding(mesh, PartitionSpec(*[None] * axis, 'data'))
  optimizer = lamb(rate)
  state = optimizer.init(params)

  def place(tree):
    return jax.tree.map(
      lambda x: sharded if np.ndim(x) == 3 else partitioning.replicated(mesh), tree
    )

  def step(params, state, grads):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  shardings = place(params), place(state), place(params)
  compiled = (
    jax.jit(step, in_shardings=shardings, out_shardings=shardings[:2])
    .lower(params, state, params)
    .compile()
  )
  text = compiled.as_text()
  assert 'all-reduce' in text
  for moving in ('all-gather', 'all-to-all', 'collective-permute', 'reduce-scatter'):
    assert moving not in text
  grads = gradients(params)
  ours = params, state
  for tree in grads:
    ours = compiled(*jax.device_put((*ours, tree), shardings))
  same(jax.device_get(ours[0]), run(optimizer, params, grads)[-1], rtol=1e-6)


@pytest.fixture
def lion(monkeypatch):
  """The config of the example that registers Lion, which is registered only in this test."""
  monkeypatch.setattr(registry.OPTIMIZERS, '_entries', dict(registry.OPTIMIZERS._entries))
  path = micro_run.ROOT / 'tests' / 'extending' / 'optimizer.py'
  return runpy.run_path(str(path))['get_config']()


def test_a_registered_optimizer_is_built_from_the_config_and_its_options(lion):
  lion.optimizer.update(warmup_steps=0, clip=0.0)
  lion.optimizer.options = {'momentum_dtype': 'bfloat16'}
  config = checked_pretraining(lion)
  optimizer, schedule = build.build_optimizer(config)
  params = {'discriminator': {'kernel': np.linspace(-1, 1, 8, dtype=np.float32)}}
  theirs = optax.lion(schedule, b1=0.9, b2=0.99, mu_dtype=jnp.bfloat16, weight_decay=0.1)
  grads = gradients(params)
  for ours, expected in zip(run(optimizer, params, grads), run(theirs, params, grads), strict=True):
    same(ours, expected, rtol=1e-6)
  momentum = next(x.mu for x in optimizer.init(params) if hasattr(x, 'mu'))
  assert momentum['discriminator']['kernel'].dtype == jnp.bfloat16


def test_an_unknown_option_of_an_optimizer_is_refused(lion):
  lion.optimizer.options = {'momentum': 0.9}
  with pytest.raises(UserError, match='config.optimizer.options.momentum is not an option'):
    checked_pretraining(lion)


@pytest.mark.parametrize('kind', ['adam', 'lion', 'adafactor'])
def test_moments_of_any_optimizer_are_split_as_the_parameters(kind):
  optimizer = {
    'adam': optax.scale_by_adam(),
    'lion': optax.scale_by_lion(),
    'adafactor': optax.scale_by_factored_rms(min_dim_size_to_factor=8),
  }[kind]
  config = PretrainingConfig().replace({'sharding.smallest': 0})
  layout = partitioning.make_layout(config)
  boxed = jax.eval_shape(lambda: pretrain_step.init_params(conftest.tiny_electra(), 0, 8))
  shapes, shardings = layout_of_state(boxed, optimizer, layout)
  assert jax.tree.structure(shapes.opt_state) == jax.tree.structure(shardings.opt_state)
  of_adam = layout_of_state(boxed, optax.scale_by_adam(), layout)[1].opt_state.mu
  same_shape = {'adam': 'mu', 'lion': 'mu', 'adafactor': 'v'}[kind]
  moments = getattr(shardings.opt_state, same_shape)
  if kind == 'adafactor':  # matrices have factored moments
    assert shapes.opt_state.v_row['embeddings']['word'].shape == (16,)
    assert shardings.opt_state.v_row['embeddings']['word'].is_fully_replicated
    assert moments['embeddings']['norm'] == of_adam['embeddings']['norm']
  else:
    assert moments == of_adam
    assert not moments['embeddings']['word'].is_fully_replicated


def test_moments_of_parameters_that_are_not_trained_do_not_change():
  params = {name: {'kernel': jnp.ones((2, 2))} for name in ('discriminator', 'generator')}
  old = optax.scale_by_lion().init(params)
  new = jax.tree.map(lambda x: x + 1, old)

  def only_generator(new, old):
    return old | {'generator': new['generator']}

  state = with_moments(new, params, only_generator, old)
  assert state.count == 1
  assert not state.mu['discriminator']['kernel'].any() and state.mu['generator']['kernel'].all()


def test_the_published_schedule_is_bitwise_its_formula():
  def before(step, rate, warmup_steps, steps):
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum(1.0, step / warmup_steps) if warmup_steps else 1.0
    return rate * jnp.maximum(0.0, 1.0 - step / steps) * warmup

  every = jnp.arange(1_100)
  for numbers in ((5e-4, 100, 1_000), (2e-4, 0, 1_000), (1e-2, 3, 1_097)):
    schedule, published = (
      schedules.WarmupDecay(*numbers),
      lambda step, numbers=numbers: before(step, *numbers),
    )
    assert np.array_equal(schedule(every), published(every))
    assert np.array_equal(jax.jit(schedule)(every), jax.jit(published)(every))


def test_the_schedule_of_the_large_batch_recipe_agrees_with_keras():
  schedule = jax.jit(schedules.WarmupDecay(6e-3, 2_000, 10_000, power=0.5, after_warmup=True))
  steps = np.array([0, 1, 1_000, 1_999, 2_000, 4_000, 8_000, 9_999, 10_000, 12_000])
  # PolynomialDecay of Keras over the steps after a warm-up that ends at the full rate.
  expected = [
    6e-3 * (t / 2_000 if t < 2_000 else max(0, 1 - (t - 2_000) / 8_000) ** 0.5) for t in steps
  ]
  np.testing.assert_allclose([schedule(t) for t in steps], expected, rtol=1e-5, atol=3e-8)
  # In the original program both factors apply at once, so that the full rate is never reached.
  at_once = schedules.WarmupDecay(6e-3, 2_000, 10_000, power=0.5)
  np.testing.assert_allclose(at_once(2_000), 6e-3 * 0.8**0.5, rtol=1e-6)
  assert schedules.WarmupDecay(6e-3, 0, 10, power=0.5, after_warmup=True)(0) == np.float32(6e-3)


def test_schedules_of_phases_start_at_their_boundaries():
  of_phase = [
    schedules.WarmupDecay(6e-3, 4, 10, power=0.5, after_warmup=True),
    schedules.WarmupDecay(4e-3, 2, 6, power=0.5, after_warmup=True),
    lambda step: 1.0 * step,
  ]
  schedule = schedules.Piecewise(of_phase, [10, 16])
  expected = (
    [of_phase[0](t) for t in range(10)] + [of_phase[1](t) for t in range(6)] + [0.0, 1.0, 2.0]
  )
  every = np.array([jax.jit(schedule)(jnp.int32(t)) for t in range(19)])
  np.testing.assert_allclose(every, expected, rtol=1e-6)
  np.testing.assert_allclose([schedule(t) for t in range(19)], expected, rtol=1e-6)
  assert every[9] > 0 and every[10] == 0 and every[12] == np.float32(4e-3)
  assert schedules.Piecewise(of_phase[:1], [])(4) == np.float32(6e-3)
  for wrong in ([10], [10, 16, 20], [16, 10]):
    with pytest.raises(
      ValueError, match='boundaries of 3 schedules are .* expected 2 ascending steps'
    ):
      schedules.Piecewise(of_phase, wrong)


def test_moments_are_kept_from_phase_to_phase():
  """At the boundary the rate is 0, and the state is that of a run without phases."""
  params = {'head': {'kernel': np.ones((3, 2), np.float32)}}
  grads = gradients(params, steps=4)
  phases = schedules.Piecewise([lambda step: 1e-2, schedules.WarmupDecay(1e-2, 2, 4)], [2])
  optimizer = lamb(phases)
  every = run(optimizer, params, grads)
  same(every[2], every[1], rtol=0)
  assert np.abs(every[3]['head']['kernel'] - every[2]['head']['kernel']).max() > 1e-4


def test_the_config_of_the_large_batch_recipe_has_the_published_number_of_tokens_and_divides():
  config = runpy.run_path(str(micro_run.ROOT / 'configs' / 'base_lamb.py'))['get_config']()
  assert (
    round(sum(p['steps'] * p['batch_size'] * p['sequence_length'] for p in config.phases) / 1e9, 1)
    == 99.7
  )
  assert config.steps == sum(phase['steps'] for phase in config.phases)
  for devices in (1, 16, 64, 256, 1_024, 3 * 128):
    assert all(phase['batch_size'] % devices == 0 for phase in config.phases)


#### Bias correction ####


def directions(optimizer, params, grads, trained):
  """The updates of each step, where only some parameters are trained in the first steps."""
  # The step of training leaves moments and counts of other parameters as they are.
  state, every = optimizer.init(params), []
  for step, tree in enumerate(grads):
    updates, new = optimizer.update(tree, state, params)
    names = trained if step < len(grads) - 1 else params.keys()
    state = with_moments(
      new, params, lambda a, b, names=names: {n: (a if n in names else b)[n] for n in a}, state
    )
    every.append(updates)
  return every


def test_separate_counts_equal_adam_where_all_is_trained_from_the_start():
  params = {'generator': {'kernel': jnp.ones(3)}, 'discriminator': {'kernel': jnp.ones(4)}}
  grads = gradients(params, 3)
  ours, theirs = (
    directions(make(0.9, 0.99, 1e-6), params, grads, params.keys())
    for make in (optimizers.scale_by_adam_with_separate_counts, optax.scale_by_adam)
  )
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_first_updates_of_a_discriminator_that_starts_late_are_as_large_as_any_first_updates():
  params = {'generator': {'kernel': jnp.ones(3)}, 'discriminator': {'kernel': jnp.ones(4)}}
  grads = 40 * gradients(params)

  def first_update(count):
    config = {'bias_correction': True, 'update_counts': count, 'weight_decay': 0.0, 'eps': 1e-12}
    settings = conftest.optimizer_settings(lambda step: 1.0, **config, clip=0.0)
    found = directions(optimizers.adamw(settings), params, grads, ['generator'])[-1]
    return np.abs(found['discriminator']['kernel'])

  np.testing.assert_allclose(first_update('separate'), 1.0, rtol=1e-5)
  # 0.1 / sqrt(0.001) of an update without correction, up to the correction of 200 updates.
  assert (first_update('shared') > 1.3).all()


def test_separate_counts_are_replicated_and_start_at_0():
  optimizer = lamb(rate)
  params = conftest.random_params(conftest.tiny_electra())
  (state,) = (x for x in optimizer.init(params) if isinstance(x, optax.ScaleByAdamState))
  assert state.count == dict.fromkeys(params, 0)

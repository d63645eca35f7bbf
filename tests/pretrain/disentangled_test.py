"""Gradient-disentangled embeddings: each loss has its own part, and the folded sum is equal."""

import dataclasses

import conftest
import flax.linen as nn
import jax
import jax.numpy as jnp
import made_run
import numpy as np
import pytest

import electra_jax
from electra_jax import export
from electra_jax.config import FinetuningConfig, checked_pretraining, phases_of
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.finetune import initial
from electra_jax.interop import own
from electra_jax.interop.weights import same_bits
from electra_jax.model.sharing.disentangled import SCHEME
from electra_jax.pretrain import build, pretrain_step
from electra_jax.pretrain.continued.initial_state import initial_state
from electra_jax.pretrain.objectives.parts import LossContext
from electra_jax.pretrain.resolve import resolve_run
from electra_jax.training import checkpoints, optimizers, partitioning

ROWS = conftest.packed_rows(4, 16, 60, seed=3)


def config_of(*fields, family='electra'):
  config = conftest.micro_config('sharing=disentangled', *fields)
  config.model.update(
    family=family,
    hidden_size=32,
    embedding_size=24 if family == 'electra' else 32,
    num_layers=1,
    num_heads=2,
    intermediate_size=64,
    max_positions=40,
    layer_norm_eps=1e-12 if family == 'electra' else 1e-5,
  )
  return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The folder of a run with large random parameters, differences included."""
  folder = tmp_path_factory.mktemp('disentangled')
  made_run.make(
    folder / 'run', config_of(), load_tokenizer(made_run.wordpiece(folder / 'vocabulary'))
  )
  return folder / 'run'


@pytest.fixture(scope='module')
def stepped():
  """Parameters before and after three steps, and then the gradients of each loss."""
  c = checked_pretraining(config_of())
  p = build.program(
    c,
    phases_of(c)[0],
    build.any_tokenizer(60),
    partitioning.make_layout(devices=jax.devices()[:1]),
  )
  rng = np.random.default_rng(0)
  params = jax.tree_util.tree_map_with_path(  # drawn without a compilation; differences are zeros
    lambda path, x: (
      np.zeros(x.shape, np.float32)
      if path[0].key == 'embeddings_difference' and path[1].key != 'norm'
      else rng.normal(1 if path[-1].key == 'scale' else 0, 0.1, x.shape).astype(np.float32)
    ),
    p.shapes.params,
  )

  @jax.jit
  def prepare():
    examples = p.objective.examples(p.settings, ROWS, jax.vmap(jax.random.key)(jnp.arange(4)))
    return examples, p.objective.counts(p.settings, examples)

  examples, counts = prepare()

  @jax.jit
  def gradients(params, generator_weight, discriminator_weight):
    settings = dataclasses.replace(
      p.settings, generator_weight=generator_weight, discriminator_weight=discriminator_weight
    )
    context = LossContext(settings, p.model, examples, counts, train=False)
    return jax.grad(lambda params: p.objective.loss(params, context)[0])(params)

  @jax.jit
  def update(gradients, opt_state, params):
    updates, opt_state = p.optimizer.update(gradients, opt_state, params)
    return jax.tree.map(jnp.add, params, updates), opt_state

  before, opt_state = params, jax.jit(p.optimizer.init)(params)
  for _ in range(3):
    params, opt_state = update(gradients(params, 1.0, 50.0), opt_state, params)
  return (
    before,
    jax.device_get(params),
    jax.device_get(gradients(params, 1.0, 0.0)),
    jax.device_get(gradients(params, 0.0, 50.0)),
  )


def test_the_difference_is_initialized_with_zeros():
  c = checked_pretraining(config_of())
  model = build.build_model(c, 60)
  difference = jax.jit(
    lambda: nn.unbox(pretrain_step.init_params(model, 0, 8))['embeddings_difference']
  )()
  assert (
    not any(table.any() for table in tables(difference).values())
    and (difference['norm']['scale'] == 1).all()
  )


def tables(tree):
  return {name: table for name, table in tree.items() if name != 'norm'}


def test_each_loss_has_gradients_of_its_own_part_only(stepped):
  _, _, of_generator, of_discriminator = stepped

  def zero(tree):
    return not any(x.any() for x in jax.tree.leaves(tree))

  for name in ('embeddings_difference', 'discriminator', 'discriminator_head'):
    assert zero(of_generator[name]) and not any(
      zero(x) for x in jax.tree.leaves(tables(of_discriminator[name])) if x.ndim == 2
    ), name
  for name in ('generator_embeddings', 'generator', 'generator_head'):
    assert zero(of_discriminator[name]) and not any(
      zero(x) for x in jax.tree.leaves(tables(of_generator[name])) if x.ndim == 2
    ), name


def test_both_parts_are_trained(stepped):
  before, after, *_ = stepped
  for name, table in tables(before['embeddings_difference']).items():
    assert (table != after['embeddings_difference'][name]).any(), name
    assert (before['generator_embeddings'][name] != after['generator_embeddings'][name]).any(), name


def test_folded_tables_are_those_of_the_generator_plus_the_difference(run):
  weights, raw = own.read_weights(str(run)), checkpoints.read_arrays(run, 7, 'params')
  size = weights.vocab_size
  assert (
    weights.sharing == 'none'
    and 'embeddings_difference' not in weights.params
    and 'embeddings_difference' not in weights.moments['mu']
  )
  for name, table in tables(weights.params['embeddings']).items():
    parts = [
      raw[part][name][: size if name == 'word' else None]
      for part in ('generator_embeddings', 'embeddings_difference')
    ]
    assert all(np.abs(part).max() > 0.1 for part in parts) and np.array_equal(table, sum(parts)), (
      name
    )
  assert same_bits(weights.params['embeddings']['norm'], raw['embeddings_difference']['norm'])
  assert (
    weights.params['generator_embeddings']['word'].shape
    == weights.params['embeddings']['word'].shape
    == (size, 24)
  )


def test_transformers_computes_the_same_from_the_folded_export(run, tmp_path):
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  transformers.logging.set_verbosity_error()
  torch.set_num_threads(1)
  export.export(str(run), str(tmp_path))
  reading = electra_jax.load(str(run))(made_run.TEXTS)
  inputs = transformers.AutoTokenizer.from_pretrained(f'{tmp_path}/discriminator')(
    made_run.TEXTS, padding=True, return_tensors='pt'
  )
  model, told = transformers.AutoModelForPreTraining.from_pretrained(
    f'{tmp_path}/discriminator', output_loading_info=True
  )
  assert not any(told.values()), told
  with torch.no_grad():
    verdicts = model(**inputs).logits.sigmoid().numpy()
  for i, tokens in enumerate(reading.tokens):
    np.testing.assert_allclose(
      reading.replaced[i, : len(tokens)], verdicts[i, : len(tokens)], rtol=0, atol=1e-6
    )
  assert (tmp_path / 'generator').is_dir()


def test_fine_tuning_starts_from_the_folded_embeddings(run):
  config = FinetuningConfig().replace({'init': str(run)})
  start, weights = initial.open_initial(config), own.read_weights(str(run))
  assert (
    same_bits(
      start.weights, {name: weights.params[name] for name in ('embeddings', 'discriminator')}
    )
    and start.origin['step'] == 7
  )


@pytest.mark.parametrize('sharing', ['embeddings', 'disentangled'])
def test_another_run_continues_from_it(run, sharing):
  config = config_of(
    f'init={run}', 'data.tokenizer=init', f'sharing={sharing}', 'continued.optimizer=kept'
  )
  resolved = resolve_run(config)
  config, source = resolved.config, resolved.source
  start = initial_state(config, source, source.tokenizer)
  weights = own.read_weights(str(run))
  if sharing == 'embeddings':  # the scheme is that of the weights
    assert config.sharing == 'none' and same_bits(start.params, weights.params)
    return
  assert config.sharing == 'disentangled' and 'embeddings' not in start.params
  again = SCHEME.fold(start.params)
  assert same_bits(again['generator_embeddings'], weights.params['generator_embeddings'])
  for name, table in weights.params['embeddings'].items():
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
      again['embeddings'][name],
      table,
    )
  assert same_bits(SCHEME.fold(start.moments['mu'], values=False), weights.moments['mu'])


def test_lamb_does_not_keep_the_difference_at_zero():
  settings = conftest.optimizer_settings(
    lambda step: 0.01, weight_decay=0.0, clip=0.0, bias_correction=True
  )
  optimizer = optimizers.lamb(settings)
  params = {
    'embeddings_difference': {'word': jnp.zeros((4, 8))},
    'discriminator': {'kernel': jnp.full((4, 8), 1e-3)},
  }
  state, gradients = optimizer.init(params), jax.tree.map(jnp.ones_like, params)
  for _ in range(10):
    updates, state = optimizer.update(gradients, state, params)
    params = jax.tree.map(jnp.add, params, updates)
  np.testing.assert_allclose(
    params['embeddings_difference']['word'], -0.1, rtol=1e-3
  )  # the rate, from zero
  assert jnp.abs(params['discriminator']['kernel']).max() < 2e-3  # scaled to its norm

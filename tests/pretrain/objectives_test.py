"""Each objective equals its definition in NumPy, and has gradients only where it should."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from conftest import packed_rows, random_params

from electra_jax import registry
from electra_jax.config import checked_pretraining, default_config, phases_of, with_arguments
from electra_jax.errors import UserError
from electra_jax.model.config import EncoderConfig, generator_config
from electra_jax.model.electra import Electra
from electra_jax.model.randomness import row_keys
from electra_jax.pretrain import build, masking, metrics, pretrain_step, replacement
from electra_jax.pretrain.objectives import parts
from electra_jax.pretrain.objectives.parts import LossContext
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.training import partitioning

VOCAB = 60
LENGTH = 24
ROWS = 4
# electric has tests in pretrain/electric_test.py.
NAMES = tuple(name for name in registry.OBJECTIVES if name != 'electric')


def build_model(name, sharing='none', uniform=False):
  main = EncoderConfig(
    family='modern',
    vocab_size=VOCAB,
    vocab_multiple=8,
    hidden_size=16,
    embedding_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=24,
    dropout=0.0,
    attention_dropout=0.0,
    initializer_range=0.3,
  )
  objective = registry.OBJECTIVES.get(name)
  heads = tuple(head for head in objective.heads if not uniform or head != 'generator_head')
  if objective.one_tower:
    return Electra(main, main, sharing='all', heads=heads)
  return Electra(generator_config(main, 0.5, 1.0), main, sharing=sharing, heads=heads)


def has_generator(model):
  return 'generator_head' in model.heads and model.sharing != 'all'


@pytest.fixture(scope='module')
def batch():
  """Settings, and rows that were masked with them."""
  settings = Settings(max_predictions=masking.max_predictions(0.15, LENGTH), temperature=2.0)
  ids = jnp.asarray(packed_rows(ROWS, LENGTH, VOCAB, empty_rows=1))
  masked = jax.jit(lambda ids: parts.mask_rows(settings, ids, row_keys(0, 0, jnp.arange(ROWS))))
  return settings, masked(ids)


@pytest.fixture(scope='module')
def evaluate(batch):
  """`evaluated`, cached."""
  return functools.cache(lambda name, **kwargs: evaluated(name, batch, **kwargs))


def evaluated(name, batch, **kwargs):
  """Loss, sums, gradients and parameters of an objective; gradients of the generator's loss."""
  settings, examples = batch
  settings = Settings(**{**vars(settings), 'name': name})
  model, objective = build_model(name, **kwargs), registry.OBJECTIVES.get(name)
  params = random_params(model)
  counts = objective.counts(settings, examples)
  context = LossContext(settings, model, examples, counts, train=False)

  @jax.jit
  def differentiate(params):
    of_generator = has_generator(model) and jax.grad(
      lambda params: parts.predict_masked(params, context).loss
    )(params)
    return (
      jax.value_and_grad(lambda params: objective.loss(params, context), has_aux=True)(params),
      of_generator,
    )

  ((value, sums), gradients), of_generator = differentiate(params)
  return types.SimpleNamespace(
    objective=objective,
    of_generator=of_generator,
    settings=settings,
    model=model,
    params=params,
    value=float(value),
    sums=jax.device_get(sums),
    gradients=gradients,
    apply=functools.partial(jax.jit(model.apply, static_argnames='method'), {'params': params}),
  )


def definition(name, batch, e) -> dict[str, float]:
  """The losses in NumPy, token by token, from the logits of the towers."""
  _, examples = batch
  inputs, masks = examples['inputs'], examples['masks']
  ids, positions, weights = (
    np.asarray(x) for x in (inputs.token_ids, masks.positions, masks.weights)
  )
  logits = e.apply(
    inputs._replace(token_ids=masks.token_ids), masks.positions, method='generator_logits'
  )
  generator = scipy.special.log_softmax(np.float64(logits), -1)
  masked = [
    (row, slot) for row in range(ROWS) for slot in range(positions.shape[1]) if weights[row, slot]
  ]
  losses = {
    'generator_loss': np.mean(
      [-generator[row, slot, ids[row, positions[row, slot]]] for row, slot in masked]
    )
  }
  if name == 'mlm':
    return losses

  @jax.jit
  def sample(logits, keys):
    keys = masking.stream(keys, masking.GUMBEL)
    return replacement.sample(logits, keys, temperature=e.settings.temperature)

  samples = np.asarray(sample(logits, examples['keys']))
  corrupted = ids.copy()
  for row, slot in masked:
    corrupted[row, positions[row, slot]] = samples[row, slot]
  read = inputs._replace(token_ids=jnp.asarray(corrupted))
  tokens = [
    (row, place)
    for row in range(ROWS)
    for place in range(LENGTH)
    if ids[row, place] != e.settings.pad_id
  ]
  if name in ('electra', 'electra_15', 'all_tokens_mlm'):
    p_replaced = scipy.special.expit(np.float64(e.apply(read, method='discriminator_logits')))
  if name in ('electra', 'electra_15'):
    judged = tokens if name == 'electra' else [(row, positions[row, slot]) for row, slot in masked]
    losses['discriminator_loss'] = np.mean(
      [-np.log(p_replaced[at] if corrupted[at] != ids[at] else 1 - p_replaced[at]) for at in judged]
    )
  if name == 'replace_mlm':
    main = np.float64(e.apply(read, masks.positions, method='predictor_logits'))
    main = scipy.special.log_softmax(main, -1)
    losses['prediction_loss'] = np.mean(
      [-main[row, slot, ids[row, positions[row, slot]]] for row, slot in masked]
    )
  if name == 'all_tokens_mlm':
    predictions = e.apply(e.apply(read, method='hidden_states'), method='predictions')
    softmax = scipy.special.softmax(np.float64(predictions), -1)

    def copy(at):
      return 1 - p_replaced[at]

    losses['prediction_loss'] = np.mean(
      [
        -np.log(copy(at) * (corrupted[at] == ids[at]) + (1 - copy(at)) * softmax[(*at, ids[at])])
        for at in tokens
      ]
    )
  return losses


@pytest.mark.parametrize('name', NAMES)
def test_losses_equal_their_definition(name, batch, evaluate):
  e = evaluate(name)
  expected = definition(name, batch, e)
  found = metrics.compute(e.sums)
  assert set(expected) == set(e.objective.losses)
  for loss, value in expected.items():
    assert found[loss] == pytest.approx(value, rel=1e-5), loss
  weights = {'generator_loss': 1.0, 'discriminator_loss': 50.0, 'prediction_loss': 1.0}
  assert e.value == pytest.approx(
    sum(weights[loss] * value for loss, value in expected.items()), rel=1e-5
  )
  assert e.objective.total_loss(e.settings, found) == pytest.approx(e.value, rel=1e-5)


@pytest.mark.parametrize('name', [name for name in NAMES if name != 'mlm'])
def test_samples_have_no_gradient(name, evaluate):
  """With separate towers the generator's gradient is that of its own loss."""
  e = evaluate(name)
  for part in ('generator', 'generator_head', 'generator_embeddings'):
    for ours, own in zip(
      jax.tree.leaves(e.gradients[part]), jax.tree.leaves(e.of_generator[part]), strict=True
    ):
      np.testing.assert_allclose(ours, own, rtol=1e-5, atol=1e-6 * float(jnp.abs(own).max()))
  for part in ('embeddings', 'discriminator'):
    assert optax.tree.norm(e.gradients[part]) > 0 == optax.tree.norm(e.of_generator[part])


@pytest.mark.parametrize('name', ['electra'])
def test_a_uniform_generator_samples_all_tokens_equally(name, batch, evaluate):
  e = evaluate(name, uniform=True, sharing='embeddings')
  assert not [part for part in e.params if part.startswith('generator')]
  assert metrics.compute(e.sums)['generator_loss'] == pytest.approx(np.log(VOCAB), rel=1e-6)
  settings, examples = batch
  keys = jax.random.split(jax.random.key(3), 400)

  @jax.jit
  def sample(inputs, keys):
    logits = e.model.generator_logits(inputs, jnp.zeros((len(keys), 30), jnp.int32))
    return replacement.sample(logits, keys, temperature=1.0)

  drawn = np.bincount(np.asarray(sample(examples['inputs'], keys)).ravel(), minlength=VOCAB)
  assert len(drawn) == VOCAB  # padding of the vocabulary is never drawn
  assert scipy.stats.chisquare(drawn).pvalue > 1e-4


def test_the_disentangled_discriminator_has_no_gradient_to_the_generators_embeddings(evaluate):
  e = evaluate('electra', sharing='disentangled')
  generator = e.of_generator
  for ours, own in zip(
    jax.tree.leaves(e.gradients['generator_embeddings']),
    jax.tree.leaves(generator['generator_embeddings']),
    strict=True,
  ):
    np.testing.assert_allclose(ours, own, rtol=1e-5, atol=1e-7)
  assert (
    optax.tree.norm(e.gradients['embeddings_difference'])
    > 0
    == optax.tree.norm(generator['embeddings_difference'])
  )


def test_without_a_difference_the_disentangled_discriminator_reads_the_generators_embeddings(batch):
  _, examples = batch
  model = build_model('electra', 'disentangled')
  difference = jax.jit(
    lambda: nn.unbox(pretrain_step.init_params(model, 0, LENGTH))['embeddings_difference']
  )()
  assert not difference['word'].any()
  params = random_params(model)
  params['embeddings_difference'] = difference | {'norm': params['generator_embeddings']['norm']}
  folded = {
    **{name: tree for name, tree in params.items() if name != 'embeddings_difference'},
    'embeddings': params['generator_embeddings'],
  }

  def logits(model, params):
    apply = jax.jit(functools.partial(model.apply, method='discriminator_logits'))
    return apply({'params': params}, examples['inputs'])

  ours = logits(model, params)
  np.testing.assert_array_equal(ours, logits(build_model('electra', 'none'), folded))


@pytest.mark.parametrize(
  'name, heads',
  [
    ('electra', {'generator_head', 'discriminator_head'}),
    ('electra_15', {'generator_head', 'discriminator_head'}),
    ('mlm', {'generator_head'}),
    ('replace_mlm', {'generator_head', 'predictor_head'}),
    ('all_tokens_mlm', {'generator_head', 'discriminator_head', 'predictor_head'}),
    ('electric', {'generator_head', 'discriminator_head'}),
  ],
)
def test_the_config_selects_the_objective_and_the_main_tower_has_one_name(name, heads):
  c = with_arguments(default_config(), f'objective={name}')
  c = checked_pretraining(c)
  (phase,) = phases_of(c)
  p = build.program(
    c,
    phase,
    build.any_tokenizer(VOCAB),
    partitioning.make_layout(devices=jax.devices()[:1]),
  )
  assert p.objective is registry.OBJECTIVES.get(name) and p.settings.name == name
  assert {part for part in p.shapes.params if part.endswith('_head')} == heads
  assert {'embeddings', 'discriminator'} <= set(p.shapes.params)
  assert p.shapes.params['discriminator']['layers']['query']['kernel'].shape == (12, 256, 256)
  assert ('generator' in p.shapes.params) == (name not in ('mlm', 'electric'))


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'objective.name': 'bert'}, 'electra, mlm'),
    ({'objective.name': 'mlm', 'generator.uniform': True}, 'has no generator'),
    (
      {'objective.name': 'electric', 'sharing': 'all', 'generator.hidden_fraction': 1.0},
      'two towers',
    ),
    ({'generator.uniform': True, 'generator.alone_steps': 10}, 'no parameters to train'),
    ({'generator.uniform': True, 'objective.temperature': 0.0}, 'any temperature'),
    (
      {
        'objective.name': 'all_tokens_mlm',
        'objective.schedules.discriminator_weight': ('linear', 50.0, 1.0),
      },
      'has no effect',
    ),
    ({'sharing': 'tied'}, 'disentangled'),
  ],
)
def test_configs_that_contradict_an_objective_are_refused(fields, message):
  c = default_config()
  c.update_from_flattened_dict(fields)
  with pytest.raises(UserError, match=message):
    checked_pretraining(c)

"""Electric equals the original program and its definition; its generator sees only other tokens."""

import dataclasses
import functools
import pathlib

import flax.linen as nn
import golden_tensors as golden
import jax
import jax.numpy as jnp
import made_run
import numpy as np
import optax
import pytest
from conftest import CLS, MASK, PAD, SEP, packed_rows, random_params, tiny_electra

from electra_jax import export, main
from electra_jax.config import checked_pretraining
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.errors import UserError
from electra_jax.interop import huggingface, own
from electra_jax.interop.weights import same_bits
from electra_jax.model import attention, electra
from electra_jax.model.config import EncoderConfig
from electra_jax.model.electra import Electra
from electra_jax.model.encoder import packed_inputs
from electra_jax.model.randomness import row_keys
from electra_jax.pretrain import pretrain_step
from electra_jax.pretrain.masking import Masks
from electra_jax.pretrain.objectives import electric, parts
from electra_jax.pretrain.objectives.chunked import token_log_probabilities
from electra_jax.pretrain.objectives.parts import LossContext
from electra_jax.pretrain.objectives.settings import Settings

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'electric.npz'
OBJECTIVE = electric.OBJECTIVE
SETTINGS = Settings(name='electric')
SIDES = ('generator_ltr', 'generator_rtl')


def two_towers(**fields):
  return tiny_electra(**fields).clone(two_tower=True)


def original_name(path):
  top, *rest = (entry.key for entry in path)
  if top in SIDES:
    return golden.original_name(['generator', *rest]).replace('generator', top, 1)
  return golden.original_name([top, *rest]).replace('generator_predictions', 'cloze_predictions')


def names(path, layers):
  """Names of the original's tensors that are one of ours, stacked."""
  name = original_name(path)
  return [name.format(i) for i in range(layers)] if '{}' in name else [name]


def original_model_and_params(file):
  sizes = {
    'vocab_size': 300,
    'embedding_size': 24,
    'intermediate_size': 96,
    'max_positions': 40,
    'vocab_multiple': 1,
  }
  model = Electra(
    EncoderConfig(hidden_size=24, num_layers=2, num_heads=1, **sizes),
    EncoderConfig(hidden_size=48, num_layers=3, num_heads=4, **sizes),
    two_tower=True,
  )
  used = []

  def read(path, shape):
    found = names(path, shape.shape[0])
    used.extend(found)
    values = [file[f'var/{name}:0'] for name in found]
    value = np.stack(values) if '{}' in original_name(path) else values[0]
    assert value.shape == shape.shape, path
    return jnp.asarray(value)

  params = jax.tree_util.tree_map_with_path(
    read, nn.unbox(jax.eval_shape(lambda: pretrain_step.init_params(model, 0, 8)))
  )
  assert sorted(used) == sorted(name[4:-2] for name in file.files if name.startswith('var/'))
  return model, params


def as_original(patch):
  """Makes the ends of rows as in the original.

  There, states wrap around the ends of a row, and padding attends to tokens, or to everything where
  there are none. This has an effect only at [CLS] and the last [SEP], which are never noise. Here,
  zeros replace a side that a document does not have.
  """
  ours = attention.visible_positions

  def visible(segment_ids, is_global, reach, direction='both'):
    if direction == 'both':
      return ours(segment_ids, is_global, reach)
    sees = (
      ours(jnp.ones_like(segment_ids), is_global, reach, direction)
      & (segment_ids > 0)[:, None, None, :]
    )
    return sees | ~sees.any(-1, keepdims=True)

  patch.setattr(attention, 'visible_positions', visible)
  patch.setattr(
    electra,
    'neighbors',
    lambda ltr, rtl, _: jnp.concatenate([jnp.roll(ltr, 1, 1), jnp.roll(rtl, -1, 1)], -1),
  )


@functools.cache
def compiled(ends_as_original: bool, gradients: bool = True):
  """The file; a compiled function of parameters; the file's parameters.

  The function returns losses, predictions and gradients on the batch of the file.
  """
  file = np.load(GOLDEN)
  model, params = original_model_and_params(file)
  inputs = golden.inputs_of(file)
  masks = Masks(
    *(
      jnp.asarray(file[f'masked/{name}'])
      for name in ('masked_lm_positions', 'masked_lm_weights', 'input_ids')
    )
  )
  batch = {'inputs': inputs, 'masks': masks, 'keys': None}
  counts = OBJECTIVE.counts(SETTINGS, batch)
  # See golden_tensors.
  samples = jnp.take_along_axis(jnp.asarray(file['fake_ids']), masks.positions, 1)
  context = LossContext(SETTINGS, model, batch, counts, train=False, samples=samples)

  def loss(params):
    total, sums = OBJECTIVE.loss(params, context)
    proposal, odds = OBJECTIVE.verdicts(params, context)
    logits = model.apply({'params': params}, inputs, masks.positions, method='generator_logits')
    masked = (
      optax.softmax_cross_entropy_with_integer_labels(logits, proposal.original) * masks.weights
    )
    return total, {
      'mlm_loss': masked.sum() / counts['masked'],
      'mlm_logits': logits,
      'disc_loss': sums['discriminator_loss'] / counts['tokens'],
      'disc_probs': jax.nn.sigmoid(odds),
      'is_fake': proposal.labels,
      'fake_ids': proposal.corrupted,
    }

  def run(params):
    if not gradients:
      return loss(params)[1]
    (total, found), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return found | {'total': total, 'grads': grads}

  with pytest.MonkeyPatch.context() as patch:
    if ends_as_original:
      as_original(patch)
    return file, jax.jit(run).lower(params).compile(), params


def compare(file, result):
  for name in ('mlm_loss', 'disc_loss', 'total'):
    golden.close(result[name], file[name], name)
  compare_predictions(file, result, file['input_mask'] > 0)
  compared = 0
  for path, grad in jax.tree_util.tree_leaves_with_path(result['grads']):
    found = names(path, grad.shape[0])
    for name, value in zip(found, grad if '{}' in original_name(path) else [grad], strict=True):
      golden.close(value, file[f'grad/{name}:0'], name)
      compared += 1
  assert compared == sum(name.startswith('grad/') for name in file.files)


def compare_predictions(file, result, where):
  """Compares labels, logits at masked positions, and the discriminator's probabilities `where`."""
  for name in ('fake_ids', 'is_fake'):
    assert np.array_equal(result[name], file[name])
  real = file['masked/masked_lm_weights'] > 0
  golden.close(np.asarray(result['mlm_logits'])[real], file['mlm_logits'][real], 'mlm_logits')
  golden.close(np.asarray(result['disc_probs'])[where], file['disc_probs'][where], 'disc_probs')


def test_losses_logits_probabilities_and_gradients_equal_the_original():
  file, run, params = compiled(ends_as_original=True)
  compare(file, run(params))


def test_a_change_of_one_weight_is_detected():
  file, run, params = compiled(ends_as_original=True)
  kernel = params['generator_rtl']['layers']['value']['kernel']
  layers = params['generator_rtl']['layers'] | {
    'value': params['generator_rtl']['layers']['value'] | {'kernel': kernel.at[1, 3, 5].add(1e-3)}
  }
  with pytest.raises(AssertionError):
    compare(file, run(params | {'generator_rtl': params['generator_rtl'] | {'layers': layers}}))


def test_only_the_ends_of_rows_differ_from_the_original():
  file, run, params = compiled(ends_as_original=False, gradients=False)
  place, last = np.arange(32), file['input_mask'].sum(1, keepdims=True) - 1
  compare_predictions(file, run(params), (place > 0) & (place < last))


def changed_rows(pieces, length):
  """A row of pieces, and copies of it with one text token changed each; the changed positions."""
  row = np.full(length, PAD, np.int32)
  row[: sum(map(len, pieces))] = np.concatenate(pieces)
  places = np.flatnonzero(row > MASK)
  rows = np.repeat(row[None], 1 + len(places), 0)
  rows[1 + np.arange(len(places)), places] = MASK + 1 + (row[places] - MASK) % 50
  assert (rows[1:] != row).sum() == len(places)
  return rows, places


@pytest.mark.parametrize('family', ['electra', 'modern'])
def test_a_token_is_predicted_from_exactly_the_other_tokens_of_its_document(family):
  # Every second layer of the modern family is local: two positions on each side.
  model = two_towers(family=family, num_layers=3, num_heads=2, global_every=2, local_window=4)
  rng = np.random.default_rng(0)
  pieces = [np.r_[CLS, rng.integers(MASK + 1, 55, n), SEP] for n in (7, 1, 9)]
  rows, places = changed_rows(pieces, 25)
  states = jax.jit(
    lambda params, rows: model.apply(
      {'params': params}, packed_inputs(rows, PAD, CLS, SEP), method='cloze_states'
    )
  )
  found = np.asarray(states(random_params(model), rows))
  document = np.repeat(np.arange(4), [*map(len, pieces), 25 - sum(map(len, pieces))])
  moved = np.abs(found[1:] - found[0])  # [change, length, 2 x hidden]
  other = (document[places][:, None] != document) | (places[:, None] == np.arange(25))
  assert moved[other].max() == 0
  assert moved[~other].max(-1).min() > 1e-4, 'the change affects all other tokens of the document'
  # The left tower does not see tokens to the right, and vice versa.
  hidden = found.shape[-1] // 2
  right = np.arange(25) > places[:, None]
  assert moved[..., :hidden][~right].max() == 0 and moved[..., hidden:][right].max() == 0
  starts, ends = np.flatnonzero(rows[0] == CLS), np.flatnonzero(rows[0] == SEP)
  assert not found[:, starts, :hidden].any() and not found[:, ends, hidden:].any()


def log_softmax(logits):
  return (
    logits
    - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    - logits.max(-1, keepdims=True)
  )


def example(sharing='embeddings'):
  model = two_towers(vocab_size=50, sharing=sharing, num_layers=1)
  settings = Settings(
    name='electric',
    max_predictions=5,
    mask_rate=0.2,
    generator_weight=0.7,
    discriminator_weight=3.0,
  )
  masked = jax.jit(lambda ids: parts.mask_rows(settings, ids, row_keys(0, 0, jnp.arange(6))))
  return model, settings, masked(packed_rows(6, 24, 50, empty_rows=1))


def test_the_loss_equals_its_definition():
  model, settings, batch = example()
  params, counts = random_params(model), OBJECTIVE.counts(settings, batch)
  inputs, masks = jax.device_get((batch['inputs'], batch['masks']))
  ids, length = inputs.token_ids, inputs.token_ids.shape[1]
  samples = np.random.default_rng(0).integers(MASK + 1, 50, masks.positions.shape).astype(np.int32)
  # Noise that equals the original.
  samples[:, 0] = np.take_along_axis(ids, masks.positions, 1)[:, 0]

  corrupted = ids.copy()
  for row, position in np.argwhere(masks.weights):
    corrupted[row, masks.positions[row, position]] = samples[row, position]

  @jax.jit
  def everything(params):
    context = LossContext(settings, model, batch, counts, train=False, samples=jnp.asarray(samples))
    total, sums = OBJECTIVE.loss(params, context)
    everywhere = jnp.broadcast_to(jnp.arange(length), ids.shape)
    read = batch['inputs']._replace(token_ids=corrupted)
    return (
      total,
      sums,
      model.apply({'params': params}, batch['inputs'], everywhere, method='generator_logits'),
      model.apply({'params': params}, read, method='discriminator_logits'),
    )

  total, sums, logits, energies = jax.device_get(everything(params))
  log_q = log_softmax(logits.astype(np.float64))

  cloze = binary = 0.0
  candidates = tokens = noised = 0
  for row in range(len(ids)):
    noise = masks.positions[row][masks.weights[row] > 0]
    for place in range(length):
      if ids[row, place] == PAD:
        continue
      odds = energies[row, place] + log_q[row, place, corrupted[row, place]] + np.log(0.2 / 0.8)
      binary += np.logaddexp(0, -odds if place in noise else odds)
      tokens, noised = tokens + 1, noised + (place in noise)
      if ids[row, place] not in (CLS, SEP, MASK):
        candidates, cloze = candidates + 1, cloze - log_q[row, place, ids[row, place]]
  assert noised > (corrupted != ids).sum()
  np.testing.assert_allclose(total, 0.7 * cloze / candidates + 3 * binary / tokens, rtol=1e-5)
  np.testing.assert_allclose(
    (sums['generator_loss'], sums['discriminator_loss']), (cloze, binary), rtol=1e-5
  )
  assert sums['candidates'] == candidates and sums['scores'].sum(-1).tolist() == [
    tokens - noised,
    noised,
  ]


def test_noise_has_no_gradient_of_the_discriminators_loss():
  model, settings, batch = example('disentangled')
  settings = dataclasses.replace(settings, generator_weight=0.0)
  counts = OBJECTIVE.counts(settings, batch)
  params = random_params(model)
  context = LossContext(settings, model, batch, counts, train=False)
  grads = jax.jit(jax.grad(lambda params: OBJECTIVE.loss(params, context)[0]))(params)
  reached = {
    top for top, tree in grads.items() if any(np.any(leaf) for leaf in jax.tree.leaves(tree))
  }
  assert reached == {'embeddings_difference', 'discriminator', 'discriminator_head'}
  assert set(grads) - reached == {
    'generator_embeddings',
    'generator_ltr',
    'generator_rtl',
    'generator_head',
  }


@pytest.mark.parametrize('kernel', ['splash', 'cudnn'])
def test_only_the_discriminator_uses_kernels_that_see_both_sides(kernel):
  with pytest.raises(ValueError, match="does not support direction 'left'"):
    EncoderConfig(attention=kernel, attention_dropout=0.0, direction='left')
  model = two_towers(attention=kernel).bind({})
  assert [
    tower.config.attention
    for tower in (model.generator_ltr, model.generator_rtl, model.discriminator)
  ] == ['xla', 'xla', kernel]


def test_sharing_all_parameters_is_refused():
  with pytest.raises(ValueError, match='read in one direction'):
    jax.eval_shape(
      lambda: pretrain_step.init_params(tiny_electra(sharing='all').clone(two_tower=True), 0, 8)
    )


@pytest.mark.parametrize('chunk', [4, 50])
def test_log_probabilities_in_chunks_and_their_gradients_equal_those_of_all_logits(chunk):
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)

  hidden, kernel, weights, ids = (
    draw(3, 13, 5),
    draw(5, 70),
    draw(3, 13, 2),
    jnp.asarray(rng.integers(0, 70, (3, 13, 2))),
  )

  def in_chunks(hidden, kernel):
    return (weights * token_log_probabilities(lambda x: x @ kernel, hidden, ids, chunk=chunk)).sum()

  def at_once(hidden, kernel):
    return (weights * jnp.take_along_axis(jax.nn.log_softmax(hidden @ kernel), ids, -1)).sum()

  ours, theirs = (
    jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, kernel) for f in (in_chunks, at_once)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), ours, theirs)


def config_of(*fields):
  return main.parse_flags(
    [
      'main',
      '--config=tests/configs/micro.py',
      '--config.objective.name=electric',
      *(f'--config.{field}' for field in fields),
    ]
  ).config


def test_export_writes_the_discriminator_only(tmp_path, capsys):
  config = config_of('sharing=none')
  tokenizer = load_tokenizer(made_run.wordpiece(tmp_path / 'vocabulary'))
  params = jax.device_get(made_run.make(tmp_path / 'run', config, tokenizer).params)
  weights = own.read_weights(str(tmp_path / 'run'))
  assert weights.generator is None and set(weights.params) == {
    'embeddings',
    'discriminator',
    'discriminator_head',
  }
  assert same_bits(
    {name: weights.params[name] for name in ('discriminator', 'discriminator_head')},
    {name: params[name] for name in ('discriminator', 'discriminator_head')},
  )
  export.export(str(tmp_path / 'run'), str(tmp_path / 'out'))
  assert 'two-tower cloze model' in capsys.readouterr().out
  assert [path.name for path in (tmp_path / 'out').iterdir()] == ['discriminator']
  exported = huggingface.read_weights(str(tmp_path / 'out' / 'discriminator'))
  assert same_bits(exported.params, weights.params)


@pytest.mark.parametrize(
  'fields, message',
  [
    (('objective.temperature=0.5',), 'temperature 1.0'),
    (('objective.disallow_correct=True',), 'disallow_correct'),
    (
      ('sharing=all', 'generator.hidden_fraction=1.0'),
      'set --config.sharing to embeddings or none',
    ),
  ],
)
def test_configs_that_contradict_electric_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    checked_pretraining(config_of(*fields))

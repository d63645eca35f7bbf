"""With equal weights, hidden states, logits, losses and gradients equal those of transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from conftest import CLS, MASK, PAD, SEP

from electra_jax.model.config import EncoderConfig
from electra_jax.model.electra import Electra
from electra_jax.model.encoder import Inputs, packed_inputs
from electra_jax.pretrain.masking import Masks
from electra_jax.pretrain.objectives.electra import OBJECTIVE
from electra_jax.pretrain.objectives.parts import LossContext
from electra_jax.pretrain.objectives.settings import Settings

VOCAB, LENGTH = 90, 24
LENGTHS = (24, 17, 9, 3)  # tokens of each row; the rest is padding
SETTINGS = Settings()


def configs(family, embedding_size):
  """The sizes of both towers. ModernBERT has no factorized embeddings in transformers."""
  common = {
    'family': family,
    'vocab_size': VOCAB,
    'max_positions': 32,
    'vocab_multiple': 1,
    'local_window': 8,
    'global_every': 2,
    'layer_norm_eps': 1e-12 if family == 'electra' else 1e-5,
  }
  generator = EncoderConfig(
    hidden_size=16,
    num_heads=2,
    intermediate_size=40,
    num_layers=3,
    embedding_size=embedding_size or 16,
    **common,
  )
  return generator, EncoderConfig(
    hidden_size=32,
    num_heads=4,
    intermediate_size=48,
    num_layers=4,
    embedding_size=embedding_size or 32,
    **common,
  )


def hf_config(c, attention):
  if c.family == 'electra':
    return transformers.ElectraConfig(
      vocab_size=c.vocab_size,
      embedding_size=c.embedding_size,
      hidden_size=c.hidden_size,
      num_hidden_layers=c.num_layers,
      num_attention_heads=c.num_heads,
      intermediate_size=c.intermediate_size,
      max_position_embeddings=c.max_positions,
      pad_token_id=PAD,
      attn_implementation=attention,
    )
  return transformers.ModernBertConfig(
    vocab_size=c.vocab_size,
    hidden_size=c.hidden_size,
    num_hidden_layers=c.num_layers,
    num_attention_heads=c.num_heads,
    intermediate_size=c.intermediate_size,
    local_attention=c.local_window,
    global_attn_every_n_layers=c.global_every,
    num_labels=1,
    pad_token_id=PAD,
    bos_token_id=CLS,
    cls_token_id=CLS,
    eos_token_id=SEP,
    sep_token_id=SEP,
    attn_implementation=attention,
  )


def hf_models(generator, discriminator, attention):
  """Generator and discriminator in PyTorch, float32, without dropout, with large random weights."""
  kinds = {
    'electra': (transformers.ElectraForMaskedLM, transformers.ElectraForPreTraining),
    'modern': (transformers.ModernBertForMaskedLM, transformers.ModernBertForTokenClassification),
  }
  torch.manual_seed(0)
  models = [
    kind(hf_config(c, attention)).eval()
    for kind, c in zip(kinds[generator.family], (generator, discriminator), strict=True)
  ]
  with torch.no_grad():
    for model in models:
      for parameter in model.parameters():
        if parameter.ndim == 2:
          parameter.normal_(std=parameter.shape[1] ** -0.5)
        else:
          parameter += 0.2 * torch.randn_like(parameter)
  return models


def converted(tensors, c, tower):
  """The tree of one tower from the tensors of transformers by name; each tensor is used once."""
  tensors = {
    name.removeprefix('electra.').removeprefix('model.'): value.detach().numpy()
    for name, value in tensors.items()
    if name not in ('generator_lm_head.weight', 'decoder.weight')
  }  # the word embeddings again
  take = tensors.pop

  def kernel(name):
    return take(f'{name}.weight').T

  def stacked(read):
    return np.stack(
      [
        read(f'layers.{i}' if c.family == 'modern' else f'encoder.layer.{i}')
        for i in range(c.num_layers)
      ]
    )

  if c.family == 'electra':

    def dense(name):
      return {'kernel': kernel(name), 'bias': take(f'{name}.bias')}

    def norm(name):
      return {'scale': take(f'{name}.weight'), 'bias': take(f'{name}.bias')}

    def layer_dense(name):
      return {
        'kernel': stacked(lambda layer: kernel(f'{layer}.{name}')),
        'bias': stacked(lambda layer: take(f'{layer}.{name}.bias')),
      }

    def layer_norm(name):
      return {
        'scale': stacked(lambda layer: take(f'{layer}.{name}.weight')),
        'bias': stacked(lambda layer: take(f'{layer}.{name}.bias')),
      }

    embeddings = {
      'word': take('embeddings.word_embeddings.weight'),
      'position': take('embeddings.position_embeddings.weight'),
      'type': take('embeddings.token_type_embeddings.weight'),
      'norm': norm('embeddings.LayerNorm'),
    }
    encoder = {
      'layers': {
        'query': layer_dense('attention.self.query'),
        'key': layer_dense('attention.self.key'),
        'value': layer_dense('attention.self.value'),
        'attention_output': layer_dense('attention.output.dense'),
        'attention_norm': layer_norm('attention.output.LayerNorm'),
        'mlp_in': layer_dense('intermediate.dense'),
        'mlp_output': layer_dense('output.dense'),
        'mlp_norm': layer_norm('output.LayerNorm'),
      }
    }
    if c.embedding_size != c.hidden_size:
      encoder['embeddings_project'] = dense('embeddings_project')
    if tower == 'generator':
      head = {
        'dense': dense('generator_predictions.dense'),
        'norm': norm('generator_predictions.LayerNorm'),
        'bias': take('generator_lm_head.bias'),
      }
    else:
      head = {
        'dense': dense('discriminator_predictions.dense'),
        'prediction': dense('discriminator_predictions.dense_prediction'),
      }
  else:
    embeddings = {
      'word': take('embeddings.tok_embeddings.weight'),
      'norm': {'scale': take('embeddings.norm.weight')},
    }

    def layer_dense(name):
      return {'kernel': stacked(lambda layer: kernel(f'{layer}.{name}'))}

    query, key, value = np.split(layer_dense('attn.Wqkv')['kernel'], 3, axis=2)
    mlp_in, mlp_gate = np.split(layer_dense('mlp.Wi')['kernel'], 2, axis=2)
    # Here a layer has the norm that follows it, in transformers the norm before it; the final norm
    # follows the last layer.
    next_norms = [take(f'layers.{i}.attn_norm.weight') for i in range(1, c.num_layers)] + [
      take('final_norm.weight')
    ]
    encoder = {
      'layers': {
        'query': {'kernel': query},
        'key': {'kernel': key},
        'value': {'kernel': value},
        'attention_output': layer_dense('attn.Wo'),
        'mlp_in': {'kernel': mlp_in},
        'mlp_gate': {'kernel': mlp_gate},
        'mlp_output': layer_dense('mlp.Wo'),
        'mlp_norm': {'scale': stacked(lambda layer: take(f'{layer}.mlp_norm.weight'))},
        'next_norm': {'scale': np.stack(next_norms)},
      }
    }
    head = {'dense': {'kernel': kernel('head.dense')}, 'norm': {'scale': take('head.norm.weight')}}
    if tower == 'generator':
      head['bias'] = take('decoder.bias')
    else:
      head['prediction'] = {'kernel': kernel('classifier'), 'bias': take('classifier.bias')}
  assert not tensors, f'left over: {list(tensors)}'
  return {
    'generator_embeddings' if tower == 'generator' else 'embeddings': embeddings,
    tower: encoder,
    f'{tower}_head': head,
  }


def example():
  """Padded rows of two segments, masks (one row with an empty slot) and samples, some correct."""
  rng = np.random.default_rng(1)
  real = np.arange(LENGTH) < np.array(LENGTHS)[:, None]
  ids = np.where(real, rng.integers(MASK + 1, VOCAB, real.shape), PAD).astype(np.int32)
  ids[:, 0] = CLS
  types = (real & (np.arange(LENGTH) >= np.array(LENGTHS)[:, None] // 2)).astype(np.int32)
  positions = np.stack([rng.permutation(np.arange(1, max(n, 4)))[:3] for n in LENGTHS]).astype(
    np.int32
  )
  weights = np.ones(positions.shape, np.float32)
  positions[3], weights[3] = (1, 2, 0), (1, 1, 0)
  masked, corrupted = ids.copy(), ids.copy()
  samples = rng.integers(MASK + 1, VOCAB, positions.shape).astype(np.int32)
  samples[:, 0] = np.take_along_axis(ids, positions, 1)[:, 0]
  for row, slot in zip(*np.nonzero(weights), strict=True):
    masked[row, positions[row, slot]] = MASK
    corrupted[row, positions[row, slot]] = samples[row, slot]
  inputs = Inputs(
    ids, real.astype(np.int32), np.tile(np.arange(LENGTH, dtype=np.int32), (len(ids), 1)), types
  )
  return jax.tree.map(jnp.asarray, (inputs, Masks(positions, weights, masked), samples, corrupted))


def theirs(models, generator, discriminator):
  """Hidden states, logits, losses and gradients (in our tree) of the two PyTorch models."""
  inputs, masks, _, corrupted = jax.tree.map(np.array, example())
  ids, real = torch.from_numpy(inputs.token_ids).long(), torch.from_numpy(inputs.segment_ids).long()
  masked = np.zeros(ids.shape, bool)
  masked[np.nonzero(masks.weights)[0], masks.positions[masks.weights > 0]] = True
  labels = torch.where(torch.from_numpy(masked), ids, -100)
  fake = torch.from_numpy(corrupted).long()
  types = (
    {'token_type_ids': torch.from_numpy(inputs.type_ids).long()}
    if generator.family == 'electra'
    else {}
  )
  mlm, rtd = models
  for model in models:
    model.zero_grad()
  generated = mlm(
    torch.from_numpy(masks.token_ids).long(),
    attention_mask=real,
    labels=labels,
    output_hidden_states=True,
    **types,
  )
  is_fake = (fake != ids).long()
  if generator.family == 'electra':
    verdicts = rtd(fake, attention_mask=real, labels=is_fake, output_hidden_states=True, **types)
    logits, loss = verdicts.logits, verdicts.loss
  else:
    verdicts = rtd(fake, attention_mask=real, output_hidden_states=True)
    logits = verdicts.logits[..., 0]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
      logits[real == 1], is_fake[real == 1].float()
    )
  (SETTINGS.generator_weight * generated.loss + SETTINGS.discriminator_weight * loss).backward()

  def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}

  at_masks = np.take_along_axis(generated.logits.detach().numpy(), masks.positions[..., None], 1)
  return {
    'generator_hidden': generated.hidden_states[-1],
    'generator_logits': at_masks,
    'generator_loss': generated.loss,
    'discriminator_hidden': verdicts.hidden_states[-1],
    'discriminator_logits': logits,
    'discriminator_loss': loss,
    'gradients': (
      converted(gradients(mlm), generator, 'generator')
      | converted(gradients(rtd), discriminator, 'discriminator')
    ),
  }


def our_function(model):
  """params -> the results of `theirs`."""
  inputs, masks, samples, corrupted = example()
  batch = {'inputs': inputs, 'masks': masks, 'keys': None}
  counts = OBJECTIVE.counts(SETTINGS, batch)
  shown, fake = inputs._replace(token_ids=masks.token_ids), inputs._replace(token_ids=corrupted)

  @jax.jit
  def run(params):
    # The loss below uses the methods of the models; here one pass gives hidden states and logits.
    def generator(m, x):
      return (
        hidden := m.generator(m.generator_embeddings(x), x),
        m.generator_head(
          jnp.take_along_axis(hidden, masks.positions[..., None], 1), m.generator_embeddings.word
        ),
      )

    def discriminator(m, x):
      return (hidden := m.hidden_states(x), m.discriminator_head(hidden))

    generator_hidden, generator_logits = model.apply({'params': params}, shown, method=generator)
    discriminator_hidden, discriminator_logits = model.apply(
      {'params': params}, fake, method=discriminator
    )

    def loss(params):
      context = LossContext(SETTINGS, model, batch, counts, train=False, samples=samples)
      return OBJECTIVE.loss(params, context)

    (_, sums), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return {
      'generator_hidden': generator_hidden,
      'generator_logits': generator_logits,
      'discriminator_hidden': discriminator_hidden,
      'discriminator_logits': discriminator_logits,
      'generator_loss': sums['generator_loss'] / counts['masked'],
      'discriminator_loss': sums['discriminator_loss'] / counts['tokens'],
      'gradients': gradients,
    }

  return run


def close(ours, theirs, what):
  """Agreement to float32 rounding: 1e-5 of the largest value of a tensor.

  Where a gradient is only rounding, 1e-8 of the loss, which is about 50.
  """
  theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  assert ours.shape == theirs.shape, what
  assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max() + 5e-7, (
    what,
    np.abs(ours - theirs).max(),
  )


def compare(ours, theirs):
  real = np.arange(LENGTH) < np.array(LENGTHS)[:, None]  # the states of padding are not used
  for name in ('generator_hidden', 'discriminator_hidden', 'discriminator_logits'):
    close(np.asarray(ours[name])[real], theirs[name].detach().numpy()[real], name)
  for name in ('generator_logits', 'generator_loss', 'discriminator_loss'):
    close(ours[name], theirs[name], name)
  assert jax.tree.structure(ours['gradients']) == jax.tree.structure(theirs['gradients'])
  for (path, gradient), expected in zip(
    jax.tree_util.tree_leaves_with_path(ours['gradients']),
    jax.tree.leaves(theirs['gradients']),
    strict=True,
  ):
    close(gradient, expected, jax.tree_util.keystr(path))


@pytest.fixture(
  scope='module',
  params=[('electra', 24), ('electra', None), ('modern', None)],
  ids=['factorised embeddings', 'embeddings as wide as the towers', 'modern'],
)
def case(request):
  """Sizes, the weights of PyTorch as our parameters, our function, and the results of PyTorch."""
  towers = configs(*request.param)
  models = hf_models(*towers, 'eager')
  params = converted(dict(models[0].named_parameters()), towers[0], 'generator') | converted(
    dict(models[1].named_parameters()), towers[1], 'discriminator'
  )
  params = jax.tree.map(jnp.array, params)
  model = Electra(*towers, sharing='none')
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), example()[0], example()[1].positions)
  )['params']
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(
    jnp.shape, jax.tree.map(lambda x: x.unbox(), shapes, is_leaf=lambda x: hasattr(x, 'unbox'))
  )
  return towers, models, params, model, our_function(model), theirs(models, *towers)


def test_hidden_states_logits_losses_and_every_gradient_agree(case):
  _, _, params, _, run, expected = case
  compare(run(params), expected)


def test_the_fused_attention_kernel_of_pytorch_agrees_too(case):
  towers, models, params, _, run, _ = case
  for model in models:
    model.set_attn_implementation('sdpa')
  expected = theirs(models, *towers)
  for model in models:
    model.set_attn_implementation('eager')
  compare(run(params), expected)


def test_the_comparison_detects_a_change_of_any_tensor(case):
  _, _, params, _, run, expected = case
  leaves, tree = jax.tree.flatten(params)
  for i, (path, gradient) in enumerate(jax.tree_util.tree_leaves_with_path(expected['gradients'])):
    if 'key' in jax.tree_util.keystr(path) and 'bias' in jax.tree_util.keystr(path):
      continue  # adds the same to every score of a query: softmax cancels it
    where = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
    nudged = [*leaves[:i], leaves[i].at[where].add(1e-3), *leaves[i + 1 :]]
    with pytest.raises(AssertionError):
      compare(run(jax.tree.unflatten(tree, nudged)), expected)
      pytest.fail(f'a nudge of {jax.tree_util.keystr(path)} went unnoticed', pytrace=False)


def test_packed_documents_are_computed_as_in_separate_rows(case):
  _, (_, rtd), params, model, _, _ = case
  rng = np.random.default_rng(2)
  pieces = [np.array([CLS, *rng.integers(MASK + 1, VOCAB, n), SEP]) for n in (5, 11)]
  row = np.concatenate([*pieces, np.full(LENGTH - sum(map(len, pieces)), PAD)])[None]
  verdicts = jax.jit(
    lambda params, row: model.apply(
      {'params': params}, packed_inputs(row, PAD, CLS, SEP), method='discriminator_logits'
    )
  )
  logits = verdicts(params, row)[0]
  start = 0
  for piece in pieces:
    alone = rtd(torch.from_numpy(piece)[None]).logits.reshape(-1)
    close(logits[start : start + len(piece)], alone, f'the piece of {len(piece)} tokens')
    start += len(piece)


def test_a_pair_is_one_document_whose_second_text_has_type_1(case):
  towers, (_, rtd), params, model, _, _ = case
  rng = np.random.default_rng(3)
  row = np.array(
    [CLS, *rng.integers(MASK + 1, VOCAB, 6), SEP, *rng.integers(MASK + 1, VOCAB, 9), SEP]
  )[None]
  types = (
    {'token_type_ids': torch.tensor([[0] * 8 + [1] * 10])} if towers[0].family == 'electra' else {}
  )  # ModernBERT has no token types
  theirs = rtd(torch.from_numpy(row), **types).logits.reshape(-1)
  row = np.pad(row, ((0, 0), (0, LENGTH - row.shape[1])), constant_values=PAD)
  ours = model.apply(
    {'params': params}, packed_inputs(row, PAD, CLS, SEP), method='discriminator_logits'
  )
  close(ours[0, :18], theirs, 'the verdicts of a pair')

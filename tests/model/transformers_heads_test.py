"""Heads in the style of transformers agree with its ElectraFor... and ModernBertFor... classes."""

import os

os.environ.setdefault('HF_HUB_OFFLINE', '1')

import conftest
import hf_parity_test
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from electra_jax.finetune import losses
from electra_jax.model import heads
from electra_jax.model.encoder import packed_inputs

torch.set_num_threads(
  1
)  # for small models and parallel tests, more threads only wait for each other

LABELS, LENGTH = 3, 14
LENGTHS = (14, 14, 9, 6)
CLASSES = {
  'classification': 'ForSequenceClassification',
  'regression': 'ForSequenceClassification',
  'tagging': 'ForTokenClassification',
  'span': 'ForQuestionAnswering',
}
# Multi-label classification and multiple choice have the heads of classification and regression.
KINDS = [kind for kind in heads.KINDS if kind not in ('multilabel', 'choice')]
CASES = [(family, kind, 'cls') for family in ('electra', 'modern') for kind in KINDS] + [
  ('modern', 'classification', 'mean')
]
each = pytest.mark.parametrize('family, kind, pooling', CASES, ids=map(' '.join, CASES))


def rows():
  """Token ids of [CLS] text [SEP] text [SEP] and padding, int32 [4, LENGTH]."""
  rng = np.random.default_rng(0)
  ids = np.full((len(LENGTHS), LENGTH), conftest.PAD, np.int32)
  for row, size in zip(ids, LENGTHS, strict=True):
    row[:size] = rng.integers(conftest.MASK + 1, 60, size)
    row[0], row[3], row[size - 1] = conftest.CLS, conftest.SEP, conftest.SEP
  return ids


def targets_of(ids):
  real, place = ids != conftest.PAD, np.arange(LENGTH)
  return {
    'label': np.array([0, 2, 1, 1], np.int32),
    'value': np.array([0.1, 0.9, 0.4, 0.6], np.float32),
    'tags': np.where(real & (place % 2 == 1), place % LABELS, -1).astype(np.int32),
    'start': np.array([4, 0, 5, 4], np.int32),
    'end': np.array([7, 0, 5, 4], np.int32),
    'impossible': np.array([0, 1, 0, 0], np.float32),
    'allowed': real.astype(np.int32),
    'weights': np.ones(len(ids), np.float32),
  }


def config_of(family):
  fields = {'embedding_size': 32} if family == 'modern' else {}
  return conftest.tiny_electra(family, vocab_multiple=1, **fields).discriminator_config


def torch_model(config, kind, pooling):
  """A model in PyTorch, float32, without dropout, with large random weights."""
  theirs = hf_parity_test.hf_config(config, 'eager')
  theirs.num_labels = {'regression': 1, 'span': 2}.get(kind, LABELS)
  if config.family == 'modern':
    theirs.classifier_pooling = pooling
  torch.manual_seed(1)
  model = getattr(
    transformers, {'electra': 'Electra', 'modern': 'ModernBert'}[config.family] + CLASSES[kind]
  )(theirs).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim == 2:
        parameter.normal_(std=parameter.shape[1] ** -0.5)
      else:
        parameter += 0.2 * torch.randn_like(parameter)
  return model


def ours_from(tensors, config):
  """Our tree of the tensors of PyTorch by name, weights or gradients."""
  tensors = {name: value.detach() for name, value in tensors.items()}
  if config.family == 'modern':  # the discriminator of pretraining has the same layers
    tree = hf_parity_test.converted(tensors, config, 'discriminator')
    head = tree.pop('discriminator_head')
    return tree | {
      'head': {'hidden': head['dense'], 'norm': head['norm'], 'dense': head['prediction']}
    }
  found = {
    name: tensors.pop(name).numpy()
    for name in list(tensors)
    if name.split('.')[0] in ('classifier', 'qa_outputs')
  }

  def dense(name):
    return {'kernel': found.pop(f'{name}.weight').T, 'bias': found.pop(f'{name}.bias')}

  last = next(
    name.removesuffix('.weight')
    for name in found
    if name.endswith('.weight') and not name.endswith('classifier.dense.weight')
  )
  head = {'dense': dense(last)} | (
    {'hidden': dense('classifier.dense')} if last == 'classifier.out_proj' else {}
  )
  assert not found
  none = torch.zeros(1, 1)
  for name in ('dense', 'dense_prediction'):
    tensors |= {
      f'discriminator_predictions.{name}.weight': none,
      f'discriminator_predictions.{name}.bias': none[0],
    }
  tree = hf_parity_test.converted(tensors, config, 'discriminator')
  del tree['discriminator_head']
  return tree | {'head': head}


def theirs(model, kind, ids, targets):
  """Logits, and the loss with its gradients by name; for spans padding is excluded."""

  def long(x):
    return torch.from_numpy(np.array(x)).long()

  real = long(ids != conftest.PAD)
  types = (
    {'token_type_ids': long(np.where(ids != conftest.PAD, np.arange(LENGTH) > 3, 0))}
    if model.config.model_type == 'electra'
    else {}
  )
  given = {
    'classification': {'labels': long(targets['label'])},
    'regression': {'labels': torch.from_numpy(targets['value'])},
    'tagging': {'labels': long(np.where(targets['tags'] < 0, -100, targets['tags']))},
    'span': {},
  }[kind]
  out = model(long(ids), attention_mask=real, **types, **given)
  if kind == 'span':
    start, end = (
      x.masked_fill(real == 0, heads.LOWEST) for x in (out.start_logits, out.end_logits)
    )
    nll = torch.nn.functional.cross_entropy
    loss = (nll(start, long(targets['start'])) + nll(end, long(targets['end']))) / 2
    logits = torch.stack([start, end], -1)
  else:
    loss, logits = out.loss, out.logits
  model.zero_grad()
  loss.backward()
  return (
    logits.detach().numpy(),
    loss.item(),
    {name: parameter.grad for name, parameter in model.named_parameters()},
  )


@each
def test_logits_losses_and_gradients_agree_with_pytorch(family, kind, pooling):
  config = config_of(family)
  torch_side, ids = torch_model(config, kind, pooling), rows()
  targets = targets_of(ids)
  params = jax.tree.map(jnp.array, ours_from(dict(torch_side.named_parameters()), config))
  model = heads.FineTuned(config, kind, labels=LABELS, pooling=pooling, style='transformers')
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(
    lambda x: x.value.shape,
    jax.eval_shape(lambda: heads.init_finetuned(model, 0)),
    is_leaf=lambda x: hasattr(x, 'value'),
  )

  @jax.jit
  def run(params):
    def loss(params):
      outputs = model.apply(
        {'params': params},
        packed_inputs(jnp.asarray(ids), conftest.PAD, conftest.CLS, conftest.SEP),
        targets,
        method='training',
      )
      total, count, _ = losses.head_loss(kind, outputs, targets)
      return total / count, outputs

    (value, outputs), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return outputs, value, gradients

  outputs, value, gradients = run(params)
  logits, expected, their_gradients = theirs(torch_side, kind, ids, targets)
  if kind == 'regression':
    logits = logits[:, 0]
  real = ids != conftest.PAD
  given = (
    outputs['value']
    if kind == 'regression'
    else outputs['logits']
    if kind != 'span'
    else jnp.stack([outputs['start_logits'], outputs['end_logits']], -1)
  )
  cut = (lambda x: np.asarray(x)[real]) if kind in ('tagging', 'span') else np.asarray
  hf_parity_test.close(cut(given), cut(logits), 'logits')
  hf_parity_test.close(value, np.array(expected), 'loss')
  expected = ours_from(their_gradients, config)
  assert jax.tree.structure(gradients) == jax.tree.structure(expected)
  for (path, ours), want in zip(
    jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
  ):
    hf_parity_test.close(ours, want, jax.tree_util.keystr(path))

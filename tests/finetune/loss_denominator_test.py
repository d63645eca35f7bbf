"""Tokens of tagging and class weights weigh the same in an epoch, however rows are batched."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from etils import epath

from electra_jax.config import FinetuningConfig, to_plain
from electra_jax.finetune import batches, dev_loss, finetune_step, losses, task_program
from electra_jax.finetune.losses import LossSettings
from electra_jax.finetune.tasks.task import Features
from electra_jax.training import update_step
from electra_jax.training.kept_config import as_started

WORDS, LABELS, SIZE = 40, 3, 8


class Lookup:
  """In place of an encoder and its head: the logits of a token, or of a row's second token."""

  def __init__(self, kind):
    self.kind = kind

  def apply(self, variables, inputs, examples, keys, method):
    ids = examples['token_ids']
    return {'logits': variables['params']['head'][ids if self.kind == 'tagging' else ids[:, 1]]}


def rows(kind, count):
  """Rows of 3 to 60 tokens, whose labels depend on their length."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(3, 60, count)
  ids = [np.r_[2, rng.integers(5, WORDS, n - 2), 3].astype(np.int32) for n in lengths]
  tags = [rng.integers(-1, LABELS, n).astype(np.int32) for n in lengths]
  label = np.digitize(lengths, [40, 55]).astype(np.int32)
  targets = {'tags': tags} if kind == 'tagging' else {'label': label}
  return Features(ids, targets, np.arange(count), [None] * count)


def parameters():
  weights = np.random.default_rng(1).standard_normal((WORDS, LABELS))
  return {'head': jnp.asarray(weights, jnp.float32)}


def epoch_gradient(kind, features, settings, bucketed):
  """The mean of the gradients of the batches of an epoch."""
  of = finetune_step.finetuning_loss(Lookup(kind), finetune_step.SpecialIds(0, 2, 3), settings)
  gradient = jax.jit(jax.grad(lambda params, batch: of.loss(params, *of.prepare(0, batch))[0]))
  epochs = batches.Epochs(features, SIZE, 0, bucketed)
  total = 0.0
  for step in range(epochs.steps):
    batch = batches.assemble(features, epochs.rows(step), SIZE, batches.buckets(64, bucketed), 0)
    total += gradient(parameters(), batch | {'seed': np.uint32(0)})['head'] / epochs.steps
  return np.asarray(total)


def torch_gradient(kind, features, class_weights):
  """The gradient of the mean loss of all tokens or rows."""
  table = torch.tensor(np.array(parameters()['head']), requires_grad=True)
  if kind == 'tagging':
    ids, target = np.concatenate(features.token_ids), np.concatenate(features.targets['tags'])
  else:
    ids, target = np.array([x[1] for x in features.token_ids]), features.targets['label']
  torch.nn.functional.cross_entropy(
    table[torch.tensor(ids, dtype=torch.long)],
    torch.tensor(target, dtype=torch.long),
    weight=torch.tensor(class_weights) if class_weights else None,
    ignore_index=-1,
  ).backward()
  return table.grad.numpy()


@pytest.mark.parametrize(
  ('kind', 'class_weights'), [('tagging', ()), ('classification', (0.5, 2.0, 9.0))]
)
def test_an_epoch_has_the_gradient_of_the_mean_over_the_training_set(kind, class_weights):
  features, settings = rows(kind, 20 * SIZE), LossSettings(class_weights=class_weights)
  expected = torch_gradient(kind, features, class_weights)
  average = dev_loss.row_average(kind, features, settings)
  for bucketed in (True, False):
    equal = dataclasses.replace(settings, row_average=average)
    found = epoch_gradient(kind, features, equal, bucketed)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
  by_batch = epoch_gradient(kind, features, settings, True)
  assert np.abs(by_batch - expected).max() > 0.1 * np.abs(expected).max()


def test_a_short_batch_is_divided_by_its_own_rows():
  features = rows('tagging', 3)
  settings = LossSettings(row_average=7.0)
  batch = batches.assemble(features, np.arange(3), SIZE, (64,), 0)
  assert losses.training_denominator('tagging', batch, settings) == 21


def test_parts_of_a_batch_train_as_the_whole():
  features, settings = rows('tagging', SIZE), LossSettings(row_average=11.5)
  of = finetune_step.finetuning_loss(Lookup('tagging'), finetune_step.SpecialIds(0, 2, 3), settings)
  batch = batches.assemble(features, np.arange(SIZE - 1), SIZE, (64,), 0) | {'seed': np.uint32(0)}
  after = []
  for parts in (1, 4):
    options = update_step.UpdateOptions(micro_batches=parts)
    step = jax.jit(update_step.make_update_step(of, optax.sgd(1.0), options))
    after.append(step(update_step.fresh_state(optax.sgd(1.0), parameters()), batch)[0].params)
  np.testing.assert_allclose(after[1]['head'], after[0]['head'], rtol=1e-6)
  assert np.abs(after[0]['head'] - parameters()['head']).max() > 0.01


def test_the_config_chooses_the_denominator():
  task = types.SimpleNamespace(head='tagging', labels=('A', 'B', 'C'), logistic=False)
  features, config = rows('tagging', 30), FinetuningConfig()
  tokens = sum((tags >= 0).sum() for tags in features.targets['tags'])
  found = task_program.loss_settings(config, task, features)
  np.testing.assert_allclose(found.row_average, tokens / 30)
  by_batch = config.replace({'head.loss_denominator': 'batch'})
  assert task_program.loss_settings(by_batch, task, features).row_average == 0


@pytest.mark.parametrize('kind', ['classification', 'regression', 'multilabel', 'span'])
def test_rows_of_other_tasks_count_as_one(kind):
  one = {'label': np.zeros(5, int), 'value': np.zeros(5), 'labels': np.zeros((5, 2))}
  features = Features([np.zeros(3, np.int32)] * 5, one, np.arange(5), [None] * 5)
  assert dev_loss.row_average(kind, features, LossSettings()) == 1.0


def test_a_run_from_before_the_field_keeps_the_mean_over_the_batch(tmp_path):

  given = FinetuningConfig()
  assert given.head.loss_denominator == 'average'
  plain = to_plain(given)
  del plain['head']['loss_denominator']
  (tmp_path / 'config.json').write_text(json.dumps(plain))
  assert as_started(epath.Path(tmp_path), given).head.loss_denominator == 'batch'

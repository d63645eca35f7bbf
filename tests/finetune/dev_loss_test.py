"""The loss on dev is that of torch, and of training without dropout, for every head."""

import types

import conftest
import flax.linen as nn
import jax
import numpy as np
import pytest
import torch

from electra_jax.finetune import batches, finetune_step
from electra_jax.finetune.dev_loss import evaluation_loss
from electra_jax.finetune.losses import LossSettings
from electra_jax.finetune.tasks.task import Features
from electra_jax.model.heads import FineTuned, init_finetuned
from electra_jax.training import partitioning

RNG = np.random.default_rng(0)
ROWS = 6


def features(targets, choices=1):
  ids = [np.arange(3, dtype=np.int32)] * ROWS
  return Features(ids, targets, np.arange(ROWS, dtype=np.int32) // choices, [None] * ROWS, choices)


def normal(*shape):
  return RNG.standard_normal(shape).astype(np.float32)


def test_classification_with_weights_smoothing_and_rows_without_label():
  logits, label = normal(ROWS, 3), np.array([0, 2, -1, 1, 1, 2], np.int32)
  settings = LossSettings(class_weights=(1.0, 2.0, 0.5), label_smoothing=0.1)
  expected = torch.nn.functional.cross_entropy(
    torch.tensor(logits),
    torch.tensor(label, dtype=torch.long),
    weight=torch.tensor([1.0, 2.0, 0.5]),
    ignore_index=-1,
    label_smoothing=0.1,
  )
  ours = evaluation_loss('classification', features({'label': label}), {'logits': logits}, settings)
  np.testing.assert_allclose(ours, expected.item(), rtol=1e-6)


def test_tagging_is_a_mean_over_the_tagged_tokens_of_all_rows():
  lengths = (3, 5, 2, 4, 3, 6)
  logits = [normal(length, 4) for length in lengths]
  tags = [RNG.integers(-1, 4, length).astype(np.int32) for length in lengths]
  expected = torch.nn.functional.cross_entropy(
    torch.tensor(np.concatenate(logits)),
    torch.tensor(np.concatenate(tags), dtype=torch.long),
    ignore_index=-1,
  )
  ours = evaluation_loss('tagging', features({'tags': tags}), {'logits': logits}, LossSettings())
  np.testing.assert_allclose(ours, expected.item(), rtol=1e-6)


def test_regression_ranking_multilabel_and_choice():
  value, target = normal(ROWS), RNG.random(ROWS).astype(np.float32)
  theirs, F = torch.tensor(value), torch.nn.functional
  known = features({'value': target})
  outputs = {'value': value}
  cases = [
    (
      evaluation_loss('regression', known, outputs, LossSettings()),
      F.mse_loss(theirs, torch.tensor(target)),
    ),
    (
      evaluation_loss('regression', known, outputs, LossSettings(logistic=True)),
      F.binary_cross_entropy_with_logits(theirs, torch.tensor(target)),
    ),
    (
      # The training data had fewer choices per example than these rows.
      evaluation_loss(
        'choice',
        features({'choice': np.array([0, 1, 0, 1, 0, -1], np.float32)}, 3),
        outputs,
        LossSettings(choices=2),
      ),
      (F.cross_entropy(theirs[:3], torch.tensor(1)) + F.cross_entropy(theirs[3:5], torch.tensor(0)))
      / 2,
    ),
  ]
  logits, labels = normal(ROWS, 3), (RNG.random((ROWS, 3)) < 0.5).astype(np.float32)
  multilabel = evaluation_loss(
    'multilabel', features({'labels': labels}), {'logits': logits}, LossSettings()
  )
  cases.append(
    (multilabel, F.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(labels)))
  )
  for ours, expected in cases:
    np.testing.assert_allclose(ours, expected.item(), rtol=1e-6)


def test_there_is_no_loss_without_targets():
  none = features({'label': np.full(ROWS, -1, np.int32)})
  assert np.isnan(
    evaluation_loss('classification', none, {'logits': normal(ROWS, 2)}, LossSettings())
  )


@pytest.mark.parametrize(
  'style', ['published', pytest.param('transformers', marks=pytest.mark.long)]
)
def test_spans_have_the_loss_of_training_without_dropout(style):
  config = conftest.tiny_electra(num_layers=1).discriminator_config
  model = FineTuned(config, 'span', dropout=0.0, style=style, beam=3)
  params = nn.unbox(init_finetuned(model, 1))
  lengths = (9, 14, 12)
  ids = [np.r_[2, RNG.integers(5, 60, n - 2), 3].astype(np.int32) for n in lengths]
  starts = np.array([5, 0, 6], np.int32)
  targets = {
    'start': starts,
    'end': np.array([6, 0, 6], np.int32),
    'impossible': (starts == 0).astype(np.float32),
    'allowed': [np.r_[1, 0, 0, np.ones(n - 4), 0].astype(np.int32) for n in lengths],
  }
  layout = partitioning.make_layout(devices=jax.devices()[:1])
  tokenizer = types.SimpleNamespace(pad_id=0, cls_id=2, sep_id=3)
  settings = LossSettings(impossible_weight=0.7)
  predictor = finetune_step.make_predictor(
    model, tokenizer, layout, finetune_step.PredictionSizes(16, 2), settings
  )
  rows = Features(ids, targets, np.arange(3, dtype=np.int32), [None] * 3)
  ours = evaluation_loss('span', rows, predictor.outputs(params, rows), settings)
  batch = batches.assemble(rows, np.arange(3), 4, (16,), 0) | {'seed': np.uint32(0)}
  of = finetune_step.finetuning_loss(model, finetune_step.special_ids(tokenizer), settings)
  expected = jax.jit(lambda params: of.loss(params, *of.prepare(0, batch))[0])(params)
  np.testing.assert_allclose(ours, expected, rtol=1e-5)

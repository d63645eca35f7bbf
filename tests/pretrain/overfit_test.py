"""A run overfits one batch: its masked tokens, and which tokens are replaced."""

import jax
import numpy as np
import pytest
from conftest import adamw, packed_rows, tiny_electra

from electra_jax.pretrain import metrics, pretrain_step
from electra_jax.pretrain.objectives.electra import OBJECTIVE
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.training import partitioning, schedules

STEPS = 250
# With this temperature samples are wrong even when the generator is right, so that tokens are
# replaced until the end.
SETTINGS = Settings(max_predictions=5, temperature=20.0)


@pytest.mark.long
@pytest.mark.parametrize('family', ['electra', 'modern'])
def test_both_towers_overfit_one_batch(family):
  model = tiny_electra(family)
  optimizer = adamw(schedules.WarmupDecay(3e-3, 10, STEPS))
  layout = partitioning.make_layout(devices=jax.devices()[:1])
  _, shardings = pretrain_step.state_shardings(model, optimizer, 32, layout)
  state = jax.jit(
    lambda: pretrain_step.init_state(model, optimizer, 0, 32), out_shardings=shardings
  )()
  train_step = pretrain_step.jit_train_step(
    pretrain_step.make_train_step(
      pretrain_step.Computation(model, OBJECTIVE, SETTINGS, seed=0), optimizer
    ),
    shardings,
    layout,
  )
  batch = {'token_ids': packed_rows(8, 32, 60, seed=1)}
  every = []
  for _ in range(STEPS):
    # Masks and noise are those of step 0 in every step, so that they are part of the batch. The
    # optimizer has its own count.
    state, sums = train_step(state._replace(step=np.int32(0)), batch)
    every.append(sums)
  first, last = (metrics.compute(jax.device_get(sums)) for sums in (every[0], every[-1]))
  assert (
    first['generator_loss'] > 3.5
    and first['discriminator_accuracy'] < 0.95
    and first['generator_accuracy'] < 0.3
  )
  assert every[-1]['loss'] < 0.1 * every[0]['loss']
  assert last['generator_loss'] < 0.2 and last['generator_accuracy'] == 1
  assert last['replaced_rate'] > 0.1  # nearly all masked tokens
  assert last['discriminator_loss'] < 0.2 * last['constant_loss']
  assert last['discriminator_accuracy'] > 0.98 and last['auc'] > 0.99
  assert last['recall'] > 0.9 and last['precision'] > 0.9

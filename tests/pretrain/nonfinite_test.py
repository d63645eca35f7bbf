"""A step that is not finite stops the run and is named, or is skipped if the config says so."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import micro_run
import numpy as np
import optax
import pytest

from electra_jax.pretrain import pretrain_step
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.training import schedules, update_step
from electra_jax.training.optimizers import scale_by_rates
from electra_jax.training.update_step import UpdateOptions

POISON = 99


def loss(params, context):
  """Linear regression whose loss is not finite if a row holds POISON."""
  rows = jnp.where(context.batch == POISON, jnp.inf, context.batch)
  value = jnp.mean(
    jnp.square(rows @ params['discriminator']['kernel'] + params['generator']['bias'])
  )
  return value, {'discriminator_loss': value}


OBJECTIVE = types.SimpleNamespace(
  examples=lambda settings, token_ids, keys: token_ids.astype(jnp.float32),
  counts=lambda settings, examples: {},
  loss=loss,
)
COMPUTATION = pretrain_step.Computation(None, OBJECTIVE, Settings(), seed=0)
OPTIMIZER = optax.adam(0.1)


def trained(batches, skip_nonfinite, optimizer=OPTIMIZER):
  """States and sums after each batch."""
  params = {'discriminator': {'kernel': jnp.zeros(4)}, 'generator': {'bias': jnp.ones(())}}
  state = pretrain_step.fresh_state(optimizer, params)
  step = jax.jit(
    pretrain_step.make_train_step(
      COMPUTATION, optimizer, UpdateOptions(skip_nonfinite=skip_nonfinite)
    )
  )
  states, sums = [state], []
  for token_ids in batches:
    state, step_sums = step(state, {'token_ids': token_ids})
    states.append(jax.device_get(state))
    sums.append(jax.device_get(step_sums))
  return states, sums


def batches(bad=()):
  values = [np.random.default_rng(i).integers(0, 5, (2, 4), np.int32) for i in range(5)]
  for i in bad:
    values[i][1, 2] = POISON
  return values


def equal(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_the_state_stays_as_before_the_failed_step():
  states, sums = trained(batches(bad=[2]), skip_nonfinite=False)
  clean, _ = trained(batches(), skip_nonfinite=False)
  assert equal(states[2], clean[2]) and states[2].bad_step == -1
  for state in states[3:]:
    assert state.bad_step == 2 and state.step == 2 and state.skipped == 0
    assert equal((state.params, state.opt_state), (clean[2].params, clean[2].opt_state))
  assert [int(s['steps']) for s in sums] == [1, 1, 0, 0, 0]


def test_a_nonfinite_gradient_stops_the_run_though_the_loss_is_finite():
  def root(params, context):
    value = jnp.sqrt(
      jnp.sum(jnp.square(params['discriminator']['kernel']))
    )  # no derivative at zero
    return value, {'discriminator_loss': value}

  objective = types.SimpleNamespace(**{**vars(OBJECTIVE), 'loss': root})
  params = {'discriminator': {'kernel': jnp.zeros(4)}}
  state = pretrain_step.fresh_state(OPTIMIZER, params)
  computation = dataclasses.replace(COMPUTATION, objective=objective)
  step = jax.jit(pretrain_step.make_train_step(computation, OPTIMIZER))
  after, sums = step(state, {'token_ids': batches()[0]})
  assert after.bad_step == 0 and after.step == 0 and sums['steps'] == 0
  assert equal((after.params, after.opt_state), (state.params, state.opt_state))


def test_skipped_steps_are_counted_and_change_nothing_else():
  states, sums = trained(batches(bad=[1, 3]), skip_nonfinite=True)
  assert [int(s.skipped) for s in states] == [0, 0, 1, 1, 2, 2]
  assert [int(s.step) for s in states] == [0, 1, 2, 3, 4, 5] and states[-1].bad_step == -1
  for i in (1, 3):
    assert equal(
      (states[i].params, states[i].opt_state), (states[i + 1].params, states[i + 1].opt_state)
    )
  assert not equal(states[2].params, states[3].params)
  assert all(np.isfinite(x).all() for s in (*states, *sums) for x in jax.tree.leaves(s))


def test_the_schedule_follows_the_step_when_updates_are_skipped():
  rates = schedules.WarmupDecay(0.1, 0, 5)
  optimizer = optax.chain(optax.scale_by_adam(), scale_by_rates({'learning_rate': rates}))
  states, _ = trained(batches(bad=[1, 3]), True, optimizer)
  adam, schedule = states[-1].opt_state
  assert schedule.count == states[-1].step == 5
  assert adam.count == 3  # the moments have seen three gradients
  # The first direction of Adam is the sign of the gradient, so the step is as long as the rate.
  first, _ = trained(batches(bad=[0]), True, optimizer)
  moved = first[2].params['generator']['bias'] - first[1].params['generator']['bias']
  assert abs(moved) == pytest.approx(float(rates(1)), rel=1e-5)


def limited(skipped, steps):
  """The step at which the limits are passed, where some steps are skipped; None for none."""
  recent = np.array(update_step.no_skips())
  for step in range(steps):
    if step in skipped:
      recent = np.append(recent[1:], np.int32(step))
    if update_step.passes_limits(recent, step):
      return step
  return None


@pytest.mark.parametrize(
  'skipped, steps, stops_at',
  [
    (range(3, 22), 500, None),  # 19 in a row
    (range(3, 23), 500, 22),
    ({*range(3, 22), *range(23, 42)}, 500, None),
    (range(0, 1_000, 100), 1_500, None),  # 1%
    (range(0, 1_100, 100), 1_500, None),  # 11 updates, never more than 10 in 1,000 steps
    (range(5, 999, 90), 1_500, 999),  # 12 of the first 1,000
    ({*range(0, 900, 100), 1_500, 1_501}, 3_000, None),
    (range(1_200, 1_400, 10), 3_000, 1_300),
    (range(2_000, 2_020), 3_000, 2_010),  # the first limit that is passed stops the run
  ],
)
def test_a_run_stops_at_20_skipped_updates_in_a_row_or_more_than_1_percent(
  skipped, steps, stops_at
):
  assert limited(skipped, steps) == stops_at


def test_the_state_stays_as_before_the_step_that_passes_the_limits(monkeypatch):
  monkeypatch.setattr(update_step, 'MOST_IN_A_ROW', 3)
  monkeypatch.setattr(update_step, 'MOST_IN_WINDOW', 2)
  states, sums = trained(batches(bad=[1, 2, 3]), skip_nonfinite=True)
  assert [int(s.bad_step) for s in states] == [-1, -1, -1, -1, 3, 3]
  assert [int(s.step) for s in states] == [0, 1, 2, 3, 3, 3]
  assert list(states[3].recent_skips[-2:]) == [1, 2]
  assert equal(states[3]._replace(bad_step=0), states[5]._replace(bad_step=0))
  assert [int(s['steps']) for s in sums] == [1, 0, 0, 0, 0]


@pytest.mark.parametrize(
  'spoil, name',
  [
    (
      lambda params, ids: params['discriminator'].update(kernel=jnp.full(4, jnp.nan)),
      'the parameter discriminator/kernel',
    ),
    (lambda params, ids: ids.__setitem__((1, 2), POISON), 'the metric discriminator_loss'),
    (
      lambda params, ids: params['generator'].update(bias=jnp.float32(1e25)),
      'the metric discriminator_loss',
    ),
    (lambda params, ids: None, 'a sum of gradients'),
  ],
)
def test_the_first_nonfinite_tensor_is_named(spoil, name):
  params = {'discriminator': {'kernel': jnp.zeros(4)}, 'generator': {'bias': jnp.ones(())}}
  token_ids = batches()[0]
  spoil(params, token_ids)
  found = pretrain_step.first_nonfinite(COMPUTATION, params, token_ids, step=0)
  assert found.startswith(name)


@pytest.mark.long
def test_the_command_stops_and_names_the_step_or_skips_such_steps_if_configured(tmp_path):
  # The update of the first step is 0 (warm-up), that of the second is huge, and the third fails.
  absurd = micro_run.arguments(
    tmp_path / 'run',
    '--config.optimizer.learning_rate=1e30',
    '--config.save_every=1',
    '--config.log_every=6',  # so that saving is what checks the earlier steps
    '--config.steps=30',
  )
  out, err = micro_run.run(*absurd, status=1)
  assert err.count('\n') == 1 and err.startswith(
    'electra_jax: the step after 2 is not finite, first in the '
  )
  assert 'the checkpoint of step 2 is kept' in err and '--config.skip_nonfinite=True' in err
  assert micro_run.checkpoint_steps(tmp_path / 'run')[-1] == 2
  status = json.loads((tmp_path / 'run' / 'status.json').read_text())
  assert (status['state'], status['exit_status'], status['last_checkpoint']) == ('failed', 1, 2)
  assert err == f'electra_jax: {status["exit_reason"]}\n'
  kept = micro_run.checkpoint(tmp_path / 'run', 2)
  assert kept['counters/bad_step'] == -1 and all(
    np.isfinite(x).all() for name, x in kept.items() if name.startswith(('params/', 'opt_state/'))
  )

  out, err = micro_run.run(*absurd, '--config.skip_nonfinite=True', status=1)
  assert 'restored     step 2' in out and 'skipped      4 updates that were not finite' in out
  assert err.count('\n') == 1 and err.startswith(
    'electra_jax: by the step after 21, 20 updates in a row or more than 10 of the last 1,000 were '
    'skipped because their loss or gradient was not finite; the checkpoint of step 21 is kept; '
  )
  lines = [line for line in micro_run.figures(tmp_path / 'run') if line['kind'] == 'train']
  assert [(line['step'], line['skipped']) for line in lines[-3:]] == [(6, 4), (12, 10), (18, 16)]
  kept = micro_run.checkpoint(tmp_path / 'run', 21)
  assert kept['counters/skipped'] == 19 and kept['counters/bad_step'] == -1
  assert list(kept['counters/recent_skips'][-19:]) == list(range(2, 21))
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['skip_nonfinite'] is True

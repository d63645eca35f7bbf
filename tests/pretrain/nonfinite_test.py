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


def trained(batches, skip_nonfinite):
  """States and sums after each batch."""
  params = {'discriminator': {'kernel': jnp.zeros(4)}, 'generator': {'bias': jnp.ones(())}}
  state = pretrain_step.fresh_state(OPTIMIZER, params)
  step = jax.jit(
    pretrain_step.make_train_step(
      COMPUTATION, OPTIMIZER, UpdateOptions(skip_nonfinite=skip_nonfinite)
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


def test_the_command_stops_and_names_the_step_or_skips_such_steps_if_configured(tmp_path):
  # The update of the first step is 0 (warm-up), that of the second is huge, and the third fails.
  absurd = micro_run.arguments(
    tmp_path / 'run',
    '--config.optimizer.learning_rate=1e30',
    '--config.save_every=1',
    '--config.log_every=6',  # so that saving is what checks the earlier steps
    '--config.steps=6',
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

  out, err = micro_run.run(*absurd, '--config.skip_nonfinite=True')
  assert 'restored     step 2' in out and not err
  last = [line for line in micro_run.figures(tmp_path / 'run') if line['kind'] == 'train'][-1]
  assert last['step'] == 6 and last['skipped'] == 4
  assert micro_run.checkpoint(tmp_path / 'run', 6)['counters/skipped'] == 4
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['skip_nonfinite'] is True

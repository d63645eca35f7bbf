"""Settings that change over a run: a step has its own value, and evaluation the configured one."""

import dataclasses

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_config

from electra_jax import registry
from electra_jax.config import (
  PretrainingConfig,
  checked_pretraining,
  differences,
  from_plain,
  phases_of,
  to_plain,
)
from electra_jax.errors import UserError
from electra_jax.model.randomness import row_keys
from electra_jax.pretrain import build, masking, pretrain_step, replacement
from electra_jax.training import partitioning, schedules


def checked(*fields):
  return checked_pretraining(micro_config(*fields))


def program(config, devices=1):
  (phase,) = phases_of(config)
  layout = partitioning.make_layout(devices=jax.devices()[:devices])
  return build.program(config, phase, build.any_tokenizer(300), layout)


def test_schedules_agree_with_their_formulas():
  every, at = (
    np.arange(0, 101),
    lambda form: np.array(jax.jit(schedules.from_form(form, 100))(jnp.arange(0, 101))),
  )
  np.testing.assert_allclose(at(('linear', 2.0, 0.5)), 2 - 1.5 * every / 100, rtol=1e-6)
  falling = at(('exponential', 2.0, 1.0, 0.1))
  np.testing.assert_allclose(falling, 1 + np.exp(-every / 10), rtol=1e-6)
  assert falling[0] == 2 and 1 < falling[100] < 1.0001
  np.testing.assert_allclose(
    at(('points', (10, 1.0), (30, 3.0), [80, 2.0])),
    np.interp(every, [10, 30, 80], [1, 3, 2]),
    rtol=1e-6,
  )
  assert [
    schedules.upper_bound(form)
    for form in (('linear', 0.1, 0.3), ('exponential', 2, 1, 9), ('points', (0, 1), (5, 4), (9, 2)))
  ] == [0.3, 2, 4]


FORMS = {
  'warm-up and linear decay': schedules.WarmupDecay(5e-4, 10_000, 1_000_000),
  'no warm-up': schedules.WarmupDecay(3e-4, 0, 977),
  'square root': schedules.WarmupDecay(1e-3, 7, 61, power=0.5),
  'decay after the warm-up': schedules.WarmupDecay(6e-3, 2_003, 10_007, 0.5, after_warmup=True),
  'phases': schedules.Piecewise(
    [schedules.WarmupDecay(6e-3, 13, 101, 0.5, True), schedules.WarmupDecay(4e-3, 7, 53)], [101]
  ),
  'linear': schedules.from_form(('linear', 0.4, 0.15), 999),
  'exponential': schedules.from_form(('exponential', 2.0, 0.7, 0.13), 777),
  'points': schedules.from_form(('points', (3, 1.5), (50, 0.1), (200, 7.0)), 300),
}


@pytest.mark.parametrize('name', FORMS)
def test_constants_as_inputs_give_bitwise_the_values_of_compiled_constants(name):
  schedule = FORMS[name]
  steps_in_use = np.unique(np.geomspace(1, 1.01e6, 3_000).astype(np.int32))
  every = np.concatenate([np.arange(300, dtype=np.int32), steps_in_use])

  def each(function):
    return jax.jit(lambda steps, inputs: jax.lax.map(lambda step: function(step, inputs), steps))

  as_constants = each(lambda step, _: schedule(step))(every, {})
  as_inputs = each(schedule)(every, schedule.inputs())
  assert np.asarray(as_constants).tobytes() == np.asarray(as_inputs).tobytes()
  assert len(np.unique(as_inputs)) > 50


@pytest.mark.parametrize('name', FORMS)
def test_another_rate_or_length_compiles_no_other_program(name):
  schedule, compilations = FORMS[name], []

  @jax.jit
  def value(step, inputs):
    compilations.append(step)
    return schedule(step, inputs)

  first = value(5, schedule.inputs())
  other = jax.tree.map(lambda x: x * 2, schedule.inputs())
  assert len(compilations) == 1 and value(5, other) != first and len(compilations) == 1
  assert all(x.dtype in (np.float32, np.int32) for x in jax.tree.leaves(schedule.inputs()))


@pytest.mark.long
def test_the_lowered_step_is_equal_for_other_rates_and_lengths():
  def lowered(*fields):
    p = program(checked(*fields))
    return build.lower_step(p, 1).as_text()

  base = ('optimizer.warmup_steps=2', SCHEDULES[1])
  other = ('optimizer.warmup_steps=5', 'optimizer.learning_rate=7e-3', 'steps=47')
  assert lowered(*base) == lowered(*base, *other)
  assert lowered(*base) != lowered(*base, 'optimizer.weight_decay=0.5')


SCHEDULES = (
  "objective.schedules.temperature=('exponential',2.0,0.5,0.1)",
  "objective.schedules.mask_rate=('linear',0.4,0.2)",
  "objective.schedules.discriminator_weight=('points',(2,1.0),(12,11.0))",
)


@pytest.mark.long
def test_a_scheduled_step_equals_a_step_with_its_values_on_any_mesh():
  config = checked(*SCHEDULES, 'model.dropout=0.0', 'model.attention_dropout=0.0')
  plain = program(config)
  p = program(config, devices=2)
  step = build.compile_step(p, 2)
  batch = {'token_ids': conftest.packed_rows(8, 32, 300), 'schedules': p.inputs}
  state = jax.device_get(pretrain_step.fresh_state(p.optimizer, conftest.random_params(p.model)))

  def at(number):
    return jax.device_get(
      step(jax.device_put(state._replace(step=np.int32(number)), p.shardings), batch)[1]
    )

  first, sums, values = at(0), at(9), {name: float(value(9)) for name, value in p.schedules.items()}
  assert values['temperature'] == pytest.approx(0.5 + 1.5 * np.exp(-3)) and values[
    'discriminator_weight'
  ] == pytest.approx(8)
  # A step that was compiled with the values of step 9.
  wanted = jax.jit(
    pretrain_step.make_train_step(
      dataclasses.replace(
        plain.computation, settings=dataclasses.replace(plain.settings, **values), seed=0
      ),
      plain.optimizer,
    )
  )(state._replace(step=np.int32(9)), batch)[1]
  for name in wanted:
    np.testing.assert_allclose(
      sums[name], wanted[name], rtol=1e-4, atol=1 if name == 'scores' else 0, err_msg=name
    )
  assert first['masked'] > 1.1 * sums['masked']  # another step has another rate


def test_slots_suffice_for_the_largest_rate_and_evaluation_masks_do_not_change():
  plain, scheduled = (
    build.build_settings(checked(*fields), build.any_tokenizer(300))
    for fields in ((), SCHEDULES[1:2])
  )
  assert (plain.max_predictions, scheduled.max_predictions) == (
    masking.max_predictions(0.15, 32),
    masking.max_predictions(0.4, 32),
  )
  assert (
    dataclasses.replace(scheduled, max_predictions=plain.max_predictions) == plain
  )  # evaluation uses these
  objective, rows = registry.OBJECTIVES.get('electra'), conftest.packed_rows(8, 32, 300)
  few, many = (
    jax.jit(
      lambda settings=settings: objective.examples(settings, rows, row_keys(7, 0, jnp.arange(8)))
    )()
    for settings in (plain, scheduled)
  )
  assert (
    np.array_equal(few['masks'].token_ids, many['masks'].token_ids)
    and few['masks'].weights.sum() == many['masks'].weights.sum()
  )
  logits = (
    np.random.default_rng(0).normal(size=(8, scheduled.max_predictions, 304)).astype(np.float32)
  )

  def draw(slots):
    return jax.jit(lambda keys: replacement.sample(logits[:, :slots], keys, temperature=1.0))(
      few['keys']
    )

  assert np.array_equal(
    draw(plain.max_predictions), draw(scheduled.max_predictions)[:, : plain.max_predictions]
  )


def test_schedules_span_the_whole_run_with_any_phases():
  config = micro_config("objective.schedules.temperature=('linear',2.0,1.0)")
  config.phases = ({'steps': 10}, {'steps': 20})
  config = checked_pretraining(config)
  second = build.program(
    config,
    phases_of(config)[1],
    build.any_tokenizer(300),
    partitioning.make_layout(devices=jax.devices()[:1]),
  )
  assert second.schedules['temperature'](15) == 1.5


def test_a_config_with_a_schedule_survives_json():
  config = micro_config("objective.schedules.temperature=('points',(0,2.0),(30,1.0))")
  again = from_plain(to_plain(config), PretrainingConfig)
  checked_pretraining(again)
  assert (
    build.build_schedules(again)['temperature'](15) == 1.5
    and differences(to_plain(config), to_plain(again)) == []
  )


@pytest.mark.parametrize(
  'fields, sentence',
  [
    (("objective.schedules.temperature=('cosine',2.0,1.0)",), "expected ('linear', from, to)"),
    (("objective.schedules.temperature=('exponential',2.0,1.0)",), "expected ('linear', from, to)"),
    (
      ("objective.schedules.temperature=('exponential',2.0,1.0,0.0)",),
      "expected ('linear', from, to)",
    ),
    (("objective.schedules.temperature=('points',(5,2.0),(5,1.0))",), 'with ascending steps'),
    (("objective.schedules.temperature=('linear',2.0,-1.0)",), 'expected values at least 0'),
    (("objective.schedules.mask_rate=('linear',0.0,0.3)",), 'expected values above 0 and below 1'),
    (
      ("objective.schedules.discriminator_weight=('linear',1,2)", 'objective.name=mlm'),
      "has no effect where config.objective.name is 'mlm'",
    ),
    (
      ("objective.schedules.temperature=('linear',1,2)", 'objective.name=electric'),
      "has no effect where config.objective.name is 'electric'",
    ),
  ],
)
def test_invalid_configs_are_refused(fields, sentence):
  with pytest.raises(UserError) as error:
    checked(*fields)
  assert sentence in str(error.value) and 'config.objective.schedules.' in str(error.value)


def test_a_mask_rate_is_set_by_phases_or_a_schedule_but_not_both():
  config = micro_config("objective.schedules.mask_rate=('linear',0.2,0.3)")
  config.phases = ({'steps': 10, 'objective.mask_rate': 0.2}, {'steps': 20})
  with pytest.raises(UserError, match='config.phases set objective.mask_rate and so does'):
    checked_pretraining(config)

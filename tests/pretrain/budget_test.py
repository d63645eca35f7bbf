"""A run and its schedule end within one step of its budget, and resumed runs keep the steps."""

import jax
import micro_run
import pytest

from electra_jax.config import checked_pretraining, default_config, phases_of
from electra_jax.errors import UserError
from electra_jax.pretrain import budgets, build
from electra_jax.pretrain.resolve import ResolvedRun
from electra_jax.training import partitioning
from electra_jax.training.run_folder import read_json


def config(**fields):
  c = default_config()
  c.sequence_length, c.batch_size = 32, 8
  c.model.update(
    family='modern',
    hidden_size=32,
    embedding_size=32,
    num_layers=1,
    num_heads=2,
    intermediate_size=64,
    dropout=0.0,
    attention_dropout=0.0,
  )
  c.generator.hidden_fraction = 0.5
  c.optimizer.warmup_fraction = 0.1
  c.update_from_flattened_dict(fields)
  return checked_pretraining(c)


def resolved(c, known=None):
  layout = partitioning.make_layout(devices=jax.devices()[:1])
  run = ResolvedRun(c, phases_of(c))
  return budgets.resolve_budget(run, build.any_tokenizer(200), layout, known or {}).config


def costs(c, convention='model'):
  """FLOPs of a step of each phase."""
  layout = partitioning.make_layout(devices=jax.devices()[:1])
  return [
    build.program(c, phase, build.any_tokenizer(200), layout).step_flops(convention)
    for phase in phases_of(c)
  ]


@pytest.mark.parametrize('convention', ['model', 'paper'])
@pytest.mark.parametrize('objective', ['electra', 'mlm', 'all_tokens_mlm'])
def test_a_budget_of_flops_is_met_within_one_step(objective, convention):
  c = resolved(
    config(**{'objective.name': objective, 'budget_flops': 1e10, 'budget_convention': convention})
  )
  (cost,) = costs(c, convention)
  assert c.steps * cost <= 1e10 < (c.steps + 1) * cost
  assert phases_of(c)[0].config.optimizer.warmup_steps == int(0.1 * c.steps)


def test_steps_of_only_the_generator_count_with_their_own_cost():
  c = resolved(config(**{'budget_flops': 1e10, 'generator.alone_steps': 20}))
  alone, both = costs(c)
  assert alone < both
  assert 20 * alone + (c.steps - 20) * both <= 1e10 < 20 * alone + (c.steps - 19) * both


def test_a_budget_of_tokens_is_met_within_one_step():
  assert resolved(config(budget_tokens=10_000.0)).steps == 10_000 // 256


def test_the_rate_is_0_at_the_end_of_a_budget():
  c = resolved(config(budget_tokens=25_600.0))
  _, schedule = build.build_optimizer(c)
  assert schedule(c.steps) == 0 < schedule(c.steps - 1) < schedule(c.steps // 2)


def test_a_budget_of_minutes_is_divided_by_the_duration_of_a_step(monkeypatch):
  monkeypatch.setattr(budgets, 'seconds_per_step', lambda program: 0.25)
  assert resolved(config(budget_minutes=1.0)).steps == 240


def test_the_duration_of_a_step_is_measured():
  layout = partitioning.make_layout(devices=jax.devices()[:1])
  c = config(**{'budget_minutes': 1.0, 'objective.name': 'mlm'})  # compiles in half the time
  (phase,) = phases_of(c)
  p = build.program(c, phase, build.any_tokenizer(200), layout)
  assert 0 < budgets.seconds_per_step(p) < 10


def test_a_resumed_run_keeps_the_number_of_steps_of_its_first_start():
  assert resolved(config(budget_minutes=1.0), {'steps': 17}).steps == 17


def test_a_budget_replaces_the_steps_of_the_config():
  c = resolved(
    config(
      **{
        'steps': 30,
        'budget_tokens': 256_000.0,
        'generator.alone_steps': 40,
        'optimizer.warmup_fraction': 0.0,
        'optimizer.warmup_steps': 50,
      }
    )
  )
  assert c.steps == 1_000


def test_a_budget_too_small_for_the_warm_up_is_refused():
  with pytest.raises(
    UserError, match='budget_tokens 2560 makes 10 steps, and config.optimizer.warmup_steps 50'
  ):
    resolved(
      config(
        **{'budget_tokens': 2_560.0, 'optimizer.warmup_fraction': 0.0, 'optimizer.warmup_steps': 50}
      )
    )


@pytest.mark.parametrize(
  'fields, message',
  [
    (
      {
        'optimizer.warmup_fraction': 0.1,
        'steps': 20,
        'phases': ({'steps': 10, 'optimizer.warmup_steps': 5}, {'steps': 10}),
      },
      'replaces the optimizer.warmup_steps',
    ),
    ({'budget_flops': 1e9, 'budget_tokens': 1e6}, 'expected one budget, or none'),
    ({'budget_minutes': -1.0}, 'is -1.0; expected at least 0'),
    ({'budget_tokens': 1e6, 'phases': ({'steps': 1_000_000},)}, 'config.phases set their own'),
    ({'budget_flops': 1e9, 'budget_convention': 'dense'}, 'model or paper'),
    ({'optimizer.warmup_fraction': 1.0}, 'warmup_fraction'),
  ],
)
def test_invalid_budgets_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    config(**fields)


def test_a_budget_too_small_for_the_steps_of_only_the_generator_is_refused():
  with pytest.raises(UserError, match='alone_steps'):
    resolved(config(**{'budget_flops': 1e6, 'generator.alone_steps': 20}))


def test_the_command_trains_the_steps_of_its_budget_and_reports_them(tmp_path):
  arguments = micro_run.arguments(
    tmp_path / 'run',
    '--config.budget_tokens=3000',
    '--config.optimizer.warmup_fraction=0.2',
    '--config.save_every=100',
  )
  first, _ = micro_run.run(*arguments)
  c = read_json(tmp_path / 'run' / 'config.json')
  assert (
    c['steps'] == 3000 // (c['batch_size'] * c['sequence_length'])
    and f'{c["steps"]:,} steps' in first
  )
  again, _ = micro_run.run(*arguments)
  assert f'all {c["steps"]:,} steps were made before' in again

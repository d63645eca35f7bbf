"""Ends of a run that are not a number of steps: FLOPs, tokens or minutes, resolved to steps once, before the first."""

import copy
import time

import jax
import numpy as np

from electra_jax import config as configs
from electra_jax.errors import UserError
from electra_jax.pretrain import build
from electra_jax.pretrain import step as steps
from electra_jax.training import hosts, memory
from electra_jax.training import mesh as meshes

TIMED_STEPS = 8  # whose median says what a step takes
FIELDS = configs.BUDGETS


def given(config) -> str | None:
  """The budget that a config names, or None."""
  return next((field for field in FIELDS if config[field]), None)


def resolve(config, tokenizer, layout: meshes.Layout, known: dict, say=lambda label, text: None):
  """The config with the steps that its budget makes, the schedule's included; as it is where it names none.

  FLOPs are those of one step in config.budget_convention, tokens those of its rows; both stop within one step of the budget. Minutes
  are of training steps alone, without compilation, evaluation and checkpoints: the steps are timed on these devices, and then fixed.

  Args:
    config: the run's config, checked.
    tokenizer: the run's.
    layout: of the mesh.
    known: of resolved.json: an earlier start's steps hold.
    say: takes a label and a line for the console.

  Raises UserError where the budget is too small for the warm-up, or for the steps of the generator alone.
  """
  field = given(config)
  if field is None:
    return config
  count = known.get('steps') or _steps(config, field, tokenizer, layout)
  config = copy.deepcopy(config)
  config.steps = count
  if count <= config.generator.alone_steps:
    raise UserError(
      f'config.{field} {config[field]:g} makes {count:,} steps, and config.generator.alone_steps takes {config.generator.alone_steps:,} '
      'of them; give more, or fewer of those.'
    )
  warmup = configs.phases(config)[-1].config.optimizer.warmup_steps
  if warmup >= count - config.generator.alone_steps:
    raise UserError(
      f'config.{field} {config[field]:g} makes {count:,} steps, and config.optimizer.warmup_steps {warmup:,} takes all of them; give more, or '
      '--config.optimizer.warmup_fraction=0.1.'
    )
  configs.check(config)
  say('budget', f'{config[field]:g} {field.removeprefix("budget_")}: {count:,} steps')
  return config


def _steps(config, field, tokenizer, layout) -> int:
  """Steps whose cost comes nearest to the budget from below, at least one."""
  config = copy.deepcopy(config)
  config.steps = (
    config.generator.alone_steps + config.optimizer.warmup_steps + 1
  )  # any number: a step costs the same
  phases = configs.phases(config)
  programs = [
    build.program(config, phase.config, tokenizer, layout, phase.alone) for phase in phases
  ]
  if field == 'budget_flops':
    costs = [p.step_flops(config.budget_convention) for p in programs]
  elif field == 'budget_tokens':
    costs = [p.config.batch_size * p.config.sequence_length for p in programs]
  else:
    costs = [
      max(hosts.gather(int(1e9 * seconds_per_step(p)))) / 60e9 for p in programs
    ]  # the slowest process's
  alone = config.generator.alone_steps
  spent = costs[0] * alone if alone else 0.0
  return (
    alone + max(1, int((config[field] - spent) / costs[-1])) if config[field] > spent else alone
  )


def seconds_per_step(p: build.Program) -> float:
  """What a training step takes on these devices: the median of a few, on rows of random tokens and fresh parameters."""
  _, compiled, _ = build.compile_to_fit(
    p, min(hosts.gather(memory.available())), p.config.micro_batches
  )
  state = jax.jit(
    lambda: steps.init_state(p.model, p.optimizer, 0, p.config.sequence_length),
    out_shardings=p.shardings,
  )()
  mesh, shape = p.layout.mesh, (p.config.batch_size, p.config.sequence_length)
  token_ids = (
    np.random.default_rng(0)
    .integers(5, p.model.discriminator_config.vocab_size, shape)
    .astype(np.int32)
  )
  batch = {
    'token_ids': meshes.global_batch(token_ids[meshes.process_rows(mesh, shape[0])], mesh, shape[0])
  }
  times = []
  for _ in range(TIMED_STEPS + 1):  # the first is warm-up
    start = time.perf_counter()
    state, sums = compiled(state, batch)
    jax.block_until_ready(sums)
    times.append(time.perf_counter() - start)
  return float(np.median(times[1:]))

"""Budgets of a run in FLOPs, tokens, epochs or minutes, converted to steps before the first one."""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from electra_jax.config import BUDGETS, PretrainingConfig, phases_of
from electra_jax.errors import UserError
from electra_jax.pretrain import build, pretrain_step
from electra_jax.pretrain.resolve import ResolvedRun
from electra_jax.training import hosts, memory, partitioning

TokenizerLike: TypeAlias = Any  # what has a size and special token ids
TIMED_STEPS = 8  # the duration of a step is their median


def budget_of(config: PretrainingConfig) -> str | None:
  """Name of the budget that a config sets; None for none."""
  return next((name for name in BUDGETS if getattr(config, name)), None)


def resolve_budget(
  run: ResolvedRun,
  tokenizer: TokenizerLike,
  layout: partitioning.Layout,
  known: Mapping[str, Any],
  log: Callable[[str, str], object] = lambda label, text: None,
  rows: int = 0,
) -> ResolvedRun:
  """The run with the number of steps that its budget allows; unchanged without a budget.

  FLOPs are those of a step in config.budget_convention, tokens those of its rows, and epochs are
  passes over the corpus; all end within one step of the budget. Minutes count only training steps,
  without compilation, evaluation and checkpoints. Steps are timed once on these devices, and their
  number is then fixed.

  Args:
    run: the run.
    tokenizer: the tokenizer of its rows.
    layout: layout of the mesh.
    known: of resolved.json; the number of steps of an earlier start is kept.
    log: takes a label and a line for the console.
    rows: of the corpus, for epochs.

  Raises:
    UserError: the budget is too small for the warm-up, or for config.generator.alone_steps.
  """
  name = budget_of(run.config)
  if name is None:
    return run
  budget, alone = getattr(run.config, name), run.config.generator.alone_steps
  count = known.get('steps') or _steps(run, name, tokenizer, layout, rows)
  if count <= alone:
    raise UserError(
      f'config.{name} {budget:g} makes {count:,} steps, and config.generator.alone_steps takes '
      f'{alone:,} of them; raise the budget, or lower config.generator.alone_steps.'
    )
  last = phases_of(run.config.replace({'steps': count}))[-1]
  warmup = last.config.optimizer.warmup_steps
  if warmup >= count - alone:
    raise UserError(
      f'config.{name} {budget:g} makes {count:,} steps, and config.optimizer.warmup_steps '
      f'{warmup:,} takes all of them; raise the budget, or set '
      '--config.optimizer.warmup_fraction=0.1.'
    )
  log('budget', f'{budget:g} {name.removeprefix("budget_")}: {count:,} steps')
  return run.with_steps(count)


def _steps(
  run: ResolvedRun, name: str, tokenizer: TokenizerLike, layout: partitioning.Layout, rows: int
) -> int:
  """The largest number of steps whose cost is within the budget, at least one."""
  alone = run.config.generator.alone_steps
  # The number of steps does not matter here, since each step costs the same.
  config = run.config.replace({'steps': alone + run.config.optimizer.warmup_steps + 1})
  programs = [build.program(config, phase, tokenizer, layout) for phase in phases_of(config)]
  if name == 'budget_flops':
    costs = [float(p.step_flops(config.budget_convention)) for p in programs]
  elif name == 'budget_tokens':
    costs = [float(p.config.batch_size * p.config.sequence_length) for p in programs]
  elif name == 'budget_epochs':
    costs = [p.config.batch_size / rows for p in programs]
  else:  # minutes of the slowest process
    costs = [max(hosts.gather(int(1e9 * seconds_per_step(p)))) / 60e9 for p in programs]
  budget, spent = getattr(config, name), costs[0] * alone if alone else 0.0
  return alone + max(1, int((budget - spent) / costs[-1])) if budget > spent else alone


def seconds_per_step(p: build.Program) -> float:
  """Duration of a training step on these devices.

  It is the median of a few steps on rows of random tokens, from new parameters.
  """
  _, compiled, _ = build.compile_to_fit(
    p, min(hosts.gather(memory.available())), p.config.micro_batches
  )
  state = jax.jit(
    lambda: pretrain_step.init_state(p.model, p.optimizer, 0, p.config.sequence_length),
    out_shardings=p.shardings,
  )()
  mesh, shape = p.layout.mesh, (p.config.batch_size, p.config.sequence_length)
  vocab_size = p.model.discriminator_config.vocab_size
  token_ids = np.random.default_rng(0).integers(5, vocab_size, shape).astype(np.int32)
  batch = {
    'token_ids': partitioning.global_batch(
      token_ids[partitioning.process_rows(mesh, shape[0])], mesh, shape[0]
    ),
    'schedules': partitioning.replicate(p.inputs, mesh),
  }
  times = []
  for _ in range(TIMED_STEPS + 1):  # the first one is not counted
    start = time.perf_counter()
    state, sums = compiled(state, batch)
    jax.block_until_ready(sums)
    times.append(time.perf_counter() - start)
  return float(np.median(times[1:]))

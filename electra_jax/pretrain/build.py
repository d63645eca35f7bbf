"""From a config to the model, the objective's settings, the optimizer, and the program that the trainer compiles."""

import dataclasses
import math
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.config import Phase, PretrainingConfig, phases_of
from electra_jax.errors import UserError
from electra_jax.model.electra import Electra
from electra_jax.model.sharing.scheme import is_generator_parameter
from electra_jax.pretrain import masking, objectives, pretrain_step
from electra_jax.pretrain.objectives.common import Settings, step_flops
from electra_jax.training import memory, optimizers, partitioning, schedules
from electra_jax.training.encoders import sharing, towers


def any_tokenizer(vocab_size: int):
  """Stands for a tokenizer where there is none: its ids do not change what is compiled."""
  return types.SimpleNamespace(
    size=vocab_size,
    pad_id=0,
    cls_id=2,
    sep_id=3,
    mask_id=4,
    word_starts=np.arange(vocab_size) % 2 == 0,
  )


def build_model(config: PretrainingConfig, vocab_size: int, platform: str | None = None) -> Electra:
  """The two towers of a config.

  Args:
    config: the run's config.
    vocab_size: of the tokenizer.
    platform: 'cpu', 'gpu' or 'tpu', for what the config leaves to it; None for that of JAX's devices.

  Raises UserError for sizes that contradict each other.
  """
  heads = objectives.named(config.objective.name).HEADS
  if config.generator.uniform:
    heads = tuple(head for head in heads if head != 'generator_head')
  return Electra(
    *towers(config, vocab_size, platform),
    sharing=sharing(config),
    heads=heads,
    two_tower=config.objective.name == 'electric',
  )


def build_settings(config: PretrainingConfig, tokenizer) -> Settings:
  """The objective's settings, with the tokenizer's special tokens; slots for as many masks as its schedule ever wants.

  Raises UserError where masking goes by words and the tokenizer does not tell them.
  """
  fields = dataclasses.asdict(config.objective)
  del fields['schedules'], fields['options']
  scheduled = config.objective.schedules.mask_rate
  rate = max(config.objective.mask_rate, schedules.upper_bound(scheduled) if scheduled else 0)
  return Settings(
    **fields,
    frozen=config.generator.frozen,
    max_predictions=masking.max_predictions(rate, config.sequence_length),
    pad_id=tokenizer.pad_id,
    cls_id=tokenizer.cls_id,
    sep_id=tokenizer.sep_id,
    mask_id=tokenizer.mask_id,
    word_starts=b''
    if config.objective.masking == 'uniform'
    else masking.packed(tokenizer.word_starts),
  )


def build_schedules(config: PretrainingConfig) -> dict:
  """Settings of the objective that change over the run: name -> function of the step."""
  return {
    name: schedules.from_form(form, config.steps)
    for name, form in sorted(vars(config.objective.schedules).items())
    if form
  }


def build_rates(config: PretrainingConfig) -> dict:
  """Learning rates over all phases: `learning_rate` and, where the generator has one of its own, `generator_learning_rate`."""
  o, parts = config.optimizer, phases_of(config)

  def rate(field):
    return schedules.Piecewise(
      [
        schedules.WarmupDecay(
          getattr(c.optimizer, field) or c.optimizer.learning_rate,
          c.optimizer.warmup_steps,
          c.steps,
          power=o.decay_power,
          after_warmup=o.decay_after_warmup,
        )
        for c in (phase.config for phase in parts)
      ],
      [phase.last for phase in parts[:-1]],
    )

  own = any(phase.config.optimizer.generator_learning_rate for phase in parts)
  return {
    field: rate(field)
    for field in ('learning_rate', *(('generator_learning_rate',) if own else ()))
  }


def build_optimizer(config: PretrainingConfig):
  """The optimizer of a config, with its schedule over all phases; and the schedule alone."""
  rates = build_rates(config)
  optimizer = optimizers.build(config.optimizer, rates)
  if config.generator.frozen:
    optimizer = optimizers.restricted(optimizer, lambda name: not is_generator_parameter(name))
  return optimizer, rates['learning_rate']


class Program(NamedTuple):
  """What a config computes on a mesh: what the trainer compiles and runs, and what the plan compiles."""

  config: PretrainingConfig  # of one phase
  layout: partitioning.Layout
  model: Electra
  settings: Settings
  optimizer: Any  # over all phases
  rates: dict  # of build_rates
  schedules: dict  # of build_schedules
  shapes: pretrain_step.TrainState  # of the state
  shardings: pretrain_step.TrainState
  trained: tuple[str, ...] | None = (
    None  # top levels of the parameters that learn, where not all do
  )
  alone: bool = False  # only the generator is trained

  @property
  def inputs(self) -> dict:
    """Constants of the schedules, the `schedules` of a step's batch."""
    return schedules.constants(self.rates | self.schedules)

  @property
  def objective(self):
    """The module of the objective."""
    return objectives.named(self.settings.name)

  def step_flops(self, convention: str = 'model') -> int:
    """Of one step, see training/flops.step_flops."""
    return step_flops(
      self.settings,
      self.model,
      self.config.batch_size,
      self.config.sequence_length,
      convention,
      self.alone,
    )


def program(
  run_config: PretrainingConfig, phase: Phase, tokenizer, layout: partitioning.Layout
) -> Program:
  """The program of one phase of a run.

  Args:
    run_config: of the run, whose phases the schedules of the learning rates go over.
    phase: the phase.
    tokenizer: its size and special token ids.
    layout: of the mesh.

  Raises:
    UserError: for sizes that contradict each other or do not divide over the mesh.
  """
  config = phase.config
  mesh, platform = layout.mesh, layout.mesh.devices.flat[0].platform
  model = build_model(config, tokenizer.size, platform)
  check_batch(config, mesh)
  across = [axis for axis in dict(layout.rules)['heads'] or () if mesh.shape[axis] > 1]
  for tower, c in (
    ('generator', model.generator_config),
    ('discriminator', model.discriminator_config),
  ):
    for axis in across if tower == 'discriminator' or 'generator_head' in model.heads else ():
      if c.num_heads % mesh.shape[axis]:
        raise UserError(
          f"config.mesh.{axis} {mesh.shape[axis]} does not divide the {tower}'s {c.num_heads} heads; "
          f"use a divisor, or leave heads whole: --config.sharding.heads=''."
        )
  optimizer, _ = build_optimizer(run_config)
  shapes, shardings = pretrain_step.state_shardings(
    model, optimizer, config.sequence_length, layout
  )
  learning = model.scheme.trained_with_generator(keep_discriminator=bool(run_config.init))
  trained = (
    tuple(name for name in learning if name in shapes.params) if phase.generator_only else None
  )
  if config.generator.frozen:
    trained = tuple(name for name in shapes.params if not is_generator_parameter(name))
  return Program(
    config,
    layout,
    model,
    build_settings(config, tokenizer),
    optimizer,
    build_rates(run_config),
    build_schedules(run_config),
    shapes,
    shardings,
    trained,
    phase.generator_only,
  )


def check_batch(config: PretrainingConfig, mesh) -> int:
  """Rows of a batch on each device. Raises UserError where they do not divide."""
  shards = partitioning.row_shards(mesh)
  if config.batch_size % shards:
    raise UserError(
      f'config.batch_size {config.batch_size} does not divide over {shards} devices; use a multiple of {shards}.'
    )
  rows = config.batch_size // shards
  if config.micro_batches and rows % config.micro_batches:
    raise UserError(
      f'config.micro_batches {config.micro_batches} does not divide the {rows} rows of a device; change it, or config.batch_size.'
    )
  return rows


def lower_step(p: Program, micro_batches: int) -> jax.stages.Lowered:
  """The train step of a program, `(state, batch) -> (state, sums)`, lowered for its mesh."""
  moments = partitioning.moment_shardings(p.shapes.params, p.shardings.params, p.layout)
  step = pretrain_step.make_train_step(
    p.model,
    p.objective,
    p.settings,
    p.optimizer,
    seed=p.config.seed,
    micro_batches=micro_batches,
    skip_nonfinite=p.config.skip_nonfinite,
    layout=p.layout,
    moments=moments,
    trained=p.trained,
    alone=p.alone,
    schedules=p.schedules,
  )
  batch = {
    'token_ids': jax.ShapeDtypeStruct((p.config.batch_size, p.config.sequence_length), jnp.int32),
    'schedules': jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), p.inputs),
  }
  jitted = pretrain_step.jit_train_step(step, p.shardings, p.layout, with_schedules=True)
  return jitted.lower(p.shapes, batch)


def compile_step(p: Program, micro_batches: int) -> jax.stages.Compiled:
  """The train step of a program, `(state, batch) -> (state, sums)`, compiled for its mesh."""
  return lower_step(p, micro_batches).compile()


def compile_to_fit(p: Program, budget: int, micro_batches: int = 0, say=lambda label, text: None):
  """The compiled step of as many micro-batches as asked for, or, for 0, of the fewest that fit into `budget` bytes a device.

  Returns: micro-batches, the compiled step, its bytes a device. Raises UserError where even one row at a time does not fit.
  """

  def compile_one(k):
    say('compiling', 'the step' + (f' in {k} micro-batches' if k > 1 else ''))
    return compile_step(p, k)

  if micro_batches:
    compiled = compile_one(micro_batches)
    return micro_batches, compiled, memory.of(compiled)
  rows, towers = (
    check_batch(p.config, p.layout.mesh),
    (p.model.generator_config, p.model.discriminator_config),
  )
  row = sum(memory.activation_bytes(c, p.config.sequence_length) for c in towers)
  state = partitioning.bytes_per_device(p.shapes, p.shardings) + 2 * partitioning.bytes_per_device(
    p.shapes.params, p.shardings.params
  )
  guess = math.ceil(rows * row / max(1, budget - state))
  return memory.choose_micro_batches(compile_one, rows, budget, max(1, guess))

"""From a config to the model, the objective's settings, the optimizer and the compiled step."""

import math
import types
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from electra_jax import registry
from electra_jax.config import Phase, PretrainingConfig, phases_of
from electra_jax.config.declarations import typed_options
from electra_jax.errors import UserError
from electra_jax.model.electra import Electra
from electra_jax.model.sharing.scheme import is_generator_parameter
from electra_jax.pretrain import masking, pretrain_step
from electra_jax.pretrain.objectives.objective import Objective
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.training import devices, memory, optimizers, partitioning, schedules
from electra_jax.training.encoders import sharing, towers
from electra_jax.training.schedules import Inputs, Schedule
from electra_jax.training.update_step import TrainState, UpdateOptions

# A Tokenizer, or what any_tokenizer returns.
AnyTokenizer: TypeAlias = Any


def any_tokenizer(vocab_size: int) -> AnyTokenizer:
  """Takes the place of a tokenizer where there is none: its ids do not change what is compiled."""
  return types.SimpleNamespace(
    size=vocab_size,
    pad_id=0,
    cls_id=2,
    sep_id=3,
    mask_id=4,
    word_starts=np.arange(vocab_size) % 2 == 0,
    word_ends=np.zeros(vocab_size, bool),
  )


def objective_of(config: PretrainingConfig) -> Objective:
  """The objective of a config. Raises UserError for an unknown name."""
  objective: Objective = registry.OBJECTIVES.get(config.objective.name)
  return objective


def build_model(config: PretrainingConfig, vocab_size: int, platform: str | None = None) -> Electra:
  """The two towers of a config, and the heads of its objective.

  Args:
    config: the run's config.
    vocab_size: of the tokenizer.
    platform: 'cpu', 'gpu' or 'tpu', for what the config leaves to it; None for JAX's default.

  Raises:
    UserError: for sizes that contradict each other.
  """
  objective = objective_of(config)
  without = ('generator_head',) if config.generator.uniform else ()
  generator, discriminator = towers(config, objective.one_tower, vocab_size, platform)
  return Electra(
    generator,
    discriminator,
    sharing=sharing(config, objective.one_tower),
    heads=tuple(head for head in objective.heads if head not in without),
    two_tower=objective.two_tower_generator,
  )


def build_settings(config: PretrainingConfig, tokenizer: AnyTokenizer) -> Settings:
  """The objective's settings, with slots for the most masks that its schedule asks for.

  Args:
    config: the run's config.
    tokenizer: its special token ids and word starts.

  Raises:
    UserError: the objective does not have an option, or whole words are masked and the tokenizer
      does not mark them.
  """
  c = config.objective
  scheduled = c.schedules.mask_rate
  rate = max(c.mask_rate, schedules.upper_bound(scheduled) if scheduled else 0)
  options = typed_options(
    registry.OBJECTIVES.entry(c.name).options,
    c.options,
    'config.objective.options',
    f'the objective {c.name!r}',
  )
  whole_words = c.masking != 'uniform'
  fields = vars(c) | {'options': options}
  del fields['schedules']  # evaluation uses the constants
  return Settings(
    **fields,
    frozen=config.generator.frozen,
    logit_bins=config.logit_bins,
    max_predictions=masking.max_predictions(rate, config.sequence_length),
    pad_id=tokenizer.pad_id,
    cls_id=tokenizer.cls_id,
    sep_id=tokenizer.sep_id,
    mask_id=tokenizer.mask_id,
    word_starts=masking.packed(tokenizer.word_starts) if whole_words else b'',
    word_ends=masking.packed(tokenizer.word_ends)
    if whole_words and tokenizer.word_ends.any()
    else b'',
  )


def build_schedules(config: PretrainingConfig) -> dict[str, Schedule]:
  """Settings of the objective that change over the run: name -> function of the step."""
  return {
    name: schedules.from_form(form, config.steps)
    for name, form in sorted(vars(config.objective.schedules).items())
    if form
  }


def build_rates(config: PretrainingConfig) -> dict[str, Schedule]:
  """Learning rates over all phases.

  Returns:
    `learning_rate`, and `generator_learning_rate` where the generator has its own.
  """
  o, phases = config.optimizer, phases_of(config)

  def rate(field: str) -> Schedule:
    return schedules.Piecewise(
      [
        schedules.WarmupDecay(
          getattr(c.optimizer, field) or c.optimizer.learning_rate,
          c.optimizer.warmup_steps,
          c.steps,
          power=o.decay_power,
          after_warmup=o.decay_after_warmup,
        )
        for c in (phase.config for phase in phases)
      ],
      [phase.last for phase in phases[:-1]],
    )

  separate = any(phase.config.optimizer.generator_learning_rate for phase in phases)
  names = ('learning_rate', *(('generator_learning_rate',) if separate else ()))
  return {name: rate(name) for name in names}


def build_optimizer(
  config: PretrainingConfig,
) -> tuple[optax.GradientTransformation, Schedule]:
  """The optimizer of a config and its learning rate, over all phases."""
  rates = build_rates(config)
  optimizer = optimizers.build(config.optimizer, rates)
  if config.generator.frozen:
    optimizer = optimizers.restricted(optimizer, lambda name: not is_generator_parameter(name))
  return optimizer, rates['learning_rate']


class Program(NamedTuple):
  """What a config computes on a mesh: the trainer compiles and runs it, the plan compiles it.

  Attributes:
    config: of one phase.
    layout: of the mesh.
    model: both towers and their heads.
    objective: of pretrain/objectives.
    settings: the objective's.
    optimizer: over all phases.
    rates: learning rates, see build_rates.
    schedules: settings of the objective that change, see build_schedules.
    shapes: of the state.
    shardings: of the state.
    trained: top levels of the parameters that are trained; None for all.
    generator_only: whether only the generator is trained.
  """

  config: PretrainingConfig
  layout: partitioning.Layout
  model: Electra
  objective: Objective
  settings: Settings
  optimizer: optax.GradientTransformation
  rates: dict[str, Schedule]
  schedules: dict[str, Schedule]
  shapes: TrainState
  shardings: TrainState
  trained: tuple[str, ...] | None = None
  generator_only: bool = False

  @property
  def inputs(self) -> dict[str, Inputs]:
    """Constants of the schedules, the `schedules` of a step's batch."""
    return schedules.constants(self.rates | self.schedules)

  @property
  def computation(self) -> pretrain_step.Computation:
    """What a training step computes, apart from the update."""
    return pretrain_step.Computation(
      self.model,
      self.objective,
      self.settings,
      self.config.seed,
      self.generator_only,
      self.schedules,
    )

  def step_flops(self, convention: str = 'model') -> int:
    """Floating point operations of one step, see training/flops.step_flops."""
    shape = self.config.batch_size, self.config.sequence_length
    return self.objective.step_flops(
      self.settings, self.model, shape, convention, self.generator_only
    )


def program(
  run_config: PretrainingConfig, phase: Phase, tokenizer: AnyTokenizer, layout: partitioning.Layout
) -> Program:
  """The program of one phase of a run.

  Args:
    run_config: of the run, over whose phases learning rates are scheduled.
    phase: the phase.
    tokenizer: its size and special token ids.
    layout: of the mesh.

  Raises:
    UserError: for sizes that contradict each other or do not divide over the mesh.
  """
  config = phase.config
  model = build_model(config, tokenizer.size, layout.mesh.devices.flat[0].platform)
  check_batch(config, layout.mesh)
  _check_heads(model, layout)
  optimizer, _ = build_optimizer(run_config)
  shapes, shardings = pretrain_step.state_shardings(
    model, optimizer, config.sequence_length, layout
  )
  return Program(
    config,
    layout,
    model,
    objective_of(config),
    build_settings(config, tokenizer),
    optimizer,
    build_rates(run_config),
    build_schedules(run_config),
    shapes,
    shardings,
    _trained(run_config, phase, model, tuple(shapes.params)),
    phase.generator_only,
  )


def _check_heads(model: Electra, layout: partitioning.Layout) -> None:
  """Raises UserError where attention heads do not divide over the mesh."""
  axes = dict(layout.rules)['heads'] or ()
  across = [axis for axis in axes if layout.mesh.shape[axis] > 1]
  found = {'discriminator': model.discriminator_config}
  if 'generator_head' in model.heads:
    found = {'generator': model.generator_config} | found
  for tower, c in found.items():
    for axis in across:
      if c.num_heads % layout.mesh.shape[axis]:
        raise UserError(
          f"config.mesh.{axis} {layout.mesh.shape[axis]} does not divide the {tower}'s "
          f"{c.num_heads} heads; use a divisor, or leave heads whole: --config.sharding.heads=''."
        )


def _trained(
  run_config: PretrainingConfig, phase: Phase, model: Electra, names: tuple[str, ...]
) -> tuple[str, ...] | None:
  """Top levels of the parameters that a phase trains; None for all.

  A phase that trains only the generator does not change what an initialized discriminator reads.
  """
  if phase.config.generator.frozen:
    return tuple(name for name in names if not is_generator_parameter(name))
  if not phase.generator_only:
    return None
  trained = model.scheme.trained_with_generator(keep_discriminator=bool(run_config.init))
  return tuple(name for name in trained if name in names)


def check_batch(config: PretrainingConfig, mesh: jax.sharding.Mesh) -> int:
  """Rows of a batch on each device. Raises UserError where they do not divide."""
  shards = partitioning.row_shards(mesh)
  if config.batch_size % shards:
    raise UserError(
      f'config.batch_size {config.batch_size} does not divide over {shards} devices; use a '
      f'multiple of {shards}.'
    )
  rows = config.batch_size // shards
  if config.micro_batches and rows % config.micro_batches:
    raise UserError(
      f'config.micro_batches {config.micro_batches} does not divide the {rows} rows of a device; '
      'change it, or config.batch_size.'
    )
  return rows


def lower_step(p: Program, micro_batches: int) -> jax.stages.Lowered:
  """The train step of a program, `(state, batch) -> (state, sums)`, lowered for its mesh."""
  moments = partitioning.moment_shardings(p.shapes.params, p.shardings.params, p.layout)
  options = UpdateOptions(micro_batches, p.config.skip_nonfinite, p.layout, moments, p.trained)
  step = pretrain_step.make_train_step(p.computation, p.optimizer, options)
  batch = {
    'token_ids': jax.ShapeDtypeStruct((p.config.batch_size, p.config.sequence_length), jnp.int32),
    'schedules': jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), p.inputs),
  }
  jitted = pretrain_step.jit_train_step(step, p.shardings, p.layout, with_schedules=True)
  lowered: jax.stages.Lowered = jitted.lower(p.shapes, batch)
  return lowered


def compile_step(p: Program, micro_batches: int) -> jax.stages.Compiled:
  """The train step of a program, `(state, batch) -> (state, sums)`, compiled for its mesh."""
  return lower_step(p, micro_batches).compile()


def compile_initial(p: Program, run_config: PretrainingConfig) -> jax.stages.Compiled:
  """The random initial state of a program, `() -> state`, compiled for its mesh."""

  def init() -> TrainState:
    length = run_config.sequence_length
    return pretrain_step.init_state(p.model, p.optimizer, run_config.seed, length)

  options = devices.compiler_options(p.layout.mesh)
  jitted = jax.jit(init, out_shardings=p.shardings, compiler_options=options)
  compiled: jax.stages.Compiled = jitted.lower().compile()
  return compiled


def _silent(label: str, text: str) -> None:
  """Prints nothing."""


def compile_to_fit(
  p: Program, budget: int, micro_batches: int = 0, say: Callable[[str, str], None] = _silent
) -> tuple[int, jax.stages.Compiled, int]:
  """Compiles the step for the memory of the devices.

  Args:
    p: the program.
    budget: bytes per device.
    micro_batches: how many to compile; 0 for the fewest that fit into the budget.
    say: prints a label and a line on progress.

  Returns:
    Micro-batches, the compiled step, its bytes per device.

  Raises:
    UserError: where even one row at a time does not fit.
  """

  def compile_one(k: int) -> jax.stages.Compiled:
    say('compiling', 'the step' + (f' in {k} micro-batches' if k > 1 else ''))
    return compile_step(p, k)

  if micro_batches:
    compiled = compile_one(micro_batches)
    return micro_batches, compiled, memory.peak_bytes(compiled)
  rows = check_batch(p.config, p.layout.mesh)
  per_row = sum(
    memory.activation_bytes(c, p.config.sequence_length)
    for c in (p.model.generator_config, p.model.discriminator_config)
  )
  params = partitioning.bytes_per_device(p.shapes.params, p.shardings.params)
  state = partitioning.bytes_per_device(p.shapes, p.shardings) + 2 * params
  guess = math.ceil(rows * per_row / max(1, budget - state))
  chosen: tuple[int, jax.stages.Compiled, int] = memory.choose_micro_batches(
    compile_one, rows, budget, max(1, guess)
  )
  return chosen

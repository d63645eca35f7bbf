"""From a config to the model, the objective's settings, the optimizer, and the program that the trainer compiles."""

import math
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from electra_jax.config import phases
from electra_jax.errors import UserError
from electra_jax.model.electra import Electra
from electra_jax.pretrain import masking
from electra_jax.pretrain import step as steps
from electra_jax.pretrain.objectives import electra as objective
from electra_jax.training import memory, mesh as meshes, optimizers
from electra_jax.training.encoders import towers


def any_tokenizer(vocab_size: int):
  """Stands for a tokenizer where there is none: its ids do not change what is compiled."""
  return types.SimpleNamespace(size=vocab_size, pad_id=0, cls_id=2, sep_id=3, mask_id=4)


def build_model(config, vocab_size: int, platform: str | None = None) -> Electra:
  """The two towers of a config.

  Args:
    config: the run's config.
    vocab_size: of the tokenizer.
    platform: 'cpu', 'gpu' or 'tpu', for what the config leaves to it; None for that of JAX's devices.

  Raises UserError for sizes that contradict each other.
  """
  return Electra(*towers(config, vocab_size, platform), sharing=config.sharing)


def build_settings(config, tokenizer) -> objective.Settings:
  """The objective's settings, with the tokenizer's special tokens."""
  return objective.Settings(
      **config.objective.to_dict(), max_predictions=masking.max_predictions(config.objective.mask_rate, config.sequence_length),
      pad_id=tokenizer.pad_id, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id, mask_id=tokenizer.mask_id)


def build_optimizer(config):
  """The optimizer of a config, with its schedule over all phases; and the schedule alone."""
  o, parts = config.optimizer, phases(config)
  schedule = optimizers.piecewise(
      [optimizers.decay_with_warmup(c.optimizer.learning_rate, c.optimizer.warmup_steps, c.steps, power=o.decay_power,
                                    after_warmup=o.decay_after_warmup) for c in (phase.config for phase in parts)],
      [phase.last for phase in parts[:-1]])
  make = {'adamw': optimizers.adamw, 'lamb': optimizers.lamb}[o.name]
  optimizer = make(schedule, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay, clip=o.clip, bias_correction=o.bias_correction)
  return optimizer, schedule


class Program(NamedTuple):
  """What a config computes on a mesh: what the trainer compiles and runs, and what the plan compiles."""
  config: Any                  # of one phase
  layout: meshes.Layout
  model: Electra
  settings: objective.Settings
  optimizer: Any               # over all phases
  schedule: Any
  shapes: steps.TrainState     # of the state
  shardings: steps.TrainState
  trained: tuple[str, ...] | None = None      # where the generator learns alone, the top levels of the parameters that do


def program(run_config, config, tokenizer, layout: meshes.Layout, alone: bool = False) -> Program:
  """The program of one phase (`config`) of a run (`run_config`; the same where it has no phases). `alone`: see config.Phase.

  Raises UserError for sizes that contradict each other or do not divide over the mesh.
  """
  mesh, platform = layout.mesh, layout.mesh.devices.flat[0].platform
  model = build_model(config, tokenizer.size, platform)
  check_batch(config, mesh)
  across = [axis for axis in dict(layout.rules)['heads'] or () if mesh.shape[axis] > 1]
  for tower, c in (('generator', model.generator_config), ('discriminator', model.discriminator_config)):
    for axis in across:
      if c.num_heads % mesh.shape[axis]:
        raise UserError(f"config.mesh.{axis} {mesh.shape[axis]} does not divide the {tower}'s {c.num_heads} heads; "
                        f"use a divisor, or leave heads whole: --config.sharding.heads=''.")
  optimizer, schedule = build_optimizer(run_config)
  shapes, shardings = steps.state_shardings(model, optimizer, config.sequence_length, layout)
  # What a discriminator that is there already reads stays as it learned it.
  learning = ('generator', 'generator_head', 'generator_embeddings', *(() if run_config.init else ('embeddings',)))
  trained = tuple(name for name in learning if name in shapes.params) if alone else None
  return Program(config, layout, model, build_settings(config, tokenizer), optimizer, schedule, shapes, shardings, trained)


def check_batch(config, mesh) -> int:
  """Rows of a batch on each device. Raises UserError where they do not divide."""
  shards = meshes.row_shards(mesh)
  if config.batch_size % shards:
    raise UserError(f'config.batch_size {config.batch_size} does not divide over {shards} devices; use a multiple of {shards}.')
  rows = config.batch_size // shards
  if config.micro_batches and rows % config.micro_batches:
    raise UserError(f'config.micro_batches {config.micro_batches} does not divide the {rows} rows of a device; change it, or config.batch_size.')
  return rows


def compile_step(p: Program, micro_batches: int):
  """The train step of a program, compiled for its mesh: `(state, batch) -> (state, sums)`."""
  moments = meshes.moment_shardings(p.shapes.params, p.shardings.params, p.layout)
  step = steps.make_train_step(p.model, objective, p.settings, p.optimizer, seed=p.config.seed, micro_batches=micro_batches,
                               skip_nonfinite=p.config.skip_nonfinite, layout=p.layout, moments=moments, trained=p.trained)
  batch = {'token_ids': jax.ShapeDtypeStruct((p.config.batch_size, p.config.sequence_length), jnp.int32)}
  return steps.jit_train_step(step, p.shardings, p.layout).lower(p.shapes, batch).compile()


def sum_shapes(p: Program):
  """Shapes of the sums that a step returns, the same in every phase."""
  step = steps.make_train_step(p.model, objective, p.settings, p.optimizer, seed=p.config.seed)
  batch = {'token_ids': jax.ShapeDtypeStruct((p.config.batch_size, p.config.sequence_length), jnp.int32)}
  return jax.eval_shape(step, p.shapes, batch)[1]


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
  rows, towers = check_batch(p.config, p.layout.mesh), (p.model.generator_config, p.model.discriminator_config)
  row = sum(memory.activation_bytes(c, p.config.sequence_length) for c in towers)
  state = meshes.bytes_per_device(p.shapes, p.shardings) + 2 * meshes.bytes_per_device(p.shapes.params, p.shardings.params)
  guess = math.ceil(rows * row / max(1, budget - state))
  return memory.choose_micro_batches(compile_one, rows, budget, max(1, guess))

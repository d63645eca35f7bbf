"""Takes the sizes of a run from its initial weights."""

import os

from electra_jax import registry
from electra_jax.config import PretrainingConfig, flat, phases_of
from electra_jax.config.families import FAMILIES
from electra_jax.errors import UserError
from electra_jax.interop import narrowed
from electra_jax.interop.weights import Weights
from electra_jax.model.config import EncoderConfig
from electra_jax.pretrain.continued import source
from electra_jax.pretrain.continued.source import InitialWeights
from electra_jax.training import checkpoints, optimizers, run_folder
from electra_jax.training.encoders import run_config

# Fields of config.model that both towers have in common.
COMMON_SIZES = (
  'family',
  'max_positions',
  'position_buckets',
  'type_vocab_size',
  'activation',
  'layer_norm_eps',
  'global_every',
  'local_window',
  'global_rope_theta',
  'local_rope_theta',
)
# Fields of config.model that config.init determines.
SIZES = (
  'hidden_size',
  'embedding_size',
  'num_layers',
  'num_heads',
  'intermediate_size',
  *COMMON_SIZES,
)
# Fields of config.generator that the weights of a generator determine.
GENERATOR_SIZES = (
  'hidden_fraction',
  'layers_fraction',
  'num_heads',
  'intermediate_size',
  'embedding_size',
)


def with_sizes(
  config: PretrainingConfig, workdir: str | os.PathLike[str] | None = None
) -> tuple[PretrainingConfig, InitialWeights | None]:
  """The config with the sizes of its initial weights.

  Args:
    config: config of the run.
    workdir: folder of the run. Where it holds a checkpoint, the sizes are those that the run was
      started with, and the weights are not read, so that they are not required for resuming.

  Returns:
    The config and the weights; None where there are none, or they were not read.

  Raises:
    UserError: the weights cannot be opened, do not fit the config, or lack what it requires.
  """
  if not config.init and not config.generator.init:
    return config, None
  started = (
    run_config(run_folder.folder(workdir)) if workdir and checkpoints.any_saved(workdir) else None
  )
  if started:
    return _with_recorded_sizes(config, started), None
  revisions = source.recorded_revisions(workdir)
  if not config.init:
    found = source.open_generator(config, revisions)
    return _beside_generator(config, found.weights), found
  found = source.open_discriminator(config, revisions)
  config = _with_discriminator(config, found.weights)
  _check_moments(config, found.weights)
  return config, found


def _with_recorded_sizes(
  config: PretrainingConfig, started: PretrainingConfig
) -> PretrainingConfig:
  """The config with the sizes that a run was started with."""
  names = ['data.vocab_size']
  if config.init:
    names += [f'model.{name}' for name in SIZES]
  if not config.init or config.continued.generator not in ('scratch', 'narrowed'):
    names += [f'generator.{name}' for name in GENERATOR_SIZES]
    names += ['sharing'] if config.init else []
  values = flat(started)
  return config.replace({name: values[name] for name in names})


def _with_discriminator(config: PretrainingConfig, weights: Weights) -> PretrainingConfig:
  """The config with the sizes of the discriminator, and of the generator if there is one."""
  d, g = weights.discriminator, weights.generator
  assert d is not None
  changes = {f'model.{name}': getattr(d, name) for name in SIZES}
  changes['data.vocab_size'] = weights.vocab_size
  longest = max(phase.config.sequence_length for phase in phases_of(config))
  if d.has_position_table and longest > d.max_positions:
    if config.continued.positions == 'refuse':
      raise UserError(
        f'{weights.source} has {d.max_positions} positions and config.sequence_length is '
        f'{longest}; shorten the rows, or extend the position table: '
        '--config.continued.positions=interpolated or repeated.'
      )
    changes['model.max_positions'] = longest
  config = config.replace(changes)
  if g is None:
    if config.continued.generator == 'narrowed':
      generator, _ = source.encoders_of(config, weights.vocab_size)
      narrowed.check_narrowed(d, generator, weights.source)
    return config
  for name in ('vocab_size', *COMMON_SIZES):
    if getattr(g, name) != getattr(d, name):
      raise UserError(
        f'{weights.source}: {name} is {getattr(g, name)} in the generator and {getattr(d, name)} '
        'in the discriminator, and a config has one for both; create a new generator '
        '(--config.continued.generator=scratch).'
      )
  scheme = registry.SHARING_SCHEMES.get(config.sharing)
  fits = scheme.can_hold(weights.sharing, g.embedding_size == d.embedding_size)
  config = config.replace({'sharing': config.sharing if fits else weights.sharing})
  return _with_generator_sizes(config, g)


def _with_generator_sizes(config: PretrainingConfig, g: EncoderConfig) -> PretrainingConfig:
  d = config.model
  return config.replace(
    {
      'generator.hidden_fraction': g.hidden_size / d.hidden_size,
      'generator.layers_fraction': g.num_layers / d.num_layers,
      'generator.num_heads': g.num_heads,
      'generator.intermediate_size': g.intermediate_size,
      'generator.embedding_size': (g.embedding_size if g.embedding_size != d.embedding_size else 0),
    }
  )


def _beside_generator(config: PretrainingConfig, weights: Weights) -> PretrainingConfig:
  """The config with the sizes of the generator of config.generator.init.

  Raises:
    UserError: the generator differs from the discriminator of the config in what both have in
      common.
  """
  g, model = weights.generator, config.model
  assert g is not None
  differ = [
    name
    for name in COMMON_SIZES
    if name not in FAMILIES[g.family].unused_fields and getattr(g, name) != getattr(model, name)
  ]
  if differ:
    flags = ' '.join(f'--config.model.{name}={getattr(g, name)}' for name in differ)
    raise UserError(
      f'{weights.source} and config.model differ in {", ".join(differ)}, which both towers take '
      f'from config.model; set {flags}.'
    )
  equal_sizes = registry.SHARING_SCHEMES.get(config.sharing).equal_embedding_sizes
  if equal_sizes and g.embedding_size != model.embedding_size:
    raise UserError(
      f'{weights.source} has embeddings of {g.embedding_size} and config.model.embedding_size is '
      f'{model.embedding_size}; expected equal sizes for config.sharing {config.sharing!r}, or '
      '--config.sharing=none.'
    )
  config = _with_generator_sizes(config, g)
  return config.replace({'data.vocab_size': weights.vocab_size})


def _check_moments(config: PretrainingConfig, weights: Weights) -> None:
  """Raises UserError unless weights and optimizer support config.continued.optimizer."""
  how, name = config.continued.optimizer, config.optimizer.name
  if how == 'fresh':
    return
  if weights.moments is None:
    raise UserError(
      f"{weights.source} has no optimizer's state; set --config.continued.optimizer=fresh."
    )
  if not optimizers.spec_of(config.optimizer).has_adam_moments:
    raise UserError(
      f"config.continued.optimizer is {how!r}, and the optimizer {name!r} has no moments of Adam's "
      'form; set --config.continued.optimizer=fresh.'
    )
  if how == 'resumed' and not 0 <= (weights.step or -1) < config.steps:
    raise UserError(
      f'{weights.source} is at step {weights.step} and config.steps, the number of all steps '
      f'together, is {config.steps}; raise it, or set --config.continued.optimizer=kept for a new '
      'schedule.'
    )

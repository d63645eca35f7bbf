"""Optimizers: AdamW as published and with bias correction, LAMB, rates per layer and per tower.

An optimizer is an `OptimizerSpec` in registry.OPTIMIZERS. Its function gets `OptimizerSettings` and
returns an optax transformation that includes the learning rate:

    def sgd(settings: OptimizerSettings) -> optax.GradientTransformation:
      return optax.chain(
        clip_gradients(settings), optax.trace(settings.config.b1), scale_by_rates(settings.rates)
      )

    registry.OPTIMIZERS.register('sgd', OptimizerSpec(sgd), help='SGD with momentum')
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from electra_jax import registry
from electra_jax.config.declarations import typed_options
from electra_jax.config.finetuning import FinetuningOptimizerConfig
from electra_jax.config.pretraining import OptimizerConfig
from electra_jax.model.sharing.scheme import is_difference, is_generator_parameter
from electra_jax.training import schedules
from electra_jax.training.schedules import Schedule

PyTree: TypeAlias = Any
Path: TypeAlias = tuple[Any, ...]  # of a leaf, as jax.tree_util has it
# Parameters of an encoder that precede its layers.
_BELOW_LAYERS = ('embeddings_project', 'distances', 'distances_norm')
Optimizer: TypeAlias = optax.GradientTransformation | optax.GradientTransformationExtraArgs


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
  """What an optimizer is built from.

  Attributes:
    rates: schedules of the learning rates by name: `learning_rate` and, where the generator has a
      separate learning rate, `generator_learning_rate`.
    config: the group config.optimizer.
    options: the typed options of a registered optimizer; None for one without options.
    layer_rates: factors of the learning rate, of `layerwise_rates`; None for equal rates.
  """

  rates: Mapping[str, Schedule]
  config: OptimizerConfig | FinetuningOptimizerConfig
  options: Any = None
  layer_rates: PyTree | None = None

  @property
  def clips_by_tower(self) -> bool:
    """Whether the gradients of the generator are clipped by their own norm."""
    return 'generator_learning_rate' in self.rates


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
  """An optimizer of config.optimizer.name.

  Attributes:
    build: the function that builds it.
    has_adam_moments: whether its state has an optax.ScaleByAdamState. Another run can then
      continue with its moments (config.continued.optimizer kept or resumed).
  """

  build: Callable[[OptimizerSettings], Optimizer]
  has_adam_moments: bool = False


def spec_of(config: OptimizerConfig) -> OptimizerSpec:
  """The spec of config.optimizer.name. Raises UserError for an unknown name."""
  spec: OptimizerSpec = registry.OPTIMIZERS.get(config.name)
  return spec


def build(config: OptimizerConfig, rates: Mapping[str, Schedule]) -> Optimizer:
  """The optimizer of config.optimizer.

  Args:
    config: the group config.optimizer.
    rates: as of `OptimizerSettings`.

  Raises:
    UserError: for an unknown optimizer, or options that it does not have.
  """
  options = typed_options(
    registry.OPTIMIZERS.entry(config.name).options,
    config.options,
    'config.optimizer.options',
    f'the optimizer {config.name!r}',
  )
  return spec_of(config).build(OptimizerSettings(rates, config, options))


#### Parts of optimizers ####


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """Adam's direction without bias correction: m / (sqrt(v) + eps).

  Source: the optimizer of the original program, and of BERT.
  """

  def init(params: PyTree) -> optax.ScaleByAdamState:
    def zeros() -> PyTree:
      return jax.tree.map(jnp.zeros_like, params)

    return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros(), nu=zeros())

  def update(
    gradients: PyTree, state: optax.ScaleByAdamState, params: PyTree | None = None
  ) -> tuple[PyTree, optax.ScaleByAdamState]:
    del params
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, gradients)
    nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, gradients)
    direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
    return direction, optax.ScaleByAdamState(count=state.count + 1, mu=mu, nu=nu)

  return optax.GradientTransformation(init, update)


def scale_by_adam_with_separate_counts(
  b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
  """Adam's direction (Kingma and Ba 2015), whose bias correction counts per top-level parameter.

  The moments of a parameter that was not trained from the start, as a discriminator's after
  config.generator.alone_steps, have seen fewer updates than the optimizer has made. With the
  number of all updates their bias would not be corrected, and the first updates would be up to
  (1 - b1) / sqrt(1 - b2) times too large, 3.2 as published.

  The counts of its optax.ScaleByAdamState are a dict like the moments, so that update_step.py
  leaves those of parameters that are not trained as they are.
  """
  inner = optax.scale_by_adam(b1, b2, eps)

  def init(params: PyTree) -> optax.ScaleByAdamState:
    state = inner.init(params)
    return state._replace(count={name: jnp.zeros([], jnp.int32) for name in params})

  def update(
    gradients: PyTree, state: optax.ScaleByAdamState, params: PyTree | None = None
  ) -> tuple[PyTree, optax.ScaleByAdamState]:
    del params
    found = {
      name: inner.update(
        gradient, optax.ScaleByAdamState(state.count[name], state.mu[name], state.nu[name])
      )
      for name, gradient in gradients.items()
    }
    after = {name: new for name, (_, new) in found.items()}
    return {name: direction for name, (direction, _) in found.items()}, optax.ScaleByAdamState(
      count={name: new.count for name, new in after.items()},
      mu={name: new.mu for name, new in after.items()},
      nu={name: new.nu for name, new in after.items()},
    )

  return optax.GradientTransformation(init, update)


def _names(path: Path) -> list[str]:
  return [str(getattr(entry, 'key', entry)) for entry in path]


def is_decayed(path: Path) -> bool:
  """Whether a parameter has weight decay: all have it, embeddings included, but biases and norms.

  Source: the original program, which selects parameters by their names.
  """
  names = _names(path)
  return names[-1] != 'bias' and not any(name == 'norm' or name.endswith('_norm') for name in names)


def add_weight_decay(rate: float) -> optax.GradientTransformation:
  """Adds decoupled weight decay to the updates of the parameters that have it; see `is_decayed`."""

  def mask(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: is_decayed(path), params)

  return optax.add_decayed_weights(rate, mask=mask)


def scale_by_layer_trust_ratio() -> optax.GradientTransformation:
  """Scales the update of each tensor to the norm of the tensor: the trust ratio of LAMB.

  The ratio is 1 where either norm is 0. There are three differences from
  optax.scale_by_trust_ratio. Under `layers` the first axis counts layers, and each layer has its
  own ratio. Biases and norms are not scaled, as with --skip_adaptive in NVIDIA's program.
  Differences of embeddings are not scaled either, since they are initialized with zeros and their
  norm would keep them there. Norms are sums over whole axes, so tensors may be sharded in any way:
  XLA adds up the parts, and gathers no tensor.
  """

  def scale(path: Path, update: jax.Array, param: jax.Array) -> jax.Array:
    if not is_decayed(path) or is_difference(_names(path)[0]):
      return update
    axes = tuple(range(1 if 'layers' in _names(path) else 0, param.ndim))

    def norm(x: jax.Array) -> jax.Array:
      return jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True))

    of_param, of_update = norm(param), norm(update)
    moves = (of_param > 0) & (of_update > 0)
    return update * jnp.where(moves, of_param / jnp.where(moves, of_update, 1), 1)

  return optax.stateless(
    lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates, params)
  )


def clip_gradients(settings: OptimizerSettings) -> optax.GradientTransformation:
  """Clips gradients to the global norm config.optimizer.clip; 0 does not clip."""
  clip = settings.config.clip
  if not clip:
    return optax.identity()
  return clip_by_tower_norms(clip) if settings.clips_by_tower else optax.clip_by_global_norm(clip)


def clip_by_tower_norms(clip: float) -> optax.GradientTransformation:
  """Clips the gradients of the generator and all others, each by their own global norm.

  Args:
    clip: largest global norm.
  """

  def labels(params: PyTree) -> dict[str, str]:
    return {name: 'generator' if is_generator_parameter(name) else 'others' for name in params}

  clipping = optax.clip_by_global_norm(clip)
  by_tower = optax.partition({'generator': clipping, 'others': clipping}, labels)

  def clipped(updates: PyTree, params: PyTree | None) -> PyTree:
    del params
    return by_tower.update(updates, by_tower.init(updates))[0]

  # Clipping has no state. Without that of optax.partition the state of the whole optimizer has one
  # form with and without a rate of the generator.
  return optax.stateless(clipped)


def scale_by_rates(rates: Mapping[str, Schedule]) -> optax.GradientTransformationExtraArgs:
  """Multiplies updates by minus the learning rate.

  Its state is that of optax.scale_by_learning_rate, which cannot take the constants of schedules as
  inputs. There is one count for both towers, as in checkpoints of version 0.1.0; optax.partition
  would keep one per tower.

  Args:
    rates: as of `OptimizerSettings`. Their constants are the `inputs` of an update where it has
      them, see training/schedules.py.
  """

  def init(params: PyTree) -> optax.ScaleByScheduleState:
    del params
    return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

  def update(
    updates: PyTree,
    state: optax.ScaleByScheduleState,
    params: PyTree | None = None,
    *,
    inputs: dict[str, schedules.Inputs] | None = None,
    **extra: PyTree,
  ) -> tuple[PyTree, optax.ScaleByScheduleState]:
    del params, extra
    now = schedules.values(rates, state.count, inputs)
    if 'generator_learning_rate' in rates:
      scaled = {
        name: _scaled(
          tree,
          -now['generator_learning_rate' if is_generator_parameter(name) else 'learning_rate'],
        )
        for name, tree in updates.items()
      }
    else:
      # A product with -1, as in optax: XLA moves it past factors that are constants, as layer-wise
      # rates are. A negation would round in another order.
      scaled = _scaled(updates, -1 * now['learning_rate'])
    return scaled, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init, update)


def _scaled(tree: PyTree, factor: jax.Array) -> PyTree:
  return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, tree)


def restricted(
  optimizer: Optimizer, is_trained: Callable[[str], bool]
) -> optax.GradientTransformationExtraArgs:
  """An optimizer of some of the top-level parameters; the others have no moments and do not change.

  It is not optax.masked, whose state has another form than that of version 0.1.0.

  Args:
    optimizer: an optimizer.
    is_trained: whether a top-level parameter is updated, by its name.
  """

  def part(tree: PyTree) -> PyTree:
    return {name: x for name, x in tree.items() if is_trained(name)}

  inner = optax.with_extra_args_support(optimizer)

  def init(params: PyTree) -> PyTree:
    return inner.init(part(params))

  def update(
    updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: PyTree
  ) -> tuple[PyTree, PyTree]:
    moves, state = inner.update(part(updates), state, part(params), **extra)
    return jax.tree.map(jnp.zeros_like, updates) | moves, state

  return optax.GradientTransformationExtraArgs(init, update)


#### Layer-wise rates ####


def layerwise_rates(shapes: PyTree, num_layers: int, decay: float, published: bool) -> PyTree:
  """Factors of the learning rate for fine-tuning, lower for layers nearer to the input.

  A factor is decay^(depth of the head - depth) (Clark et al. 2020, table 7). The depth of the
  embeddings and their projection is 0, that of layer i (counted from 0) is i + 1, and that of the
  head is num_layers + 1. From the embeddings to the head the factors are decay^(num_layers + 1),
  ..., decay^2, decay, 1. As published (model/optimization.py of the original program) the depth of
  the head is num_layers + 2: all factors except that of the head have one more `decay`, and the
  last layer has decay^2.

  Parameters that all layers share have the depth of the last one.

  Args:
    shapes: parameters of model.heads.FineTuned or their shapes: `embeddings`, `discriminator` and
      `head`.
    num_layers: of the encoder.
    decay: 0.8 (small, base) or 0.9 (large) in table 7; 1 for equal rates.
    published: whether the depth of the head is that of the original program.

  Returns:
    A tree of the same form, float32: scalars, and `[num_layers, 1, ...]` for tensors under
    `layers`, whose first axis counts layers.

  Raises:
    ValueError: `decay` is not in (0, 1], or the depth of a parameter is not known.
  """
  if not 0 < decay <= 1:
    raise ValueError(f'the layer-wise decay is {decay}; expected above 0 and at most 1.')
  head = num_layers + (2 if published else 1)

  def factor(path: Path, shape: PyTree) -> np.ndarray:
    names = _names(path)
    depths: Any
    if 'layers' in names:
      if shape.shape[0] != num_layers:
        raise ValueError(f'{"/".join(names)} has {shape.shape[0]} layers; expected {num_layers}.')
      depths = np.arange(1, num_layers + 1).reshape(-1, *(1,) * (len(shape.shape) - 1))
    elif 'shared_layer' in names:  # used at all depths
      depths = num_layers
    elif names[0] == 'embeddings' or names[1] in _BELOW_LAYERS:
      depths = 0
    elif names[0] == 'head':
      depths = head
    else:
      raise ValueError(
        f'the depth of {"/".join(names)} is not known; expected a parameter of a fine-tuned model.'
      )
    factors: np.ndarray = np.power(decay, head - depths, dtype=np.float64).astype(np.float32)
    return factors

  return jax.tree_util.tree_map_with_path(factor, shapes)


#### Optimizers ####


def _adam_with_decay(settings: OptimizerSettings) -> list[optax.GradientTransformation]:
  """What AdamW and LAMB have in common: clipping, Adam's direction, weight decay."""
  o = settings.config
  adam = scale_by_uncorrected_adam
  if o.bias_correction:
    separate = isinstance(o, OptimizerConfig) and o.update_counts == 'separate'
    adam = scale_by_adam_with_separate_counts if separate else optax.scale_by_adam
  return [clip_gradients(settings), adam(o.b1, o.b2, o.eps), add_weight_decay(o.weight_decay)]


def adamw(settings: OptimizerSettings) -> optax.GradientTransformation:
  """AdamW on gradients clipped by their global norm.

  Weight decay is decoupled and multiplied by the learning rate. The recipe of Clark et al. 2020,
  table 6, has b1 0.9, b2 0.999, eps 1e-6, weight decay 0.01 and no bias correction; with bias
  correction it is Adam as in Kingma and Ba 2015.

  With a learning rate of the generator, its parameters (`is_generator_parameter`) and all others
  are also clipped by their own norms. Everything else is per tensor, so this is equal to an
  optimizer for each tower (He et al. 2021, DeBERTaV3; Dong et al. 2023).
  """
  by_layer = []
  if settings.layer_rates is not None:

    def scale(updates: PyTree, params: PyTree | None) -> PyTree:
      del params
      return jax.tree.map(jnp.multiply, updates, settings.layer_rates)

    by_layer = [optax.stateless(scale)]
  return optax.chain(*_adam_with_decay(settings), *by_layer, scale_by_rates(settings.rates))


def lamb(settings: OptimizerSettings) -> optax.GradientTransformation:
  """LAMB (You et al. 2020, algorithm 2, without bounds on the norms).

  It is AdamW whose update of each tensor of each layer is scaled to the norm of that tensor, before
  the learning rate. Biases and norms have no weight decay and are not scaled.

  NVIDIA's recipe (its scripts/run_pretraining.sh and run_pretraining.py) has b1 0.878, b2 0.974,
  weight decay 0.01, clipping at 1.0, bias correction, and an eps of 1e-6 that is added outside the
  square root, as in the LAMB of TensorFlow Addons.
  """
  return optax.chain(
    *_adam_with_decay(settings), scale_by_layer_trust_ratio(), scale_by_rates(settings.rates)
  )


ADAMW = OptimizerSpec(adamw, has_adam_moments=True)
LAMB = OptimizerSpec(lamb, has_adam_moments=True)

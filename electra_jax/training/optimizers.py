"""Optimizers: AdamW as the original has it, and bias-corrected; LAMB for large batches; layer-wise rates, rates by tower."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from electra_jax.training import schedules
from electra_jax.training.schedules import Schedule


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """Adam's direction without bias correction: m / (sqrt(v) + eps), as in the original and in BERT's optimizer."""

  def init(params):
    def zeros():
      return jax.tree.map(jnp.zeros_like, params)

    return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros(), nu=zeros())

  def update(gradients, state, params=None):
    del params
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, gradients)
    nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, gradients)
    direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
    return direction, optax.ScaleByAdamState(count=state.count + 1, mu=mu, nu=nu)

  return optax.GradientTransformation(init, update)


def _names(path) -> list[str]:
  return [str(getattr(entry, 'key', entry)) for entry in path]


def is_decayed(path) -> bool:
  """Weight decay goes by name: all but biases and norms, embeddings included, as in the original."""
  names = _names(path)
  return names[-1] != 'bias' and not any(name == 'norm' or name.endswith('_norm') for name in names)


def scale_by_layer_trust_ratio() -> optax.GradientTransformation:
  """Makes the norm of each tensor's update that of the tensor: LAMB's trust ratio, 1 where either norm is 0.

  optax.scale_by_trust_ratio, but for two things. Under `layers` the first axis counts layers, and each of them has a ratio
  of its own. Biases and norms are left alone, as with NVIDIA's --skip_adaptive, and
  so is a difference of embeddings that begins at zero: its norm would keep it there. Norms are sums over whole axes, so tensors may
  be sharded in any way: XLA adds up the parts, and no tensor is gathered.
  """

  def scale(path, update, param):
    if not is_decayed(path) or _names(path)[0] == 'embeddings_difference':
      return update
    axes = tuple(range(1 if 'layers' in _names(path) else 0, param.ndim))

    def norm(x):
      return jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True))

    of_param, of_update = norm(param), norm(update)
    moves = (of_param > 0) & (of_update > 0)
    return update * jnp.where(moves, of_param / jnp.where(moves, of_update, 1), 1)

  return optax.stateless(
    lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates, params)
  )


def is_generators(name: str) -> bool:
  """Whether a top level of the pretraining parameters is the generator's alone. What it shares is the discriminator's."""
  return name.startswith('generator')


def _by_tower(tree: dict) -> list[dict]:
  return [
    {name: x for name, x in tree.items() if is_generators(name) == generators}
    for generators in (True, False)
  ]


def clip_by_tower_norms(clip: float) -> optax.GradientTransformation:
  """Clips the generator's gradients and the others', each by their own global norm."""

  def clipped(updates, params):
    del params
    generators, others = (
      optax.clip_by_global_norm(clip).update(part, optax.EmptyState())[0]
      for part in _by_tower(updates)
    )
    return generators | others

  return optax.stateless(clipped)


def scale_by_rates(rates: dict[str, Schedule]) -> optax.GradientTransformationExtraArgs:
  """Multiplies updates by minus the learning rate; its state is that of optax.scale_by_learning_rate.

  Args:
    rates: `learning_rate`, and where the generator has its own `generator_learning_rate`. Their
      constants are the `inputs` of an update where it has them, see training/schedules.py.
  """

  def update(updates, state, params=None, *, inputs=None, **extra):
    del params, extra
    now = schedules.values(rates, state.count, inputs)
    if 'generator_learning_rate' in rates:
      scaled = {
        name: _scaled(
          tree, -now['generator_learning_rate' if is_generators(name) else 'learning_rate']
        )
        for name, tree in updates.items()
      }
    else:
      # A product with -1, as in optax: XLA moves it past factors that are constants, as layer-wise
      # rates are, and with a negation it would round in another order.
      scaled = _scaled(updates, -1 * now['learning_rate'])
    return scaled, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32)), update
  )


def _scaled(tree, factor):
  return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, tree)


def of_what_learns(optimizer, learns) -> optax.GradientTransformationExtraArgs:
  """`optimizer` for those top levels of the parameters alone of which `learns(name)` is true: the others have no moments, and do not move."""

  def part(tree):
    return {name: x for name, x in tree.items() if learns(name)}

  def update(updates, state, params, **extra):
    moves, state = optimizer.update(part(updates), state, part(params), **extra)
    return jax.tree.map(jnp.zeros_like, updates) | moves, state

  optimizer = optax.with_extra_args_support(optimizer)
  return optax.GradientTransformationExtraArgs(lambda params: optimizer.init(part(params)), update)


def _scale_by_rate(schedule, generator_schedule):
  own = {'generator_learning_rate': generator_schedule} if generator_schedule else {}
  return scale_by_rates({'learning_rate': schedule} | own)


def _adam_with_decay(
  b1, b2, eps, weight_decay, clip, bias_correction, by_tower
) -> list[optax.GradientTransformation]:
  """What AdamW and LAMB share: clipping, Adam's direction, decay added to it."""

  def mask(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: is_decayed(path), params)

  clipping = clip_by_tower_norms if by_tower else optax.clip_by_global_norm
  return [
    clipping(clip) if clip else optax.identity(),
    optax.scale_by_adam(b1, b2, eps) if bias_correction else scale_by_uncorrected_adam(b1, b2, eps),
    optax.add_decayed_weights(weight_decay, mask=mask),
  ]


def layerwise_rates(shapes, num_layers: int, decay: float, published: bool):
  """Factors of the learning rate for fine-tuning: the nearer to the input, the lower (Clark et al. 2020, table 7).

  A factor is decay^(depth of the head - depth). Depths are 0 of the embeddings and their projection, i + 1 of layer i (counted from
  0), and num_layers + 1 of the head: decay^(num_layers + 1), ..., decay^2, decay, 1. As published (the original's
  model/optimization.py) the head lies one deeper, at num_layers + 2, which no layer is next to: every factor but the head's is
  smaller by one more `decay`, and the last layer learns at decay^2.

  Args:
    shapes: parameters of model.heads.FineTuned, or their shapes: `embeddings`, `discriminator`, `head`.
    num_layers: of the encoder.
    decay: 0.8 (small, base) or 0.9 (large) in table 7; 1 for the same rate everywhere.
    published: see above.

  Returns: a tree of the same form, float32: scalars, and [num_layers, 1, ...] for tensors under `layers`, whose first axis counts layers.

  Raises ValueError for a decay that is not in (0, 1], and for parameters whose depth is not known.
  """
  if not 0 < decay <= 1:
    raise ValueError(f'the layer-wise decay is {decay}; it must be more than 0 and at most 1.')
  head = num_layers + (2 if published else 1)

  def factor(path, shape):
    names = _names(path)
    if 'layers' in names:
      if shape.shape[0] != num_layers:
        raise ValueError(f'{"/".join(names)} has {shape.shape[0]} layers, not {num_layers}')
      depths = np.arange(1, num_layers + 1).reshape(-1, *(1,) * (len(shape.shape) - 1))
    elif names[0] == 'embeddings' or 'embeddings_project' in names:
      depths = 0
    elif names[0] == 'head':
      depths = head
    else:
      raise ValueError(f'no depth is known of {"/".join(names)}')
    return np.power(decay, head - depths, dtype=np.float64).astype(np.float32)

  return jax.tree_util.tree_map_with_path(factor, shapes)


def adamw(
  schedule,
  *,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  clip: float,
  bias_correction: bool,
  layer_rates=None,
  generator_schedule=None,
) -> optax.GradientTransformation:
  """AdamW on gradients clipped by their global norm; decay is decoupled and multiplied by the learning rate.

  Args:
    schedule: step -> learning rate.
    b1, b2, eps, weight_decay: 0.9, 0.999, 1e-6 and 0.01 in Clark et al. 2020, table 6.
    clip: largest global norm of the gradients; 0 for no clipping.
    bias_correction: False is the published recipe, True is Adam as in Kingma and Ba 2015.
    layer_rates: of layerwise_rates; they multiply the learning rate, so the decay with it. None for the same rate everywhere.
    generator_schedule: step -> learning rate of what is the generator's alone (`is_generators`), which is then clipped by its own global
      norm, and the rest by theirs. All else is per tensor, so this is an optimizer for each of the two (He et al. 2021, DeBERTaV3; Dong et
      al. 2023). None for one optimizer.
  """

  def scale(updates, params):
    return jax.tree.map(jnp.multiply, updates, layer_rates)

  by_layer = [] if layer_rates is None else [optax.stateless(scale)]
  return optax.chain(
    *_adam_with_decay(
      b1, b2, eps, weight_decay, clip, bias_correction, generator_schedule is not None
    ),
    *by_layer,
    _scale_by_rate(schedule, generator_schedule),
  )


def lamb(
  schedule,
  *,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  clip: float,
  bias_correction: bool,
  generator_schedule=None,
) -> optax.GradientTransformation:
  """LAMB (You et al. 2020, algorithm 2, without bounds on the norms): AdamW whose update of each layer's each tensor is scaled to
  the norm of that tensor, before the learning rate. Biases and norms are neither decayed nor scaled.

  Args:
    schedule: step -> learning rate.
    b1, b2, weight_decay: 0.878, 0.974 and 0.01 in NVIDIA's recipe (its scripts/run_pretraining.sh and run_pretraining.py).
    eps: added outside the square root; 1e-6 there, and in the LAMB of TensorFlow Addons, which it uses.
    clip: largest global norm of the gradients, 1.0 there; 0 for no clipping.
    bias_correction: True there and in the paper; False leaves Adam's moments as they are.
    generator_schedule: as of adamw.
  """
  return optax.chain(
    *_adam_with_decay(
      b1, b2, eps, weight_decay, clip, bias_correction, generator_schedule is not None
    ),
    scale_by_layer_trust_ratio(),
    _scale_by_rate(schedule, generator_schedule),
  )

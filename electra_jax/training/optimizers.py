"""Schedules and optimizers: AdamW as the original has it, and bias-corrected; LAMB for large batches; layer-wise rates, rates by tower."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def decay_with_warmup(
  rate: float, warmup_steps: int, steps: int, *, power: float = 1.0, after_warmup: bool = False
):
  """Polynomial decay to 0 at `steps`, times a linear warm-up; the first step's rate is 0 unless there is no warm-up.

  step -> rate x (1 - t / T)^power x min(1, step / warmup_steps), and 0 past the end. (t, T) is (step, steps), as in the original
  (power 1), or, with `after_warmup`, (max(0, step - warmup_steps), steps - warmup_steps), as in NVIDIA's LAMB recipe (power 0.5;
  DeepLearningExamples, TensorFlow2/LanguageModeling/ELECTRA/optimization.py): the peak is then the whole rate.

  Args:
    rate: the learning rate that is multiplied.
    warmup_steps: less than `steps`; 0 for none.
    steps: updates until the rate is 0.
    power: of the decay; 1 is linear, less stays high for longer.
    after_warmup: whether the decay waits for the end of the warm-up.
  """
  start = warmup_steps if after_warmup else 0

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum(1.0, step / warmup_steps) if warmup_steps else 1.0
    decayed = jnp.maximum(0.0, step - start) if start else step
    decay = jnp.maximum(0.0, 1.0 - decayed / (steps - start))
    return rate * (decay if power == 1 else decay**power) * warmup

  return schedule


def linear_decay_with_warmup(rate: float, warmup_steps: int, steps: int):
  """The original's schedule: linear decay to 0 over all steps, times a linear warm-up."""
  return decay_with_warmup(rate, warmup_steps, steps)


def value_over_steps(form, steps: int):
  """A setting that changes over a run: step -> float32, from config.objective.schedules.

  With share = step / steps, kept in [0, 1]:
  ('linear', a, b): a + (b - a) share.
  ('exponential', a, b, decay): b + (a - b) exp(-share / decay). With a > b it falls to b and stays: a falling temperature makes the
    replacements of a generator that does not learn harder and harder to find (Dong et al. 2024, Fast-ELECTRA).
  ('points', (step, value), ...): linear between the points, level before the first and after the last.
  """
  kind, *numbers = form

  def value(step):
    step = jnp.asarray(step, jnp.float32)
    if kind == 'points':
      places, values = zip(*numbers, strict=True)
      return jnp.interp(step, jnp.asarray(places, jnp.float32), jnp.asarray(values, jnp.float32))
    start, end, *decay = numbers
    share = jnp.clip(step / steps, 0.0, 1.0)
    return end + (start - end) * (
      jnp.exp(-share / decay[0]) if kind == 'exponential' else 1.0 - share
    )

  return value


def largest_over_steps(form) -> float:
  """An upper bound on the values of `value_over_steps`."""
  kind, *numbers = form
  return max(value for _, value in numbers) if kind == 'points' else max(numbers[:2])


def piecewise(schedules, boundaries):
  """Schedules after each other: the first until step `boundaries[0]`, where the second begins at its own step 0, and so on.

  Raises ValueError unless there is one boundary between each two schedules, ascending.
  """
  boundaries = list(boundaries)
  if len(boundaries) != len(schedules) - 1 or boundaries != sorted(
    boundaries
  ):  # optax drops schedules without a word
    raise ValueError(
      f'{len(schedules)} schedules take {len(schedules) - 1} ascending boundaries, not {boundaries}'
    )
  return optax.join_schedules(schedules, boundaries)


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


def _times_minus(rate, tree):
  return jax.tree.map(lambda x: -jnp.asarray(rate, x.dtype) * x, tree)


def scale_by_tower_rates(generator_schedule, schedule) -> optax.GradientTransformation:
  """optax.scale_by_learning_rate with a schedule for the generator and one for the rest; its state is the same."""

  def update(updates, state, params=None):
    del params
    rates = {True: generator_schedule(state.count), False: schedule(state.count)}
    scaled = {
      name: _times_minus(rates[is_generators(name)], tree) for name, tree in updates.items()
    }
    return scaled, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

  return optax.GradientTransformation(
    lambda params: optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32)), update
  )


def of_what_learns(optimizer, learns) -> optax.GradientTransformation:
  """`optimizer` for those top levels of the parameters alone of which `learns(name)` is true: the others have no moments, and do not move."""

  def part(tree):
    return {name: x for name, x in tree.items() if learns(name)}

  def update(updates, state, params):
    moves, state = optimizer.update(part(updates), state, part(params))
    return jax.tree.map(jnp.zeros_like, updates) | moves, state

  return optax.GradientTransformation(lambda params: optimizer.init(part(params)), update)


def _scale_by_rate(schedule, generator_schedule):
  return (
    scale_by_tower_rates(generator_schedule, schedule)
    if generator_schedule
    else optax.scale_by_learning_rate(schedule)
  )


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

"""Schedules and optimizers: AdamW as the original has it, and bias-corrected."""

import jax
import jax.numpy as jnp
import optax


def linear_decay_with_warmup(rate: float, warmup_steps: int, steps: int):
  """The original's schedule: linear decay to 0 over all steps, times a linear warm-up.

  step -> rate x (1 - step / steps) x min(1, step / warmup_steps); the first step's rate is 0 unless there is no warm-up.
  """
  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum(1.0, step / warmup_steps) if warmup_steps else 1.0
    return rate * jnp.maximum(0.0, 1.0 - step / steps) * warmup
  return schedule


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """Adam's direction without bias correction: m / (sqrt(v) + eps), as in the original and in BERT's optimizer."""
  def init(params):
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)
    return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros(), nu=zeros())

  def update(gradients, state, params=None):
    del params
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, gradients)
    nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, gradients)
    direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
    return direction, optax.ScaleByAdamState(count=state.count + 1, mu=mu, nu=nu)

  return optax.GradientTransformation(init, update)


def is_decayed(path) -> bool:
  """Weight decay goes by name: all but biases and norms, embeddings included, as in the original."""
  names = [str(getattr(entry, 'key', entry)) for entry in path]
  return names[-1] != 'bias' and not any(name == 'norm' or name.endswith('_norm') for name in names)


def adamw(schedule, *, b1: float, b2: float, eps: float, weight_decay: float, clip: float,
          bias_correction: bool) -> optax.GradientTransformation:
  """AdamW on gradients clipped by their global norm; decay is decoupled and multiplied by the learning rate.

  Args:
    schedule: step -> learning rate.
    b1, b2, eps, weight_decay: 0.9, 0.999, 1e-6 and 0.01 in Clark et al. 2020, table 6.
    clip: largest global norm of the gradients; 0 for no clipping.
    bias_correction: False is the published recipe, True is Adam as in Kingma and Ba 2015.
  """
  direction = optax.scale_by_adam(b1, b2, eps) if bias_correction else scale_by_uncorrected_adam(b1, b2, eps)
  decay = optax.add_decayed_weights(
      weight_decay, mask=lambda params: jax.tree_util.tree_map_with_path(lambda path, _: is_decayed(path), params))
  return optax.chain(optax.clip_by_global_norm(clip) if clip else optax.identity(),
                     direction, decay, optax.scale_by_learning_rate(schedule))

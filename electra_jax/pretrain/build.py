"""From a config to the model, the objective's settings and the optimizer."""

import jax
import jax.numpy as jnp

from electra_jax.config import UserError
from electra_jax.model.config import EncoderConfig, generator_config
from electra_jax.model.electra import Electra
from electra_jax.pretrain import masking
from electra_jax.pretrain.objectives import electra as objective
from electra_jax.training import optimizers

# On a CPU whole loops are unrolled where that is bearable to compile: XLA runs the body of a loop less well.
UNROLLED_LAYERS_ON_CPU = 6


def compute_dtype(name: str, platform: str):
  """'auto' is bfloat16 on TPU and GPU and float32 on CPU."""
  return jnp.dtype(('float32' if platform == 'cpu' else 'bfloat16') if name == 'auto' else name)


def build_model(config, vocab_size: int, platform: str | None = None) -> Electra:
  """The two towers of a config.

  Args:
    config: the run's config.
    vocab_size: of the tokenizer.
    platform: 'cpu', 'gpu' or 'tpu', for what the config leaves to it; None for that of JAX's devices.

  Raises UserError for sizes that contradict each other.
  """
  platform = platform or jax.default_backend()
  fields = config.model.to_dict()
  if not fields['scan_unroll']:
    layers = fields['num_layers']
    fields['scan_unroll'] = layers if platform == 'cpu' and layers <= UNROLLED_LAYERS_ON_CPU else 1
  try:
    discriminator = EncoderConfig(**fields, vocab_size=vocab_size, dtype=compute_dtype(config.dtype, platform))
    generator = generator_config(discriminator, config.generator.hidden_fraction, config.generator.layers_fraction)
  except ValueError as error:
    raise UserError(f'config.model: {error}') from None
  return Electra(generator, discriminator, sharing=config.sharing)


def build_settings(config, tokenizer) -> objective.Settings:
  """The objective's settings, with the tokenizer's special tokens."""
  return objective.Settings(
      **config.objective.to_dict(), max_predictions=masking.max_predictions(config.objective.mask_rate, config.sequence_length),
      pad_id=tokenizer.pad_id, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id, mask_id=tokenizer.mask_id)


def build_optimizer(config):
  """The optimizer of a config, with its schedule; and the schedule alone."""
  o = config.optimizer
  schedule = optimizers.linear_decay_with_warmup(o.learning_rate, o.warmup_steps, config.steps)
  optimizer = optimizers.adamw(schedule, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay, clip=o.clip,
                               bias_correction=o.bias_correction)
  return optimizer, schedule

"""The EncoderConfigs of a config, for pretraining and fine-tuning.

What a config leaves to the machine is decided here.
"""

import dataclasses

import jax
import jax.numpy as jnp
from etils import epath

from electra_jax.config import ModelConfig, PretrainingConfig, from_plain
from electra_jax.config.families import FAMILIES
from electra_jax.errors import UserError
from electra_jax.model.config import EncoderConfig, generator_config
from electra_jax.model.dropout import DropoutSettings
from electra_jax.model.kernel_choice import Request, choose_attention
from electra_jax.training import plugins, versions
from electra_jax.training.product_types import compute_dtype
from electra_jax.training.run_folder import read_json

# On a CPU the loop over the layers is unrolled where compilation stays short: XLA optimizes the
# body of a loop less well.
UNROLLED_LAYERS_ON_CPU = 6


def attention_kernel(model: ModelConfig, length: int, dtype: str, platform: str) -> tuple[str, str]:
  """The attention kernel of a config, and why it was chosen.

  Args:
    model: the group config.model.
    length: tokens of a row.
    dtype: config.dtype.
    platform: of the devices: 'cpu', 'gpu' or 'tpu'.

  Raises:
    UserError: the kernel that the config names does not work there.
  """
  if FAMILIES[model.family].relative:
    if model.attention not in ('auto', 'xla'):
      raise UserError(
        f'config.model.attention is {model.attention!r}, which does not support the relative '
        f'positions of the family {model.family!r}; set config.model.attention to auto.'
      )
    return 'xla', 'the only one with relative positions'
  here = jax.devices()[0] if platform == jax.default_backend() else None
  try:
    request = Request(
      platform=platform,
      length=length,
      head_size=model.hidden_size // model.num_heads,
      attention_dropout=model.attention_dropout,
      dtype=compute_dtype(dtype, platform),
      dropout=DropoutSettings(model.dropout_generator, model.dropout_scale),
      compute_capability=getattr(here, 'compute_capability', None),
    )
    return choose_attention(model.attention, request)
  except ValueError as error:
    raise UserError(f'config.model.attention: {error}') from None


def encoder_config(
  model: ModelConfig,
  vocab_size: int,
  length: int,
  dtype: str,
  platform: str | None = None,
  precision: str = 'float32',
) -> EncoderConfig:
  """The encoder of a config.

  Args:
    model: the group config.model, each of whose fields is one of EncoderConfig.
    vocab_size: of the tokenizer.
    length: tokens of a row, for the choice of the attention kernel.
    dtype: config.dtype.
    platform: 'cpu', 'gpu' or 'tpu', for what the config leaves to it; None for JAX's default.
    precision: config.precision.

  Raises:
    UserError: for sizes that contradict each other.
  """
  platform = platform or jax.default_backend()
  fields = dataclasses.asdict(model)
  fields |= _loop_over_layers(model, platform)
  in_bfloat16 = compute_dtype(dtype, platform) == jnp.bfloat16
  if platform == 'cpu' and in_bfloat16 and model.residual == 'auto':
    fields['residual'] = 'float32'  # a loop is slow whose state is bfloat16, see model/products.py
  try:
    EncoderConfig(**fields | {'attention': 'xla'})  # reports sizes before kernels
    fields['attention'], _ = attention_kernel(model, length, dtype, platform)
    return EncoderConfig(
      **fields,
      vocab_size=vocab_size,
      dtype=compute_dtype(dtype, platform),
      precision=precision,
      row_major=platform == 'cpu' and in_bfloat16,
      flat_products=platform != 'tpu',
      for_cpu=platform == 'cpu',
    )
  except ValueError as error:
    raise UserError(f'config.model: {error}') from None


def _loop_over_layers(model: ModelConfig, platform: str) -> dict[str, int | str]:
  """Layers per iteration of the scan, and what the backward pass recomputes.

  The compiler for CPUs removes the barriers that keep what remat recomputes apart from the forward
  pass. There only a loop does, so layers that are recomputed are not unrolled. What a loop keeps
  for the backward pass is written to memory twice, first as zeros, and most of it takes less time
  to compute again. That holds on a TPU in any case (docs/tpu.md, by a model of the time).

  Returns:
    The fields `scan_unroll` and `remat` of EncoderConfig.
  """
  layers, remat = model.num_layers, model.remat
  if platform == 'cpu' and remat in ('dots', 'full'):
    return {'scan_unroll': 1, 'remat': remat}
  unrolled = platform == 'cpu' and layers <= UNROLLED_LAYERS_ON_CPU
  per_iteration = min(model.scan_unroll or (layers if unrolled else 1), layers)
  if remat == 'auto':
    loops = per_iteration < layers and layers % per_iteration == 0
    remat = 'dots' if platform == 'tpu' or (platform == 'cpu' and loops) else 'none'
  return {'scan_unroll': per_iteration, 'remat': remat}


def towers(
  config: PretrainingConfig, one_tower: bool, vocab_size: int, platform: str | None = None
) -> tuple[EncoderConfig, EncoderConfig]:
  """Generator and discriminator of a pretraining config.

  Args:
    config: the run's config.
    one_tower: whether the objective has no generator beside the main tower, which is then both.
    vocab_size: of the tokenizer.
    platform: see encoder_config.

  Raises:
    UserError: for sizes that contradict each other.
  """
  discriminator = encoder_config(
    config.model, vocab_size, config.sequence_length, config.dtype, platform, config.precision
  )
  if one_tower:
    return discriminator, discriminator
  g = config.generator
  try:
    generator = generator_config(
      discriminator,
      g.hidden_fraction,
      g.layers_fraction,
      g.embedding_size or None,
      num_heads=g.num_heads,
      intermediate_size=g.intermediate_size,
    )
    if g.frozen:  # dropout regularizes training
      generator = dataclasses.replace(generator, dropout=0.0, attention_dropout=0.0)
    return generator, discriminator
  except ValueError as error:
    raise UserError(f'config.generator: {error}') from None


def sharing(config: PretrainingConfig, one_tower: bool) -> str:
  """What the towers of a pretraining config share.

  That is config.sharing, except for objectives with one tower and for a generator without
  parameters.
  """
  if one_tower:
    return 'all'
  return 'embeddings' if config.generator.uniform else config.sharing


def run_config(folder: epath.Path) -> PretrainingConfig:
  """The config of the pretraining run in a folder.

  Raises:
    UserError: its config.json is missing, damaged, or not the config of a run.
  """
  versions.read_versions(folder)
  plugins.require_recorded(folder)
  path = folder / 'config.json'
  plain = read_json(path)
  try:
    return from_plain(plain, PretrainingConfig)
  except UserError as error:
    raise UserError(
      f'{path} is not the config of a run ({str(error).rstrip(".")}); restore it.'
    ) from None

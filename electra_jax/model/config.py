"""The sizes of an encoder, and the generator's sizes."""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike

from electra_jax import input_limits
from electra_jax.config import ModelConfig
from electra_jax.config.declarations import fields_of, one_of
from electra_jax.config.families import FAMILIES, Family
from electra_jax.config.groups import PRECISIONS, REMAT
from electra_jax.model.dropout import DropoutSettings
from electra_jax.model.kernel_choice import KERNELS, require_dropout
from electra_jax.model.products import ProductSettings

DIRECTIONS = ('both', 'left', 'right')


@dataclasses.dataclass(frozen=True)
class EncoderConfig(ModelConfig):
  """The sizes of one encoder.

  It has the fields of config.model, with the choices that are left to the machine made.

  `electra` is the published encoder (Clark et al. 2020, table 6): learned positions,
  post-LayerNorm, biases. `modern` is that of ModernBERT (Warner et al. 2024): rotary positions,
  pre-LayerNorm, GeGLU, no biases, and local attention in all layers except each `global_every`-th,
  where a position sees `local_window // 2` positions to each side. The other families are those of
  `transformers` (config/families.py).

  Attributes:
    scan_unroll: layers per iteration of the scan; num_layers unrolls it completely.
    attention: a key of KERNELS in model/kernel_choice.py.
    remat: what the backward pass recomputes, of REMAT in config/groups.py without 'auto'.
    vocab_size: tokens. The embedding table has `padded_vocab_size` rows.
    dtype: of matrix products and activations. Parameters are float32 always.
    precision: arithmetic of products of float32 arrays, of PRECISIONS in config/groups.py.
    row_major: form of products, see ProductSettings.
    flat_products: form of products, see ProductSettings.
    for_cpu: whether what XLA for CPUs would compute slowly is written in another way: the gradients
      of kernels, see `ProductSettings.transposes`, and rotary positions, see `rotary_tables`.
    direction: the positions that a position attends to: 'both' sides, or itself and those to its
      'left' or 'right'.

  Raises:
    ValueError: for a field out of its range, or fields that contradict each other.
  """

  scan_unroll: int = 1
  attention: str = 'xla'
  remat: str = 'none'
  vocab_size: int = 30522
  dtype: DTypeLike = jnp.float32
  precision: str = 'float32'
  row_major: bool = False
  flat_products: bool = True
  for_cpu: bool = False
  direction: str = 'both'

  def __post_init__(self) -> None:
    for name, entry in fields_of(ModelConfig).items():
      declared, value = entry.declaration, getattr(self, name)
      _require(declared.accepts(value), f'{name} is {value!r}; expected {declared.expectation()}.')
      limit = input_limits.ENCODER_LAYERS if name == 'num_layers' else input_limits.ENCODER_SIZE
      if entry.kind is int:
        _require_at_most(name, value, limit)
    _require_at_most('vocab_size', self.vocab_size, input_limits.ENCODER_SIZE)
    for name in ('vocab_size', 'scan_unroll'):
      value = getattr(self, name)
      _require(value >= 1, f'{name} is {value!r}; expected at least 1.')
    for name, choices in (
      ('attention', tuple(KERNELS)),
      ('remat', tuple(x for x in REMAT if x != 'auto')),
      ('direction', DIRECTIONS),
      ('precision', PRECISIONS),
    ):
      value = getattr(self, name)
      _require(value in choices, f'{name} is {value!r}; expected {one_of(choices)}.')
    _require(
      self.hidden_size % self.num_heads == 0,
      f'hidden_size {self.hidden_size} does not divide into {self.num_heads} heads; make it a '
      'multiple of num_heads.',
    )
    _require(
      not self.traits.rotary or self.head_size % 2 == 0,
      f'head_size is {self.head_size}; rotary positions require an even head size: change '
      'hidden_size or num_heads.',
    )
    _require(
      not self.traits.relative or self.max_positions > self.position_buckets // 2 + 1,
      f'max_positions is {self.max_positions}; expected more than half of position_buckets, '
      f'{self.position_buckets // 2 + 1}.',
    )
    require_dropout(self.attention, self.attention_dropout, self.dropout_settings)
    _require(
      KERNELS[self.attention].general or not self.traits.relative,
      f'attention {self.attention!r} does not support the relative positions of the family '
      f'{self.family!r}; set attention to xla.',
    )
    _require(
      KERNELS[self.attention].general or self.direction == 'both',
      f'attention {self.attention!r} does not support direction {self.direction!r}; set attention '
      'to xla.',
    )

  @property
  def traits(self) -> Family:
    """What the family of the encoder is."""
    return FAMILIES[self.family]

  @property
  def head_size(self) -> int:
    """Width of one attention head."""
    return self.hidden_size // self.num_heads

  @property
  def padded_vocab_size(self) -> int:
    """Rows of the embedding table: vocab_size rounded up to a multiple of vocab_multiple."""
    return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

  @property
  def has_position_table(self) -> bool:
    """Whether positions are learned, so that no row is longer than `max_positions`."""
    return self.traits.has_position_table

  @property
  def has_token_types(self) -> bool:
    """Whether token types have embeddings."""
    return self.traits.has_token_types

  @property
  def dropout_settings(self) -> DropoutSettings:
    """How dropout is computed."""
    return DropoutSettings(self.dropout_generator, self.dropout_scale)

  @property
  def products(self) -> ProductSettings:
    """How matrix products are computed."""
    return ProductSettings(self.precision, self.row_major, self.flat_products, self.for_cpu)

  @property
  def residual_dtype(self) -> DTypeLike:
    """Type of what is added up from layer to layer."""
    wide = self.residual == 'float32' or (self.residual == 'auto' and self.traits.pre_norm)
    return jnp.float32 if wide else self.dtype

  @property
  def recomputed_in_loop(self) -> bool:
    """Whether each layer is in the body of a loop of several iterations.

    The backward pass is another loop then. Otherwise both passes are in one piece of program, where
    XLA would replace what remat recomputes by the equal values of the forward pass.
    """
    iterations, rest = divmod(self.num_layers, min(self.scan_unroll, self.num_layers))
    return iterations > 1 and not rest

  @property
  def use_bias(self) -> bool:
    """Whether dense layers and LayerNorms have biases."""
    return self.traits.use_bias

  @property
  def gated_feed_forward(self) -> bool:
    """Whether feed-forward layers have a third matrix, the gate."""
    return self.traits.gated_feed_forward


def _require_at_most(name: str, value: int, limit: int) -> None:
  """Refuses sizes of no encoder, before something of that size is computed."""
  most = input_limits.scaled(limit)
  _require(value <= most, f'{name} is {value}; expected at most {most:,}: {input_limits.REMEDY}.')


def _require(condition: bool, message: str) -> None:
  if not condition:
    raise ValueError(message)


def generator_config(
  discriminator: EncoderConfig,
  hidden_fraction: float,
  layers_fraction: float,
  embedding_size: int | None = None,
  num_heads: int = 0,
  intermediate_size: int = 0,
) -> EncoderConfig:
  """The generator's config as a fraction of the discriminator's.

  As in the original program (and Clark et al. 2020, section 3.2) width, feed-forward width and
  number of heads shrink by one factor, and the number of layers by another, which is 1 by default.
  The size of a head is kept, and at least one head remains.

  Args:
    discriminator: the config of the larger tower.
    hidden_fraction: of the hidden size; 1/4 (small, large) or 1/3 (base) in table 6.
    layers_fraction: of the number of layers.
    embedding_size: width of the embeddings that the generator reads; None for the discriminator's.
    num_heads: number of heads where it is not in proportion, as in some published generators;
      0 for in proportion.
    intermediate_size: feed-forward width, likewise.
  """
  hidden = int(round(discriminator.hidden_size * hidden_fraction))
  heads = num_heads or max(1, hidden // discriminator.head_size)
  # In this order: another one may round to another width.
  intermediate = int(round(discriminator.intermediate_size * hidden / discriminator.hidden_size))
  return dataclasses.replace(
    discriminator,
    hidden_size=hidden,
    num_heads=heads,
    intermediate_size=intermediate_size or intermediate,
    num_layers=max(1, int(round(discriminator.num_layers * layers_fraction))),
    embedding_size=embedding_size or discriminator.embedding_size,
  )

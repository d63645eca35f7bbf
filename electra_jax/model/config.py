"""EncoderConfig: one frozen dataclass for both families, and how a generator's is derived from a discriminator's."""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike

FAMILIES = ('electra', 'modern')
REMAT = ('none', 'dots', 'full')
KERNELS = ('xla', 'splash', 'cudnn')
DIRECTIONS = ('both', 'left', 'right')


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """The shape of one encoder.

  `electra` is the published encoder (Clark et al. 2020, table 6): learned positions, post-LayerNorm, biases.
  `modern` is ModernBERT's (Warner et al. 2024): rotary positions, pre-norm, GeGLU, no biases, local attention in
  all layers but each `global_every`-th.

  Raises ValueError, in one sentence, where the fields contradict each other.
  """

  family: str = 'electra'
  vocab_size: int = 30522
  hidden_size: int = 256
  embedding_size: int = 128
  num_layers: int = 12
  num_heads: int = 4
  intermediate_size: int = 1024
  max_positions: int = 512  # `electra`: rows of the position table, the longest sequence
  type_vocab_size: int = 2  # `electra`: segment A and segment B
  layer_norm_eps: float = 1e-12  # 1e-12 in the original, 1e-5 in ModernBERT
  initializer_range: float = 0.02
  dropout: float = 0.1  # embeddings, attention output, feed-forward output
  attention_dropout: float = 0.1  # attention probabilities
  global_every: int = 3  # `modern`: layer i attends globally where i % global_every == 0; 1: all do
  local_window: int = (
    128  # `modern`: a local layer's position sees local_window // 2 to either side
  )
  global_rope_theta: float = 160_000.0
  local_rope_theta: float = 10_000.0
  vocab_multiple: int = (
    128  # rows of the embedding table are padded to a multiple of this (TPU lanes)
  )
  dtype: DTypeLike = (
    jnp.float32
  )  # of matrix products and activations; parameters are float32 always
  remat: str = 'none'  # what the backward pass computes again: none, dots (all but products), full
  scan_unroll: int = 1  # layers per iteration of the scan; num_layers unrolls it whole
  dropout_generator: str = 'hash'  # 'hash' or 'threefry', see model/dropout.py
  attention: str = 'xla'  # xla (anywhere), splash (TPU) or cudnn (GPU), see model/attention.py
  direction: str = 'both'  # which side of itself a position sees: both, left or right

  def __post_init__(self) -> None:
    def need(condition: bool, message: str) -> None:
      if not condition:
        raise ValueError(message)

    need(self.family in FAMILIES, f'family is {self.family!r}; it is one of {", ".join(FAMILIES)}.')
    need(self.remat in REMAT, f'remat is {self.remat!r}; it is one of {", ".join(REMAT)}.')
    for name in (
      'vocab_size',
      'hidden_size',
      'embedding_size',
      'num_layers',
      'num_heads',
      'intermediate_size',
      'max_positions',
      'type_vocab_size',
      'global_every',
      'local_window',
      'vocab_multiple',
      'scan_unroll',
    ):
      need(getattr(self, name) >= 1, f'{name} is {getattr(self, name)}; it must be at least 1.')
    need(
      self.hidden_size % self.num_heads == 0,
      f'hidden_size {self.hidden_size} does not divide into {self.num_heads} heads; make it a multiple of num_heads.',
    )
    need(
      self.family == 'electra' or self.head_size % 2 == 0,
      f'rotary positions need an even head size, not {self.head_size}; change hidden_size or num_heads.',
    )
    for name in ('dropout', 'attention_dropout'):
      need(
        0 <= getattr(self, name) < 1,
        f'{name} is {getattr(self, name)}; it must be at least 0 and less than 1.',
      )
    need(
      self.dropout_generator in ('hash', 'threefry'),
      f'dropout_generator is {self.dropout_generator!r}; it is hash or threefry.',
    )
    need(
      self.attention in KERNELS,
      f'attention is {self.attention!r}; it is one of {", ".join(KERNELS)}.',
    )
    need(
      self.attention == 'xla' or self.attention_dropout == 0,
      f'attention {self.attention!r} has no dropout of its probabilities; set attention_dropout to 0 or attention to xla.',
    )
    need(
      self.direction in DIRECTIONS,
      f'direction is {self.direction!r}; it is one of {", ".join(DIRECTIONS)}.',
    )
    need(
      self.attention == 'xla' or self.direction == 'both',
      f'attention {self.attention!r} sees both sides; set attention to xla for direction {self.direction!r}.',
    )

  @property
  def head_size(self) -> int:
    """Width of one attention head."""
    return self.hidden_size // self.num_heads

  @property
  def padded_vocab_size(self) -> int:
    """Rows of the embedding table: vocab_size rounded up to a multiple of vocab_multiple."""
    return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

  @property
  def use_bias(self) -> bool:
    """Whether dense layers and norms have a bias."""
    return self.family == 'electra'


def generator_config(
  discriminator: EncoderConfig,
  hidden_fraction: float,
  layers_fraction: float,
  embedding_size: int | None = None,
  num_heads: int = 0,
  intermediate_size: int = 0,
) -> EncoderConfig:
  """The generator's config as a fraction of the discriminator's.

  As in the original (and Clark et al. 2020, section 3.2) width, feed-forward and number of heads shrink by one factor,
  depth by another (1 by default); the size of a head is kept, at least one head stays.

  Args:
    discriminator: the larger tower.
    hidden_fraction: of the hidden size, 1/4 (small, large) or 1/3 (base) in table 6.
    layers_fraction: of the number of layers.
    embedding_size: width of the embeddings that the generator reads; None for the discriminator's (they are shared).
    num_heads: where it is not in proportion, as in some published generators; 0 where it is.
    intermediate_size: likewise.
  """
  hidden = int(round(discriminator.hidden_size * hidden_fraction))
  heads = num_heads or max(1, hidden // discriminator.head_size)
  return dataclasses.replace(
    discriminator,
    hidden_size=hidden,
    num_heads=heads,
    intermediate_size=intermediate_size
    or int(round(discriminator.intermediate_size * hidden / discriminator.hidden_size)),
    num_layers=max(1, int(round(discriminator.num_layers * layers_fraction))),
    embedding_size=embedding_size or discriminator.embedding_size,
  )

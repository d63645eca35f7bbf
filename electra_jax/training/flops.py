"""Floating point operations of a training step, counted from shapes.

All counts are of matrix products, in which a multiplication and an addition are two operations.
"""

from collections.abc import Sequence
from typing import NamedTuple

from electra_jax.model.config import EncoderConfig

CONVENTIONS = ('model', 'paper')


def layer_flops(config: EncoderConfig, length: int) -> int:
  """Forward pass of one encoder layer on one row of `length` tokens.

  Attention counts every pair of positions in the row, also where a mask or a local window hides one
  from the other. Relative positions add two products with the rows of all distances.
  """
  c = config
  matrices = 3 if c.gated_feed_forward else 2
  feed_forward = matrices * c.hidden_size * c.intermediate_size
  pairs = 2 * length + (2 * (2 * length - 1) if c.traits.relative else 0)
  return 2 * length * (4 * c.hidden_size**2 + feed_forward + pairs * c.hidden_size)


def encoder_flops(config: EncoderConfig, length: int) -> int:
  """Forward pass of the embeddings' projection and of all layers on one row."""
  c = config
  projection = (
    2 * length * c.embedding_size * c.hidden_size if c.embedding_size != c.hidden_size else 0
  )
  return projection + c.num_layers * layer_flops(c, length)


def distances_flops(config: EncoderConfig, length: int) -> int:
  """Forward pass of what does not depend on the rows: the projections of all distances."""
  if not config.traits.relative:
    return 0
  return config.num_layers * 2 * 2 * (2 * length - 1) * config.hidden_size**2


def generator_head_flops(config: EncoderConfig, predictions: int) -> int:
  """From hidden states to logits over the vocabulary, at `predictions` positions of a row."""
  return 2 * predictions * config.embedding_size * (config.hidden_size + config.vocab_size)


def cloze_head_flops(config: EncoderConfig, predictions: int) -> int:
  """The same from the hidden states of two towers, one for each side."""
  return 2 * predictions * config.embedding_size * (2 * config.hidden_size + config.vocab_size)


def discriminator_head_flops(config: EncoderConfig, length: int) -> int:
  """From hidden states to a verdict on each of `length` tokens of a row."""
  hidden_layer = 0 if config.traits.detection_head == 'linear' else config.hidden_size
  return 2 * length * config.hidden_size * (hidden_layer + 1)


def _lookup_flops(config: EncoderConfig, length: int) -> int:
  """Embedding lookups as products with one-hot rows: word, position and type."""
  return 2 * length * config.embedding_size * (config.vocab_size + length + config.type_vocab_size)


class Part(NamedTuple):
  """What a step computes of one tower.

  Attributes:
    config: of the tower.
    heads: forward FLOPs of its heads, per row.
    trained: False for a forward pass only.
    drawn: forward FLOPs of heads without a gradient, per row.
  """

  config: EncoderConfig
  heads: int
  trained: bool = True
  drawn: int = 0


def step_flops(parts: Sequence[Part], batch: int, length: int, convention: str = 'model') -> int:
  """Floating point operations of one training step.

  `model`: the matrix products that the model needs, forward once and backward twice that (each
  product has two gradients). What rematerialization recomputes does not count, so this over the
  time is model FLOP/s (Chowdhery et al. 2022, appendix B). Summed over a run it is what others
  write as 6 N per token, attention and heads included.
  `paper`: comparable to the training FLOPs of Clark et al. 2020, table 1, which count the backward
  pass like the forward pass and embedding lookups as dense products. Elementwise operations, about
  1% of the paper's count, are left out.

  Args:
    parts: the towers, see Objective.generator_flops; with all weights shared, the same one twice.
    batch: rows of the global batch.
    length: tokens of a row.
    convention: 'model' or 'paper'.

  Raises:
    ValueError: for another convention.
  """
  if convention not in CONVENTIONS:
    raise ValueError(
      f'the convention of FLOPs is {convention!r}; expected one of {", ".join(CONVENTIONS)}.'
    )

  def forward(part: Part) -> int:
    return encoder_flops(part.config, length) + part.heads

  if convention == 'model':
    once = sum((3 if part.trained else 1) * distances_flops(part.config, length) for part in parts)
    rows = sum((3 if part.trained else 1) * forward(part) + part.drawn for part in parts)
    return once + batch * rows
  return batch * sum(
    (2 if part.trained else 1) * (forward(part) + _lookup_flops(part.config, length)) + part.drawn
    for part in parts
  )

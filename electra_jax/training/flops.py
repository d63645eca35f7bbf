"""Floating point operations of a training step, counted from the shapes."""

from typing import NamedTuple

from electra_jax.model.config import EncoderConfig

CONVENTIONS = ('model', 'paper')


def layer_flops(config: EncoderConfig, length: int) -> int:
  """Forward matrix products of one encoder layer, one row of `length` tokens; a multiplication and an addition are two.

  Attention counts every pair of positions in the row, also where a mask or a local window hides one from the other.
  """
  c = config
  matrices = 3 if c.gated_feed_forward else 2
  feed_forward = matrices * c.hidden_size * c.intermediate_size
  return 2 * length * (4 * c.hidden_size**2 + feed_forward + 2 * length * c.hidden_size)


def encoder_flops(config: EncoderConfig, length: int) -> int:
  """Forward matrix products of the projection of the embeddings and all layers, one row of `length` tokens."""
  c = config
  projection = (
    2 * length * c.embedding_size * c.hidden_size if c.embedding_size != c.hidden_size else 0
  )
  return projection + c.num_layers * layer_flops(c, length)


def generator_head_flops(config: EncoderConfig, predictions: int) -> int:
  """Forward matrix products from hidden states to logits over the vocabulary, at `predictions` positions of a row."""
  return 2 * predictions * config.embedding_size * (config.hidden_size + config.vocab_size)


def cloze_head_flops(config: EncoderConfig, predictions: int) -> int:
  """The same where the hidden states are those of two towers, one a side."""
  return 2 * predictions * config.embedding_size * (2 * config.hidden_size + config.vocab_size)


def discriminator_head_flops(config: EncoderConfig, length: int) -> int:
  """Forward matrix products from hidden states to a verdict on each of `length` tokens of a row."""
  return 2 * length * config.hidden_size * (config.hidden_size + 1)


def _lookup_flops(config: EncoderConfig, length: int) -> int:
  """Embedding lookups as products with one-hot rows: word, position and type."""
  return 2 * length * config.embedding_size * (config.vocab_size + length + config.type_vocab_size)


class Part(NamedTuple):
  """What a step computes of one tower."""

  config: EncoderConfig
  heads: int  # forward FLOPs of its heads, a row
  learns: bool = True  # False: forward only
  drawn: int = 0  # forward FLOPs of heads of which no gradient is taken, a row


def step_flops(parts: list[Part], batch: int, length: int, convention: str = 'model') -> int:
  """Floating point operations of one training step.

  `model`: the matrix products that the model needs, forward once and backward twice that (each product has two
  gradients). What rematerialisation computes again does not count, so this over the time is model FLOP/s (Chowdhery et
  al. 2022, appendix B). Summed up over a run it is what is elsewhere written as 6 N a token, attention and heads included.
  `paper`: comparable to the training FLOPs of Clark et al. 2020, table 1, whose count takes the backward pass to cost
  as much as the forward pass and embedding lookups to be dense products; elementwise operations, about 1% of it, are
  left out.

  Args:
    parts: the towers, of objectives/shared.parts; with all weights shared, the same one twice.
    batch: rows in the global batch.
    length: tokens in a row.
    convention: 'model' or 'paper'.

  Raises ValueError for another convention.
  """
  if convention not in CONVENTIONS:
    raise ValueError(
      f'The convention of FLOPs is {convention!r}; it is one of {", ".join(CONVENTIONS)}.'
    )

  def forward(part):
    return encoder_flops(part.config, length) + part.heads

  if convention == 'model':
    return batch * sum((3 if part.learns else 1) * forward(part) + part.drawn for part in parts)
  return batch * sum(
    (2 if part.learns else 1) * (forward(part) + _lookup_flops(part.config, length)) + part.drawn
    for part in parts
  )

"""The pretraining model: generator and discriminator, their heads, and what they share."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from electra_jax import registry
from electra_jax.model.config import EncoderConfig
from electra_jax.model.dropout import fold_in
from electra_jax.model.encoder import (
  Embeddings,
  Encoder,
  Inputs,
  activation,
  dense,
  layer_norm,
  partitioned,
)
from electra_jax.model.products import on_several_devices, product
from electra_jax.model.sharing.scheme import Modules, SharingScheme

# Folded into the dropout keys, so that the towers have different masks. 3 is the head of
# fine-tuning, see heads.py.
_GENERATOR = 1
_DISCRIMINATOR = 2
_RIGHT_TO_LEFT = 4


class GeneratorHead(nn.Module):
  """Predicts tokens from hidden states, with the transposed word embeddings as its last layer."""

  config: EncoderConfig
  embedding_size: int

  @nn.compact
  def __call__(self, hidden: jax.Array, word_embeddings: jax.Array) -> jax.Array:
    """Logits over the vocabulary.

    Args:
      hidden: hidden states `[batch, predictions, hidden]`.
      word_embeddings: `[padded vocab, embedding_size]`.

    Returns:
      float32 `[batch, predictions, padded vocab]`. Rows that pad the vocabulary have the lowest
      float32, so that they get no probability and are never sampled.
    """
    c = self.config
    x = activation(c, dense(c, self.embedding_size, ('embed_out', 'embed'), 'dense')(hidden))
    x = layer_norm(c, 'norm')(x)
    bias = self.param(
      'bias',
      partitioned(nn.initializers.zeros, ('vocab',)),
      (c.padded_vocab_size,),
      jnp.float32,
    )
    rows = x.reshape(-1, x.shape[-1]) if c.products.flat else x
    logits = _with_bias(product(rows, word_embeddings.T, c.products), bias)
    logits = logits.reshape(*x.shape[:2], -1)
    real = jax.lax.iota(jnp.int32, c.padded_vocab_size) < c.vocab_size
    return jnp.where(real, logits, jnp.finfo(jnp.float32).min)


@jax.custom_vjp
def _with_bias(logits: jax.Array, bias: jax.Array) -> jax.Array:
  """Logits `[..., padded vocab]` plus a bias `[padded vocab]`."""
  return logits + bias


def _with_bias_forward(logits: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
  return logits + bias, None


def _with_bias_backward(saved: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
  del saved
  if on_several_devices():  # the partitioner would gather the gradient of all logits for a product
    return gradient, _sum(gradient)
  return gradient, jax.lax.platform_dependent(gradient, cpu=_sum_by_product, default=_sum)


_with_bias.defvjp(_with_bias_forward, _with_bias_backward)


def _sum(x: jax.Array) -> jax.Array:
  return x.sum(range(x.ndim - 1))


def _sum_by_product(x: jax.Array) -> jax.Array:
  """The sum over rows. XLA's for CPUs takes quadratic time in columns (benchmarks/README.md)."""
  rows = x.reshape(-1, x.shape[-1])
  ones = jnp.ones((1, rows.shape[0]), x.dtype)
  total: jax.Array = jax.lax.dot(ones, rows, precision=jax.lax.Precision.HIGHEST)[0]
  return total


class DiscriminatorHead(nn.Module):
  """Predicts from each hidden state whether the token was replaced."""

  config: EncoderConfig

  @nn.compact
  def __call__(self, hidden: jax.Array, positions: jax.Array | None = None) -> jax.Array:
    """Logits of the hidden states.

    Args:
      hidden: `[batch, length, hidden]`.
      positions: int32 `[batch, length]`, restarting in each document; None for one document per
        row.

    Returns:
      float32 `[batch, length]`.
    """
    c, kind, x = self.config, self.config.traits.detection_head, hidden
    if kind == 'context':
      x = layer_norm(c, 'norm')(x + first_states(x, positions))
    if kind != 'linear':
      x = activation(c, dense(c, c.hidden_size, ('embed', 'embed_out'), 'dense')(x))
    if kind == 'normed':
      x = layer_norm(c, 'norm')(x)
    # The original program leaves this layer to TensorFlow's default initializer.
    init = nn.initializers.glorot_uniform() if c.traits.glorot else None
    axes = ('embed' if kind == 'linear' else 'embed_out', 'one')
    x = dense(c, 1, axes, 'prediction', init=init, use_bias=True, dtype=jnp.float32)(x)
    return x[..., 0]


def first_states(hidden: jax.Array, positions: jax.Array | None) -> jax.Array:
  """For each position the state of the first token of its document, that of [CLS].

  Args:
    hidden: `[batch, length, hidden]`.
    positions: as of DiscriminatorHead.
  """
  if positions is None:
    return hidden[:, :1]
  first = jnp.arange(hidden.shape[1]) - positions
  return jnp.take_along_axis(hidden, first[..., None], axis=1)


class Electra(nn.Module):
  """Both towers and their heads; model/sharing/scheme.py lists the names of the parameters.

  Attributes:
    generator_config: of the generator.
    discriminator_config: of the discriminator, the tower that is kept.
    sharing: name of a scheme of model/sharing.
    heads: the heads that exist. 'generator_head' predicts masked tokens from the generator,
      'discriminator_head' predicts which tokens were replaced, and 'predictor_head' predicts tokens
      from the discriminator's hidden states. Without a 'generator_head' there is no generator, and
      every token is equally likely.
    two_tower: whether two encoders, `generator_ltr` and `generator_rtl`, replace `generator`. One
      reads from left to right and one from right to left, so that a token is predicted from all
      others (Baevski et al. 2019; the noise distribution of Clark et al. 2020b, Electric). Their
      attention kernel is 'xla' whatever the config has.
  """

  generator_config: EncoderConfig
  discriminator_config: EncoderConfig
  sharing: str = 'embeddings'
  heads: tuple[str, ...] = ('generator_head', 'discriminator_head')
  two_tower: bool = False

  @property
  def scheme(self) -> SharingScheme:
    """What the towers share."""
    scheme: SharingScheme = registry.SHARING_SCHEMES.get(self.sharing)
    return scheme

  def setup(self) -> None:
    """Creates the towers and heads."""
    g, d = self.generator_config, self.discriminator_config
    if self.two_tower and self.scheme.one_encoder:
      raise ValueError(
        f'sharing is {self.sharing!r}, one encoder for both towers, and the generator has two '
        'encoders that read in one direction each; expected sharing embeddings or none.'
      )
    embeddings = self.scheme.embeddings(g, d)
    for name, module in embeddings.items():
      setattr(self, name, module)
    self._embedding_names = tuple(embeddings)
    self.discriminator = Encoder(d)
    if 'discriminator_head' in self.heads:
      self.discriminator_head = DiscriminatorHead(d)
    if 'predictor_head' in self.heads:
      self.predictor_head = GeneratorHead(d, d.embedding_size)
    if 'generator_head' not in self.heads:
      return
    if self.two_tower:
      one_sided = dataclasses.replace(g, attention='xla')
      self.generator_ltr = Encoder(dataclasses.replace(one_sided, direction='left'))
      self.generator_rtl = Encoder(dataclasses.replace(one_sided, direction='right'))
    elif not self.scheme.one_encoder:
      self.generator = Encoder(g)
    self.generator_head = GeneratorHead(g, g.embedding_size)

  def __call__(
    self, inputs: Inputs, positions: jax.Array
  ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Uses every parameter, for their initialization."""
    hidden = self.hidden_states(inputs)
    return (
      self.generator_logits(inputs, positions),
      self.verdicts(hidden, inputs.positions) if 'discriminator_head' in self.heads else None,
      self.predictions(hidden) if 'predictor_head' in self.heads else None,
    )

  def _embeddings(self) -> Modules:
    return {name: getattr(self, name) for name in self._embedding_names}

  def _generator_embeddings(self) -> Embeddings:
    return self.scheme.generator_embeddings(self._embeddings())

  #### Generator ####

  def generator_logits(
    self, inputs: Inputs, positions: jax.Array, keys: jax.Array | None = None
  ) -> jax.Array:
    """The generator's logits, only at some positions.

    Args:
      inputs: int32 `[batch, length]` each.
      positions: int32 `[batch, predictions]`.
      keys: of dropout, one threefry key per row; None for no dropout.

    Returns:
      float32 `[batch, predictions, padded vocab]`.
    """
    c = self.generator_config
    if 'generator_head' not in self.heads:
      uniform = jnp.where(
        jnp.arange(c.padded_vocab_size) < c.vocab_size, 0.0, jnp.finfo(jnp.float32).min
      )
      return jnp.broadcast_to(uniform, (*positions.shape, c.padded_vocab_size))
    if self.two_tower:
      return self.cloze_logits(
        jnp.take_along_axis(self.cloze_states(inputs, keys), positions[:, :, None], axis=1)
      )
    keys = fold_in(keys, _GENERATOR)
    embeddings = self._generator_embeddings()
    encoder = self.discriminator if self.scheme.one_encoder else self.generator
    hidden = encoder(embeddings(inputs, fold_in(keys, 0)), inputs, keys)
    at_positions = jnp.take_along_axis(hidden, positions[:, :, None], axis=1)
    return self.generator_head(at_positions, embeddings.word)

  def cloze_states(self, inputs: Inputs, keys: jax.Array | None = None) -> jax.Array:
    """States of the two-tower generator: both sides of each position, without the token itself.

    A side that a position does not have, at the first or last token of a document, is zeros.

    Args:
      inputs: int32 `[batch, length]` each.
      keys: of dropout, one threefry key per row; None for no dropout.

    Returns:
      `[batch, length, 2 x hidden]`.
    """
    keys = fold_in(keys, _GENERATOR)
    embedded = self._generator_embeddings()(inputs, fold_in(keys, 0))
    ltr = self.generator_ltr(embedded, inputs, keys)
    rtl = self.generator_rtl(embedded, inputs, fold_in(keys, _RIGHT_TO_LEFT))
    return neighbors(ltr, rtl, inputs.segment_ids)

  def cloze_logits(self, states: jax.Array) -> jax.Array:
    """Logits of the two-tower generator.

    Args:
      states: of `cloze_states`, `[batch, predictions, 2 x hidden]`.

    Returns:
      float32 `[batch, predictions, padded vocab]`.
    """
    return self.generator_head(states, self._generator_embeddings().word)

  #### Discriminator ####

  def hidden_states(self, inputs: Inputs, keys: jax.Array | None = None) -> jax.Array:
    """The discriminator's hidden states, which fine-tuning starts from.

    Args:
      inputs: int32 `[batch, length]` each.
      keys: of dropout, one threefry key per row; None for no dropout.

    Returns:
      `[batch, length, hidden]`.
    """
    keys = fold_in(keys, _DISCRIMINATOR)
    embedded = self.scheme.embed(self._embeddings(), inputs, fold_in(keys, 0))
    return self.discriminator(embedded, inputs, keys)

  def discriminator_logits(self, inputs: Inputs, keys: jax.Array | None = None) -> jax.Array:
    """Log-odds that each token was replaced, float32 `[batch, length]`; see `hidden_states`."""
    return self.verdicts(self.hidden_states(inputs, keys), inputs.positions)

  def verdicts(self, hidden: jax.Array, positions: jax.Array | None = None) -> jax.Array:
    """Log-odds that each token was replaced.

    Args:
      hidden: of `hidden_states`, `[batch, length, hidden]`.
      positions: of the inputs, int32 `[batch, length]`; None for one document per row.

    Returns:
      float32 `[batch, length]`.
    """
    return self.discriminator_head(hidden, positions)

  def predictor_logits(
    self, inputs: Inputs, positions: jax.Array, keys: jax.Array | None = None
  ) -> jax.Array:
    """The discriminator tower's logits over the vocabulary, as `generator_logits`."""
    return self.predictions(
      jnp.take_along_axis(self.hidden_states(inputs, keys), positions[:, :, None], axis=1)
    )

  def predictions(self, hidden: jax.Array) -> jax.Array:
    """Logits over the vocabulary of the discriminator's hidden states.

    Args:
      hidden: `[batch, predictions, hidden]`.

    Returns:
      float32 `[batch, predictions, padded vocab]`.
    """
    return self.predictor_head(hidden, self.scheme.word_table(self._embeddings()))


def neighbors(ltr: jax.Array, rtl: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """The state of `ltr` to the left of each position and that of `rtl` to its right, concatenated.

  Args:
    ltr: states of the left-to-right tower, `[batch, length, hidden]`.
    rtl: states of the right-to-left tower, `[batch, length, hidden]`.
    segment_ids: int32 `[batch, length]`. A neighbor in another segment is zeros.

  Returns:
    `[batch, length, 2 x hidden]`.
  """
  continues = segment_ids[:, 1:] == segment_ids[:, :-1]
  left = jnp.pad(jnp.where(continues[..., None], ltr[:, :-1], 0), ((0, 0), (1, 0), (0, 0)))
  right = jnp.pad(jnp.where(continues[..., None], rtl[:, 1:], 0), ((0, 0), (0, 1), (0, 0)))
  return jnp.concatenate([left, right], axis=-1)

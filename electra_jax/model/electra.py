"""Generator and discriminator, their heads, and what the two share."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from electra_jax.model.config import EncoderConfig
from electra_jax.model.dropout import fold_in
from electra_jax.model.encoder import (
  Embeddings,
  Encoder,
  Inputs,
  dense,
  gelu,
  layer_norm,
  partitioned,
  product,
)

SHARING = ('embeddings', 'none', 'all', 'disentangled')
# Folded into the dropout keys, so that the towers' masks differ; 3 is a fine-tuning head's, see heads.py.
_GENERATOR, _DISCRIMINATOR, _RIGHT_TO_LEFT = 1, 2, 4


class GeneratorHead(nn.Module):
  """Hidden states at the masked positions -> logits over the vocabulary, through the word embeddings transposed."""

  config: EncoderConfig
  embedding_size: int

  @nn.compact
  def __call__(self, hidden: jax.Array, word_embeddings: jax.Array) -> jax.Array:
    """Hidden states [batch, predictions, hidden], word_embeddings [vocab, embed] -> float32 [batch, predictions, padded vocab].

    The rows that pad the vocabulary get the lowest float32, so that softmax and sampling never see them.
    """
    c = self.config
    x = gelu(dense(c, self.embedding_size, ('embed_out', 'embed'), 'dense')(hidden))
    x = layer_norm(c, 'norm')(x)
    bias = self.param(
      'bias',
      partitioned(nn.initializers.zeros, ('vocab',)),
      (c.padded_vocab_size,),
      jnp.float32,
    )
    logits = product(x.reshape(-1, x.shape[-1]), word_embeddings.T).reshape(*x.shape[:2], -1) + bias
    real = jax.lax.iota(jnp.int32, c.padded_vocab_size) < c.vocab_size
    return jnp.where(real, logits, jnp.finfo(jnp.float32).min)


class DiscriminatorHead(nn.Module):
  """Hidden states -> one logit a token: is it replaced?"""

  config: EncoderConfig

  @nn.compact
  def __call__(self, hidden: jax.Array) -> jax.Array:
    """Hidden states [batch, length, hidden] -> float32 [batch, length]."""
    c = self.config
    x = gelu(dense(c, c.hidden_size, ('embed', 'embed_out'), 'dense')(hidden))
    init = None
    if c.family == 'modern':
      x = layer_norm(c, 'norm')(x)
    else:
      init = (
        nn.initializers.glorot_uniform()
      )  # left to TensorFlow's default initialiser in the original
    x = dense(
      c, 1, ('embed_out', 'one'), 'prediction', init=init, use_bias=True, dtype=jnp.float32
    )(x)
    return x[..., 0]


class Electra(nn.Module):
  """Both towers.

  Parameters: `embeddings`, `discriminator` (what is kept), `generator`, the heads and, unless shared, `generator_embeddings`.

  `sharing`: 'embeddings' (word, position, type and their LayerNorm; the published choice), 'none' (two separate towers),
  'all' (one tower serves as both, equal sizes; Clark et al. 2020, section 3.2), or 'disentangled' (He et al. 2021, section 3.3: the
  discriminator's tables are the generator's, from where no gradient flows back, plus a difference that begins at zero;
  `embeddings_difference` stands in the place of `embeddings`).

  `heads`: those there are. 'generator_head' predicts masked tokens from the generator, 'discriminator_head' judges tokens, and
  'predictor_head' predicts tokens from the discriminator's tower. Without a 'generator_head' there is no generator: every token is
  as likely as any other.

  `two_tower`: in place of `generator` two encoders, `generator_ltr` and `generator_rtl`, one a side, so that a token is predicted from
  all others (Baevski et al. 2019; the noise distribution of Clark et al. 2020b). Their attention is XLA's, whatever the config's.
  """

  generator_config: EncoderConfig
  discriminator_config: EncoderConfig
  sharing: str = 'embeddings'
  heads: tuple[str, ...] = ('generator_head', 'discriminator_head')
  two_tower: bool = False

  def setup(self) -> None:
    """Creates the towers and heads."""
    g, d = self.generator_config, self.discriminator_config
    if self.sharing not in SHARING:
      raise ValueError(f'sharing is {self.sharing!r}; it is one of {", ".join(SHARING)}.')
    if self.two_tower and self.sharing == 'all':
      raise ValueError(
        "sharing 'all' makes one tower of both, and each of the generator's two towers sees one side alone; share embeddings."
      )
    if self.sharing == 'disentangled':
      self.embeddings_difference = Embeddings(d, difference=True)
    else:
      self.embeddings = Embeddings(d)
    self.discriminator = Encoder(d)
    if 'discriminator_head' in self.heads:
      self.discriminator_head = DiscriminatorHead(d)
    if 'predictor_head' in self.heads:
      self.predictor_head = GeneratorHead(d, d.embedding_size)
    if self.sharing in ('none', 'disentangled'):
      self.generator_embeddings = Embeddings(g)
    if 'generator_head' not in self.heads:
      return
    if self.two_tower:

      def one_sided(direction: str) -> Encoder:
        return Encoder(dataclasses.replace(g, direction=direction, attention='xla'))

      self.generator_ltr, self.generator_rtl = one_sided('left'), one_sided('right')
    elif self.sharing != 'all':
      self.generator = Encoder(g)
    self.generator_head = GeneratorHead(g, g.embedding_size)

  def __call__(
    self, inputs: Inputs, positions: jax.Array
  ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Touches every parameter, for initialisation."""
    hidden = self.hidden_states(inputs)
    return (
      self.generator_logits(inputs, positions),
      self.verdicts(hidden) if 'discriminator_head' in self.heads else None,
      self.predictions(hidden) if 'predictor_head' in self.heads else None,
    )

  def _generator_embeddings(self) -> Embeddings:
    return (
      self.generator_embeddings if self.sharing in ('none', 'disentangled') else self.embeddings
    )

  def _embed(self, inputs: Inputs, keys: jax.Array | None) -> jax.Array:
    """What the discriminator's tower reads."""
    if self.sharing == 'disentangled':
      return self.embeddings_difference(inputs, keys, under=self.generator_embeddings.tables())
    return self.embeddings(inputs, keys)

  def generator_logits(
    self, inputs: Inputs, positions: jax.Array, keys: jax.Array | None = None
  ) -> jax.Array:
    """The generator's logits at `positions` [batch, predictions] alone: float32 [batch, predictions, padded vocab]."""
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
    encoder = self.discriminator if self.sharing == 'all' else self.generator
    hidden = encoder(embeddings(inputs, fold_in(keys, 0)), inputs, keys)
    at_positions = jnp.take_along_axis(hidden, positions[:, :, None], axis=1)
    return self.generator_head(at_positions, embeddings.word)

  def cloze_states(self, inputs: Inputs, keys: jax.Array | None = None) -> jax.Array:
    """Of `two_tower`: what stands to the left and to the right of each position in its own document, and never what stands there.

    Zeros stand for the side that a document does not have, at its first and its last token.

    Returns: [batch, length, 2 x hidden].
    """
    keys = fold_in(keys, _GENERATOR)
    embedded = self._generator_embeddings()(inputs, fold_in(keys, 0))
    ltr = self.generator_ltr(embedded, inputs, keys)
    rtl = self.generator_rtl(embedded, inputs, fold_in(keys, _RIGHT_TO_LEFT))
    return neighbours(ltr, rtl, inputs.segment_ids)

  def cloze_logits(self, states: jax.Array) -> jax.Array:
    """Logits of states [batch, positions, 2 x hidden] out of cloze_states: float32 [batch, positions, padded vocab]."""
    return self.generator_head(states, self._generator_embeddings().word)

  def hidden_states(self, inputs: Inputs, keys: jax.Array | None = None) -> jax.Array:
    """The discriminator's hidden states [batch, length, hidden]: what fine-tuning starts from."""
    keys = fold_in(keys, _DISCRIMINATOR)
    return self.discriminator(self._embed(inputs, fold_in(keys, 0)), inputs, keys)

  def discriminator_logits(self, inputs: Inputs, keys: jax.Array | None = None) -> jax.Array:
    """Float32 [batch, length]: log-odds that the token was replaced."""
    return self.verdicts(self.hidden_states(inputs, keys))

  def verdicts(self, hidden: jax.Array) -> jax.Array:
    """The same from hidden states [batch, length, hidden]."""
    return self.discriminator_head(hidden)

  def predictor_logits(
    self, inputs: Inputs, positions: jax.Array, keys: jax.Array | None = None
  ) -> jax.Array:
    """The main tower's logits over the vocabulary at `positions` [batch, predictions] alone: float32 [batch, predictions, padded vocab]."""
    return self.predictions(
      jnp.take_along_axis(self.hidden_states(inputs, keys), positions[:, :, None], axis=1)
    )

  def predictions(self, hidden: jax.Array) -> jax.Array:
    """The same from the hidden states [batch, predictions, hidden] there."""
    if self.sharing == 'disentangled':
      word = self.embeddings_difference.tables(self.generator_embeddings.tables())['word']
    else:
      word = self.embeddings.word
    return self.predictor_head(hidden, word)


def neighbours(ltr: jax.Array, rtl: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """At each position the state of `ltr` one to its left beside that of `rtl` one to its right, zeros where no document goes on.

  ltr, rtl: [batch, length, hidden]; segment_ids: [batch, length]. Returns [batch, length, 2 x hidden].
  """
  goes_on = segment_ids[:, 1:] == segment_ids[:, :-1]
  left = jnp.pad(jnp.where(goes_on[..., None], ltr[:, :-1], 0), ((0, 0), (1, 0), (0, 0)))
  right = jnp.pad(jnp.where(goes_on[..., None], rtl[:, 1:], 0), ((0, 0), (0, 1), (0, 0)))
  return jnp.concatenate([left, right], axis=-1)

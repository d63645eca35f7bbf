"""Generator and discriminator, their heads, and what the two share."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from electra_jax.model.config import EncoderConfig
from electra_jax.model.dropout import fold_in
from electra_jax.model.encoder import Embeddings, Encoder, Inputs, dense, gelu, layer_norm, product

SHARING = ('embeddings', 'none', 'all')
_GENERATOR, _DISCRIMINATOR = 1, 2      # folded into the dropout keys, so that the towers' masks differ


class GeneratorHead(nn.Module):
  """Hidden states at the masked positions -> logits over the vocabulary, through the word embeddings transposed."""
  config: EncoderConfig
  embedding_size: int

  @nn.compact
  def __call__(self, hidden, word_embeddings):
    """hidden [batch, predictions, hidden], word_embeddings [vocab, embed] -> float32 [batch, predictions, padded vocab].

    The rows that pad the vocabulary get the lowest float32, so that softmax and sampling never see them.
    """
    c = self.config
    x = gelu(dense(c, self.embedding_size, ('embed_out', 'embed'), 'dense')(hidden))
    x = layer_norm(c, 'norm')(x)
    bias = self.param('bias', nn.with_logical_partitioning(nn.initializers.zeros, ('vocab',)),
                      (c.padded_vocab_size,), jnp.float32)
    logits = product(x.reshape(-1, x.shape[-1]), word_embeddings.T).reshape(*x.shape[:2], -1) + bias
    real = jax.lax.iota(jnp.int32, c.padded_vocab_size) < c.vocab_size
    return jnp.where(real, logits, jnp.finfo(jnp.float32).min)


class DiscriminatorHead(nn.Module):
  """Hidden states -> one logit a token: is it replaced?"""
  config: EncoderConfig

  @nn.compact
  def __call__(self, hidden):
    """hidden [batch, length, hidden] -> float32 [batch, length]."""
    c = self.config
    x = gelu(dense(c, c.hidden_size, ('embed', 'embed_out'), 'dense')(hidden))
    init = None
    if c.family == 'modern':
      x = layer_norm(c, 'norm')(x)
    else:
      init = nn.initializers.glorot_uniform()     # left to TensorFlow's default initialiser in the original
    x = dense(c, 1, ('embed_out', 'one'), 'prediction', init=init, use_bias=True, dtype=jnp.float32)(x)
    return x[..., 0]


class Electra(nn.Module):
  """Both towers.

  Parameters: `embeddings`, `discriminator`, `discriminator_head` (what is kept), `generator`, `generator_head` and, unless shared,
  `generator_embeddings`.

  `sharing`: 'embeddings' (word, position, type and their LayerNorm; the published choice), 'none' (two separate towers), or
  'all' (one tower serves as both, equal sizes; Clark et al. 2020, section 3.2).
  """
  generator_config: EncoderConfig
  discriminator_config: EncoderConfig
  sharing: str = 'embeddings'

  def setup(self):
    if self.sharing not in SHARING:
      raise ValueError(f'sharing is {self.sharing!r}; it is one of {", ".join(SHARING)}.')
    self.embeddings = Embeddings(self.discriminator_config)
    self.discriminator = Encoder(self.discriminator_config)
    self.discriminator_head = DiscriminatorHead(self.discriminator_config)
    if self.sharing == 'none':
      self.generator_embeddings = Embeddings(self.generator_config)
    if self.sharing != 'all':
      self.generator = Encoder(self.generator_config)
    self.generator_head = GeneratorHead(self.generator_config, self.generator_config.embedding_size)

  def __call__(self, inputs: Inputs, positions):
    """Touches every parameter, for initialisation."""
    return self.generator_logits(inputs, positions), self.discriminator_logits(inputs)

  def generator_logits(self, inputs: Inputs, positions, keys=None):
    """The generator's logits at `positions` [batch, predictions] alone: float32 [batch, predictions, padded vocab]."""
    keys = fold_in(keys, _GENERATOR)
    embeddings = self.generator_embeddings if self.sharing == 'none' else self.embeddings
    encoder = self.discriminator if self.sharing == 'all' else self.generator
    hidden = encoder(embeddings(inputs, fold_in(keys, 0)), inputs, keys)
    at_positions = jnp.take_along_axis(hidden, positions[:, :, None], axis=1)
    return self.generator_head(at_positions, embeddings.word)

  def hidden_states(self, inputs: Inputs, keys=None):
    """The discriminator's hidden states [batch, length, hidden]: what fine-tuning starts from."""
    keys = fold_in(keys, _DISCRIMINATOR)
    return self.discriminator(self.embeddings(inputs, fold_in(keys, 0)), inputs, keys)

  def discriminator_logits(self, inputs: Inputs, keys=None):
    """float32 [batch, length]: log-odds that the token was replaced."""
    return self.verdicts(self.hidden_states(inputs, keys))

  def verdicts(self, hidden):
    """The same from hidden states [batch, length, hidden]."""
    return self.discriminator_head(hidden)

"""Heads for fine-tuning, and the model of a pretrained encoder with one of them.

Heads have two styles. `published` is that of the original program (google-research/electra,
finetune/): no pooler, and kernels from Glorot's uniform distribution with zero biases, the default
of TensorFlow, for all families of encoders. `transformers` is that of Hugging Face's ElectraFor...
and ModernBertFor... classes, so that their files can be read and written. Logits are float32.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from electra_jax.config.declarations import one_of
from electra_jax.config.families import FAMILIES
from electra_jax.model.config import EncoderConfig
from electra_jax.model.dropout import dropout, fold_in
from electra_jax.model.encoder import (
  Dense,
  Embeddings,
  Encoder,
  Inputs,
  dense,
  gelu,
  layer_norm,
  parameter,
  partitioned,
  truncated_normal,
)
from electra_jax.model.products import product

ROW_KINDS = ('classification', 'multilabel', 'regression', 'choice')  # with outputs per row
KINDS = (*ROW_KINDS, 'tagging', 'span')
STYLES = ('published', 'transformers')
POOLINGS = ('cls', 'mean')
PUBLISHED_DROPOUT = {
  'classification': 0.1,
  'multilabel': 0.1,
  'regression': 0.1,
  'choice': 0.1,
  'tagging': 0.0,
  'span': 0.0,
}
SPAN_SIZE = (
  512  # width of the span head's hidden layers, for any width of the encoder, as published
)
_ACTIVATIONS = {'gelu': gelu, 'tanh': jnp.tanh, 'relu': jax.nn.relu}
LOWEST = -1e9  # logit of positions that are not allowed; the sum of two is finite
# Folded into the dropout keys, the first as in electra.py.
_DISCRIMINATOR = 2
_HEAD = 3

_glorot = nn.initializers.glorot_uniform()


def _logits(config: EncoderConfig, features: int, axis: str = 'embed') -> Dense:
  """The last layer of a head. The axis of the labels is not split over devices."""
  return Dense(features, (axis, 'one'), _glorot, True, jnp.float32, config.products)


def pooled(hidden: jax.Array, segment_ids: jax.Array, pooling: str) -> jax.Array:
  """One state per row.

  Args:
    hidden: `[batch, length, hidden]`.
    segment_ids: int32 `[batch, length]`, 0 at padding.
    pooling: 'cls' for the state of [CLS], 'mean' for the mean over the tokens of a row.

  Returns:
    `[batch, hidden]`.
  """
  if pooling == 'cls':
    return hidden[:, 0]
  real = (segment_ids > 0).astype(jnp.float32)[:, :, None]
  return (hidden * real).sum(1) / jnp.maximum(real.sum(1), 1)


class ClassificationHead(nn.Module):
  """The state of [CLS] or the mean over the tokens, dropout, and one dense layer."""

  config: EncoderConfig
  labels: int
  dropout: float = PUBLISHED_DROPOUT['classification']
  pooling: str = 'cls'

  def setup(self) -> None:
    """Creates the dense layer."""
    self.dense = _logits(self.config, self.labels)

  def __call__(
    self, hidden: jax.Array, segment_ids: jax.Array, keys: jax.Array | None = None
  ) -> jax.Array:
    """Logits of the labels.

    Args:
      hidden: `[batch, length, hidden]`.
      segment_ids: int32 `[batch, length]`, 0 at padding.
      keys: of dropout, one threefry key per row; None for no dropout.

    Returns:
      float32 `[batch, labels]`.
    """
    x = pooled(hidden, segment_ids, self.pooling)
    return self.dense(dropout(x, self.dropout, keys, 0, self.config.dropout_settings))


class TaggingHead(nn.Module):
  """One dense layer over every position."""

  config: EncoderConfig
  labels: int
  dropout: float = PUBLISHED_DROPOUT['tagging']

  def setup(self) -> None:
    """Creates the dense layer."""
    self.dense = _logits(self.config, self.labels)

  def __call__(self, hidden: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """Hidden states `[batch, length, hidden]` -> logits, float32 `[batch, length, labels]`."""
    return self.dense(dropout(hidden, self.dropout, keys, 0, self.config.dropout_settings))


class _Weights(nn.Module):
  """The kernel and bias of a dense layer whose product is computed in parts."""

  shape: tuple[int, int]
  axes: tuple[str, str]

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array]:
    bias = partitioned(nn.initializers.zeros, self.axes[1:])
    return (
      parameter(self, 'kernel', _glorot, self.shape, self.axes),
      self.param('bias', bias, self.shape[1:], jnp.float32),
    )


class SpanHead(nn.Module):
  """The joint head for SQuAD of the original program.

  It predicts the start of an answer, the end given the start, and whether there is an answer.

  Its methods take `allowed`, int32 `[batch, length]`: 1 where an answer may start or end, and at
  [CLS], which represents no answer.
  """

  config: EncoderConfig
  beam: int = 20

  def setup(self) -> None:
    """Creates the layers of start, end and impossibility."""
    c = self.config
    hidden = c.hidden_size
    self.start = _logits(c, 1)
    self.end_hidden = _Weights((2 * hidden, SPAN_SIZE), ('embed', 'mlp'))
    self.end = _Weights((SPAN_SIZE, 1), ('mlp', 'one'))
    self.impossible_hidden = Dense(SPAN_SIZE, ('embed', 'mlp'), _glorot, True, c.dtype, c.products)
    self.impossible = _logits(c, 1, 'mlp')

  def training(
    self, hidden: jax.Array, allowed: jax.Array, start: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits where the start is known.

    Args:
      hidden: `[batch, length, hidden]`.
      allowed: int32 `[batch, length]`.
      start: int32 `[batch]`.

    Returns:
      Logits of the start `[batch, length]`, of the end given the start `[batch, length]`, and of no
      answer `[batch]`, float32.
    """
    start_logits = self._starts(hidden, allowed)
    return (
      start_logits,
      self._ends(hidden, allowed, start[:, None])[:, 0],
      self._no_answer(hidden, start_logits),
    )

  def beam_search(self, hidden: jax.Array, allowed: jax.Array) -> dict[str, jax.Array]:
    """The `beam` most likely starts, and for each the `beam` most likely ends given it.

    Args:
      hidden: `[batch, length, hidden]`.
      allowed: int32 `[batch, length]`.

    Returns:
      A dict of `start_log_probs` float32 and `start_index` int32 `[batch, beam]`, `end_log_probs`
      and `end_index` `[batch, beam, beam]`, both by descending probability, and `impossible`
      `[batch]`, the log-odds that the row has no answer. Where fewer positions than `beam` are
      allowed, the rest have index 0 and a log-probability of about LOWEST. An end may precede its
      start, as in the original program; the reader of the result must discard it.
    """
    start_logits = self._starts(hidden, allowed)
    start_log_probs, start_index = _likeliest(start_logits, self.beam)
    end_log_probs, end_index = _likeliest(self._ends(hidden, allowed, start_index), self.beam)
    return {
      'start_log_probs': start_log_probs,
      'start_index': start_index,
      'end_log_probs': end_log_probs,
      'end_index': end_index,
      'impossible': self._no_answer(hidden, start_logits),
    }

  def _starts(self, hidden: jax.Array, allowed: jax.Array) -> jax.Array:
    return jnp.where(allowed > 0, self.start(hidden)[..., 0], LOWEST)

  def _ends(self, hidden: jax.Array, allowed: jax.Array, starts: jax.Array) -> jax.Array:
    """Logits of the end for starts int32 `[batch, n]`: float32 `[batch, n, length]`."""
    dtype, (batch, length, size) = self.config.dtype, hidden.shape
    products = self.config.products
    kernel, bias = self.end_hidden()
    last_kernel, last_bias = self.end()

    # The layer over [start; token] is a sum of two products, one for each start and one for each
    # token, so that the pairs [batch, n, length, 2 x hidden] never exist. Starts are processed one
    # by one, so that [batch, n, length, SPAN_SIZE] does not exist either.
    def part(x: jax.Array, rows: jax.Array) -> jax.Array:
      flat = product(x.astype(dtype).reshape(-1, size), rows, products)
      return flat.reshape(*x.shape[:2], SPAN_SIZE)

    of_start = part(jnp.take_along_axis(hidden, starts[:, :, None], axis=1), kernel[:size])
    of_token = part(hidden, kernel[size:]) + bias

    def given(of_start: jax.Array) -> jax.Array:
      x = gelu((of_token + of_start[:, None]).astype(dtype)).astype(jnp.float32)
      flat = product(x.reshape(-1, SPAN_SIZE), last_kernel, products)
      return (flat + last_bias).reshape(batch, length)

    logits = jax.lax.map(given, of_start.swapaxes(0, 1)).swapaxes(0, 1)
    return jnp.where(allowed[:, None] > 0, logits, LOWEST)

  def _no_answer(self, hidden: jax.Array, start_logits: jax.Array) -> jax.Array:
    """Log-odds of no answer, from [CLS] and the expected hidden state at the start."""
    expected = jnp.einsum(
      'bl,bld->bd',
      jax.nn.softmax(start_logits),
      hidden.astype(jnp.float32),
      precision=self.config.products.of(jnp.float32),
    )
    x = jnp.concatenate([hidden[:, 0], expected.astype(hidden.dtype)], axis=-1)
    return self.impossible(gelu(self.impossible_hidden(x)))[..., 0]


def _likeliest(logits: jax.Array, beam: int) -> tuple[jax.Array, jax.Array]:
  """The highest log-probabilities and their indices, those that are not allowed last.

  Args:
    logits: float32 `[..., length]`.
    beam: how many.

  Returns:
    Log-probabilities and int32 indices, `[..., beam]`.
  """
  log_probs, index = _best(jax.nn.log_softmax(logits), beam)
  return log_probs, jnp.where(log_probs > LOWEST / 2, index, 0)


def _best(scores: jax.Array, beam: int) -> tuple[jax.Array, jax.Array]:
  """The highest scores and their indices; rows shorter than `beam` are filled with LOWEST and 0.

  Args:
    scores: float32 `[..., length]`.
    beam: how many.

  Returns:
    Scores and int32 indices, `[..., beam]`.
  """
  count = min(beam, scores.shape[-1])
  scores, index = jax.lax.top_k(scores, count)
  rest = [(0, 0)] * (scores.ndim - 1) + [(0, beam - count)]
  return jnp.pad(scores, rest, constant_values=LOWEST), jnp.pad(index.astype(jnp.int32), rest)


class TransformersHead(nn.Module):
  """The heads of `transformers` (models/electra, models/modernbert, models/bert and so on).

  ELECTRA has [CLS], dropout, dense, GELU, dropout, dense for classification and regression;
  dropout, dense for tagging; and dense for span. Those of the BERT family differ in the activation
  of the hidden layer, and in whether dropout precedes it (config/families.py). ModernBERT has [CLS]
  or the mean for classification and regression, and then for all kinds dense without a bias, GELU,
  LayerNorm, dropout, dense.

  Attributes:
    config: of the encoder.
    kind: of KINDS.
    outputs: the number of labels; 1 for regression; 2 for span, the independent logits of start and
      end.
    dropout: rate of dropout.
    pooling: of POOLINGS, for classification and regression.
  """

  config: EncoderConfig
  kind: str
  outputs: int
  dropout: float
  pooling: str = 'cls'

  @nn.compact
  def __call__(
    self, hidden: jax.Array, segment_ids: jax.Array, keys: jax.Array | None = None
  ) -> jax.Array:
    """Logits.

    Args:
      hidden: `[batch, length, hidden]`.
      segment_ids: int32 `[batch, length]`, 0 at padding.
      keys: of dropout, one threefry key per row; None for no dropout.

    Returns:
      float32 `[batch, outputs]`, or `[batch, length, outputs]` for tagging and span.
    """
    c, traits = self.config, self.config.traits

    def drop(x: jax.Array, site: int) -> jax.Array:
      return dropout(x, self.dropout, keys, site, c.dropout_settings)

    of_rows = self.kind in ROW_KINDS
    x = pooled(hidden, segment_ids, self.pooling) if of_rows else hidden
    has_hidden = self.kind in traits.transformers_hidden
    if has_hidden:
      init = truncated_normal(c.initializer_range / (2 * c.num_layers) ** 0.5)
      x = drop(x, 1) if traits.transformers_first_dropout else x
      layer = dense(
        c, c.hidden_size, ('embed', 'embed_out'), 'hidden', init=init if traits.pre_norm else None
      )
      x = _ACTIVATIONS[traits.transformers_activation](layer(x))
    if traits.pre_norm:
      x = layer_norm(c, 'norm')(x)
    init = truncated_normal(c.hidden_size**-0.5 if traits.pre_norm else c.initializer_range)
    axes = ('embed_out' if has_hidden else 'embed', 'one')
    return dense(c, self.outputs, axes, 'dense', init=init, use_bias=True, dtype=jnp.float32)(
      drop(x, 0)
    )


def best_spans(
  start_logits: jax.Array, end_logits: jax.Array, allowed: jax.Array, beam: int, max_answer: int
) -> dict[str, jax.Array]:
  """The result of SpanHead.beam_search, from independent logits of starts and ends.

  The starts are those of the best spans by the sum of both logits, among the spans of at most
  `max_answer` tokens whose ends are allowed and that do not start at [CLS]. The ends are the best
  ends of such spans. Log-probabilities are over all allowed positions, [CLS] included. `impossible`
  is the score of [CLS] as start and end minus that of the best span: the null odds of
  `transformers` for SQuAD 2.0.

  Args:
    start_logits: float32 `[batch, length]`.
    end_logits: float32 `[batch, length]`.
    allowed: int32 `[batch, length]`, see SpanHead.
    beam: number of starts, and of ends for each.
    max_answer: most tokens of an answer.

  Returns:
    As of SpanHead.beam_search.
  """
  may = allowed > 0
  start, end = jnp.where(may, start_logits, LOWEST), jnp.where(may, end_logits, LOWEST)
  index = jnp.arange(start.shape[1])
  inside = may & (index > 0)
  ahead = index[None, :] - index[:, None]  # [start, end]
  near = (ahead >= 0) & (ahead < max_answer)
  ends = jnp.where(near & inside[:, None, :], end[:, None, :], LOWEST)
  spans = jnp.where(inside, start + ends.max(-1), LOWEST)
  _, starts = _best(spans, beam)
  taken = jnp.take_along_axis(inside & (spans > LOWEST / 2), starts, 1) & (
    jnp.arange(beam) < start.shape[1]
  )
  starts = jnp.where(taken, starts, 0)
  end_scores, end_index = _best(jnp.take_along_axis(ends, starts[:, :, None], axis=1), beam)
  real = taken[:, :, None] & (end_scores > LOWEST / 2)

  def log_total(x: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(x, axis=-1, keepdims=True)

  return {
    'start_log_probs': jnp.where(
      taken, jnp.take_along_axis(start, starts, 1) - log_total(start), LOWEST
    ),
    'start_index': starts,
    'end_log_probs': jnp.where(real, end_scores - log_total(end)[:, :, None], LOWEST),
    'end_index': jnp.where(real, end_index, 0),
    'impossible': start[:, 0] + end[:, 0] - spans.max(-1),
  }


class FineTuned(nn.Module):
  """A pretrained encoder with a head.

  Embeddings and encoder have the names that they have in model.electra.Electra, so that pretrained
  parameters fit. Those of the head are `head`.

  Attributes:
    config: of the encoder.
    kind: of KINDS.
    labels: number of labels, for classification, multi-label classification and tagging.
    dropout: of the head; None for the default of its style, see `default_dropout`.
    pooling: of POOLINGS, for ROW_KINDS.
    beam: for span: number of starts, and of ends for each.
    style: of STYLES.
    max_answer: for span in the style of transformers: most tokens of an answer.

  Raises:
    ValueError: for an unknown kind, style or pooling.
  """

  config: EncoderConfig
  kind: str
  labels: int = 1
  dropout: float | None = None
  pooling: str = 'cls'
  beam: int = 20
  style: str = 'published'
  max_answer: int = 30

  def setup(self) -> None:
    """Creates the tower and the head."""
    for name, choices in (('kind', KINDS), ('style', STYLES), ('pooling', POOLINGS)):
      if getattr(self, name) not in choices:
        raise ValueError(f'{name} is {getattr(self, name)!r}; expected {one_of(choices)}.')
    self.embeddings = Embeddings(self.config)
    self.discriminator = Encoder(self.config)
    rate = (
      default_dropout(self.kind, self.style, self.config.family)
      if self.dropout is None
      else self.dropout
    )
    self.head: Any  # one of four classes, which take different arguments
    if self.style == 'transformers':
      outputs = {'regression': 1, 'choice': 1, 'span': 2}.get(self.kind, self.labels)
      self.head = TransformersHead(self.config, self.kind, outputs, rate, self.pooling)
    elif self.kind == 'span':
      self.head = SpanHead(self.config, self.beam)
    elif self.kind == 'tagging':
      self.head = TaggingHead(self.config, self.labels, rate)
    else:
      self.head = ClassificationHead(
        self.config,
        1 if self.kind in ('regression', 'choice') else self.labels,
        rate,
        self.pooling,
      )

  def __call__(self, inputs: Inputs) -> dict[str, jax.Array]:
    """Uses every parameter, for their initialization."""
    ids = inputs.token_ids
    return self.training(
      inputs, {'allowed': jnp.ones_like(ids), 'start': jnp.zeros_like(ids[:, 0])}
    )

  def hidden_states(self, inputs: Inputs, keys: jax.Array | None = None) -> jax.Array:
    """Hidden states, equal to those of Electra.hidden_states with the same parameters and keys.

    Args:
      inputs: int32 `[batch, length]` each.
      keys: of dropout, one threefry key per row; None for no dropout.

    Returns:
      `[batch, length, hidden]`.
    """
    keys = fold_in(keys, _DISCRIMINATOR)
    return self.discriminator(self.embeddings(inputs, fold_in(keys, 0)), inputs, keys)

  def layer_states(self, inputs: Inputs) -> jax.Array:
    """The states of every layer without dropout, `[layers + 1, batch, length, hidden]`.

    Args:
      inputs: int32 `[batch, length]` each.
    """
    states: jax.Array = self.discriminator(self.embeddings(inputs), inputs, None, True)
    return states

  def training(
    self, inputs: Inputs, targets: Mapping[str, jax.Array], keys: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    """The outputs that finetune/losses.py compares with the targets.

    Args:
      inputs: int32 `[batch, length]` each.
      targets: for span `allowed` int32 `[batch, length]` and `start` int32 `[batch]`, see SpanHead;
        other kinds read none.
      keys: of dropout, one threefry key per row; None for no dropout.

    Returns:
      float32 arrays by name. Classification, multi-label: `logits` `[batch, labels]`. Regression,
      choice: `value` `[batch]`. Tagging: `logits` `[batch, length, labels]`. Span: `start_logits`
      and `end_logits` `[batch, length]` and, in the published style, `impossible` `[batch]`.
    """
    return self._trained(self.hidden_states(inputs, keys), inputs, targets, keys)

  def _trained(
    self,
    hidden: jax.Array,
    inputs: Inputs,
    targets: Mapping[str, jax.Array],
    keys: jax.Array | None,
  ) -> dict[str, jax.Array]:
    """The outputs of `training`, from hidden states."""
    if self.kind != 'span':
      return self._outputs(hidden, inputs, fold_in(keys, _HEAD))
    if self.style == 'transformers':
      start, end = jnp.moveaxis(self.head(hidden, inputs.segment_ids, fold_in(keys, _HEAD)), -1, 0)
      may = (
        targets['allowed'] > 0
      )  # as published, neither padding nor the question can be an answer
      return {
        'start_logits': jnp.where(may, start, LOWEST),
        'end_logits': jnp.where(may, end, LOWEST),
      }
    logits = self.head.training(hidden, targets['allowed'], targets['start'])
    return dict(zip(('start_logits', 'end_logits', 'impossible'), logits, strict=True))

  def predict(self, inputs: Inputs, targets: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The outputs without dropout, for prediction.

    Args:
      inputs: int32 `[batch, length]` each.
      targets: for span `allowed` int32 `[batch, length]`.

    Returns:
      As of `training`; for span as of SpanHead.beam_search.
    """
    return self._predicted(self.hidden_states(inputs), inputs, targets)

  def evaluation(
    self, inputs: Inputs, targets: Mapping[str, jax.Array]
  ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The outputs of `predict` and of `training`, without dropout, from the same hidden states.

    Args:
      inputs: int32 `[batch, length]` each.
      targets: as of `training`.
    """
    hidden = self.hidden_states(inputs)
    predicted = self._predicted(hidden, inputs, targets)
    return predicted, self._trained(hidden, inputs, targets, None)

  def _predicted(
    self, hidden: jax.Array, inputs: Inputs, targets: Mapping[str, jax.Array]
  ) -> dict[str, jax.Array]:
    """The outputs of `predict`, from hidden states."""
    if self.kind == 'span' and self.style == 'transformers':
      start, end = jnp.moveaxis(self.head(hidden, inputs.segment_ids), -1, 0)
      return best_spans(start, end, targets['allowed'], self.beam, self.max_answer)
    if self.kind == 'span':
      beam: dict[str, jax.Array] = self.head.beam_search(hidden, targets['allowed'])
      return beam
    return self._outputs(hidden, inputs, None)

  def _outputs(
    self, hidden: jax.Array, inputs: Inputs, keys: jax.Array | None
  ) -> dict[str, jax.Array]:
    if self.kind == 'tagging' and self.style == 'published':
      return {'logits': self.head(hidden, keys)}
    logits = self.head(hidden, inputs.segment_ids, keys)
    return {'value': logits[:, 0]} if self.kind in ('regression', 'choice') else {'logits': logits}


def default_dropout(kind: str, style: str, family: str) -> float:
  """Default dropout of a head: that of the original program, or of the configs of `transformers`.

  Args:
    kind: of KINDS.
    style: of STYLES.
    family: of the encoder.
  """
  if style == 'published':
    return PUBLISHED_DROPOUT[kind]
  return 0.0 if kind == 'span' else FAMILIES[family].transformers_head_dropout


def init_finetuned(model: FineTuned, seed: int, length: int = 8) -> dict[str, Any]:
  """Initial parameters of the model, boxed with their logical axes.

  The function is pure, for jax.eval_shape and jax.jit.

  Args:
    model: the model.
    seed: of the parameters.
    length: of the row that the model is traced with.
  """
  # Values do not matter here, and the other kernels do not lower on several devices at once.
  model = model.clone(config=dataclasses.replace(model.config, attention='xla'))
  key = jax.random.key(seed, impl='threefry2x32')
  params: dict[str, Any] = _init_params(model, key, length)
  return params


@functools.partial(jax.jit, static_argnums=(0, 2))  # so that a model is traced for it once
def _init_params(model: FineTuned, key: jax.Array, length: int) -> dict[str, Any]:
  ids = jnp.zeros((1, length), jnp.int32)
  params: dict[str, Any] = model.init(key, Inputs(ids, ids + 1, ids, ids))['params']
  return params

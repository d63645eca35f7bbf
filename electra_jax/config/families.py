"""The families of encoders: what other code has to know of each. No JAX here."""

import dataclasses

# Fields of config.model that only some families use.
_ROTARY = ('global_every', 'local_window', 'global_rope_theta', 'local_rope_theta')
_RELATIVE = ('position_buckets',)


@dataclasses.dataclass(frozen=True)
class Family:
  """A family of encoders.

  Attributes:
    has_position_table: whether positions are learned, one row of a table each, so that no row of
      tokens is longer than `max_positions`.
    rotary: whether positions are rotations of queries and keys.
    relative: whether scores depend on the distance of two positions, by a table of
      `position_buckets` rows for each side (disentangled attention, He et al. 2021).
    has_type_table: whether an embedding of the token type is added.
    has_token_types: whether the two texts of a row have different types.
    pre_norm: whether norms precede attention and feed-forward layers, which add to a stream.
    use_bias: whether dense layers and LayerNorms have biases.
    gated_feed_forward: whether feed-forward layers have a third matrix, the gate.
    shared_layers: whether all layers have the same parameters.
    glorot: whether some layers have the default initializer of TensorFlow, as published.
    detection_head: layers from hidden states to verdicts: 'hidden' (dense, activation, dense),
      'normed' (the same with a LayerNorm before the last layer), 'linear' (one dense layer), or
      'context' (LayerNorm of the sum with the state of [CLS], then as 'hidden').
    pretrained_by_mlm: whether published encoders are masked language models, so that such a model
      is an encoder to continue from and not only a generator.
    unused_fields: fields of config.model that have no effect.
    transformers_poolings: poolings of the classification head that `transformers` has.
    transformers_activation: activation of the hidden layer of its classification head.
    transformers_first_dropout: whether that head has dropout before its hidden layer, too.
    transformers_hidden: kinds of heads that have a hidden layer there.
    transformers_head_dropout: default dropout of heads in the configs of `transformers`.
    transformers_span_dropout: whether its span head has dropout.
  """

  has_position_table: bool = True
  rotary: bool = False
  relative: bool = False
  has_type_table: bool = True
  has_token_types: bool = True
  pre_norm: bool = False
  use_bias: bool = True
  gated_feed_forward: bool = False
  shared_layers: bool = False
  glorot: bool = False
  detection_head: str = 'linear'
  pretrained_by_mlm: bool = True
  unused_fields: tuple[str, ...] = (*_ROTARY, *_RELATIVE)
  transformers_poolings: tuple[str, ...] = ('cls',)
  transformers_activation: str = 'tanh'
  transformers_first_dropout: bool = False
  transformers_hidden: tuple[str, ...] = ('classification', 'regression')
  transformers_head_dropout: float = 0.1
  transformers_span_dropout: bool = False


_ROBERTA = Family(has_token_types=False, transformers_first_dropout=True)

# By config.model.family. Those of `transformers` have its model_type.
FAMILIES = {
  'electra': Family(
    glorot=True,
    detection_head='hidden',
    pretrained_by_mlm=False,
    transformers_activation='gelu',
    transformers_first_dropout=True,
  ),
  'modern': Family(
    has_position_table=False,
    rotary=True,
    has_type_table=False,
    has_token_types=False,
    pre_norm=True,
    use_bias=False,
    gated_feed_forward=True,
    detection_head='normed',
    unused_fields=('max_positions', 'type_vocab_size', *_RELATIVE),
    transformers_poolings=('cls', 'mean'),
    transformers_activation='gelu',
    transformers_hidden=('classification', 'regression', 'tagging', 'span'),
    transformers_head_dropout=0.0,
    transformers_span_dropout=True,
  ),
  'bert': Family(),
  'roberta': _ROBERTA,
  'xlm-roberta': _ROBERTA,
  'camembert': _ROBERTA,
  'distilbert': Family(
    has_type_table=False,
    has_token_types=False,
    unused_fields=('type_vocab_size', *_ROTARY, *_RELATIVE),
    transformers_activation='relu',
    transformers_span_dropout=True,
  ),
  'deberta-v2': Family(
    has_position_table=False,
    relative=True,
    has_type_table=False,
    has_token_types=False,
    detection_head='context',
    unused_fields=('type_vocab_size', *_ROTARY),
    transformers_activation='gelu',
  ),
  'albert': Family(shared_layers=True),
}

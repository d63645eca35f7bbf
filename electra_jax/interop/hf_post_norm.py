"""What the architectures of `transformers` in BERT's form have in common.

They have embeddings with a LayerNorm, and layers whose norms follow attention and feed-forward
layers. A module for each has its names: hf_bert, hf_roberta, hf_distilbert, hf_albert, hf_deberta.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from electra_jax.interop.hf_architecture import Obstacle, TensorTable
from electra_jax.interop.hf_config import ConfigFields
from electra_jax.interop.weights import Head
from electra_jax.model.config import EncoderConfig

WORD = 'embeddings.word_embeddings.weight'
POSITION = 'embeddings.position_embeddings.weight'
BERT_LAYER = {
  'query': 'attention.self.query',
  'key': 'attention.self.key',
  'value': 'attention.self.value',
  'attention_output': 'attention.output.dense',
  'attention_norm': 'attention.output.LayerNorm',
  'mlp_in': 'intermediate.dense',
  'mlp_output': 'output.dense',
  'mlp_norm': 'output.LayerNorm',
}
RENAMED = {'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias'}
# Names of the same function, by config.model.activation; the first is written.
ACTIVATIONS = {
  'gelu': ('gelu', 'gelu_python'),
  'gelu_tanh': ('gelu_new', 'gelu_pytorch_tanh', 'gelu_fast'),
}


@dataclasses.dataclass(frozen=True)
class Names:
  """Names of tensors, without the prefix and without '.weight' and '.bias'.

  Attributes:
    layer: of the parts of a layer: ours to theirs.
    heads: of the parts of a head, by kind: ours to theirs.
    vocabulary_bias: of the bias of the last layer of a masked language model, complete.
    layers: beginning of the names of a layer, with {} for its number; without it where all layers
      share their tensors.
    others: of further parts of the encoder: our path to theirs.
    tables: further arrays that are used as they are: our path to theirs, complete.
    unused: beginnings of the names of tensors that are not read, unless they are of the head.
  """

  layer: Mapping[str, str]
  heads: Mapping[str, Mapping[str, str]]
  vocabulary_bias: str
  layers: str = 'encoder.layer.{}.'
  others: Mapping[str, str] = dataclasses.field(default_factory=dict)
  tables: Mapping[str, str] = dataclasses.field(default_factory=dict)
  unused: tuple[str, ...] = ()

  def tensors(self, config: EncoderConfig, kind: str) -> TensorTable:
    """Returns the table of all tensors of a kind of model; see Architecture.tensors."""
    table: TensorTable = {WORD: (('embeddings/word', None),)}
    if config.has_position_table:
      table[POSITION] = (('embeddings/position', None),)
    if config.traits.has_type_table:
      table['embeddings.token_type_embeddings.weight'] = (('embeddings/type', None),)
    for path, name in self.tables.items():
      table[name] = ((path, None),)

    def add(path: str, name: str, layer: int | None = None) -> None:
      weight = 'scale' if path.endswith('norm') else 'kernel'
      table[f'{name}.weight'] = ((f'{path}/{weight}', layer),)
      table[f'{name}.bias'] = ((f'{path}/bias', layer),)

    add('embeddings/norm', 'embeddings.LayerNorm')
    for path, name in self.others.items():
      add(path, name)
    for ours, theirs in self.layer.items():
      if config.traits.shared_layers:
        add(f'encoder/shared_layer/{ours}', self.layers + theirs)
        continue
      for i in range(config.num_layers):
        add(f'encoder/layers/{ours}', self.layers.format(i) + theirs, i)
    for ours, theirs in self.heads[kind].items():
      add(f'head/{ours}', theirs)
    if kind == 'generator':
      table[self.vocabulary_bias] = (('head/bias', None),)
    return table

  def found_heads(self, names: set[str]) -> set[str]:
    """Returns the kinds of heads that tensors may be of; see Architecture.heads."""
    whole = {
      kind
      for kind, parts in self.heads.items()
      if parts and all(f'{part}.weight' in names for part in parts.values())
    }
    # The tensors of a tagger are among those of a classifier, whose hidden layer may be unused.
    return {'generator'} if 'generator' in whole else whole

  def remove_unused(
    self, fields: ConfigFields, config: EncoderConfig, kind: str, tensors: dict[str, np.ndarray]
  ) -> list[str]:
    """Removes tensors that are not read, and returns a note; see Architecture.complete.

    Raises:
      UserError: a masked language model has untied output embeddings.
    """
    if kind == 'generator':
      fields.require('tie_word_embeddings', True)
    used = set(self.tensors(config, kind))
    # The last layer of a masked language model may be there as a copy of the embeddings.
    last = self.vocabulary_bias.removesuffix('bias') if kind == 'generator' else '/'
    removed = [
      name
      for name in tensors
      if name.startswith(self.unused) and name not in used and not name.startswith(last)
    ]
    for name in removed:
      del tensors[name]
    parts = ', '.join(sorted({name.rpartition('.')[0] for name in removed}))
    return [f'has {parts}, which is not used'] if removed else []


def common_fields(fields: ConfigFields) -> dict[str, Any]:
  """Reads the fields of config.json that BERT and its relatives have, as those of EncoderConfig."""
  hidden = fields.integer('hidden_size', 768)
  fields.require('is_decoder', False)
  fields.require('add_cross_attention', False)
  return {
    'hidden_size': hidden,
    'embedding_size': hidden,
    'num_layers': fields.integer('num_hidden_layers', 12),
    'num_heads': fields.integer('num_attention_heads', 12),
    'intermediate_size': fields.integer('intermediate_size', 3072),
    'max_positions': fields.integer('max_position_embeddings', 512),
    'layer_norm_eps': fields.number('layer_norm_eps', 1e-12),
    'initializer_range': fields.number('initializer_range', 0.02),
    'dropout': fields.number('hidden_dropout_prob', 0.1),
    'attention_dropout': fields.number('attention_probs_dropout_prob', 0.1),
  }


def write_common_fields(config: EncoderConfig, ids: Mapping[str, int]) -> dict[str, Any]:
  """The inverse of `common_fields`, with the ids of special tokens."""
  return {
    'vocab_size': config.vocab_size,
    'hidden_size': config.hidden_size,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'intermediate_size': config.intermediate_size,
    'max_position_embeddings': config.max_positions,
    'layer_norm_eps': config.layer_norm_eps,
    'initializer_range': config.initializer_range,
    'hidden_dropout_prob': config.dropout,
    'attention_probs_dropout_prob': config.attention_dropout,
    'hidden_act': ACTIVATIONS[config.activation][0],
    'pad_token_id': ids.get('pad_id'),
    'bos_token_id': ids.get('cls_id'),
    'eos_token_id': ids.get('sep_id'),
  }


def read_activation(fields: ConfigFields, name: str, default: str, *supported: str) -> str:
  """Reads the activation; raises UserError for another than the supported ones."""
  known = {theirs: ours for ours in supported for theirs in ACTIVATIONS[ours]}
  others = [theirs for theirs in known if theirs != default]
  return known[fields.require(name, default, *others)]


def projection_unsupported(model: str) -> Callable[[EncoderConfig], Obstacle | None]:
  """`unsupported` of an architecture whose embeddings are as wide as its layers."""

  def unsupported(config: EncoderConfig) -> Obstacle | None:
    if config.embedding_size == config.hidden_size:
      return None
    return Obstacle(
      f'its embeddings of {config.embedding_size} are projected to a width of '
      f'{config.hidden_size}, and {model} has no such projection',
      'embedding_size',
      config.hidden_size,
    )

  return unsupported


def activation_unsupported(model: str, config: EncoderConfig) -> Obstacle | None:
  """Why an architecture whose heads have the exact GELU only has no model of a config."""
  if config.activation == 'gelu':
    return None
  reason = f'its activation is {config.activation}, and the heads of {model} have gelu'
  return Obstacle(reason, 'activation', 'gelu')


def exact_gelu_unsupported(model: str) -> Callable[[EncoderConfig], Obstacle | None]:
  """`unsupported` of an architecture to which both of the above apply."""
  return lambda config: (
    activation_unsupported(model, config) or projection_unsupported(model)(config)
  )


def head_of_one_layer(head: Head) -> dict[str, Any] | None:
  """`convert_head` of an architecture whose classifier has a hidden layer with tanh.

  No such layer gives the logits of a classifier without one.
  """
  return head.params if head.kind == 'tagging' else None


def two_sided_head(head: Head) -> dict[str, Any] | None:
  """`convert_head` of an architecture whose classifier has a hidden layer with ReLU or GELU.

  Since x = f(x) - f(-x) for both, a hidden layer [W, -W, 0] and a last layer [1, -1, 0] give the
  logits of W.
  """
  if head.kind in ('tagging', 'span'):
    return head_of_one_layer(head)
  kernel = head.params['dense']['kernel']
  width, labels = kernel.shape
  if 2 * labels > width:
    return None
  hidden = np.zeros((width, width), np.float32)
  hidden[:, :labels] = kernel
  hidden[:, labels : 2 * labels] = -kernel
  last = np.zeros((width, labels), np.float32)
  last[:labels] = np.eye(labels)
  last[labels : 2 * labels] = -np.eye(labels)
  return {
    'hidden': {'kernel': hidden, 'bias': np.zeros(width, np.float32)},
    'dense': {'kernel': last, 'bias': head.params['dense']['bias']},
  }

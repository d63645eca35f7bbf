"""ELECTRA in `transformers` (models/electra/modeling_electra.py)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from electra_jax.interop.hf_architecture import Architecture, TensorTable, nothing_to_add
from electra_jax.interop.hf_config import ConfigFields
from electra_jax.interop.weights import Head
from electra_jax.model.config import EncoderConfig

_WORD = 'embeddings.word_embeddings.weight'
_LAYER = {
  'query': 'attention.self.query',
  'key': 'attention.self.key',
  'value': 'attention.self.value',
  'attention_output': 'attention.output.dense',
  'attention_norm': 'attention.output.LayerNorm',
  'mlp_in': 'intermediate.dense',
  'mlp_output': 'output.dense',
  'mlp_norm': 'output.LayerNorm',
}
_CLASSIFIER = 'classifier'  # a head of tags, or the last layer of multiple choice
_HEADS: dict[str, dict[str, str]] = {
  'encoder': {},
  'discriminator': {
    'dense': 'discriminator_predictions.dense',
    'prediction': 'discriminator_predictions.dense_prediction',
  },
  'generator': {'dense': 'generator_predictions.dense', 'norm': 'generator_predictions.LayerNorm'},
  'classification': {'hidden': 'classifier.dense', 'dense': 'classifier.out_proj'},
  'choice': {'hidden': 'sequence_summary.summary', 'dense': _CLASSIFIER},
  'tagging': {'dense': _CLASSIFIER},
  'span': {'dense': 'qa_outputs'},
}


def _read_config(fields: ConfigFields) -> EncoderConfig:
  fields.require('hidden_act', 'gelu', 'gelu_python')  # both are exact
  fields.require('position_embedding_type', 'absolute')
  fields.require('is_decoder', False)
  fields.require('add_cross_attention', False)
  return fields.encoder(
    family='electra',
    vocab_size=fields.integer('vocab_size', 30522),
    hidden_size=fields.integer('hidden_size', 256),
    embedding_size=fields.integer('embedding_size', 128),
    num_layers=fields.integer('num_hidden_layers', 12),
    num_heads=fields.integer('num_attention_heads', 4),
    intermediate_size=fields.integer('intermediate_size', 1024),
    max_positions=fields.integer('max_position_embeddings', 512),
    type_vocab_size=fields.integer('type_vocab_size', 2),
    layer_norm_eps=fields.number('layer_norm_eps', 1e-12),
    initializer_range=fields.number('initializer_range', 0.02),
    dropout=fields.number('hidden_dropout_prob', 0.1),
    attention_dropout=fields.number('attention_probs_dropout_prob', 0.1),
  )


def _write_config(config: EncoderConfig, ids: Mapping[str, int]) -> dict[str, Any]:
  return {
    'vocab_size': config.vocab_size,
    'embedding_size': config.embedding_size,
    'hidden_size': config.hidden_size,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'intermediate_size': config.intermediate_size,
    'max_position_embeddings': config.max_positions,
    'type_vocab_size': config.type_vocab_size,
    'layer_norm_eps': config.layer_norm_eps,
    'initializer_range': config.initializer_range,
    'hidden_dropout_prob': config.dropout,
    'attention_probs_dropout_prob': config.attention_dropout,
    'classifier_dropout': None,
    'hidden_act': 'gelu',
    'position_embedding_type': 'absolute',
    'pad_token_id': ids.get('pad_id'),
  }


def _heads(names: set[str]) -> set[str]:
  found = {
    kind
    for kind, parts in _HEADS.items()
    if any(f'{part}.weight' in names for part in parts.values() if part != _CLASSIFIER)
  }
  return found or ({'tagging'} if f'{_CLASSIFIER}.weight' in names else set())


def _tensors(config: EncoderConfig, kind: str) -> TensorTable:
  table: TensorTable = {
    _WORD: (('embeddings/word', None),),
    'embeddings.position_embeddings.weight': (('embeddings/position', None),),
    'embeddings.token_type_embeddings.weight': (('embeddings/type', None),),
  }

  def add(path: str, name: str, layer: int | None = None) -> None:
    weight = 'scale' if path.endswith('norm') else 'kernel'
    table[f'{name}.weight'] = ((f'{path}/{weight}', layer),)
    table[f'{name}.bias'] = ((f'{path}/bias', layer),)

  add('embeddings/norm', 'embeddings.LayerNorm')
  if config.embedding_size != config.hidden_size:
    add('encoder/embeddings_project', 'embeddings_project')
  for i in range(config.num_layers):
    for ours, theirs in _LAYER.items():
      add(f'encoder/layers/{ours}', f'encoder.layer.{i}.{theirs}', i)
  for ours, theirs in _HEADS[kind].items():
    add(f'head/{ours}', theirs)
  if kind == 'generator':
    table['generator_lm_head.bias'] = (('head/bias', None),)
  return table


def _convert_head(head: Head) -> dict[str, Any] | None:
  """Converts a head of one dense layer.

  `transformers` has a hidden layer with GELU before the labels. Since x = gelu(x) - gelu(-x), a
  hidden layer [W, -W, 0] and a last layer [1, -1, 0] give the logits of W.
  """
  if head.kind == 'tagging':
    return head.params
  if head.kind == 'span':
    return None
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


ARCHITECTURE = Architecture(
  model_type='electra',
  family='electra',
  prefix='electra.',
  encoder_names=('embeddings.', 'embeddings_project.', 'encoder.'),
  classes={
    'encoder': 'ElectraModel',
    'discriminator': 'ElectraForPreTraining',
    'generator': 'ElectraForMaskedLM',
    'classification': 'ElectraForSequenceClassification',
    'choice': 'ElectraForMultipleChoice',
    'tagging': 'ElectraForTokenClassification',
    'span': 'ElectraForQuestionAnswering',
  },
  read_config=_read_config,
  write_config=_write_config,
  tensors=_tensors,
  heads=_heads,
  copies={
    'generator_lm_head.weight': _WORD,
    'generator_predictions.decoder.weight': _WORD,
    'generator_predictions.bias': 'generator_lm_head.bias',
    'generator_predictions.decoder.bias': 'generator_lm_head.bias',
  },
  buffers=('embeddings.position_ids', 'embeddings.token_type_ids'),
  renamed={'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias'},
  poolings=('cls',),
  discriminator_fields={},
  complete=nothing_to_add,
  unsupported=lambda config: '',
  convert_head=_convert_head,
)

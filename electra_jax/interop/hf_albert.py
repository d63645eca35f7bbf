"""ALBERT in `transformers` (models/albert/modeling_albert.py), with one layer for all."""

from collections.abc import Mapping
from typing import Any

from electra_jax.interop import hf_post_norm
from electra_jax.interop.hf_architecture import Architecture, Obstacle
from electra_jax.interop.hf_config import ConfigFields
from electra_jax.model.config import EncoderConfig

_NAMES = hf_post_norm.Names(
  layers='encoder.albert_layer_groups.0.albert_layers.0.',
  layer={
    'query': 'attention.query',
    'key': 'attention.key',
    'value': 'attention.value',
    'attention_output': 'attention.dense',
    'attention_norm': 'attention.LayerNorm',
    'mlp_in': 'ffn',
    'mlp_output': 'ffn_output',
    'mlp_norm': 'full_layer_layer_norm',
  },
  others={'encoder/embeddings_project': 'encoder.embedding_hidden_mapping_in'},
  heads={
    'encoder': {},
    'discriminator': {'prediction': 'classifier'},
    'generator': {'dense': 'predictions.dense', 'norm': 'predictions.LayerNorm'},
    'classification': {'hidden': 'pooler', 'dense': 'classifier'},
    'choice': {'hidden': 'pooler', 'dense': 'classifier'},
    'tagging': {'dense': 'classifier'},
    'span': {'dense': 'qa_outputs'},
  },
  vocabulary_bias='predictions.bias',
  unused=('pooler.', 'sop_classifier.'),
)


def _read_config(fields: ConfigFields) -> EncoderConfig:
  fields.require('num_hidden_groups', 1)
  fields.require('inner_group_num', 1)
  fields.require('position_embedding_type', 'absolute')
  common = hf_post_norm.common_fields(fields)
  config = fields.encoder(
    family='albert',
    vocab_size=fields.integer('vocab_size', 30000),
    type_vocab_size=fields.integer('type_vocab_size', 2),
    activation=hf_post_norm.read_activation(fields, 'hidden_act', 'gelu_new', 'gelu_tanh', 'gelu'),
    **common
    | {
      'hidden_size': fields.integer('hidden_size', 4096),
      'embedding_size': fields.integer('embedding_size', 128),
      'num_heads': fields.integer('num_attention_heads', 64),
      'intermediate_size': fields.integer('intermediate_size', 16384),
      'dropout': fields.number('hidden_dropout_prob', 0.0),
      'attention_dropout': fields.number('attention_probs_dropout_prob', 0.0),
    },
  )
  if _unsupported(config):
    fields.refuse('embedding_size', config.embedding_size, 'one that differs from hidden_size')
  return config


def _write_config(config: EncoderConfig, ids: Mapping[str, int]) -> dict[str, Any]:
  return hf_post_norm.write_common_fields(config, ids) | {
    'embedding_size': config.embedding_size,
    'type_vocab_size': config.type_vocab_size,
    'num_hidden_groups': 1,
    'inner_group_num': 1,
    'position_embedding_type': 'absolute',
    'classifier_dropout_prob': 0.1,
  }


def _unsupported(config: EncoderConfig) -> Obstacle | None:
  if config.embedding_size != config.hidden_size:
    return None
  return Obstacle(
    f'its embeddings are as wide as its layers, {config.hidden_size}, and ALBERT always has a '
    'projection between them',
    'embedding_size',
    max(1, config.hidden_size // 2),
  )


ARCHITECTURE = Architecture(
  model_type='albert',
  family='albert',
  prefix='albert.',
  encoder_names=('embeddings.', 'encoder.', 'pooler.'),
  classes={
    'encoder': 'AlbertModel',
    # Of earlier exports. Today's have a bare encoder, and the head in a file beside it.
    'discriminator': 'AlbertForTokenClassification',
    'generator': 'AlbertForMaskedLM',
    'classification': 'AlbertForSequenceClassification',
    'choice': 'AlbertForMultipleChoice',
    'tagging': 'AlbertForTokenClassification',
    'span': 'AlbertForQuestionAnswering',
  },
  read_config=_read_config,
  write_config=_write_config,
  tensors=_NAMES.tensors,
  heads=_NAMES.found_heads,
  copies={
    'predictions.decoder.weight': hf_post_norm.WORD,
    'predictions.decoder.bias': 'predictions.bias',
  },
  repeated=('predictions.decoder.bias',),
  buffers=('embeddings.position_ids', 'embeddings.token_type_ids'),
  renamed=hf_post_norm.RENAMED,
  poolings=('cls',),
  head_beside=True,
  complete=_NAMES.remove_unused,
  unsupported=_unsupported,
  convert_head=hf_post_norm.head_of_one_layer,
  other_classes={'AlbertForPreTraining': 'generator'},
)

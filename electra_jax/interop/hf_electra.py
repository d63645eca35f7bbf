"""ELECTRA in `transformers` (models/electra/modeling_electra.py)."""

import functools
from collections.abc import Mapping
from typing import Any

from electra_jax.interop import hf_post_norm
from electra_jax.interop.hf_architecture import Architecture, TensorTable, nothing_to_add
from electra_jax.interop.hf_config import ConfigFields
from electra_jax.model.config import EncoderConfig

_CLASSIFIER = 'classifier'  # a head of tags, or the last layer of multiple choice
_PROJECTION = 'embeddings_project'
_NAMES = hf_post_norm.Names(
  layer=hf_post_norm.BERT_LAYER,
  heads={
    'encoder': {},
    'discriminator': {
      'dense': 'discriminator_predictions.dense',
      'prediction': 'discriminator_predictions.dense_prediction',
    },
    'generator': {
      'dense': 'generator_predictions.dense',
      'norm': 'generator_predictions.LayerNorm',
    },
    'classification': {'hidden': 'classifier.dense', 'dense': 'classifier.out_proj'},
    'choice': {'hidden': 'sequence_summary.summary', 'dense': _CLASSIFIER},
    'tagging': {'dense': _CLASSIFIER},
    'span': {'dense': 'qa_outputs'},
  },
  vocabulary_bias='generator_lm_head.bias',
)


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
    for kind, parts in _NAMES.heads.items()
    if any(f'{part}.weight' in names for part in parts.values() if part != _CLASSIFIER)
  }
  return found or ({'tagging'} if f'{_CLASSIFIER}.weight' in names else set())


def _tensors(config: EncoderConfig, kind: str) -> TensorTable:
  table = _NAMES.tensors(config, kind)
  if config.embedding_size != config.hidden_size:
    path = f'encoder/{_PROJECTION}'
    table[f'{_PROJECTION}.weight'] = ((f'{path}/kernel', None),)
    table[f'{_PROJECTION}.bias'] = ((f'{path}/bias', None),)
  return table


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
    'generator_lm_head.weight': hf_post_norm.WORD,
    'generator_predictions.decoder.weight': hf_post_norm.WORD,
    'generator_predictions.bias': 'generator_lm_head.bias',
    'generator_predictions.decoder.bias': 'generator_lm_head.bias',
  },
  buffers=('embeddings.position_ids', 'embeddings.token_type_ids'),
  renamed=hf_post_norm.RENAMED,
  poolings=('cls',),
  head_beside=False,
  complete=nothing_to_add,
  unsupported=functools.partial(hf_post_norm.activation_unsupported, 'ELECTRA'),
  convert_head=hf_post_norm.two_sided_head,
)

"""BERT in `transformers` (models/bert/modeling_bert.py)."""

from collections.abc import Mapping
from typing import Any

from electra_jax.interop import hf_post_norm
from electra_jax.interop.hf_architecture import Architecture
from electra_jax.interop.hf_config import ConfigFields
from electra_jax.model.config import EncoderConfig

_NAMES = hf_post_norm.Names(
  layer=hf_post_norm.BERT_LAYER,
  heads={
    'encoder': {},
    'discriminator': {'prediction': 'classifier'},
    'generator': {
      'dense': 'cls.predictions.transform.dense',
      'norm': 'cls.predictions.transform.LayerNorm',
    },
    'classification': {'hidden': 'pooler.dense', 'dense': 'classifier'},
    'choice': {'hidden': 'pooler.dense', 'dense': 'classifier'},
    'tagging': {'dense': 'classifier'},
    'span': {'dense': 'qa_outputs'},
  },
  vocabulary_bias='cls.predictions.bias',
  unused=('pooler.', 'cls.seq_relationship.'),
)


def _read_config(fields: ConfigFields) -> EncoderConfig:
  fields.require('position_embedding_type', 'absolute')
  return fields.encoder(
    family='bert',
    vocab_size=fields.integer('vocab_size', 30522),
    type_vocab_size=fields.integer('type_vocab_size', 2),
    activation=hf_post_norm.read_activation(fields, 'hidden_act', 'gelu', 'gelu', 'gelu_tanh'),
    **hf_post_norm.common_fields(fields),
  )


def _write_config(config: EncoderConfig, ids: Mapping[str, int]) -> dict[str, Any]:
  return hf_post_norm.write_common_fields(config, ids) | {
    'type_vocab_size': config.type_vocab_size,
    'position_embedding_type': 'absolute',
    'classifier_dropout': None,
  }


ARCHITECTURE = Architecture(
  model_type='bert',
  family='bert',
  prefix='bert.',
  encoder_names=('embeddings.', 'encoder.', 'pooler.'),
  classes={
    'encoder': 'BertModel',
    # Of earlier exports. Today's have a bare encoder, and the head in a file beside it.
    'discriminator': 'BertForTokenClassification',
    'generator': 'BertForMaskedLM',
    'classification': 'BertForSequenceClassification',
    'choice': 'BertForMultipleChoice',
    'tagging': 'BertForTokenClassification',
    'span': 'BertForQuestionAnswering',
  },
  read_config=_read_config,
  write_config=_write_config,
  tensors=_NAMES.tensors,
  heads=_NAMES.found_heads,
  copies={
    'cls.predictions.decoder.weight': hf_post_norm.WORD,
    'cls.predictions.decoder.bias': 'cls.predictions.bias',
  },
  buffers=('embeddings.position_ids', 'embeddings.token_type_ids'),
  renamed=hf_post_norm.RENAMED,
  poolings=('cls',),
  head_beside=True,
  complete=_NAMES.remove_unused,
  unsupported=hf_post_norm.projection_unsupported('BERT'),
  convert_head=hf_post_norm.head_of_one_layer,
  other_classes={'BertForPreTraining': 'generator', 'BertLMHeadModel': 'generator'},
)

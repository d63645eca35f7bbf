"""RoBERTa, XLM-RoBERTa and CamemBERT in `transformers` (models/roberta/modeling_roberta.py).

Positions are counted from the row after that of padding; the rows before it are never used. Here
the table begins with the first position, and rows of zeros are added when it is written.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from electra_jax.interop import hf_post_norm
from electra_jax.interop.hf_architecture import Architecture
from electra_jax.interop.hf_config import ConfigFields
from electra_jax.model.config import EncoderConfig

_PAD = 1  # id of the padding token in the published vocabularies
_NAMES = hf_post_norm.Names(
  layer=hf_post_norm.BERT_LAYER,
  heads={
    'encoder': {},
    'discriminator': {'prediction': 'classifier'},
    'generator': {'dense': 'lm_head.dense', 'norm': 'lm_head.layer_norm'},
    'classification': {'hidden': 'classifier.dense', 'dense': 'classifier.out_proj'},
    'choice': {'hidden': 'pooler.dense', 'dense': 'classifier'},
    'tagging': {'dense': 'classifier'},
    'span': {'dense': 'qa_outputs'},
  },
  vocabulary_bias='lm_head.bias',
  unused=('pooler.',),
)


def _first_row(fields: ConfigFields) -> int:
  return fields.integer('pad_token_id', _PAD) + 1


def _complete(
  fields: ConfigFields, config: EncoderConfig, kind: str, tensors: dict[str, np.ndarray]
) -> list[str]:
  if hf_post_norm.POSITION in tensors:
    tensors[hf_post_norm.POSITION] = tensors[hf_post_norm.POSITION][_first_row(fields) :]
  return _NAMES.remove_unused(fields, config, kind, tensors)


def _finish(tensors: dict[str, np.ndarray], ids: Mapping[str, int]) -> None:
  for name, table in tensors.items():
    if name.endswith(hf_post_norm.POSITION):
      tensors[name] = np.pad(table, ((ids.get('pad_id', _PAD) + 1, 0), (0, 0)))


def _write_config(config: EncoderConfig, ids: Mapping[str, int]) -> dict[str, Any]:
  pad = ids.get('pad_id', _PAD)
  return hf_post_norm.write_common_fields(config, ids) | {
    'type_vocab_size': config.type_vocab_size,
    'pad_token_id': pad,
    'max_position_embeddings': config.max_positions + pad + 1,
    'position_embedding_type': 'absolute',
    'classifier_dropout': None,
  }


def _architecture(model_type: str, name: str) -> Architecture:
  """The architecture of a model type with the classes of a name."""

  def read_config(fields: ConfigFields) -> EncoderConfig:
    fields.require('position_embedding_type', 'absolute')
    common = hf_post_norm.common_fields(fields)
    rows = fields.integer('max_position_embeddings', 512) - _first_row(fields)
    return fields.encoder(
      family=model_type,
      vocab_size=fields.integer('vocab_size', 50265),
      type_vocab_size=fields.integer('type_vocab_size', 2),
      # The head of the masked language model has the exact GELU whatever the field.
      activation=hf_post_norm.read_activation(fields, 'hidden_act', 'gelu', 'gelu'),
      **common | {'max_positions': rows},
    )

  return Architecture(
    model_type=model_type,
    family=model_type,
    prefix='roberta.',
    encoder_names=('embeddings.', 'encoder.', 'pooler.'),
    classes={
      'encoder': f'{name}Model',
      # Of earlier exports. Today's have a bare encoder, and the head in a file beside it.
      'discriminator': f'{name}ForTokenClassification',
      'generator': f'{name}ForMaskedLM',
      'classification': f'{name}ForSequenceClassification',
      'choice': f'{name}ForMultipleChoice',
      'tagging': f'{name}ForTokenClassification',
      'span': f'{name}ForQuestionAnswering',
    },
    read_config=read_config,
    write_config=_write_config,
    tensors=_NAMES.tensors,
    heads=_NAMES.found_heads,
    copies={'lm_head.decoder.weight': hf_post_norm.WORD, 'lm_head.decoder.bias': 'lm_head.bias'},
    repeated=('lm_head.decoder.bias',),
    buffers=('embeddings.position_ids', 'embeddings.token_type_ids'),
    renamed=hf_post_norm.RENAMED,
    poolings=('cls',),
    head_beside=True,
    complete=_complete,
    unsupported=hf_post_norm.exact_gelu_unsupported(name),
    convert_head=hf_post_norm.head_of_one_layer,
    finish=_finish,
  )


ROBERTA = _architecture('roberta', 'Roberta')
XLM_ROBERTA = _architecture('xlm-roberta', 'XLMRoberta')
CAMEMBERT = _architecture('camembert', 'Camembert')

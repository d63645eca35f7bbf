"""DeBERTa-v3 in `transformers` (models/deberta_v2/modeling_deberta_v2.py), and its own head.

`transformers` has no class for its discriminator. Its tensors are named as in the published files,
whose encoder AutoModel opens.
"""

from collections.abc import Mapping
from typing import Any

from electra_jax.interop import hf_post_norm
from electra_jax.interop.hf_architecture import Architecture
from electra_jax.interop.hf_config import ConfigFields
from electra_jax.model.config import EncoderConfig

_LM_HEAD = 'cls.predictions.transform'
_NAMES = hf_post_norm.Names(
  layer=hf_post_norm.BERT_LAYER
  | {
    'query': 'attention.self.query_proj',
    'key': 'attention.self.key_proj',
    'value': 'attention.self.value_proj',
  },
  tables={'encoder/distances': 'encoder.rel_embeddings.weight'},
  others={'encoder/distances_norm': 'encoder.LayerNorm'},
  heads={
    'encoder': {},
    'discriminator': {
      'norm': 'mask_predictions.LayerNorm',
      'dense': 'mask_predictions.dense',
      'prediction': 'mask_predictions.classifier',
    },
    'generator': {'dense': f'{_LM_HEAD}.dense', 'norm': f'{_LM_HEAD}.LayerNorm'},
    'classification': {'hidden': 'pooler.dense', 'dense': 'classifier'},
    'choice': {'hidden': 'pooler.dense', 'dense': 'classifier'},
    'tagging': {'dense': 'classifier'},
    'span': {'dense': 'qa_outputs'},
  },
  vocabulary_bias='cls.predictions.bias',
  # Published discriminators hold a head of the masked language model that they do not use, a table
  # of positions, and the differences (`_weight`) from the generator's embeddings.
  unused=(
    'cls.predictions.',
    'mask_predictions.',
    'pooler.',
    'embeddings.position_embeddings.',
    'embeddings.word_embeddings._weight',
  ),
)
_POSITION_TERMS = ('c2p', 'p2c')


def _found_heads(names: set[str]) -> set[str]:
  heads = _NAMES.found_heads(names)
  return {'discriminator'} if 'mask_predictions.classifier.weight' in names else heads


def _read_config(fields: ConfigFields) -> EncoderConfig:
  fields.require('relative_attention', True)
  fields.require('share_att_key', True)
  fields.require('norm_rel_ebd', 'layer_norm')
  fields.require('position_biased_input', False)
  fields.require('type_vocab_size', 0)
  fields.require('conv_kernel_size', 0)
  fields.require('pooler_hidden_act', 'gelu')
  terms = fields.get('pos_att_type', [])
  found = terms.lower().split('|') if isinstance(terms, str) else terms
  if not isinstance(found, list) or sorted(map(str, found)) != sorted(_POSITION_TERMS):
    fields.refuse('pos_att_type', terms, 'c2p and p2c')
  common = hf_post_norm.common_fields(fields)
  if (fields.get('embedding_size', common['hidden_size'])) != common['hidden_size']:
    fields.refuse('embedding_size', fields.get('embedding_size'), 'that of hidden_size')
  longest = fields.integer('max_relative_positions', -1)
  return fields.encoder(
    family='deberta-v2',
    vocab_size=fields.integer('vocab_size', 128100),
    position_buckets=fields.integer('position_buckets', -1),
    activation=hf_post_norm.read_activation(fields, 'hidden_act', 'gelu', 'gelu', 'gelu_tanh'),
    **common
    | {
      'max_positions': longest if longest > 0 else common['max_positions'],
      'layer_norm_eps': fields.number('layer_norm_eps', 1e-7),
    },
  )


def _write_config(config: EncoderConfig, ids: Mapping[str, int]) -> dict[str, Any]:
  return hf_post_norm.write_common_fields(config, ids) | {
    'relative_attention': True,
    'position_buckets': config.position_buckets,
    'max_relative_positions': config.max_positions,
    'share_att_key': True,
    'norm_rel_ebd': 'layer_norm',
    'pos_att_type': '|'.join(_POSITION_TERMS),
    'position_biased_input': False,
    'type_vocab_size': 0,
    'pooler_hidden_act': 'gelu',
    'pooler_hidden_size': config.hidden_size,
    'pooler_dropout': 0,
    'legacy': True,
  }


ARCHITECTURE = Architecture(
  model_type='deberta-v2',
  family='deberta-v2',
  prefix='deberta.',
  encoder_names=('embeddings.', 'encoder.'),
  classes={
    'encoder': 'DebertaV2Model',
    'discriminator': 'DebertaV2Model',
    'generator': 'DebertaV2ForMaskedLM',
    'classification': 'DebertaV2ForSequenceClassification',
    'choice': 'DebertaV2ForMultipleChoice',
    'tagging': 'DebertaV2ForTokenClassification',
    'span': 'DebertaV2ForQuestionAnswering',
  },
  read_config=_read_config,
  write_config=_write_config,
  tensors=_NAMES.tensors,
  heads=_found_heads,
  copies={
    'cls.predictions.decoder.weight': hf_post_norm.WORD,
    'cls.predictions.decoder.bias': 'cls.predictions.bias',
  },
  buffers=('embeddings.position_ids',),
  renamed=hf_post_norm.RENAMED
  | {
    'lm_predictions.lm_head.dense': f'{_LM_HEAD}.dense',
    'lm_predictions.lm_head.LayerNorm': f'{_LM_HEAD}.LayerNorm',
    'lm_predictions.lm_head.bias': 'cls.predictions.bias',
  },
  poolings=('cls',),
  head_beside=False,
  complete=_NAMES.remove_unused,
  unsupported=hf_post_norm.projection_unsupported('DeBERTa-v3'),
  convert_head=hf_post_norm.two_sided_head,
)

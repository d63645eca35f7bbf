"""ModernBERT in `transformers` (models/modernbert/modeling_modernbert.py)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from electra_jax.errors import UserError
from electra_jax.interop import hf_post_norm
from electra_jax.interop.hf_architecture import Architecture, Part, TensorTable
from electra_jax.interop.hf_config import ConfigFields
from electra_jax.model.config import EncoderConfig

_WORD = 'embeddings.tok_embeddings.weight'
_GLOBAL = 'full_attention'
_LOCAL = 'sliding_attention'


def _read_config(fields: ConfigFields) -> EncoderConfig:
  for name in ('norm_bias', 'attention_bias', 'mlp_bias', 'classifier_bias'):
    fields.require(name, False)
  for name in ('hidden_activation', 'classifier_activation'):
    fields.require(name, 'gelu', 'gelu_python')
  hidden = fields.integer('hidden_size', 768)
  layers = fields.integer('num_hidden_layers', 22)
  global_theta, local_theta = _rope_thetas(fields)
  return fields.encoder(
    family='modern',
    vocab_size=fields.integer('vocab_size', 50368),
    hidden_size=hidden,
    embedding_size=hidden,
    num_layers=layers,
    num_heads=fields.integer('num_attention_heads', 12),
    intermediate_size=fields.integer('intermediate_size', 1152),
    max_positions=fields.integer('max_position_embeddings', 8192),
    layer_norm_eps=fields.number('norm_eps', 1e-5),
    initializer_range=fields.number('initializer_range', 0.02),
    dropout=max(fields.number('embedding_dropout', 0.0), fields.number('mlp_dropout', 0.0)),
    attention_dropout=fields.number('attention_dropout', 0.0),
    global_every=_global_every(fields, layers),
    local_window=fields.integer('local_attention', 128),
    global_rope_theta=global_theta,
    local_rope_theta=local_theta,
  )


def _global_every(fields: ConfigFields, layers: int) -> int:
  """Reads `layer_types`, or `global_attn_every_n_layers` of releases before 5."""
  older = fields.integer('global_attn_every_n_layers', 3)
  types = fields.get('layer_types')
  if types is None:
    return older
  if not isinstance(types, list) or len(types) != layers:
    raise UserError(
      f'{fields.file}: layer_types is {types!r}; expected a list with the type of each of the '
      f'{layers} layers of num_hidden_layers.'
    )
  # With few layers, several values are possible; the older field is preferred.
  candidates: list[int] = [older, *range(1, layers + 1)]
  for every in candidates:
    if every > 0 and types == [_LOCAL if i % every else _GLOBAL for i in range(layers)]:
      return every
  fields.refuse(
    'layer_types',
    types,
    f'{_GLOBAL} in every n-th layer, starting with the first, and {_LOCAL} in the others',
  )


def _rope_thetas(fields: ConfigFields) -> tuple[float, float]:
  """Reads `rope_parameters`, or two fields of releases before 5."""
  global_theta = fields.number('global_rope_theta', 160_000.0)
  local_theta = fields.number('local_rope_theta', 10_000.0)
  if fields.values.get('local_rope_theta', 0) is None:  # null was the global value then
    local_theta = global_theta
  kinds = fields.group('rope_parameters')

  def theta(kind: str, default: float) -> float:
    inner = kinds.group(kind)
    inner.require('rope_type', 'default')
    return inner.number('rope_theta', default)

  found = theta(_GLOBAL, global_theta), theta(_LOCAL, local_theta)
  scaling = fields.group('rope_scaling')
  scaling.require('rope_type', 'default')
  scaling.require('type', 'default')
  return found


def _write_config(config: EncoderConfig, ids: Mapping[str, int]) -> dict[str, Any]:
  """Returns the fields of current releases and of those before 5."""
  types = [_LOCAL if i % config.global_every else _GLOBAL for i in range(config.num_layers)]
  thetas = {_GLOBAL: config.global_rope_theta, _LOCAL: config.local_rope_theta}
  rope = {kind: {'rope_type': 'default', 'rope_theta': theta} for kind, theta in thetas.items()}
  return {
    'vocab_size': config.vocab_size,
    'hidden_size': config.hidden_size,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'intermediate_size': config.intermediate_size,
    'max_position_embeddings': config.max_positions,
    'norm_eps': config.layer_norm_eps,
    'initializer_range': config.initializer_range,
    'embedding_dropout': config.dropout,
    'mlp_dropout': config.dropout,
    'attention_dropout': config.attention_dropout,
    'local_attention': config.local_window,
    'layer_types': types,
    'rope_parameters': rope,
    'global_attn_every_n_layers': config.global_every,
    'global_rope_theta': config.global_rope_theta,
    'local_rope_theta': config.local_rope_theta,
    'norm_bias': False,
    'attention_bias': False,
    'mlp_bias': False,
    'classifier_bias': False,
    'decoder_bias': True,
    'hidden_activation': 'gelu',
    'classifier_activation': 'gelu',
    'classifier_dropout': 0.0,
    'classifier_pooling': 'cls',
    # The defaults are ids of ModernBERT's own vocabulary, which may be outside of this one.
    'pad_token_id': ids.get('pad_id'),
    'cls_token_id': ids.get('cls_id'),
    'bos_token_id': ids.get('cls_id'),
    'sep_token_id': ids.get('sep_id'),
    'eos_token_id': ids.get('sep_id'),
  }


def _heads(names: set[str]) -> set[str]:
  if 'classifier.weight' in names:
    return {'discriminator', 'classification', 'choice', 'tagging', 'span'}
  return {'generator'} if {'decoder.bias', 'decoder.weight', 'head.dense.weight'} & names else set()


def _tensors(config: EncoderConfig, kind: str) -> TensorTable:
  table: TensorTable = {
    _WORD: (('embeddings/word', None),),
    'embeddings.norm.weight': (('embeddings/norm/scale', None),),
  }
  for i in range(config.num_layers):
    table |= _layer_tensors(i, config.num_layers)
  if kind == 'encoder':
    return table
  fine_tuned = kind not in ('discriminator', 'generator')
  table |= {
    'head.dense.weight': ((f'head/{"hidden" if fine_tuned else "dense"}/kernel', None),),
    'head.norm.weight': (('head/norm/scale', None),),
  }
  if kind == 'generator':
    return table | {'decoder.bias': (('head/bias', None),)}
  last = 'dense' if fine_tuned else 'prediction'
  return table | {
    'classifier.weight': ((f'head/{last}/kernel', None),),
    'classifier.bias': ((f'head/{last}/bias', None),),
  }


def _layer_tensors(i: int, layers: int) -> TensorTable:
  def part(name: str) -> Part:
    return (f'encoder/layers/{name}', i)

  # Our layers contain the norm after them, theirs the norm before them.
  next_norm = f'layers.{i + 1}.attn_norm.weight' if i + 1 < layers else 'final_norm.weight'
  return {
    f'layers.{i}.attn.Wqkv.weight': (
      part('query/kernel'),
      part('key/kernel'),
      part('value/kernel'),
    ),
    f'layers.{i}.attn.Wo.weight': (part('attention_output/kernel'),),
    f'layers.{i}.mlp_norm.weight': (part('mlp_norm/scale'),),
    f'layers.{i}.mlp.Wi.weight': (part('mlp_in/kernel'), part('mlp_gate/kernel')),
    f'layers.{i}.mlp.Wo.weight': (part('mlp_output/kernel'),),
    next_norm: (part('next_norm/scale'),),
  }


def _complete(
  fields: ConfigFields, config: EncoderConfig, kind: str, tensors: dict[str, np.ndarray]
) -> list[str]:
  notes = []
  if kind == 'generator' and fields.get('decoder_bias') is False:
    tensors.setdefault('decoder.bias', np.zeros(config.vocab_size, np.float32))
    notes.append('has no bias over the vocabulary: the bias is initialized to zero')
  if fields.get('embedding_dropout', 0.0) != fields.get('mlp_dropout', 0.0):
    notes.append(
      'has different dropout rates for embeddings and feed-forward layers: the larger, '
      f'{config.dropout:g}, is used for both'
    )
  return notes


ARCHITECTURE = Architecture(
  model_type='modernbert',
  family='modern',
  prefix='model.',
  encoder_names=('embeddings.', 'layers.', 'final_norm.'),
  classes={
    'encoder': 'ModernBertModel',
    # Of earlier exports. Today's have a bare encoder, and the head in a file beside it.
    'discriminator': 'ModernBertForTokenClassification',
    'generator': 'ModernBertForMaskedLM',
    'classification': 'ModernBertForSequenceClassification',
    'choice': 'ModernBertForMultipleChoice',
    'tagging': 'ModernBertForTokenClassification',
    'span': 'ModernBertForQuestionAnswering',
  },
  read_config=_read_config,
  write_config=_write_config,
  tensors=_tensors,
  heads=_heads,
  copies={'decoder.weight': _WORD},
  buffers=('embeddings.position_ids', 'rotary_emb.inv_freq'),
  renamed={},
  poolings=('cls', 'mean'),
  head_beside=True,
  complete=_complete,
  unsupported=hf_post_norm.exact_gelu_unsupported('ModernBERT'),
  convert_head=lambda head: None,
)

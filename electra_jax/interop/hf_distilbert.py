"""DistilBERT in `transformers` (models/distilbert/modeling_distilbert.py)."""

from collections.abc import Mapping
from typing import Any

from electra_jax.interop import hf_post_norm
from electra_jax.interop.hf_architecture import Architecture, Obstacle
from electra_jax.interop.hf_config import ConfigFields
from electra_jax.model.config import EncoderConfig

_EPSILON = 1e-12  # of all its norms; there is no field
_NAMES = hf_post_norm.Names(
  layers='transformer.layer.{}.',
  layer={
    'query': 'attention.q_lin',
    'key': 'attention.k_lin',
    'value': 'attention.v_lin',
    'attention_output': 'attention.out_lin',
    'attention_norm': 'sa_layer_norm',
    'mlp_in': 'ffn.lin1',
    'mlp_output': 'ffn.lin2',
    'mlp_norm': 'output_layer_norm',
  },
  heads={
    'encoder': {},
    'discriminator': {'prediction': 'classifier'},
    'generator': {'dense': 'vocab_transform', 'norm': 'vocab_layer_norm'},
    'classification': {'hidden': 'pre_classifier', 'dense': 'classifier'},
    'choice': {'hidden': 'pre_classifier', 'dense': 'classifier'},
    'tagging': {'dense': 'classifier'},
    'span': {'dense': 'qa_outputs'},
  },
  vocabulary_bias='vocab_projector.bias',
)


def _read_config(fields: ConfigFields) -> EncoderConfig:
  hidden = fields.integer('dim', 768)
  return fields.encoder(
    family='distilbert',
    vocab_size=fields.integer('vocab_size', 30522),
    hidden_size=hidden,
    embedding_size=hidden,
    num_layers=fields.integer('n_layers', 6),
    num_heads=fields.integer('n_heads', 12),
    intermediate_size=fields.integer('hidden_dim', 3072),
    max_positions=fields.integer('max_position_embeddings', 512),
    layer_norm_eps=_EPSILON,
    initializer_range=fields.number('initializer_range', 0.02),
    dropout=fields.number('dropout', 0.1),
    attention_dropout=fields.number('attention_dropout', 0.1),
    activation=hf_post_norm.read_activation(fields, 'activation', 'gelu', 'gelu', 'gelu_tanh'),
  )


def _write_config(config: EncoderConfig, ids: Mapping[str, int]) -> dict[str, Any]:
  return {
    'vocab_size': config.vocab_size,
    'dim': config.hidden_size,
    'n_layers': config.num_layers,
    'n_heads': config.num_heads,
    'hidden_dim': config.intermediate_size,
    'max_position_embeddings': config.max_positions,
    'initializer_range': config.initializer_range,
    'dropout': config.dropout,
    'attention_dropout': config.attention_dropout,
    'activation': hf_post_norm.ACTIVATIONS[config.activation][0],
    'sinusoidal_pos_embds': False,
    'pad_token_id': ids.get('pad_id'),
  }


def _unsupported(config: EncoderConfig) -> Obstacle | None:
  if config.layer_norm_eps != _EPSILON:
    reason = f'its layer_norm_eps is {config.layer_norm_eps:g}, and that of DistilBERT {_EPSILON:g}'
    return Obstacle(reason, 'layer_norm_eps', _EPSILON)
  return hf_post_norm.projection_unsupported('DistilBERT')(config)


ARCHITECTURE = Architecture(
  model_type='distilbert',
  family='distilbert',
  prefix='distilbert.',
  encoder_names=('embeddings.', 'transformer.'),
  classes={
    'encoder': 'DistilBertModel',
    # Of earlier exports. Today's have a bare encoder, and the head in a file beside it.
    'discriminator': 'DistilBertForTokenClassification',
    'generator': 'DistilBertForMaskedLM',
    'classification': 'DistilBertForSequenceClassification',
    'choice': 'DistilBertForMultipleChoice',
    'tagging': 'DistilBertForTokenClassification',
    'span': 'DistilBertForQuestionAnswering',
  },
  read_config=_read_config,
  write_config=_write_config,
  tensors=_NAMES.tensors,
  heads=_NAMES.found_heads,
  copies={'vocab_projector.weight': hf_post_norm.WORD},
  buffers=('embeddings.position_ids',),
  renamed=hf_post_norm.RENAMED,
  poolings=('cls',),
  head_beside=True,
  complete=_NAMES.remove_unused,
  unsupported=_unsupported,
  convert_head=hf_post_norm.two_sided_head,
)

"""ELECTRA as `transformers` has it: the fields of its config, the names of its tensors.

A table of names tells of each of their tensors the parts that it is made of, one after the other along the first axis: the path
of one of our parameters and, where the parameters of all layers are stacked, the layer. Paths begin with embeddings, encoder or
head. Their matrices are (out, in), ours (in, out).
"""

from electra_jax.interop.hf_fields import Fields
from electra_jax.model.config import EncoderConfig

MODEL_TYPE = 'electra'
PREFIX = 'electra.'  # of the encoder's tensors, but in a file that has no head
CLASSES = {
  'encoder': 'ElectraModel',
  'discriminator': 'ElectraForPreTraining',
  'generator': 'ElectraForMaskedLM',
  'classification': 'ElectraForSequenceClassification',
  'tagging': 'ElectraForTokenClassification',
  'span': 'ElectraForQuestionAnswering',
}
WORD = 'embeddings.word_embeddings.weight'
# What older releases wrote beside: copies, which have to agree.
COPIES = {
  'generator_lm_head.weight': WORD,
  'generator_predictions.decoder.weight': WORD,
  'generator_predictions.bias': 'generator_lm_head.bias',
  'generator_predictions.decoder.bias': 'generator_lm_head.bias',
}
BUFFERS = ('embeddings.position_ids', 'embeddings.token_type_ids')  # no parameters

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
_HEADS = {
  'encoder': {},
  'discriminator': {
    'dense': 'discriminator_predictions.dense',
    'prediction': 'discriminator_predictions.dense_prediction',
  },
  'generator': {'dense': 'generator_predictions.dense', 'norm': 'generator_predictions.LayerNorm'},
  'classification': {'hidden': 'classifier.dense', 'dense': 'classifier.out_proj'},
  'tagging': {'dense': 'classifier'},
  'span': {'dense': 'qa_outputs'},
}


def encoder_config(fields: Fields) -> EncoderConfig:
  """Raises UserError that names a field whose value we do not have."""
  fields.need('hidden_act', 'gelu', 'gelu_python')  # both are exact
  fields.need('position_embedding_type', 'absolute')
  fields.need('is_decoder', False)
  fields.need('add_cross_attention', False)
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


def config_json(c: EncoderConfig, ids: dict) -> dict:
  """The other way. `ids` of special tokens: of pad_id alone there is a field."""
  return {
    'model_type': MODEL_TYPE,
    'vocab_size': c.vocab_size,
    'embedding_size': c.embedding_size,
    'hidden_size': c.hidden_size,
    'num_hidden_layers': c.num_layers,
    'num_attention_heads': c.num_heads,
    'intermediate_size': c.intermediate_size,
    'max_position_embeddings': c.max_positions,
    'type_vocab_size': c.type_vocab_size,
    'layer_norm_eps': c.layer_norm_eps,
    'initializer_range': c.initializer_range,
    'hidden_dropout_prob': c.dropout,
    'attention_probs_dropout_prob': c.attention_dropout,
    'classifier_dropout': None,
    'hidden_act': 'gelu',
    'position_embedding_type': 'absolute',
    'pad_token_id': ids.get('pad_id'),
  }


def heads(names: set[str]) -> set[str]:
  """Those of CLASSES that the tensors' names, without the prefix, could be of; none for an encoder without a head."""
  return {
    kind
    for kind, parts in _HEADS.items()
    if any(f'{part}.weight' in names for part in parts.values())
  }


def tensors(c: EncoderConfig, kind: str) -> dict[str, tuple]:
  """Names, without the prefix, and parts of all tensors of an encoder with a head of CLASSES; see above."""
  table = {
    WORD: (('embeddings/word', None),),
    'embeddings.position_embeddings.weight': (('embeddings/position', None),),
    'embeddings.token_type_embeddings.weight': (('embeddings/type', None),),
  }

  def add(path, name, layer=None):
    weight = 'scale' if path.endswith('norm') else 'kernel'
    table[f'{name}.weight'] = ((f'{path}/{weight}', layer),)
    table[f'{name}.bias'] = ((f'{path}/bias', layer),)

  add('embeddings/norm', 'embeddings.LayerNorm')
  if c.embedding_size != c.hidden_size:
    add('encoder/embeddings_project', 'embeddings_project')
  for i in range(c.num_layers):
    for ours, theirs in _LAYER.items():
      add(f'encoder/layers/{ours}', f'encoder.layer.{i}.{theirs}', i)
  for ours, theirs in _HEADS[kind].items():
    add(f'head/{ours}', theirs)
  if kind == 'generator':
    table['generator_lm_head.bias'] = (('head/bias', None),)
  return table

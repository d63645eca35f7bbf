"""ModernBERT as `transformers` has it: the fields of its config, the names of its tensors, in tables as in hf_electra.py."""

from electra_jax.errors import UserError
from electra_jax.interop.hf_fields import Fields
from electra_jax.model.config import EncoderConfig

MODEL_TYPE = 'modernbert'
PREFIX = 'model.'
# There is no class for our discriminator: it is a classifier of tokens that has one label, whose hidden layers are the same.
CLASSES = {
  'encoder': 'ModernBertModel',
  'discriminator': 'ModernBertForTokenClassification',
  'generator': 'ModernBertForMaskedLM',
  'classification': 'ModernBertForSequenceClassification',
  'tagging': 'ModernBertForTokenClassification',
  'span': 'ModernBertForQuestionAnswering',
}
WORD = 'embeddings.tok_embeddings.weight'
COPIES = {'decoder.weight': WORD}
BUFFERS = ('embeddings.position_ids', 'rotary_emb.inv_freq')
_GLOBAL, _LOCAL = 'full_attention', 'sliding_attention'


def encoder_config(fields: Fields) -> EncoderConfig:
  """Raises UserError that names a field whose value we do not have."""
  for name in ('norm_bias', 'attention_bias', 'mlp_bias', 'classifier_bias'):
    fields.need(name, False)
  for name in ('hidden_activation', 'classifier_activation'):
    fields.need(name, 'gelu', 'gelu_python')
  hidden, layers = fields.integer('hidden_size', 768), fields.integer('num_hidden_layers', 22)
  far, near = _thetas(fields)
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
    global_rope_theta=far,
    local_rope_theta=near,
  )


def _global_every(fields, layers):
  """From `layer_types`, or from `global_attn_every_n_layers` of releases before 5."""
  older = fields.integer('global_attn_every_n_layers', 3)
  types = fields.get('layer_types')
  if types is None:
    return older
  if not isinstance(types, list) or len(types) != layers:
    raise UserError(
      f'{fields.file}: layer_types does not tell of each of the {layers} layers of num_hidden_layers.'
    )
  # Several may do where there are few layers.
  for every in (older, *range(1, layers + 1)):
    if every > 0 and types == [_LOCAL if i % every else _GLOBAL for i in range(layers)]:
      return every
  fields.refuse(
    'layer_types', types, f'{_GLOBAL} in each n-th layer from the first on, {_LOCAL} in the others'
  )


def _thetas(fields):
  """From `rope_parameters`, or from two fields of releases before 5."""
  far = fields.number('global_rope_theta', 160_000.0)
  near = fields.values.get('local_rope_theta', 10_000.0)
  near = (
    far if near is None else fields.number('local_rope_theta', 10_000.0)
  )  # null meant so in those releases
  kinds = fields.group('rope_parameters')
  found = []
  for kind, theta in ((_GLOBAL, far), (_LOCAL, near)):
    inner = kinds.group(kind)
    inner.need('rope_type', 'default')
    found.append(inner.number('rope_theta', theta))
  scaling = fields.group('rope_scaling')
  scaling.need('rope_type', 'default')
  scaling.need('type', 'default')
  return found


def config_json(c: EncoderConfig, ids: dict) -> dict:
  """The other way, for releases before 5, too. `ids` of special tokens: pad_id, cls_id and sep_id have fields."""
  types = [_LOCAL if i % c.global_every else _GLOBAL for i in range(c.num_layers)]
  rope = {
    kind: {'rope_type': 'default', 'rope_theta': theta}
    for kind, theta in ((_GLOBAL, c.global_rope_theta), (_LOCAL, c.local_rope_theta))
  }
  return {
    'model_type': MODEL_TYPE,
    'vocab_size': c.vocab_size,
    'hidden_size': c.hidden_size,
    'num_hidden_layers': c.num_layers,
    'num_attention_heads': c.num_heads,
    'intermediate_size': c.intermediate_size,
    'max_position_embeddings': c.max_positions,
    'norm_eps': c.layer_norm_eps,
    'initializer_range': c.initializer_range,
    'embedding_dropout': c.dropout,
    'mlp_dropout': c.dropout,
    'attention_dropout': c.attention_dropout,
    'local_attention': c.local_window,
    'layer_types': types,
    'rope_parameters': rope,
    'global_attn_every_n_layers': c.global_every,
    'global_rope_theta': c.global_rope_theta,
    'local_rope_theta': c.local_rope_theta,
    'norm_bias': False,
    'attention_bias': False,
    'mlp_bias': False,
    'classifier_bias': False,
    'decoder_bias': True,
    'hidden_activation': 'gelu',
    'classifier_activation': 'gelu',
    'classifier_dropout': 0.0,
    'classifier_pooling': 'cls',
    # Without these, ids of ModernBERT's own vocabulary would be taken, which may lie beyond this one.
    'pad_token_id': ids.get('pad_id'),
    'cls_token_id': ids.get('cls_id'),
    'bos_token_id': ids.get('cls_id'),
    'sep_token_id': ids.get('sep_id'),
    'eos_token_id': ids.get('sep_id'),
  }


def heads(names: set[str]) -> set[str]:
  """Those of CLASSES that the tensors' names, without the prefix, could be of; none for an encoder without a head."""
  if 'classifier.weight' in names:
    return {'discriminator', 'classification', 'tagging', 'span'}
  return {'generator'} if {'decoder.bias', 'decoder.weight', 'head.dense.weight'} & names else set()


def tensors(c: EncoderConfig, kind: str) -> dict[str, tuple]:
  """Names, without the prefix, and parts of all tensors of an encoder with a head of CLASSES; see hf_electra.py."""
  table = {
    WORD: (('embeddings/word', None),),
    'embeddings.norm.weight': (('embeddings/norm/scale', None),),
  }
  for i in range(c.num_layers):

    def part(name, i=i):
      return (f'encoder/layers/{name}', i)

    here = f'layers.{i}'
    table |= {
      f'{here}.attn.Wqkv.weight': (part('query/kernel'), part('key/kernel'), part('value/kernel')),
      f'{here}.attn.Wo.weight': (part('attention_output/kernel'),),
      f'{here}.mlp_norm.weight': (part('mlp_norm/scale'),),
      f'{here}.mlp.Wi.weight': (part('mlp_in/kernel'), part('mlp_gate/kernel')),
      f'{here}.mlp.Wo.weight': (part('mlp_output/kernel'),),
      # Our layers have the norm that comes after them, theirs the one before.
      f'layers.{i + 1}.attn_norm.weight' if i + 1 < c.num_layers else 'final_norm.weight': (
        part('next_norm/scale'),
      ),
    }
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

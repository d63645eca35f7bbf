"""Small random encoders of each architecture of `transformers` that is read as initial weights."""

import dataclasses
import functools

import numpy as np
import torch
import transformers

torch.set_num_threads(1)

VOCAB, PAD, CLS, SEP = 61, 1, 0, 2
_IDS = {'pad_token_id': PAD, 'bos_token_id': CLS, 'eos_token_id': SEP}
_BERT = {
  'vocab_size': VOCAB,
  'hidden_size': 24,
  'num_hidden_layers': 2,
  'num_attention_heads': 3,
  'intermediate_size': 40,
  'max_position_embeddings': 40,
  **_IDS,
}


@dataclasses.dataclass(frozen=True)
class Format:
  """An architecture.

  Attributes:
    family: config.model.family.
    name: beginning of the names of its classes.
    fields: of its config.
    types: whether the two texts of a pair have different token types.
  """

  family: str
  name: str
  fields: dict
  types: bool = False

  def model(self, head, seed=0, **fields):
    """A float32 model in evaluation mode, with weights large enough to affect the output."""
    config = getattr(transformers, f'{self.name}Config')(**self.fields | fields)
    torch.manual_seed(seed)
    made = getattr(transformers, self.name + head)._from_config(config, attn_implementation='eager')
    with torch.no_grad():
      for name, value in made.named_parameters():
        if value.ndim == 2:
          value.normal_(std=value.shape[1] ** -0.5)
        elif 'decoder.bias' not in name:
          value += 0.2 * torch.randn_like(value)
    return made.eval()

  def inputs(self, ids, real, types=None):
    """Arguments of a model, from arrays `[rows, length]`."""
    found = {'input_ids': torch.tensor(ids), 'attention_mask': torch.tensor(real).long()}
    if self.types and types is not None:
      found['token_type_ids'] = torch.tensor(types)
    return found


FORMATS = {
  format.family: format
  for format in (
    Format(
      'modern',
      'ModernBert',
      _BERT
      | {'local_attention': 6, 'global_attn_every_n_layers': 2, 'sep_token_id': SEP}
      | {'cls_token_id': CLS, 'max_position_embeddings': 64},
    ),
    Format('bert', 'Bert', _BERT | {'type_vocab_size': 2, 'hidden_act': 'gelu_new'}, types=True),
    Format('roberta', 'Roberta', _BERT | {'type_vocab_size': 1, 'layer_norm_eps': 1e-5}),
    Format('xlm-roberta', 'XLMRoberta', _BERT | {'type_vocab_size': 1, 'layer_norm_eps': 1e-5}),
    Format('camembert', 'Camembert', _BERT | {'type_vocab_size': 1, 'layer_norm_eps': 1e-5}),
    Format(
      'deberta-v2',
      'DebertaV2',
      _BERT
      | {
        'relative_attention': True,
        'position_buckets': 6,
        'max_relative_positions': -1,
        'max_position_embeddings': 12,
        'norm_rel_ebd': 'layer_norm',
        'share_att_key': True,
        'pos_att_type': 'p2c|c2p',
        'position_biased_input': False,
      },
    ),
    Format(
      'distilbert',
      'DistilBert',
      {
        'vocab_size': VOCAB,
        'dim': 24,
        'n_layers': 2,
        'n_heads': 3,
        'hidden_dim': 40,
        'max_position_embeddings': 40,
        **_IDS,
      },
    ),
    Format('albert', 'Albert', _BERT | {'embedding_size': 10, 'num_hidden_layers': 3}, types=True),
  )
}


class DetectionHead(torch.nn.Module):
  """The discriminator's head of DeBERTa-v3, by microsoft/DeBERTa (LMMaskPredictionHead)."""

  def __init__(self, config):
    super().__init__()
    self.dense = torch.nn.Linear(config.hidden_size, config.hidden_size)
    self.LayerNorm = torch.nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
    self.classifier = torch.nn.Linear(config.hidden_size, 1)

  def forward(self, hidden):
    summed = self.LayerNorm(hidden[:, :1] + hidden)
    return self.classifier(torch.nn.functional.gelu(self.dense(summed)))


@functools.cache
def towers(family):
  """A masked language model and a discriminator's head, in PyTorch: (model, hidden -> logits)."""
  format = FORMATS[family]
  torch.manual_seed(7)
  lm = format.model('ForMaskedLM')
  if family == 'deberta-v2':
    return lm, DetectionHead(lm.config)
  if family == 'modern':
    tagger = format.model('ForTokenClassification', num_labels=1)
    return lm, torch.nn.Sequential(tagger.head, tagger.classifier)
  return lm, torch.nn.Linear(24, 1)


def detection_state(family, head):
  """Tensors of a discriminator's head by their names in a file."""
  state = head.state_dict()
  if family == 'deberta-v2':
    return {f'mask_predictions.{name}': value for name, value in state.items()}
  names = {'0.': 'head.', '1.': 'classifier.'} if family == 'modern' else {'': 'classifier.'}
  return {
    new + name.removeprefix(old): value
    for name, value in state.items()
    for old, new in names.items()
    if name.startswith(old)
  }


def rows(lengths=(20, 13, 4), length=20, seed=1):
  """int64 ids and types `[rows, length]`, and the mask of real tokens."""
  rng = np.random.default_rng(seed)
  real = np.arange(length) < np.array(lengths)[:, None]
  ids = np.where(real, rng.integers(5, VOCAB, real.shape), PAD)
  ids[:, 0] = CLS
  types = (real & (np.arange(length) >= np.array(lengths)[:, None] // 2)).astype(np.int64)
  return ids, types, real

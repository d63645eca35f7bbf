"""Models of `transformers` with random weights, small unless told, and folders of them as it and older releases write them."""

import json
import pathlib

import numpy as np
import torch
import transformers

torch.set_num_threads(
  1
)  # models so small, and tests side by side: more threads would wait for each other

VOCAB, PAD, CLS, SEP = 91, 0, 2, 3
ELECTRA = {
  'vocab_size': VOCAB,
  'embedding_size': 12,
  'hidden_size': 16,
  'num_hidden_layers': 3,
  'num_attention_heads': 2,
  'intermediate_size': 40,
  'max_position_embeddings': 33,
  'type_vocab_size': 3,
  'pad_token_id': PAD,
}
MODERN = {
  'vocab_size': VOCAB,
  'hidden_size': 16,
  'num_hidden_layers': 4,
  'num_attention_heads': 2,
  'intermediate_size': 24,
  'max_position_embeddings': 64,
  'local_attention': 8,
  'global_attn_every_n_layers': 2,
  'pad_token_id': PAD,
  'cls_token_id': CLS,
  'bos_token_id': CLS,
  'sep_token_id': SEP,
  'eos_token_id': SEP,
}
CLASSES = {
  'electra': {
    'encoder': 'ElectraModel',
    'discriminator': 'ElectraForPreTraining',
    'generator': 'ElectraForMaskedLM',
    'classification': 'ElectraForSequenceClassification',
    'tagging': 'ElectraForTokenClassification',
    'span': 'ElectraForQuestionAnswering',
  },
  'modern': {
    'encoder': 'ModernBertModel',
    'discriminator': 'ModernBertForTokenClassification',
    'generator': 'ModernBertForMaskedLM',
    'classification': 'ModernBertForSequenceClassification',
    'tagging': 'ModernBertForTokenClassification',
    'span': 'ModernBertForQuestionAnswering',
  },
}
KINDS = tuple(CLASSES['electra'])
# The class that opens each kind by itself.
AUTO = {
  'encoder': 'AutoModel',
  'discriminator': 'AutoModelForPreTraining',
  'generator': 'AutoModelForMaskedLM',
  'classification': 'AutoModelForSequenceClassification',
  'tagging': 'AutoModelForTokenClassification',
  'span': 'AutoModelForQuestionAnswering',
}


def model(family='electra', kind='discriminator', seed=0, **fields):
  """In float32, without dropout, its weights so large that all of them matter."""
  labels = {'modern discriminator': 1, f'{family} classification': 3, f'{family} tagging': 5}.get(
    f'{family} {kind}', 2
  )
  config = (transformers.ElectraConfig if family == 'electra' else transformers.ModernBertConfig)(
    **(ELECTRA if family == 'electra' else MODERN)
    | {'attn_implementation': 'eager', 'num_labels': labels}
    | fields
  )
  torch.manual_seed(seed)
  made = getattr(transformers, CLASSES[family][kind])(config).eval()
  with torch.no_grad():
    for parameter in made.parameters():
      if parameter.ndim == 2:
        parameter.normal_(std=parameter.shape[1] ** -0.5)
      else:
        parameter += 0.2 * torch.randn_like(parameter)
  return made


def saved(made, folder, **options) -> str:
  """As this release writes it: safetensors, in shards where `max_shard_size` says so."""
  made.save_pretrained(folder, **options)
  return str(folder)


def rewritten(made, folder, tensors=None, remove=(), **fields) -> str:
  """A folder of config.json, with other fields and without those of `remove`, and pytorch_model.bin of the tensors by name."""
  folder = pathlib.Path(saved(made, folder))
  (folder / 'model.safetensors').unlink()
  change_config(folder, remove, **fields)
  torch.save(tensors if tensors is not None else made.state_dict(), folder / 'pytorch_model.bin')
  return str(folder)


def change_config(folder, remove=(), **fields):
  file = pathlib.Path(folder) / 'config.json'
  kept = {name: value for name, value in json.loads(file.read_text()).items() if name not in remove}
  file.write_text(json.dumps(kept | fields))


def opened(files, folder, kind, family='electra'):
  """What transformers makes of files {name: content}: the model, by the class that opens any of its kind; all tensors fit."""
  write(files, folder)
  auto = (
    'AutoModelForTokenClassification'
    if (family, kind) == ('modern', 'discriminator')
    else AUTO[kind]
  )
  made, told = getattr(transformers, auto).from_pretrained(
    folder, output_loading_info=True, attn_implementation='eager'
  )
  assert not any(
    told[name] for name in ('missing_keys', 'unexpected_keys', 'mismatched_keys', 'error_msgs')
  ), told
  assert type(made).__name__ == CLASSES[family][kind]
  return made.eval()


def write(files, folder) -> str:
  for name, content in files.items():
    file = pathlib.Path(folder) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
  return str(folder)


def state(made) -> dict[str, np.ndarray]:
  """The tensors that a file has, by name: tied ones once."""
  tied = getattr(made, '_tied_weights_keys', None) or {}
  return {
    name: value.detach().numpy() for name, value in made.state_dict().items() if name not in tied
  }


def rows(lengths=(20, 13, 4), length=20, vocab_size=VOCAB, seed=1):
  """int64 ids and types [rows, length], mask of what is real."""
  rng = np.random.default_rng(seed)
  real = np.arange(length) < np.array(lengths)[:, None]
  ids = np.where(real, rng.integers(5, vocab_size, real.shape), PAD)
  ids[:, 0] = CLS
  types = (real & (np.arange(length) >= np.array(lengths)[:, None] // 2)).astype(np.int64)
  return ids, types, real


def outputs(made, ids, types, real) -> list[np.ndarray]:
  """Logits [rows, ...] or hidden states of a PyTorch model; of span those of start and end."""
  inputs = {'input_ids': torch.tensor(ids), 'attention_mask': torch.tensor(real).long()}
  if made.config.model_type == 'electra':
    inputs['token_type_ids'] = torch.tensor(types)
  with torch.no_grad():
    found = made(**inputs)
  names = [
    name for name in ('logits', 'start_logits', 'end_logits', 'last_hidden_state') if name in found
  ]
  return [found[name].numpy() for name in names]

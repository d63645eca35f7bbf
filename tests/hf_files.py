"""Small random models of `transformers`, their folders, and outputs of both implementations."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from electra_jax.model.electra import Electra
from electra_jax.model.encoder import Inputs
from electra_jax.model.heads import FineTuned

torch.set_num_threads(1)  # models are small and tests run in parallel

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
    'choice': 'ElectraForMultipleChoice',
    'span': 'ElectraForQuestionAnswering',
  },
  'modern': {
    'encoder': 'ModernBertModel',
    'discriminator': 'ModernBertForTokenClassification',
    'generator': 'ModernBertForMaskedLM',
    'classification': 'ModernBertForSequenceClassification',
    'tagging': 'ModernBertForTokenClassification',
    'choice': 'ModernBertForMultipleChoice',
    'span': 'ModernBertForQuestionAnswering',
  },
}
KINDS = tuple(CLASSES['electra'])
# The class that opens each kind.
AUTO = {
  'encoder': 'AutoModel',
  'discriminator': 'AutoModelForPreTraining',
  'generator': 'AutoModelForMaskedLM',
  'classification': 'AutoModelForSequenceClassification',
  'tagging': 'AutoModelForTokenClassification',
  'choice': 'AutoModelForMultipleChoice',
  'span': 'AutoModelForQuestionAnswering',
}


def model(family='electra', kind='discriminator', seed=0, **fields):
  """Returns a float32 model in evaluation mode, with weights large enough to affect the output."""
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
  """Saves a model as the installed release does; options are those of save_pretrained."""
  made.save_pretrained(folder, **options)
  return str(folder)


def rewritten(made, folder, tensors=None, remove=(), **fields) -> str:
  """Saves pytorch_model.bin and a config.json with other fields and without those of `remove`."""
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
  """Opens files {name: content} with transformers and checks that all tensors fit."""
  write(files, folder)
  if (family, kind) == ('modern', 'discriminator'):
    return detector(folder)
  made, loaded = getattr(transformers, AUTO[kind]).from_pretrained(
    folder, output_loading_info=True, attn_implementation='eager'
  )
  assert not any(
    loaded[name] for name in ('missing_keys', 'unexpected_keys', 'mismatched_keys', 'error_msgs')
  ), loaded
  assert type(made).__name__ == CLASSES[family][kind]
  return made.eval()


def detector(folder):
  """Opens an encoder and the discriminator's head beside it, as docs/interop.md describes."""
  model, loaded = transformers.AutoModelForTokenClassification.from_pretrained(
    folder, num_labels=1, output_loading_info=True, attn_implementation='eager'
  )
  head = load_file(pathlib.Path(folder) / 'discriminator_head.safetensors')
  assert set(loaded['missing_keys']) == head.keys(), loaded
  assert not any(loaded[name] for name in ('unexpected_keys', 'mismatched_keys', 'error_msgs'))
  assert not model.load_state_dict(head, strict=False).unexpected_keys
  return model.eval()


def write(files, folder) -> str:
  for name, content in files.items():
    file = pathlib.Path(folder) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
  return str(folder)


def state(made) -> dict[str, np.ndarray]:
  """Returns the tensors of a file by name: tied ones once."""
  tied = getattr(made, '_tied_weights_keys', None) or {}
  return {
    name: value.detach().numpy() for name, value in made.state_dict().items() if name not in tied
  }


def rows(lengths=(20, 13, 4), length=20, vocab_size=VOCAB, seed=1):
  """Returns int64 ids and types [rows, length] and the mask of real tokens."""
  rng = np.random.default_rng(seed)
  real = np.arange(length) < np.array(lengths)[:, None]
  ids = np.where(real, rng.integers(5, vocab_size, real.shape), PAD)
  ids[:, 0] = CLS
  types = (real & (np.arange(length) >= np.array(lengths)[:, None] // 2)).astype(np.int64)
  return ids, types, real


def outputs(made, ids, types, real) -> list[np.ndarray]:
  """Returns logits [rows, ...] or hidden states of a PyTorch model; start and end of a span."""
  inputs = {'input_ids': torch.tensor(ids), 'attention_mask': torch.tensor(real).long()}
  if made.config.model_type == 'electra':
    inputs['token_type_ids'] = torch.tensor(types)
  if 'MultipleChoice' in type(made).__name__:  # one choice per row
    inputs = {name: value[:, None] for name, value in inputs.items()}
  with torch.no_grad():
    found = made(**inputs)
  names = [
    name for name in ('logits', 'start_logits', 'end_logits', 'last_hidden_state') if name in found
  ]
  return [found[name].numpy() for name in names]


def our_inputs(ids, types, real):
  positions = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
  return Inputs(*(jnp.asarray(x, jnp.int32) for x in (ids, real, positions, types)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _applied(model, method, params, *arguments):
  return model.apply({'params': params}, *arguments, method=method)


def applied(weights, method, rows):
  """Returns the output of a method of Electra, at every position."""
  model = Electra(
    weights.generator or weights.discriminator,
    weights.discriminator or weights.generator,
    sharing=weights.sharing,
  )
  inputs = our_inputs(*rows)
  return _applied(
    model,
    method,
    weights.params,
    inputs,
    *([inputs.positions] if method == 'generator_logits' else []),
  )


def our_outputs(weights, rows) -> list:
  """Returns logits or hidden states, as `outputs` does."""
  if head := weights.head:
    model = FineTuned(
      weights.discriminator,
      head.kind,
      labels=max(1, len(head.labels)),
      pooling=head.pooling,
      style=head.style,
    )
    inputs = our_inputs(*rows)
    allowed = {'allowed': jnp.ones_like(inputs.token_ids)}
    found = _applied(model, 'training', weights.params | {'head': head.params}, inputs, allowed)
    return [
      found[name] for name in ('logits', 'value', 'start_logits', 'end_logits') if name in found
    ]
  if not weights.discriminator:
    return [applied(weights, 'generator_logits', rows)]
  return [
    applied(
      weights,
      'discriminator_logits' if 'discriminator_head' in weights.params else 'hidden_states',
      rows,
    )
  ]


def assert_close(ours, theirs, what=''):
  """Checks equality to float32 rounding: 1e-5 of the largest value."""
  ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
  assert ours.shape == theirs.shape, (what, ours.shape, theirs.shape)
  apart = np.abs(ours - theirs).max()
  assert apart <= 1e-5 * np.abs(theirs).max() + 5e-7, (what, apart)


def assert_same_outputs(weights, made, inputs=None):
  """Checks that our model and a PyTorch model give the same outputs."""
  inputs = inputs or rows()
  real = inputs[2]
  for ours, theirs in zip(our_outputs(weights, inputs), outputs(made, *inputs), strict=True):
    ours = np.asarray(ours).reshape(theirs.shape)  # ModernBERT's discriminator has a label axis
    if theirs.shape[:2] == real.shape:  # padding is not compared
      ours, theirs = ours[real], theirs[real]
    assert_close(ours, theirs)

"""Folders of `transformers` (Hugging Face), both ways: ELECTRA's and, for the modern family, ModernBERT's.

Neither PyTorch nor transformers is needed. Only what stands in hf_electra.py and hf_modernbert.py tells the two from each other.
"""

import dataclasses
import json

import numpy as np

from electra_jax import file_access
from electra_jax.data.tokenizers.tokenization import holds_tokenizer
from electra_jax.errors import UserError
from electra_jax.interop import hf_electra, hf_modernbert, hf_tensors, tensors
from electra_jax.interop.hf_fields import Fields
from electra_jax.interop.weights import (
  DISCRIMINATOR,
  GENERATOR,
  Head,
  Weights,
  checked,
  combined,
  expected_shapes,
  of_tower,
)

CONFIG, TENSORS = 'config.json', 'model.safetensors'
MARK = 'electra_jax'  # a field of the config.json that we write: {'tower': 'discriminator', 'generator' or 'finetuned'}
_FORMATS = {module.MODEL_TYPE: module for module in (hf_electra, hf_modernbert)}
_TOWERS = ('discriminator', 'generator')


# ---- reading ----------------------------------------------------------------------------------------------------------


def read(path: str) -> Weights:
  """What a folder holds: a tower, a fine-tuned model, or both towers in folders `discriminator` and `generator` inside it.

  Which of them it is the class in config.json says or, where it says none, the names of the tensors.

  Args:
    path: a folder of config.json, weights as interop.tensors reads them and, maybe, a tokenizer's files. Addresses will do.

  Returns: Weights; of a generator alone without a discriminator and with `sharing` none.

  Raises UserError, one sentence: the folder is no such thing, holds another architecture or one of which we lack something (the
  field and its value are named), or tensors are missing, have no place, misfit or are no numbers (by their names).
  """
  path = file_access.normal(path)
  if file_access.exists(file_access.join(path, CONFIG)):
    return _read_model(path)
  inside = {
    name: file_access.join(path, name)
    for name in _TOWERS
    if file_access.exists(file_access.join(path, name, CONFIG))
  }
  if not inside:
    what = f'has no {CONFIG}' if file_access.is_folder(path) else 'is no folder here'
    raise UserError(
      f'{path!r} {what}: name one that holds a model of transformers, {CONFIG} and weights, downloaded before.'
    )
  found = {name: _read_model(place) for name, place in inside.items()}
  for name, weights in found.items():
    if getattr(weights, name) is None or weights.head:
      raise UserError(
        f'{weights.source} is not a {name}, as its name says: it is a '
        f'{"fine-tuned model" if weights.head else _TOWERS[1 - _TOWERS.index(name)]}.'
      )
  if len(found) == 1:
    return _with_tokenizer(found.popitem()[1], path)
  return _with_tokenizer(
    dataclasses.replace(combined(*(found[name] for name in _TOWERS)), source=path), path
  )


def _with_tokenizer(weights, folder):
  return (
    weights if weights.tokenizer else dataclasses.replace(weights, tokenizer=_tokenizer(folder))
  )


def _tokenizer(folder):
  """The folder, where load_tokenizer would find one."""
  return folder if holds_tokenizer(folder) else None


def _read_model(path):
  fields = _fields(file_access.join(path, CONFIG))
  form = _format(fields)
  config = form.encoder_config(fields)
  found, names = _named(tensors.read(path), form, path)
  kind = _kind(fields, form, set(found), path)
  notes, labels = [], ()
  if (
    kind == 'generator' and fields.get('decoder_bias') is False
  ):  # ModernBERT's: a bias of zeros is the same
    found.setdefault('decoder.bias', np.zeros(config.vocab_size, np.float32))
    notes.append(f'{path} has no bias over the vocabulary: it begins at zero')
  if kind == 'encoder':
    notes.append(f'{path} has no head: it is taken for a discriminator whose head is missing')
  if config.family == 'modern' and fields.get('embedding_dropout', 0.0) != fields.get(
    'mlp_dropout', 0.0
  ):
    notes.append(
      f'{path} has two rates for dropout of embeddings and feed-forward layers: the larger, {config.dropout:g}, is '
      'taken for both'
    )
  weights = Weights(
    path,
    None if kind == 'generator' else config,
    config if kind == 'generator' else None,
    'none',
    {},
    tokenizer=_tokenizer(path),
    notes=tuple(notes),
  )
  if kind not in ('encoder', *_TOWERS):
    kind_of_head, labels = _labels(fields, kind)
    pooling = (
      fields.need('classifier_pooling', 'cls', 'mean')
      if form is hf_modernbert and kind == 'classification'
      else 'cls'
    )
    weights = dataclasses.replace(
      weights, head=Head(kind_of_head, 'transformers', labels, pooling, {})
    )
  tree = hf_tensors.to_ours(found, names, form, kind, config, _shapes(weights, kind), path)
  top = {'generator': GENERATOR}.get(kind, DISCRIMINATOR)
  params = {
    name: tree[part]
    for name, part in zip(top, ('embeddings', 'encoder', 'head'), strict=True)
    if part in tree
  }
  if weights.head:
    weights = dataclasses.replace(
      weights, head=dataclasses.replace(weights.head, params=params.pop('discriminator_head'))
    )
  weights = dataclasses.replace(
    weights, params=params, sharing='none' if kind == 'generator' else 'embeddings'
  )
  return checked(weights, ('discriminator_head',) if kind == 'encoder' else ())


def _shapes(weights: Weights, kind: str) -> dict:
  """Shapes of the parameters of a tower by itself, with its head, in the tree {'embeddings', 'encoder', 'head'}."""
  shapes = expected_shapes(weights)
  if weights.head:
    return {
      'embeddings': shapes['embeddings'],
      'encoder': shapes['discriminator'],
      'head': shapes['head'],
    }
  return of_tower(
    dataclasses.replace(weights, params=shapes),
    'generator' if kind == 'generator' else 'discriminator',
  )


def _fields(file) -> Fields:
  try:
    values = json.loads(file_access.read_bytes(file))
  except ValueError as error:
    raise UserError(f'{file} is not JSON, or was cut short: {error}.') from None
  if not isinstance(values, dict):
    raise UserError(f'{file} is not a config: it holds no fields.')
  return Fields(file, values)


def _architecture(fields) -> str | None:
  """The class that the config names, of PyTorch. None where it names none."""
  found = fields.get('architectures', [])
  if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
    raise UserError(f'{fields.file}: architectures is {found!r} and not a list of names.')
  return found[0].removeprefix('TF').removeprefix('Flax') if found else None


def _format(fields):
  model_type = fields.get('model_type')
  if model_type is None:  # the first releases did not write it
    name = _architecture(fields) or ''
    model_type = next(
      (known for known, form in _FORMATS.items() if name in form.CLASSES.values()), None
    )
  if model_type not in _FORMATS:
    what = 'no model_type' if model_type is None else f'model_type {model_type!r}'
    raise UserError(
      f'{fields.file}: {what}: another architecture; what can be read is {" or ".join(_FORMATS)}.'
    )
  return _FORMATS[model_type]


def _named(found, form, path):
  """The parameters by their names of today, without the prefix; and the names that the file has for them."""
  renamed, names = {}, {}
  for name, value in found.items():
    short = name.removeprefix(form.PREFIX)
    if form is hf_electra:
      short = short.replace('LayerNorm.gamma', 'LayerNorm.weight').replace(
        'LayerNorm.beta', 'LayerNorm.bias'
      )
    if short.endswith(form.BUFFERS):
      continue
    if short in renamed:
      raise UserError(f'{path} holds one tensor under two names: {names[short]} and {name}.')
    renamed[short], names[short] = value, name
  return renamed, names


def _kind(fields, form, names, path) -> str:
  """Of the CLASSES of a format."""
  name, heads = _architecture(fields), form.heads(names)
  if name is None or name == form.CLASSES['encoder']:
    if len(heads) > 1:
      raise UserError(
        f'{fields.file} does not say what the head is for: add "architectures": ["..."] with one of '
        f'{", ".join(sorted(form.CLASSES[kind] for kind in heads))}.'
      )
    return heads.pop() if heads else 'encoder'
  kinds = [kind for kind, known in form.CLASSES.items() if known == name]
  if not kinds:
    raise UserError(
      f'{path} is of the class {name}, which this program does not have; it has '
      f'{", ".join(dict.fromkeys(form.CLASSES.values()))}.'
    )
  if heads and not heads & set(kinds):
    raise UserError(
      f'{fields.file} says {name}, but the tensors are those of {form.CLASSES[min(heads)]}; set "architectures" to '
      'that.'
    )
  if len(kinds) > 1:  # of discriminator and classifier of tokens the former has one label
    tower = fields.group(MARK).get('tower', 'discriminator')
    return 'discriminator' if len(_label_names(fields)) == 1 and tower != 'finetuned' else 'tagging'
  return kinds[0]


def _label_names(fields) -> list[str]:
  """Names of the labels by id; LABEL_0 and so on where the config gives none."""
  given = fields.group('id2label').values
  if not given:
    return [
      f'LABEL_{i}' for i in range(fields.integer('num_labels', fields.integer('_num_labels', 2)))
    ]
  if set(given) != {str(i) for i in range(len(given))}:
    raise UserError(
      f'{fields.file}: the ids in id2label are {", ".join(given)} and not 0 to {len(given) - 1}.'
    )
  names = [str(given[str(i)]) for i in range(len(given))]
  if twice := [name for name in names if names.count(name) > 1]:
    raise UserError(f'{fields.file}: two labels in id2label have the name {twice[0]!r}.')
  return names


def _labels(fields, kind) -> tuple[str, tuple[str, ...]]:
  """Kind of the head and its labels, as in Head."""
  names = _label_names(fields)
  if kind == 'tagging':
    return kind, tuple(names)
  if kind == 'span':
    if len(names) != 2:
      raise UserError(
        f'{fields.file} has {len(names)} labels: an answer has two, its start and its end.'
      )
    return kind, ()
  problem = fields.get(
    'problem_type', 'regression' if len(names) == 1 else 'single_label_classification'
  )
  if problem == 'regression' and len(names) == 1:
    return 'regression', ()
  if problem != 'single_label_classification' or len(names) == 1:
    can = 'single_label_classification of several labels, and regression of one value'
    raise UserError(
      f'{fields.file}: problem_type is {problem!r} with {len(names)} labels, which this program does not have: it '
      f'has {can}.'
    )
  return kind, tuple(names)


# ---- writing ----------------------------------------------------------------------------------------------------------


def files(
  weights: Weights, tower: str, *, special_ids: dict | None = None, extra: dict | None = None
) -> dict[str, bytes]:
  """config.json and model.safetensors, such that the classes AutoModel... of transformers open the folder.

  The head of one dense layer that the original has for classification and regression becomes transformers' of two, which gives
  the same logits: x = gelu(x) - gelu(-x), so the hidden layer is [W, -W, 0] and the last one [1, -1, 0].

  Args:
    weights: of `tower`, at least. A discriminator whose head is missing is written as a bare encoder.
    tower: 'discriminator', 'generator' or 'finetuned', which is the discriminator with `weights.head`.
    special_ids: of the tokenizer: pad_id, cls_id, sep_id; others are left out.
    extra: more fields of config.json, which win over those made here.

  Raises UserError, with the reason, for what transformers cannot express.
  """
  config = weights.generator if tower == 'generator' else weights.discriminator
  if config is None or tower == 'finetuned' and not weights.head:
    raise UserError(f'{weights.source} has no {tower} model to write.')
  form = hf_electra if config.family == 'electra' else hf_modernbert
  if config.family == 'modern' and config.embedding_size != config.hidden_size:
    raise UserError(
      f'the {tower} of {weights.source} cannot be written for transformers: its embeddings of '
      f'{config.embedding_size} are projected to a width of {config.hidden_size}, and ModernBERT has no such '
      'projection.'
    )
  fields = form.config_json(config, special_ids or {})
  if tower == 'finetuned':
    kind, head = _expressible(weights, config)
    tree = {
      'embeddings': weights.params['embeddings'],
      'encoder': weights.params['discriminator'],
      'head': head,
    }
    fields |= _label_fields(weights.head)
    if form is hf_modernbert and kind == 'classification':
      fields['classifier_pooling'] = weights.head.pooling
    alone = dataclasses.replace(
      weights, head=dataclasses.replace(weights.head, style='transformers', pooling='cls')
    )
  else:
    tree = of_tower(weights, tower)
    if tower == 'generator' and 'head' not in tree:
      raise UserError(
        f'the generator of {weights.source} has no head, without which it is no generator.'
      )
    kind = tower if 'head' in tree else 'encoder'
    if form is hf_modernbert and kind == 'discriminator':
      fields |= {'id2label': {'0': 'REPLACED'}, 'label2id': {'REPLACED': 0}}
    alone = Weights(
      weights.source,
      **{'discriminator': None, 'generator': None, tower: config},
      sharing='none',
      params={},
    )
  shapes = _shapes(alone, kind)
  if 'head' not in tree:
    del shapes['head']
  # A tower that reads the other's tables may have a config that says otherwise; transformers would go by it.
  if misfits := hf_tensors.misfits(tree, shapes):
    raise UserError(
      f'the {tower} of {weights.source} cannot be written for transformers: beside its own config, {misfits[0]}.'
    )
  fields |= {
    'architectures': [form.CLASSES[kind]],
    'tie_word_embeddings': True,
    'dtype': 'float32',
    'torch_dtype': 'float32',
    MARK: {'tower': tower},
  }
  return {
    CONFIG: (
      json.dumps(fields | (extra or {}), indent=2, sort_keys=True, ensure_ascii=False) + '\n'
    ).encode(),
    TENSORS: tensors.to_bytes(hf_tensors.to_theirs(tree, form, kind, config)),
  }


def _expressible(weights, config) -> tuple[str, dict]:
  """Class and parameters of a fine-tuned model's head in transformers' style."""
  head = weights.head
  kind = 'classification' if head.kind == 'regression' else head.kind
  where = f'the head of {weights.source} cannot be written for transformers: '
  if config.family == 'electra' and kind == 'classification' and head.pooling != 'cls':
    raise UserError(
      f'{where}ELECTRA reads [CLS] alone there, and this one the {head.pooling} of the tokens.'
    )
  if head.style == 'transformers' or config.family == 'electra' and kind == 'tagging':
    return kind, head.params
  if config.family == 'modern' or kind == 'span':
    raise UserError(
      f'{where}it has another form there; fine-tune with --config.head.style=transformers.'
    )
  kernel, bias = head.params['dense']['kernel'], head.params['dense']['bias']
  width, labels = kernel.shape
  if 2 * labels > width:
    raise UserError(
      f'{where}there a layer of {width} stands before the labels, which passes on {width // 2} of them and not '
      f'{labels}; fine-tune with --config.head.style=transformers.'
    )
  hidden, last = np.zeros((width, width), np.float32), np.zeros((width, labels), np.float32)
  hidden[:, :labels], hidden[:, labels : 2 * labels] = kernel, -kernel
  last[:labels], last[labels : 2 * labels] = np.eye(labels), -np.eye(labels)
  return kind, {
    'hidden': {'kernel': hidden, 'bias': np.zeros(width, np.float32)},
    'dense': {'kernel': last, 'bias': bias},
  }


def _label_fields(head) -> dict:
  if head.kind == 'span':
    return {}
  names = head.labels or ('LABEL_0',)
  fields = {
    'id2label': {str(i): name for i, name in enumerate(names)},
    'label2id': {name: i for i, name in enumerate(names)},
  }
  if head.kind != 'tagging':
    fields['problem_type'] = (
      'regression' if head.kind == 'regression' else 'single_label_classification'
    )
  return fields

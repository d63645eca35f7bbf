"""Model folders of `transformers` (Hugging Face), read and written without it and without PyTorch.

What differs between architectures is in a module for each; `ARCHITECTURES` lists them.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from electra_jax import checksums, file_access, hub
from electra_jax.data.tokenizers.tokenization import holds_tokenizer
from electra_jax.errors import UserError
from electra_jax.interop import (
  hf_albert,
  hf_bert,
  hf_deberta,
  hf_distilbert,
  hf_electra,
  hf_modernbert,
  hf_roberta,
  hf_tensors,
  tensor_files,
)
from electra_jax.interop.hf_architecture import Architecture, Obstacle
from electra_jax.interop.hf_config import (
  ConfigFields,
  architecture_class,
  fields_of_head,
  head_of_config,
  labels_by_id,
  read_fields,
)
from electra_jax.interop.weights import (
  DISCRIMINATOR,
  GENERATOR,
  Head,
  WeightFormat,
  Weights,
  check_weights,
  combine_towers,
  expected_shapes,
  tower_params,
)
from electra_jax.model.config import EncoderConfig
from electra_jax.model.heads import ROW_KINDS

CONFIG = 'config.json'
TENSORS = 'model.safetensors'
# A discriminator's head beside its encoder; see Architecture.head_beside.
HEAD = 'discriminator_head.safetensors'
_MODEL_FILES = (CONFIG, '.safetensors', '.bin', '.index.json')  # that are read here
# A field of the config.json that this package writes: {'tower': 'discriminator', 'generator' or
# 'finetuned'}, and 'head': HEAD where there is such a file.
MARK = 'electra_jax'
# A config of a family is written in the first architecture of that family.
ARCHITECTURES = (
  hf_electra.ARCHITECTURE,
  hf_modernbert.ARCHITECTURE,
  hf_bert.ARCHITECTURE,
  hf_roberta.ROBERTA,
  hf_roberta.XLM_ROBERTA,
  hf_roberta.CAMEMBERT,
  hf_deberta.ARCHITECTURE,
  hf_distilbert.ARCHITECTURE,
  hf_albert.ARCHITECTURE,
)
_TOWERS = ('discriminator', 'generator')


#### Reading ####


def read_weights(path: str) -> Weights:
  """Reads a folder: a tower, a fine-tuned model, or both towers in two folders inside it.

  The class in config.json decides what a model is; without a class, the names of its tensors.

  Args:
    path: path or address of a folder with config.json, weights as in interop/tensor_files.py and
      possibly a tokenizer's files; or of a folder with such folders `discriminator` and
      `generator`.

  Returns:
    The weights. For a generator without a discriminator, `sharing` is 'none'.

  Raises:
    UserError: the folder is not a model, has an unsupported architecture or config value (the
      message has the field), or its tensors do not fit its config (the message has their names).
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
    what = f'has no {CONFIG}' if file_access.is_folder(path) else 'is not a folder'
    raise UserError(
      f'{path!r} {what}; expected a downloaded model of transformers with {CONFIG} and weights.'
    )
  found = {name: _read_model(place) for name, place in inside.items()}
  for name, model in found.items():
    if getattr(model, name) is None or model.head:
      other = 'fine-tuned model' if model.head else _TOWERS[1 - _TOWERS.index(name)]
      raise UserError(f'{model.source} is a {other}; expected a {name}, the name of the folder.')
  if len(found) == 2:
    weights = combine_towers(found['discriminator'], found['generator'])
    weights = dataclasses.replace(weights, source=path)
  else:
    (weights,) = found.values()
  return dataclasses.replace(weights, tokenizer=weights.tokenizer or _find_tokenizer(path))


def _find_tokenizer(folder: str) -> str | None:
  """Returns the folder if load_tokenizer would find a tokenizer in it."""
  return folder if holds_tokenizer(folder) else None


def _read_model(path: str) -> Weights:
  sums = checksums.read_sums(path) or {}
  checksums.check(
    path, [name for name in sums if name.endswith(_MODEL_FILES) and name != 'tokenizer_config.json']
  )
  fields = read_fields(file_access.join(path, CONFIG))
  architecture = _architecture_of(fields)
  config = architecture.read_config(fields)
  head_beside = _read_head(fields, architecture, path)
  tensors = tensor_files.read_tensors(path) | head_beside
  file = hf_tensors.TensorFile(tensors, architecture, path)
  kind = 'discriminator' if head_beside else _kind_of(fields, architecture, set(file.tensors), path)
  notes = [f'{path} {note}' for note in architecture.complete(fields, config, kind, file.tensors)]
  if kind == 'encoder':
    lacking = f' (the file {HEAD} is missing)' if fields.group(MARK).get('head') else ''
    notes.append(f'{path} has no head{lacking}: it is read as a discriminator without its head')
  is_generator = kind == 'generator'
  weights = Weights(
    source=path,
    discriminator=None if is_generator else config,
    generator=config if is_generator else None,
    sharing='none' if is_generator else 'embeddings',
    params={},
    head=None if kind in ('encoder', *_TOWERS) else _head_of(fields, architecture, kind),
    tokenizer=_find_tokenizer(path),
    notes=tuple(notes),
  )
  tree = file.to_params(kind, config, _tower_shapes(weights, kind))
  head = weights.head
  if head:
    head = dataclasses.replace(head, params=tree.pop('head'))
  names = dict(zip(('embeddings', 'encoder', 'head'), DISCRIMINATOR, strict=True))
  if is_generator:
    names = dict(zip(names, GENERATOR, strict=True))
  params = {names[part]: tree[part] for part in names if part in tree}
  return check_weights(
    dataclasses.replace(weights, params=params, head=head),
    optional=('discriminator_head',) if kind == 'encoder' else (),
  )


def _read_head(
  fields: ConfigFields, architecture: Architecture, path: str
) -> dict[str, np.ndarray]:
  """Returns the tensors of a discriminator's head that is beside a bare encoder; empty for none."""
  is_bare = architecture_class(fields) == architecture.classes['encoder']
  place = file_access.join(path, HEAD)
  if not (architecture.head_beside and is_bare and file_access.exists(place)):
    return {}
  return tensor_files.read_tensors(place)


def _head_of(fields: ConfigFields, architecture: Architecture, kind: str) -> Head:
  """Returns the head of a fine-tuned model, without parameters."""
  kind_of_head, labels = head_of_config(fields, kind)
  pooling = architecture.poolings[0]
  if kind in ('classification', 'choice') and len(architecture.poolings) > 1:
    pooling = fields.require('classifier_pooling', *architecture.poolings)
  return Head(kind_of_head, 'transformers', labels, pooling, {})


def _tower_shapes(weights: Weights, kind: str) -> dict[str, Any]:
  """Returns the shapes of one tower and its head, {'embeddings', 'encoder', 'head'}."""
  shapes = expected_shapes(weights)
  if weights.head:
    return {
      'embeddings': shapes['embeddings'],
      'encoder': shapes['discriminator'],
      'head': shapes['head'],
    }
  tower = 'generator' if kind == 'generator' else 'discriminator'
  return tower_params(dataclasses.replace(weights, params=shapes), tower)


def _architecture_of(fields: ConfigFields) -> Architecture:
  model_type = fields.get('model_type')
  # The first releases wrote the class only.
  class_name = architecture_class(fields) if model_type is None else None
  for architecture in ARCHITECTURES:
    classes = {*architecture.classes.values(), *architecture.other_classes}
    if architecture.model_type == model_type or class_name in classes:
      return architecture
  what = 'missing' if model_type is None else repr(model_type)
  known = ', '.join(architecture.model_type for architecture in ARCHITECTURES)
  raise UserError(
    f'{fields.file}: model_type is {what}, which is not supported; expected one of {known}.'
  )


def _kind_of(fields: ConfigFields, architecture: Architecture, names: set[str], path: str) -> str:
  """Returns the kind of a model, from its class or else from the names of its tensors."""
  class_name = architecture_class(fields)
  classes = architecture.classes
  heads = architecture.heads(names)
  if class_name is None or class_name == classes['encoder']:
    if len(heads) > 1:
      possible = ', '.join(sorted(classes[kind] for kind in heads))
      raise UserError(
        f'{fields.file} does not name the class of the head; add "architectures": ["..."] with '
        f'one of {possible}.'
      )
    return heads.pop() if heads else 'encoder'
  kinds = [kind for kind, known in classes.items() if known == class_name]
  kinds += [kind for name, kind in architecture.other_classes.items() if name == class_name]
  if not kinds:
    raise UserError(
      f'{path} has the class {class_name}, which is not supported; expected '
      f'{", ".join(dict.fromkeys(classes.values()))}.'
    )
  if heads and not heads & set(kinds):
    raise UserError(
      f'{fields.file} names {class_name}, but the tensors are those of {classes[min(heads)]}; '
      'set "architectures" to that.'
    )
  if len(kinds) > 1:  # a token classifier with one label is a discriminator, unless marked
    tower = fields.group(MARK).get('tower', 'discriminator')
    is_discriminator = len(labels_by_id(fields)) == 1 and tower != 'finetuned'
    return 'discriminator' if is_discriminator else 'tagging'
  return kinds[0]


def _read_source(source: str, moments: bool) -> Weights:
  """Reads a folder, or a repository of the Hub."""
  place = hub.find(source)
  weights = read_weights(place.path)
  notes = ((place.note,) if place.note else ()) + weights.notes
  return dataclasses.replace(weights, notes=notes, revision=place.revision)


FORMAT = WeightFormat('FOLDER or hf:org/name', _read_source)


#### Writing ####


def model_files(
  weights: Weights,
  tower: str,
  *,
  special_ids: Mapping[str, int] | None = None,
  extra: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
  """Returns config.json and model.safetensors, which the AutoModel classes open.

  A discriminator of an architecture without a class for it is written as an encoder without a head,
  so that no classifier of `transformers` begins with that head. The head is in a third file, HEAD.

  Args:
    weights: with `tower`. A discriminator without its head is written as an encoder.
    tower: 'discriminator', 'generator', or 'finetuned' for the discriminator with `weights.head`.
    special_ids: the tokenizer's pad_id, cls_id and sep_id; others are ignored.
    extra: more fields of config.json, which replace those made here.

  Raises:
    UserError: `transformers` has no such model; the message has the reason.
  """
  config = weights.generator if tower == 'generator' else weights.discriminator
  if config is None or (tower == 'finetuned' and not weights.head):
    raise UserError(f'{weights.source} has no {tower} model to write.')
  architecture = _architecture_for(config)
  if problem := architecture.unsupported(config):
    raise UserError(
      f'the {tower} of {weights.source} cannot be written for transformers: {problem.reason}.'
    )
  fields = architecture.write_config(config, special_ids or {})
  if tower == 'finetuned':
    kind, params, written = _fine_tuned(weights, architecture)
    fields |= _head_fields(weights, architecture)
  else:
    kind, params, written = _pretrained(weights, tower, config)
  shapes = _tower_shapes(written, kind)
  if 'head' not in params:
    del shapes['head']
  # Embeddings that both towers share can contradict the config of one, which transformers obeys.
  if mistakes := hf_tensors.shape_mistakes(params, shapes):
    raise UserError(
      f'the {tower} of {weights.source} cannot be written for transformers: by its config, '
      f'{mistakes[0]}.'
    )
  tensors = hf_tensors.from_params(params, architecture, kind, config)
  architecture.finish(tensors, special_ids or {})
  tensors |= {
    name: tensors[architecture.copies[name]]
    for name in architecture.repeated
    if architecture.copies[name] in tensors
  }
  head: dict[str, np.ndarray] = {}
  if kind == 'discriminator' and architecture.head_beside:
    kind = 'encoder'
    head = {name: tensors.pop(name) for name in architecture.head_names(config)}
    tensors = {architecture.short_name(name): value for name, value in tensors.items()}
  fields |= {
    'model_type': architecture.model_type,
    'architectures': [architecture.classes[kind]],
    'tie_word_embeddings': True,
    'dtype': 'float32',
    'torch_dtype': 'float32',
    MARK: {'tower': tower, **({'head': HEAD} if head else {})},
    **(extra or {}),
  }
  text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + '\n'
  files = {CONFIG: text.encode(), TENSORS: tensor_files.to_safetensors(tensors)}
  return files | ({HEAD: tensor_files.to_safetensors(head)} if head else {})


def obstacle(config: EncoderConfig) -> Obstacle | None:
  """Returns why an encoder of a config cannot be written for `transformers`; None where it can."""
  return _architecture_for(config).unsupported(config)


def detection_class(config: EncoderConfig) -> tuple[str, bool]:
  """Returns the AutoModel class that has the layers of a discriminator of a config.

  It is AutoModel, without the head, where `transformers` has no such class. The second value is
  whether the head is in the file HEAD and has to be loaded from there.
  """
  architecture = _architecture_for(config)
  if architecture.head_beside:
    return 'AutoModelForTokenClassification', True
  classes = architecture.classes
  is_encoder = classes['discriminator'] == classes['encoder']
  return 'AutoModel' if is_encoder else 'AutoModelForPreTraining', False


def _architecture_for(config: EncoderConfig) -> Architecture:
  return next(known for known in ARCHITECTURES if known.family == config.family)


def _pretrained(
  weights: Weights, tower: str, config: EncoderConfig
) -> tuple[str, dict[str, Any], Weights]:
  """Returns the kind of a tower, its parameters, and Weights with its config only."""
  params = tower_params(weights, tower)
  if tower == 'generator' and 'head' not in params:
    raise UserError(
      f'the generator of {weights.source} has no head; expected a generator with its head.'
    )
  configs: dict[str, Any] = {'discriminator': None, 'generator': None, tower: config}
  single = Weights(weights.source, **configs, sharing='none', params={})
  return tower if 'head' in params else 'encoder', params, single


def _fine_tuned(
  weights: Weights, architecture: Architecture
) -> tuple[str, dict[str, Any], Weights]:
  """Returns the kind of a fine-tuned model, its parameters, and Weights with its config only."""
  assert weights.head is not None
  kind = _kind_of_head(weights.head)
  params = {
    'embeddings': weights.params['embeddings'],
    'encoder': weights.params['discriminator'],
    'head': _head_params(weights.source, weights.head, architecture),
  }
  head = dataclasses.replace(weights.head, style='transformers', pooling='cls')
  return kind, params, dataclasses.replace(weights, head=head)


def _kind_of_head(head: Head) -> str:
  return 'classification' if head.kind in ROW_KINDS and head.kind != 'choice' else head.kind


def _head_params(source: str, head: Head, architecture: Architecture) -> dict[str, Any]:
  """Returns the parameters of a fine-tuned head in the style of transformers."""
  where = f'the head of {source} cannot be written for transformers: '
  kind = _kind_of_head(head)
  if kind in ('classification', 'choice') and head.pooling not in architecture.poolings:
    raise UserError(
      f'{where}its pooling is {head.pooling}; expected {" or ".join(architecture.poolings)}, as '
      f'in {architecture.classes[kind]}.'
    )
  if head.style == 'transformers':
    return head.params
  params = architecture.convert_head(head)
  if params is None:
    raise UserError(
      f'{where}{architecture.classes[kind]} has no head that gives the same '
      'logits; fine-tune with --config.head.style=transformers.'
    )
  return params


def _head_fields(weights: Weights, architecture: Architecture) -> dict[str, Any]:
  assert weights.head is not None
  fields = fields_of_head(weights.head.kind, weights.head.labels)
  pools = _kind_of_head(weights.head) in ('classification', 'choice')
  if pools and len(architecture.poolings) > 1:
    fields['classifier_pooling'] = weights.head.pooling
  return fields

"""Checkpoints of the original TensorFlow program (google-research/electra), read and written."""

import dataclasses
import json
import os
import re
from typing import Any

import numpy as np

from electra_jax import checksums, file_access, json_reader
from electra_jax.errors import UserError
from electra_jax.interop.google_files import (
  STATE,
  checkpoint_files,
  find_prefix,
  folder_of,
  open_checkpoint,
  save_variables,
  write_state,
)
from electra_jax.interop.google_variables import (
  SCOPES,
  SLOTS,
  VariableTable,
  is_slot,
  to_variables,
)
from electra_jax.interop.weights import WeightFormat, Weights, check_weights, expected_shapes
from electra_jax.model.config import EncoderConfig

SETTINGS = 'hparams.json'
VOCABULARY = 'vocab.txt'
HEAD_SIZE = 64  # of all published sizes, and of every generator
_LAYER_NORM_EPS = 1e-12

_FINE_TUNED = 'task_specific/'
_QUERY = 'encoder/layer_0/attention/self/query/kernel'
_MLP = 'encoder/layer_0/intermediate/dense/kernel'
_ELECTRIC = ('generator_ltr/', 'generator_rtl/', 'cloze_predictions/')

_Shapes = dict[str, tuple[int, ...]]


#### Reading ####


def read_weights(address: str, moments: bool = True) -> Weights:
  """Reads one tower or both, with Adam's moments and the step if the checkpoint has them.

  Sizes follow from the variables, except the number of heads: it is the option `heads`, or the
  value in `hparams.json` beside the checkpoint, or hidden / 64 as in all published sizes. A
  generator has max(1, hidden // 64) heads, as in get_generator_config of the original. Its masked
  language models (electra_objective=False) are generators without a discriminator.

  Args:
    address: a checkpoint's prefix (.../model.ckpt-1000000), one of its files, or a folder with a
      `checkpoint` file or with one checkpoint; optionally followed by ';heads=4'.
    moments: whether to read Adam's moments.

  Raises:
    UserError: there is no checkpoint or there are several, it is damaged, its variables are not
      those of the original program, or its number of heads is unknown.
  """
  path, heads = _parse_address(address)
  prefix = find_prefix(path)
  folder, _, name = prefix.rpartition('/')
  sums = checksums.read_sums(folder or '.') or {}
  checksums.check(folder or '.', [file for file in sums if file.startswith(f'{name}.')])
  with open_checkpoint(prefix) as reader:
    shapes = reader.shapes
    fine_tuned = any(name.startswith(_FINE_TUNED) for name in shapes)
    variables = {
      name: shape
      for name, shape in shapes.items()
      if not (is_slot(name, shapes) or name == 'global_step' or name.startswith(_FINE_TUNED))
    }
    weights, scopes = _towers_of(prefix, variables, heads)
    head_scope = scopes['discriminator_head']
    has_head = any(name.startswith(head_scope + '/') for name in variables)
    expected = expected_shapes(weights)
    if not has_head:
      expected.pop('discriminator_head', None)
    table = VariableTable(expected, scopes)
    table.check(prefix, variables)
    params = table.read(reader)
    step = None
    read_moments = None
    if not fine_tuned:  # else both are those of fine-tuning
      step = int(reader.read('global_step')) if 'global_step' in shapes else None
      if moments and any(is_slot(name, shapes) for name in shapes):
        table.check_moments(prefix, shapes)
        read_moments = {name: table.read(reader, slot) for name, slot in SLOTS.items()}
  notes = []
  if fine_tuned:
    notes.append(
      f'left out of {prefix}: the head, step and optimizer of fine-tuning ({_FINE_TUNED}...)'
    )
  if weights.discriminator and not has_head:
    notes.append(f'{prefix} has no {head_scope}: the discriminator has no head')
  vocabulary = file_access.join(folder_of(prefix), VOCABULARY)
  return check_weights(
    dataclasses.replace(
      weights,
      params=params,
      moments=read_moments,
      step=step,
      notes=tuple(notes),
      tokenizer=vocabulary if file_access.exists(vocabulary) else None,
    ),
    optional=('discriminator_head',),
  )


FORMAT = WeightFormat('CHECKPOINT', read_weights)


def _parse_address(address: str) -> tuple[str, int | None]:
  """Returns the path and the number of heads of 'PATH;heads=4'."""
  path, *options = address.split(';')
  heads = None
  for option in options:
    name, _, value = option.partition('=')
    if name != 'heads' or not value.isdecimal() or int(value) < 1:
      raise UserError(
        f'the option of the TensorFlow checkpoint is {option!r}; expected heads, as in '
        f'tf:{path};heads=4.'
      )
    heads = int(value)
  return file_access.normal(path), heads


def _towers_of(prefix: str, shapes: _Shapes, heads: int | None) -> tuple[Weights, dict[str, str]]:
  """Returns Weights without parameters, and the scope of each part of our tree."""

  def has(scope: str) -> bool:
    return any(name.startswith(scope + '/') for name in shapes)

  _check_program(prefix, shapes)
  scopes = dict(SCOPES)
  discriminator = None
  generator = None
  sharing = 'embeddings'
  masked_lm = (
    has('generator_predictions')
    and not has('discriminator_predictions')
    and not has('generator/encoder')
  )
  if has('electra/encoder') and not masked_lm:
    discriminator = _encoder_of(prefix, shapes, 'electra', 'electra/embeddings', heads)
  if has('generator/encoder') or masked_lm:
    scopes['generator'] = 'electra' if masked_lm else 'generator'
    if has('generator/embeddings') or not discriminator:
      sharing = 'none'
    if sharing == 'none' and not has('generator/embeddings'):
      scopes['generator_embeddings'] = 'electra/embeddings'
    tables = scopes['generator_embeddings' if sharing == 'none' else 'embeddings']
    generator_heads = None if discriminator else heads
    generator = _encoder_of(prefix, shapes, scopes['generator'], tables, generator_heads)
  elif has('generator_predictions'):
    generator = discriminator
    sharing = 'all'
  if not (discriminator or generator):
    raise UserError(f'{prefix} has embeddings but no layers; expected electra/{_QUERY}.')
  return Weights(prefix, discriminator, generator, sharing, params={}), scopes


def _check_program(prefix: str, shapes: _Shapes) -> None:
  """Checks that a checkpoint is of the original ELECTRA program."""
  for name in sorted(shapes):
    if name.startswith(_ELECTRIC):
      raise UserError(
        f'{prefix} is a checkpoint of Electric, with {name}; its two-tower cloze generator is not '
        'supported.'
      )
  tables = ('electra/embeddings/', 'generator/embeddings/')
  if not any(name.startswith(tables) for name in shapes):
    other = f', and it has {min(shapes)}' if shapes else ''
    raise UserError(
      f'{prefix} is no checkpoint of the original program: electra/embeddings/word_embeddings is '
      f'missing{other}.'
    )


def _encoder_of(
  prefix: str, shapes: _Shapes, scope: str, embeddings: str, heads: int | None
) -> EncoderConfig:
  """Returns the config of a tower.

  Args:
    prefix: of the checkpoint.
    shapes: of its variables.
    scope: of the tower.
    embeddings: scope of its embeddings.
    heads: number of heads; None if it is not given.
  """

  def matrix(name: str) -> tuple[int, int]:
    shape = shapes.get(name, ())
    if len(shape) != 2:
      raise UserError(f'{prefix} has no matrix {name}, which a model of the program has.')
    return shape[0], shape[1]

  vocab_size, embedding_size = matrix(f'{embeddings}/word_embeddings')
  hidden = matrix(f'{scope}/{_QUERY}')[0]
  layers = [re.match(rf'{scope}/encoder/layer_(\d+)/', name) for name in shapes]
  if not heads and scope == 'electra':
    heads = _recorded_heads(prefix)
    if not heads and hidden % HEAD_SIZE:
      raise UserError(
        f'{prefix} has layers of width {hidden}, not a multiple of {HEAD_SIZE}, and a checkpoint '
        f'does not record the number of heads; add it, as in tf:{prefix};heads=4.'
      )
  heads = heads or max(1, hidden // HEAD_SIZE)
  if hidden % heads:
    raise UserError(
      f'{prefix} has layers of width {hidden} under {scope}, which do not divide into {heads} '
      'heads; give the number that it was trained with.'
    )
  try:
    return EncoderConfig(
      family='electra',
      vocab_size=vocab_size,
      hidden_size=hidden,
      embedding_size=embedding_size,
      num_heads=heads,
      num_layers=1 + max(int(match[1]) for match in layers if match),
      intermediate_size=matrix(f'{scope}/{_MLP}')[1],
      max_positions=matrix(f'{embeddings}/position_embeddings')[0],
      layer_norm_eps=_LAYER_NORM_EPS,
      vocab_multiple=1,
      type_vocab_size=matrix(f'{embeddings}/token_type_embeddings')[0],
    )
  except ValueError as error:
    raise UserError(f'{prefix}, {scope}: {error}') from None


def _recorded_heads(prefix: str) -> int | None:
  """Returns the number of heads in hparams.json beside the checkpoint, if it is there."""
  path = file_access.join(folder_of(prefix), SETTINGS)
  if not file_access.exists(path):
    return None
  try:
    shape = {'model_hparam_overrides': {'num_attention_heads': int}}
    found = json_reader.read(path, shape)
  except json_reader.InvalidJson:
    return None
  heads: int = found['model_hparam_overrides']['num_attention_heads']
  return heads if heads > 0 else None


#### Writing ####


def write_checkpoint(weights: Weights, prefix: str) -> dict[str, Any]:
  """Writes a checkpoint that the original program restores, with its settings in hparams.json.

  Without Adam's moments the original can fine-tune it, but not continue its pretraining.

  Args:
    weights: of the electra family, without a fine-tuned head. The embeddings of a generator
      without a discriminator become `electra/embeddings`.
    prefix: path or address; the files are PREFIX.index and PREFIX.data-00000-of-00001.

  Returns:
    The settings in hparams.json, for the original's --hparams; {} for a generator without a
    discriminator, which has no such file.

  Raises:
    UserError: the original has no such model, or the files cannot be written.
  """
  _check_expressible(weights)
  prefix = file_access.normal(prefix)
  scopes = dict(SCOPES)
  if not weights.discriminator:
    scopes['generator_embeddings'] = 'electra/embeddings'
  variables = to_variables(weights.params, scopes)
  moments = weights.moments
  # A frozen generator has no moments.
  if moments and moments['mu'].keys() == weights.params.keys():
    for ours, slot in SLOTS.items():
      values = to_variables(moments[ours], scopes)
      variables |= {f'{name}/{slot}': value for name, value in values.items()}
  if weights.step is not None:
    variables['global_step'] = np.asarray(weights.step, np.int64)
  settings = _settings_of(weights)
  save_variables(variables, prefix)
  if settings:
    text = json.dumps(settings, indent=2) + '\n'
    file_access.write_bytes(file_access.join(folder_of(prefix), SETTINGS), text.encode())
  write_state(prefix)
  return settings


def written_files(prefix: str) -> tuple[str, ...]:
  """Returns the names of the files that `write_checkpoint` may write."""
  return STATE, SETTINGS, *checkpoint_files(os.path.basename(prefix))


def _check_expressible(weights: Weights) -> None:
  """Raises UserError, with the reason, for a model that the original program does not have."""
  reason = _reason_against(weights)
  if reason:
    raise UserError(
      f'{weights.source} cannot be a checkpoint of the original TensorFlow program: {reason}.'
    )


def _reason_against(weights: Weights) -> str:
  """Returns why the original program has no such model, or ''."""
  for tower in filter(None, (weights.discriminator, weights.generator)):
    if tower.family != 'electra':
      return f'it is of the {tower.family} family, and the program has the electra family only'
    if tower.activation != 'gelu':
      return f'its activation is {tower.activation}, and that of the program is gelu'
    if tower.layer_norm_eps != _LAYER_NORM_EPS:
      return (
        f'its LayerNorm has an epsilon of {tower.layer_norm_eps:g}, and the program of '
        f'{_LAYER_NORM_EPS:g}'
      )
  if weights.head is not None:
    return (
      'it is fine-tuned, and the program has no common name for fine-tuned heads; export the '
      'pretrained run'
    )
  if not weights.generator or weights.sharing == 'all':
    return ''
  return _reason_against_generator(weights.generator, weights)


def _reason_against_generator(g: EncoderConfig, weights: Weights) -> str:
  heads = max(1, g.hidden_size // HEAD_SIZE)
  if g.num_heads != heads:
    return (
      f'its generator of width {g.hidden_size} has {g.num_heads} heads, and the program would make '
      f'{heads} heads'
    )
  if g.intermediate_size != 4 * g.hidden_size:
    return (
      f'its generator of width {g.hidden_size} has a feed-forward of {g.intermediate_size}, and '
      'the program would make one of 4 times the width'
    )
  d = weights.discriminator
  if not d or weights.sharing != 'none':
    return ''
  if g.embedding_size != g.hidden_size:
    return (
      f'its generator does not share embeddings and has them of {g.embedding_size} for a width of '
      f'{g.hidden_size}, and in the program these are equal'
    )
  for field in ('vocab_size', 'max_positions', 'type_vocab_size'):
    ours = getattr(d, field), getattr(g, field)
    if ours[0] != ours[1]:
      return f'{field} is {ours[0]} and {ours[1]} in its towers, and in the program these are equal'
  return ''


def _settings_of(weights: Weights) -> dict[str, Any]:
  """Returns the original's hyperparameters (configure_pretraining.py; util/training_utils.py)."""
  d = weights.discriminator
  g = weights.generator
  if not d:
    return {}
  settings: dict[str, Any] = {
    'vocab_size': d.vocab_size,
    'embedding_size': d.embedding_size,
    'model_hparam_overrides': {
      'hidden_size': d.hidden_size,
      'num_hidden_layers': d.num_layers,
      'num_attention_heads': d.num_heads,
      'intermediate_size': d.intermediate_size,
      'max_position_embeddings': d.max_positions,
      'type_vocab_size': d.type_vocab_size,
    },
  }
  if g:
    settings |= {
      'untied_generator': weights.sharing != 'all',
      'untied_generator_embeddings': weights.sharing == 'none',
      'generator_hidden_size': g.hidden_size / d.hidden_size,
      'generator_layers': g.num_layers / d.num_layers,
    }
  return settings

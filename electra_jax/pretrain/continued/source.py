"""Opens the weights of config.init and config.generator.init, and checks that they are usable."""

import dataclasses
import os
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import numpy as np

from electra_jax import file_access, hub, registry
from electra_jax.config import PretrainingConfig
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.interop import origins
from electra_jax.interop.weights import (
  GENERATOR,
  Weights,
  as_encoder,
  combine_towers,
  tower_params,
)
from electra_jax.model.config import EncoderConfig
from electra_jax.model.sharing.scheme import SharingScheme
from electra_jax.pretrain.build import objective_of
from electra_jax.training import run_folder
from electra_jax.training.encoders import sharing, towers

PyTree: TypeAlias = Any

RESOLVED = 'resolved.json'  # in the folder of a run: what its starts have chosen


@dataclasses.dataclass(frozen=True)
class InitialWeights:
  """Initial weights and their tokenizer.

  Attributes:
    weights: the weights, without rows that only pad the vocabulary.
    tokenizer: the tokenizer beside them; None where they have none.
    revisions: commit of each repository that was downloaded, by its source.
  """

  weights: Weights
  tokenizer: Tokenizer | None
  revisions: Mapping[str, str] = dataclasses.field(default_factory=dict)


class _Opener:
  """Opens sources, at the commits that an earlier start of the run used, and records commits."""

  def __init__(self, revisions: Mapping[str, str]) -> None:
    self.revisions = dict(revisions)

  def __call__(self, source: str, step: str = 'last', moments: bool = False) -> Weights:
    name, path = registry.split_source(source)
    pinned = f'{name}:{hub.pinned(path, self.revisions.get(source, ""))}' if name else source
    weights = origins.open_source(pinned, step, moments)
    if weights.revision:
      self.revisions[source] = weights.revision
    return weights


def recorded_revisions(workdir: str | os.PathLike[str] | None) -> dict[str, str]:
  """The commits that an earlier start in a folder recorded, by the source."""
  path = None if workdir is None else run_folder.folder(workdir) / RESOLVED
  if path is None or not file_access.exists(path):
    return {}
  found: dict[str, str] = run_folder.read_json(path).get('revisions', {})
  return found


def open_discriminator(
  config: PretrainingConfig, revisions: Mapping[str, str] = MappingProxyType({})
) -> InitialWeights:
  """The weights of config.init, with the generator of config.continued.generator if it names one.

  A generator that the run has no use for is removed. A masked language model is an encoder, whose
  head a run of masked language modeling and a narrowed generator take over. The head of a
  fine-tuned model is not used.

  Args:
    config: config of the run.
    revisions: of `recorded_revisions`.

  Raises:
    UserError: the weights cannot be opened, are not those of a pretrained discriminator, or lack a
      generator that the run requires.
  """
  c, uses_generator = config.continued, has_one_tower_generator(config)
  if c.generator and not uses_generator:
    raise UserError(
      f'config.continued.generator is {c.generator!r}, and the run has no generator of one tower '
      'beside the discriminator; remove it.'
    )
  opener = _Opener(revisions)
  weights = _as_main_tower(opener(config.init, c.step, c.optimizer != 'fresh'), config)
  if weights.discriminator is None:
    raise UserError(
      f'{weights.source} is a generator; config.init names the discriminator, and '
      'config.continued.generator its generator.'
    )
  one_encoder = scheme_of_weights(weights).one_encoder
  if weights.generator is not None and (c.generator or not uses_generator):
    if not (one_encoder and objective_of(config).one_tower):
      reason = ', by config.continued.generator' if c.generator else ''
      weights = _without_generator(weights, reason)
  if c.generator.startswith('hf:'):
    weights = _with_generator(weights, c.generator, opener)
  if weights.generator is None and uses_generator and not c.generator:
    raise UserError(
      f'{weights.source} has no generator; name one with --config.continued.generator=hf:FOLDER, '
      'or create one: scratch or narrowed (and train only the generator at first: '
      '--config.generator.alone_steps=1000).'
    )
  found = _with_tokenizer(weights, f'config.init {config.init}', config)
  return dataclasses.replace(found, revisions=opener.revisions)


def open_generator(
  config: PretrainingConfig, revisions: Mapping[str, str] = MappingProxyType({})
) -> InitialWeights:
  """The generator of config.generator.init, without the discriminator that it may have.

  Args:
    config: config of the run.
    revisions: of `recorded_revisions`.

  Raises:
    UserError: the weights cannot be opened, or have no generator.
  """
  init = config.generator.init
  opener = _Opener(revisions)
  weights = opener(init)
  if weights.generator is None or 'generator_head' not in weights.params:
    raise UserError(
      f'config.generator.init {init} holds no generator; name a masked language model '
      '(ElectraForMaskedLM, BertForMaskedLM and so on), a checkpoint of the original program with '
      'its generator, or a run of objective electra or mlm.'
    )
  tower = tower_params(weights, 'generator')
  params = {
    'generator_embeddings': tower['embeddings'],
    'generator': tower['encoder'],
    'generator_head': tower['head'],
  }
  weights = dataclasses.replace(
    weights, discriminator=None, sharing='none', moments=None, head=None, params=params
  )
  found = _with_tokenizer(weights, f'config.generator.init {init}', config)
  return dataclasses.replace(found, revisions=opener.revisions)


def _as_main_tower(weights: Weights, config: PretrainingConfig) -> Weights:
  """A masked language model or a fine-tuned model as the discriminator of a run."""
  if weights.head is not None:
    note = f'the head of {weights.source} for {weights.head.kind} is not used'
    return dataclasses.replace(weights, head=None, notes=(*weights.notes, note))
  found = as_encoder(weights)
  if found is weights or objective_of(config).one_tower:
    return found
  # Its head serves only a generator that is cut out of it.
  kept = found.params
  if config.continued.generator != 'narrowed':
    kept = {name: x for name, x in kept.items() if name != 'generator_head'}
  note = f'the encoder of the masked language model {weights.source} is the discriminator'
  return dataclasses.replace(
    found, generator=None, sharing='none', params=kept, notes=(*weights.notes, note)
  )


def _without_generator(weights: Weights, reason: str) -> Weights:
  """The discriminator of weights that have both towers."""

  def without(tree: PyTree) -> PyTree:
    return {name: subtree for name, subtree in tree.items() if name not in GENERATOR}

  moments = weights.moments and {name: without(tree) for name, tree in weights.moments.items()}
  return dataclasses.replace(
    weights,
    generator=None,
    sharing='none',
    params=without(weights.params),
    moments=moments,
    notes=(*weights.notes, f'the generator of {weights.source} is not used{reason}'),
  )


def _with_generator(weights: Weights, origin: str, opener: _Opener) -> Weights:
  """Weights with the generator of config.continued.generator.

  Raises:
    UserError: it cannot be opened, is not a generator, or does not fit the discriminator.
  """
  other = opener(origin)
  if other.generator is None:
    raise UserError(
      f'config.continued.generator {origin!r} holds no generator; name a masked language model '
      '(ElectraForMaskedLM, BertForMaskedLM and so on).'
    )
  if other.discriminator is not None:
    raise UserError(
      f'config.continued.generator {origin!r} holds both towers; name the folder of only the '
      'generator.'
    )
  return combine_towers(weights, other)


def _with_tokenizer(weights: Weights, field: str, config: PretrainingConfig) -> InitialWeights:
  if weights.tokenizer is None:
    return InitialWeights(weights, None)
  return InitialWeights(*origins.with_tokenizer(weights, field, *letter_cases(config)))


#### What a config means for weights ####


def has_one_tower_generator(config: PretrainingConfig) -> bool:
  """Whether the run has a generator that weights can have: one tower, beside the discriminator."""
  objective = objective_of(config)
  if objective.one_tower or objective.two_tower_generator:
    return False
  return not config.generator.uniform


def scheme_of(config: PretrainingConfig) -> SharingScheme:
  """What the towers of a run share."""
  name = sharing(config, objective_of(config).one_tower)
  scheme: SharingScheme = registry.SHARING_SCHEMES.get(name)
  return scheme


def scheme_of_weights(weights: Weights) -> SharingScheme:
  """What the towers of weights share."""
  scheme: SharingScheme = registry.SHARING_SCHEMES.get(weights.sharing)
  return scheme


def encoders_of(config: PretrainingConfig, vocab_size: int) -> tuple[EncoderConfig, EncoderConfig]:
  """Configs of generator and discriminator as weights have them: no row pads the vocabulary."""
  generator, discriminator = (
    dataclasses.replace(tower, vocab_multiple=1, attention='xla')
    for tower in towers(config, objective_of(config).one_tower, vocab_size, 'cpu')
  )
  return generator, discriminator


def letter_cases(config: PretrainingConfig) -> tuple[bool | None, bool | None]:
  """Values of lowercase and strip_accents for a vocabulary whose files do not record them."""
  choice = {'auto': None, 'yes': True, 'no': False}
  return choice[config.data.lowercase], choice[config.data.strip_accents]


def weights_digest(source: InitialWeights | None) -> int:
  """A checksum of all parameters, which processes compare; 0 without a source."""
  found = 0
  for path, value in jax.tree_util.tree_leaves_with_path(source.weights.params if source else {}):
    name = jax.tree_util.keystr(path).encode()
    found = zlib.crc32(np.ascontiguousarray(value).data, zlib.crc32(name, found))
  return found

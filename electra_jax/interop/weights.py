"""Model weights, independent of file formats: each format is read into `Weights`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import registry
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.errors import UserError
from electra_jax.model.config import EncoderConfig
from electra_jax.model.electra import Electra
from electra_jax.model.encoder import Inputs
from electra_jax.model.heads import FineTuned, init_finetuned

PyTree = Any
KeyPath = tuple[Any, ...]  # of jax.tree_util

# Top levels of the tree of parameters, by tower: embeddings, encoder, head.
DISCRIMINATOR = ('embeddings', 'discriminator', 'discriminator_head')
GENERATOR = ('generator_embeddings', 'generator', 'generator_head')
# Parameters whose first axis is the vocabulary.
_VOCABULARY_ROWS = frozenset(
  {
    ('embeddings', 'word'),
    ('generator_embeddings', 'word'),
    ('embeddings_difference', 'word'),
    ('generator_head', 'bias'),
    ('predictor_head', 'bias'),
  }
)
_LISTED_MISTAKES = 5  # in one error message


@dataclasses.dataclass(frozen=True)
class Head:
  """The head of a fine-tuned model.

  Attributes:
    kind: one of model.heads.KINDS.
    style: one of model.heads.STYLES.
    labels: label names by id; empty for regression and span.
    pooling: one of model.heads.POOLINGS, for model.heads.ROW_KINDS.
    params: the subtree `head` of model.heads.FineTuned.
  """

  kind: str
  style: str
  labels: tuple[str, ...]
  pooling: str
  params: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Weights:
  """The weights of one tower or of both, as NumPy arrays.

  Attributes:
    source: the folder or file that they were read from, as the user named it; for messages.
    discriminator: config of the discriminator with vocab_multiple=1 (no padding rows); None
      without a discriminator.
    generator: the same of the generator. Two towers that share embeddings agree in the fields
      that these depend on.
    sharing: 'embeddings', 'none' or 'all', as in model.electra.Electra. 'none' for a generator
      without a discriminator: its embeddings are `generator_embeddings`.
    params: float32 arrays in the tree of model.electra.Electra(generator, discriminator, sharing).
      Towers are complete; their heads may be missing.
    head: the head of a fine-tuned model, which has a discriminator and no discriminator_head.
    moments: Adam's moments, {'mu': tree, 'nu': tree} with the structure of params; None without.
    step: number of updates; None if the source does not record it.
    tokenizer: folder or file for data.tokenizers.load_tokenizer; None if the source has none.
    notes: sentences to print at the start: what was left out, or decided.
    revision: commit of the repository that they were downloaded from; '' for other sources.
  """

  source: str
  discriminator: EncoderConfig | None
  generator: EncoderConfig | None
  sharing: str
  params: dict[str, Any]
  head: Head | None = None
  moments: dict[str, Any] | None = None
  step: int | None = None
  tokenizer: str | None = None
  notes: tuple[str, ...] = ()
  revision: str = ''

  @property
  def vocab_size(self) -> int:
    """Rows of the embedding table."""
    return self.any_tower.vocab_size

  @property
  def any_tower(self) -> EncoderConfig:
    """The discriminator's config, or the generator's if there is no discriminator."""
    tower = self.discriminator or self.generator
    assert tower is not None, f'{self.source} has no tower'
    return tower


@dataclasses.dataclass(frozen=True)
class WeightFormat:
  """The weights of another program, in registry.WEIGHT_FORMATS.

  The writer of a format takes what that format needs and is called by export.py.

  Attributes:
    argument: placeholder of the path in help texts and messages, such as 'FOLDER'.
    read: (path, whether to read Adam's moments) -> Weights.
  """

  argument: str
  read: Callable[[str, bool], Weights]


def expected_shapes(weights: Weights) -> dict[str, Any]:
  """Returns the shapes of all parameters of the configs, heads included.

  Returns:
    A tree of jax.ShapeDtypeStruct.
  """
  head = weights.head and (
    weights.head.kind,
    max(1, len(weights.head.labels)),
    weights.head.pooling,
    weights.head.style,
  )
  return dict(_shapes(weights.discriminator, weights.generator, weights.sharing, head))


@functools.lru_cache(maxsize=64)  # tracing the model takes half a second
def _shapes(
  discriminator: EncoderConfig | None,
  generator: EncoderConfig | None,
  sharing: str,
  head: tuple[str, int, str, str] | None,
) -> PyTree:
  if head:
    assert discriminator is not None
    kind, labels, pooling, style = head
    model = FineTuned(discriminator, kind, labels=labels, pooling=pooling, style=style)
    return nn.unbox(jax.eval_shape(lambda: init_finetuned(model, 0)))
  ids = jnp.zeros((1, 8), jnp.int32)
  g = generator or discriminator
  d = discriminator or generator
  assert g and d
  both = Electra(g, d, sharing=sharing)
  positions = () if generator is None else (ids[:, :1],)
  method = None
  if generator is None:
    method = 'discriminator_logits'
  elif discriminator is None:
    method = 'generator_logits'

  def init() -> PyTree:
    inputs = Inputs(ids, ids, ids, ids)
    return both.init(jax.random.key(0), inputs, *positions, method=method)['params']

  return nn.unbox(jax.eval_shape(init))


def check_weights(weights: Weights, optional: tuple[str, ...] = ()) -> Weights:
  """Checks that every parameter of the configs is present, finite and of the right shape.

  Args:
    weights: the weights to check.
    optional: top levels of the tree that may be missing. A discriminator without its head, for
      example, can still be fine-tuned.

  Returns:
    The same weights.

  Raises:
    UserError: a parameter is missing, not finite, unknown or of another shape; the message has its
      path.
  """

  def name(path: KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='/')

  params = weights.params | ({'head': weights.head.params} if weights.head else {})
  found = {name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
  wrong = []
  for path, expected in jax.tree_util.tree_leaves_with_path(expected_shapes(weights)):
    value = found.pop(name(path), None)
    if value is None:
      top = path[0].key
      if top not in optional or top in weights.params:
        wrong.append(f'{name(path)} is missing')
    elif value.shape != expected.shape:
      sizes = f'{format_shape(value.shape)} and not {format_shape(expected.shape)}'
      wrong.append(f'{name(path)} is {sizes}')
    elif not np.isfinite(value).all():
      wrong.append(f'{name(path)} holds numbers that are not finite')
  wrong += [f'{unknown} is unknown' for unknown in found]
  if wrong:
    raise UserError(
      f'{weights.source} does not fit its own config: {join_mistakes(wrong, _LISTED_MISTAKES)}.'
    )
  return weights


def format_shape(shape: tuple[int, ...]) -> str:
  """Formats a shape for messages: '16 x 5'; 'a scalar' for ()."""
  return ' x '.join(map(str, shape)) or 'a scalar'


def join_mistakes(mistakes: list[str], most: int) -> str:
  """Joins the first mistakes for a message and counts the rest."""
  more = len(mistakes) - most
  return '; '.join(mistakes[:most]) + (f'; and {more} more' if more > 0 else '')


def same_bits(a: PyTree, b: PyTree) -> bool:
  """Whether two trees of float32 arrays have the same structure, shapes and bits."""
  structures: list[object] = [jax.tree.structure(tree) for tree in (a, b)]
  if structures[0] != structures[1]:
    return False
  return all(
    x.shape == y.shape
    and np.array_equal(np.asarray(x).view(np.uint32), np.asarray(y).view(np.uint32))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def combine_towers(discriminator: Weights, generator: Weights) -> Weights:
  """Joins the discriminator of one source and the generator of another.

  Embeddings (words, positions, types and their LayerNorm) that are equal bit for bit are shared.
  If the layers and configs are also equal, all parameters are shared.

  Args:
    discriminator: weights with a discriminator.
    generator: weights with a generator.

  Raises:
    UserError: the two have different vocabularies.
  """
  _check_vocabularies(discriminator, generator)
  if discriminator.discriminator is None or generator.generator is None:
    raise ValueError('expected a discriminator and a generator')
  embeddings = discriminator.params['embeddings']
  own_embeddings = generator.params['generator_embeddings']
  params = dict(discriminator.params) | {
    name: generator.params[name] for name in ('generator', 'generator_head')
  }
  notes = discriminator.notes + generator.notes
  d = _without_dropout(discriminator.discriminator)
  g = _without_dropout(generator.generator)
  sharing = 'embeddings'
  if not same_bits(embeddings, own_embeddings) or d.layer_norm_eps != g.layer_norm_eps:
    sharing = 'none'
    params['generator_embeddings'] = own_embeddings
    if jax.tree.map(np.shape, embeddings) == jax.tree.map(np.shape, own_embeddings):
      notes += (
        f'the embeddings of {generator.source} differ from those of {discriminator.source}: '
        'the towers do not share them',
      )
  elif d == g and same_bits(discriminator.params['discriminator'], generator.params['generator']):
    sharing = 'all'
    del params['generator']
  source = discriminator.source
  if generator.source != source:
    source = f'{source} and {generator.source}'
  return dataclasses.replace(
    discriminator,
    generator=generator.generator,
    sharing=sharing,
    params=params,
    notes=notes,
    source=source,
  )


def _without_dropout(config: EncoderConfig) -> EncoderConfig:
  return dataclasses.replace(config, dropout=0.0, attention_dropout=0.0)


def _check_vocabularies(discriminator: Weights, generator: Weights) -> None:
  if discriminator.vocab_size != generator.vocab_size:
    raise UserError(
      f'{discriminator.source} has a vocabulary of {discriminator.vocab_size} tokens and '
      f'{generator.source} of {generator.vocab_size}; expected a generator and a discriminator '
      'with the same vocabulary.'
    )
  if discriminator.tokenizer is None or generator.tokenizer is None:
    return
  # A tokenizer may have fewer tokens than vocab_size; the common part is compared.
  pairs = zip(
    load_tokenizer(discriminator.tokenizer).tokens,
    load_tokenizer(generator.tokenizer).tokens,
    strict=False,
  )
  if different := next(((i, a, b) for i, (a, b) in enumerate(pairs) if a != b), None):
    i, a, b = different
    raise UserError(
      f'{discriminator.source} and {generator.source} have different vocabularies: token {i} is '
      f'{a!r} in one and {b!r} in the other.'
    )


def as_encoder(weights: Weights) -> Weights:
  """Returns a masked language model as one tower, in families that are pretrained as such.

  Its encoder is the discriminator, as in a run of masked language modeling; the head is
  `generator_head`. Other weights are returned as they are.
  """
  config = weights.generator
  if weights.discriminator is not None or config is None or not config.traits.pretrained_by_mlm:
    return weights
  tower = tower_params(weights, 'generator')
  params = {'embeddings': tower['embeddings'], 'discriminator': tower['encoder']}
  if 'head' in tower:
    params['generator_head'] = tower['head']
  return dataclasses.replace(weights, discriminator=config, sharing='all', params=params)


def tower_params(weights: Weights, tower: str) -> dict[str, Any]:
  """Returns the parameters that one tower uses, shared ones included.

  Args:
    weights: the weights, with that tower.
    tower: 'generator' or 'discriminator'.

  Returns:
    {'embeddings': ..., 'encoder': ..., 'head': ...}; without 'head' if the weights lack it.
  """
  params = weights.params
  if tower == 'discriminator':
    found = {
      'embeddings': params['embeddings'],
      'encoder': params['discriminator'],
      'head': params.get('discriminator_head'),
    }
  else:
    scheme = registry.SHARING_SCHEMES.get(weights.sharing)
    found = {
      'embeddings': params['generator_embeddings' if scheme.separate_embeddings else 'embeddings'],
      'encoder': params['discriminator' if scheme.one_encoder else 'generator'],
      'head': params.get('generator_head'),
    }
  return {name: tree for name, tree in found.items() if tree is not None}


def place_params(tree: PyTree, shapes: PyTree, shardings: PyTree) -> PyTree:
  """Places NumPy arrays on devices, with zero rows that pad the vocabulary.

  The padding rows are never looked up and get no gradient. Each process provides the parts of its
  own devices.

  Args:
    tree: NumPy arrays.
    shapes: jax.ShapeDtypeStruct of each array, padded.
    shardings: jax.sharding.Sharding of each array.

  Returns:
    A tree of jax.Array.
  """

  def place(
    value: np.ndarray, shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding
  ) -> jax.Array:
    value = np.asarray(value)
    if value.shape != shape.shape:
      value = np.pad(value, [(0, b - a) for a, b in zip(value.shape, shape.shape, strict=True)])
    return jax.make_array_from_callback(shape.shape, sharding, lambda index: value[index])

  return jax.tree.map(place, tree, shapes, shardings)


def trim_vocabulary(tree: PyTree, vocab_size: int) -> PyTree:
  """Copies a tree of parameters to float32 NumPy arrays without padding rows of the vocabulary."""

  def trim(path: KeyPath, value: jax.Array | np.ndarray) -> np.ndarray:
    array = np.asarray(jax.device_get(value), np.float32)
    is_vocabulary = tuple(entry.key for entry in path) in _VOCABULARY_ROWS
    return array[:vocab_size] if is_vocabulary else array

  return jax.tree_util.tree_map_with_path(trim, tree)

"""Weights: what files of any program hold, in our terms. All formats are read into it and written from it."""

import dataclasses
import functools
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

# Top levels of our tree of parameters, by tower.
DISCRIMINATOR = ('embeddings', 'discriminator', 'discriminator_head')
GENERATOR = ('generator_embeddings', 'generator', 'generator_head')


@dataclasses.dataclass(frozen=True)
class Head:
  """The head of a fine-tuned model.

  Attributes:
    kind: of model.heads.KINDS.
    style: of model.heads.STYLES.
    labels: their names by id; empty for regression and span.
    pooling: of model.heads.POOLINGS, for classification and regression.
    params: the subtree `head` of model.heads.FineTuned.
  """

  kind: str
  style: str
  labels: tuple[str, ...]
  pooling: str
  params: dict


@dataclasses.dataclass(frozen=True)
class Weights:
  """One tower or both, on this machine.

  Attributes:
    source: where they are from, for sentences: a folder or file as the user named it.
    discriminator, generator: the towers' configs, with vocab_multiple=1: no row pads the vocabulary. None for one that is not there.
      Where both are, they agree in the fields that shared embeddings need, or `sharing` is none.
    sharing: as of model.electra.Electra: 'embeddings', 'none' or 'all'. Of a generator alone it is 'none': its table is
      `generator_embeddings`.
    params: float32 NumPy arrays in the tree of model.electra.Electra(generator, discriminator, sharing): whole towers, without the
      heads where `missing_heads` says so.
    head: of a fine-tuned model, which has a discriminator and no discriminator_head.
    moments: {'mu': tree, 'nu': tree} like params, Adam's; None where they are not there.
    step: updates made so far, where the source says so.
    tokenizer: the folder or file that data.tokenizers.load_tokenizer opens; None where the source has none.
    notes: sentences for the first screen: what was left out, or decided.
  """

  source: str
  discriminator: EncoderConfig | None
  generator: EncoderConfig | None
  sharing: str
  params: dict
  head: Head | None = None
  moments: dict | None = None
  step: int | None = None
  tokenizer: str | None = None
  notes: tuple[str, ...] = ()

  @property
  def vocab_size(self) -> int:
    return (self.discriminator or self.generator).vocab_size


def expected_shapes(weights: Weights) -> dict:
  """Shapes of all parameters that the configs ask for, heads included, as a tree of jax.ShapeDtypeStruct."""
  head = weights.head and (
    weights.head.kind,
    max(1, len(weights.head.labels)),
    weights.head.pooling,
    weights.head.style,
  )
  return dict(_shapes(weights.discriminator, weights.generator, weights.sharing, head))


@functools.lru_cache(maxsize=64)  # to trace the model takes half a second
def _shapes(discriminator, generator, sharing, head):
  if head:
    kind, labels, pooling, style = head
    model = FineTuned(discriminator, kind, labels=labels, pooling=pooling, style=style)
    return nn.unbox(jax.eval_shape(lambda: init_finetuned(model, 0)))
  ids = jnp.zeros((1, 8), jnp.int32)
  both = Electra(generator or discriminator, discriminator or generator, sharing=sharing)
  positions = () if generator is None else (ids[:, :1],)
  method = (
    'discriminator_logits'
    if generator is None
    else 'generator_logits'
    if discriminator is None
    else None
  )
  return nn.unbox(
    jax.eval_shape(
      lambda: both.init(jax.random.key(0), Inputs(ids, ids, ids, ids), *positions, method=method)[
        'params'
      ]
    )
  )


def checked(weights: Weights, optional: tuple[str, ...] = ()) -> Weights:
  """The same, once every parameter that the configs ask for is there in its shape.

  Args:
    optional: top levels of the tree that may be missing: a discriminator without its head can still be fine-tuned.

  Raises UserError that names, in our names, what is missing, misfits, or is no number.
  """

  def name(path):
    return jax.tree_util.keystr(path, simple=True, separator='/')

  there = {
    name(path): x
    for path, x in jax.tree_util.tree_leaves_with_path(
      weights.params | ({'head': weights.head.params} if weights.head else {})
    )
  }
  wrong = []
  for path, wanted in jax.tree_util.tree_leaves_with_path(expected_shapes(weights)):
    found = there.pop(name(path), None)
    if found is None:
      wrong += (
        []
        if path[0].key in optional and path[0].key not in weights.params
        else [f'{name(path)} is missing']
      )
    elif found.shape != wanted.shape:
      wrong.append(f'{name(path)} is {_times(found.shape)} and not {_times(wanted.shape)}')
    elif not np.isfinite(found).all():
      wrong.append(f'{name(path)} holds numbers that are not finite')
  wrong += [f'{left} has no place' for left in there]
  if wrong:
    raise UserError(
      f'{weights.source} does not fit its own config: '
      + '; '.join(wrong[:5])
      + ('; ...' if len(wrong) > 5 else '')
      + '.'
    )
  return weights


def _times(shape):
  return ' x '.join(map(str, shape)) or 'a scalar'


def same_bits(a, b) -> bool:
  """Whether two trees of arrays are the same, bit for bit."""
  if jax.tree.structure(a) != jax.tree.structure(b):
    return False
  return all(
    x.shape == y.shape
    and np.array_equal(np.asarray(x).view(np.uint32), np.asarray(y).view(np.uint32))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def combined(discriminator: Weights, generator: Weights) -> Weights:
  """Both towers, of two sources: one that has the discriminator and one that has the generator.

  Where the two tables, positions, types and their norm are the same bit for bit, they are shared; where the layers and the configs are, too,
  all is.

  Raises UserError where they have different vocabularies.
  """
  _check_vocabularies(discriminator, generator)
  tables, layers = discriminator.params['embeddings'], discriminator.params['discriminator']

  def as_used(config):
    return dataclasses.replace(config, dropout=0.0, attention_dropout=0.0)

  d, g = as_used(discriminator.discriminator), as_used(generator.generator)
  params = dict(discriminator.params) | {
    name: generator.params[name] for name in ('generator', 'generator_head')
  }
  notes, sharing = discriminator.notes + generator.notes, 'embeddings'
  if (
    not same_bits(tables, generator.params['generator_embeddings'])
    or d.layer_norm_eps != g.layer_norm_eps
  ):
    sharing, params['generator_embeddings'] = 'none', generator.params['generator_embeddings']
    if jax.tree.map(np.shape, tables) == jax.tree.map(np.shape, params['generator_embeddings']):
      notes += (
        f'the embeddings of {generator.source} are not those of {discriminator.source}: each tower keeps its own',
      )
  elif d == g and same_bits(layers, generator.params['generator']):
    sharing = 'all'
    del params['generator']
  return dataclasses.replace(
    discriminator,
    generator=generator.generator,
    sharing=sharing,
    params=params,
    notes=notes,
    source=discriminator.source
    if discriminator.source == generator.source
    else f'{discriminator.source} and {generator.source}',
  )


def _check_vocabularies(discriminator, generator):
  if discriminator.vocab_size != generator.vocab_size:
    raise UserError(
      f'{discriminator.source} has a vocabulary of {discriminator.vocab_size} tokens and {generator.source} of {generator.vocab_size}; '
      'a generator and its discriminator have the same.'
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
      f'{discriminator.source} and {generator.source} have different vocabularies: token {i} is {a!r} in one and {b!r} in the other.'
    )


def of_tower(weights: Weights, tower: str) -> dict[str, Any]:
  """One tower by itself: {'embeddings', 'encoder', 'head'} of 'generator' or 'discriminator', where the two share parameters too.

  `head` is missing where the weights lack it.
  """
  p, scheme = weights.params, registry.SHARING_SCHEMES.get(weights.sharing)
  if tower == 'discriminator':
    found = {
      'embeddings': p['embeddings'],
      'encoder': p['discriminator'],
      'head': p.get('discriminator_head'),
    }
  else:
    found = {
      'embeddings': p['generator_embeddings'] if scheme.separate_embeddings else p['embeddings'],
      'encoder': p['discriminator'] if scheme.one_encoder else p['generator'],
      'head': p.get('generator_head'),
    }
  return {name: tree for name, tree in found.items() if tree is not None}


def padded(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """With zeros at the end of each axis up to `shape`: rows that pad a vocabulary are never seen, and never learn."""
  return (
    np.pad(value, [(0, want - have) for have, want in zip(value.shape, shape, strict=True)])
    if value.shape != shape
    else value
  )


def placed(tree, shapes, shardings):
  """NumPy arrays as JAX's with the given shardings, vocabularies padded: each process hands its devices their own parts."""

  def place(value, shape, sharding):
    value = padded(np.asarray(value), shape.shape)
    return jax.make_array_from_callback(shape.shape, sharding, lambda index: value[index])

  return jax.tree.map(place, tree, shapes, shardings)


def trimmed(tree, vocab_size: int):
  """The other way: our arrays as NumPy's, float32, without the rows that pad the vocabulary."""
  vocab = {
    (name, 'word') for name in ('embeddings', 'generator_embeddings', 'embeddings_difference')
  } | {('generator_head', 'bias'), ('predictor_head', 'bias')}

  def trim(path, value):
    value = np.asarray(jax.device_get(value), np.float32)
    return value[:vocab_size] if tuple(entry.key for entry in path) in vocab else value

  return jax.tree_util.tree_map_with_path(trim, tree)

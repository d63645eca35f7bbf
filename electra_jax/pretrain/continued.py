"""Going on from weights that are there: Hugging Face's, the original's, or a run's. What is kept, what is made anew, and saying so.

Of config.init that is a discriminator and its generator; of config.generator.init a generator alone, beside a fresh discriminator.
"""

import dataclasses
import os
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from electra_jax import file_access, registry
from electra_jax.config import PretrainingConfig, flat, phases_of
from electra_jax.data.store.shard_cache import default_cache
from electra_jax.data.tokenizers import vocabulary
from electra_jax.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.interop import narrowed, origins, own
from electra_jax.interop.weights import (
  GENERATOR,
  Weights,
  combined,
  expected_shapes,
  of_tower,
  placed,
)
from electra_jax.model.config import EncoderConfig
from electra_jax.training import checkpoints, run_folder
from electra_jax.training.encoders import run_config, sharing, towers
from electra_jax.training.update_step import TrainState

# Fields of config.model that the weights decide.
SIZES = (
  'family',
  'hidden_size',
  'embedding_size',
  'num_layers',
  'num_heads',
  'intermediate_size',
  'max_positions',
  'type_vocab_size',
  'layer_norm_eps',
  'global_every',
  'local_window',
  'global_rope_theta',
  'local_rope_theta',
)
# Fields that both towers have from config.model.
COMMON = (
  'family',
  'vocab_size',
  'max_positions',
  'type_vocab_size',
  'layer_norm_eps',
  'global_every',
  'local_window',
  'global_rope_theta',
  'local_rope_theta',
)
# Of those, what a family does not have.
IDLE = {
  'electra': ('global_every', 'local_window', 'global_rope_theta', 'local_rope_theta'),
  'modern': ('max_positions', 'type_vocab_size'),
}
# Fields of config.generator that a generator that is there decides.
GENERATOR_SIZES = (
  'hidden_fraction',
  'layers_fraction',
  'num_heads',
  'intermediate_size',
  'embedding_size',
)


class Source(NamedTuple):
  """Weights to go on from, without rows that only pad the vocabulary, and the tokenizer beside them; None where there is none."""

  weights: Weights
  tokenizer: Tokenizer | None


class Start(NamedTuple):
  """What a run begins with.

  params: NumPy arrays by our names; what is not there is made fresh.
  moments: {'mu', 'nu'} like it, or None.
  step: of the schedule, where it begins: 0 unless it goes on with the source's.
  updates: that Adam's moments have seen.
  told: (label, sentence) for the first screen.
  """

  params: dict
  moments: dict | None
  step: int
  updates: int
  told: list


def with_sizes(
  config: PretrainingConfig, workdir: str | os.PathLike[str] | None = None
) -> tuple[PretrainingConfig, Source | None]:
  """The config with the sizes of its initial weights, and these as a Source; None without them.

  Initial weights are those of config.init, or of config.generator.init. Where `workdir` holds a run
  that has saved a checkpoint, the sizes are those that the run was started with, and the weights
  are not read: such a run continues without them.

  Raises:
    UserError: where the weights cannot be opened, the config cannot hold them, or it asks for what
      they lack.
  """
  if not config.init and not config.generator.init:
    return config, None
  started = (
    run_config(run_folder.folder(workdir)) if workdir and checkpoints.any_saved(workdir) else None
  )
  if not config.init:
    return _with_generator(config, started)
  if started:
    kept = [f'model.{name}' for name in SIZES] + ['data.vocab_size']
    if config.continued.generator not in ('scratch', 'narrowed'):
      kept += ['sharing', *(f'generator.{name}' for name in GENERATOR_SIZES)]
    values = flat(started)
    return config.replace({name: values[name] for name in kept}), None
  source = _open(config)
  weights = source.weights
  config = _with_discriminator(config, weights)
  if config.continued.optimizer != 'fresh' and weights.moments is None:
    raise UserError(
      f"{weights.source} has no optimizer's state; set --config.continued.optimizer=fresh."
    )
  if config.continued.optimizer == 'resumed' and not 0 <= (weights.step or -1) < config.steps:
    raise UserError(
      f'{weights.source} is at step {weights.step} and config.steps is {config.steps}, all steps '
      'together; raise it, or set --config.continued.optimizer=kept for a schedule of its own.'
    )
  return config, source


def _with_discriminator(config: PretrainingConfig, weights: Weights) -> PretrainingConfig:
  """The config with the sizes of both towers of `weights`, where they have both."""
  d, g = weights.discriminator, weights.generator
  changes = {f'model.{name}': getattr(d, name) for name in SIZES}
  changes['data.vocab_size'] = weights.vocab_size
  longest = max(phase.config.sequence_length for phase in phases_of(config))
  if d.family == 'electra' and longest > d.max_positions:
    if config.continued.positions == 'refuse':
      raise UserError(
        f'{weights.source} has {d.max_positions} positions and config.sequence_length is {longest}; '
        'shorten the rows, or make more positions: --config.continued.positions=interpolated or '
        'repeated.'
      )
    changes['model.max_positions'] = longest
  config = config.replace(changes)
  if g is None:
    if config.continued.generator == 'narrowed':
      narrowed.check(d, _towers(config, weights.vocab_size)[0], weights.source)
    return config
  for name in COMMON:
    if getattr(g, name) != getattr(d, name):
      raise UserError(
        f'{weights.source}: {name} is {getattr(g, name)} in the generator and {getattr(d, name)} in '
        'the discriminator, and one config holds both; make another generator '
        '(--config.continued.generator=scratch).'
      )
  in_two_parts = (
    config.sharing == 'disentangled'
    and weights.sharing == 'none'
    and g.embedding_size == d.embedding_size
  )
  sharing_of_both = 'disentangled' if in_two_parts else weights.sharing
  return _with_generator_sizes(config.replace({'sharing': sharing_of_both}), g)


def _with_generator_sizes(config: PretrainingConfig, g: EncoderConfig) -> PretrainingConfig:
  d = config.model
  return config.replace(
    {
      'generator.hidden_fraction': g.hidden_size / d.hidden_size,
      'generator.layers_fraction': g.num_layers / d.num_layers,
      'generator.num_heads': g.num_heads,
      'generator.intermediate_size': g.intermediate_size,
      'generator.embedding_size': (g.embedding_size if g.embedding_size != d.embedding_size else 0),
    }
  )


def _with_generator(
  config: PretrainingConfig, started: PretrainingConfig | None
) -> tuple[PretrainingConfig, Source | None]:
  """`with_sizes` of config.generator.init."""
  init = config.generator.init
  if started:
    values = flat(started)
    kept = ['data.vocab_size', *(f'generator.{name}' for name in GENERATOR_SIZES)]
    return config.replace({name: values[name] for name in kept}), None
  weights = origins.open_source(init)
  if weights.generator is None or 'generator_head' not in weights.params:
    raise UserError(
      f'config.generator.init {init} holds no generator; name a masked language model '
      '(ElectraForMaskedLM, ModernBertForMaskedLM), a checkpoint of the original with its '
      'generator, or a run of objective electra or mlm.'
    )
  g, tower = weights.generator, of_tower(weights, 'generator')
  params = {
    'generator_embeddings': tower['embeddings'],
    'generator': tower['encoder'],
    'generator_head': tower['head'],
  }
  weights = dataclasses.replace(
    weights, discriminator=None, sharing='none', moments=None, head=None, params=params
  )
  source = Source(weights, None)
  if weights.tokenizer is not None:
    source = Source(
      *origins.with_tokenizer(weights, f'config.generator.init {init}', *_cases(config))
    )
  _check_common_sizes(config, g, weights.source)
  config = _with_generator_sizes(config, g)
  return config.replace({'data.vocab_size': source.weights.vocab_size}), source


def _check_common_sizes(config: PretrainingConfig, g: EncoderConfig, source: str) -> None:
  """Raises UserError where a generator cannot stand beside the discriminator of the config."""
  unused = ('vocab_size', *IDLE[g.family])
  differ = [
    name
    for name in COMMON
    if name not in unused and getattr(g, name) != getattr(config.model, name)
  ]
  if differ:
    flags = ' '.join(f'--config.model.{name}={getattr(g, name)}' for name in differ)
    raise UserError(
      f'{source} and config.model differ in {", ".join(differ)}, which both towers have from '
      f'config.model; set {flags}.'
    )
  if config.sharing == 'disentangled' and g.embedding_size != config.model.embedding_size:
    raise UserError(
      f'{source} has embeddings of {g.embedding_size} and config.model.embedding_size is '
      f'{config.model.embedding_size}; make the two equal for disentangled embeddings, or set '
      '--config.sharing=none.'
    )


def _open(config: PretrainingConfig) -> Source:
  made, c = config.continued.generator, config.continued
  objective = registry.OBJECTIVES.get(config.objective.name)
  mlm = objective.one_tower
  bare = (
    mlm or objective.two_tower_generator or config.generator.uniform
  )  # no place for a generator that is there
  if made and bare:
    raise UserError(
      f'config.continued.generator is {made!r}, and the run has no generator of one tower beside the kept one; leave it out.'
    )
  weights = origins.open_source(config.init, c.step, c.optimizer != 'fresh')
  if weights.discriminator is None:
    raise UserError(
      f'{weights.source} is a generator; config.init names the discriminator, and config.continued.generator its generator.'
    )
  if weights.head is not None:
    raise UserError(
      f'{weights.source} is a fine-tuned model; name the pretrained one that it began with.'
    )
  if (
    weights.generator is not None and (made or bare) and not (mlm and weights.sharing == 'all')
  ):  # theirs is left

    def without(tree):
      return {name: subtree for name, subtree in tree.items() if name not in GENERATOR}

    moments = weights.moments and {name: without(tree) for name, tree in weights.moments.items()}
    weights = dataclasses.replace(
      weights,
      generator=None,
      sharing='none',
      params=without(weights.params),
      moments=moments,
      notes=weights.notes
      + (
        f'the generator of {weights.source} is left behind'
        + (', by config.continued.generator' if made else ''),
      ),
    )
  if made.startswith('hf:'):
    other = origins.open_source(made)
    if other.generator is None:
      raise UserError(
        f'config.continued.generator {made!r} holds no generator; name a folder of ElectraForMaskedLM or ModernBertForMaskedLM.'
      )
    if other.discriminator is not None:
      raise UserError(
        f'config.continued.generator {made!r} holds both towers; name the folder of the generator alone.'
      )
    weights = combined(weights, other)
  if weights.generator is None and not made and not bare:
    raise UserError(
      f'{weights.source} has no generator; name one with --config.continued.generator=hf:FOLDER, or make one: scratch or narrowed (and let it '
      'catch up alone: --config.generator.alone_steps=1000).'
    )
  if weights.tokenizer is None:
    return Source(weights, None)
  return Source(*origins.with_tokenizer(weights, f'config.init {config.init}', *_cases(config)))


def _cases(config: PretrainingConfig) -> tuple[bool | None, bool | None]:
  """How letters are read where nothing beside a vocabulary says it: lowercase, strip_accents."""
  choice = {'auto': None, 'yes': True, 'no': False}
  return choice[config.data.lowercase], choice[config.data.strip_accents]


def _one_tower(config: PretrainingConfig) -> bool:
  return bool(registry.OBJECTIVES.get(config.objective.name).one_tower)


def _towers(config: PretrainingConfig, vocab_size: int) -> tuple[EncoderConfig, EncoderConfig]:
  return tuple(
    dataclasses.replace(tower, vocab_multiple=1, attention='xla')
    for tower in towers(config, _one_tower(config), vocab_size, 'cpu')
  )


def digest(source: Source | None) -> int:
  """A checksum of all parameters, that processes may compare."""
  found = 0
  for path, value in jax.tree_util.tree_leaves_with_path(source.weights.params if source else {}):
    found = zlib.crc32(
      np.ascontiguousarray(value), zlib.crc32(jax.tree_util.keystr(path).encode(), found)
    )
  return found


def tokenizer_path(
  config: PretrainingConfig, source: Source | None, workdir: os.PathLike[str] | None = None
) -> str | None:
  """Where the tokenizer is that config.data.tokenizer='init' names, with config.data.new_words in it; None for any other.

  Args:
    source: of `with_sizes`; None where the run was begun before and keeps its tokenizer in WORKDIR.

  Raises UserError where the source has no tokenizer, a word cannot be a token, or the vocabulary that the rows are to have does not follow
  from the source's: before they are made.
  """
  if not (config.init or config.generator.init) or config.data.store:
    return None
  path = None
  if config.data.tokenizer == 'init':
    if source is None:
      return str(run_folder.folder(workdir) / 'tokenizer')
    if source.tokenizer is None:
      raise UserError(
        f'{source.weights.source} has no tokenizer beside it; put its vocab.txt there, or name it: --config.data.tokenizer=FILE.'
      )
    path = source.weights.tokenizer
    if config.data.new_words:
      longer = source.tokenizer.with_words(vocabulary.read_words(config.data.new_words))
      path = file_access.join(
        file_access.normal(config.data.cache or default_cache()),
        'tokenizers',
        f'extended-{longer.fingerprint}',
      )
      longer.save(path)
  if source is not None:
    tokenizer = load_tokenizer(path or file_access.normal(config.data.tokenizer), *_cases(config))
    if config.init:
      _rows(config, source, tokenizer, [])
    else:
      _same_tokens(source, tokenizer)
  return path


def begin(config: PretrainingConfig, source: Source, tokenizer: Tokenizer) -> Start:
  """The parameters of a run of `config` from `source`, its vocabulary that of `tokenizer`.

  Args:
    config, source: of `with_sizes`.
    tokenizer: of the rows that it will read.

  Raises UserError where the vocabulary does not follow from the source's.
  """
  weights, c = source.weights, config.continued
  if source.tokenizer is None:
    weights = origins.cut(
      weights,
      tokenizer.size,
      f'config.{"init" if config.init else "generator.init"} {config.init or config.generator.init}',
    )
  told = [('init', note) for note in weights.notes]
  generator, discriminator = _towers(config, tokenizer.size)
  if not config.init:
    _same_tokens(source, tokenizer)
    told.append(
      (
        'init',
        f'the generator is that of {weights.source}, {generator.num_layers} layers of {generator.hidden_size}, and '
        + ('stays as it is' if config.generator.frozen else 'goes on learning')
        + '; the discriminator is fresh',
      )
    )
    _check(
      weights.params,
      expected_shapes(
        Weights(
          weights.source,
          discriminator,
          generator,
          sharing(config, _one_tower(config)),
          weights.params,
        )
      ),
      weights,
    )
    return Start(weights.params, None, 0, 0, told)
  heads = registry.OBJECTIVES.get(config.objective.name).heads
  if weights.generator is None and 'generator_head' in heads and not config.generator.uniform:
    if c.generator == 'narrowed':
      weights = narrowed.with_generator(
        weights, dataclasses.replace(generator, vocab_size=weights.vocab_size), config.sharing
      )
    what = 'cut out of the discriminator' if c.generator == 'narrowed' else 'made from scratch'
    alone = config.generator.alone_steps
    told.append(
      (
        'init',
        'the head that predicts masked tokens is made from scratch'
        if _one_tower(config)
        else f'the generator is {what}, {generator.num_layers} layers of {generator.hidden_size}'
        + (
          f', and learns alone for {alone:,} steps'
          if alone
          else '; --config.generator.alone_steps=N lets it catch up alone first'
        ),
      )
    )
  if 'discriminator_head' in heads and 'discriminator_head' not in weights.params:
    told.append(('init', "the discriminator's head is made from scratch: the source has none"))

  rows = _rows(config, source._replace(weights=weights), tokenizer, told)

  def grow(tree, new_rows):
    return _grown(tree, weights.discriminator, discriminator, rows, c.positions, new_rows)

  params, moments = grow(weights.params, True), None
  if (
    discriminator.max_positions > weights.discriminator.max_positions
    and discriminator.family == 'electra'
  ):
    told.append(
      (
        'init',
        f'{weights.discriminator.max_positions} positions {c.positions} to {discriminator.max_positions}',
      )
    )
  if c.optimizer != 'fresh':
    moments = {name: grow(tree, False) for name, tree in weights.moments.items()}
  if sharing(config, _one_tower(config)) == 'disentangled':
    params, moments = (
      own.unfolded(params),
      moments and {name: own.unfolded(tree, values=False) for name, tree in moments.items()},
    )
  step = weights.step if c.optimizer == 'resumed' else 0
  warmup = phases_of(config)[0].config.optimizer.warmup_steps
  told.append(
    (
      'init',
      {
        'fresh': 'a fresh optimizer',
        'kept': "Adam's moments kept",
        'resumed': "Adam's moments kept",
      }[c.optimizer]
      + (
        f', and the schedule goes on at step {step:,}'
        if c.optimizer == 'resumed'
        else f', and the learning rate warmed up anew over {warmup:,} steps'
        if warmup
        else ', and the learning rate from its peak'
      ),
    )
  )
  _check(
    params,
    expected_shapes(
      Weights(weights.source, discriminator, generator, sharing(config, _one_tower(config)), params)
    ),
    weights,
  )
  # Without a count the moments have seen so many updates that a correction of their bias is none.
  return Start(params, moments, step, weights.step or 1_000_000 if moments else 0, told)


def _check(params, shapes, weights):
  """That each array has the place that the run's model has for it."""

  def name(path):
    return jax.tree_util.keystr(path, simple=True, separator='/')

  wanted = {name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(shapes)}
  for path, value in jax.tree_util.tree_leaves_with_path(params):
    if wanted.get(name(path)) != value.shape:
      raise UserError(
        f'{weights.source}: {name(path)} is {value.shape} and the run has {wanted.get(name(path), "no such parameter")} for it.'
      )


def _same_tokens(source, tokenizer):
  """Raises UserError where config.generator.init predicts tokens of another vocabulary than the rows'."""
  theirs = source.tokenizer and source.tokenizer.tokens
  if theirs is not None and theirs != tokenizer.tokens:
    i = next(
      (i for i, (a, b) in enumerate(zip(theirs, tokenizer.tokens, strict=False)) if a != b),
      min(len(theirs), tokenizer.size),
    )

    def name(tokens):
      return repr(tokens[i]) if i < len(tokens) else 'none'

    raise UserError(
      f'{source.weights.source} has another vocabulary than the rows: token {i} is {name(theirs)} there and {name(tokenizer.tokens)} here; set '
      '--config.data.tokenizer=init, or prepare the rows with its tokenizer.'
    )


def _rows(config, source, tokenizer, told):
  """Old id of each token, -1 for a new one, int32 [vocab]; and of each new token the old ids that it is made of, None for all of them."""
  old, size, how = source.tokenizer, source.weights.vocab_size, config.continued.new_tokens
  if old is None or old.tokens == tokenizer.tokens:
    return np.arange(tokenizer.size), []
  ids, new = vocabulary.carried_over(old, tokenizer)
  if new and how == 'refuse':
    raise UserError(
      f'{len(new):,} tokens of the tokenizer are not among those of {source.weights.source} ({tokenizer.token(new[0])!r} is the first); say what '
      'their rows begin with: --config.continued.new_tokens=mean or pieces.'
    )
  dropped = size - len(np.unique(ids[ids >= 0]))
  told.append(
    (
      'init',
      '; '.join(
        filter(
          None,
          [
            f'{len(new):,} new tokens, their rows the mean of {"their pieces" if how == "pieces" else "all rows"}'
            if new
            else '',
            f'{dropped:,} tokens of the source are gone' if dropped else '',
          ],
        )
        or ['the tokens are those of the source, at other ids']
      ),
    )
  )
  return ids, vocabulary.pieces_of(old, tokenizer, new) if how == 'pieces' else [None] * len(new)


def _grown(tree, old, new, rows, how, new_rows: bool):
  """A tree of parameters, or of moments, with the run's vocabulary and positions. `new_rows`: of means, else zeros."""
  ids, pieces = rows

  def vocab(value):
    if not len(pieces) and np.array_equal(ids, np.arange(len(value))):
      return value
    grown, mean = value[np.maximum(ids, 0)], value.mean(0)
    fresh = np.flatnonzero(ids < 0)
    grown[fresh] = (
      [mean if p is None else value[np.asarray(p)].mean(0) for p in pieces]
      if new_rows and len(fresh)
      else 0
    )
    return grown

  def positions(value):
    if new.max_positions == old.max_positions:
      return value
    if how == 'repeated':
      return value[np.arange(new.max_positions) % old.max_positions]
    places = np.linspace(0, old.max_positions - 1, new.max_positions)
    return np.stack(
      [np.interp(places, np.arange(old.max_positions), column) for column in value.T], axis=1
    ).astype(np.float32)

  def change(path, value):
    names = tuple(entry.key for entry in path)
    if names[-1] == 'word' or names == ('generator_head', 'bias'):
      return vocab(value)
    return positions(value) if names[-1] == 'position' else value

  return jax.tree_util.tree_map_with_path(change, tree)


def put(start: Start, state: TrainState, shardings: TrainState) -> TrainState:
  """A fresh state with what `start` has in the place of what it has fresh."""

  def over(tree, fresh, where):
    names = [name for name in fresh if name in tree]

    def pick(whole):
      return {name: whole[name] for name in names}

    return {**fresh, **placed(pick(tree), pick(fresh), pick(where))}

  params, opt_state = over(start.params, state.params, shardings.params), state.opt_state
  if start.moments is not None:

    def is_adam(x):
      return isinstance(x, optax.ScaleByAdamState)

    def kept(fresh, where):
      if not is_adam(fresh):
        return fresh
      moments = {
        name: over(start.moments[name], getattr(fresh, name), getattr(where, name))
        for name in ('mu', 'nu')
      }
      return fresh._replace(count=_number(start.updates, fresh.count), **moments)

    opt_state = jax.tree.map(kept, opt_state, shardings.opt_state, is_leaf=is_adam)
  if start.step:

    def is_schedule(x):
      return isinstance(x, optax.ScaleByScheduleState)

    opt_state = jax.tree.map(
      lambda x: x._replace(count=_number(start.step, x.count)) if is_schedule(x) else x,
      opt_state,
      is_leaf=is_schedule,
    )
  return state._replace(params=params, opt_state=opt_state, step=_number(start.step, state.step))


def _number(value: int, like: Any):
  return jax.make_array_from_callback(
    (), like.sharding, lambda index: np.asarray(value, like.dtype)
  )

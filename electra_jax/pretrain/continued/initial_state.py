"""The state of a run before its first step, from initial weights."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
import optax

from electra_jax.config import PretrainingConfig, phases_of
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.interop import narrowed, origins
from electra_jax.interop.weights import Weights, expected_shapes, place_params
from electra_jax.model.config import EncoderConfig
from electra_jax.pretrain.build import objective_of
from electra_jax.pretrain.continued.source import (
  InitialWeights,
  encoders_of,
  scheme_of,
)
from electra_jax.pretrain.continued.tokens import TokenRows, carried_rows, check_same_tokens
from electra_jax.training.update_step import TrainState

PyTree: TypeAlias = Any
# Updates that Adam's moments have seen where the source does not record them: so many that the
# correction of their bias has no effect.
UNKNOWN_UPDATES = 1_000_000


@dataclasses.dataclass(frozen=True)
class InitialState:
  """What a run takes from its initial weights.

  Attributes:
    params: top-level parameters by name, NumPy arrays; the others are initialized randomly.
    moments: Adam's moments, {'mu': tree, 'nu': tree} like `params`; None for zeros.
    step: of the schedule at the start; 0 unless the schedule of the source continues.
    updates: number of updates that `moments` have seen.
    notes: sentences for the console.
  """

  params: PyTree
  moments: dict[str, PyTree] | None = None
  step: int = 0
  updates: int = 0
  notes: tuple[str, ...] = ()


def initial_state(
  config: PretrainingConfig, source: InitialWeights, tokenizer: Tokenizer
) -> InitialState:
  """What a run takes from its initial weights.

  Args:
    config: config of the run, with the sizes of the weights.
    source: the weights.
    tokenizer: tokenizer of the rows.

  Raises:
    UserError: the vocabulary of the rows does not fit that of the weights.
  """
  if source.tokenizer is None:
    field, name = (
      ('init', config.init) if config.init else ('generator.init', config.generator.init)
    )
    weights = origins.without_padding_rows(source.weights, tokenizer.size, f'config.{field} {name}')
    source = dataclasses.replace(source, weights=weights)
  state = (_from_discriminator if config.init else _from_generator)(config, source, tokenizer)
  generator, discriminator = encoders_of(config, tokenizer.size)
  expected = Weights(
    source.weights.source, discriminator, generator, scheme_of(config).name, state.params
  )
  _check_shapes(state.params, expected_shapes(expected), source.weights.source)
  return dataclasses.replace(state, notes=(*source.weights.notes, *state.notes))


def _from_generator(
  config: PretrainingConfig, source: InitialWeights, tokenizer: Tokenizer
) -> InitialState:
  """The generator of config.generator.init, beside a new discriminator."""
  check_same_tokens(source, tokenizer)
  g = source.weights.generator
  assert g is not None
  training = 'frozen' if config.generator.frozen else 'trained further'
  note = (
    f'the generator is that of {source.weights.source}, {g.num_layers} layers of {g.hidden_size}, '
    f'{training}; the discriminator is new'
  )
  return InitialState(source.weights.params, notes=(note,))


def _from_discriminator(
  config: PretrainingConfig, source: InitialWeights, tokenizer: Tokenizer
) -> InitialState:
  """The weights of config.init, with the vocabulary and the positions of the run."""
  weights, notes = _with_missing_towers(config, source.weights, tokenizer.size)
  rows = carried_rows(config, dataclasses.replace(source, weights=weights), tokenizer)
  notes += [rows.note] if rows.note else []
  _, discriminator = encoders_of(config, tokenizer.size)
  old = weights.discriminator
  assert old is not None
  resize = _Resize(rows, old.max_positions, discriminator.max_positions, config.continued.positions)
  if discriminator.has_position_table and resize.positions > resize.old_positions:
    notes.append(f'{resize.old_positions} positions {resize.how} to {resize.positions}')
  scheme = scheme_of(config)
  params = scheme.unfold(resize(weights.params, initialize=True))
  moments = None
  if config.continued.optimizer != 'fresh':
    assert weights.moments is not None
    moments = {
      name: scheme.unfold(resize(tree, initialize=False), values=False)
      for name, tree in weights.moments.items()
    }
  step = (weights.step or 0) if config.continued.optimizer == 'resumed' else 0
  updates = (weights.step or UNKNOWN_UPDATES) if moments else 0
  notes.append(_optimizer_note(config, step))
  return InitialState(params, moments, step, updates, tuple(notes))


def _with_missing_towers(
  config: PretrainingConfig, weights: Weights, vocab_size: int
) -> tuple[Weights, list[str]]:
  """The weights with a narrowed generator, if the config has one, and notes on what is new."""
  heads = objective_of(config).heads
  how, notes = config.continued.generator, []
  if weights.generator is None and 'generator_head' in heads and not config.generator.uniform:
    generator, _ = encoders_of(config, vocab_size)
    if how == 'narrowed':
      as_weights = dataclasses.replace(generator, vocab_size=weights.vocab_size)
      weights = narrowed.with_generator(weights, as_weights, config.sharing)
    notes.append(_generator_note(config, generator))
  if 'discriminator_head' in heads and 'discriminator_head' not in weights.params:
    notes.append("the discriminator's head is new: the source has none")
  return weights, notes


def _generator_note(config: PretrainingConfig, generator: EncoderConfig) -> str:
  if objective_of(config).one_tower:
    return 'the head that predicts masked tokens is new'
  origin = 'cut out of the discriminator' if config.continued.generator == 'narrowed' else 'new'
  steps = config.generator.alone_steps
  first = (
    f'the first {steps:,} steps train only the generator'
    if steps
    else '--config.generator.alone_steps=N trains only the generator in the first N steps'
  )
  return (
    f'the generator is {origin}, {generator.num_layers} layers of {generator.hidden_size}; {first}'
  )


def _optimizer_note(config: PretrainingConfig, step: int) -> str:
  moments = 'new moments' if config.continued.optimizer == 'fresh' else "the source's moments"
  if config.continued.optimizer == 'resumed':
    return f'the optimizer has {moments}, and its schedule continues at step {step:,}'
  warmup = phases_of(config)[0].config.optimizer.warmup_steps
  schedule = f'with a warm-up of {warmup:,} steps' if warmup else 'without a warm-up'
  return f'the optimizer has {moments} and a new schedule {schedule}'


def _check_shapes(params: PyTree, shapes: PyTree, source: str) -> None:
  """Raises UserError for a parameter that the model of the run has not, or with another shape."""

  def named(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {
      jax.tree_util.keystr(path, simple=True, separator='/'): x.shape
      for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }

  expected = named(shapes)
  for name, shape in named(params).items():
    if expected.get(name) != shape:
      here = expected.get(name, 'no such parameter')
      raise UserError(f'{source}: {name} is {shape}; expected {here}, by the config of the run.')


@dataclasses.dataclass(frozen=True)
class _Resize:
  """Changes trees of parameters, or of moments, to the vocabulary and the positions of a run.

  Attributes:
    rows: where the embeddings of each token come from.
    old_positions: rows of the position table of the weights.
    positions: rows of that of the run.
    how: 'interpolated' or 'repeated'.
  """

  rows: TokenRows
  old_positions: int
  positions: int
  how: str

  def __call__(self, tree: PyTree, initialize: bool) -> PyTree:
    """The tree with other rows.

    Args:
      tree: top-level parameters by name, NumPy arrays.
      initialize: whether new rows are means; otherwise they are zeros, as moments are.
    """

    def change(path: tuple[Any, ...], value: np.ndarray) -> np.ndarray:
      names = tuple(entry.key for entry in path)
      if names[-1] == 'word' or names == ('generator_head', 'bias'):
        return self.rows.select(value, initialize)
      return self._position_table(value) if names[-1] == 'position' else value

    return jax.tree_util.tree_map_with_path(change, tree)

  def _position_table(self, table: np.ndarray) -> np.ndarray:
    if self.positions == self.old_positions:
      return table
    if self.how == 'repeated':
      repeated: np.ndarray = table[np.arange(self.positions) % self.old_positions]
      return repeated
    old = np.arange(self.old_positions)
    places = np.linspace(0, self.old_positions - 1, self.positions)
    columns = [np.interp(places, old, column) for column in table.T]
    return np.stack(columns, axis=1).astype(np.float32)


#### On the devices ####


def place_initial(initial: InitialState, state: TrainState, shardings: TrainState) -> TrainState:
  """A newly initialized state with what a run takes from its initial weights.

  Args:
    initial: what it takes.
    state: the new state.
    shardings: shardings of the state.
  """

  def replaced(tree: PyTree, new: PyTree, where: PyTree) -> PyTree:
    names = [name for name in new if name in tree]

    def part(whole: PyTree) -> PyTree:
      return {name: whole[name] for name in names}

    return {**new, **place_params(part(tree), part(new), part(where))}

  params = replaced(initial.params, state.params, shardings.params)
  opt_state = state.opt_state
  if initial.moments is not None:
    moments = initial.moments

    def with_moments(new: PyTree, where: PyTree) -> PyTree:
      return new._replace(
        count=_update_counts(initial.updates, new.count, moments['mu']),
        mu=replaced(moments['mu'], new.mu, where.mu),
        nu=replaced(moments['nu'], new.nu, where.nu),
      )

    opt_state = _map_states(optax.ScaleByAdamState, with_moments, opt_state, shardings.opt_state)
  if initial.step:

    def with_step(new: PyTree) -> PyTree:
      return new._replace(count=_scalar(initial.step, new.count))

    opt_state = _map_states(optax.ScaleByScheduleState, with_step, opt_state)
  return state._replace(params=params, opt_state=opt_state, step=_scalar(initial.step, state.step))


def _update_counts(updates: int, new: PyTree, moments: PyTree) -> PyTree:
  """The counts of an Adam state; those of parameters without moments of the source stay 0."""
  if not isinstance(new, dict):
    return _scalar(updates, new)
  return {
    name: _scalar(updates, count) if name in moments else count for name, count in new.items()
  }


def _map_states(
  kind: type, function: Callable[..., PyTree], opt_state: PyTree, *others: PyTree
) -> PyTree:
  """Applies a function to all states of one kind inside an optimizer's state."""

  def is_kind(x: PyTree) -> bool:
    return isinstance(x, kind)

  return jax.tree.map(
    lambda x, *rest: function(x, *rest) if is_kind(x) else x, opt_state, *others, is_leaf=is_kind
  )


def _scalar(value: int, like: jax.Array) -> jax.Array:
  """An integer with the type and the sharding of another scalar."""
  return jax.make_array_from_callback(
    (), like.sharding, lambda index: np.asarray(value, like.dtype)
  )

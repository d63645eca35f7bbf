"""What a run computes of texts in Python: states, embeddings, verdicts, fillings."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.config.declarations import one_of
from electra_jax.data.tokenizers import character_losses, loss_report
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.model.electra import Electra
from electra_jax.model.encoder import Inputs, packed_inputs
from electra_jax.model.heads import POOLINGS, pooled
from electra_jax.training import partitioning
from electra_jax.training.flops import encoder_flops
from electra_jax.training.length_batches import (
  SHORTEST,
  BatchPlanner,
  batch_tokens,
  powers_of_two,
  program_tokens,
)
from electra_jax.training.row_predictor import Arrays, RowPredictor

PyTree: TypeAlias = Any
Batch: TypeAlias = dict[str, Any]
_LOSS_SAMPLE = 100_000  # characters that are compared with their tokens


class Reading(NamedTuple):
  """What the discriminator computes of texts.

  Attributes:
    tokens: tokens of each text, with [CLS] and [SEP].
    hidden_states: float32 `[texts, length, hidden]`, 0 after the tokens of a text.
    replaced: float32 `[texts, length]`, probability that a token was replaced, 0 after the tokens
      of a text; nan if the objective has no discriminator head.
  """

  tokens: list[list[str]]
  hidden_states: np.ndarray
  replaced: np.ndarray


@dataclasses.dataclass(frozen=True)
class DetectedToken:
  """A token of a text, and the discriminator's verdict on it.

  Attributes:
    token: as the vocabulary has it.
    start: first character in the text; equal to `end` for a token of white space.
    end: the character after its last.
    replaced: probability that the token was replaced.
  """

  token: str
  start: int
  end: int
  replaced: float


@dataclasses.dataclass(frozen=True)
class MaskCandidate:
  """A token that the generator predicts for a mask.

  Attributes:
    token: as the vocabulary has it.
    token_id: its id.
    probability: of the generator.
    text: the text with the token in place of this mask.
  """

  token: str
  token_id: int
  probability: float
  text: str


@dataclasses.dataclass(frozen=True, eq=False)
class TextFunctions:
  """Functions of texts. Each is compiled on first use, for the lengths that occur.

  Attributes:
    model: both towers.
    params: its parameters.
    tokenizer: of the run.
    layout: mesh that the parameters are on.
    usual_length: of the rows in training; texts may be longer.
  """

  model: Electra
  params: PyTree
  tokenizer: Tokenizer
  layout: partitioning.Layout
  usual_length: int

  @functools.cached_property
  def _warn_once(self) -> loss_report.OneWarning:
    return loss_report.OneWarning()

  def checked(self, texts: str | Sequence[str]) -> list[str]:
    """Texts as a list; a Python warning where the tokenizer loses many of their characters.

    The warning is issued for the line that called the caller of this method.
    """
    found = [texts] if isinstance(texts, str) else list(texts)
    if self._warn_once.due():
      sample = character_losses.sample_texts(found, _LOSS_SAMPLE)
      losses = character_losses.count(self.tokenizer, sample)
      sentences = loss_report.loss_sentences(losses, 'these texts', loss_report.OTHER_MODEL)
      self._warn_once(sentences, depth=4)
    return found

  def read(self, texts: Sequence[str]) -> Reading:
    """Hidden states and verdicts; see `Reading`."""
    rows = self._rows(texts)
    longest = max(map(len, rows), default=0)
    size = self.model.discriminator_config.hidden_size
    hidden = np.zeros((len(rows), longest, size), np.float32)
    replaced = np.zeros((len(rows), longest), np.float32)
    for numbers, outputs in self._run('read', rows):
      length = min(outputs['replaced'].shape[1], longest)
      hidden[numbers, :length] = outputs['hidden'][:, :length]
      replaced[numbers, :length] = outputs['replaced'][:, :length]
    tokens = [[self.tokenizer.token(i) for i in ids] for ids in rows]
    return Reading(tokens, hidden, replaced)

  def embed(self, texts: Sequence[str], pooling: str) -> np.ndarray:
    """One vector per text, float32 `[texts, hidden]`; see `Run.embed`."""
    if pooling not in POOLINGS:
      raise UserError(f'pooling is {pooling!r}; expected {one_of(POOLINGS)}.')
    rows = self._rows(texts)
    size = self.model.discriminator_config.hidden_size
    embeddings = np.zeros((len(rows), size), np.float32)
    for numbers, outputs in self._run(f'embed {pooling}', rows):
      embeddings[numbers] = outputs['embedding']
    return embeddings

  def detect(self, texts: Sequence[str]) -> list[tuple[DetectedToken, ...]]:
    """The verdict on each token of each text; see `Run.detect`."""
    if 'discriminator_head' not in self.model.heads:
      raise UserError('the run has no discriminator; detect requires one.')
    encoded = self.tokenizer.encode_with_offsets(texts)
    rows = self._framed([ids for ids, _ in encoded])
    found: list[tuple[DetectedToken, ...]] = [()] * len(rows)
    for numbers, outputs in self._run('detect', rows):
      for number, replaced in zip(numbers, outputs['replaced'], strict=True):
        ids, spans = encoded[number]
        values = zip(ids, spans.tolist(), replaced[1 : 1 + len(ids)].tolist(), strict=True)
        found[number] = tuple(
          DetectedToken(self.tokenizer.token(i), start, end, value)
          for i, (start, end), value in values
        )
    return found

  def fill_mask(
    self, texts: Sequence[str], top: int
  ) -> list[tuple[tuple[MaskCandidate, ...], ...]]:
    """The likeliest tokens at each mask of each text; see `Run.fill_mask`."""
    if 'generator_head' not in self.model.heads:
      raise UserError('the run has no generator; fill_mask requires one.')
    if not 1 <= top <= self.tokenizer.size:
      raise UserError(f'top is {top}; expected 1 to {self.tokenizer.size}.')
    mask = self.tokenizer.token(self.tokenizer.mask_id)
    pieces = [text.split(mask) for text in texts]
    for text, parts in zip(texts, pieces, strict=True):
      if len(parts) == 1:
        raise UserError(f'the text {text!r} has no {mask}; expected at least one.')
    encoded = [self.tokenizer.encode_around_masks(parts) for parts in pieces]
    rows = self._framed([np.array(ids, np.int32) for ids in encoded])
    owners = [i for i, parts in enumerate(pieces) for _ in parts[1:]]
    places = [np.flatnonzero(row == self.tokenizer.mask_id) for row in rows]
    chosen: list[np.ndarray] = []
    for row, positions in zip(rows, places, strict=True):
      chosen += [(np.arange(len(row)) == position).astype(np.int32) for position in positions]
    copies = [rows[owner] for owner in owners]
    candidates: list[tuple[MaskCandidate, ...]] = [()] * len(copies)
    numbers_of = [k for parts in pieces for k in range(len(parts) - 1)]
    for numbers, outputs in self._run(f'fill {top}', copies, chosen):
      for number, ids, values in zip(
        numbers, outputs['tokens'], outputs['probabilities'], strict=True
      ):
        parts, k = pieces[owners[number]], numbers_of[number]
        candidates[number] = tuple(
          self._candidate(int(i), float(value), parts, k)
          for i, value in zip(ids, values, strict=True)
        )
    remaining = iter(candidates)
    return [tuple(next(remaining) for _ in parts[1:]) for parts in pieces]

  #### Rows ####

  def _rows(self, texts: Sequence[str]) -> list[np.ndarray]:
    return self._framed(self.tokenizer.encode_arrays(texts))

  def _framed(self, encoded: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Rows `[CLS] text [SEP]`. A text is never truncated.

    Raises:
      UserError: a text is longer than the positions of the encoder.
    """
    t, encoder = self.tokenizer, self.model.discriminator_config
    cls, sep = np.array([t.cls_id], np.int32), np.array([t.sep_id], np.int32)
    rows = [np.concatenate([cls, ids, sep]) for ids in encoded]
    longest = max(map(len, rows), default=0)
    if encoder.has_position_table and longest > encoder.max_positions:
      raise UserError(
        f'a text has {longest} tokens and the encoder has {encoder.max_positions} positions; split '
        'the text.'
      )
    return rows

  def _candidate(
    self, token_id: int, probability: float, parts: Sequence[str], place: int
  ) -> MaskCandidate:
    mask = self.tokenizer.token(self.tokenizer.mask_id)
    _, surface = self.tokenizer.surface(token_id)
    text = f'{mask.join(parts[: place + 1])}{surface}{mask.join(parts[place + 1 :])}'
    return MaskCandidate(self.tokenizer.token(token_id), token_id, probability, text)

  #### Programs ####

  def _run(
    self, name: str, rows: Sequence[np.ndarray], chosen: Sequence[np.ndarray] | None = None
  ) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Numbers of rows and their outputs, batch by batch; `chosen` marks a position of each row."""
    predictor = self._predictors[name] if name in self._predictors else self._predictor(name)
    self._predictors[name] = predictor
    longest = max(map(len, rows), default=0)
    if longest > predictor.planner.lengths[-1]:
      predictor.planner.lengths = powers_of_two(1 << (longest - 1).bit_length())
    others = {} if chosen is None else {'chosen': chosen}
    return predictor.batches(self.params, rows, others)

  @functools.cached_property
  def _model(self) -> Electra:
    """The model with its layers in a loop, as `FineTunedRun` predicts."""
    return self.model.clone(
      generator_config=dataclasses.replace(self.model.generator_config, scan_unroll=1),
      discriminator_config=dataclasses.replace(self.model.discriminator_config, scan_unroll=1),
    )

  @functools.cached_property
  def _predictors(self) -> dict[str, RowPredictor]:
    return {}

  def _predictor(self, name: str) -> RowPredictor:
    mesh = self.layout.mesh
    platform = mesh.devices.flat[0].platform
    flops = encoder_flops(self.model.discriminator_config, SHORTEST) / SHORTEST
    planner = BatchPlanner(
      powers_of_two(self.usual_length),
      batch_tokens(platform),
      partitioning.row_shards(mesh),
      program_tokens(platform, flops),
    )
    kind, _, option = name.partition(' ')
    functions: dict[str, Callable[[PyTree, Batch], dict[str, jax.Array]]] = {
      'read': self._read,
      'embed': functools.partial(self._embed, option),
      'detect': self._detect,
      'fill': functools.partial(self._fill, option),
    }
    jitted = jax.jit(
      partitioning.within(self.layout, functions[kind]), out_shardings=partitioning.replicated(mesh)
    )
    return RowPredictor(jitted, planner, self.tokenizer.pad_id, mesh)

  def _inputs(self, batch: Batch) -> Inputs:
    t = self.tokenizer
    return packed_inputs(batch['token_ids'], t.pad_id, t.cls_id, t.sep_id)

  def _hidden(self, params: PyTree, inputs: Inputs) -> jax.Array:
    hidden: PyTree = self._model.apply({'params': params}, inputs, method='hidden_states')
    states: jax.Array = hidden
    return states

  def _read(self, params: PyTree, batch: Batch) -> dict[str, jax.Array]:
    inputs = self._inputs(batch)
    hidden = self._hidden(params, inputs)
    real = inputs.segment_ids > 0
    states = jnp.where(real[..., None], hidden.astype(jnp.float32), 0)
    return {'hidden': states, 'replaced': self._replaced(params, hidden, inputs)}

  def _replaced(self, params: PyTree, hidden: jax.Array, inputs: Inputs) -> jax.Array:
    real = inputs.segment_ids > 0
    logits: PyTree = jnp.full(real.shape, jnp.nan)
    if 'discriminator_head' in self.model.heads:
      logits = self._model.apply({'params': params}, hidden, inputs.positions, method='verdicts')
    return jnp.where(real, jax.nn.sigmoid(logits), 0)

  def _embed(self, pooling: str, params: PyTree, batch: Batch) -> dict[str, jax.Array]:
    inputs = self._inputs(batch)
    hidden = self._hidden(params, inputs).astype(jnp.float32)
    return {'embedding': pooled(hidden, inputs.segment_ids, pooling)}

  def _detect(self, params: PyTree, batch: Batch) -> dict[str, jax.Array]:
    inputs = self._inputs(batch)
    return {'replaced': self._replaced(params, self._hidden(params, inputs), inputs)}

  def _fill(self, top: str, params: PyTree, batch: Batch) -> dict[str, jax.Array]:
    at = jnp.argmax(batch['chosen'], axis=1)[:, None]
    logits: PyTree = self._model.apply(
      {'params': params}, self._inputs(batch), at, method='generator_logits'
    )
    probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits[:, 0]), int(top))
    return {'probabilities': probabilities, 'tokens': tokens}

"""Held-out rows as text: what was masked, the generator's samples, the discriminator's verdicts."""

import collections
import functools
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import registry
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.model.electra import Electra
from electra_jax.model.randomness import row_keys
from electra_jax.pretrain.evaluation import EVAL_SEED
from electra_jax.pretrain.objectives import parts
from electra_jax.pretrain.objectives.objective import Objective
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.pretrain.readable import (
  cells,
  escaped,
  joined,
  outer_ids,
  padded,
  paint,
  percent,
  pieces,
  surface,
  texts,
  wrapped,
)

if TYPE_CHECKING:
  from electra_jax.pretrain.trained_run import Run

ROWS_AT_ONCE = 4
NARROWEST = 80  # columns
WIDEST = 110  # longer lines are hard to read, even in a wide terminal
TOKEN = 12  # columns of a token in the tables
PROBABILITY = 5  # columns of a probability
LONGEST_VERDICT = len('false alarm')
SYMBOLS = {'caught': '✓', 'missed': '✗', 'false alarm': '!'}
GAP = '___'

Counts: TypeAlias = collections.Counter[str]
StyledText: TypeAlias = list[tuple[str, str | None]]  # (text, style of readable.STYLES or None)


class RowsRead(NamedTuple):
  """Rows and the predictions of both towers, each array [rows, length].

  Probabilities are float32, and 0 where they do not apply.

  Attributes:
    token_ids: int32, the original tokens.
    masked: bool, the positions with a sample of the generator.
    hidden: bool, those of them where the generator read [MASK] in place of the token.
    corrupted: int32, what the discriminator read.
    replaced: bool, its labels.
    p_original: the generator's probability of the original token, at masked positions.
    p_sample: its probability of the sample.
    p_replaced: the discriminator's probability that the token was replaced; nan without a
      discriminator.
    called: bool, whether it predicts "replaced": log-odds of 0 or more, as metrics count.
  """

  token_ids: Any
  masked: Any
  hidden: Any
  corrupted: Any
  replaced: Any
  p_original: Any
  p_sample: Any
  p_replaced: Any
  called: Any


def read_rows(
  settings: Settings, model: Electra, params: parts.Params, token_ids: jax.Array, keys: jax.Array
) -> RowsRead:
  """Applies both towers to rows without dropout, masked and sampled as in a step with these keys.

  The generator's probabilities are those of its plain softmax, on which its loss is computed, at
  any `settings.temperature`. A generator of two towers reads no [MASK], and never the token that it
  predicts, so all masked positions count as hidden.

  Args:
    settings: of the objective.
    model: both towers.
    params: of the model.
    token_ids: int [rows, length].
    keys: one key per row [rows], see row_keys.
  """
  objective: Objective = registry.OBJECTIVES.get(settings.name)
  batch = objective.examples(settings, token_ids, keys)
  counts = objective.counts(settings, batch)
  context = parts.LossContext(settings, model, batch, counts, train=False)
  inputs, masks = context.inputs, context.masks
  original = context.original_tokens()
  unmasked = objective.two_tower_generator
  read = inputs.token_ids if unmasked else masks.token_ids
  logits = context.apply(
    params, context.inputs_with(read), masks.positions, method='generator_logits'
  )
  proposal, verdicts = objective.verdicts(params, context)
  if verdicts is None:
    verdicts = jnp.full(token_ids.shape, jnp.nan)

  probabilities = jax.nn.softmax(logits, axis=-1)

  # From slots to positions. The original program's repeated draws agree on both, and empty slots
  # add nothing.
  @jax.vmap
  def in_row(position: jax.Array, value: jax.Array) -> jax.Array:
    return jnp.zeros(token_ids.shape[1], value.dtype).at[position].max(value)

  def at(values: jax.Array) -> jax.Array:
    return in_row(masks.positions, values * masks.weights)

  def p_of(ids: jax.Array) -> jax.Array:
    return at(jnp.take_along_axis(probabilities, ids[..., None], axis=-1)[..., 0])

  put = jnp.take_along_axis(proposal.corrupted, masks.positions, axis=1)
  real = parts.non_padding(settings, batch)
  masked = at(masks.weights) > 0
  return RowsRead(
    token_ids=inputs.token_ids,
    masked=masked,
    hidden=masked if unmasked else masks.token_ids != inputs.token_ids,
    corrupted=proposal.corrupted,
    replaced=proposal.labels > 0,
    p_original=p_of(original),
    p_sample=p_of(put),
    p_replaced=jnp.where(real, jax.nn.sigmoid(verdicts), 0),
    called=real & (verdicts >= 0),
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _as_evaluated(
  settings: Settings,
  model: Electra,
  params: parts.Params,
  token_ids: jax.Array,
  numbers: jax.Array,
) -> RowsRead:
  """`read_rows` with the masks and samples that evaluation gives to rows of these numbers."""
  return read_rows(settings, model, params, token_ids, row_keys(EVAL_SEED, 0, numbers))


def evaluated_rows(run: 'Run', numbers: np.ndarray) -> Iterator[tuple[int, RowsRead]]:
  """Held-out rows as both towers read them, masked and sampled as in evaluation.

  Args:
    run: an opened run.
    numbers: int [rows], of the rows in the store.

  Yields:
    The number of each row and the row, arrays [length].
  """
  for start in range(0, len(numbers), ROWS_AT_ONCE):
    some = numbers[start : start + ROWS_AT_ONCE]
    chunk = np.pad(some, (0, ROWS_AT_ONCE - len(some)), mode='edge')  # one shape, one compilation
    token_ids = run.heldout.read(chunk)
    result = jax.device_get(
      _as_evaluated(run.settings, run.model, run.params, token_ids, chunk.astype(np.int32))
    )
    for i, number in enumerate(some):
      yield int(number), RowsRead(*(array[i] for array in result))


def inspect(run: 'Run', *, rows: int = 4, first: int = 0, color: bool | None = None) -> str:
  """Prints held-out rows of a run as text, masked and sampled as in evaluation.

  Args:
    run: an opened run.
    rows: most rows to show.
    first: number of the first one, from 0.
    color: whether marks are colored, without a change of the text; None: on a terminal, unless
      NO_COLOR is set.

  Returns:
    What it printed.

  Raises:
    UserError: there is no such row.
  """
  if rows < 1:
    raise UserError(f'--rows is {rows}; expected at least 1.')
  if not 0 <= first < run.heldout.rows:
    raise UserError(
      f'--first is {first}; expected the number of one of the {run.heldout.rows:,} held-out rows, '
      f'0 to {run.heldout.rows - 1}.'
    )
  if color is None:
    color = (
      sys.stdout.isatty() and not os.environ.get('NO_COLOR') and os.environ.get('TERM') != 'dumb'
    )
  shown = []
  for section in _sections(run, np.arange(first, min(first + rows, run.heldout.rows)), color):
    shown.append(section)
    if not _show(section):
      break
  return '\n'.join(shown)


def _sections(run: 'Run', numbers: np.ndarray, color: bool) -> Iterator[str]:
  """The sections of the output in order, each as soon as it is computed."""
  store, columns = run.heldout, shutil.get_terminal_size((WIDEST, 24)).columns
  width = min(max(columns, NARROWEST), WIDEST)
  span = f'row {numbers[0]:,}' if len(numbers) == 1 else f'rows {numbers[0]:,} to {numbers[-1]:,}'
  judged = 'discriminator_head' in run.model.heads
  yield (
    f'\n{run.config.name}, step {run.step:,}: held-out {span} of {store.rows:,}, '
    f'masked as in --mode=evaluate\n\n{legend(run.tokenizer.notation, width, color, judged)}'
  )
  counts: Counts = collections.Counter()
  for number, row in evaluated_rows(run, numbers):
    counts += count_verdicts(row, run.tokenizer)
    yield row_text(row, run.tokenizer, number, width, color)
  yield totals(counts, numbers, store.rows, judged)


def _show(text: str) -> bool:
  """Prints a text; characters that the terminal's encoding lacks are escaped.

  Returns:
    False if the reader of the output has closed it.
  """
  encoding = sys.stdout.encoding or 'utf-8'
  try:
    print(text.encode(encoding, 'backslashreplace').decode(encoding), flush=True)
  except BrokenPipeError:  # such as `head`; Python would fail again when it flushes
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return False
  return True


#### Verdicts ####


def verdict(row: RowsRead, position: int) -> str:
  """The discriminator's result at a position of one row.

  Returns:
    'caught' or 'missed' for a replaced token, 'false alarm' or 'original' for an original one;
    'replaced' for a replaced token without a discriminator.
  """
  if row.replaced[position] and np.isnan(row.p_replaced[position]):
    return 'replaced'
  if row.replaced[position]:
    return 'caught' if row.called[position] else 'missed'
  return 'false alarm' if row.called[position] else 'original'


def is_judged(row: RowsRead) -> bool:
  """Whether a discriminator has read the row."""
  return not np.isnan(row.p_replaced).any()


def count_verdicts(row: RowsRead, tokenizer: Tokenizer) -> Counts:
  """Tokens, masked positions, replaced tokens and verdicts of one row."""
  real = np.flatnonzero(row.token_ids != tokenizer.pad_id)
  counts: Counts = collections.Counter()
  if is_judged(row):
    counts.update(verdict(row, int(position)) for position in real)
  counts.update(tokens=len(real), masked=int(row.masked.sum()), replaced=int(row.replaced.sum()))
  return counts


#### Verdicts as text ####


def mark(was: str, put: str, kind: str, masked: bool, p: float) -> StyledText:
  """A token in the text of a row: the original, the sample in its place, the verdict."""
  if kind == 'original' and not masked:
    return [(was, None)]
  share = f' {SYMBOLS[kind]}{percent(p, 0)}' if kind in SYMBOLS else ''
  marked: StyledText
  if kind in ('caught', 'missed', 'replaced'):
    marked = [(was, 'was'), ('→', 'dim'), (put + share, kind)]
  else:
    marked = [(was + ('=' if masked else '') + share, kind)]
  # Inside of a word the percentage needs a delimiter, also in color.
  return [('{', 'dim'), *marked, ('}', 'dim')]


_JUDGED_MARKS = (
  (('was', 'put', 'caught', True, 0.83), 'masked and replaced, and the discriminator caught it'),
  (('was', 'put', 'missed', True, 0.12), 'masked and replaced, and the discriminator missed it'),
  (('was', 'was', 'original', True, 0.1), 'masked, but the sample is the original token'),
  (
    ('was', 'was', 'false alarm', False, 0.64),
    'the original, but the discriminator predicts "replaced"',
  ),
)
_OTHER_MARKS = (
  (('was', 'put', 'replaced', True, 0.0), 'masked, with a sample in its place'),
  (('was', 'was', 'original', True, 0.0), 'masked, and the sample is the original token'),
)


def legend(notation: str, width: int, color: bool, judged: bool = True) -> str:
  """What the marks mean.

  Args:
    notation: how the tokenizer marks words, see Tokenizer.notation.
    width: columns.
    color: whether marks are colored.
    judged: whether there is a discriminator.
  """
  lines = []
  for example, meaning in _JUDGED_MARKS if judged else _OTHER_MARKS:
    marked = mark(*example)
    gap = ' ' * (17 - sum(cells(text) for text, _ in marked))
    lines.append(paint(marked, color) + gap + meaning)
  notes = [
    "The percentage is the discriminator's probability that the token was replaced; from 50% it "
    'predicts "replaced".'
    if judged
    else '',
    "In the tables, p is the generator's probability of the token before it.",
    notation,
    'A * marks a token that was chosen but not hidden: the generator read it as it was, and its '
    'sample was put there nevertheless.',
  ]
  lines += ['', *textwrap.wrap(' '.join(filter(None, notes)), width - 4)]
  return '\n'.join(('  ' + line).rstrip() for line in lines) + '\n'


def row_text(row: RowsRead, tokenizer: Tokenizer, number: int, width: int, color: bool) -> str:
  """One row: its counts, its text, and a table of the masked positions.

  Args:
    row: arrays [length].
    tokenizer: of the run.
    number: of the row in the store.
    width: columns.
    color: whether marks are colored.
  """
  c, judged = count_verdicts(row, tokenizer), is_judged(row)
  facts = f'{c["tokens"]} tokens, {c["masked"]} masked, {c["replaced"]} replaced'
  if judged:
    facts += f', {c["caught"]} caught, {c["missed"]} missed, {_alarms(c)}'
  lines = [paint([(f'  row {number:,}', 'bold'), (f'   {facts}', 'dim')], color), '']
  # Columns that the other three columns of the table leave to the context.
  context = width - 4 - 3 * 2 - 2 * (TOKEN + 1 + PROBABILITY) - (PROBABILITY + 1 + LONGEST_VERDICT)
  header = [
    padded('context', context),
    _token('original', 'p'),
    _token('put there', 'p'),
    'replaced?',
  ]
  table: list[StyledText] = [[(text, 'dim') for text in header]]
  for piece in pieces(tokenizer, row.token_ids):
    atoms = _atoms(row, tokenizer, piece)
    lines += [
      '    ' + '  ' * (k > 0) + line for k, line in enumerate(wrapped(atoms, width - 6, color))
    ]
    for place in np.flatnonzero(row.masked[piece]):
      table.append(_table_line(row, tokenizer, piece, int(place), context))
  if len(table) > 1:
    lines += ['', *('    ' + '  '.join(paint([part], color) for part in line) for line in table)]
  return '\n'.join(lines) + '\n'


def _atoms(row: RowsRead, tokenizer: Tokenizer, piece: np.ndarray) -> list[tuple[bool, StyledText]]:
  """Of each token of a piece: whether a space precedes it, and its marked text."""
  atoms = []
  apart = row.masked[piece] | row.called[piece]
  for i, (space, text) in zip(piece, texts(tokenizer, row.token_ids[piece], apart), strict=True):
    kind = verdict(row, i)
    if kind == 'original' and row.token_ids[i] in outer_ids(tokenizer):
      marked: StyledText = [(text, 'dim')]
    else:
      was, put = was_and_put(row, tokenizer, i, text)
      marked = mark(was, put, kind, row.masked[i], row.p_replaced[i])
    atoms.append((space, marked))
  return atoms


def _table_line(
  row: RowsRead, tokenizer: Tokenizer, piece: np.ndarray, place: int, context: int
) -> StyledText:
  """The columns of one masked position, piece[place]; `context` columns of text around it."""
  i = piece[place]
  kind = verdict(row, i)
  original, put = (escaped(tokenizer.token(int(ids[i]))) for ids in (row.token_ids, row.corrupted))
  p = percent(row.p_replaced[i]) if is_judged(row) else ''
  return [
    (_context(row, tokenizer, piece, place, context), 'dim'),
    (_token(original + ('' if row.hidden[i] else '*'), percent(row.p_original[i])), None),
    (_token(put, percent(row.p_sample[i])), kind),
    (f'{p:>{PROBABILITY}} {kind}', kind),
  ]


def was_and_put(row: RowsRead, tokenizer: Tokenizer, i: int, text: str) -> tuple[str, str]:
  """An original token and what replaces it.

  They are written as in the vocabulary where one begins a word and the other does not.
  """
  ids = int(row.token_ids[i]), int(row.corrupted[i])
  if ids[0] == ids[1]:
    return text, text
  (begins, _), (put_begins, put) = (surface(tokenizer, token_id) for token_id in ids)
  if begins == put_begins and put:
    return text, put
  return escaped(tokenizer.token(ids[0])), escaped(tokenizer.token(ids[1]))


def _context(row: RowsRead, tokenizer: Tokenizer, piece: np.ndarray, place: int, width: int) -> str:
  """The words around the position piece[place], with a gap in the middle of `width` columns."""
  words = texts(tokenizer, row.token_ids[piece], np.arange(len(piece)) == place)
  is_text = ~np.isin(row.token_ids[piece], outer_ids(tokenizer))
  before = joined(words[k] for k in range(place) if is_text[k]) + (' ' if words[place][0] else '')
  after = joined(words[k] for k in range(place + 1, len(piece)) if is_text[k])
  left = (width - len(GAP)) // 2
  return padded(before.lstrip(), left, '>') + GAP + padded(after, width - len(GAP) - left)


def _token(text: str, p: str) -> str:
  return f'{padded(text, TOKEN)} {p:>{PROBABILITY}}'


def _alarms(counts: Mapping[str, int]) -> str:
  number = counts['false alarm']
  return f'{number or "no"} false alarm' + 's' * (number != 1)


def totals(counts: Counts, numbers: np.ndarray, stored: int, judged: bool = True) -> str:
  """Totals over the rows shown, and how to see others.

  Args:
    counts: of count_verdicts, added.
    numbers: of the rows shown.
    stored: how many held-out rows there are.
    judged: whether there is a discriminator.
  """
  rows, following = len(numbers), int(numbers[-1]) + 1
  start = following if following < stored else 0
  shown = f'{rows:,} row{"s" * (rows != 1)}, {counts["tokens"]:,} tokens'
  lines = [('in all', f'{shown}, {counts["masked"]:,} masked, {counts["replaced"]:,} replaced')]
  if judged:
    share = f' ({counts["caught"] / counts["replaced"]:.0%} caught)' if counts['replaced'] else ''
    verdicts = f'{counts["caught"]:,} caught and {counts["missed"]:,} missed{share}'
    lines.append(('', f'{verdicts}, {_alarms(counts)}'))
  lines.append(('others', f'--rows=N shows N rows, --first={start} begins with row {start:,}'))
  return '\n'.join(f'  {label:<12} {text}' for label, text in lines) + '\n'

"""Held-out rows as text: what was masked, what the generator put there, what the discriminator makes of it."""

import collections
import functools
import os
import shutil
import sys
import textwrap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.errors import UserError
from electra_jax.model.randomness import row_keys
from electra_jax.pretrain import masking, replacement
from electra_jax.pretrain.evaluation import EVAL_SEED
from electra_jax.pretrain.objectives import electra as objective
from electra_jax.pretrain.objectives import electric
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

ROWS_AT_ONCE = 4
NARROWEST, WIDEST = 80, 110  # longer lines are hard to read, however wide the terminal
TOKEN, FIGURE = 12, 5  # columns of the tables: a token, a probability
LONGEST_VERDICT = len('false alarm')
SYMBOLS = {'caught': '✓', 'missed': '✗', 'false alarm': '!'}
GAP = '___'


class RowsRead(NamedTuple):
  """What both towers make of rows, each array [rows, length]; probabilities float32, 0 where they do not apply."""

  token_ids: jax.Array  # int32: the rows as they are
  masked: jax.Array  # bool: chosen, so that the generator's sample was put there
  hidden: jax.Array  # bool: of these, where the generator read [MASK] and not the token itself
  corrupted: jax.Array  # int32: what the discriminator read
  replaced: jax.Array  # bool: its labels; a sample that equals the original is none
  p_original: jax.Array  # the generator's probability of the original, at masked positions
  p_sample: jax.Array  # and of what was put there
  p_replaced: jax.Array  # the discriminator's probability that the token was replaced; nan where there is no discriminator
  called: jax.Array  # bool: it calls the token replaced (log-odds of 0 or more, as metrics count)


def reading(settings: objective.Settings, model, params, token_ids, keys) -> RowsRead:
  """Both towers on rows, without dropout, masked and sampled as objectives/electra.py does with the same keys.

  Args:
    settings: of the objective.
    model: model.electra.Electra.
    params: its parameters.
    token_ids: int [rows, length].
    keys: one key a row [rows], see row_keys.

  The generator's probabilities are of its plain softmax, which its loss is made of, whatever `settings.temperature` is.
  Of `electric` it reads rows as they are and never the token that it predicts, so all that was chosen is hidden; noise that equals the
  original counts as replaced, and verdicts are the log-odds of objectives/electric.py.
  """
  batch = objective.examples(settings, token_ids, keys)
  inputs, masks = batch['inputs'], batch['masks']
  original = jnp.take_along_axis(inputs.token_ids, masks.positions, axis=1)
  variables = {'params': params}
  read = inputs.token_ids if settings.name == 'electric' else masks.token_ids
  logits = model.apply(
    variables, inputs._replace(token_ids=read), masks.positions, method='generator_logits'
  )  # [rows, predictions, vocab]
  if settings.name == 'electric':
    proposal, verdicts = electric.judged(
      settings, model, params, batch, electric.counts(settings, batch), train=False
    )
    corrupted, labels = proposal.corrupted, proposal.labels
  else:
    samples = replacement.sample(
      logits,
      masking.stream(keys, masking.GUMBEL),
      temperature=settings.temperature,
      disallow=original if settings.disallow_correct else None,
    )
    corrupted, labels = replacement.corrupt(inputs.token_ids, masks, samples)
    judges = 'discriminator_head' in model.heads
    verdicts = (
      model.apply(variables, inputs._replace(token_ids=corrupted), method='discriminator_logits')
      if judges
      else jnp.full(token_ids.shape, jnp.nan)
    )

  probabilities = jax.nn.softmax(logits, axis=-1)
  # By position and not by slot; the original program's repeated draws agree on both, empty slots add nothing.
  in_row = jax.vmap(
    lambda position, value: jnp.zeros(token_ids.shape[1], value.dtype).at[position].max(value)
  )

  def at(values):
    return in_row(masks.positions, values * masks.weights)

  def p_of(ids):
    return at(jnp.take_along_axis(probabilities, ids[..., None], axis=-1)[..., 0])

  put = jnp.take_along_axis(corrupted, masks.positions, axis=1)
  real = inputs.token_ids != settings.pad_id
  return RowsRead(
    token_ids=inputs.token_ids,
    masked=at(masks.weights) > 0,
    hidden=(at(masks.weights) > 0)
    if settings.name == 'electric'
    else masks.token_ids != inputs.token_ids,
    corrupted=corrupted,
    replaced=labels > 0,
    p_original=p_of(original),
    p_sample=p_of(put),
    p_replaced=jnp.where(real, jax.nn.sigmoid(verdicts), 0),
    called=real & (verdicts >= 0),
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _as_evaluated(settings, model, params, token_ids, numbers):
  """`reading` with the masks and samples that evaluation gives the rows of these numbers in the store."""
  return reading(settings, model, params, token_ids, row_keys(EVAL_SEED, 0, numbers))


def inspect(run, *, rows: int = 4, first: int = 0, colour: bool | None = None) -> str:
  """Prints held-out rows of a run as a person reads them, masked and sampled as in evaluation. Returns what it printed.

  Args:
    run: electra_jax.Run.
    rows: most rows to show.
    first: number of the first one, from 0.
    colour: marks are coloured, which adds nothing to their meaning; None: on a terminal, unless NO_COLOR is set.

  Raises UserError where there is no such row.
  """
  if rows < 1:
    raise UserError(f'--rows is {rows}; show 1 row at least.')
  if not 0 <= first < run.heldout.rows:
    raise UserError(
      f'--first is {first}, but the {run.heldout.rows:,} held-out rows are numbered 0 to '
      f'{run.heldout.rows - 1}; give one of these.'
    )
  if colour is None:
    colour = (
      sys.stdout.isatty() and not os.environ.get('NO_COLOR') and os.environ.get('TERM') != 'dumb'
    )
  shown = []
  for section in _sections(run, np.arange(first, min(first + rows, run.heldout.rows)), colour):
    shown.append(section)
    if not _show(section):
      break
  return '\n'.join(shown)


def _sections(run, numbers, colour: bool):
  """The parts of what is shown, in order, each as soon as it is known."""
  store, columns = run.heldout, shutil.get_terminal_size((WIDEST, 24)).columns
  width = min(max(columns, NARROWEST), WIDEST)
  span = f'row {numbers[0]:,}' if len(numbers) == 1 else f'rows {numbers[0]:,} to {numbers[-1]:,}'
  yield (
    f'\n{run.config.name}, step {run.step:,}: held-out {span} of {store.rows:,}, masked as in --mode=evaluate\n'
    f'\n{legend(run.tokenizer.notation, width, colour, "discriminator_head" in run.model.heads)}'
  )
  counts = collections.Counter()
  for start in range(0, len(numbers), ROWS_AT_ONCE):
    some = numbers[start : start + ROWS_AT_ONCE]
    chunk = np.pad(some, (0, ROWS_AT_ONCE - len(some)), mode='edge')  # one shape, one compilation
    token_ids = store.read(chunk)
    result = jax.device_get(
      _as_evaluated(run.settings, run.model, run.params, token_ids, chunk.astype(np.int32))
    )
    for i, number in enumerate(some):
      row = RowsRead(*(array[i] for array in result))
      counts += count(row, run.tokenizer)
      yield row_text(row, run.tokenizer, int(number), width, colour)
  yield totals(
    counts, len(numbers), int(numbers[-1]) + 1, store.rows, 'discriminator_head' in run.model.heads
  )


def _show(text: str) -> bool:
  """Prints; characters that the terminal's encoding lacks are escaped. False where nobody reads any more."""
  encoding = sys.stdout.encoding or 'utf-8'
  try:
    print(text.encode(encoding, 'backslashreplace').decode(encoding), flush=True)
  except BrokenPipeError:  # head, say, has seen enough; what Python has yet to flush goes nowhere
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return False
  return True


# ---- What the discriminator made of a position.


def verdict(row: RowsRead, position: int) -> str:
  """'caught', 'missed', 'false alarm', or 'original' for a token that is the original and called so; 'replaced' where nothing judges."""
  if row.replaced[position] and np.isnan(row.p_replaced[position]):
    return 'replaced'
  if row.replaced[position]:
    return 'caught' if row.called[position] else 'missed'
  return 'false alarm' if row.called[position] else 'original'


def is_judged(row: RowsRead) -> bool:
  """Whether a discriminator has read the row."""
  return not np.isnan(row.p_replaced).any()


def count(row: RowsRead, tokenizer) -> collections.Counter:
  """Tokens, masked positions, replaced tokens and verdicts of one row."""
  real = np.flatnonzero(row.token_ids != tokenizer.pad_id)
  counts = (
    collections.Counter(verdict(row, position) for position in real)
    if is_judged(row)
    else collections.Counter()
  )
  counts.update(tokens=len(real), masked=int(row.masked.sum()), replaced=int(row.replaced.sum()))
  return counts


# ---- Verdicts as text.


def mark(was: str, put: str, kind: str, masked: bool, p: float) -> list[tuple[str, str | None]]:
  """A token as it stands in a row, in parts (text, style): the original, the sample in its place, the verdict."""
  if kind == 'original' and not masked:
    return [(was, None)]
  thought = f' {SYMBOLS[kind]}{percent(p, 0)}' if kind in SYMBOLS else ''
  if kind in ('caught', 'missed', 'replaced'):
    parts = [(was, 'was'), ('→', 'dim'), (put + thought, kind)]
  else:
    parts = [(was + ('=' if masked else '') + thought, kind)]
  return [
    ('{', 'dim'),
    *parts,
    ('}', 'dim'),
  ]  # inside of a word the figures need a fence, in colours too


def legend(notation: str, width: int, colour: bool, judged: bool = True) -> str:
  """What the marks mean, for a kind of tokenizer; `judged`: by a discriminator."""
  meanings = (
    (
      mark('was', 'put', 'caught', True, 0.83),
      'masked and replaced, and the discriminator caught it',
    ),
    (
      mark('was', 'put', 'missed', True, 0.12),
      'masked and replaced, and the discriminator missed it',
    ),
    (mark('was', 'was', 'original', True, 0.1), 'masked, but the generator put the original back'),
    (
      mark('was', 'was', 'false alarm', False, 0.64),
      'the original, yet the discriminator calls it replaced',
    ),
  )
  if not judged:
    meanings = (
      (
        mark('was', 'put', 'replaced', True, 0),
        "masked, with a sample of the tower's in its place",
      ),
      (mark('was', 'was', 'original', True, 0), 'masked, and the sample is the original'),
    )
  lines = [
    paint(parts, colour) + ' ' * (17 - sum(cells(text) for text, _ in parts)) + meaning
    for parts, meaning in meanings
  ]
  percentage = "The percentage is the discriminator's probability that the token was replaced; from 50% on it calls it so. "
  notes = (
    f"{percentage if judged else ''}In the tables p is the generator's probability of the token before it. {notation} A * is at a token that was "
    'chosen but not hidden: the generator read it as it was, and its sample was put there all the same.'
  )
  lines += ['', *textwrap.wrap(notes, width - 4)]
  return '\n'.join(('  ' + line).rstrip() for line in lines) + '\n'


def row_text(row: RowsRead, tokenizer, number: int, width: int, colour: bool) -> str:
  """One row: its counts, its pieces as text, and a table of the masked positions. `row` has arrays [length]."""
  c, judged = count(row, tokenizer), is_judged(row)
  facts = f'{c["tokens"]} tokens, {c["masked"]} masked, {c["replaced"]} replaced' + (
    f', {c["caught"]} caught, {c["missed"]} missed, {_alarms(c)}' if judged else ''
  )
  lines = [paint([(f'  row {number:,}', 'bold'), (f'   {facts}', 'dim')], colour), '']
  room = (
    width - 4 - 3 * 2 - 2 * (TOKEN + 1 + FIGURE) - (FIGURE + 1 + LONGEST_VERDICT)
  )  # columns of the context
  header = padded('context', room), _token('original', 'p'), _token('put there', 'p'), 'replaced?'
  table = [[(text, 'dim') for text in header]]
  for piece in pieces(tokenizer, row.token_ids):
    atoms = []
    for i, (space, text) in zip(
      piece,
      texts(tokenizer, row.token_ids[piece], row.masked[piece] | row.called[piece]),
      strict=True,
    ):
      kind = verdict(row, i)
      if kind == 'original' and row.token_ids[i] in outer_ids(tokenizer):
        parts = [(text, 'dim')]
      else:
        parts = mark(*_was_and_put(row, tokenizer, i, text), kind, row.masked[i], row.p_replaced[i])
      atoms.append((space, parts))
    lines += [
      '    ' + '  ' * (k > 0) + line for k, line in enumerate(wrapped(atoms, width - 6, colour))
    ]
    for place in np.flatnonzero(row.masked[piece]):
      i, kind = piece[place], verdict(row, piece[place])
      original, put = (
        escaped(tokenizer.token(int(ids[i]))) for ids in (row.token_ids, row.corrupted)
      )
      table.append(
        [
          (_context(row, tokenizer, piece, place, room), 'dim'),
          (_token(original + ('' if row.hidden[i] else '*'), percent(row.p_original[i])), None),
          (_token(put, percent(row.p_sample[i])), kind),
          (f'{percent(row.p_replaced[i]) if judged else "":>{FIGURE}} {kind}', kind),
        ]
      )
  if len(table) > 1:
    lines += ['', *('    ' + '  '.join(paint([part], colour) for part in parts) for parts in table)]
  return '\n'.join(lines) + '\n'


def _was_and_put(row, tokenizer, i, text):
  """An original and what stands there; as the vocabulary writes them where one begins a word and the other does not."""
  ids = int(row.token_ids[i]), int(row.corrupted[i])
  if ids[0] == ids[1]:
    return text, text
  (begins, _), (put_begins, put) = (surface(tokenizer, token_id) for token_id in ids)
  if begins == put_begins and put:
    return text, put
  return tuple(escaped(tokenizer.token(token_id)) for token_id in ids)


def _context(row, tokenizer, piece, place, width):
  """The words around the position piece[place], a gap in the middle of `width` columns."""
  parts = texts(tokenizer, row.token_ids[piece], np.arange(len(piece)) == place)
  is_text = ~np.isin(row.token_ids[piece], outer_ids(tokenizer))
  before = joined(parts[k] for k in range(place) if is_text[k]) + (' ' if parts[place][0] else '')
  after = joined(parts[k] for k in range(place + 1, len(piece)) if is_text[k])
  left = (width - len(GAP)) // 2
  return padded(before.lstrip(), left, '>') + GAP + padded(after, width - len(GAP) - left)


def _token(text, p):
  return f'{padded(text, TOKEN)} {p:>{FIGURE}}'


def _alarms(counts):
  return f'{counts["false alarm"] or "no"} false alarm' + 's' * (counts['false alarm'] != 1)


def totals(counts, rows: int, next_row: int, of: int, judged: bool = True) -> str:
  """What the rows shown come to, and how to see others."""
  share = f' ({counts["caught"] / counts["replaced"]:.0%} caught)' if counts['replaced'] else ''
  begin = next_row if next_row < of else 0
  seen = f'{rows:,} row{"s" * (rows != 1)}, {counts["tokens"]:,} tokens'
  lines = (
    ('in all', f'{seen}, {counts["masked"]:,} masked, {counts["replaced"]:,} replaced'),
    *(
      [
        (
          '',
          f'{counts["caught"]:,} caught and {counts["missed"]:,} missed{share}, {_alarms(counts)}',
        )
      ]
      if judged
      else []
    ),
    ('others', f'--rows=N shows N rows, --first={begin} begins with row {begin:,}'),
  )
  return '\n'.join(f'  {label:<12} {text}' for label, text in lines) + '\n'

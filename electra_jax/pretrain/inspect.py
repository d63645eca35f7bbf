"""Held-out rows as text: what was masked, what the generator put there, what the discriminator thinks of every token."""

import collections
import os
import shutil
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.config import UserError
from electra_jax.pretrain import masking, replacement
from electra_jax.pretrain.evaluate import EVAL_SEED
from electra_jax.pretrain.objectives import electra as objective
from electra_jax.pretrain.readable import cells, escaped, joined, outer_ids, padded, paint, percent, pieces, surface, texts, wrapped

ROWS_AT_ONCE = 16
NARROWEST, WIDEST = 80, 110           # longer lines are hard to read, however wide the terminal
TOKEN, FIGURE = 12, 5                 # columns of the tables: a token, a probability
LONGEST_VERDICT = len('false alarm')
SYMBOLS = {'caught': '✓', 'missed': '✗', 'false alarm': '!'}
GAP = '___'


class RowsRead(NamedTuple):
  """What both towers make of rows, each array [rows, length]; probabilities float32, 0 at positions they do not speak of."""
  token_ids: jax.Array     # int32: the rows as they are
  masked: jax.Array        # bool: chosen, so that the generator's sample was put there
  hidden: jax.Array        # bool: of these, where the generator read [MASK] and not the token itself
  corrupted: jax.Array     # int32: what the discriminator read
  replaced: jax.Array      # bool: its labels; a sample that equals the original is none
  p_original: jax.Array    # the generator's probability of the original, at masked positions
  p_sample: jax.Array      # and of what was put there
  p_replaced: jax.Array    # the discriminator's probability that the token was replaced
  called: jax.Array        # bool: it calls the token replaced (log-odds of 0 or more, as metrics count)


def reading(settings: objective.Settings, model, params, token_ids, keys) -> RowsRead:
  """Both towers on rows, without dropout, masked and sampled as objectives/electra.py does with the same keys.

  Args:
    settings: of the objective.
    model: model.electra.Electra.
    params: its parameters.
    token_ids: int [rows, length].
    keys: one key a row [rows], see masking.row_keys.

  The generator's probabilities are of its plain softmax, which its loss is made of; samples follow `settings.temperature`.
  """
  batch = objective.examples(settings, token_ids, keys)
  inputs, masks = batch['inputs'], batch['masks']
  original = jnp.take_along_axis(inputs.token_ids, masks.positions, axis=1)
  variables = {'params': params}
  logits = model.apply(variables, inputs._replace(token_ids=masks.token_ids), masks.positions, method='generator_logits')
  samples = replacement.sample(logits, masking.stream(keys, masking.GUMBEL), temperature=settings.temperature,
                               disallow=original if settings.disallow_correct else None)
  corrupted, labels = replacement.corrupt(inputs.token_ids, masks, samples)
  verdicts = model.apply(variables, inputs._replace(token_ids=corrupted), method='discriminator_logits')

  probabilities = jax.nn.softmax(logits, axis=-1)
  # By position and not by slot; the original program's repeated draws agree on both, empty slots add nothing.
  at = lambda values: jax.vmap(lambda position, value: jnp.zeros(token_ids.shape[1], value.dtype).at[position].max(value))(
      masks.positions, values * masks.weights.astype(values.dtype))
  p_of = lambda ids: at(jnp.take_along_axis(probabilities, ids[..., None], axis=-1)[..., 0])
  real = inputs.token_ids != settings.pad_id
  return RowsRead(
      token_ids=inputs.token_ids, masked=at(masks.weights) > 0, hidden=masks.token_ids != inputs.token_ids, corrupted=corrupted,
      replaced=labels > 0, p_original=p_of(original), p_sample=p_of(jnp.take_along_axis(corrupted, masks.positions, axis=1)),
      p_replaced=jnp.where(real, jax.nn.sigmoid(verdicts), 0), called=real & (verdicts >= 0))


def inspect(run, *, rows: int = 4, first: int = 0, colour: bool | None = None) -> str:
  """Prints held-out rows of a run as a person reads them, masked and sampled as in evaluation. Returns what it printed.

  Args:
    run: electra_jax.Run.
    rows: most rows to show.
    first: number of the first one, from 0.
    colour: colours in place of braces; None for them where stdout is a terminal and NO_COLOR is not set.

  Raises UserError where there is no such row.
  """
  if rows < 1:
    raise UserError(f'--rows is {rows}; show 1 row at least.')
  if not 0 <= first < run.heldout.rows:
    raise UserError(f'--first is {first}, but the {run.heldout.rows:,} held-out rows are numbered 0 to {run.heldout.rows - 1}; '
                    'give one of these.')
  if colour is None:
    colour = sys.stdout.isatty() and not os.environ.get('NO_COLOR') and os.environ.get('TERM') != 'dumb'
  shown = []
  for section in _sections(run, np.arange(first, min(first + rows, run.heldout.rows)), colour):
    shown.append(section)
    if not _show(section):
      break
  return '\n'.join(shown)


def _sections(run, numbers, colour: bool):
  """The parts of what is shown, in order, each as soon as it is known."""
  store, width = run.heldout, min(max(shutil.get_terminal_size((WIDEST, 24)).columns, NARROWEST), WIDEST)
  yield (f'\n{run.config.name}, step {run.step:,}: rows {numbers[0]:,} to {numbers[-1]:,} of {store.rows:,} held-out ones, masked and sampled '
         f'as in --mode=evaluate\n\n{legend(run.tokenizer.kind, colour)}')
  read = jax.jit(lambda params, token_ids, numbers: reading(
      run.settings, run.model, params, token_ids, masking.row_keys(EVAL_SEED, 0, numbers)))
  counts, size = collections.Counter(), min(ROWS_AT_ONCE, len(numbers))
  for start in range(0, len(numbers), size):
    some = numbers[start:start + size]
    chunk = np.pad(some, (0, size - len(some)), mode='edge')           # one shape, one compilation
    result = jax.device_get(read(run.params, store.read(chunk), chunk.astype(np.int32)))
    for i, number in enumerate(some):
      row = RowsRead(*(array[i] for array in result))
      counts += count(row, run.tokenizer)
      yield row_text(row, run.tokenizer, int(number), width, colour)
  yield totals(counts, len(numbers), int(numbers[-1]) + 1, store.rows)


def _show(text: str) -> bool:
  """Prints; characters that the terminal's encoding lacks are escaped. False where nobody reads any more."""
  encoding = sys.stdout.encoding or 'utf-8'
  try:
    print(text.encode(encoding, 'backslashreplace').decode(encoding), flush=True)
  except BrokenPipeError:                      # head, say, has seen enough; what Python has yet to flush goes nowhere
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return False
  return True


# ---- What the discriminator made of a position.


def verdict(row: RowsRead, position: int) -> str:
  """'caught', 'missed', 'false alarm', or 'original' for a token that is the original and called so."""
  if row.replaced[position]:
    return 'caught' if row.called[position] else 'missed'
  return 'false alarm' if row.called[position] else 'original'


def count(row: RowsRead, tokenizer) -> collections.Counter:
  """Tokens, masked positions, replaced tokens and verdicts of one row."""
  real = np.flatnonzero(row.token_ids != tokenizer.pad_id)
  return collections.Counter(tokens=len(real), masked=int(row.masked.sum()), replaced=int(row.replaced.sum())) + collections.Counter(
      verdict(row, position) for position in real)


# ---- Verdicts as text.


def mark(was: str, put: str, kind: str, masked: bool, p: float, colour: bool) -> list[tuple[str, str | None]]:
  """A token as it stands in a row, in parts (text, style): the original, the sample in its place, what is thought of it."""
  if kind == 'original' and not masked:
    return [(was, None)]
  thought = f' {SYMBOLS[kind]}{percent(p, 0)}' if kind in SYMBOLS else ''
  if kind in ('caught', 'missed'):
    parts = [(was, 'was'), ('→', 'dim'), (put + thought, kind)]
  else:
    parts = [(was + ('=' if masked else '') + thought, kind)]
  return parts if colour else [('{', None), *parts, ('}', None)]


def legend(kind: str, colour: bool) -> str:
  """What the marks mean, for a kind of tokenizer."""
  meanings = [
      (mark('was', 'put', 'caught', True, 0.83, colour), 'masked, replaced by the generator, and caught: the discriminator calls it replaced'),
      (mark('was', 'put', 'missed', True, 0.12, colour), 'masked and replaced, but missed: it takes the token for the original'),
      (mark('was', 'was', 'original', True, 0.1, colour), 'masked, but the generator put the original back: nothing is replaced'),
      (mark('was', 'was', 'false alarm', False, 0.64, colour), 'the original, yet called replaced: a false alarm')]
  lines = [paint(parts, colour) + ' ' * (16 - sum(cells(text) for text, _ in parts)) + meaning for parts, meaning in meanings]
  lines += ["The percentage is the discriminator's probability that the token was replaced; from 50% on it calls it so.",
            "In the tables p is the generator's probability of the token before it; "
            + ('## goes on with a word.' if kind == 'wordpiece' else '▁ begins a word.'),
            'A * is at a token that was chosen but not hidden: the generator read it as it was, and sampled there all the same.']
  return '\n'.join('  ' + line for line in lines) + '\n'


def row_text(row: RowsRead, tokenizer, number: int, width: int, colour: bool) -> str:
  """One row: its counts, its pieces as text with marks, and a table of the masked positions. `row` has arrays [length]."""
  lines = [paint([(f'  row {number:,}', 'bold'), (f'   {_counted(count(row, tokenizer))}', 'dim')], colour), '']
  room = width - 4 - 3 * 2 - 2 * (TOKEN + 1 + FIGURE) - (FIGURE + 1 + LONGEST_VERDICT)       # columns that are left for the context
  table = [[(padded('context', room), 'dim'), (_token('original', 'p'), 'dim'), (_token('put there', 'p'), 'dim'), ('replaced?', 'dim')]]
  for piece in pieces(tokenizer, row.token_ids):
    atoms = []
    for i, (space, text) in zip(piece, texts(tokenizer, row.token_ids[piece], row.masked[piece] | row.called[piece])):
      kind = verdict(row, i)
      if kind == 'original' and row.token_ids[i] in outer_ids(tokenizer):
        atoms.append((space, [(text, 'dim')]))
      else:
        atoms.append((space, mark(*_was_and_put(row, tokenizer, i, text), kind, row.masked[i], row.p_replaced[i], colour)))
    lines += ['    ' + '  ' * (k > 0) + line for k, line in enumerate(wrapped(atoms, width - 6, colour))]
    for place in np.flatnonzero(row.masked[piece]):
      i, kind = piece[place], verdict(row, piece[place])
      original, put = (escaped(tokenizer.token(int(ids[i]))) for ids in (row.token_ids, row.corrupted))
      table.append([
          (_context(row, tokenizer, piece, place, room), 'dim'),
          (_token(original + ('' if row.hidden[i] else '*'), percent(row.p_original[i])), None),
          (_token(put, percent(row.p_sample[i])), kind), (f'{percent(row.p_replaced[i]):>{FIGURE}} {kind}', kind)])
  gap = ('  ', None)
  lines += [''] + ['    ' + paint([a, gap, b, gap, c, gap, d], colour) for a, b, c, d in table if len(table) > 1]
  return '\n'.join(lines) + '\n'


def _was_and_put(row, tokenizer, i, text):
  """An original and what stands there; as the vocabulary writes them where only one of them begins a word."""
  ids = int(row.token_ids[i]), int(row.corrupted[i])
  (begins, _), (put_begins, put) = (surface(tokenizer, token_id) for token_id in ids)
  return (text, put) if begins == put_begins else tuple(escaped(tokenizer.token(token_id)) for token_id in ids)


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


def _counted(counts):
  """Counts of a row or of all of them, in words."""
  alarms = counts['false alarm']
  return (f'{counts["tokens"]:,} tokens: {counts["masked"]:,} masked, {counts["replaced"]:,} of them replaced, {counts["caught"]:,} caught, '
          f'{counts["missed"]:,} missed; {alarms or "no"} false alarm{"s" * (alarms != 1)}')


def totals(counts, rows: int, next_row: int, of: int) -> str:
  """What the rows shown come to, and how to see others."""
  others = f'--first={next_row} goes on from here; ' if next_row < of else ''
  return (f'  {"in all":12} {rows:,} row{"s" * (rows != 1)}, {_counted(counts)}\n'
          f'  {"others":12} {others}--rows=N shows N rows, --first=N begins at row N, of 0 to {of - 1}\n')

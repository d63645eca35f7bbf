"""Held-out rows as HTML, each token colored by the discriminator's probability."""

from typing import TYPE_CHECKING

import numpy as np

from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.pages.html_page import Html, joined_html, tag
from electra_jax.pretrain import inspect
from electra_jax.pretrain.inspect import RowsRead
from electra_jax.pretrain.readable import outer_ids, percent, pieces, texts

if TYPE_CHECKING:
  from electra_jax.pretrain.trained_run import Run

_SHADES = 10  # classes p1 to p10 of the page's style
_CLASSES = {'caught': 'caught', 'missed': 'missed', 'false alarm': 'alarm'}


def example_rows(run: 'Run', count: int) -> Html:
  """The first held-out rows of a run, masked and sampled as in evaluation, with a legend.

  Args:
    run: an opened run whose objective has a discriminator.
    count: number of rows, at most.
  """
  numbers = np.arange(min(count, run.heldout.rows))
  found = inspect.evaluated_rows(run, numbers)
  rows = [row_html(row, run.tokenizer, number) for number, row in found]
  notation = tag('p', run.tokenizer.notation, class_='notes') if run.tokenizer.notation else ''
  return joined_html([_legend(), notation, *rows])


def row_html(row: RowsRead, tokenizer: Tokenizer, number: int) -> Html:
  """One row: what was counted, and a paragraph per text.

  Args:
    row: arrays [length].
    tokenizer: of the run.
    number: of the row in the store.
  """
  c = inspect.count_verdicts(row, tokenizer)
  facts = (
    f'{c["tokens"]} tokens, {c["replaced"]} replaced: {c["caught"]} caught, {c["missed"]} missed; '
    f'{c["false alarm"]} false alarm{"s" * (c["false alarm"] != 1)}'
  )
  paragraphs = [_piece(row, tokenizer, piece) for piece in pieces(tokenizer, row.token_ids)]
  head = tag('h3', f'Row {number:,} ', tag('span', facts, class_='faint'))
  return tag('article', head, *paragraphs, class_='example')


def _piece(row: RowsRead, tokenizer: Tokenizer, piece: np.ndarray) -> Html:
  parts: list[str] = []
  apart = row.masked[piece] | row.called[piece]
  for i, (space, text) in zip(piece, texts(tokenizer, row.token_ids[piece], apart), strict=True):
    parts += [' ' if space else '', _token(row, tokenizer, int(i), text)]
  return tag('p', *parts, dir='auto')


def _token(row: RowsRead, tokenizer: Tokenizer, i: int, text: str) -> Html:
  """The token at a position: its text, or the original struck out before the replacement."""
  if row.token_ids[i] in outer_ids(tokenizer):
    return tag('span', text, class_='special')
  kind, p = inspect.verdict(row, i), float(row.p_replaced[i])
  shade = f' p{round(_SHADES * p)}' if round(_SHADES * p) else ''
  title = f'{kind}, probability of "replaced" {percent(p)}'
  if kind == 'original' and not row.masked[i]:
    return tag('span', text, class_=f'token{shade}', title=title) if text else Html()
  was, put = inspect.was_and_put(row, tokenizer, i, text)
  share = tag('small', percent(p, 0))
  if row.replaced[i]:
    content = [tag('del', was), tag('ins', put), share]
  else:
    content = [tag('span', was), *([share] if row.called[i] else [])]
  mark = _CLASSES.get(kind, 'kept')
  return tag('bdi', *content, class_=f'token marked {mark}{shade}', title=title)


def _legend() -> Html:
  scale = [
    tag('span', f'{10 * i}%', class_=f'token marked p{i}' if i else 'token marked')
    for i in range(0, _SHADES + 1, 2)
  ]
  marks = [
    (tag('bdi', tag('del', 'was'), tag('ins', 'put'), class_='token marked caught'), 'caught'),
    (tag('bdi', tag('del', 'was'), tag('ins', 'put'), class_='token marked missed'), 'missed'),
    (tag('bdi', 'was', class_='token marked alarm'), 'false alarm: original, called replaced'),
    (tag('bdi', 'was', class_='token marked kept'), 'masked, and the sample is the original'),
  ]
  shown = [tag('span', 'Probability of "replaced": ', joined_html(scale, ' '))]
  shown += [tag('span', example, ' ', meaning) for example, meaning in marks]
  return tag('div', *shown, class_='legend')

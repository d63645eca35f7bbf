"""The blocks of reports as HTML: tables, matrices, diagrams and marked texts."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from electra_jax.finetune.report_blocks import (
  MISSED,
  RIGHT,
  WRONG,
  Blocks,
  Calibration,
  ConfusionMatrix,
  ErrorList,
  ReportBlock,
  ReportError,
  ReportTable,
  Scatter,
  TextPart,
)
from electra_jax.pages.html_page import Cell, Html, isolated, joined_html, picture, table, tag
from electra_jax.training.curves import BLUE, GREY, ORANGE, STYLE

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_SQUARE = (3.6, 3.4)  # inches
_SHOWN = 8  # errors that are not folded
SORTED_ABOVE = 4  # rows: a table of more has buttons that sort it
# Mark -> class of the page's style, and what it means.
_MARKS = {
  RIGHT: ('caught', 'given and predicted'),
  WRONG: ('alarm', 'predicted, not given'),
  MISSED: ('missed', 'given, not predicted'),
}


def block_views(blocks: Blocks) -> Html:
  """Blocks under headings; pictures and the tables beside them share a line where there is room."""
  parts: list[Html] = []
  for block in blocks:
    title = tag('h3', block.title, class_='block')
    note = tag('p', block.note, class_='notes') if block.note else Html()
    parts.append(tag('div', title, note, _VIEWS[type(block)](block)))
  return joined_html(parts)


#### Tables ####


def shown_cell(value: Cell) -> Html | str:
  """A value of a table as text; a dash where it is undefined."""
  if value is None or isinstance(value, float) and not math.isfinite(value):
    return '–'
  if isinstance(value, int):
    return f'{value:,}'
  if isinstance(value, float):
    return f'{value:.3f}' if not value or 1e-3 <= abs(value) < 1e4 else f'{value:.3g}'
  return isolated(value)


def _sort_key(value: Cell) -> str:
  if value is None or isinstance(value, float) and not math.isfinite(value):
    return ''
  return f'{value:.9g}' if isinstance(value, int | float) else str(value)


def _table(block: ReportTable) -> Html:
  if not block.rows:
    return tag('p', 'There are none.')
  rows = [[shown_cell(cell) for cell in row] for row in block.rows]
  keys = [[_sort_key(cell) for cell in row] for row in block.rows]
  return table(block.header, rows, sort_by=keys if len(rows) > SORTED_ABOVE else None)


def _matrix(block: ConfusionMatrix) -> Html:
  """Counts, colored by their share of the row; wrong ones in another color than right ones."""
  heads = [tag('th', isolated(name), scope='col', class_='number') for name in block.predicted]
  lines = [tag('tr', tag('th', 'given ↓  predicted →', scope='col'), *heads)]
  for i, (name, row) in enumerate(zip(block.given, block.counts, strict=True)):
    total = sum(row)
    cells = []
    for j, count in enumerate(row):
      strength = math.ceil(10 * count / total) if count else 0
      color = f'{"q" if i == j else "p"}{strength}' if strength else ''
      cells.append(tag('td', f'{count:,}' if count else '·', class_=f'number {color}'.strip()))
    lines.append(tag('tr', tag('th', isolated(name), scope='row'), *cells))
  head, *body = lines
  whole = tag('table', tag('thead', head), tag('tbody', *body), class_='matrix')
  return tag('div', whole, class_='scroll', tabindex='0')


#### Pictures ####


def drawn(size: tuple[float, float], draw: Callable[['Axes'], None]) -> 'Figure':
  """A figure of matplotlib with one panel in the style of all pictures.

  Args:
    size: in inches.
    draw: draws into the axes.
  """
  from matplotlib import rc_context
  from matplotlib.figure import Figure

  style: Any = STYLE  # of matplotlib's type for settings
  with rc_context(style):
    figure = Figure(figsize=size, layout='constrained')
    draw(figure.subplots())
  return figure


def _calibration(block: Calibration) -> Html:

  def draw(axes: 'Axes') -> None:
    total = sum(one[4] for one in block.bins)
    axes.plot([0, 1], [0, 1], color=GREY, ls='--', lw=1.2)
    for low, high, _, right, count in block.bins:
      axes.bar((low + high) / 2, right, high - low, color=BLUE, alpha=0.25, lw=0)
      axes.bar((low + high) / 2, count / total, 0.4 * (high - low), color=GREY, alpha=0.6, lw=0)
    points = [one[2] for one in block.bins], [one[3] for one in block.bins]
    axes.plot(*points, 'o-', color=BLUE, ms=5, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel='probability', ylabel='right')

  if not block.bins:
    return tag('p', 'There are no predictions.')
  header = ('probability', 'predictions', 'mean probability', 'right')
  rows = [(f'{a:.1f} to {b:.1f}', n, stated, right) for a, b, stated, right, n in block.bins]
  key = 'Blue: share that is right; grey: share of the predictions; dashes: perfect calibration.'
  shown = tag(
    'figure', tag('figcaption', key), picture(drawn(_SQUARE, draw), 'reliability diagram')
  )
  return tag(
    'div',
    shown,
    tag(
      'div',
      _table(ReportTable('', '', '', ('', 'value'), block.values)),
      tag('details', tag('summary', 'Bins'), _table(ReportTable('', '', '', header, tuple(rows)))),
    ),
    class_='pair',
  )


def _scatter(block: Scatter) -> Html:

  def against(axes: 'Axes') -> None:
    low, high = min(*block.given, *block.predicted), max(*block.given, *block.predicted)
    axes.plot([low, high], [low, high], color=GREY, ls='--', lw=1.2)
    axes.plot(block.given, block.predicted, '.', color=BLUE, alpha=alpha, ms=5, mew=0)
    axes.set(xlabel='given', ylabel='predicted')

  def residuals(axes: 'Axes') -> None:
    values = [b - a for a, b in zip(block.given, block.predicted, strict=True)]
    axes.axhline(0, color=GREY, ls='--', lw=1.2)
    axes.plot(block.given, values, '.', color=ORANGE, alpha=alpha, ms=5, mew=0)
    axes.set(xlabel='given', ylabel='predicted minus given')

  if not block.given:
    return tag('p', 'There are no values.')
  alpha = max(0.15, min(0.8, 200 / len(block.given)))
  captions = (
    (against, 'Predicted over given values; dashes: equal.'),
    (residuals, 'Residuals over given values.'),
  )
  shown = [
    tag('figure', tag('figcaption', text), picture(drawn(_SQUARE, draw), text))
    for draw, text in captions
  ]
  return tag('div', *shown, class_='figures')


#### Errors ####


def _errors(block: ErrorList) -> Html:
  if not block.errors:
    return tag('p', 'There are none.')
  marks = {part.mark for one in block.errors for _, parts in one.texts for part in parts} - {''}
  shown = list(map(_error, block.errors))
  more = Html()
  if len(shown) > _SHOWN:
    more = tag('details', tag('summary', f'{len(shown) - _SHOWN} more'), *shown[_SHOWN:])
  return joined_html([_legend(marks), *shown[:_SHOWN], more])


def _legend(marks: set[str]) -> Html:
  if not marks:
    return Html()
  known = [
    tag('span', _part(TextPart(text, mark))) for mark, (_, text) in _MARKS.items() if mark in marks
  ]
  return tag('p', *known, class_='legend')


def _error(error: ReportError) -> Html:
  facts = [
    tag('span', tag('span', f'{name} ', class_='faint'), tag('b', shown_cell(value)))
    for name, value in error.facts
  ]
  texts = []
  for title, parts in error.texts:
    head = tag('span', f'{title}: ', class_='faint') if title else Html()
    texts.append(tag('p', head, *map(_part, parts), dir='auto'))
  return tag('div', tag('div', *facts, class_='facts'), *texts, class_='example')


def _part(part: TextPart) -> Html:
  if part.mark not in _MARKS:
    return isolated(part.text) if part.text.strip() else tag('span', part.text)
  label = tag('small', part.label) if part.label else Html()
  return tag('span', part.text, label, class_=f'token marked {_MARKS[part.mark][0]}')


_VIEWS: Mapping[type[ReportBlock], Callable[[Any], Html]] = {
  ReportTable: _table,
  ConfusionMatrix: _matrix,
  Calibration: _calibration,
  Scatter: _scatter,
  ErrorList: _errors,
}


def metric_tiles(metrics: Sequence[tuple[str, Cell, str]]) -> Html:
  """Tiles of values: name, value, and what it is compared with."""
  tiles = [
    tag(
      'div',
      tag('b', shown_cell(value)),
      tag('span', name, class_='label'),
      tag('span', reference),
      class_='tile',
    )
    for name, value, reference in metrics
  ]
  return tag('div', *tiles, class_='tiles')

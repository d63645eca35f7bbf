"""Tables and a picture of a search, from the content of its search.json. All functions are pure."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from electra_jax.console import seconds
from electra_jax.finetune.trial_summary import TRIALS_OF_INTERVAL
from electra_jax.training.curves import BLUE, GREY, ORANGE, STYLE

Search: TypeAlias = Mapping[str, Any]  # the content of search.json
Figure: TypeAlias = Any  # of matplotlib, which is imported only where it is used
Axes: TypeAlias = Any  # of matplotlib

_LABELED = 12  # settings: a picture of more has only their numbers
_EXPLANATION = (
  'Mean of the trials on dev, times 100; sd: standard deviation over trials; values: of all '
  f"trials, or from {TRIALS_OF_INTERVAL} trials on the 95% interval of the mean, by Student's t. "
  'best epoch: of each trial. The score of the chosen setting is optimistic, as the best of '
  'several on dev; other parts of the data were evaluated with it only.'
)


def described_setting(changes: Mapping[str, Any]) -> str:
  """A setting in words: 'learning_rate 0.0003, batch_size 32'."""
  return ', '.join(f'{field_name(field)} {value:g}' for field, value in changes.items())


def ranked(search: Search) -> list[dict[str, Any]]:
  """The settings, those trained to the end first, each by their mean."""
  return sorted(
    search['settings'], key=lambda one: (-(one['left_after'] or 1.0), -one['mean'], one['setting'])
  )


def varied_fields(search: Search) -> list[str]:
  """The fields of the config whose values were compared."""
  return list(search['settings'][0]['changes'])


def field_name(field: str) -> str:
  """A field of the config without its group: 'learning_rate'."""
  return field.split('.')[-1]


def last_epoch(one: Mapping[str, Any]) -> float:
  """The epoch that the trials of a setting were trained to."""
  return max((line['epoch'] for curve in one['curves'] for line in curve), default=0.0)


def _rows(search: Search) -> list[tuple[str, ...]]:
  fields = map(field_name, varied_fields(search))
  header = ('setting', *fields, search['metric'], 'sd', 'values', 'best epoch', 'time', '')
  return [header, *(_row(one) for one in ranked(search))]


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
  values = ', '.join(f'{100 * value:.1f}' for value in one['values'])
  if len(one['values']) >= TRIALS_OF_INTERVAL:
    values = f'{100 * one["low"]:.1f} to {100 * one["high"]:.1f}'
  epochs = ('-' if epoch is None else f'{epoch:.3g}' for epoch in one['best_epochs'])
  state = 'chosen' if one['chosen'] else ''
  if one['left_after']:
    state = f'left at epoch {last_epoch(one):.3g}'
  return (
    str(one['setting']),
    *(f'{value:g}' for value in one['changes'].values()),
    f'{100 * one["mean"]:.1f}',
    '' if one['deviation'] is None else f'{100 * one["deviation"]:.1f}',
    values,
    ', '.join(epochs),
    seconds(one['seconds']),
    state,
  )


def search_table(search: Search) -> str:
  """A table for the console: a line per setting, the best first."""
  rows = _rows(search)
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = [
    '  '.join(f'{cell:>{width}}' for cell, width in zip(row, widths, strict=True)).rstrip()
    for row in rows
  ]
  return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:]])


def search_markdown(search: Search) -> str:
  """The same table in Markdown, with an explanation."""
  rows = [
    tuple(f'**{cell}**' if cell and row[-1] == 'chosen' else cell for cell in row)
    for row in _rows(search)
  ]
  lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
  rule = '|' + ' ---: |' * len(rows[0])
  constant = search['constant']
  below = '' if constant is None else f' A constant answer has {100 * constant:.1f}.'
  halved = ''
  if search['halving']:
    halved = (
      f' After parts of the training the best 1/{search["halving"]} of the settings continued; '
      'scores of the others are those at the part where they were left.'
    )
  text = [f'# Search for {search["task"]}', '', lines[0], rule, *lines[1:], '']
  return '\n'.join([*text, _EXPLANATION + below + halved]) + '\n'


#### The picture ####


def draw_search(search: Search) -> Figure:
  """Scores of all settings, and their metric on dev during training.

  Args:
    search: the content of search.json.

  Returns:
    A matplotlib Figure.
  """
  from matplotlib import rc_context
  from matplotlib.figure import Figure

  order = ranked(search)
  style: Any = STYLE  # of matplotlib's type for settings
  with rc_context(style):
    figure = Figure(figsize=(11, 1.6 + 0.24 * max(8, len(order))), layout='constrained')
    key = 'point: mean over trials   ·   dot: a trial   ·   grey: left early   ·   dashes: constant'
    title = f'{search["task"]}: {search["metric"]} on dev, x 100\n{key}'
    figure.suptitle(title, x=0.015, ha='left', fontsize=9.5)
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    _draw_scores(left, order, search['constant'])
    draw_settings_curves(right, search)
    right.set_title('during training', loc='left', fontsize=10, fontweight='bold')
  return figure


def _color(one: Mapping[str, Any]) -> str:
  if one['chosen']:
    return ORANGE
  return GREY if one['left_after'] else BLUE


def _draw_scores(axes: Axes, order: Sequence[Mapping[str, Any]], constant: float | None) -> None:
  for place, one in enumerate(order):
    color, values = _color(one), [100 * value for value in one['values']]
    axes.plot(values, [place] * len(values), '.', color=color, alpha=0.5, ms=6)
    axes.plot([100 * one['mean']], [place], 'o', color=color, ms=6.5)
  if constant is not None:
    axes.axvline(100 * constant, color=GREY, ls='--', lw=1.2)
  few = len(order) <= _LABELED
  names = [
    described_setting(one['changes']) if few else f'setting {one["setting"]}' for one in order
  ]
  axes.set_yticks(range(len(order)), names, fontsize=8 if few else 6.5)
  axes.invert_yaxis()
  axes.set_title('settings', loc='left', fontsize=10, fontweight='bold')


def draw_settings_curves(axes: Axes, search: Search) -> None:
  """Draws the metric on dev of each trial over its epochs, times 100.

  Args:
    axes: of matplotlib.
    search: the content of search.json.
  """
  for one in reversed(ranked(search)):  # the chosen one on top
    for curve in one['curves']:
      points = [(line['epoch'], line[search['metric']]) for line in curve]
      known = [(epoch, 100 * value) for epoch, value in points if value is not None]
      if known:
        wide = 2.0 if one['chosen'] else 1.0
        axes.plot(*zip(*known, strict=True), color=_color(one), lw=wide, marker='.', alpha=0.7)
  axes.set_xlim(left=0)
  axes.set_xlabel('epochs', fontsize=8.5, labelpad=1)


def draw_scores_by_field(axes: Axes, search: Search, field: str) -> None:
  """Draws the score of each setting over its value of a field, times 100.

  Values are at equal distances. Lines connect settings that were trained to the end and have the
  same values of all other fields.

  Args:
    axes: of matplotlib.
    search: the content of search.json.
    field: one of `varied_fields`.
  """
  values = sorted({one['changes'][field] for one in search['settings']})
  lines: dict[tuple[Any, ...], list[tuple[int, float]]] = {}
  for one in reversed(ranked(search)):
    place, color = values.index(one['changes'][field]), _color(one)
    axes.plot(
      [place] * len(one['values']), [100 * x for x in one['values']], '.', color=color, ms=4
    )
    fill = 'none' if one['left_after'] else color
    axes.plot([place], [100 * one['mean']], 'o', mec=color, mfc=fill, ms=7)
    if not one['left_after']:
      others = tuple(value for name, value in one['changes'].items() if name != field)
      lines.setdefault(others, []).append((place, 100 * one['mean']))
  for points in lines.values():
    axes.plot(*zip(*sorted(points), strict=True), color=BLUE, lw=1, alpha=0.6, zorder=1)
  if search['constant'] is not None:
    axes.axhline(100 * search['constant'], color=GREY, ls='--', lw=1.2)
  axes.set_xticks(range(len(values)), [f'{value:g}' for value in values])
  axes.margins(x=0.15, y=0.12)
  axes.set_xlabel(field_name(field), fontsize=8.5, labelpad=1)

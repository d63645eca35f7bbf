"""What a search compared and chose, as a part of the page of a fine-tuned run."""

import functools
from collections.abc import Mapping
from typing import Any

from electra_jax.console import seconds
from electra_jax.finetune.search_report import (
  Search,
  described_setting,
  draw_scores_by_field,
  draw_settings_curves,
  field_name,
  last_epoch,
  ranked,
  varied_fields,
)
from electra_jax.finetune.trial_summary import TRIALS_OF_INTERVAL
from electra_jax.pages.block_views import SORTED_ABOVE, drawn
from electra_jax.pages.html_page import Html, isolated, joined_html, table, tag
from electra_jax.pages.run_parts import PANEL, figures

_KEY = (
  'Circle: mean of the trials of a setting; dot: a trial; orange: chosen; grey: stopped early; '
  'line: settings that differ in this only; dashes: constant answer.'
)
_NOTE = (
  'Metrics are times 100. The score of the chosen setting is optimistic, as the best of several on '
  'dev; other parts of the data were evaluated with it only.'
)


def search_view(search: Search) -> Html:
  """The choice, pictures of the scores, and a table of all settings.

  Args:
    search: the content of search.json.
  """
  return joined_html(
    [
      tag('p', isolated(_choice(search))),
      tag('p', _NOTE, class_='notes'),
      _pictures(search),
      _settings_table(search),
      _parts_table(search),
    ]
  )


def _choice(search: Search) -> str:
  """What was compared, and which setting was chosen."""
  settings, trials = search['settings'], len(search['settings'][0]['values'])
  fields = ', '.join(map(field_name, varied_fields(search)))
  chosen = next(one for one in settings if one['chosen'])
  constant = search['constant']
  return (
    f'{search["task"]}: {len(settings)} settings of {fields}, {trials} '
    f'trial{"s" * (trials > 1)} each, in {seconds(search["seconds"])} of training. Chosen: setting '
    f'{chosen["setting"]} ({described_setting(chosen["changes"])}), {search["metric"]} '
    f'{100 * chosen["mean"]:.1f} on dev'
    + ('.' if constant is None else f'; a constant answer has {100 * constant:.1f}.')
  )


def _pictures(search: Search) -> Html:
  """The score by each varied field, and during training."""
  metric = f'{search["task"]}: {search["metric"]} on dev'
  shown = []
  for field in varied_fields(search):
    draw = functools.partial(draw_scores_by_field, search=search, field=field)
    title = f'{metric} by {field_name(field)}'
    shown.append((title, _KEY, drawn(PANEL, draw), title))
  curves = drawn(PANEL, functools.partial(draw_settings_curves, search=search))
  title = f'{metric} during training'
  key = 'Line: a trial; orange: chosen; grey: stopped early.'
  return figures([*shown, (title, key, curves, f'{title}, by epochs')])


def _settings_table(search: Search) -> Html:
  """A row per setting, the best first."""
  several = len(search['settings'][0]['values']) >= TRIALS_OF_INTERVAL
  # Searches of earlier versions did not record the seeds.
  seeds = ', '.join(map(str, search.get('seeds') or ()))
  by_trial = '95% interval' if several else 'by seed' + (f': {seeds}' if seeds else '')
  fields = map(field_name, varied_fields(search))
  header = ('setting', 'result', *fields, search['metric'], 'sd', by_trial, 'best epoch', 'time')
  order = ranked(search)
  shown = table(
    header,
    [_cells(one, several) for one in order],
    sort_by=[_keys(one) for one in order] if len(order) > SORTED_ABOVE else None,
  )
  note = (
    'Stopped: at this share of the training. Sd: standard deviation over the trials. Best epoch: '
    'of each trial.'
  )
  return tag('div', tag('h3', 'Settings', class_='block'), tag('p', note, class_='notes'), shown)


def _cells(one: Mapping[str, Any], several: bool) -> list[str]:
  values = ', '.join(f'{100 * value:.1f}' for value in one['values'])
  if several:
    values = f'{100 * one["low"]:.1f} to {100 * one["high"]:.1f}'
  epochs = ('–' if epoch is None else f'{epoch:.3g}' for epoch in one['best_epochs'])
  result = 'chosen' if one['chosen'] else ''
  if one['left_after']:
    result = f'stopped at {one["left_after"]:.3g}, epoch {last_epoch(one):.3g}'
  return [
    str(one['setting']),
    result,
    *(f'{value:g}' for value in one['changes'].values()),
    f'{100 * one["mean"]:.1f}',
    '–' if one['deviation'] is None else f'{100 * one["deviation"]:.1f}',
    values,
    ', '.join(epochs),
    seconds(one['seconds']),
  ]


def _keys(one: Mapping[str, Any]) -> list[str]:
  """What a row is sorted by in each of its columns."""
  best = next((epoch for epoch in one['best_epochs'] if epoch is not None), '')
  trained = -(one['left_after'] or 1 + one['chosen'])
  found = [one['setting'], trained, *one['changes'].values(), one['mean'], one['deviation']]
  found += [one['mean'], best, one['seconds']]
  return ['' if key is None else str(key) for key in found]


def _parts_table(search: Search) -> Html:
  """Successive halving: settings that were trained, and that stopped, by part of the training."""
  shares = [one['left_after'] for one in search['settings'] if one['left_after']]
  if not shares:
    return Html()
  rows: list[tuple[str, int, int]] = []
  left = len(search['settings'])
  for share in sorted(set(shares)):
    stopped = shares.count(share)
    rows.append((f'{share:.3g}', left, stopped))
    left -= stopped
  rows.append(('1', left, 0))
  note = (
    f'After each part the best 1/{search["halving"]} of the settings continued. The score of a '
    'setting that was stopped is the one at that part.'
  )
  return tag(
    'div',
    tag('h3', 'Successive halving', class_='block'),
    tag('p', note, class_='notes'),
    table(('share of the training', 'settings trained', 'stopped'), rows),
  )

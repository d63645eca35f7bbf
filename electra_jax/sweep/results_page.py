"""The page of a sweep, sweep.html: its picture, and the table of its runs, which can be sorted."""

from collections.abc import Sequence

from electra_jax.pages.html_page import (
  Cell,
  Figure,
  contents,
  isolated,
  notice,
  page,
  picture,
  section,
  table,
  tag,
)
from electra_jax.sweep.summary import (
  NOTES,
  RunSummary,
  devices_note,
  metric_titles,
  result_rows,
)

_SECTIONS = {'results': 'Results', 'picture': 'Picture', 'notes': 'How to read them'}


def results_page(name: str, summaries: Sequence[RunSummary], seeds: int, figure: Figure) -> str:
  """The page as text.

  Args:
    name: of the sweep.
    summaries: of the runs, at least one.
    seeds: number of seeds of the sweep.
    figure: of `picture.draw_sweep`.
  """
  header, *rows = result_rows(summaries, seeds)
  keys = [_sort_keys(summary, metric_titles(summaries)) for summary in summaries]
  results = sum(len(summary.results) for summary in summaries)
  missing = len(summaries) * seeds - results
  unlearned = [summary.run for summary in summaries if summary.not_learned]
  facts = f'{results} results of {len(summaries)} run{"s" * (len(summaries) != 1)}'
  facts += f"; {missing} of these runs' results are missing." if missing else '.'
  warning: Cell = ''
  if unlearned:
    detail = 'The discriminator is not better than a constant prediction with a seed of '
    action = 'These runs support no claim about their discriminators.'
    item = notice('warning', 'Not learned', f'{detail}{", ".join(unlearned)}.', action)
    warning = tag('ul', item, class_='findings')
  description = 'Metrics of all runs over training FLOPs, or side by side, with 95% intervals'
  return page(
    f'{name} - sweep',
    tag('header', tag('h1', isolated(name)), tag('p', facts, class_='lead'), contents(_SECTIONS)),
    section(
      'results',
      _SECTIONS['results'],
      warning,
      tag('p', 'A click on the title of a column sorts by it.', class_='notes'),
      table(header, rows, sort_by=keys),
    ),
    section(
      'picture',
      _SECTIONS['picture'],
      tag('figure', picture(figure, description), class_='wide', tabindex='0'),
    ),
    section(
      'notes',
      _SECTIONS['notes'],
      tag('p', NOTES, class_='notes'),
      tag('p', devices_note(summaries), class_='notes'),
    ),
  )


def _sort_keys(summary: RunSummary, titles: Sequence[str]) -> list[Cell]:
  """What each column of a run is sorted by; '' sorts last."""
  metrics = [summary.metrics.get(title) for title in titles]
  means = ['' if metric is None else metric.mean for metric in metrics]
  not_learned = len(summary.not_learned)
  return [summary.run, len(summary.results), summary.flops, summary.tokens, *means, not_learned]

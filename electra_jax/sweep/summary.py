"""The results of a sweep over seeds: a summary per run, a table for the console and a page."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

from electra_jax.console import quantity
from electra_jax.finetune.trial_summary import spread
from electra_jax.sweep.resolve import group_of
from electra_jax.sweep.results import Result


@dataclasses.dataclass(frozen=True)
class HeldoutMetric:
  """An evaluation metric of the table and the picture.

  Attributes:
    title: its column.
    digits: after the decimal point.
    more_is_better: whether larger values are better.
  """

  title: str
  digits: int
  more_is_better: bool


# Shown where a run's objective has them.
HELDOUT = {
  'generator_loss': HeldoutMetric('masked-token loss', 4, False),
  'prediction_loss': HeldoutMetric('prediction loss', 4, False),
  'gain': HeldoutMetric('gain over the constant', 4, True),
  'auc': HeldoutMetric('area under the curve', 4, True),
}
BY_TITLE = {metric.title: metric for metric in HELDOUT.values()}


@dataclasses.dataclass(frozen=True)
class MetricSummary:
  """A metric of a run over its seeds.

  Attributes:
    values: by seed.
    mean: over the seeds.
    deviation: standard deviation of the sample; None for one seed.
    low, high: 95% interval of the mean by Student's t; None for one seed.
  """

  values: dict[int, float]
  mean: float
  deviation: float | None
  low: float | None
  high: float | None


@dataclasses.dataclass(frozen=True)
class RunSummary:
  """A run of a sweep over its seeds.

  Attributes:
    run: the run's name.
    results: one per seed, in the order of the seeds.
    flops, paper_flops, tokens: means over the seeds.
    metrics: by title. Metrics of tasks are medians over a result's trials, times 100.
  """

  run: str
  results: tuple[Result, ...]
  flops: float
  paper_flops: float
  tokens: float
  metrics: dict[str, MetricSummary]

  @property
  def group(self) -> str:
    """The run's name without its budget."""
    return group_of(self.run)

  @property
  def not_learned(self) -> list[int]:
    """Seeds whose discriminator is not better than the best constant predictor."""
    return [result['seed'] for result in self.results if result['learned'] is False]


def summarize_runs(results: Iterable[Result], runs: Sequence[str]) -> list[RunSummary]:
  """The summaries of the runs that have results.

  Args:
    results: of any runs.
    runs: names of the runs, in order.
  """
  every = list(results)
  summaries = []
  for run in runs:
    of_run = sorted((r for r in every if r['run'] == run), key=lambda result: result['seed'])
    if of_run:
      summaries.append(_summary(run, of_run))
  return summaries


def _summary(run: str, results: Sequence[Result]) -> RunSummary:
  values: dict[str, dict[int, float]] = {}
  for result in results:
    seed = result['seed']
    for name, task in result['tasks'].items():
      if task['values']:
        median = 100 * statistics.median(task['values'])
        values.setdefault(f'{name}: {task["metric"]}', {})[seed] = median
    for name, metric in HELDOUT.items():
      value = result['heldout'].get(name, {}).get('value')
      if value is not None and math.isfinite(value):
        values.setdefault(metric.title, {})[seed] = value
  metrics = {}
  for title, of_seeds in values.items():
    found = spread(list(of_seeds.values()))
    metrics[title] = MetricSummary(
      of_seeds, found['mean'], found['deviation'], found['low'], found['high']
    )
  return RunSummary(
    run=run,
    results=tuple(results),
    flops=statistics.fmean(result['flops'] for result in results),
    paper_flops=statistics.fmean(result['paper_flops'] for result in results),
    tokens=statistics.fmean(result['tokens'] for result in results),
    metrics=metrics,
  )


#### Table and page ####


def metric_titles(summaries: Sequence[RunSummary]) -> list[str]:
  """Titles of the metrics that any of the runs has: tasks, then HELDOUT in its order."""
  titles = dict.fromkeys(title for summary in summaries for title in summary.metrics)
  tasks = [title for title in titles if title not in BY_TITLE]
  return tasks + [title for title in BY_TITLE if title in titles]


def _cell(summary: RunSummary, title: str, interval: bool = False) -> str:
  """Mean and standard deviation of a metric; with `interval` also the interval of the mean."""
  metric = summary.metrics.get(title)
  if metric is None:
    return ''
  digits = BY_TITLE[title].digits if title in BY_TITLE else 1
  text = f'{metric.mean:.{digits}f}'
  if metric.deviation is not None:
    text += f' ± {metric.deviation:.{digits}f}'
  if interval and metric.low is not None:
    text += f' ({metric.low:.{digits}f} to {metric.high:.{digits}f})'
  return text


def _verdict(summary: RunSummary) -> str:
  """Whether the discriminators have learned; '' for objectives that do not train one."""
  if all(result['learned'] is None for result in summary.results):
    return ''
  wrong, count = len(summary.not_learned), len(summary.results)
  if not wrong:
    return 'learned'
  return 'not learned' if wrong == count else f'not learned by {wrong} of {count}'


def sweep_table(summaries: Sequence[RunSummary], seeds: int) -> str:
  """One line per run, for the console: means and standard deviations over its seeds.

  Args:
    summaries: of the runs.
    seeds: number of seeds of the sweep.
  """
  titles = metric_titles(summaries)
  rows = [['run', 'seeds', 'FLOPs', 'tokens', *titles, 'discriminator']]
  for summary in summaries:
    rows.append(
      [
        summary.run,
        f'{len(summary.results)} of {seeds}',
        quantity(summary.flops),
        quantity(summary.tokens),
        *(_cell(summary, title) for title in titles),
        _verdict(summary),
      ]
    )
  if not any(row[-1] for row in rows[1:]):
    rows = [row[:-1] for row in rows]
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = []
  for row in rows:
    first, *rest = (
      f'{cell:{"<" if i == 0 else ">"}{width}}'
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    lines.append('  ' + '  '.join([first, *rest]).rstrip())
  return '\n'.join(lines)


NOTES = (
  'Mean ± standard deviation over seeds; in brackets the 95% interval of the mean, by '
  "Student's t. Tasks: the median of a run's trials on dev, times 100. Held-out losses in nats "
  'per token; losses of different objectives are losses at different tasks, which do not compare. '
  "FLOPs: matrix products forward and backward (in brackets: counted as the paper's script "
  "does). Not learned: the 95% bootstrap interval of the discriminator's gain over the best "
  'constant predictor does not lie above 0; such a run supports no claim.'
)


def result_rows(summaries: Sequence[RunSummary], seeds: int) -> list[list[str]]:
  """The table with intervals as text, its header first.

  Args:
    summaries: of the runs.
    seeds: number of seeds of the sweep.
  """
  titles = metric_titles(summaries)
  rows = [['run', 'seeds', 'FLOPs', 'tokens', *titles, 'discriminator']]
  for summary in summaries:
    rows.append(
      [
        summary.run,
        f'{len(summary.results)} of {seeds}',
        f'{quantity(summary.flops)} ({quantity(summary.paper_flops)})',
        quantity(summary.tokens),
        *(_cell(summary, title, interval=True) for title in titles),
        _verdict(summary),
      ]
    )
  return rows


def sweep_page(name: str, summaries: Sequence[RunSummary], seeds: int) -> str:
  """The table with intervals as Markdown, and notes on how to read it.

  Args:
    name: of the sweep.
    summaries: of the runs.
    seeds: number of seeds of the sweep.
  """
  header, *lines = result_rows(summaries, seeds)
  rows = [header, ['---'] + ['---:'] * (len(header) - 1), *lines]
  text = [f'# {name}', '', *('| ' + ' | '.join(row) + ' |' for row in rows), '', NOTES]
  if devices := devices_note(summaries):
    text += ['', devices]
  return '\n'.join(text) + '\n'


def devices_note(summaries: Sequence[RunSummary]) -> str:
  """What the runs were trained on, as a sentence; '' where it was not recorded."""
  results = [result for summary in summaries for result in summary.results]
  devices = sorted({result['device'] for result in results if result.get('device')})
  if not devices:
    return ''
  differ = '; metrics on different devices differ by rounding as well.'
  return f'Trained on {", ".join(devices)}{differ if len(devices) > 1 else "."}'

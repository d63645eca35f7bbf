"""Summaries of trials: medians and intervals, collapsed trials, tables, and a picture.

All functions are pure. A record is what finetune/trial.py writes to result.json: `task`, `trial`,
`metric`, `figures` (metrics by split and name: fractions, null where undefined), `curve` (the
evaluations on dev), `constant` (metrics of a constant answer on dev), and more.
"""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from electra_jax import registry
from electra_jax.console import seconds
from electra_jax.finetune.answers import all_the_same
from electra_jax.training.curves import BLUE, GREY, ORANGE, PURPLE, STYLE

Record: TypeAlias = dict[str, Any]
Summary: TypeAlias = dict[str, Any]
Figure: TypeAlias = Any  # of matplotlib, which is imported only where it is used
Axes: TypeAlias = Any  # of matplotlib

_LOWER_IS_BETTER = ('mse',)
_CORRELATIONS = ('matthews', 'pearson', 'spearman', 'glue')  # 'glue' may be a mean of correlations
# With fewer trials than this, all of them are printed, and there is no interval: with two or three
# it is too wide to be useful.
TRIALS_OF_INTERVAL = 5
# Differences between metrics that are fractions, see collapsed_trials.
AT_LEVEL = 0.01
_CLEARLY_ABOVE = 0.05
_SAME = 1e-4
_CORRELATED = 0.05


def published_metrics() -> dict[str, str]:
  """The metric of each GLUE task that Clark et al. 2020 (section 3.1) report on dev.

  They average over these tasks, and exclude WNLI.
  """
  specs = {name: registry.TASKS.get(name) for name in registry.TASKS}
  return {name: spec.published_metric for name, spec in specs.items() if spec.published_metric}


#### Statistics ####


def summarize_trials(records: Sequence[Record]) -> dict[str, Summary]:
  """Statistics of each task's trials, for JSON; tasks are in the order of the records.

  A metric that is undefined for a trial on dev counts as that of the constant answer, where it is
  known: a model that answers the same for all examples ranks nothing, and to omit it would improve
  the median. On other splits it is omitted, and `n` is smaller. Collapsed trials count like others.

  Args:
    records: of trials.

  Returns:
    By task: `metric`, `trials` (their number), `collapsed` (numbers of trials), `constant`,
    `seconds` and `tokens` (totals of all trials), and `figures`: by split and metric `n`, `values`
    (of the trials in their order), `median`, `best`, `mean`, `deviation` (of a sample), `low` and
    `high` (the 95% confidence interval of the mean by Student's t, inside the range of the metric;
    null for fewer than five trials).
  """
  summaries: dict[str, Summary] = {}
  fallen = {(record['task'], record['trial']) for record in collapsed_trials(records)}
  for task in dict.fromkeys(record['task'] for record in records):
    mine = [record for record in records if record['task'] == task]
    summaries[task] = {
      'metric': mine[0]['metric'],
      'trials': len(mine),
      'collapsed': [r['trial'] for r in mine if (task, r['trial']) in fallen],
      'constant': mine[0].get('constant', {}),
      'seconds': sum(record.get('seconds') or 0 for record in mine),
      'tokens': sum(record.get('tokens') or 0 for record in mine),
      'figures': _statistics_by_split(mine),
    }
  return summaries


def _statistics_by_split(records: Sequence[Record]) -> dict[str, dict[str, dict[str, Any]]]:
  found: dict[str, dict[str, dict[str, Any]]] = {}
  for record in records:
    for split, metrics in record['figures'].items():
      for name in metrics:
        if name not in found.setdefault(split, {}):
          values = [_value(other, split, name) for other in records]
          defined = [value for value in values if value is not None]
          found[split][name] = _statistics(name, defined)
  return found


def _finite(value: float | None) -> float | None:
  return value if value is not None and math.isfinite(value) else None


def _value(record: Record, split: str, name: str) -> float | None:
  """A metric of a record; on dev that of the constant answer where it is undefined."""
  value = _finite(record['figures'].get(split, {}).get(name))
  if value is None and split == 'dev':
    return _finite(record.get('constant', {}).get(name))
  return value


def _statistics(name: str, values: list[float]) -> dict[str, Any]:
  best = None
  if values and not name.endswith('_thresh'):
    best = min(values) if name in _LOWER_IS_BETTER else max(values)
  found = spread(values)
  if len(values) < TRIALS_OF_INTERVAL:
    found |= {'low': None, 'high': None}
  else:
    least, most = _range(name, values)
    found |= {'low': max(found['low'], least), 'high': min(found['high'], most)}
  median = statistics.median(values) if values else None
  return {'values': values, 'median': median, 'best': best} | found


def _range(name: str, values: Sequence[float]) -> tuple[float, float]:
  """The range of a metric: a correlation, an error, or a fraction; any number for others."""
  if name in _CORRELATIONS:
    return -1.0, 1.0
  if name in _LOWER_IS_BETTER:
    return 0.0, math.inf
  if name.endswith('_thresh') or not all(0 <= value <= 1 for value in values):
    return -math.inf, math.inf
  return 0.0, 1.0


def spread(values: Sequence[float]) -> dict[str, Any]:
  """Mean and spread of a sample.

  Returns:
    `n`, `mean`, `deviation` (of a sample), and `low` and `high`, the 95% confidence interval of the
    mean by Student's t. What is undefined, as for a single value, is None.
  """
  n = len(values)
  mean = statistics.fmean(values) if values else None
  found = {'n': n, 'mean': mean, 'deviation': None, 'low': None, 'high': None}
  if mean is not None and n > 1:
    from scipy.special import stdtrit

    deviation = statistics.stdev(values)
    margin = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    found |= {'deviation': deviation, 'low': mean - margin, 'high': mean + margin}
  return found


def collapsed_trials(records: Sequence[Record]) -> list[Record]:
  """The records of trials whose answers to the dev examples are all the same.

  Fine-tuning on little data fails in this way with some seeds (Devlin et al. 2019, section 4.1).
  Records have statistics of the answers, see finetune/answers.py. Those of version 0.1.0 have only
  metrics; `_is_at_constant` then decides.
  """
  found = []
  for record in records:
    collapsed = all_the_same(record.get('answers', {}))
    if collapsed is None:
      collapsed = _is_at_constant(record, records)
    if collapsed:
      found.append(record)
  return found


def _is_at_constant(record: Record, records: Sequence[Record]) -> bool:
  """Whether a trial ended at the level of a constant answer, though others did not, by its metrics.

  In Mosbach et al. 2021 a failed run is one that does not exceed the majority baseline at the end.
  Here it is at most 0.01 above it, since a collapsed network still has some noise, has no metric
  that is a correlation other than 0, and either

  - another trial of the task is above the baseline by at least 0.05, so that neither the task nor
    the model is too hard; or
  - every metric is that of the constant answer (to 1e-4, or undefined), so that even a single trial
    leaves no doubt. Decision thresholds do not count.

  A task whose constant answer is not known has no collapsed trials.
  """
  metric, constant = record['metric'], record.get('constant', {})
  level = _finite(constant.get(metric))
  if level is None:
    return False
  dev = record['figures']['dev']
  correlations = [_finite(dev.get(name)) for name in _CORRELATIONS[:-1]]
  if any(value is not None and abs(value) > _CORRELATED for value in correlations):
    return False
  peers = [other for other in records if other['task'] == record['task']]
  best = max(_dev_value(other, metric) for other in peers)
  at_level = _dev_value(record, metric) <= level + AT_LEVEL
  return at_level and (best >= level + _CLEARLY_ABOVE or _equals_constant(record, constant))


def _dev_value(record: Record, name: str) -> float:
  """A metric on dev of a record whose constant answer has it."""
  value = _value(record, 'dev', name)
  assert value is not None
  return value


def _equals_constant(record: Record, constant: Mapping[str, float | None]) -> bool:
  return all(
    abs(_dev_value(record, name) - value) <= _SAME
    for name, value in constant.items()
    if value is not None
    and math.isfinite(value)
    and name in record['figures']['dev']
    and not name.endswith('_thresh')
  )


def glue_average(summaries: Mapping[str, Summary]) -> dict[str, Any] | None:
  """GLUE's average over the tasks that are present, of the medians on dev.

  Args:
    summaries: of `summarize_trials`.

  Returns:
    `average`, `tasks` and `missing`; None where no task is present.
  """
  published = published_metrics()
  medians: dict[str, float] = {}
  for task, name in published.items():
    of_task = summaries.get(task, {}).get('figures', {}).get('dev', {}).get(name)
    if of_task and of_task['median'] is not None:
      medians[task] = of_task['median']
  if not medians:
    return None
  missing = [task for task in published if task not in medians]
  return {'average': statistics.fmean(medians.values()), 'tasks': list(medians), 'missing': missing}


#### Tables ####

_INTERVAL = 'values or 95% interval'
_HEADER = ('task', 'metric', 'trials', 'median', 'best', 'mean', 'sd', _INTERVAL, 'constant')


def trials_table(summaries: Mapping[str, Summary]) -> str:
  """A table for the console: the metric of each task and split, in percent.

  It also has the published metric where it is another one.

  Args:
    summaries: of `summarize_trials`.
  """
  published = published_metrics()
  rows: list[tuple[str, ...]] = [_HEADER]
  for task, summary in summaries.items():
    for split, metrics in summary['figures'].items():
      names = [summary['metric'], published.get(task) if split == 'dev' else None]
      rows += [_row(task, summary, split, name) for name in dict.fromkeys(names) if name in metrics]
  widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]

  def aligned(row: Sequence[str]) -> str:
    cells = (f'{cell:{"<" if i < 2 else ">"}{widths[i]}}' for i, cell in enumerate(row))
    return '  '.join(cells).rstrip()

  lines = [aligned(row) for row in rows]
  return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:], *_notes(summaries)])


def trials_markdown(summaries: Mapping[str, Summary]) -> str:
  """All metrics of all tasks as a table in Markdown, with an explanation.

  Args:
    summaries: of `summarize_trials`.
  """
  header, *rows = all_rows(summaries, bold=True)

  def line(cells: Iterable[str]) -> str:
    return '| ' + ' | '.join(cells) + ' |'

  text = [
    '# Fine-tuning',
    '',
    line(header),
    line(['---', '---'] + ['---:'] * (len(_HEADER) - 2)),
    *map(line, rows),
    '',
    'Fractions times 100. The metric that trials are compared by is in bold. sd: standard '
    'deviation over trials; values: of all trials, where there are fewer than '
    f"{TRIALS_OF_INTERVAL}; 95% interval: of the mean, by Student's t, inside the range of the "
    'metric; constant: the score on dev of the most frequent answer of the training data, or of '
    'the mean. Trials differ in the initialization of the head, the order of the data and dropout, '
    'not in the pretrained weights.',
    '',
  ]
  for note in _notes(summaries):
    text += [note, '']
  for task, summary in summaries.items():
    trials, tokens = _count(summary['trials'], 'trial'), summary['tokens']
    text.append(f'- {task}: {trials}, {tokens:,} tokens, {seconds(summary["seconds"])}')
  return '\n'.join(text) + '\n'


def all_rows(summaries: Mapping[str, Summary], bold: bool = False) -> list[tuple[str, ...]]:
  """Rows of a table of all metrics of all tasks, its header first; fractions are times 100.

  Args:
    summaries: of `summarize_trials`.
    bold: whether the metrics that trials are compared by are bold in Markdown.
  """
  rows: list[tuple[str, ...]] = [_HEADER]
  for task, summary in summaries.items():
    for split, metrics in summary['figures'].items():
      main = summary['metric']
      names = [name for name in metrics if name == main]
      names += [name for name in metrics if name != main and not name.endswith('_thresh')]
      rows += [_row(task, summary, split, name, bold=bold and name == main) for name in names]
  return rows


def _row(task: str, summary: Summary, split: str, name: str, bold: bool = False) -> tuple[str, ...]:
  f = summary['figures'][split][name]
  # Errors are in the unit of the values, not fractions.
  factor, digits = (1, 3) if name in _LOWER_IS_BETTER else (100, 1)

  def percent(value: float | None) -> str:
    return '' if value is None else f'{factor * value:.{digits}f}'

  interval = ', '.join(map(percent, f['values'])) if f['n'] > 1 else ''
  if f['low'] is not None:
    interval = f'{percent(f["low"])} to {percent(f["high"])}'
  constant = percent(_finite(summary['constant'].get(name))) if split == 'dev' else ''
  trials = str(f['n']) if f['n'] == summary['trials'] else f'{f["n"]} of {summary["trials"]}'
  return (
    task if split == 'dev' else f'{task} {split}',
    f'**{name}**' if bold else name,
    trials,
    percent(f['median']),
    percent(f['best']),
    percent(f['mean']),
    percent(f['deviation']),
    interval,
    constant,
  )


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}' + ('s' if number != 1 else '')


def _notes(summaries: Mapping[str, Summary]) -> list[str]:
  """Sentences below a table: GLUE's average, and collapsed trials."""
  lines: list[str] = []
  average = glue_average(summaries)
  if average and len(average['tasks']) > 1:
    published = published_metrics()
    medians = ', '.join(f'{task} {published[task]}' for task in average['tasks'])
    missing = f'missing: {", ".join(average["missing"])}' if average['missing'] else 'complete'
    lines.append(
      f'GLUE average: {100 * average["average"]:.1f}, over the medians of '
      f'{_count(len(average["tasks"]), "task")} ({medians}); {missing}; WNLI does not count, as '
      'published.'
    )
  return [*lines, *collapse_notes(summaries)]


def collapse_notes(summaries: Mapping[str, Summary]) -> list[str]:
  """Sentences about trials that collapsed."""
  return [
    f'{task}: {_count(len(collapsed), "trial")} of {summary["trials"]} collapsed to one answer for '
    f'everything ({", ".join(map(str, collapsed))}); all of them count above.'
    for task, summary in summaries.items()
    if (collapsed := summary['collapsed'])
  ]


#### The picture ####


def draw_trials(records: Sequence[Record], headline: str = '') -> Figure:
  """A row of panels per task: its metric on dev during training, and at the end of each trial.

  Args:
    records: of trials.
    headline: of the picture.

  Returns:
    A matplotlib Figure.
  """
  from matplotlib import rc_context
  from matplotlib.figure import Figure

  summaries, collapsed = summarize_trials(records), collapsed_trials(records)
  style: Any = STYLE  # of matplotlib's type for settings
  with rc_context(style):
    figure = Figure(figsize=(10.5, 0.8 + 2.7 * len(summaries)), layout='constrained')
    layout: Any = figure.get_layout_engine()  # the constrained one, which has these settings
    layout.set(w_pad=0.09, h_pad=0.1)
    key = '   ·   '.join(
      (
        'line: a trial on dev',
        'dot: where it ended',
        'bar: median',
        'band: 95% interval of the mean',
        'hollow: collapsed',
        'dashes: a constant answer',
      )
    )
    figure.suptitle(f'{headline}\n{key}' if headline else key, x=0.015, ha='left', fontsize=9)
    panels = figure.subplots(len(summaries), 2, squeeze=False, width_ratios=(1.5, 1))
    for (task, summary), (left, right) in zip(summaries.items(), panels, strict=True):
      mine = [record for record in records if record['task'] == task]
      _draw_curves(left, task, summary, mine, collapsed)
      _draw_dots(right, summary, mine, collapsed)
  return figure


def _draw_curves(
  axes: Axes,
  task: str,
  summary: Summary,
  records: Sequence[Record],
  collapsed: Collection[Record],
) -> None:
  metric = summary['metric']
  for record in records:
    points = [(epoch, 100 * value) for epoch, value in curve_points(record, metric)]
    style = {'color': PURPLE, 'ls': '-.'} if record in collapsed else {'color': BLUE}
    if points:
      axes.plot(*zip(*points, strict=True), lw=1.2, alpha=0.75, marker='.', clip_on=False, **style)
  level = _finite(summary['constant'].get(metric))
  if level is not None:
    axes.axhline(100 * level, color=ORANGE, ls='--', lw=1.4)
  axes.set_title(f'{task}: {metric}', loc='left', fontsize=11, fontweight='bold')
  axes.set_xlim(left=0)
  axes.set_xlabel('epochs', fontsize=8.5, labelpad=1)
  axes.set_ylabel('x 100', fontsize=8.5)
  axes.margins(y=0.12)


def _draw_dots(
  axes: Axes, summary: Summary, records: Sequence[Record], collapsed: Collection[Record]
) -> None:
  metric, constant = summary['metric'], summary['constant']
  f, level = summary['figures']['dev'][metric], _finite(constant.get(metric))
  for record in records:
    value = _value(record, 'dev', metric)
    if value is not None:
      fill, edge = ('white', PURPLE) if record in collapsed else (BLUE, 'white')
      axes.plot([record['trial']], [100 * value], 'o', ms=6.5, mfc=fill, mec=edge)
  title = 'undefined in all trials'
  if f['median'] is not None:
    title = f'{100 * f["median"]:.1f}, of one trial'
    if len(records) > 1:
      title = f'median {100 * f["median"]:.1f}, best {100 * f["best"]:.1f}'
    axes.axhline(100 * f['median'], color=BLUE, lw=2, alpha=0.8, zorder=1)
  if f['low'] is not None:
    axes.axhspan(100 * f['low'], 100 * f['high'], color=BLUE, alpha=0.12, lw=0, zorder=0)
  axes.margins(y=0.2)
  if level is not None:
    low, high = axes.get_ylim()
    if low <= 100 * level <= high:
      axes.axhline(100 * level, color=ORANGE, ls='--', lw=1.4)
    else:  # a scale with the constant answer would hide the spread of the trials
      title += f'; constant {100 * level:.1f}, {"below" if 100 * level < low else "above"}'
  axes.set_title(title, loc='left', fontsize=9, color=GREY)
  _label_trials(axes, [record['trial'] for record in records])


def curve_points(record: Record, name: str) -> list[tuple[float, float]]:
  """Epoch and value of a metric in the evaluations on dev of a trial, where it is defined.

  Args:
    record: of the trial; one of version 0.1.0 has the metrics in a dict of their own.
    name: of the metric.
  """
  values = ((line, line.get(name, line.get('dev', {}).get(name))) for line in record['curve'])
  return [(line['epoch'], float(value)) for line, value in values if _finite(value) is not None]


def _label_trials(axes: Axes, numbers: Sequence[int]) -> None:
  from matplotlib.ticker import MaxNLocator

  axes.set_xlim(min(numbers) - 0.6, max(numbers) + 0.6)
  if len(numbers) <= 12:
    axes.set_xticks(numbers)
  else:
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
  axes.set_xlabel('trial', fontsize=8.5, labelpad=1)

"""What trials say together: medians and intervals, which of them collapsed, tables, and a picture. Pure functions over their records.

A record is what finetune/trial.py keeps in result.json: `task`, `trial`, `metric`, `figures` by split and name (fractions, null where
undefined), `curve` of looks at dev, `constant`: what a constant answer scores on dev; and more.
"""

import math
import statistics

from electra_jax.console import seconds
from electra_jax.training.curves import BLUE, GREY, ORANGE, PURPLE, STYLE

# The figure of each task that Clark et al. 2020 (section 3.1) report on dev, and average over; WNLI is left out there.
PUBLISHED_FIGURES = {
  'cola': 'matthews',
  'sst2': 'accuracy',
  'mrpc': 'accuracy',
  'stsb': 'spearman',
  'qqp': 'accuracy',
  'mnli': 'accuracy',
  'qnli': 'accuracy',
  'rte': 'accuracy',
}
_LESS_IS_BETTER = ('mse',)
_AT_LEVEL, _CLEARLY_ABOVE, _SAME = 0.01, 0.05, 1e-4  # of figures that are fractions, see collapsed


def summarise(records: list[dict]) -> dict:
  """Statistics of each task's trials, as JSON has it, tasks in the order of the records.

  Returns: by task: `metric`, `trials` (how many), `collapsed` (their numbers), `constant` (see above), `seconds` and `tokens` (of all
    trials together), and `figures`: by split and name `n`, `median`, `best`, `mean`, `deviation` (of a sample), `low` and `high` (the 95%
    confidence interval of the mean by Student's t; null of one trial).

  A figure that a trial has undefined on dev counts as the constant answer's where that is known: who says the same of everything ranks
  nothing, and leaving it out would flatter the median. Elsewhere it is left out, and `n` says so. Collapsed trials count like any other.
  """
  summaries, fallen = {}, {(record['task'], record['trial']) for record in collapsed(records)}
  for task in dict.fromkeys(record['task'] for record in records):
    mine = [record for record in records if record['task'] == task]
    figures = {}
    known = dict.fromkeys(
      (split, name)
      for record in mine
      for split, of_split in record['figures'].items()
      for name in of_split
    )
    for split, name in known:
      values = [_figure(record, split, name) for record in mine]
      figures.setdefault(split, {})[name] = _statistics(
        name, [value for value in values if value is not None]
      )

    def total(name, mine=mine):
      return sum(record.get(name) or 0 for record in mine)

    summaries[task] = {
      'metric': mine[0]['metric'],
      'trials': len(mine),
      'collapsed': [r['trial'] for r in mine if (task, r['trial']) in fallen],
      'constant': mine[0].get('constant', {}),
      'seconds': total('seconds'),
      'tokens': total('tokens'),
      'figures': figures,
    }
  return summaries


def _number(value):
  return value if value is not None and math.isfinite(value) else None


def _figure(record, split, name):
  value = _number(record['figures'].get(split, {}).get(name))
  return (
    _number(record.get('constant', {}).get(name)) if value is None and split == 'dev' else value
  )


def _statistics(name, values):
  best = (
    None
    if not values or name.endswith('_thresh')
    else min(values)
    if name in _LESS_IS_BETTER
    else max(values)
  )
  return {'median': statistics.median(values) if values else None, 'best': best} | spread(values)


def spread(values: list[float]) -> dict:
  """`n`, `mean`, `deviation` (of a sample) and the 95% interval of the mean by Student's t, `low` and `high`; None of one value."""
  n, mean = len(values), statistics.fmean(values) if values else None
  found = {'n': n, 'mean': mean, 'deviation': None, 'low': None, 'high': None}
  if n > 1:
    from scipy.special import stdtrit

    deviation = statistics.stdev(values)
    margin = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    found |= {'deviation': deviation, 'low': mean - margin, 'high': mean + margin}
  return found


def collapsed(records: list[dict]) -> list[dict]:
  """The records of trials that ended as a constant answer would, though the task can be learned.

  Fine-tuning on little data fails so with some seeds (Devlin et al. 2019, section 4.1). As in Mosbach et al. 2021, a failed run is one
  that is not above the majority's score at the end; here within 0.01 of it, since a collapsed network still has some noise, and either

  - another trial of the task is above it by 0.05 at least, so that it is not the task or the model that is too hard; or
  - every figure is the constant answer's own (to 1e-4, or undefined), so that there is no doubt with one trial either.

  A task whose constant answer is not known has none.
  """
  found = []
  for record in records:
    metric, constant = record['metric'], record.get('constant', {})
    level = _number(constant.get(metric))
    if level is None:
      continue
    value = _figure(record, 'dev', metric)
    others = [_figure(other, 'dev', metric) for other in records if other['task'] == record['task']]
    shared = [
      name
      for name, x in constant.items()
      if _number(x) is not None and name in record['figures']['dev']
    ]
    same = all(abs(_figure(record, 'dev', name) - constant[name]) <= _SAME for name in shared)
    if value <= level + _AT_LEVEL and (max(others) >= level + _CLEARLY_ABOVE or same):
      found.append(record)
  return found


def glue(summaries: dict) -> dict | None:
  """GLUE's average over the tasks present, of medians on dev of PUBLISHED_FIGURES: `average`, `tasks`, `missing`; None without any."""
  medians = {}
  for task, name in PUBLISHED_FIGURES.items():
    figure = summaries.get(task, {}).get('figures', {}).get('dev', {}).get(name)
    if figure and figure['median'] is not None:
      medians[task] = figure['median']
  if not medians:
    return None
  missing = [task for task in PUBLISHED_FIGURES if task not in medians]
  return {'average': statistics.fmean(medians.values()), 'tasks': list(medians), 'missing': missing}


_HEADER = ('task', 'figure', 'trials', 'median', 'best', 'mean', 'sd', '95% interval', 'constant')


def table(summaries: dict) -> str:
  """Lines for the console: the metric of each task and part, and the published figure where it is another. Fractions times 100."""
  rows = [_HEADER]
  for task, summary in summaries.items():
    for split, figures in summary['figures'].items():
      names = [summary['metric'], PUBLISHED_FIGURES.get(task) if split == 'dev' else None]
      rows += [_row(task, summary, split, name) for name in dict.fromkeys(names) if name in figures]
  widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]

  def aligned(row):
    return '  '.join(
      f'{cell:{"<" if i < 2 else ">"}{widths[i]}}' for i, cell in enumerate(row)
    ).rstrip()

  lines = [aligned(row) for row in rows]
  return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:], *_notes(summaries)])


def markdown(summaries: dict) -> str:
  """All figures of all tasks as a table in Markdown, with what it needs to be read."""
  rows = []
  for task, summary in summaries.items():
    for split, figures in summary['figures'].items():
      names = sorted(
        (name for name in figures if not name.endswith('_thresh')),
        key=lambda name: name != summary['metric'],
      )
      rows += [_row(task, summary, split, name, bold=name == summary['metric']) for name in names]

  def line(cells):
    return '| ' + ' | '.join(cells) + ' |'

  text = [
    '# Fine-tuning',
    '',
    line(_HEADER),
    line(['---', '---'] + ['---:'] * (len(_HEADER) - 2)),
    *map(line, rows),
    '',
    'Fractions times 100. In bold the metric that trials are compared by. sd: the standard deviation over trials; 95% interval: of the '
    "mean, by Student's t; constant: what the answer most frequent in training (or the mean) scores on dev. "
    'Trials differ in the draw of the head, the order of the data and dropout, not in the pretrained weights.',
    '',
  ]
  for note in _notes(summaries):
    text += [note, '']
  for task, summary in summaries.items():
    text.append(
      f'- {task}: {_count(summary["trials"], "trial")}, {summary["tokens"]:,} tokens, {seconds(summary["seconds"])}'
    )
  return '\n'.join(text) + '\n'


def _row(task, summary, split, name, bold=False):
  f = summary['figures'][split][name]
  factor = 1 if name in _LESS_IS_BETTER else 100  # errors are in units of the values, not fractions

  def percent(value):
    return '' if value is None else f'{factor * value:.{1 if factor > 1 else 3}f}'

  interval = '' if f['low'] is None else f'{percent(f["low"])} to {percent(f["high"])}'
  constant = percent(_number(summary['constant'].get(name))) if split == 'dev' else ''
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


def _count(number, noun):
  return f'{number} {noun}' + ('s' if number != 1 else '')


def _notes(summaries):
  lines, average = [], glue(summaries)
  if average and len(average['tasks']) > 1:
    named = ', '.join(f'{task} {PUBLISHED_FIGURES[task]}' for task in average['tasks'])
    lines.append(
      f'GLUE average: {100 * average["average"]:.1f}, over the medians of {_count(len(average["tasks"]), "task")} ({named}); '
      + (f'missing: {", ".join(average["missing"])}' if average['missing'] else 'complete')
      + '; WNLI does not count, as published.'
    )
  for task, summary in summaries.items():
    if summary['collapsed']:
      lines.append(
        f'{task}: {_count(len(summary["collapsed"]), "trial")} of {summary["trials"]} collapsed to the level of a constant answer '
        f'({", ".join(map(str, summary["collapsed"]))}); all of them count above.'
      )
  return lines


def draw(records: list[dict], headline: str = ''):
  """A row a task: its metric on dev while trials are trained, and where they ended, a dot a trial, with median and constant answer.

  Returns: a matplotlib Figure.
  """
  from matplotlib import rc_context
  from matplotlib.figure import Figure

  summaries, fallen = summarise(records), collapsed(records)
  with rc_context(STYLE):
    figure = Figure(figsize=(10.5, 0.8 + 2.7 * len(summaries)), layout='constrained')
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.1)
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
      _curves(left, task, summary, mine, fallen)
      _dots(right, summary, mine, fallen)
  return figure


def _curves(axes, task, summary, records, fallen):
  metric = summary['metric']
  for record in records:
    points = [(0, None)] + [
      (line['epoch'], line.get(metric, line.get('dev', {}).get(metric))) for line in record['curve']
    ]
    points = [(epoch, 100 * value) for epoch, value in points if _number(value) is not None]
    style = {'color': PURPLE, 'ls': '-.'} if record in fallen else {'color': BLUE}
    if points:
      axes.plot(*zip(*points, strict=True), lw=1.2, alpha=0.75, marker='.', clip_on=False, **style)
  level = _number(summary['constant'].get(metric))
  if level is not None:
    axes.axhline(100 * level, color=ORANGE, ls='--', lw=1.4)
  axes.set_title(f'{task}: {metric}', loc='left', fontsize=11, fontweight='bold')
  axes.set_xlim(left=0)
  axes.set_xlabel('epochs', fontsize=8.5, labelpad=1)
  axes.set_ylabel('x 100', fontsize=8.5)
  axes.margins(y=0.12)


def _dots(axes, summary, records, fallen):
  from matplotlib.ticker import MaxNLocator

  metric, constant = summary['metric'], summary['constant']
  f, level = summary['figures']['dev'][metric], _number(constant.get(metric))
  for record in records:
    value = _figure(record, 'dev', metric)
    if value is not None:
      fill, edge = ('white', PURPLE) if record in fallen else (BLUE, 'white')
      axes.plot([record['trial']], [100 * value], 'o', ms=6.5, mfc=fill, mec=edge)
  title = 'no trial has a figure'
  if f['median'] is not None:
    title = (
      f'median {100 * f["median"]:.1f}, best {100 * f["best"]:.1f}'
      if len(records) > 1
      else f'{100 * f["median"]:.1f}, of one trial'
    )
    axes.axhline(100 * f['median'], color=BLUE, lw=2, alpha=0.8, zorder=1)
  if f['low'] is not None:
    axes.axhspan(100 * f['low'], 100 * f['high'], color=BLUE, alpha=0.12, lw=0, zorder=0)
  axes.margins(y=0.2)
  if level is not None:
    low, high = axes.get_ylim()
    if low <= 100 * level <= high:
      axes.axhline(100 * level, color=ORANGE, ls='--', lw=1.4)
    else:  # the spread of the trials would not be seen on a scale that has both
      title += f'; constant {100 * level:.1f}, {"below" if 100 * level < low else "above"}'
  axes.set_title(title, loc='left', fontsize=9, color=GREY)
  numbers = [record['trial'] for record in records]
  axes.set_xlim(min(numbers) - 0.6, max(numbers) + 0.6)
  if len(numbers) <= 12:
    axes.set_xticks(numbers)
  else:
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
  axes.set_xlabel('trial', fontsize=8.5, labelpad=1)

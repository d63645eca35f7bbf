"""What finished runs of a sweep say: their lines in JSON, which of them are of the runs asked for, a table and a picture of all."""

import hashlib
import io
import json
import math
import statistics

from electra_jax import file_access
from electra_jax.config import FinetuningConfig, PretrainingConfig, names_with, to_plain
from electra_jax.errors import UserError
from electra_jax.finetune.trial_summary import spread
from electra_jax.sweep.resolve import Job, group
from electra_jax.training import run_folder
from electra_jax.training.curves import BLUE, GREEN, GREY, ORANGE, PURPLE, STYLE
from electra_jax.training.progress import quantity

LINES = 'results.jsonl'  # in the sweep's folder; jobs write files of their own in `results`
# What a run's figures do not depend on. Its data is told by the rows themselves, wherever they are.
_FREE = (*names_with(PretrainingConfig, 'resumable'), 'name', 'seed', 'data.')
_FREE_IN_TASKS = (
  *(n for n in names_with(FinetuningConfig, 'resumable') if n != 'num_trials'),
  'name',
  'init',
  'init_step',
  'like',
  'data.source',
  'data.train',
  'data.dev',
  'data.test',
)
# Held-out figures of the table and the picture, of those that a run has; how many digits; whether more is better.
HELDOUT = {
  'generator_loss': ('masked-token loss', 4, False),
  'prediction_loss': ('prediction loss', 4, False),
  'gain': ('gain over the constant', 4, True),
  'auc': ('area under the curve', 4, True),
}
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, '#E69F00', '#56B4E9', GREY, 'black')
_MARKERS = 'osD^vPX*'


#### Lines ###########################################################################################################


def asked(job: Job, data: str, data_of_tasks: dict[str, int], rows: int) -> dict:
  """What a line must say to be that of a job, beside run and seed: fields that are not the defaults, and checksums of the data.

  Args:
    data: of the rows, pretrain.run.data_identity.
    data_of_tasks: a checksum of each task's examples.
    rows: most held-out rows, 0 for all.
  """
  tasks = {
    name: {
      'task': c.task,
      'fields': _fields(c, FinetuningConfig(), _FREE_IN_TASKS),
      'data': data_of_tasks[name],
    }
    for name, c in job.tasks.items()
  }
  return {
    'fields': _fields(job.config, PretrainingConfig(), _FREE),
    'data': data,
    'rows': rows,
    'tasks': tasks,
  }


def _fields(config, defaults, free) -> dict:
  """Fields that are not the defaults, flat, as JSON has them, less those that are free."""

  def plain(c):
    return _flat(to_plain(c))

  usual = plain(defaults)

  def is_free(field):
    return any(field == name or name.endswith('.') and field.startswith(name) for name in free)

  return {
    field: value
    for field, value in plain(config).items()
    if value != usual.get(field) and not is_free(field)
  }


def _flat(tree, prefix=''):
  found = {}
  for name, value in tree.items():
    found |= _flat(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
  return found


def digest(value) -> str:
  """A short name for a value as JSON has it."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def read(path) -> list[dict]:
  """The lines of a file; a last one that a kill cut short is left out. Raises UserError where it cannot be read or is damaged."""
  try:
    content = file_access.read_bytes(str(path)).decode()
  except (OSError, ValueError) as error:
    raise UserError(
      f'{path} cannot be read as results ({getattr(error, "strerror", None) or type(error).__name__}); name a file of JSON lines.'
    ) from None
  lines, texts = [], content.splitlines()
  for number, text in enumerate(texts, 1):
    try:
      line = json.loads(text)
      (
        line['run'],
        line['seed'],
        line['digest'],
        line['fields'],
        line['tasks'],
        line['heldout'],
        line['flops'],
      )
      lines.append(line)
    except (ValueError, KeyError, TypeError):
      if number == len(texts) and not content.endswith('\n'):
        break
      raise UserError(
        f'line {number} of {path} is not the result of a run; restore the file, or leave it out.'
      ) from None
  return lines


def append(path, line: dict) -> None:
  """Adds a line to a file, which is whole at any moment, here or in a bucket."""
  path = run_folder.folder(path)
  before = path.read_bytes() if run_folder.exists(path) else b''
  if before and not before.endswith(b'\n'):  # of an editor, say
    before += b'\n'
  run_folder.write_bytes(path, before + (json.dumps(line) + '\n').encode())


def differences(wanted: dict, line: dict) -> list[str]:
  """In which fields a line is not what is asked for, as 'field: its value -> the value asked for'."""
  defaults = {
    '': _flat(to_plain(PretrainingConfig())),
    'task': _flat(to_plain(FinetuningConfig())),
  }

  def compare(theirs, ours, usual, prefix):
    def value(fields, name):
      return fields.get(name, usual.get(name))

    return [
      f'{prefix}{name}: {value(theirs, name)!r} -> {value(ours, name)!r}'
      for name in sorted({*theirs, *ours})
      if value(theirs, name) != value(ours, name)
    ]

  found = compare(line['fields'], wanted['fields'], defaults[''], '')
  found += [
    f'{name}: {line.get(name)!r} -> {wanted[name]!r}'
    for name in ('data', 'rows')
    if line.get(name) != wanted[name]
  ]
  for task in sorted({*line['tasks'], *wanted['tasks']}):
    theirs, ours = line['tasks'].get(task), wanted['tasks'].get(task)
    if theirs is None or ours is None:
      found.append(f'{task}: {"not" if theirs is None else "only"} there')
      continue
    found += compare(theirs['fields'], ours['fields'], defaults['task'], f'{task} ')
    found += [
      f'{task} {name}: {theirs.get(name)!r} -> {ours[name]!r}'
      for name in ('task', 'data')
      if theirs.get(name) != ours[name]
    ]
  return found


#### What seeds say together #########################################################################################


def summarise(lines: list[dict], runs: list[str]) -> list[dict]:
  """The runs that have lines, in order: `run`, `group`, `lines`, `flops`, `paper_flops`, `tokens` (means), `not_learned` (seeds), and
  `figures`: by title, `values` by seed and their `spread`. Figures of tasks are medians of a line's trials, times 100."""
  found = []
  for run in runs:
    mine = sorted((line for line in lines if line['run'] == run), key=lambda line: line['seed'])
    if not mine:
      continue
    figures = {}
    for line in mine:
      for name, task in line['tasks'].items():
        if task['values']:
          figures.setdefault((name, f'{name}: {task["metric"]}'), {})[line['seed']] = (
            100 * statistics.median(task['values'])
          )
      for name in HELDOUT:
        value = line['heldout'].get(name, {}).get('value')
        if value is not None and math.isfinite(value):
          figures.setdefault((name, HELDOUT[name][0]), {})[line['seed']] = value

    def mean(name, mine=mine):
      return statistics.fmean(line[name] for line in mine)

    found.append(
      {
        'run': run,
        'group': group(run),
        'lines': mine,
        'flops': mean('flops'),
        'paper_flops': mean('paper_flops'),
        'tokens': mean('tokens'),
        'not_learned': [line['seed'] for line in mine if line['learned'] is False],
        'figures': {
          title: {'name': name, 'values': values} | spread(list(values.values()))
          for (name, title), values in figures.items()
        },
      }
    )
  return found


def _columns(summaries) -> list[str]:
  """Titles of the figures, tasks first."""
  titles = list(dict.fromkeys(title for summary in summaries for title in summary['figures']))
  of_heldout = [title for title, _, _ in HELDOUT.values()]
  return [t for t in titles if t not in of_heldout] + [t for t in of_heldout if t in titles]


def _digits(title: str) -> int:
  return next((digits for name, digits, _ in HELDOUT.values() if name == title), 1)


def _cell(summary, title: str, interval: bool = False) -> str:
  f, digits = summary['figures'].get(title), _digits(title)
  if f is None:
    return ''
  text = f'{f["mean"]:.{digits}f}' + (
    '' if f['deviation'] is None else f' ± {f["deviation"]:.{digits}f}'
  )
  return text + (
    f' ({f["low"]:.{digits}f} to {f["high"]:.{digits}f})'
    if interval and f['low'] is not None
    else ''
  )


def _verdict(summary) -> str:
  if all(line['learned'] is None for line in summary['lines']):
    return ''
  wrong, n = len(summary['not_learned']), len(summary['lines'])
  return (
    'learned' if not wrong else 'not learned' if wrong == n else f'not learned by {wrong} of {n}'
  )


def table(summaries: list[dict], seeds: int) -> str:
  """A line a run, for the console: means and standard deviations over its seeds."""
  columns = _columns(summaries)
  rows = [['run', 'seeds', 'FLOPs', 'tokens', *columns, 'discriminator']]
  rows += [
    [
      s['run'],
      f'{len(s["lines"])} of {seeds}',
      quantity(s['flops']),
      quantity(s['tokens']),
      *(_cell(s, title) for title in columns),
      _verdict(s),
    ]
    for s in summaries
  ]
  if not any(row[-1] for row in rows[1:]):
    rows = [row[:-1] for row in rows]
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return '\n'.join(
    '  '
    + '  '.join(
      f'{cell:{"<" if i == 0 else ">"}{width}}'
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


NOTES = (
  "Mean ± standard deviation over seeds; in brackets the 95% interval of the mean, by Student's t. Tasks: the median of a run's trials on dev, times 100. "
  "Held-out losses in nats a token; of different objectives they are losses at different tasks, which do not compare. FLOPs: matrix products forward and backward (in brackets: counted as the paper's script does). "
  "Not learned: the 95% bootstrap interval of the discriminator's gain over the best constant predictor does not lie above 0; such a run supports no claim."
)


def markdown(name: str, summaries: list[dict], seeds: int) -> str:
  """The same with intervals, and what is needed to read it."""
  columns = _columns(summaries)

  def line(cells):
    return '| ' + ' | '.join(cells) + ' |'

  rows = [
    [
      s['run'],
      f'{len(s["lines"])} of {seeds}',
      f'{quantity(s["flops"])} ({quantity(s["paper_flops"])})',
      quantity(s['tokens']),
      *(_cell(s, title, interval=True) for title in columns),
      _verdict(s),
    ]
    for s in summaries
  ]
  header = ['run', 'seeds', 'FLOPs', 'tokens', *columns, 'discriminator']
  devices = sorted({line['device'] for s in summaries for line in s['lines'] if line.get('device')})
  text = [
    f'# {name}',
    '',
    line(header),
    line(['---'] + ['---:'] * (len(header) - 1)),
    *map(line, rows),
    '',
    NOTES,
  ]
  if devices:
    text += [
      '',
      f'Trained on {", ".join(devices)}'
      + (
        '; figures of runs on unlike devices differ by their rounding too.'
        if len(devices) > 1
        else '.'
      ),
    ]
  return '\n'.join(text) + '\n'


#### The picture #####################################################################################################


def draw(name: str, summaries: list[dict]):
  """A panel a figure over FLOPs, a line a group of runs, with 95% intervals over seeds: a matplotlib Figure.

  Where no group has runs of two budgets, runs stand side by side in place of FLOPs. Hollow: not learned.
  """
  from matplotlib import rc_context
  from matplotlib.figure import Figure

  columns, groups = _columns(summaries), list(dict.fromkeys(s['group'] for s in summaries))
  budgets = (
    max(s['flops'] for s in summaries) > 1.05 * min(s['flops'] for s in summaries)
    if summaries
    else False
  )
  wide = min(3, len(columns)) or 1
  high = -(-len(columns) // wide) or 1
  with rc_context(STYLE):
    figure = Figure(figsize=(4.4 * wide, 3.5 * high + 1.1), layout='constrained')
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.09)
    key = 'point: mean over seeds   ·   bar: its 95% interval   ·   dot: a seed   ·   hollow: not learned'
    figure.suptitle(f'{name}\n{key}', x=0.015, ha='left', fontsize=10)
    handles = {}
    for place, title in enumerate(columns):
      axes = figure.add_subplot(high, wide, place + 1)
      of_heldout = {t: more for t, _, more in HELDOUT.values()}
      axes.set_title(
        title if title not in of_heldout else f'held out: {title}',
        loc='left',
        fontsize=10,
        fontweight='bold',
        pad=18,
      )
      axes.annotate(
        'more is better'
        if of_heldout.get(title, True)
        else 'less is better, between runs of one objective',
        (0, 1),
        (0, 5),
        'axes fraction',
        'offset points',
        fontsize=8.5,
        color=GREY,
      )
      for number, one in enumerate(groups):
        mine = sorted(
          (s for s in summaries if s['group'] == one and title in s['figures']),
          key=lambda s: s['flops'],
        )
        if mine:
          # Groups stand a little apart, where bars of one budget would hide one another.
          where = [
            s['flops'] * 1.025 ** (number - (len(groups) - 1) / 2)
            if budgets
            else summaries.index(s)
            for s in mine
          ]
          handles[one] = _group(
            axes,
            mine,
            where,
            title,
            _COLOURS[number % len(_COLOURS)],
            _MARKERS[number % len(_MARKERS)],
          )
      _x_axis(axes, summaries, budgets)
    if handles:
      figure.legend(
        handles.values(),
        handles,
        loc='outside lower center',
        ncols=min(len(handles), 6),
        frameon=False,
        fontsize=9.5,
      )
  return figure


def _group(axes, summaries, where, title, colour, marker):
  """A group's line; returns what stands for it in the legend."""
  from matplotlib.lines import Line2D
  from matplotlib.transforms import offset_copy

  figures, beside = (
    [s['figures'][title] for s in summaries],
    offset_copy(axes.transData, axes.figure, x=-5, units='points'),
  )
  axes.plot(where, [f['mean'] for f in figures], color=colour, lw=1.5, alpha=0.8)
  for s, x, f in zip(summaries, where, figures, strict=True):
    axes.plot(
      [x] * f['n'],
      list(f['values'].values()),
      '.',
      color=colour,
      alpha=0.5,
      ms=5,
      mec='none',
      transform=beside,
    )
    if f['low'] is not None:
      axes.errorbar(
        [x],
        [f['mean']],
        [[f['mean'] - f['low']], [f['high'] - f['mean']]],
        color=colour,
        capsize=3,
        elinewidth=1.3,
        lw=0,
      )
    axes.plot(
      [x],
      [f['mean']],
      marker,
      ms=6.5,
      mec=colour,
      mew=1.4,
      mfc='white' if s['not_learned'] else colour,
      zorder=4,
    )
  return Line2D([], [], color=colour, marker=marker, ms=6, lw=1.5)


def _x_axis(axes, summaries, budgets):
  from matplotlib.ticker import FixedLocator, NullLocator

  if not budgets:
    axes.set_xticks(
      range(len(summaries)),
      [s['run'] for s in summaries],
      rotation=30 if len(summaries) > 3 else 0,
      ha='right' if len(summaries) > 3 else 'center',
    )
    axes.set_xlim(-0.6, len(summaries) - 0.4)
    return
  axes.set_xscale('log')
  ticks = []
  for flops in sorted(s['flops'] for s in summaries):  # one tick a budget
    if not ticks or flops > 1.15 * ticks[-1]:
      ticks.append(flops)
  axes.xaxis.set_major_locator(FixedLocator(ticks[:: -(-len(ticks) // 6)]))
  axes.xaxis.set_minor_locator(NullLocator())
  axes.xaxis.set_major_formatter(lambda value, _: quantity(value))
  axes.set_xlabel('training FLOPs', fontsize=8.5, labelpad=1)
  low, high = ticks[0], max(s['flops'] for s in summaries)
  axes.set_xlim(low / 1.15, high * 1.15)


def write(folder, name: str, summaries: list[dict], seeds: int) -> None:
  """sweep.md and sweep.png in a folder."""
  image = io.BytesIO()
  draw(name, summaries).savefig(image, dpi=130, format='png')
  run_folder.write_bytes(folder / 'sweep.md', markdown(name, summaries, seeds).encode())
  run_folder.write_bytes(folder / 'sweep.png', image.getvalue())

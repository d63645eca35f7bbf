"""The curves of a run as a picture."""

import math

import numpy as np

from electra_jax.training.progress import quantity

# Of Okabe and Ito's palette (2008) and Tol's: colours that people with any kind of colour vision can tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = '#0072B2', '#D55E00', '#009E73', '#AA4499', '#555555'
_TOWERS = {'all': GREY, 'discriminator': BLUE, 'generator': ORANGE, 'embeddings': GREEN}
_FEW, _MANY = (
  30,
  400,
)  # points: a line of more than the first gets no dots, one of more than the second is thin
STYLE = {
  'font.size': 9.5,
  'legend.fontsize': 8.5,
  'xtick.labelsize': 8.5,
  'ytick.labelsize': 8.5,
  'xtick.color': '#333333',
  'ytick.color': '#333333',
  'axes.edgecolor': '#888888',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': '#E3E3E3',
  'grid.linewidth': 0.7,
}


def series(lines: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
  """Tokens seen and a figure, float64 [lines] each; nan where a line has no such figure."""
  figures = [math.nan if line.get(name) is None else line[name] for line in lines]
  return np.array([line['tokens'] for line in lines], float), np.array(figures, float)


def draw(record, headline: str):
  """Ten panels over tokens seen, fewer where no discriminator judges; each title says what good looks like.

  Args:
    record: report.Record.
    headline: a line above all of it.

  Returns: a matplotlib Figure.
  """
  from matplotlib import rc_context
  from matplotlib.figure import Figure

  key = 'faint: training rows   ·   bold: held-out rows'
  if record.evaluation:
    key += f'   ·   diamond: evaluation of step {record.evaluation["step"]:,} with its 95% bootstrap interval'
  with rc_context(STYLE):
    figure = Figure(figsize=(12, 14.5), layout='constrained')
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.1)
    figure.suptitle(f'{headline}\n{key}', x=0.015, ha='left', fontsize=11)
    grid = figure.add_gridspec(4, 6, height_ratios=(1.35, 1, 1, 0.8))

    def panel(row, columns, title, good):
      return _panel(figure.add_subplot(grid[row, columns]), record, title, good, steps=row == 0)

    _losses(record, panel)
    _verdicts(record, panel)
    _health(record, panel)
    for axes in figure.axes:
      if axes.get_legend_handles_labels()[0]:
        axes.legend(
          loc='best', framealpha=0.85, edgecolor='none', handlelength=1.8, borderaxespad=0.2
        )
  return figure


def _losses(record, panel):
  unigram = record.resolved.get('unigram_entropy')
  axes = panel(
    0,
    slice(0, 3),
    'Generator loss',
    'nats a masked token; good: '
    + ('far below the unigram entropy' if unigram else 'falls, and keeps falling'),
  )
  _curves(axes, record, 'generator_loss', BLUE, 'generator')
  ignorance = math.log(record.vocab_size)
  _reference(
    axes, ignorance, f'knows nothing: ln {record.vocab_size:,} = {ignorance:.2f}', GREY, ':'
  )
  if unigram:
    _reference(axes, unigram, f'ignores context: unigram entropy {unigram:.2f}')

  if 'prediction_loss' in record.train[-1]:
    axes = panel(
      0,
      slice(3, 6),
      "The main tower's prediction loss",
      'nats a token; good: falls, and keeps falling',
    )
    _curves(axes, record, 'prediction_loss', PURPLE, 'main tower')
  if 'auc' not in record.train[-1] or 'prediction_loss' in record.train[-1]:
    return
  axes = panel(
    0,
    slice(3, 6),
    'Discriminator loss',
    "nats a token; good: below the constant predictor's, more and more",
  )
  _curves(axes, record, 'discriminator_loss', BLUE, 'discriminator')
  tokens, constant = _chance(axes, record, 'constant_loss', 'constant predictor')
  loss = series(record.heldout or record.train, 'discriminator_loss')[1]
  axes.fill_between(
    tokens,
    loss,
    constant,
    where=loss < constant,
    interpolate=True,
    color=BLUE,
    alpha=0.12,
    lw=0,
    label='what it has learned',
  )
  _zoom(axes, record, 'discriminator_loss', 'constant_loss')


def _verdicts(record, panel):
  if 'auc' in record.train[-1]:
    _judged(record, panel)
  axes = panel(2, slice(0, 2), "Generator's accuracy", 'at masked positions; good: both rise')
  _curves(axes, record, 'generator_accuracy', BLUE, 'most likely token')
  if 'sampled_accuracy' in record.train[-1]:
    _curves(axes, record, 'sampled_accuracy', PURPLE, 'sampled token', marker='s')
  axes.set_ylim(bottom=0)


def _judged(record, panel):
  axes = panel(1, slice(0, 2), 'Area under the ROC curve', 'good: above 0.5, and rising at the end')
  _curves(axes, record, 'auc', BLUE, 'discriminator')
  _reference(axes, 0.5, 'chance')

  axes = panel(
    1, slice(2, 4), 'Average precision', 'good: above the replaced rate, and rising at the end'
  )
  _curves(axes, record, 'average_precision', BLUE, 'discriminator')
  _chance(axes, record, 'replaced_rate', 'chance: replaced rate')

  axes = panel(
    1, slice(4, 6), 'Precision and recall', 'at a probability of one half; good: both rise'
  )
  _curves(axes, record, 'precision', PURPLE, 'precision', marker='s')
  _curves(axes, record, 'recall', BLUE, 'recall')
  axes.set_ylim(-0.03, 1.03)


def _health(record, panel):
  from matplotlib.ticker import LogLocator, NullFormatter

  axes = panel(
    2, slice(2, 4), 'Gradient norms', 'before clipping; good: they settle, without spikes'
  )
  one = record.config['sharing'] == 'all' or record.config['objective'].get('name') == 'mlm'
  names = {'discriminator': 'the tower', 'generator': "the vocabulary's head"} if one else {}
  axes.set_yscale('log')
  for tower, color in _TOWERS.items():
    _plain(axes, record, f'gradient_norm/{tower}', color, names.get(tower, tower))
  clip = record.config['optimizer']['clip']
  if clip:
    _reference(axes, clip, f'clipped to {clip:g}', 'black', ':')
  low, high = axes.get_ylim()
  axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
  axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
  axes.yaxis.set_minor_formatter(NullFormatter())

  axes = panel(2, slice(4, 6), 'Learning rate', 'a warm-up, then linear to 0')
  _plain(axes, record, 'learning_rate', BLUE)
  axes.set_ylim(bottom=0)
  axes.yaxis.set_major_formatter(lambda value, _: f'{value:.3g}')

  axes = panel(
    3,
    slice(0, 3),
    'Tokens a second',
    'good: level; a dip says that something else took the machine',
  )
  _plain(axes, record, 'tokens_per_second', BLUE)
  axes.set_ylim(bottom=0)
  axes.yaxis.set_major_formatter(lambda value, _: quantity(value))

  axes = panel(
    3,
    slice(3, 6),
    'Utilisation',
    'good: much of the peak is used, and no time is spent waiting for input',
  )
  _plain(axes, record, 'utilisation', BLUE, 'share of the peak rate of matrix products')
  _plain(axes, record, 'input_wait', ORANGE, 'share of the time waiting for input')
  axes.set_ylim(0, 1.03)
  axes.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')


def _panel(axes, record, title, good, *, steps):
  """Titles, and tokens on the x axis; with `steps` these too, on top."""
  from matplotlib.ticker import MaxNLocator

  def ticks():
    return MaxNLocator(5, steps=(1, 2, 2.5, 5, 10), integer=True)

  last, above = record.last, 17 if steps else 0
  axes.set_title(title, loc='left', fontsize=11, fontweight='bold', pad=21 + above)
  axes.annotate(
    good, (0, 1), (0, 7 + above), 'axes fraction', 'offset points', fontsize=9, color=GREY
  )
  axes.set_xlim(0, last['tokens'] * 1.02)
  axes.set_xlabel('tokens seen', fontsize=8.5, labelpad=1)
  axes.xaxis.set_major_locator(ticks())
  axes.xaxis.set_major_formatter(lambda value, _: quantity(value))
  if steps:
    a_step = last['tokens'] / last['step']
    top = axes.secondary_xaxis(
      'top', functions=(lambda tokens: tokens / a_step, lambda step: step * a_step)
    )
    top.xaxis.set_major_locator(ticks())
    top.xaxis.set_major_formatter(lambda value, _: f'{value:,.0f}' if value else 'step 0')
    top.spines['top'].set_visible(False)
    top.tick_params(length=2, pad=1, labelcolor=GREY)
  return axes


def _marker(lines, marker='.'):
  """Dots where there are few points: a line of one point would not be seen."""
  return marker if len(lines) <= _FEW else None


def _reference(axes, height, label, color=ORANGE, style='--'):
  axes.axhline(height, color=color, ls=style, lw=1.4, label=label)


def _chance(axes, record, name, label):
  """What chance scores, where that moves with the replaced rate; returns its tokens and values."""
  lines = record.heldout or record.train
  tokens, values = series(lines, name)
  axes.plot(tokens, values, color=ORANGE, ls='--', lw=1.4, label=label, marker=_marker(lines))
  return tokens, values


def _plain(axes, record, name, color, label=None):
  """A figure that training lines alone have; nothing where they have not."""
  tokens, values = series(record.train, name)
  if np.isfinite(values).any():
    width = 1.4 if len(values) <= _MANY else 0.6
    axes.plot(tokens, values, color=color, lw=width, label=label, marker=_marker(record.train))


def _curves(axes, record, name, color, label, marker='o'):
  """A figure on training rows, on held-out rows, and as evaluated."""
  axes.plot(
    *series(record.train, name),
    color=color,
    lw=1,
    alpha=0.4,
    marker=_marker(record.train),
    label=None if record.heldout else label,
  )
  if record.heldout:
    axes.plot(
      *series(record.heldout, name),
      color=color,
      lw=2.2,
      label=label,
      ms=4.5,
      marker=_marker(record.heldout, marker),
    )
  if record.evaluation and name in record.evaluation['figures']:
    f, a_step = record.evaluation['figures'][name], record.last['tokens'] / record.last['step']
    spread = [[max(f['value'] - f['low'], 0)], [max(f['high'] - f['value'], 0)]]
    axes.errorbar(
      [record.evaluation['step'] * a_step],
      [f['value']],
      yerr=spread,
      color=color,
      fmt='D',
      ms=6,
      mec='white',
      capsize=4,
      elinewidth=1.6,
      zorder=5,
      clip_on=False,
    )


def _zoom(axes, record, *names):
  """Limits by held-out figures and the later half of training: the first losses would flatten all that follows."""
  late = record.train[len(record.train) // 2 :]
  evaluated = (
    [f for name in names if (f := record.evaluation['figures'].get(name))]
    if record.evaluation
    else []
  )
  values = np.concatenate(
    [series(lines, name)[1] for lines in (late, record.heldout) for name in names]
    + [[f['low'], f['high']] for f in evaluated]
  )
  values = values[np.isfinite(values)]
  if values.size:
    margin = 0.06 * (np.ptp(values) or 1)
    axes.set_ylim(values.min() - margin, values.max() + margin)

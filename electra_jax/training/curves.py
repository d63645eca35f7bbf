"""The curves of a run as a picture."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from etils import epath

from electra_jax.console import quantity

RcParams: TypeAlias = Any  # of matplotlib

# From the palettes of Okabe and Ito (2008) and of Tol, which people with any kind of color vision
# can distinguish.
BLUE = '#0072B2'
ORANGE = '#D55E00'
GREEN = '#009E73'
PURPLE = '#AA4499'
GREY = '#555555'
_TOWERS = {'all': GREY, 'discriminator': BLUE, 'generator': ORANGE, 'embeddings': GREEN}
_FEW = 30  # points: a line of more has no dots
_MANY = 400  # points: a line of more is thin
STYLE: RcParams = {
  'text.color': '#333333',
  'text.parse_math': False,  # names are shown as they are
  'axes.labelcolor': '#333333',
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

# Objects of matplotlib, which is imported when a picture is drawn.
Figure: TypeAlias = Any
Axes: TypeAlias = Any
Locator: TypeAlias = Any
Line: TypeAlias = dict[str, Any]  # of metrics.jsonl
Panel: TypeAlias = Callable[[int, slice, str, str], Axes]  # row, columns, title, what is good


class CurvePanel(NamedTuple):
  """A panel as a separate figure.

  Attributes:
    title: what it shows.
    good: what good curves look like.
    figure: a matplotlib Figure without the two texts.
  """

  title: str
  good: str
  figure: Figure


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """What a run recorded, as plain JSON values.

  Attributes:
    workdir: the run's folder.
    config: of config.json.
    resolved: of resolved.json; empty where there is none.
    train: lines of metrics.jsonl on training rows, in order.
    heldout: lines of metrics.jsonl on held-out rows, in order.
    evaluation: of evaluation.json; None where there is none.
    same_tower: whether generator and main tower are one.
  """

  workdir: epath.Path
  config: dict[str, Any]
  resolved: dict[str, Any]
  train: list[Line]
  heldout: list[Line]
  evaluation: dict[str, Any] | None
  same_tower: bool = False

  @property
  def metric_line(self) -> Line:
    """A line with the metrics that the run has: of training, or before its first line held-out."""
    return (self.train or self.heldout)[-1]

  @property
  def tokens_per_step(self) -> float:
    """Mean over the run; padding included."""
    return float(self.last['tokens'] / max(1, self.last['step']))

  @property
  def last(self) -> Line:
    """The line of the latest step."""
    return max(self.train[-1:] + self.heldout[-1:], key=lambda line: line['step'])

  @property
  def vocab_size(self) -> int:
    """Of the tokenizer."""
    size: int = self.resolved.get('vocab_size') or self.config['data']['vocab_size']
    return size


def series(lines: Sequence[Line], name: str) -> tuple[np.ndarray, np.ndarray]:
  """Tokens seen and a metric, float64 [lines] each; nan where a line does not have the metric."""
  values = [math.nan if line.get(name) is None else line[name] for line in lines]
  return np.array([line['tokens'] for line in lines], float), np.array(values, float)


def draw_curves(record: RunRecord, headline: str) -> Figure:
  """Draws up to ten panels over tokens seen; each title states what good curves look like.

  Panels of metrics that the objective does not have are left out.

  Args:
    record: of the run.
    headline: a line above the panels.

  Returns:
    A matplotlib Figure.
  """
  import matplotlib
  import matplotlib.figure

  key = 'faint: training rows   ·   bold: held-out rows'
  if record.evaluation:
    key += (
      f'   ·   diamond: evaluation of step {record.evaluation["step"]:,} with its 95% bootstrap '
      'interval'
    )
  with matplotlib.rc_context(STYLE):
    figure: Figure = matplotlib.figure.Figure(figsize=(12, 14.5), layout='constrained')
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.1)
    figure.suptitle(f'{headline}\n{key}', x=0.015, ha='left', fontsize=11)
    grid = figure.add_gridspec(4, 6, height_ratios=(1.35, 1, 1, 0.8))

    def panel(row: int, columns: slice, title: str, good: str) -> Axes:
      return _panel(figure.add_subplot(grid[row, columns]), record, title, good, steps=row == 0)

    _draw_panels(record, panel)
    for axes in figure.axes:
      _add_legend(axes)
  return figure


def draw_single_panels(record: RunRecord, size: tuple[float, float]) -> list[CurvePanel]:
  """Draws each panel of `draw_curves` as a separate figure, in its order.

  Args:
    record: of the run.
    size: of each figure, in inches.
  """
  import matplotlib
  import matplotlib.figure

  found: list[CurvePanel] = []
  with matplotlib.rc_context(STYLE):

    def panel(row: int, columns: slice, title: str, good: str) -> Axes:
      del row, columns
      figure: Figure = matplotlib.figure.Figure(figsize=size, layout='constrained')
      found.append(CurvePanel(title, good, figure))
      axes = figure.add_subplot()
      _token_axis(axes, record)
      return axes

    _draw_panels(record, panel)
    for one in found:
      _add_legend(one.figure.axes[0])
  return found


def _draw_panels(record: RunRecord, panel: Panel) -> None:
  """Draws the panels of the metrics that the objective has."""
  _draw_losses(record, panel)
  if 'auc' in record.metric_line:
    _draw_verdicts(record, panel)
  _draw_accuracy(record, panel)
  _draw_gradients(record, panel)
  _draw_speed(record, panel)


def _add_legend(axes: Axes) -> None:
  if axes.get_legend_handles_labels()[0]:
    axes.legend(loc='best', framealpha=0.85, edgecolor='none', handlelength=1.8, borderaxespad=0.2)


def _draw_losses(record: RunRecord, panel: Panel) -> None:
  unigram = record.resolved.get('unigram_entropy')
  good = 'far below the unigram entropy' if unigram else 'falls, and keeps falling'
  axes = panel(0, slice(0, 3), 'Generator loss', f'nats per masked token; good: {good}')
  _curves(axes, record, 'generator_loss', BLUE, 'generator')
  uniform = math.log(record.vocab_size)
  label = f'uniform guess: ln {record.vocab_size:,} = {uniform:.2f}'
  _reference(axes, uniform, label, GREY, ':')
  if unigram:
    _reference(axes, unigram, f'without context: unigram entropy {unigram:.2f}')

  right = slice(3, 6)
  if 'prediction_loss' in record.metric_line:
    title = "The main tower's prediction loss"
    axes = panel(0, right, title, 'nats per token; good: falls, and keeps falling')
    _curves(axes, record, 'prediction_loss', PURPLE, 'main tower')
  elif 'auc' in record.metric_line:
    good = "nats per token; good: falls further below the constant predictor's"
    axes = panel(0, right, 'Discriminator loss', good)
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
      label='gain over the constant predictor',
    )
    _zoom(axes, record, 'discriminator_loss', 'constant_loss')


def _draw_verdicts(record: RunRecord, panel: Panel) -> None:
  axes = panel(1, slice(0, 2), 'Area under the ROC curve', 'good: above 0.5, and rising at the end')
  _curves(axes, record, 'auc', BLUE, 'discriminator')
  _reference(axes, 0.5, 'chance')

  good = 'good: above the replaced rate, and rising at the end'
  axes = panel(1, slice(2, 4), 'Average precision', good)
  _curves(axes, record, 'average_precision', BLUE, 'discriminator')
  _chance(axes, record, 'replaced_rate', 'chance: replaced rate')

  good = 'at a probability of one half; good: both rise'
  axes = panel(1, slice(4, 6), 'Precision and recall', good)
  _curves(axes, record, 'precision', PURPLE, 'precision', marker='s')
  _curves(axes, record, 'recall', BLUE, 'recall')
  axes.set_ylim(-0.03, 1.03)


def _draw_accuracy(record: RunRecord, panel: Panel) -> None:
  axes = panel(2, slice(0, 2), "Generator's accuracy", 'at masked positions; good: both rise')
  _curves(axes, record, 'generator_accuracy', BLUE, 'most likely token')
  if 'sampled_accuracy' in record.metric_line:
    _curves(axes, record, 'sampled_accuracy', PURPLE, 'sampled token', marker='s')
  axes.set_ylim(bottom=0)


def _draw_gradients(record: RunRecord, panel: Panel) -> None:
  from matplotlib.ticker import LogLocator, NullFormatter

  good = 'before clipping; good: they settle, without spikes'
  axes = panel(2, slice(2, 4), 'Gradient norms', good)
  names = {}
  if record.same_tower:
    names = {'discriminator': 'the tower', 'generator': "the vocabulary's head"}
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


def _draw_speed(record: RunRecord, panel: Panel) -> None:
  axes = panel(2, slice(4, 6), 'Learning rate', describe_schedule(record.config))
  _plain(axes, record, 'learning_rate', BLUE)
  axes.set_ylim(bottom=0)
  axes.yaxis.set_major_formatter(lambda value, _: f'{value:.3g}')

  good = 'good: constant; a dip means that another process used the machine'
  axes = panel(3, slice(0, 3), 'Tokens per second', good)
  _plain(axes, record, 'tokens_per_second', BLUE)
  axes.set_ylim(bottom=0)
  axes.yaxis.set_major_formatter(lambda value, _: quantity(value))

  good = 'good: a large part of the peak is used, and no time is spent waiting for input'
  axes = panel(3, slice(3, 6), 'Utilization', good)
  _plain(axes, record, 'utilisation', BLUE, 'fraction of the peak rate of matrix products')
  _plain(axes, record, 'input_wait', ORANGE, 'fraction of the time waiting for input')
  axes.set_ylim(0, 1.03)
  axes.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')


def describe_schedule(config: Mapping[str, Any]) -> str:
  """The learning rate's schedule in words, such as 'a warm-up, then linear decay to 0'.

  Args:
    config: of config.json, which may be of an older version.
  """
  o = config['optimizer']
  power = o.get('decay_power', 1.0)
  decay = 'linear decay' if power == 1 else f'decay with power {power:g}'
  text = f'{decay} to 0'
  if o.get('warmup_steps') or o.get('warmup_fraction'):
    text = f'a warm-up, then {text}'
  return f'in each phase {text}' if config.get('phases') else text


def _panel(axes: Axes, record: RunRecord, title: str, good: str, *, steps: bool) -> Axes:
  """Sets titles and the x axis, which shows tokens and, with `steps`, also steps at the top."""
  above = 17 if steps else 0
  axes.set_title(title, loc='left', fontsize=11, fontweight='bold', pad=21 + above)
  axes.annotate(
    good, (0, 1), (0, 7 + above), 'axes fraction', 'offset points', fontsize=9, color=GREY
  )
  _token_axis(axes, record)
  if steps:
    per_step = max(1.0, record.tokens_per_step)
    top = axes.secondary_xaxis(
      'top', functions=(lambda tokens: tokens / per_step, lambda step: step * per_step)
    )
    top.xaxis.set_major_locator(_few_ticks())
    top.xaxis.set_major_formatter(lambda value, _: f'{value:,.0f}' if value else 'step 0')
    top.spines['top'].set_visible(False)
    top.tick_params(length=2, pad=1, labelcolor=GREY)
  return axes


def _token_axis(axes: Axes, record: RunRecord) -> None:
  """Sets the x axis: tokens from the start of the run to its last line."""
  axes.set_xlim(0, max(1, record.last['tokens']) * 1.02)
  axes.set_xlabel('tokens seen', fontsize=8.5, labelpad=1)
  axes.xaxis.set_major_locator(_few_ticks())
  axes.xaxis.set_major_formatter(lambda value, _: quantity(value))


def _few_ticks() -> Locator:
  from matplotlib.ticker import MaxNLocator

  return MaxNLocator(5, steps=(1, 2, 2.5, 5, 10), integer=True)


def _marker(lines: Sequence[Line], marker: str = '.') -> str | None:
  """Dots where there are few points: a line of one point would not be visible."""
  return marker if len(lines) <= _FEW else None


def _reference(
  axes: Axes, height: float, label: str, color: str = ORANGE, style: str = '--'
) -> None:
  axes.axhline(height, color=color, ls=style, lw=1.4, label=label)


def _chance(axes: Axes, record: RunRecord, name: str, label: str) -> tuple[np.ndarray, np.ndarray]:
  """Draws what chance scores, which changes with the replaced rate; returns tokens and values."""
  lines = record.heldout or record.train
  tokens, values = series(lines, name)
  axes.plot(tokens, values, color=ORANGE, ls='--', lw=1.4, label=label, marker=_marker(lines))
  return tokens, values


def _plain(axes: Axes, record: RunRecord, name: str, color: str, label: str | None = None) -> None:
  """Draws a metric that only training lines have; nothing where it is missing."""
  tokens, values = series(record.train, name)
  if np.isfinite(values).any():
    width = 1.4 if len(values) <= _MANY else 0.6
    axes.plot(tokens, values, color=color, lw=width, label=label, marker=_marker(record.train))


def _curves(
  axes: Axes, record: RunRecord, name: str, color: str, label: str, marker: str = 'o'
) -> None:
  """Draws a metric on training rows, on held-out rows, and as evaluated."""
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
    f, per_step = record.evaluation['figures'][name], record.tokens_per_step
    spread = [[max(f['value'] - f['low'], 0)], [max(f['high'] - f['value'], 0)]]
    axes.errorbar(
      [record.evaluation['step'] * per_step],
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


def _zoom(axes: Axes, record: RunRecord, *names: str) -> None:
  """Sets limits from held-out metrics and the later half of training.

  The first losses are so high that they would flatten the rest of the curve.
  """
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

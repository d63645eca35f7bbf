"""The picture of a sweep: metrics over FLOPs, a line per group of runs."""

import io
from collections.abc import Sequence
from typing import Any

from etils import epath
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import offset_copy

from electra_jax import file_access
from electra_jax.console import quantity
from electra_jax.sweep.results_page import results_page
from electra_jax.sweep.summary import BY_TITLE, RunSummary, metric_titles, sweep_page
from electra_jax.training.curves import BLUE, GREEN, GREY, ORANGE, PURPLE, STYLE

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, '#E69F00', '#56B4E9', GREY, 'black')
_MARKERS = 'osD^vPX*'
_KEY = (
  'point: mean over seeds   ·   bar: its 95% interval   ·   dot: a seed   ·   hollow: not learned'
)


def write_report(
  folder: epath.Path, name: str, summaries: Sequence[RunSummary], seeds: int
) -> None:
  """Writes sweep.html, sweep.md and sweep.png.

  Args:
    folder: of the sweep.
    name: of the sweep.
    summaries: of the runs.
    seeds: number of seeds of the sweep.

  Raises:
    UserError: the folder cannot be written.
  """
  image, figure = io.BytesIO(), draw_sweep(name, summaries)
  figure.savefig(image, dpi=130, format='png')
  page = results_page(name, summaries, seeds, figure)
  file_access.write_bytes(folder / 'sweep.html', page.encode())
  file_access.write_bytes(folder / 'sweep.md', sweep_page(name, summaries, seeds).encode())
  file_access.write_bytes(folder / 'sweep.png', image.getvalue())


def draw_sweep(name: str, summaries: Sequence[RunSummary]) -> Figure:
  """A panel per metric over FLOPs, a line per group of runs, with 95% intervals over seeds.

  Where all runs have the same budget, they stand side by side. Hollow: not learned.

  Args:
    name: of the sweep.
    summaries: of the runs, at least one.
  """
  titles = metric_titles(summaries)
  flops = [summary.flops for summary in summaries]
  over_flops = max(flops) > 1.05 * min(flops)
  columns = min(3, len(titles)) or 1
  rows = -(-len(titles) // columns) or 1
  with rc_context(STYLE):
    layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09)
    figure = Figure(figsize=(4.4 * columns, 3.5 * rows + 1.1), layout=layout)
    figure.suptitle(f'{name}\n{_KEY}', x=0.015, ha='left', fontsize=10)
    handles: dict[str, Artist] = {}
    for place, title in enumerate(titles, 1):
      axes = figure.add_subplot(rows, columns, place)
      _head(axes, title)
      handles |= _draw_groups(axes, summaries, title, over_flops)
      if over_flops:
        _flops_axis(axes, flops)
      else:
        _run_axis(axes, [summary.run for summary in summaries])
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


def _head(axes: Axes, title: str) -> None:
  """The title of a panel, and whether more is better."""
  metric = BY_TITLE.get(title)
  text = f'held out: {title}' if metric else title
  axes.set_title(text, loc='left', fontsize=10, fontweight='bold', pad=18)
  if metric is None or metric.more_is_better:
    note = 'more is better'
  else:
    note = 'less is better, between runs of one objective'
  axes.annotate(note, (0, 1), (0, 5), 'axes fraction', 'offset points', fontsize=8.5, color=GREY)


def _draw_groups(
  axes: Axes, summaries: Sequence[RunSummary], title: str, over_flops: bool
) -> dict[str, Artist]:
  """The lines of all groups; returns the legend's entry of each."""
  groups = list(dict.fromkeys(summary.group for summary in summaries))
  handles: dict[str, Artist] = {}
  for number, group in enumerate(groups):
    of_group = [s for s in summaries if s.group == group and title in s.metrics]
    of_group.sort(key=lambda summary: summary.flops)
    if not of_group:
      continue
    # Groups are shifted a little, since bars of one budget would hide one another.
    shift = 1.025 ** (number - (len(groups) - 1) / 2)
    where = [s.flops * shift if over_flops else summaries.index(s) for s in of_group]
    color, marker = _COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)]
    _draw_group(axes, of_group, where, title, (color, marker))
    handles[group] = Line2D([], [], color=color, marker=marker, ms=6, lw=1.5)
  return handles


def _draw_group(
  axes: Axes,
  summaries: Sequence[RunSummary],
  where: Sequence[float],
  title: str,
  look: tuple[str, str],
) -> None:
  """The line of a group: means, their intervals and the values of the seeds.

  Args:
    axes: the panel.
    summaries: the runs of the group.
    where: horizontal position of each.
    title: of the metric.
    look: color and marker.
  """
  color, marker = look
  metrics = [summary.metrics[title] for summary in summaries]
  beside = offset_copy(axes.transData, axes.get_figure(root=True), x=-5, units='points')
  axes.plot(where, [m.mean for m in metrics], color=color, lw=1.5, alpha=0.8)
  for summary, x, m in zip(summaries, where, metrics, strict=True):
    seeds = list(m.values.values())
    dots: dict[str, Any] = {
      'color': color,
      'alpha': 0.5,
      'ms': 5,
      'mec': 'none',
      'transform': beside,
    }
    axes.plot([x] * len(seeds), seeds, '.', **dots)
    if m.low is not None and m.high is not None:
      bar = [[m.mean - m.low], [m.high - m.mean]]
      axes.errorbar([x], [m.mean], bar, color=color, capsize=3, elinewidth=1.3, lw=0)
    fill = 'white' if summary.not_learned else color
    axes.plot([x], [m.mean], marker, ms=6.5, mec=color, mew=1.4, mfc=fill, zorder=4)


def _run_axis(axes: Axes, runs: Sequence[str]) -> None:
  """A horizontal axis with the runs side by side."""
  slanted = len(runs) > 3
  axes.set_xticks(
    range(len(runs)), runs, rotation=30 if slanted else 0, ha='right' if slanted else 'center'
  )
  axes.set_xlim(-0.6, len(runs) - 0.4)


def _flops_axis(axes: Axes, flops: Sequence[float]) -> None:
  """A logarithmic horizontal axis with one tick per budget, at most six."""
  axes.set_xscale('log')
  ticks: list[float] = []
  for value in sorted(flops):
    if not ticks or value > 1.15 * ticks[-1]:
      ticks.append(value)
  axes.xaxis.set_major_locator(FixedLocator(ticks[:: -(-len(ticks) // 6)]))
  axes.xaxis.set_minor_locator(NullLocator())
  axes.xaxis.set_major_formatter(lambda value, _: quantity(value))
  axes.set_xlabel('training FLOPs', fontsize=8.5, labelpad=1)
  axes.set_xlim(ticks[0] / 1.15, max(flops) * 1.15)

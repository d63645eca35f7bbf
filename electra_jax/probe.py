"""--mode=probe: linear probes of all layers of an encoder: table, JSON, picture and page."""

import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from electra_jax import console
from electra_jax.config import AnyConfig, ProbingConfig, checked_probing, to_plain
from electra_jax.finetune.probe_run import run_probes
from electra_jax.finetune.report_blocks import Cell, ReportTable
from electra_jax.finetune.run_files import json_values
from electra_jax.pages.block_views import block_views, metric_tiles, shown_cell
from electra_jax.pages.html_page import isolated, page, picture, section, tag
from electra_jax.pages.run_parts import config_tables
from electra_jax.training import run_folder
from electra_jax.training.curves import BLUE, GREEN, GREY, ORANGE, STYLE

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_NOTE = (
  'Accuracies on dev, means over the seeds, with 95% intervals by resampling the texts of dev. '
  'Control: the same probe for a random label of each word (Hewitt and Liang 2019); selectivity is '
  'the difference.'
)


def probe(workdir: str, config: AnyConfig, output: str | None = None) -> None:
  """Probes an encoder; writes probe.json, probe.png and probe.html.

  Args:
    workdir: the run; its results are in WORKDIR/probes/TASK.
    config: of the probes.
    output: another folder for the results.

  Raises:
    UserError: the encoder or the data cannot be read, or the results cannot be written.
  """
  c = checked_probing(config)
  folder = run_folder.folder(workdir) / 'probes' / c.task
  results = run_folder.Results(folder, output)
  console.heading(f'probes for {c.task}  ({c.init or workdir})')
  found = json_values(run_probes(c, workdir))
  image = io.BytesIO()
  draw_probes(found).savefig(image, dpi=130, format='png')
  place = results.write(
    {
      'probe.json': (json.dumps(found, indent=1) + '\n').encode(),
      'probe.png': image.getvalue(),
      'probe.html': probe_page(found, c).encode(),
    }
  )
  console.line('\n' + _console_table(found) + '\n', always=True)
  if place:
    console.say('results', place, always=True)


#### Tables ####


def layer_table(result: Mapping[str, Any]) -> ReportTable:
  """A row for each layer, the mix and the baselines.

  Args:
    result: content of probe.json.
  """
  metric = result['metric']
  names = ['accuracy', *(['control', 'selectivity'] if result['control'] else [])]
  others = [metric] if metric != 'accuracy' else []
  header = ['layer', 'accuracy', '95% interval', *names[1:], *others]
  rows: list[tuple[Cell, ...]] = []
  probes = [(_layer_name(one['layer']), one) for one in result['layers']]
  probes += [('mix of all', result['mix'])] if 'mix' in result else []
  for name, one in probes:
    interval = f'{one["accuracy"]["low"]:.3f} to {one["accuracy"]["high"]:.3f}'
    values = [one[which]['value'] for which in names]
    more = [one['metrics'].get(which) for which in others]
    rows.append((name, values[0], interval, *values[1:], *more))
  for name, value in result['baselines'].items():
    rows.append((f'{name} (no encoder)', value, *('',) * (len(header) - 2)))
  return ReportTable('layers', 'Layers', _NOTE, tuple(header), tuple(rows))


def _layer_name(layer: int) -> str:
  return f'{layer}' if layer else '0 (embeddings)'


def _console_table(result: Mapping[str, Any]) -> str:
  table = layer_table(result)
  rows = [table.header, *([str(shown_cell(cell)) for cell in row] for row in table.rows)]
  plain = [[cell.replace('<bdi>', '').replace('</bdi>', '') for cell in row] for row in rows]
  widths = [max(len(row[i]) for row in plain) for i in range(len(table.header))]
  lines = [
    '  '.join(f'{cell:{"<" if i == 0 else ">"}{widths[i]}}' for i, cell in enumerate(row)).rstrip()
    for row in plain
  ]
  return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:]])


#### The picture ####


def draw_probes(result: Mapping[str, Any]) -> 'Figure':
  """Accuracy, selectivity and the weights of the mix over layers.

  Args:
    result: content of probe.json.
  """
  from matplotlib import rc_context
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  panels = [_draw_accuracy]
  panels += [_draw_selectivity] if result['control'] else []
  panels += [_draw_weights] if 'mix' in result else []
  style: Any = STYLE  # of matplotlib's type for settings
  with rc_context(style):
    figure = Figure(figsize=(4.2 * len(panels), 3.5), layout='constrained')
    title = f'{result["encoder"]["name"]}: linear probes for {result["task"]}'
    figure.suptitle(title, x=0.015, ha='left', fontsize=11)
    for draw, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
      draw(axes, result)
      axes.set_xlabel('layer (0: embeddings)')
      axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  return figure


def _draw_line(
  axes: 'Axes',
  result: Mapping[str, Any],
  name: str,
  color: str,
  label: str,
) -> None:
  """A value of each layer with its interval, and that of the mix as a horizontal line."""
  layers = [one['layer'] for one in result['layers']]
  found = [one[name] for one in result['layers']]
  low, high = [one['low'] for one in found], [one['high'] for one in found]
  axes.fill_between(layers, low, high, color=color, alpha=0.2, lw=0)
  axes.plot(layers, [one['value'] for one in found], color=color, marker='o', ms=4, label=label)
  if 'mix' in result:
    axes.axhline(result['mix'][name]['value'], color=color, ls=':', lw=1.4, label=f'{label}, mix')


def _draw_accuracy(axes: 'Axes', result: Mapping[str, Any]) -> None:
  _draw_line(axes, result, 'accuracy', BLUE, 'accuracy')
  if result['control']:
    _draw_line(axes, result, 'control', ORANGE, 'control task')
  styles = ('--', '-.')
  for (name, value), style in zip(result['baselines'].items(), styles, strict=False):
    axes.axhline(value, color=GREY, ls=style, lw=1.2, label=name)
  axes.set_title('accuracy on dev', loc='left', fontsize=10, fontweight='bold')
  axes.legend(framealpha=0.85, edgecolor='none', fontsize=7.5)


def _draw_selectivity(axes: 'Axes', result: Mapping[str, Any]) -> None:
  _draw_line(axes, result, 'selectivity', GREEN, 'selectivity')
  title = 'selectivity: accuracy minus control'
  axes.set_title(title, loc='left', fontsize=10, fontweight='bold')
  axes.legend(framealpha=0.85, edgecolor='none', fontsize=7.5)


def _draw_weights(axes: 'Axes', result: Mapping[str, Any]) -> None:
  weights, center = result['mix']['weights'], result['mix']['center_of_gravity']
  axes.bar(range(len(weights)), weights, color=BLUE, alpha=0.7)
  axes.axvline(center, color=GREY, ls='--', lw=1.2)
  title = f'weights of the mix, center {center:.2f}'
  axes.set_title(title, loc='left', fontsize=10, fontweight='bold')


#### The page ####


def probe_page(result: Mapping[str, Any], config: ProbingConfig) -> str:
  """The page of the probes as text.

  Args:
    result: content of probe.json.
    config: of the probes.
  """
  best = max(result['layers'], key=lambda one: one['accuracy']['value'])
  tiles: list[tuple[str, Cell, str]] = [
    ('best layer', best['accuracy']['value'], f'layer {best["layer"]}, accuracy')
  ]
  if 'mix' in result:
    mix = result['mix']
    center = f'center of gravity {mix["center_of_gravity"]:.2f}'
    tiles.append(('mix of all layers', mix['accuracy']['value'], center))
  tiles += [(name, value, 'without an encoder') for name, value in result['baselines'].items()]
  counts = ', '.join(f'{n:,} {name.replace("_", " ")}' for name, n in result['counts'].items())
  encoder = result['encoder']
  step = '' if encoder['step'] is None else f', step {encoder["step"]:,}'
  lead = f'Frozen states of {encoder["name"]}{step}; {counts}.'
  name = f'{encoder["name"]}, {result["task"]}'
  tables = (layer_table(result),)
  shown = picture(draw_probes(result), 'accuracy, selectivity and weights by layer')
  return page(
    f'{name} - probes',
    tag('header', tag('h1', isolated(name)), tag('p', lead, class_='lead')),
    section('results', 'Results', metric_tiles(tiles)),
    section('layers', 'Probes', tag('figure', shown, class_='wide'), block_views(tables)),
    section('settings', 'Settings', config_tables(to_plain(config), to_plain(ProbingConfig()))),
  )

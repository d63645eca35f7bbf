"""The page of a run, WORKDIR/report.html: checks, metrics, curves, examples, data and settings."""

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from electra_jax.config import PretrainingConfig, to_plain
from electra_jax.console import quantity, seconds
from electra_jax.data.prepare.preparation_report import (
  count_rows,
  loss_note,
  loss_rows,
  losses_of,
  source_loss_rows,
  source_rows,
)
from electra_jax.pages.html_page import (
  Cell,
  Html,
  fields,
  isolated,
  joined_html,
  notice,
  page,
  section,
  table,
  tag,
)
from electra_jax.pages.run_checks import LEVELS, Finding, RunFiles, findings
from electra_jax.pages.run_parts import (
  PANEL,
  config_tables,
  environment_rows,
  figures,
  run_header,
)
from electra_jax.training.curves import CurvePanel, Line, RunRecord, draw_single_panels

# Value, low, high; None where there is none.
Estimate: TypeAlias = tuple[float | None, float | None, float | None]

_SPEED_PANELS = ('Tokens per second', 'Utilization')
_FINE = (
  'Losses, gradients, speed, held-out metrics and the counts of the text, as far as they are '
  'recorded, are as they should be.'
)
# Titles of what metrics.jsonl has besides the metrics of the objective.
_OTHER_TITLES = {
  'loss': 'training loss (weighted sum)',
  'skipped': 'skipped steps',
  'learning_rate': 'learning rate',
  'generator_learning_rate': "generator's learning rate",
  'tokens_per_second': 'tokens per second',
  'utilisation': 'utilization of the peak',
  'input_wait': 'share of the time waiting for input',
  'temperature': 'temperature',
  'mask_rate': 'mask rate',
  'discriminator_weight': 'weight of the discriminator',
}
_NOT_METRICS = ('kind', 'step', 'tokens', 'seconds')
_SECTIONS = {
  'checks': 'Checks',
  'metrics': 'Metrics',
  'curves': 'Curves',
  'examples': 'Held-out examples',
  'speed': 'Speed',
  'data': 'Data',
  'settings': 'Config and environment',
}


@dataclasses.dataclass(frozen=True)
class PageContent:
  """What a page shows, besides what it reads from the run's files.

  Attributes:
    files: of the run.
    headline: what was trained and for how long, in one line.
    essentials: names and values of the run's main settings.
    titles: of the objective's metrics, by name, in order.
    latest: source, step and values of the latest metrics.
    examples: held-out rows, or a sentence that states why there are none.
  """

  files: RunFiles
  headline: str
  essentials: Sequence[tuple[str, str]]
  titles: Mapping[str, str]
  latest: tuple[str, int, Mapping[str, Estimate]]
  examples: Html | str


def run_page(content: PageContent) -> str:
  """The page as text."""
  files = content.files
  panels = draw_single_panels(files.record, PANEL)
  curves = [panel for panel in panels if panel.title not in _SPEED_PANELS]
  speed = [panel for panel in panels if panel.title in _SPEED_PANELS]
  examples = content.examples
  body = {
    'checks': _checks(findings(files)),
    'metrics': joined_html([_tiles(content), _metrics_table(content)]),
    'curves': joined_html([tag('p', _curves_key(files.record), class_='notes'), _figures(curves)]),
    'examples': examples if isinstance(examples, Html) else tag('p', examples),
    'speed': joined_html([_speed(files.record), _figures(speed)]),
    'data': _data(files),
    'settings': _settings(content),
  }
  sections = [section(name, _SECTIONS[name], part) for name, part in body.items()]
  name = str(files.record.config['name'])
  lead = content.headline.removeprefix(f'{name}: ')  # the heading has the name already
  header = run_header(name, lead, _SECTIONS, files.status)
  return page(f'{name} - run report', header, *sections)


#### Checks ####


def _checks(found: Sequence[Finding]) -> Html:
  counts = {level: sum(finding.level == level for finding in found) for level in LEVELS}
  serious = counts['problem'] + counts['warning']
  if serious:
    parts = [f'{n} {level}{"s" * (n != 1)}' for level, n in counts.items() if n]
    lead = f'{" and ".join(", ".join(parts).rsplit(", ", 1))}.'
  else:
    lead = 'No warnings.'
  items = [notice(one.level, one.title, one.detail, one.action) for one in found]
  if not serious:
    items.insert(0, notice('good', 'Nothing unusual', _FINE))
  return joined_html([tag('p', lead), tag('ul', *items, class_='findings')])


#### Metrics ####


def _tiles(content: PageContent) -> Html:
  """The key metrics, each with the value that it is compared with."""
  record, (source, step, values) = content.files.record, content.latest
  last, steps = record.last, record.config['steps']
  taken = f'step {last["step"]:,} of {steps:,}; {quantity(last["tokens"])} tokens'
  found = [_tile('Progress', f'{last["step"] / max(1, steps):.0%}', taken)]
  entropy = record.resolved.get('unigram_entropy')
  references = {
    'generator_loss': f'nats; without context {entropy:.3f}' if entropy else 'nats',
    'prediction_loss': 'nats per predicted token',
    'gain': 'nats less than the best constant prediction; good: above 0',
    'auc': 'chance: 0.5',
    'average_precision': f'chance: {_number(values.get("replaced_rate", (None,))[0])}',
    'reference_ap': f'without context: {_number(values.get("reference_unigram_ap", (None,))[0])}',
  }
  for name, reference in references.items():
    value, low, high = values.get(name, (None, None, None))
    if value is not None and math.isfinite(value):
      interval = '' if low is None else f'95%: {_number(low)} to {_number(high)}; '
      title = content.titles.get(name, name)
      found.append(_tile(title[:1].upper() + title[1:], _number(value), interval + reference))
  where = f'Of {source} at step {step:,}' + (', with 95% intervals.' if 'eval' in source else '.')
  return joined_html([tag('div', *found, class_='tiles'), tag('p', where, class_='notes')])


def _tile(title: str, value: str, reference: str) -> Html:
  label = tag('span', title, class_='label')
  return tag('div', tag('b', value), label, tag('span', reference), class_='tile')


def _metrics_table(content: PageContent) -> Html:
  """All metrics of the last lines and of the evaluation."""
  record = content.files.record
  train, heldout = (lines[-1] if lines else {} for lines in (record.train, record.heldout))
  evaluation = record.evaluation or {}
  figures = evaluation.get('figures', {})
  header = ['metric']
  header += [f'training, step {train["step"]:,}'] if train else []
  header += [f'held out, step {heldout["step"]:,}'] if heldout else []
  header += [f'evaluation, step {evaluation["step"]:,}', '95% interval'] if figures else []
  main: list[list[str]] = []
  other: list[list[str]] = []
  for name, title in _titles(content, train, heldout, figures).items():
    row = [title]
    row += [_number(train.get(name)) if name in train else ''] if train else []
    row += [_number(heldout.get(name)) if name in heldout else ''] if heldout else []
    if figures:
      f = figures.get(name)
      interval = f'{_number(f["low"])} to {_number(f["high"])}' if f else ''
      row += [_number(f['value']) if f else '', interval]
    (main if name in content.titles else other).append(row)
  note = (
    'Losses in nats. Training metrics are means since the line before; held-out ones are of at '
    f'most {record.config["eval_rows"]:,} rows'
  )
  note += f', the evaluation of {evaluation["rows"]:,}.' if figures else '.'
  more = tag('details', tag('summary', 'Other recorded values'), table(header, other))
  return joined_html(
    [
      table(header, main),
      tag('p', note, class_='notes'),
      more if other else '',
      _mixture_table(content.titles, evaluation),
    ]
  )


def _mixture_table(titles: Mapping[str, str], evaluation: Mapping[str, Any]) -> Html:
  """The metrics of the sources of a mixture, where the evaluation has them."""
  sources = evaluation.get('sources') or ()
  if not sources:
    return Html()
  columns = {'weighted': evaluation.get('weighted', {})}
  for number, source in enumerate(sources, 1):
    columns[f'{number}: {source.get("location", "source")}'] = source['figures']
  rows = []
  for name, title in titles.items():
    values = [figures.get(name, {}).get('value') for figures in columns.values()]
    if any(value is not None for value in values):
      rows.append([title, *map(_number, values)])
  summary = tag('summary', 'Metrics of each source')
  return tag('details', summary, table(['metric', *map(isolated, columns)], rows))


def _titles(content: PageContent, *lines: Line) -> dict[str, str]:
  """Titles of all metrics in these lines: those of the objective, then others."""
  names = {name: None for line in lines for name in line if name not in _NOT_METRICS}
  titles = {name: title for name, title in content.titles.items() if name in names}
  others = [name for name in names if name not in titles]
  return titles | {name: _OTHER_TITLES.get(name, _spelled(name)) for name in others}


def _spelled(name: str) -> str:
  """A title made from a name: 'gradient_norm/all' becomes 'gradient norm, all'."""
  return name.replace('/', ', ').replace('_', ' ')


def _number(value: float | None) -> str:
  """A metric as text; a dash where it is undefined."""
  if value is None or not math.isfinite(value):
    return '-'
  if abs(value) >= 1000:
    return f'{value:,.0f}'
  return f'{value:.4f}' if not value or abs(value) >= 1e-3 else f'{value:.3g}'


#### Curves and speed ####


def _curves_key(record: RunRecord) -> str:
  key = 'Faint: training rows. Bold: held-out rows.'
  if record.evaluation:
    key += f' Diamond: the evaluation of step {record.evaluation["step"]:,} with its 95% interval.'
  return f'{key} Below each title: what good curves look like.'


def _figures(panels: Sequence[CurvePanel]) -> Html:
  return figures(
    (panel.title, panel.good, panel.figure, f'{panel.title} over tokens seen; {panel.good}')
    for panel in panels
  )


def _speed(record: RunRecord) -> Html:
  # The first line includes the first step, which is slower.
  train = record.train[1:] or record.train

  def median(name: str) -> float | None:
    values = [line[name] for line in train if line.get(name) is not None]
    return statistics.median(values) if values else None

  speed, used, wait = map(median, ('tokens_per_second', 'utilisation', 'input_wait'))
  last = record.last
  rows = [
    ('tokens per second', '' if speed is None else f'{speed:,.0f} (median over log lines)'),
    ('utilization', '' if used is None else f'{used:.1%} of the peak of matrix products (median)'),
    ('waiting for input', '' if wait is None else f'{wait:.2%} of the time (median)'),
    ('training time', f'{seconds(last["seconds"])}, without compilation and evaluation'),
  ]
  return fields([row for row in rows if row[1]])


#### Data ####


def _data(files: RunFiles) -> Html:
  if not files.corpus:
    return tag(
      'p',
      'The counts of the preparation are not recorded in this folder, as it was started by an '
      'earlier version. --mode=prepare with the same config prints them; --store=FOLDER reads '
      'them from a prepared corpus.',
    )
  return joined_html(part for facts in files.corpus for part in _corpus(facts))


def _corpus(facts: Mapping[str, Any]) -> Iterator[Html]:
  tokenizer = facts['tokenizer']
  yield tag(
    'p',
    f'{tokenizer["kind"]} tokenizer of {tokenizer["size"]:,} tokens; prepared in ',
    tag('code', isolated(facts['path'])),
    '.',
  )
  header, *rows = count_rows(dict(facts), facts['row_length'])
  yield table(header, rows)
  header, *rows = source_rows(facts['sources'])
  note = 'Counts of a source are those of its training documents.'
  yield tag('p', note, class_='notes')
  yield table(header, [[tag('code', isolated(row[0])), *row[1:]] for row in rows])
  if losses_of(facts['train']).characters:  # version 0.1.0 counted tokens only
    yield tag('p', f'Characters that the tokenizer keeps and loses. {loss_note(dict(facts))}')
    header, *rows = loss_rows(dict(facts))
    yield table(header, [[*row[:-1], isolated(row[-1])] for row in rows])
    header, *rows = source_loss_rows(facts['sources'])
    yield table(header, [[tag('code', isolated(row[0])), *row[1:]] for row in rows])


#### Settings ####


def _settings(content: PageContent) -> Html:
  files = content.files
  return joined_html(
    [
      tag(
        'div',
        fields([row for row in content.essentials if row[1]]),
        fields(_environment(files)),
        class_='columns',
      ),
      config_tables(files.record.config, to_plain(PretrainingConfig())),
    ]
  )


def _environment(files: RunFiles) -> list[tuple[str, Cell]]:
  rows = environment_rows(str(files.record.workdir), files.status, files.versions)
  if mesh := files.record.resolved.get('mesh'):
    rows.append(('mesh', ', '.join(f'{axis} {size}' for axis, size in mesh.items())))
  return rows

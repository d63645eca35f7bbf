"""The page of a fine-tuned run, WORKDIR/report.html, and that of predictions of a labeled file."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from electra_jax.config import FinetuningConfig, to_plain
from electra_jax.console import quantity, seconds
from electra_jax.data.tokenizers import loss_report
from electra_jax.finetune import initial, report_files, trial_summary
from electra_jax.finetune.report_blocks import Report
from electra_jax.finetune.search_report import Search
from electra_jax.pages.block_views import block_views, drawn, metric_tiles
from electra_jax.pages.html_page import (
  Cell,
  Html,
  contents,
  fields,
  isolated,
  joined_html,
  notice,
  page,
  section,
  table,
  tag,
)
from electra_jax.pages.run_parts import (
  PANEL,
  config_tables,
  environment_rows,
  figures,
  run_header,
)
from electra_jax.pages.search_view import search_view
from electra_jax.training.curves import BLUE, GREEN, GREY, ORANGE, PURPLE

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
_SECTIONS = {'results': 'Results', 'search': 'Search', 'curves': 'Learning curves'}
_LAST_SECTIONS = {'texts': 'Texts', 'settings': 'Recipe and environment'}


@dataclasses.dataclass(frozen=True)
class FinetunedFiles:
  """The contents of a fine-tuned run's files.

  Attributes:
    workdir: the run's folder.
    config: of config.json.
    encoder: one line about the encoder that trials start from.
    essentials: names and values of the main settings.
    records: of the finished trials.
    reports: by task: the trial, and its reports by part of the data.
    texts: by task and part of the data, what `report_files.read_texts` returns.
    searches: by task the content of search.json, of tasks that have one.
    status: of status.json; empty where there is none.
    versions: of versions.json; empty where there is none.
  """

  workdir: str
  config: Mapping[str, Any]
  encoder: str
  essentials: Sequence[tuple[str, str]]
  records: Sequence[trial_summary.Record]
  reports: Mapping[str, tuple[int, Mapping[str, Report]]]
  texts: Mapping[str, Mapping[str, Mapping[str, Any]]]
  searches: Mapping[str, Search] = dataclasses.field(default_factory=dict)
  status: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def finetuned_page(files: FinetunedFiles) -> str:
  """The page of a run as text."""
  summaries = trial_summary.summarize_trials(files.records)
  tasks = {f'task{chr(ord("a") + i)}': name for i, name in enumerate(summaries)}
  searched = {name: files.searches[name] for name in summaries if name in files.searches}
  body = {
    'results': _results(summaries),
    **({'search': joined_html(map(search_view, searched.values()))} if searched else {}),
    'curves': joined_html(_curves(files.records, name) for name in summaries),
    **{key: _task(files, name) for key, name in tasks.items()},
    'texts': _texts(files.texts),
    'settings': _settings(files),
  }
  titles = {**_SECTIONS, **tasks, **_LAST_SECTIONS}
  titles = {key: titles[key] for key in body}
  sections = [section(key, titles[key], part) for key, part in body.items()]
  name = str(files.config['name'])
  header = run_header(name, isolated(files.encoder), titles, files.status)
  return page(f'{name} - fine-tuning report', header, *sections)


def scored_page(title: str, lead: str, parts: Mapping[str, Report]) -> str:
  """The page of predictions of labeled data.

  Args:
    title: of the page.
    lead: a sentence about the run.
    parts: a report for each part of the data, by its name.
  """
  sections = {f'part{chr(ord("a") + i)}': name for i, name in enumerate(parts)}
  links = contents(sections) if len(parts) > 1 else Html()
  header = tag('header', tag('h1', isolated(title)), tag('p', lead, class_='lead'), links)
  shown = [
    section(key, name, _metrics(parts[name]), block_views(parts[name].blocks))
    for key, name in sections.items()
  ]
  return page(f'{title} - predictions', header, *shown)


#### Results ####


def _results(summaries: Mapping[str, trial_summary.Summary]) -> Html:
  tiles = []
  for task, summary in summaries.items():
    name = summary['metric']
    found = summary['figures']['dev'][name]
    several = summary['trials'] > 1
    reference = f'best {_number(found["best"])}; ' if several else ''
    constant = summary['constant'].get(name)
    reference += '' if constant is None else f'a constant answer: {_number(constant)}'
    label = f'{task}: {name}' + (f', median of {summary["trials"]}' if several else '')
    tiles.append((label, found['median'], reference))
  header, *rows = trial_summary.all_rows(summaries)
  notes = [
    notice('warning', 'Collapsed trials', note) for note in trial_summary.collapse_notes(summaries)
  ]
  explained = (
    'On dev, and on other parts of the data where they are named. Metrics in the table are times '
    '100; sd: standard deviation over trials; constant: the most frequent answer of the training '
    'data, or its mean.'
  )
  return joined_html(
    [
      metric_tiles(tiles),
      tag('p', explained, class_='notes'),
      tag('ul', *notes, class_='findings') if notes else Html(),
      table(header, [[isolated(cell) for cell in row] for row in rows]),
    ]
  )


def _number(value: float | None) -> str:
  return '–' if value is None or not math.isfinite(value) else f'{value:.3f}'


#### Curves ####


def _curves(records: Sequence[trial_summary.Record], task: str) -> Html:
  """Training loss, and what was evaluated on dev, of each trial of a task over epochs."""
  mine = [record for record in records if record['task'] == task]
  metric = mine[0]['metric']
  loss = {
    record['trial']: [(one['epoch'], one['loss']) for one in record.get('losses') or ()]
    for record in mine
  }
  dev, dev_loss = (
    {record['trial']: trial_summary.curve_points(record, name) for record in mine}
    for name in (metric, initial.DEV_LOSS)
  )
  panels = (
    (f'{task}: training loss', 'Means since the point before, with dropout.', loss),
    (
      f'{task}: loss on dev',
      'Without dropout; rising while the metric rises: overconfidence.',
      dev_loss,
    ),
    (f'{task}: {metric} on dev', 'Evaluations during training; the ring is the selected one.', dev),
  )
  rings = {
    (record['trial'], line['epoch'])
    for record in mine
    for line in record['curve']
    if 'step' in line and line['step'] == record.get('selected_step')
  }
  return figures(
    (title, text, _lines(points, rings if points is dev else set()), f'{title} over epochs')
    for title, text, points in panels
    if any(points.values())
  )


def _lines(
  points: Mapping[int, Sequence[tuple[float, float]]], rings: set[tuple[int, float]]
) -> 'Figure':
  """A figure with a line for each trial.

  Args:
    points: epoch and value, by trial.
    rings: trials and epochs that are marked.
  """

  def draw(axes: 'Axes') -> None:
    for i, (trial, of_trial) in enumerate(points.items()):
      color = _COLORS[i % len(_COLORS)]
      marker = '.' if len(of_trial) <= 30 else ''
      axes.plot(*zip(*of_trial, strict=True), color=color, lw=1.3, marker=marker, label=f'{trial}')
      marked = [one for one in of_trial if (trial, one[0]) in rings]
      if marked:
        axes.plot(*zip(*marked, strict=True), 'o', ms=8, mfc='none', mec=color)
    axes.set_xlim(left=0)
    axes.set_xlabel('epochs')
    axes.margins(y=0.12)
    if 1 < len(points) <= 10:
      axes.legend(title='trial', framealpha=0.85, edgecolor='none')

  return drawn(PANEL, draw)


#### A task ####


def _task(files: FinetunedFiles, name: str) -> Html:
  if name not in files.reports or not files.reports[name][1]:
    text = (
      'The run was made by an earlier version, which recorded no reports; --mode=predict '
      '--report=FILE.html writes one.'
    )
    return tag('p', text)
  trial, reports = files.reports[name]
  parts = [tag('p', f'Of trial {trial}, the best on dev.', class_='notes')]
  for split in report_files.split_names(list(reports)):
    report = reports[split]
    shown = joined_html([_metrics(report), block_views(report.blocks)])
    if split == 'dev':
      parts.append(shown)
    else:
      title = f'{split}: {report.examples:,} examples'
      parts.append(tag('details', tag('summary', title), shown))
  return joined_html(parts)


def _metrics(report: Report) -> Html:
  found = ', '.join(
    f'{name} {value:.4f}'
    for name, value in report.metrics.items()
    if value is not None and math.isfinite(value)
  )
  return tag('p', f'{report.examples:,} examples: {found}.')


#### Texts ####


def _texts(tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Html:
  if not any(tasks.values()):
    return tag('p', 'The run was made by an earlier version, which counted no texts.')
  header = ('part', 'examples', 'rows', 'tokens', 'median length', 'longest', 'notes')
  rows: list[tuple[Cell, ...]] = []
  losses: list[tuple[str, Any]] = []
  for task, splits in tasks.items():
    for split in report_files.split_names(list(splits)):
      one = splits[split]
      notes = '; '.join(f'{count:,} {what}' for what, count in one['counts'].items())
      numbers = [one[name] for name in ('examples', 'rows', 'tokens', 'median_length', 'longest')]
      rows.append((f'{task}, {split}', *(f'{n:,.0f}' for n in numbers), notes))
      if one['losses'].characters:
        losses.append((f'{task}, {split}', one['losses']))
  return joined_html(
    [
      tag('p', 'Rows of the model, with [CLS] and [SEP]; lengths in tokens.', class_='notes'),
      table(header, rows),
      *_losses(losses),
    ]
  )


def _losses(losses: Sequence[tuple[str, Any]]) -> Iterator[Html]:
  """Characters that the run's tokenizer loses, by part of the data, and the most frequent ones."""
  if not losses:
    return
  yield tag('h3', "Characters under the run's tokenizer", class_='block')
  header, *rows = loss_report.source_table(losses)
  yield table(['part', *header[1:]], [[isolated(cell) for cell in row] for row in rows])
  for name, one in losses:
    title = f'{name}: the most frequent characters'
    header, *rows = loss_report.fates_table(one)
    shown = table(header, [[*row[:-1], isolated(row[-1])] for row in rows])
    yield tag('details', tag('summary', title), shown)


#### Settings ####


def _settings(files: FinetunedFiles) -> Html:
  essentials = [*files.essentials, *_spent(files.records)]
  return joined_html(
    [
      tag(
        'div',
        fields([(name, isolated(value)) for name, value in essentials if value]),
        fields(environment_rows(files.workdir, files.status, files.versions)),
        class_='columns',
      ),
      config_tables(files.config, to_plain(FinetuningConfig())),
    ]
  )


def _spent(records: Sequence[trial_summary.Record]) -> list[tuple[str, str]]:
  """What the trials took."""
  steps = sorted({record['steps'] for record in records})
  total = sum(record.get('seconds') or 0 for record in records)
  tokens = sum(record.get('tokens') or 0 for record in records)
  return [
    ('trials', f'{len(records)}, seeds {", ".join(str(r["seed"]) for r in records[:10])}'),
    ('steps of a trial', ', '.join(f'{count:,}' for count in steps)),
    ('tokens of all trials', quantity(tokens)),
    ('training time', f'{seconds(total)}, without compilation and evaluation'),
  ]

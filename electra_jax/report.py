"""The report of a run: the page WORKDIR/report.html, and curves and tables as PNG and Markdown."""

import io
import math
import os
from typing import Any, TypeAlias

import jax

from electra_jax import console, registry
from electra_jax.console import quantity, say, seconds
from electra_jax.data.prepare.finished import FACTS_FILE, read_facts
from electra_jax.data.prepare.preparation_report import kept_facts
from electra_jax.errors import UserError
from electra_jax.file_access import exists, join, write_bytes
from electra_jax.finetune.finetuned import is_finetuned
from electra_jax.finetuned_report import finetuned_report
from electra_jax.pages.colored_rows import example_rows
from electra_jax.pages.html_page import Html
from electra_jax.pages.run_checks import RunFiles
from electra_jax.pages.run_page import PageContent, run_page
from electra_jax.pretrain import metrics
from electra_jax.pretrain.objectives.objective import Objective
from electra_jax.pretrain.trained_run import open_run
from electra_jax.training import checkpoints, plugins, versions
from electra_jax.training.curves import RunRecord, draw_curves
from electra_jax.training.devices import use_compilation_cache
from electra_jax.training.progress import read_metrics
from electra_jax.training.run_folder import folder, read_json, read_json_if_any

EXAMPLES = 3  # held-out rows on the page

# (value, low, high); the last two are None without a bootstrap interval.
Interval: TypeAlias = tuple[float | None, float | None, float | None]


def report_mode(workdir: str, examples: int, store: str | None) -> None:
  """Writes the report without an accelerator, which the run that it describes may be using."""
  jax.config.update('jax_platforms', 'cpu')
  report(workdir, examples=examples, store=store)


def report(
  workdir: str | os.PathLike[str], *, examples: int = EXAMPLES, store: str | None = None
) -> None:
  """Writes a run's report and prints key metrics.

  The files are WORKDIR/report.html, a page of all that the run recorded, and WORKDIR/report.png and
  report.md, its curves and a summary. Bootstrap intervals are added after `--mode=evaluate`. Of a
  fine-tuned run the page is written only, see `finetuned_report.finetuned_report`.

  Args:
    workdir: the run's folder.
    examples: held-out rows that the page shows with the discriminator's probabilities, at most; 0
      does not load the model.
    store: where the prepared corpus is, if it has moved since training.

  Raises:
    UserError: no metrics have been recorded, a file is damaged, or the folder cannot be written.
  """
  if is_finetuned(workdir):
    finetuned_report(workdir)
    return
  record = read_record(workdir)
  image = io.BytesIO()
  draw_curves(record, headline(record)).savefig(image, dpi=130, format='png')
  content = PageContent(
    _read_files(record, store),
    headline(record),
    essentials(record),
    displayed_metrics(record),
    latest(record),
    _examples(record, examples, store),
  )
  written = {
    'page': ('report.html', run_page(content).encode()),
    'picture': ('report.png', image.getvalue()),
    'summary': ('report.md', text(record, 'report.png').encode()),
  }
  try:
    for name, data in written.values():
      write_bytes(record.workdir / name, data)
  except OSError as error:
    raise UserError(
      f'the report cannot be written to {workdir} ({error.strerror}); make it writable.'
    ) from None
  with console.results():
    for label, (name, _) in written.items():
      say(label, str(record.workdir / name))
    for label, line in key_lines(record):
      say(label, line)


def _read_files(record: RunRecord, store: str | None) -> RunFiles:
  """What the page shows besides the record. Counts of older runs are read from the store, if any.

  Raises:
    UserError: a file is damaged.
  """
  path = record.workdir
  corpus = record.resolved.get('corpus', ())
  location = store or record.config['data'].get('store')
  if not corpus and location:
    facts = read_facts(location)
    corpus = (kept_facts(facts, location),) if facts else ()
  return RunFiles(
    record,
    corpus,
    read_json_if_any(path / 'status.json') or {},
    read_json_if_any(path / versions.FILE) or {},
  )


def _examples(record: RunRecord, count: int, store: str | None) -> Html | str:
  """Held-out rows of the last checkpoint, or a sentence that states why there are none.

  The corpus is never prepared anew.
  """
  if not count:
    return 'Not shown, as --examples=0 was given.'
  if not _objective(record.config).has_discriminator:
    name = record.config['objective'].get('name', 'electra')
    return f'The objective {name} has no discriminator whose probabilities could be shown.'
  if not checkpoints.any_saved(record.workdir):
    return 'The run has no checkpoint yet.'
  corpus = record.resolved.get('corpus') or [{}]
  location = store or record.config['data'].get('store') or corpus[-1].get('path')
  if not location:
    return (
      'This folder does not record where its prepared corpus is, as it was started by an earlier '
      'version; --store=FOLDER names it.'
    )
  try:
    if not exists(join(location, FACTS_FILE)):
      return (
        f'The prepared corpus is not at {location} any more; --store=FOLDER names another place.'
      )
    say('examples', f'reading {count} held-out rows; --examples=0 is faster')
    run = open_run(record.workdir, 'last', location)
    use_compilation_cache(run.config.compilation_cache)
    return example_rows(run, count)
  except UserError as error:
    return f'They cannot be computed: {error}'
  except (jax.errors.JaxRuntimeError, MemoryError):
    return 'They cannot be computed: memory ran out, or the device failed.'


def read_record(workdir: str | os.PathLike[str]) -> RunRecord:
  """Reads what a run recorded.

  Raises:
    UserError: the folder holds no run or no metrics, a file is damaged, or user code that the run
      used is not loaded.
  """
  path = folder(workdir)
  if not exists(path / 'config.json'):
    raise UserError(f'{path} is not a run: it has no config.json; name one with --workdir.')
  lines = read_metrics(path)
  if not lines:
    raise UserError(
      f'{path} has no metrics to report: its metrics.jsonl is missing or empty; train there first.'
    )

  plugins.require_recorded(path)
  config = read_json(path / 'config.json')
  return RunRecord(
    path,
    config=config,
    resolved=read_json_if_any(path / 'resolved.json') or {},
    train=[line for line in lines if line['kind'] == 'train'],
    heldout=[line for line in lines if line['kind'] == 'heldout'],
    evaluation=read_json_if_any(path / 'evaluation.json'),
    same_tower=_objective(config).one_tower or _one_encoder(config),
  )


def _objective(config: dict[str, Any]) -> Objective:
  """The objective of config.json; older runs do not record its name."""
  objective: Objective = registry.OBJECTIVES.get(config['objective'].get('name', 'electra'))
  return objective


def _one_encoder(config: dict[str, Any]) -> bool:
  """Whether the towers share all parameters of the encoder."""
  return bool(registry.SHARING_SCHEMES.get(config['sharing']).one_encoder)


def displayed_metrics(record: RunRecord) -> dict[str, str]:
  """The titles of the metrics of the run's objective, by name, in their order."""
  return {name: metric.title for name, metric in _objective(record.config).displayed.items()}


def headline(record: RunRecord) -> str:
  """What was trained and for how long, in one line."""
  model = record.config['model']
  last = record.last
  parameters = record.resolved.get('parameters')
  layers = f'{model["num_layers"]} layers of {model["hidden_size"]}'
  return (
    f'{record.config["name"]}: {model["family"]} encoder, {layers}, '
    + (f'{quantity(sum(parameters.values()))} parameters, ' if parameters else '')
    + f'{quantity(last["tokens"])} tokens, {seconds(last["seconds"])} of training'
  )


def latest(record: RunRecord) -> tuple[str, int, dict[str, Interval]]:
  """The most precise metrics of the latest step.

  They are those of `--mode=evaluate`, unless the run has continued since; otherwise those on
  held-out or training rows.

  Returns:
    Their source, their step, and each metric with its interval.
  """
  lines, evaluation = record.heldout or record.train, record.evaluation
  if evaluation and evaluation['step'] >= lines[-1]['step']:
    found = {name: (f['value'], f['low'], f['high']) for name, f in evaluation['figures'].items()}
    return 'evaluation', evaluation['step'], found
  values: dict[str, Interval] = {
    name: (value, None, None) for name, value in lines[-1].items() if name not in ('kind', 'step')
  }
  return 'held-out rows' if record.heldout else 'training rows', lines[-1]['step'], values


def number(value: float | None, digits: int = 4) -> str:
  """A metric as text; a dash where it is undefined."""
  return '-' if value is None or math.isnan(value) else f'{value:.{digits}f}'


def _with_interval(interval: Interval, digits: int = 3) -> str:
  value, low, high = interval
  spread = f' ({number(low, digits)} to {number(high, digits)})' if low is not None else ''
  return number(value, digits) + spread


def key_lines(record: RunRecord) -> list[tuple[str, str]]:
  """The key metrics as labels and lines for the console."""
  where, step, values = latest(record)
  last, unigram = record.last, record.resolved.get('unigram_entropy')
  intervals = ' (95% bootstrap intervals)' if where == 'evaluation' else ''
  lines = [
    ('figures', f'{where}, step {step:,}{intervals}'),
    (
      'generator',
      f'loss {_with_interval(values["generator_loss"])} nats; '
      + (f'unigram entropy {unigram:.3f}, ' if unigram else '')
      + f'uniform guess {math.log(record.vocab_size):.3f}',
    ),
  ]
  if 'auc' in values:
    lines += _verdict_lines(values)
  if 'prediction_loss' in values:
    loss, accuracy = values['prediction_loss'], values['prediction_accuracy']
    lines.append(
      (
        'predictions',
        f'loss of the main tower {_with_interval(loss)} nats, accuracy {_with_interval(accuracy)}',
      )
    )
  time = seconds(last['seconds'])
  return [*lines, ('trained on', f'{quantity(last["tokens"])} tokens in {time}')]


def _verdict_lines(values: dict[str, Interval]) -> list[tuple[str, str]]:

  def value(name: str) -> float:
    found = values[name][0]
    return math.nan if found is None else found

  loss, constant = value('discriminator_loss'), value('constant_loss')
  side = 'below' if loss < constant else 'above'
  return [
    (
      'verdicts',
      f'discriminator loss {_with_interval(values["discriminator_loss"], 4)}, '
      f"{abs(constant - loss):.4f} {side} the constant predictor's {number(constant)}",
    ),
    (
      'ranking',
      f'AUC {_with_interval(values["auc"])}, chance 0.5; average precision '
      f'{_with_interval(values["average_precision"])}, '
      f'chance {number(values["replaced_rate"][0], 3)}',
    ),
    (
      'found',
      f'precision {_with_interval(values["precision"])}, recall {_with_interval(values["recall"])}',
    ),
  ]


def text(record: RunRecord, picture: str) -> str:
  """The summary in Markdown; `picture` is the file that its image links to."""
  table = [f'| {name} | {value} |' for name, value in essentials(record) if value]
  commands = [
    f'python -m electra_jax.main --mode={mode} --workdir={record.workdir}'
    for mode in ('evaluate', 'report')
  ]
  return '\n'.join(
    [
      f'# {record.config["name"]}',
      '',
      f'{headline(record)}.',
      '',
      f'![Curves of the run]({picture})',
      '',
      '## The run',
      '',
      '| | |',
      '|---|---|',
      *table,
      '',
      '## Last metrics',
      '',
      *_last_metrics(record),
      '',
      '## Evaluation',
      '',
      *evaluation(record),
      '',
      '## Commands',
      '',
      '```',
      *commands,
      '```',
      '',
    ]
  )


def essentials(record: RunRecord) -> list[tuple[str, str]]:
  """Names and values of the first table; empty values are omitted."""
  c = record.config
  r = record.resolved
  last = record.last
  model = c['model']
  rows = r.get('train_rows')
  epochs = f', {last["step"] * c["batch_size"] / rows:,.1f} epochs of {rows:,} rows' if rows else ''
  parts = r.get('micro_batches', 1)
  parts = parts[0] if isinstance(parts, list) else parts
  split = f' in {parts} micro-batches' if parts > 1 else ''
  init = (c.get('init', ''), c.get('continued', {}).get('generator', ''))
  entropy = r.get('unigram_entropy')
  return [
    ('objective', c['objective'].get('name', 'electra')),
    (
      _objective(c).main_tower,
      f'{model["family"]}, {model["num_layers"]} layers, hidden {model["hidden_size"]}, '
      f'embeddings {model["embedding_size"]}, {model["num_heads"]} heads, '
      f'feed-forward {model["intermediate_size"]}',
    ),
    ('generator', _describe_generator(c)),
    (
      'parameters',
      ', '.join(
        f'{name.replace("_", " ")} {count:,}' for name, count in r.get('parameters', {}).items()
      ),
    ),
    ('initialized from', ', '.join(filter(None, init))),
    ('corpus', f'{c["data"]["store"] or c["data"]["source"]}, vocabulary of {record.vocab_size:,}'),
    ('unigram entropy', '' if entropy is None else f'{entropy:.3f} nats per token'),
    ('batch', f'{c["batch_size"]} rows of {c["sequence_length"]} tokens{split}'),
    ('steps', f'{last["step"]:,} of {c["steps"]:,}{epochs}'),
    ('tokens', f'{last["tokens"]:,.0f}'),
    (
      'training time',
      f'{seconds(last["seconds"])}, without preparation, compilation and evaluation',
    ),
    ('learning rate', _describe_rate(c['optimizer'])),
    ('matrix products', r.get('dtype', c['dtype'])),
    ('seed', str(c['seed'])),
  ]


def _describe_generator(c: dict[str, Any]) -> str:
  """The generator of config.json; '' for objectives without one."""
  g = c['generator']
  if _objective(c).one_tower:
    return ''
  if g.get('uniform'):
    return 'none: every token is equally likely'
  if _one_encoder(c):
    return 'the same tower'
  return (
    f'{g["hidden_fraction"]:.3g} of the width, {g["layers_fraction"]:.3g} of the depth; '
    f'shared: {c["sharing"]}'
  )


def _describe_rate(optimizer: dict[str, Any]) -> str:
  steps = f'{optimizer["warmup_steps"]:,} steps'
  if optimizer.get('warmup_fraction'):
    steps = f'{optimizer["warmup_fraction"]:.0%} of the steps'
  return f'up to {optimizer["learning_rate"]:g}, after {steps} of warm-up'


def _last_metrics(record: RunRecord) -> list[str]:
  """Lines of Markdown: the last metrics on training and on held-out rows."""
  train, heldout = (part[-1] if part else {} for part in (record.train, record.heldout))
  if train:  # held-out lines have gains and total already
    train = metrics.with_gains({'total_loss': train['loss']} | _defined(train))

  def at(line: dict[str, Any]) -> str:
    return f', step {line["step"]:,}' if line else ''

  return [
    'Losses in nats. Training metrics are means since the line before; held-out ones are of at '
    f'most {record.config["eval_rows"]:,} rows.',
    '',
    f'| | training{at(train)} | held out{at(heldout)} |',
    '|---|---:|---:|',
    *(
      f'| {title} | {number(train.get(name))} | {number(heldout.get(name))} |'
      for name, title in displayed_metrics(record).items()
      if name in train or name in heldout
    ),
  ]


def _defined(line: dict[str, Any]) -> dict[str, Any]:
  """A line with nan for null."""
  return {name: math.nan if value is None else value for name, value in line.items()}


def evaluation(record: RunRecord) -> list[str]:
  """Lines of Markdown: the metrics of `--mode=evaluate`, with their intervals."""
  e = record.evaluation
  if not e:
    return ['Not evaluated yet; the first command below does so.']
  return [
    f'Step {e["step"]:,} on {e["rows"]:,} held-out rows: {e["tokens"]:,} tokens, '
    f'{e["masked"]:,} of them masked.',
    '',
    '| | value | 95% bootstrap interval |',
    '|---|---:|---:|',
    *(
      f'| {title} | {number(f["value"])} | {number(f["low"])} to {number(f["high"])} |'
      for name, title in displayed_metrics(record).items()
      if (f := e['figures'].get(name))
    ),
  ]

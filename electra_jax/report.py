"""Curves and tables of a run: WORKDIR/report.png and WORKDIR/report.md."""

import dataclasses
import io
import math

from etils import epath

from electra_jax.console import say, seconds
from electra_jax.errors import UserError
from electra_jax.pretrain.evaluation import NAMES
from electra_jax.training.curves import draw
from electra_jax.training.progress import quantity, read_metrics
from electra_jax.training.run_folder import exists, folder, read_json, write_bytes


@dataclasses.dataclass(frozen=True)
class Record:
  """What a run wrote down, as plain JSON values. `train` and `heldout` are lines of metrics.jsonl, in order."""

  workdir: epath.Path
  config: dict
  resolved: dict
  train: list[dict]
  heldout: list[dict]
  evaluation: dict | None

  @property
  def last(self) -> dict:
    """The line of the latest step."""
    return max(self.train[-1:] + self.heldout[-1:], key=lambda line: line['step'])

  @property
  def vocab_size(self) -> int:
    """Of the tokenizer."""
    return self.resolved.get('vocab_size') or self.config['data']['vocab_size']


def report(workdir) -> None:
  """Draws a run's curves as WORKDIR/report.png, sums it up in WORKDIR/report.md, and prints the main figures.

  Needs what training wrote; bootstrap intervals come in where `--mode=evaluate` has been run.

  Raises UserError where there are no figures yet, a file is damaged, or the folder cannot be written.
  """
  record = read(workdir)
  picture, summary = record.workdir / 'report.png', record.workdir / 'report.md'
  image = io.BytesIO()
  draw(record, headline(record)).savefig(image, dpi=130, format='png')
  try:
    write_bytes(picture, image.getvalue())
    write_bytes(summary, text(record, picture.name).encode())
  except OSError as error:
    raise UserError(
      f'the report cannot be written to {workdir} ({error.strerror}); make it writable.'
    ) from None
  say('picture', str(picture))
  say('summary', str(summary))
  for label, line in key_lines(record):
    say(label, line)


def read(workdir) -> Record:
  """The record of a run. Raises UserError where the folder holds none, no figures, or damaged files."""
  workdir = folder(workdir)
  if not exists(workdir / 'config.json'):
    raise UserError(f'{workdir} is not a run: it has no config.json; name one with --workdir.')
  lines = read_metrics(workdir)
  if not lines:
    raise UserError(
      f'{workdir} has no figures to report: its metrics.jsonl is missing or empty; train there first.'
    )

  def optional(name):
    return read_json(workdir / name) if exists(workdir / name) else None

  def of_kind(kind):
    return [line for line in lines if line['kind'] == kind]

  return Record(
    workdir,
    config=read_json(workdir / 'config.json'),
    resolved=optional('resolved.json') or {},
    train=of_kind('train'),
    heldout=of_kind('heldout'),
    evaluation=optional('evaluation.json'),
  )


def headline(record: Record) -> str:
  """What was trained on how much, in one line."""
  model, last, parameters = record.config['model'], record.last, record.resolved.get('parameters')
  layers = f'{model["num_layers"]} layers of {model["hidden_size"]}'
  return (
    f'{record.config["name"]}: {model["family"]} encoder, {layers}, '
    + (f'{quantity(sum(parameters.values()))} parameters, ' if parameters else '')
    + f'{quantity(last["tokens"])} tokens, {seconds(last["seconds"])} of training'
  )


def latest(record: Record) -> tuple[str, int, dict[str, tuple]]:
  """The surest figures there are: of `--mode=evaluate` unless training went on since, else held-out or training ones.

  Returns: where they are from, their step, and each as (value, low, high); the last two are None without intervals.
  """
  lines, evaluation = record.heldout or record.train, record.evaluation
  if evaluation and evaluation['step'] >= lines[-1]['step']:
    figures = {name: (f['value'], f['low'], f['high']) for name, f in evaluation['figures'].items()}
    return 'evaluation', evaluation['step'], figures
  figures = {
    name: (value, None, None) for name, value in lines[-1].items() if name not in ('kind', 'step')
  }
  return 'held-out rows' if record.heldout else 'training rows', lines[-1]['step'], figures


def number(value, digits: int = 4) -> str:
  """A figure as text; a dash for one that is undefined."""
  return '-' if value is None or math.isnan(value) else f'{value:.{digits}f}'


def key_lines(record: Record) -> list[tuple[str, str]]:
  """What a person wants to know first: labels and lines for the console."""
  where, step, figures = latest(record)
  last, unigram = record.last, record.resolved.get('unigram_entropy')

  def shown(name, digits=3):
    value, low, high = figures[name]
    return number(value, digits) + (
      f' ({number(low, digits)} to {number(high, digits)})' if low is not None else ''
    )

  judged = 'auc' in figures
  loss, constant = (
    (figures[name][0] for name in ('discriminator_loss', 'constant_loss'))
    if judged
    else (math.nan, math.nan)
  )
  lines = [
    (
      'figures',
      f'{where}, step {step:,}' + (' (95% bootstrap intervals)' if where == 'evaluation' else ''),
    ),
    (
      'generator',
      f'loss {shown("generator_loss")} nats; '
      + (f'unigram entropy {unigram:.3f}, ' if unigram else '')
      + f'knowing nothing {math.log(record.vocab_size):.3f}',
    ),
    judged
    and (
      'verdicts',
      f'discriminator loss {shown("discriminator_loss", 4)}, {abs(constant - loss):.4f} '
      f"{'below' if loss < constant else 'above'} the constant predictor's {number(constant)}",
    ),
    judged
    and (
      'ranking',
      f'AUC {shown("auc")}, chance 0.5; average precision {shown("average_precision")}, '
      f'chance {number(figures["replaced_rate"][0], 3)}',
    ),
    judged and ('found', f'precision {shown("precision")}, recall {shown("recall")}'),
    'prediction_loss' in figures
    and (
      'predictions',
      f'loss of the main tower {shown("prediction_loss")} nats, accuracy {shown("prediction_accuracy")}',
    ),
    ('trained on', f'{quantity(last["tokens"])} tokens in {seconds(last["seconds"])}'),
  ]
  return [line for line in lines if line]


def text(record: Record, picture: str) -> str:
  """The summary in Markdown; `picture` is what its image links to."""
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
      '## Last figures',
      '',
      *_last_figures(record),
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


def essentials(record) -> list[tuple[str, str]]:
  """Names and values of the first table; an empty value is left out."""
  c, r, last = record.config, record.resolved, record.last
  model, optimizer, generator, objective = (
    c['model'],
    c['optimizer'],
    c['generator'],
    c['objective'].get('name', 'electra'),
  )
  rows, parameters = r.get('train_rows'), r.get('parameters', {})
  epochs = f', {last["step"] * c["batch_size"] / rows:,.1f} epochs of {rows:,} rows' if rows else ''
  parts = r.get('micro_batches', 1)
  parts = parts[0] if isinstance(parts, list) else parts
  split = f' in {parts} micro-batches' if parts > 1 else ''
  return [
    ('objective', objective),
    (
      'encoder' if objective == 'mlm' else 'discriminator',
      f'{model["family"]}, {model["num_layers"]} layers, hidden {model["hidden_size"]}, embeddings '
      f'{model["embedding_size"]}, {model["num_heads"]} heads, feed-forward {model["intermediate_size"]}',
    ),
    (
      'generator',
      ''
      if objective == 'mlm'
      else 'none: every token is as likely as any other'
      if generator.get('uniform')
      else 'the same tower'
      if c['sharing'] == 'all'
      else f'{generator["hidden_fraction"]:.3g} of the width, {generator["layers_fraction"]:.3g} of the depth; '
      f'shared: {c["sharing"]}',
    ),
    (
      'parameters',
      ', '.join(f'{name.replace("_", " ")} {count:,}' for name, count in parameters.items()),
    ),
    (
      'begun from',
      ', '.join(filter(None, (c.get('init', ''), c.get('continued', {}).get('generator', '')))),
    ),
    ('corpus', f'{c["data"]["store"] or c["data"]["source"]}, vocabulary of {record.vocab_size:,}'),
    (
      'unigram entropy',
      f'{r["unigram_entropy"]:.3f} nats a token' if 'unigram_entropy' in r else '',
    ),
    ('batch', f'{c["batch_size"]} rows of {c["sequence_length"]} tokens{split}'),
    ('steps', f'{last["step"]:,} of {c["steps"]:,}{epochs}'),
    ('tokens', f'{last["tokens"]:,.0f}'),
    (
      'training time',
      f'{seconds(last["seconds"])}, without preparation, compilation and evaluation',
    ),
    (
      'learning rate',
      f'up to {optimizer["learning_rate"]:g}, after '
      + (
        f'{optimizer["warmup_fraction"]:.0%} of the'
        if optimizer.get('warmup_fraction')
        else f'{optimizer["warmup_steps"]:,}'
      )
      + ' steps of warm-up',
    ),
    ('matrix products', r.get('dtype', c['dtype'])),
    ('seed', str(c['seed'])),
  ]


def _last_figures(record):
  train, heldout = (part[-1] if part else {} for part in (record.train, record.heldout))
  if train:  # held-out lines have these already
    gains = (
      {
        'gain': _difference(train, 'constant_loss', 'discriminator_loss'),
        'average_precision_gain': _difference(train, 'average_precision', 'replaced_rate'),
      }
      if 'auc' in train
      else {}
    )
    train = {'total_loss': train['loss'], **gains, **train}

  def at(line):
    return f', step {line["step"]:,}' if line else ''

  return [
    'Losses in nats. Training figures are means since the line before; held-out ones are of at most '
    f'{record.config["eval_rows"]:,} rows.',
    '',
    f'| | training{at(train)} | held out{at(heldout)} |',
    '|---|---:|---:|',
    *(
      f'| {title} | {number(train.get(name))} | {number(heldout.get(name))} |'
      for name, title in NAMES.items()
      if name in train or name in heldout
    ),
  ]


def _difference(line, minuend, subtrahend):
  return None if None in (line[minuend], line[subtrahend]) else line[minuend] - line[subtrahend]


def evaluation(record) -> list[str]:
  """Lines of Markdown: the figures of `--mode=evaluate`, with their intervals."""
  e = record.evaluation
  if not e:
    return ['Not made yet; the first command below makes it.']
  return [
    f'Step {e["step"]:,} on {e["rows"]:,} held-out rows: {e["tokens"]:,} tokens, {e["masked"]:,} of them masked.',
    '',
    '| | value | 95% bootstrap interval |',
    '|---|---:|---:|',
    *(
      f'| {title} | {number(f["value"])} | {number(f["low"])} to {number(f["high"])} |'
      for name, title in NAMES.items()
      if (f := e['figures'].get(name))
    ),
  ]

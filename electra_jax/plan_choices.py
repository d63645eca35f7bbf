"""--mode=plan without a topology: which of the shipped configs fit a corpus, a device and a time.

Durations are FLOPs divided by an assumed share of the device's peak. No program is compiled;
with --topology, `plan.py` compiles one config for a TPU slice.
"""

import dataclasses
import itertools
import math
import os
from typing import Any

import jax

from electra_jax import console, file_access
from electra_jax.config import PretrainingConfig, phases_of
from electra_jax.console import quantity, say
from electra_jax.data.corpus import corpora
from electra_jax.data.prepare.preparation import open_prepared
from electra_jax.errors import UserError
from electra_jax.pretrain import build, guidance, pretrain_step
from electra_jax.pretrain.guidance import Expectation
from electra_jax.training import memory, progress, run_folder

SAMPLE_CHARACTERS = 2_000_000  # of the corpus, read to estimate the size of the rest
# Subword vocabularies of 30,000 have 4 to 5 characters per token in languages with Latin script.
CHARACTERS_PER_TOKEN = 4.3
LOCAL = 'local'
Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Device:
  """The devices that a plan is for.

  Attributes:
    name: kind of the device, or a description of the local ones.
    count: number of devices.
    flops: peak of all of them in FLOP/s.
    utilization: share of the peak that is assumed.
    source: where the peak comes from.
  """

  name: str
  count: int
  flops: float
  utilization: float
  source: str


def choices(
  config: PretrainingConfig,
  device: Device,
  hours: float | None = None,
  price: float | None = None,
  output: str | None = None,
) -> Json:
  """Prints the table of shipped configs, and writes it to OUTPUT/plan-choices.json.

  Args:
    config: its `data` names the corpus.
    device: the devices.
    hours: time that a run may take; None for `guidance.LONG_RUN`.
    price: dollars per device-hour; None if unknown.
    output: a folder; None for runs/CONFIG_NAME.

  Raises:
    UserError: the corpus cannot be read, or no peak of the device is known.
  """
  limit = guidance.LONG_RUN if hours is None else hours * 3600
  console.heading(f'configs for {corpus_label(config)} on {device.count} x {device.name}')
  tokens, source = corpus_tokens(config)
  say('corpus', f'{quantity(tokens)} tokens ({source})')
  say(
    'device',
    f'{quantity(device.flops, "FLOP/s")} ({device.source}), of which an assumed '
    f'{device.utilization:.0%} are used: --utilization',
  )
  rows: list[Json] = []
  for name, shipped in guidance.shipped_pretraining_configs().items():
    flops, of_run = guidance.config_flops(shipped), guidance.config_tokens(shipped)
    parameters = _parameters(shipped)
    expected = Expectation(flops, device.flops, device.utilization, of_run / tokens, tokens)
    rows.append(
      {
        'config': name,
        'parameters': parameters,
        'tokens': of_run,
        'passes': expected.passes,
        'hours': expected.seconds / 3600,
        'memory': _memory(shipped, parameters),
        'fits': expected.seconds <= limit and not expected.repeats_too_often,
      }
      | ({} if price is None else {'dollars': price * device.count * expected.seconds / 3600})
    )
  rows.sort(key=lambda row: row['hours'])
  _print_table(rows, limit)
  result = {'corpus_tokens': tokens, 'device': dataclasses.asdict(device), 'configs': rows}
  path = run_folder.folder(output or os.path.join('runs', config.name)) / 'plan-choices.json'
  with file_access.reaching(path, 'written'):
    path.parent.mkdir(parents=True, exist_ok=True)
  run_folder.write_json(path, result)
  say('written', str(path), always=True)
  return result


def device_of(name: str, count: int | None, utilization: float | None) -> Device:
  """The devices of a plan.

  Args:
    name: beginning of the kind of a device, as JAX names it; 'local' for the devices of this
      machine.
    count: number of devices; None for all local ones, or one.
    utilization: share of the peak; None for the usual one of the platform.

  Raises:
    UserError: the device is unknown, or the share is not between 0 and 1.
  """
  if utilization is not None and not 0 < utilization <= 1:
    raise UserError(
      f'--utilization is {utilization:g}; expected a share of the peak, above 0 to 1.'
    )
  if name == LOCAL:
    local = jax.local_devices()
    peak = progress.peak_flops()
    if not peak.flops:
      known = ', '.join(progress.PEAK_FLOPS)
      raise UserError(
        f'the peak of {local[0].device_kind} is not known; expected --device with one of {known}.'
      )
    # The cores of a CPU are one device, and their peak is measured together.
    count = len(local) if count is None else count
    flops = peak.flops / jax.device_count() * count
    assumed = guidance.UTILIZATION.get(local[0].platform, guidance.UTILIZATION['gpu'])
    return Device(local[0].device_kind, count, flops, utilization or assumed, peak.source)
  kinds = [kind for kind in progress.PEAK_FLOPS if kind.lower().startswith(name.lower())]
  kinds = [kind for kind in kinds if kind.lower() == name.lower()] or kinds
  if len(kinds) != 1:
    known = ', '.join(kinds or progress.PEAK_FLOPS)
    raise UserError(f'--device is {name!r}; expected one of {known}, or {LOCAL}.')
  assumed = guidance.UTILIZATION['tpu' if kinds[0].startswith('TPU') else 'gpu']
  count = count or 1
  flops = progress.PEAK_FLOPS[kinds[0]] * count
  return Device(kinds[0], count, flops, utilization or assumed, 'as stated by its maker')


#### The corpus ####


def corpus_label(config: PretrainingConfig) -> str:
  """What the corpus is called in the heading."""
  return config.data.store or config.data.source


def corpus_tokens(config: PretrainingConfig) -> tuple[float, str]:
  """Tokens of the corpus, and how the number was found.

  A prepared store has exact numbers. Of a text corpus the beginning is read, and the ratio of its
  characters to the bytes that were read is applied to the bytes of all files.

  Raises:
    UserError: the store or the corpus cannot be read.
  """
  d = config.data
  if d.store:
    store = open_prepared(d.store, d.cache).train
    return float(store.rows * store.length), 'of the prepared store, with padding'
  groups = corpora.groups(corpora.parse_sources(d.source, d.document_format))
  total = sum(group.bytes for group in groups)
  read = characters = 0

  def advance(count: int) -> None:
    nonlocal read
    read += count

  for group in groups:
    left = SAMPLE_CHARACTERS - characters
    lengths = (len(text) for text in corpora.documents(group, d.invalid_utf8, advance))
    for length in lengths:
      characters += length
      left -= length
      if left <= 0:
        break
    if left <= 0:
      break
  if not characters or not read:
    raise UserError(f'the corpus {d.source} is empty; expected documents.')
  estimate = characters * max(1.0, total / read) / CHARACTERS_PER_TOKEN
  return (
    estimate,
    f'estimated from {quantity(characters)} characters; exact with --config.data.store',
  )


#### Configs ####


def _parameters(config: PretrainingConfig) -> int:
  """Parameters of both towers and their heads."""
  model = build.build_model(config, config.data.vocab_size, 'cpu')
  shapes = jax.eval_shape(lambda: pretrain_step.init_params(model, 0, config.sequence_length))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def _memory(config: PretrainingConfig, parameters: int) -> float:
  """Bytes of float32 parameters, gradients and both moments, and of the activations of one row."""
  rows = []
  for phase in phases_of(config):
    model = build.build_model(phase.config, phase.config.data.vocab_size, 'cpu')
    towers = (model.generator_config, model.discriminator_config)
    rows.append(sum(memory.activation_bytes(c, phase.config.sequence_length) for c in towers))
  return 16.0 * parameters + max(rows)


def _print_table(rows: list[Json], limit: float) -> None:
  """Prints the configs, those that fit marked."""
  header = ['', 'config', 'parameters', 'tokens', 'passes', 'duration', 'memory', 'dollars']
  lines = [
    [
      '*' if row['fits'] else '',
      row['config'],
      quantity(row['parameters']),
      quantity(row['tokens']),
      f'{row["passes"]:,.1f}',
      guidance.in_days(row['hours'] * 3600),
      quantity(row['memory'], 'B'),
      f'{row["dollars"]:,.0f}' if 'dollars' in row else '',
    ]
    for row in rows
  ]
  if not any('dollars' in row for row in rows):
    header, lines = header[:-1], [line[:-1] for line in lines]
  widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
  for line in itertools.chain([header], lines):
    print('  ' + '  '.join(f'{cell:>{width}}' for cell, width in zip(line, widths, strict=True)))
  print(
    f'\n  * at most {guidance.in_days(limit)} and {guidance.MANY_PASSES} passes over the corpus. '
    'Memory is that of the state and\n    one row; more rows at a time are faster. '
    'Small models use less of the peak of large devices than is\n    assumed.'
  )

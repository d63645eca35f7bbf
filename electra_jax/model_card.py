"""Model cards of exported runs: README.md as the Hugging Face Hub reads it.

The metadata at its top follow https://huggingface.co/docs/hub/model-cards. What only the authors of
a model know, such as its license, comes from flags of --mode=export.
"""

import dataclasses
import html
import json
import math
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar, Unpack

from electra_jax import file_access, hub, registry
from electra_jax.config import Config
from electra_jax.config.declarations import fields_of, flat
from electra_jax.errors import UserError
from electra_jax.finetune.report_blocks import Calibration, Cell, Report, ReportTable

MADE = 'Made with electra_jax.'  # marks the cards of exports
LIBRARY = 'transformers'  # the Hub's name of the library that opens a model
# Evaluation metrics that the metadata have: the Hub's names of their task and their kind.
_DETECTION, _LANGUAGE_MODELING = 'token-classification', 'fill-mask'
HELDOUT_METRICS = {
  'reference_ap': (_DETECTION, 'average_precision'),
  'reference_auc': (_DETECTION, 'roc_auc'),
  'generator_loss': (_LANGUAGE_MODELING, 'loss'),
  'generator_accuracy': (_LANGUAGE_MODELING, 'accuracy'),
  'prediction_loss': (_LANGUAGE_MODELING, 'loss'),
  'prediction_accuracy': (_LANGUAGE_MODELING, 'accuracy'),
}
# Names of metrics of tasks, and the Hub's; tasks also count things that are no metrics there.
TASK_METRICS = {
  'accuracy': 'accuracy',
  'f1': 'f1',
  'precision': 'precision',
  'recall': 'recall',
  'mse': 'mse',
  'matthews': 'matthews_correlation',
  'spearman': 'spearmanr',
  'pearson': 'pearsonr',
  'exact': 'exact_match',
}
# What the flags accept, by the Hub's rules.
_LICENSE = re.compile(r'[a-z0-9][a-z0-9.-]*')
_LANGUAGE = re.compile(r'[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code')
_PART = r'\w(?:[\w.-]*\w)?'
_NAME = re.compile(rf'(?!.*(--|\.\.|\.git$))({_PART}/)?{_PART}', re.ASCII)
_PLAIN = re.compile(r'[A-Za-z][\w./+-]*')
# Words that YAML 1.1 reads as something else, such as the code of Norwegian.
_YAML_WORDS = ('y', 'n', 'yes', 'no', 'true', 'false', 'on', 'off', 'null')
C = TypeVar('C', bound=Config)


class CardOptions(TypedDict, total=False):
  """What only the authors of a model know, as flags of --mode=export.

  Attributes:
    license: the Hub's name of the license, such as 'apache-2.0'.
    language: codes of the languages of the text, such as 'en'.
    datasets: names of the training data on the Hub.
    base_model: the name on the Hub of the model that the run was initialized from.
  """

  license: str | None
  language: Sequence[str]
  datasets: Sequence[str]
  base_model: str | None


@dataclasses.dataclass(frozen=True)
class Publication:
  """The checked values of `CardOptions`."""

  license: str = ''
  language: tuple[str, ...] = ()
  datasets: tuple[str, ...] = ()
  base_model: tuple[str, ...] = ()

  def with_bases(self, names: Sequence[str]) -> 'Publication':
    """The same with base models that are known otherwise, where the authors name none."""
    return dataclasses.replace(self, base_model=self.base_model or tuple(names))


def check_publication(**given: Unpack[CardOptions]) -> Publication:
  """Returns what the authors state about a model.

  Raises:
    UserError: a value is not one that the Hub accepts.
  """
  found = Publication(
    given.get('license') or '',
    tuple(given.get('language') or ()),
    tuple(given.get('datasets') or ()),
    (base,) if (base := given.get('base_model')) else (),
  )
  names = "a name on the Hugging Face Hub, such as '{}'".format
  for flag, values, form, expected in (
    ('license', (found.license,), _LICENSE, "the Hub's name of a license, such as 'apache-2.0'"),
    ('language', found.language, _LANGUAGE, "ISO 639 codes of languages, such as 'en,de'"),
    ('datasets', found.datasets, _NAME, names('wikimedia/wikipedia')),
    ('base_model', found.base_model, _NAME, names('google/electra-small-discriminator')),
  ):
    for value in filter(None, values):
      if not form.fullmatch(value):
        raise UserError(f'--{flag} is {value!r}; expected {expected}.')
  return found


@dataclasses.dataclass(frozen=True)
class Use:
  """How a model is opened with transformers.

  Attributes:
    pipeline: the Hub's name of its task.
    code: an example, which runs in the folder of the card.
    note: a paragraph after it.
  """

  pipeline: str
  code: str
  note: str = ''


@dataclasses.dataclass(frozen=True)
class CardMetric:
  """A metric in the metadata of a card.

  Attributes:
    task: the Hub's name of the evaluated task.
    kind: the Hub's name of the metric.
    name: its name in words.
    value: as measured.
  """

  task: str
  kind: str
  name: str
  value: float


@dataclasses.dataclass(frozen=True)
class Measured:
  """The metrics in the metadata of a card.

  Attributes:
    data: what they were measured on, in words.
    split: its name in the data.
    metrics: in the order in which they are shown.
  """

  data: str
  split: str
  metrics: Sequence[CardMetric] = ()


@dataclasses.dataclass(frozen=True)
class RunFacts:
  """What a card has from the metrics of a run.

  Attributes:
    headline: one line about the run.
    table: (name, value) of its main facts.
    heldout: lines of Markdown with its metrics on held-out text.
  """

  headline: str
  table: Sequence[tuple[str, str]]
  heldout: Sequence[str]


#### Use ####

_MODEL = 'model = "."  # the folder of this file, or the name of the model on the Hub\n'
_TOKENIZER = _MODEL + 'tokenizer = AutoTokenizer.from_pretrained(model)\n'
_ENCODER = 'encoder = AutoModel.from_pretrained(model)  # to fine-tune\n'
_INPUTS = 'inputs = tokenizer("the chef ate the meal", return_tensors="pt")\n'
_USE_ENCODER = Use(
  'feature-extraction',
  f'from transformers import AutoModel, AutoTokenizer\n\n{_TOKENIZER}{_ENCODER}{_INPUTS}'
  'print(encoder(**inputs).last_hidden_state.shape)',
)
_USE_GENERATOR = Use(
  'fill-mask',
  f"""from transformers import pipeline

{_MODEL}fill = pipeline("fill-mask", model)
print(fill(f"the chef cooked the {{fill.tokenizer.mask_token}}."))""",
)
_USE_SPAN = Use(
  'question-answering',
  f"""from transformers import AutoModelForQuestionAnswering, AutoTokenizer

{_TOKENIZER}reader = AutoModelForQuestionAnswering.from_pretrained(model)
inputs = tokenizer("who ate?", "the chef ate the meal", return_tensors="pt")
start, end = (logits.argmax() for logits in reader(**inputs)[:2])
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))""",
)


_USE_CHOICE = Use(
  'multiple-choice',
  'from transformers import AutoModelForMultipleChoice, AutoTokenizer\n\n'
  f'{_TOKENIZER}model = AutoModelForMultipleChoice.from_pretrained(FOLDER)',
)


def use_of(kind: str, detection_class: str = '', head_file: str = '') -> Use:
  """Returns how a model is used.

  Args:
    kind: 'encoder', 'discriminator', 'generator', or the kind of a fine-tuned head.
    detection_class: the AutoModel class of the discriminator.
    head_file: that has its head; '' where the class opens it.
  """
  if kind == 'discriminator':
    return _use_of_discriminator(detection_class, head_file)
  known = {
    'encoder': _USE_ENCODER,
    'generator': _USE_GENERATOR,
    'span': _USE_SPAN,
    'choice': _USE_CHOICE,
  }
  if kind in known:
    return known[kind]
  task = 'token-classification' if kind == 'tagging' else 'text-classification'
  call = f'print(pipeline("{task}", model)("some text"))'
  return Use(task, f'from transformers import pipeline\n\n{_MODEL}{call}')


def _use_of_discriminator(auto_class: str, head_file: str) -> Use:
  imports = f'from transformers import AutoModel, {auto_class}, AutoTokenizer\n'
  options = loading = note = ''
  if head_file:
    imports = f'from safetensors.torch import load_file\n{imports}'
    imports += 'from transformers.utils import cached_file\n'
    options = ', num_labels=1'
    loading = f'head = load_file(cached_file(model, "{head_file}"))\n'
    loading += 'discriminator.load_state_dict(head, strict=False)\n'
    note = (
      'The model is an encoder without a head, from which every class of `transformers` starts. '
      f'The head that was trained with it, which detects replaced tokens, is in `{head_file}`, and '
      'used only where it is loaded as in the example.'
    )
  return Use(
    'feature-extraction',
    f"""{imports}
{_TOKENIZER}{_ENCODER}discriminator = {auto_class}.from_pretrained(model{options})
{loading}{_INPUTS}# The probability that each token was replaced.
print(discriminator(**inputs).logits.sigmoid())""",
    note,
  )


#### Metadata ####


def model_card(
  title: str,
  use: Use | None,
  publication: Publication,
  measured: Measured,
  sections: Sequence[str],
) -> str:
  """Returns a model card.

  Args:
    title: of the page.
    use: with transformers, if it can open the model.
    publication: what its authors state.
    measured: its metrics, for the metadata.
    sections: lines of Markdown that follow.
    bases: repositories of the Hub whose weights the run was initialized from.
  """
  lines = ['---', *_yaml(_metadata(title, use, publication, measured)), '---', '', f'# {title}', '']
  missing = [name for name in ('license', 'language', 'datasets') if not getattr(publication, name)]
  to_add = ['To be added by its authors: the intended use and limits']
  if missing:
    to_add.append(f'in the metadata above, {", ".join(missing)}')
  lines += [f'{MADE} {"; ".join(to_add)}.', '']
  if use:
    lines += ['## Usage', '', '```python', use.code, '```', '']
  if use and use.note:
    lines += [use.note, '']
  return '\n'.join([*lines, *sections])


def _metadata(
  title: str, use: Use | None, publication: Publication, measured: Measured
) -> dict[str, Any]:
  """The metadata of a card, without those that are unknown."""
  known = [metric for metric in measured.metrics if math.isfinite(metric.value)]
  found: dict[str, Any] = {
    'license': publication.license,
    'language': list(publication.language),
    'datasets': list(publication.datasets),
    'base_model': list(publication.base_model),
    'library_name': LIBRARY if use else '',
    'pipeline_tag': use.pipeline if use else '',
    'tags': ['electra', 'electra_jax', 'jax'],
    'metrics': list(dict.fromkeys(metric.kind for metric in known)),
  }
  if known:
    # The Hub shows the metrics beside a data set, by its name there or else by ours.
    data = publication.datasets[0] if len(publication.datasets) == 1 else measured.data
    dataset = {'name': measured.data, 'type': data, 'split': measured.split}
    results = []
    for task in dict.fromkeys(metric.task for metric in known):
      of_task = [
        {'type': metric.kind, 'name': metric.name, 'value': float(metric.value)}
        for metric in known
        if metric.task == task
      ]
      results.append({'task': {'type': task}, 'dataset': dataset, 'metrics': of_task})
    found['model-index'] = [{'name': title, 'results': results}]
  return {name: value for name, value in found.items() if value}


def _yaml(value: dict[str, Any] | list[Any], indent: str = '') -> list[str]:
  """Lines of YAML: of a dict or a list, with dicts and lists inside."""
  lines = []
  parts: Iterable[tuple[str | None, Any]] = (
    value.items() if isinstance(value, dict) else ((None, part) for part in value)
  )
  for name, inner in parts:
    if not isinstance(inner, dict | list):
      lines.append(f'{indent}{"-" if name is None else name + ":"} {_scalar(inner)}')
    elif name is None:
      first, *rest = _yaml(inner, indent + '  ')
      lines += [f'{indent}- {first.lstrip()}', *rest]
    else:
      lines += [f'{indent}{name}:', *_yaml(inner, indent + '  ' * isinstance(inner, dict))]
  return lines


def _scalar(value: str | float) -> str:
  if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _YAML_WORDS:
    return value
  if isinstance(value, float):  # 1e-05 is text in YAML 1.1
    return f'{value:.6f}'
  return json.dumps(value, ensure_ascii=False)  # other JSON is YAML


#### Sections ####


def run_sections(content: str, config: Config, facts: RunFacts | None, versions: str) -> list[str]:
  """Returns the sections of a pretrained model.

  Args:
    content: what is exported, to follow 'These are '.
    config: of the run, of `without_paths`.
    facts: from the metrics of the run; None without metrics.
    versions: that the run was started with, to follow 'Trained with '; '' where not recorded.
  """
  headline = f'{facts.headline}. ' if facts else ''
  origin = ''
  if init := flat(config)['init']:
    origin = f' It was initialized from {init}; the numbers here do not include its training.'
  lines = ['## Description', '', f'{headline}These are {content}.{origin}', '']
  if facts:
    lines += ['## Run', '', '| | |', '|---|---|']
    lines += [f'| {name} | {value} |' for name, value in facts.table if value]
    lines += ['', '## Metrics on held-out text', '', *facts.heldout, '']
  return [*lines, *recipe_section(config, versions)]


def recipe_section(config: Config, versions: str) -> list[str]:
  """Returns the section with the fields of a config that differ from their defaults."""
  values = flat(config)
  lines = ['## Recipe', '']
  trained = f'Trained with {versions}. ' if versions else ''
  lines += [f'{trained}Fields of the config that differ from their defaults:', '']
  lines += ['| field | value |', '|---|---|']
  for name, entry in fields_of(type(config)).items():
    if values[name] != entry.default and name != 'name' and entry.declaration.files != 'written':
      text = json.dumps(values[name], ensure_ascii=False).replace('|', '\\|')
      lines.append(f'| `{name}` | `{text}` |')
  return [*lines, '']


def finetuned_sections(description: str, results: Mapping[str, Any] | None) -> list[str]:
  """Returns the first sections of a fine-tuned model.

  Args:
    description: one or two sentences.
    results: of the task, as in results.json; None without.
  """
  lines = ['## Description', '', description, '']
  if results:
    lines += [
      '## Metrics',
      '',
      f'On the dev set, over {results["trials"]} trials with different seeds.',
      '',
      '| | exported trial or better | median | mean |',
      '|---|---:|---:|---:|',
    ]
    lines += [
      f'| {name} | {f["best"]:.4f} | {f["median"]:.4f} | {f["mean"]:.4f} |'
      for name, f in results['figures'].get('dev', {}).items()
      if f.get('n')
    ]
    lines.append('')
  return lines


def settings_section(rows: Iterable[tuple[str, str]]) -> list[str]:
  """Returns the section with the main settings of a fine-tuned model; empty ones are left out."""
  shown = [f'| {name} | {_in_cell(value)} |' for name, value in rows if value]
  return ['## Training', '', '| | |', '|---|---|', *shown, '']


def report_sections(report: Report) -> list[str]:
  """Returns the sections with metrics per class, and how well probabilities are calibrated.

  Args:
    report: of the exported trial on dev.
  """
  lines: list[str] = []
  for block in report.blocks:
    if isinstance(block, ReportTable) and block.name == 'classes':
      lines += [f'## {block.title}', '']
      lines += _markdown_table(block.header, block.rows)
    elif isinstance(block, Calibration):
      lines += ['## Calibration', '', *filter(None, [block.note]), '']
      lines += _markdown_table(('', 'value'), block.values)
  return lines


def _markdown_table(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> list[str]:
  lines = [f'| {" | ".join(map(_in_cell, header))} |', f'|---|{"---:|" * (len(header) - 1)}']
  lines += [f'| {" | ".join(map(_in_cell, row))} |' for row in rows]
  return [*lines, '']


def _in_cell(value: Cell) -> str:
  """A value in a table of Markdown, whose text adds no column, line or element."""
  if value is None:
    return '-'
  if isinstance(value, int):
    return f'{value:,}'
  if isinstance(value, float):
    return f'{value:.4f}'
  return html.escape(' '.join(value.split()), quote=False).replace('|', '\\|')


#### Paths ####


def without_paths(config: C) -> C:
  """A copy of a config for others: local paths are reduced to their last part."""
  fields = fields_of(type(config))
  values = flat(config)
  read = [name for name, entry in fields.items() if entry.declaration.files == 'read']
  changes: dict[str, Any] = {name: without_folders(values[name]) for name in read}
  if values.get('phases'):
    changes['phases'] = tuple(
      {name: without_folders(value) if name in read else value for name, value in phase.items()}
      for phase in values['phases']
    )
  return config.replace(changes)


def without_folders(text: str) -> str:
  """A value that names files, without their folders on this machine; addresses and names stay.

  Args:
    text: `FORMAT:LOCATION;option=LOCATION;...`, with commas between.
  """
  return ','.join(
    ';'.join(
      _without_folder(piece) if number == 0 else _option_without_folder(piece)
      for number, piece in enumerate(part.split(';'))
    )
    for part in text.split(',')
  )


def _without_folder(location: str) -> str:
  if file_access.is_remote(location):
    return location
  name, colon, path = location.partition(':')
  if not colon:
    return posixpath.basename(location.rstrip('/'))
  if name == 'hf' and hub.is_repository(path):
    return location
  is_path = name in registry.WEIGHT_FORMATS or path.startswith(('/', '~', '.'))
  return f'{name}:{posixpath.basename(path.rstrip("/"))}' if is_path else location


def _option_without_folder(option: str) -> str:
  name, equals, value = option.partition('=')
  return f'{name}{equals}{_without_folder(value)}' if '/' in value else option

"""Model cards of exported runs: README.md as the Hugging Face Hub reads it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from electra_jax.config import PretrainingConfig, to_plain

MADE = 'Made with electra_jax.'  # marks the cards of exports


@dataclasses.dataclass(frozen=True)
class Use:
  """How a model is opened with transformers.

  Attributes:
    pipeline: the Hub's name of its task.
    code: an example.
  """

  pipeline: str
  code: str


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


_TOKENIZER = 'tokenizer = AutoTokenizer.from_pretrained(FOLDER)\n'
_ENCODER = 'encoder = AutoModel.from_pretrained(FOLDER)            # to fine-tune'
_USE_ENCODER = Use(
  'feature-extraction',
  f'from transformers import AutoModel, AutoTokenizer\n\n{_TOKENIZER}{_ENCODER}',
)
_USE_GENERATOR = Use(
  'fill-mask',
  """from transformers import pipeline

fill = pipeline("fill-mask", FOLDER)
print(fill(f"the chef cooked the {fill.tokenizer.mask_token}."))""",
)
_USE_SPAN = Use(
  'question-answering',
  'from transformers import AutoModelForQuestionAnswering, AutoTokenizer\n\n'
  f'{_TOKENIZER}model = AutoModelForQuestionAnswering.from_pretrained(FOLDER)',
)


_USE_CHOICE = Use(
  'multiple-choice',
  'from transformers import AutoModelForMultipleChoice, AutoTokenizer\n\n'
  f'{_TOKENIZER}model = AutoModelForMultipleChoice.from_pretrained(FOLDER)',
)


def use_of(kind: str, detection_class: str = '') -> Use:
  """Returns how a model is used.

  Args:
    kind: 'encoder', 'discriminator', 'generator', or the kind of a fine-tuned head.
    detection_class: the AutoModel class of the discriminator.
  """
  if kind == 'discriminator':
    return _use_of_discriminator(detection_class)
  known = {
    'encoder': _USE_ENCODER,
    'generator': _USE_GENERATOR,
    'span': _USE_SPAN,
    'choice': _USE_CHOICE,
  }
  if kind in known:
    return known[kind]
  task = 'token-classification' if kind == 'tagging' else 'text-classification'
  code = f'from transformers import pipeline\n\nprint(pipeline("{task}", FOLDER)("some text"))'
  return Use(task, code)


def _use_of_discriminator(auto_class: str) -> Use:
  return Use(
    'feature-extraction',
    f"""from transformers import AutoModel, {auto_class}, AutoTokenizer

{_TOKENIZER}{_ENCODER}
discriminator = {auto_class}.from_pretrained(FOLDER)
inputs = tokenizer("the chef ate the meal", return_tensors="pt")
print(discriminator(**inputs).logits.sigmoid())  # probability that each token was replaced""",
  )


def model_card(
  title: str, use: Use | None, sections: Sequence[str], bases: Sequence[str] = ()
) -> str:
  """Returns a model card.

  Args:
    title: of the page.
    use: with transformers, if it can open the model.
    sections: lines of Markdown that follow.
    bases: repositories of the Hub whose weights the run was initialized from.
  """
  lines = ['---']
  if bases:
    lines += ['base_model:', *(f'- {name}' for name in bases)]
  if use:
    lines += ['library_name: transformers', f'pipeline_tag: {use.pipeline}']
  lines += ['tags:', '- electra', '- electra_jax', '---', '', f'# {title}', '']
  lines += [f'{MADE} Its authors have not described its intended use and license: add both.', '']
  if use:
    lines += ['## Usage', '', '```python', use.code, '```', '']
  return '\n'.join([*lines, *sections])


def run_sections(content: str, config: PretrainingConfig, facts: RunFacts | None) -> list[str]:
  """Returns the sections of a pretrained model.

  Args:
    content: what is exported, to follow 'These are '.
    config: of the run.
    facts: from the metrics of the run; None without metrics.
  """
  headline = f'{facts.headline}. ' if facts else ''
  origin = ''
  if config.init:
    origin = (
      f' It was initialized from the weights of {config.init}; the numbers here do not include '
      'their training.'
    )
  lines = [
    '## Description',
    '',
    f'{headline}These are {content}.{origin}',
    '',
  ]
  if facts:
    lines += ['## Run', '', '| | |', '|---|---|']
    lines += [f'| {name} | {value} |' for name, value in facts.table if value]
    lines += ['', '## Metrics on held-out text', '', *facts.heldout, '']
  plain = json.dumps(to_plain(config), indent=2, sort_keys=True)
  return [*lines, '## Config', '', '```json', plain, '```', '']


def finetuned_sections(description: str, results: Mapping[str, Any] | None) -> list[str]:
  """Returns the sections of a fine-tuned model.

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

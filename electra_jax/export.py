"""--mode=export: a run as a folder that other programs open: those of transformers, or the original TensorFlow program."""

import json
from typing import NamedTuple

from electra_jax import console, file_access, report
from electra_jax.config import to_plain
from electra_jax.console import say
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune.finetuned import is_finetuned, open_finetuned
from electra_jax.interop import huggingface, own, tokenizer_files
from electra_jax.pretrain.build import objective_of
from electra_jax.pretrain.resolve import resolve_saved_run
from electra_jax.training import run_folder
from electra_jax.training.progress import quantity, read_metrics

FORMATS = ('transformers', 'tensorflow')
CARD = 'README.md'
TOWERS = ('discriminator', 'generator')
# Files that exports write, beside checkpoints of TensorFlow, and what their cards say.
KNOWN = (
  'config.json',
  'model.safetensors',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'vocab.txt',
  'tokenizer.model',
  'checkpoint',
  'hparams.json',
  CARD,
)
MADE = 'Made with electra_jax.'


class Use(NamedTuple):
  """How a folder is opened in transformers."""

  pipeline: str  # the site's word for what it does
  code: str


def export(
  workdir, output: str, *, format: str = 'transformers', step: str = 'last', task: str | None = None
) -> None:
  """Writes a run for other programs, each folder with its tokenizer and a model card.

  Of a pretrained run: OUTPUT/discriminator and OUTPUT/generator for transformers, or both in one checkpoint, OUTPUT/model.ckpt-STEP, for the
  original program. Of a fine-tuned one: OUTPUT, with the head of its best trial.

  Args:
    workdir: of the run.
    output: a folder, or for transformers an address; empty, or of an earlier export.
    format: of FORMATS.
    step: of a pretrained run: last, best (by the held-out loss) or a step.
    task: of a fine-tuned run that has several.

  Raises UserError, with the reason, where the format cannot express the model, and for a person's other mistakes. A generator that
  cannot be expressed is left out, said, where the discriminator can.
  """
  console.heading(f'{workdir} for {format}')
  if is_finetuned(workdir):
    if format == 'tensorflow':
      raise UserError(
        f'{workdir} is a fine-tuned run, and the original program keeps its heads in a layout of each task; export it for transformers, or the '
        'pretrained run for tensorflow.'
      )
    return _finetuned(workdir, output, task)
  weights = own.read(workdir, step, moments=format == 'tensorflow')
  run, tokenizer = resolve_saved_run(workdir), load_tokenizer(weights.tokenizer)
  config = run.config
  record = (
    report.read_record(workdir) if read_metrics(run_folder.folder(workdir)) else None
  )  # a checkpoint may have come here by itself
  say('read', weights.source)
  for note in weights.notes:
    say('left out', note)
  if format == 'tensorflow':
    return _tensorflow(weights, config, record, tokenizer, output)
  longest = max(phase.config.sequence_length for phase in run.phases)
  written, left_out = {}, None
  for tower, sizes in (('discriminator', weights.discriminator), ('generator', weights.generator)):
    try:
      found = huggingface.files(weights, tower, special_ids=_special_ids(tokenizer))
    except UserError as error:
      if tower == 'discriminator':
        raise
      left_out = str(error)
      continue
    longest_row = sizes.max_positions if sizes.has_position_table else longest
    found |= tokenizer_files.files(tokenizer, longest_row, sizes.has_token_types)
    use = _use(
      tower if tower == 'generator' or 'discriminator_head' in weights.params else 'encoder',
      sizes.family,
    )
    found[CARD] = _card(
      f'{config.name}, {tower}', use, _told_of_run(weights, config, record, tower)
    ).encode()
    written |= {f'{tower}/{name}': content for name, content in found.items()}
  _write(output, written)
  if left_out and (weights.generator or not weights.notes):  # or why is said already
    say('left out', left_out)
  say(
    'next',
    f'AutoModel.from_pretrained({file_access.join(output, "discriminator")!r}) in transformers',
  )
  say('', f'--config.init=hf:{output} here')


def _finetuned(workdir, output, task):
  run = open_finetuned(workdir, task)
  weights = run.weights()
  say('read', f'{weights.source}, {run.trial}, step {run.step:,}')
  encoder = run_folder.read_json(run_folder.folder(workdir) / 'encoder.json')
  results = _results(workdir, run.task.name)
  found = huggingface.files(weights, 'finetuned', special_ids=_special_ids(run.tokenizer))
  found |= tokenizer_files.files(
    run.tokenizer, run.max_length, weights.discriminator.has_token_types
  )
  what = (
    f'{encoder["origin"]["run"]}, fine-tuned elsewhere, for {run.task.name}.'
    if run.imported
    else f'The encoder of {encoder["origin"]["run"]}, fine-tuned on {run.task.name}; {run.trial}, the best by the dev set of those that were made.'
  )
  told = ['## What it is', '', what, '']
  if results:
    told += [
      '## Figures',
      '',
      f'On the dev set, over {results["trials"]} trials with different seeds.',
      '',
      '| | this one or better | median | mean |',
      '|---|---:|---:|---:|',
      *(
        f'| {name} | {f["best"]:.4f} | {f["median"]:.4f} | {f["mean"]:.4f} |'
        for name, f in results['figures'].get('dev', {}).items()
        if f.get('n')
      ),
      '',
    ]
  found[CARD] = _card(
    f'{run.config.name}, {run.task.name}', _use(run.task.head, weights.discriminator.family), told
  ).encode()
  _write(output, found)
  say(
    'next',
    f'pipeline({_use(run.task.head, weights.discriminator.family).pipeline!r}, {output!r}) in transformers',
  )


def _tensorflow(weights, config, record, tokenizer, output):
  from electra_jax.interop import google

  if not tokenizer.read_by_original_program:
    say(
      'tokenizer',
      'the original program reads WordPiece only; the files of this tokenizer are written beside the checkpoint',
    )
  card = _card(
    config.name, None, _told_of_run(weights, config, record, 'discriminator and generator')
  )
  beside = {**tokenizer.saved_files(), CARD: card.encode()}
  name = f'model.ckpt-{weights.step}'
  prefix, names = (
    file_access.join(output, name),
    (google.STATE, google.SETTINGS, f'{name}.index', f'{name}.data-00000-of-00001'),
  )
  stale = _stale(
    output, (*beside, *names)
  )  # nothing goes before it is known that what comes can be written
  google.write(weights, prefix)
  _write(output, beside, stale)
  say(
    'next',
    f'--config.init=tf:{prefix} here; init_checkpoint and --hparams {file_access.join(output, google.SETTINGS)} in the original program',
  )


def _special_ids(tokenizer) -> dict[str, int]:
  return {
    name: getattr(tokenizer, name) for name in ('pad_id', 'unk_id', 'cls_id', 'sep_id', 'mask_id')
  }


def _stale(output, names) -> list[str]:
  """What an earlier export has left there beside files of `names`. Raises UserError where anything else is there."""
  if file_access.exists(output) and not file_access.is_folder(output):
    raise UserError(f'--output {output!r} is a file; name a folder.')
  stale = []
  for part in ('', *TOWERS):
    folder = file_access.join(output, part) if part else output
    for name in file_access.listing(folder):
      path, full = file_access.join(folder, name), f'{part}/{name}' if part else name
      ours = name in KNOWN or name.startswith('model.ckpt-') or not part and name in TOWERS
      if (
        not ours
        or name == CARD
        and MADE not in file_access.read_bytes(path).decode('utf-8', 'replace')
      ):
        raise UserError(
          f'--output {output!r} holds {full!r}, which is of no export; name an empty folder.'
        )
      stale += [path] if full not in names and name not in TOWERS else []
  return stale


def _write(output, written: dict[str, bytes], stale: list[str] | None = None):
  for path in _stale(output, written) if stale is None else stale:
    file_access.remove(path)
  for name in sorted(
    written, key=lambda name: name.endswith('config.json')
  ):  # last: what opens a folder opens all of it
    file_access.write_bytes(file_access.join(output, *name.split('/')), written[name])
  folders = sorted({name.rpartition('/')[0] for name in written})
  for folder in folders:
    say(
      'written',
      f'{file_access.join(output, folder) if folder else output}: '
      + ', '.join(
        f'{name.rpartition("/")[2]} ({quantity(len(content), "B")})'
        for name, content in written.items()
        if name.rpartition('/')[0] == folder
      ),
    )


# ---- Model cards ------------------------------------------------------------------------------------------------------


def _use(kind: str, family: str) -> Use:
  """Of a tower, or of a fine-tuned head's kind."""
  tokenizer = 'tokenizer = AutoTokenizer.from_pretrained(FOLDER)\n'
  if kind == 'encoder':
    return Use(
      'feature-extraction',
      f"""from transformers import AutoModel, AutoTokenizer

{tokenizer}encoder = AutoModel.from_pretrained(FOLDER)            # to fine-tune""",
    )
  if kind == 'discriminator':
    auto = 'AutoModelForPreTraining' if family == 'electra' else 'AutoModelForTokenClassification'
    return Use(
      'feature-extraction',
      f"""from transformers import AutoModel, {auto}, AutoTokenizer

{tokenizer}encoder = AutoModel.from_pretrained(FOLDER)            # to fine-tune
verdicts = {auto}.from_pretrained(FOLDER)
inputs = tokenizer("the chef ate the meal", return_tensors="pt")
print(verdicts(**inputs).logits.sigmoid())               # probability that each token was replaced""",
    )
  if kind == 'generator':
    return Use(
      'fill-mask',
      """from transformers import pipeline

fill = pipeline("fill-mask", FOLDER)
print(fill(f"the chef cooked the {fill.tokenizer.mask_token}."))""",
    )
  if kind == 'span':
    return Use(
      'question-answering',
      f"""from transformers import AutoModelForQuestionAnswering, AutoTokenizer

{tokenizer}model = AutoModelForQuestionAnswering.from_pretrained(FOLDER)""",
    )
  name = 'token-classification' if kind == 'tagging' else 'text-classification'
  return Use(
    name,
    f'''from transformers import pipeline

print(pipeline("{name}", FOLDER)("a text to look at"))''',
  )


def _card(title: str, use: Use | None, told: list[str]) -> str:
  """A model card: what the site reads first, how to use it, and what is known of it."""
  head = [
    '---',
    *(['library_name: transformers', f'pipeline_tag: {use.pipeline}'] if use else []),
    'tags:',
    '- electra',
    '- electra_jax',
    '---',
    '',
  ]
  how = ['## How to use it', '', '```python', use.code, '```', ''] if use else []
  return '\n'.join(
    [
      *head,
      f'# {title}',
      '',
      f'{MADE} Its makers have not said yet what it is fit for and what not, nor under which licence it is: '
      'add both here.',
      '',
      *how,
      *told,
    ]
  )


def _told_of_run(weights, config, record, tower: str) -> list[str]:
  base = (
    f' It went on from the weights of {config.init}, whose own training is not counted here.'
    if config.init
    else ''
  )
  how = objective_of(config).description or f'the objective {config.objective.name}'
  told = [
    '## What it is',
    '',
    (f'{report.headline(record)}. ' if record else '')
    + f'These are the weights of {tower} at step {weights.step:,}, pretrained by '
    f'{how}.{base}',
    '',
  ]
  if record:
    told += [
      '## The run',
      '',
      '| | |',
      '|---|---|',
      *(f'| {name} | {value} |' for name, value in report.essentials(record) if value),
      '',
      '## Figures on held-out text',
      '',
      *_figures(record, weights.step),
      '',
    ]
  return [
    *told,
    '## Config',
    '',
    '```json',
    json.dumps(to_plain(config), indent=2, sort_keys=True),
    '```',
    '',
  ]


def _figures(record, step: int) -> list[str]:
  if record.evaluation and record.evaluation['step'] == step:
    return report.evaluation(record)
  lines = [line for line in record.heldout if line['step'] == step]
  if not lines:
    return ['None was taken at this step.']
  return [
    f'At step {step:,}, on at most {record.config["eval_rows"]:,} held-out rows; losses in nats.',
    '',
    '| | value |',
    '|---|---:|',
    *(
      f'| {title} | {report.number(lines[-1].get(name))} |'
      for name, title in report.displayed_metrics(record).items()
      if name in lines[-1]
    ),
  ]


def _results(workdir, task: str) -> dict | None:
  path = run_folder.folder(workdir) / 'results.json'
  return run_folder.read_json(path)['summaries'].get(task) if run_folder.exists(path) else None

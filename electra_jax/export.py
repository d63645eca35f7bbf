"""--mode=export: a run as a folder that other programs open: those of transformers, or the original TensorFlow program."""

import json
from typing import NamedTuple

from electra_jax import console, report
from electra_jax.console import say
from electra_jax.data import files
from electra_jax.data.tokenizers import load_tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune.run import is_finetuned, open_finetuned
from electra_jax.interop import huggingface, own, tokenizer_files
from electra_jax.training import workdir as workdirs
from electra_jax.training.progress import quantity

FORMATS = ('transformers', 'tensorflow')
CARD = 'README.md'


class Use(NamedTuple):
  """How a folder is opened in transformers."""
  pipeline: str       # the site's word for what it does
  code: str


def export(workdir, output: str, *, format: str = 'transformers', step: str = 'last', task: str | None = None) -> None:
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
      raise UserError(f'{workdir} is a fine-tuned run, and the original program keeps its heads in a layout of each task; export it for transformers, or the '
                      'pretrained run for tensorflow.')
    return _finetuned(workdir, output, task)
  weights, record = own.read(workdir, step), report.read(workdir)
  tokenizer = load_tokenizer(weights.tokenizer)
  say('read', weights.source)
  if format == 'tensorflow':
    return _tensorflow(weights, record, tokenizer, output)
  length = max(phase['sequence_length'] for phase in [record.config, *record.config['phases']] if 'sequence_length' in phase)
  written, left_out = {}, None
  for tower, config in (('discriminator', weights.discriminator), ('generator', weights.generator)):
    length = config.max_positions if config.family == 'electra' else length
    try:
      found = huggingface.files(weights, tower, special_ids=_special_ids(tokenizer))
    except UserError as error:
      if tower == 'discriminator':
        raise
      left_out = str(error)
      continue
    found |= tokenizer_files.files(tokenizer, length, config.family == 'electra')
    found[CARD] = _card(f'{record.config["name"]}, {tower}', _use(tower, config.family), _told_of_run(weights, record, tower)).encode()
    written |= {f'{tower}/{name}': content for name, content in found.items()}
  _write(output, written)
  if left_out:
    say('left out', left_out)
  say('next', f'AutoModel.from_pretrained({files.join(output, "discriminator")!r}) in transformers')
  say('', f'--config.init=hf:{output} here')


def _finetuned(workdir, output, task):
  run = open_finetuned(workdir, task)
  weights = run.weights()
  say('read', f'{weights.source}, {run.trial}, step {run.step:,}')
  encoder = workdirs.read_json(workdirs.folder(workdir) / 'encoder.json')
  results = _results(workdir, run.task.name)
  found = huggingface.files(weights, 'finetuned', special_ids=_special_ids(run.tokenizer))
  found |= tokenizer_files.files(run.tokenizer, run.max_length, weights.discriminator.family == 'electra')
  told = ['## What it is', '', f'The encoder of {encoder["origin"]["run"]}, fine-tuned on {run.task.name}; {run.trial}, the best by the dev set of those that were made.', '']
  if results:
    told += ['## Figures', '', f'On the dev set, over {results["trials"]} trials with different seeds.', '', '| | this one or better | median | mean |', '|---|---:|---:|---:|',
             *(f'| {name} | {f["best"]:.4f} | {f["median"]:.4f} | {f["mean"]:.4f} |' for name, f in results['figures'].get('dev', {}).items() if f.get('n')), '']
  found[CARD] = _card(f'{run.config.name}, {run.task.name}', _use(run.task.head, weights.discriminator.family), told).encode()
  _write(output, found)
  say('next', f'pipeline({_use(run.task.head, weights.discriminator.family).pipeline!r}, {output!r}) in transformers')


def _tensorflow(weights, record, tokenizer, output):
  from electra_jax.interop import google

  if tokenizer.kind != 'wordpiece':
    say('tokenizer', 'the original program reads WordPiece alone; the SentencePiece model is written beside the checkpoint, for your own code')
  card = _card(record.config['name'], None, _told_of_run(weights, record, 'discriminator and generator'))
  beside = {**tokenizer.files, CARD: card.encode()}
  prefix = files.join(output, f'model.ckpt-{weights.step}')
  _check_free(output, [*beside, google.STATE, google.SETTINGS, *(f'model.ckpt-{weights.step}.{end}' for end in ('index', 'data-00000-of-00001'))])
  google.write(weights, prefix)
  _write(output, beside, checked=True)
  say('next', f'--config.init=tf:{prefix} here; init_checkpoint and --hparams {files.join(output, google.SETTINGS)} in the original program')


def _special_ids(tokenizer) -> dict[str, int]:
  return {name: getattr(tokenizer, name) for name in ('pad_id', 'unk_id', 'cls_id', 'sep_id', 'mask_id')}


def _check_free(output, names):
  """Raises UserError where OUTPUT holds what an export would not have written: it is not ours to mix with."""
  if files.exists(output) and not files.is_folder(output):
    raise UserError(f'--output {output!r} is a file; name a folder.')
  if not files.is_folder(output):
    return
  known = {name.split('/')[0] for name in names}
  if others := sorted(name for path in files.listing(output) if (name := path.rstrip('/').rsplit('/', 1)[-1]) not in known):
    raise UserError(f'--output {output!r} holds {others[0]!r}, which is of no export; name an empty folder.')


def _write(output, written: dict[str, bytes], checked: bool = False):
  if not checked:
    _check_free(output, written)
  for name in sorted(written, key=lambda name: name.endswith('config.json')):      # last: what opens a folder opens all of it
    files.write_bytes(files.join(output, *name.split('/')), written[name])
  folders = sorted({name.rpartition('/')[0] for name in written})
  for folder in folders:
    say('written', f'{files.join(output, folder) if folder else output}: ' + ', '.join(
        f'{name.rpartition("/")[2]} ({quantity(len(content), "B")})' for name, content in written.items() if name.rpartition('/')[0] == folder))


# ---- Model cards ------------------------------------------------------------------------------------------------------


def _use(kind: str, family: str) -> Use:
  """Of a tower, or of a fine-tuned head's kind."""
  tokenizer = "tokenizer = AutoTokenizer.from_pretrained(FOLDER)\n"
  if kind == 'discriminator':
    auto = 'AutoModelForPreTraining' if family == 'electra' else 'AutoModelForTokenClassification'
    return Use('feature-extraction', f'''from transformers import AutoModel, {auto}, AutoTokenizer

{tokenizer}encoder = AutoModel.from_pretrained(FOLDER)            # to fine-tune
verdicts = {auto}.from_pretrained(FOLDER)
inputs = tokenizer("the chef ate the meal", return_tensors="pt")
print(verdicts(**inputs).logits.sigmoid())               # probability that each token was replaced''')
  if kind == 'generator':
    return Use('fill-mask', '''from transformers import pipeline

fill = pipeline("fill-mask", FOLDER)
print(fill(f"the chef cooked the {fill.tokenizer.mask_token}."))''')
  if kind == 'span':
    return Use('question-answering', f'''from transformers import AutoModelForQuestionAnswering, AutoTokenizer

{tokenizer}model = AutoModelForQuestionAnswering.from_pretrained(FOLDER)''')
  name = 'token-classification' if kind == 'tagging' else 'text-classification'
  return Use(name, f'''from transformers import pipeline

print(pipeline("{name}", FOLDER)("a text to look at"))''')


def _card(title: str, use: Use | None, told: list[str]) -> str:
  """A model card: what the site reads first, how to use it, and what is known of it."""
  head = ['---', *(['library_name: transformers', f'pipeline_tag: {use.pipeline}'] if use else []), 'tags:', '- electra', '- electra_jax', '---', '']
  how = ['## How to use it', '', '```python', use.code, '```', ''] if use else []
  return '\n'.join([*head, f'# {title}', '', 'Made with electra_jax. Its makers have not said yet what it is fit for and what not, nor under which licence it is: '
                    'add both here.', '', *how, *told])


def _told_of_run(weights, record, tower: str) -> list[str]:
  config = json.dumps(record.config, indent=2, sort_keys=True)
  return ['## What it is', '', f'{report.headline(record)}. These are the weights of {tower} at step {weights.step:,}, pretrained by replaced token detection '
          '(Clark et al. 2020): a generator fills masked tokens, the discriminator says of every token whether it was replaced.', '',
          '## The run', '', '| | |', '|---|---|', *(f'| {name} | {value} |' for name, value in report.essentials(record) if value), '',
          '## Figures on held-out text', '', *_figures(record, weights.step), '', '## Config', '', '```json', config, '```', '']


def _figures(record, step: int) -> list[str]:
  if record.evaluation and record.evaluation['step'] == step:
    return report.evaluation(record)
  lines = [line for line in record.heldout if line['step'] == step]
  if not lines:
    return ['None was taken at this step.']
  return [f'At step {step:,}, on at most {record.config["eval_rows"]:,} held-out rows; losses in nats.', '', '| | value |', '|---|---:|',
          *(f'| {title} | {report.number(lines[-1].get(name))} |' for name, title in report.NAMES.items() if name in lines[-1])]


def _results(workdir, task: str) -> dict | None:
  path = workdirs.folder(workdir) / 'results.json'
  return workdirs.read_json(path)['summaries'].get(task) if workdirs.exists(path) else None

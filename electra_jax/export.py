"""--mode=export: writes a run for transformers or for the original TensorFlow program."""

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Unpack

from etils import epath

from electra_jax import (
  checksums,
  console,
  file_access,
  finetuned_report,
  hub,
  hub_upload,
  model_card,
  report,
  timeline,
)
from electra_jax.config import ModelConfig, from_plain, to_plain
from electra_jax.console import quantity, say
from electra_jax.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import report_files
from electra_jax.finetune.finetuned import FineTunedRun, is_finetuned, open_finetuned
from electra_jax.finetune.run_files import RESULT
from electra_jax.folder_lock import FolderLock, is_lock_file
from electra_jax.interop import huggingface, own, tokenizer_files
from electra_jax.interop.weights import Weights
from electra_jax.pretrain.build import objective_of
from electra_jax.pretrain.resolve import ResolvedRun, resolve_saved_run
from electra_jax.training import run_folder, versions
from electra_jax.training.curves import RunRecord
from electra_jax.training.progress import read_metrics

FORMATS = ('transformers', 'tensorflow')
CARD = checksums.CARD
TOWERS = ('discriminator', 'generator')
# Files that exports write, in addition to checkpoints of TensorFlow.
KNOWN = (
  'config.json',
  'model.safetensors',
  huggingface.HEAD,
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'vocab.txt',
  'tokenizer.model',
  'checkpoint',
  'hparams.json',
  checksums.SUMS,
  CARD,
)
# End of the name of a file that is being written.
_PARTIAL = re.compile(r'\.[0-9a-f]{8}\.partial$')


@dataclasses.dataclass(frozen=True)
class _PretrainedRun:
  """What is exported of a pretraining run."""

  weights: Weights
  resolved: ResolvedRun
  tokenizer: Tokenizer
  record: RunRecord | None  # None for a checkpoint that was copied without its metrics
  publication: model_card.Publication
  trained_with: str

  def card(self, title: str, use: model_card.Use | None, tower: str) -> bytes:
    """Returns the model card of a tower."""
    config = model_card.without_paths(self.resolved.config)
    facts, values, titles = None, {}, {}
    if self.record:
      record = dataclasses.replace(self.record, config=to_plain(config))
      facts = model_card.RunFacts(
        report.headline(record),
        [*report.essentials(record), ('FLOPs', self._flops())],
        _heldout_metrics(record, self.weights.step),
      )
      values, titles = _heldout_values(record, self.weights.step), report.displayed_metrics(record)
    method = objective_of(config).description or f'the objective {config.objective.name}'
    weights_text = f'the weights of {tower} at step {self.weights.step:,}, pretrained by {method}'
    metrics = [
      model_card.CardMetric(task, kind, titles[name], values[name])
      for name, (task, kind) in model_card.HELDOUT_METRICS.items()
      if name in titles
      and values.get(name) is not None
      and name.startswith('generator_') == (tower == 'generator')
    ]
    bases = [hub.repository(source) for source in self.resolved.revisions]
    return model_card.model_card(
      title,
      use,
      self.publication.with_bases(bases),
      model_card.Measured('held-out documents of the corpus', 'held out', metrics),
      model_card.run_sections(weights_text, config, facts, self.trained_with),
    ).encode()

  def _flops(self) -> str:
    """The FLOPs of the training until the exported step, in both conventions."""
    total = timeline.spent(self.resolved, self.tokenizer, self.weights.step or 0)
    return f'{total["flops"]:.3g} (in the convention of the paper {total["paper_flops"]:.3g})'


def export(
  workdir: str | os.PathLike[str],
  output: str,
  *,
  format: str = 'transformers',
  step: str = 'last',
  task: str | None = None,
  take_over: bool = False,
  push: str | None = None,
  **card: Unpack[model_card.CardOptions],
) -> None:
  """Writes a run for other programs, with its tokenizer and a model card.

  A pretrained run is written to OUTPUT/discriminator and OUTPUT/generator for transformers, or as
  one checkpoint OUTPUT/model.ckpt-STEP with both towers for the original program. A fine-tuned run
  is written to OUTPUT, with the head of its best trial. A generator that the format does not
  support is omitted, with a message.

  Args:
    workdir: the run's folder.
    output: a folder, or for transformers an address; empty or with an earlier export.
    format: one of FORMATS.
    step: for a pretrained run, 'last', 'best' (by config.best_by) or a step.
    task: for a fine-tuned run that has several.
    take_over: whether to take OUTPUT from another process that writes into it.
    push: org/name or org/name:public, a repository of the Hub to upload to: the discriminator of a
      pretrained run, or a fine-tuned run.
    **card: what the authors state about the model, for the metadata of its card.

  Raises:
    UserError: the repository cannot be written, the format does not support the model (the message
      has the reason), the folder is not a run, or OUTPUT has other files.
  """
  if not file_access.is_remote(output):
    file_access.check_name(output, '--output')
  publication = model_card.check_publication(**card)
  target = _push_target(output, format, push)
  console.heading(f'{workdir} for {format}')
  if is_finetuned(workdir):
    if format == 'tensorflow':
      raise UserError(
        f'{workdir} is a fine-tuned run, and the original program has no common layout for heads; '
        'use --format=transformers, or export the pretrained run.'
      )
    files = _export_finetuned(open_finetuned(workdir, task), output, publication, take_over)
    _push(output, files, target)
    return
  with console.phase('reading', f'the {step} checkpoint of {workdir}'):
    weights = own.read_weights(workdir, step, moments=format == 'tensorflow')
  assert weights.tokenizer is not None
  has_metrics = bool(read_metrics(run_folder.folder(workdir)))
  run = _PretrainedRun(
    weights,
    resolve_saved_run(workdir),
    load_tokenizer(weights.tokenizer),
    report.read_record(workdir) if has_metrics else None,
    publication,
    _trained_with(workdir),
  )
  say('read', weights.source)
  for note in weights.notes:
    say('left out', note, always=True)
  if format == 'tensorflow':
    _export_to_tensorflow(run, output, take_over)
  else:
    files = _export_to_transformers(run, output, take_over)
    kept = file_access.join(output, TOWERS[0])
    _push(kept, [f.split('/')[1] for f in files if f.startswith(TOWERS[0] + '/')], target)


def _push_target(output: str, format: str, push: str | None) -> hub_upload.Target | None:
  """Checks the flags of an upload, and that the Hub accepts it."""
  if push is None:
    return None
  if format != 'transformers':
    raise UserError(f'--push requires --format=transformers, and --format is {format!r}.')
  if file_access.is_remote(output):
    raise UserError(f'--push requires a local --output, and --output is {output!r}.')
  return hub_upload.checked_target(push)


def _push(folder: str, files: list[str], target: hub_upload.Target | None) -> None:
  if target is not None:
    hub_upload.upload(folder, sorted(files), target, replaced=KNOWN)


def _export_to_transformers(run: _PretrainedRun, output: str, take_over: bool) -> list[str]:
  """Writes both towers; returns the names of the files."""
  weights = run.weights
  written: dict[str, bytes] = {}
  left_out = ''
  for tower in TOWERS:
    try:
      with console.phase('exporting', f'the {tower}'):
        files = huggingface.model_files(weights, tower, special_ids=_special_ids(run.tokenizer))
    except UserError as error:
      if tower == 'discriminator':
        raise
      left_out = str(error)
      continue
    with console.phase('exporting', f'the tokenizer of the {tower}'):
      files |= _tokenizer_files(run, tower)
    use = _use_of_tower(weights, tower)
    files[CARD] = run.card(f'{run.resolved.config.name}, {tower}', use, tower)
    written |= {f'{tower}/{name}': content for name, content in files.items()}
  with _locked(output, take_over) as lock:
    names = _write(output, written, lock)
  # The notes already mention a generator that the weights lack.
  if left_out and (weights.generator or not weights.notes):
    say('left out', left_out, always=True)
  discriminator = file_access.join(output, 'discriminator')
  say('next', f'AutoModel.from_pretrained({discriminator!r}) in transformers')
  say('', f'--config.init=hf:{output} here')
  return names


def _tokenizer_files(run: _PretrainedRun, tower: str) -> dict[str, bytes]:
  """Returns the tokenizer's files for transformers, with the length and types of a tower.

  The length is that of the longest rows that positions were trained on. Initial weights have
  trained all their positions.
  """
  config = run.weights.generator if tower == 'generator' else run.weights.discriminator
  assert config is not None
  longest = max(phase.config.sequence_length for phase in run.resolved.phases)
  trained_before = config.has_position_table and run.resolved.config.init
  max_length = config.max_positions if trained_before else longest
  return tokenizer_files.files(run.tokenizer, max_length, config.has_token_types)


def _use_of_tower(weights: Weights, tower: str) -> model_card.Use:
  if tower == 'generator':
    return model_card.use_of('generator')
  assert weights.discriminator is not None
  if 'discriminator_head' not in weights.params:
    return model_card.use_of('encoder')
  name, is_beside = huggingface.detection_class(weights.discriminator)
  if name == 'AutoModel':  # which opens it without its head
    return model_card.use_of('encoder')
  return model_card.use_of('discriminator', name, huggingface.HEAD if is_beside else '')


def _trained_with(workdir: str | os.PathLike[str]) -> str:
  """The versions of the packages that a run was started with; '' where not recorded."""
  started = versions.read_versions(workdir).get('started_with', {})
  return ', '.join(f'{name} {version}' for name, version in started.items() if name != 'jaxlib')


def _heldout_values(record: RunRecord, step: int | None) -> dict[str, float]:
  """The held-out metrics of a step by name, see `_heldout_metrics`; empty where there are none."""
  if record.evaluation and record.evaluation['step'] == step:
    return {name: f['value'] for name, f in record.evaluation['figures'].items()}
  lines = [line for line in record.heldout if line['step'] == step]
  return lines[-1] if lines else {}


def _heldout_metrics(record: RunRecord, step: int | None) -> list[str]:
  """Returns the held-out metrics of a step as Markdown: of --mode=evaluate, or of training."""
  if record.evaluation and record.evaluation['step'] == step:
    return report.evaluation(record)
  lines = [line for line in record.heldout if line['step'] == step]
  if not lines:
    return ['The run was not evaluated at this step.']
  rows = record.config['eval_rows']
  return [
    f'At step {step:,}, on at most {rows:,} held-out rows; losses in nats.',
    '',
    '| | value |',
    '|---|---:|',
    *(
      f'| {title} | {report.number(lines[-1].get(name))} |'
      for name, title in report.displayed_metrics(record).items()
      if name in lines[-1]
    ),
  ]


def _export_to_tensorflow(run: _PretrainedRun, output: str, take_over: bool) -> None:
  from electra_jax.interop import google

  if not run.tokenizer.read_by_original_program:
    say(
      'tokenizer',
      "the original program reads WordPiece with BERT's normalization only "
      '(config.data.normalization=original); the files of this tokenizer are written beside the '
      'checkpoint',
      always=True,
    )
  card = run.card(run.resolved.config.name, None, 'discriminator and generator')
  beside = {**run.tokenizer.saved_files(), CARD: card}
  prefix = file_access.join(output, f'model.ckpt-{run.weights.step}')
  written = google.written_files(prefix)
  with _locked(output, take_over) as lock:
    stale = _stale_files(output, {*beside, *written, checksums.SUMS})
    # Stale files are removed only when the model turns out to be expressible and writable.
    lock.check(read=True)
    with console.phase('writing', prefix):
      google.write_checkpoint(run.weights, prefix)
    present = set(file_access.listing(output))
    _write(output, beside, lock, stale, [name for name in written if name in present])
  settings = file_access.join(output, google.SETTINGS)
  say(
    'next',
    f'--config.init=tf:{prefix} here; init_checkpoint and --hparams {settings} in the original '
    'program',
  )


def _export_finetuned(
  run: FineTunedRun, output: str, publication: model_card.Publication, take_over: bool
) -> list[str]:
  """Writes a fine-tuned run; returns the names of the files."""
  with console.phase('reading', run.workdir):
    weights = run.weights()
  config = weights.discriminator
  assert config is not None
  say('read', f'{weights.source}, {run.trial}, step {run.step:,}')
  files = huggingface.model_files(weights, 'finetuned', special_ids=_special_ids(run.tokenizer))
  files |= tokenizer_files.files(run.tokenizer, run.max_length, config.has_token_types)
  use = model_card.use_of(run.task.head)
  files[CARD] = _finetuned_card(run, use, publication)
  with _locked(output, take_over) as lock:
    names = _write(output, files, lock)
  say('next', f'pipeline({use.pipeline!r}, {output!r}) in transformers')
  return names


def _finetuned_card(
  run: FineTunedRun, use: model_card.Use, publication: model_card.Publication
) -> bytes:
  folder = run_folder.folder(run.workdir)
  origin = run_folder.read_json(folder / 'encoder.json', {'origin': {'run': str}})['origin']['run']
  origin = ', '.join(publication.base_model) or model_card.without_folders(origin)
  if run.imported:
    description = f'{origin}, fine-tuned by another program, for {run.task.name}.'
  else:
    description = (
      f'The encoder of {origin}, fine-tuned on {run.task.name}; {run.trial}, the best of its '
      'trials on the dev set.'
    )
  sections = model_card.finetuned_sections(description, _dev_results(folder, run.task.name))
  path = folder / run.task.name / run.trial / RESULT
  dev = run_folder.read_json(path)['figures']['dev'] if file_access.exists(path) else {}
  found = report_files.read_trial_report(folder / run.task.name / run.trial).get('dev')
  if found is not None:
    sections += model_card.report_sections(found)
  if not run.imported:
    model = run_folder.read_json(folder / 'encoder.json')['model']
    settings = finetuned_report.main_settings(run.config, from_plain(model, ModelConfig))
    sections += model_card.settings_section(settings)
    config = model_card.without_paths(run.config)
    sections += model_card.recipe_section(config, _trained_with(run.workdir))
  metrics = [
    model_card.CardMetric(use.pipeline, model_card.TASK_METRICS.get(name, name), name, value)
    for name, value in dev.items()
    if value is not None and (name in model_card.TASK_METRICS or name == run.task.metric)
  ]
  title = f'{run.config.name}, {run.task.name}'
  measured = model_card.Measured(run.task.name, 'dev', metrics)
  return model_card.model_card(title, use, publication, measured, sections).encode()


def _dev_results(folder: epath.Path, task: str) -> dict[str, Any] | None:
  """Returns the summary of a task in results.json, if the run has one."""
  path = folder / 'results.json'
  if not file_access.exists(path):
    return None
  summary: dict[str, Any] | None = run_folder.read_json(path, {'summaries': dict})['summaries'].get(
    task
  )
  return summary


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
  names = ('pad_id', 'unk_id', 'cls_id', 'sep_id', 'mask_id')
  return {name: getattr(tokenizer, name) for name in names}


#### The folder ####


@contextlib.contextmanager
def _locked(output: str, take_over: bool) -> Iterator[FolderLock]:
  """Holds the lock of OUTPUT, which must be a folder or not exist."""
  if file_access.exists(output) and not file_access.is_folder(output):
    raise UserError(f'--output is {output!r}, which is a file; expected a folder.')
  with FolderLock(output, take_over=take_over) as lock:
    lock.acquire()
    yield lock


def _stale_files(output: str, names: Iterable[str]) -> list[str]:
  """Returns files of an earlier export that are not among `names`.

  Raises:
    UserError: the folder has files that no export has written.
  """
  names = set(names)
  stale = []
  for part in ('', *TOWERS):
    folder = file_access.join(output, part) if part else output
    for name in file_access.listing(folder):
      full_name = f'{part}/{name}' if part else name
      path = file_access.join(folder, name)
      if not part and (name in TOWERS or is_lock_file(name)):
        continue
      if not _is_of_an_export(name, path):
        raise UserError(
          f'--output is {output!r}, which has {full_name!r}; expected an empty folder or an '
          'earlier export.'
        )
      if full_name not in names:
        stale.append(path)
  return stale


def _with_sums(output: str, files: Mapping[str, bytes], beside: Iterable[str]) -> dict[str, bytes]:
  """SHA256SUMS of each folder of an export, by name, without the cards, which authors edit."""
  written = checksums.digests(output, beside)
  sums: dict[str, dict[str, str]] = {'': written} if written else {}
  for name, content in files.items():
    folder, _, file = name.rpartition('/')
    if file != CARD:
      sums.setdefault(folder, {})[file] = hashlib.sha256(content).hexdigest()
  return {
    f'{folder}/{checksums.SUMS}'.lstrip('/'): checksums.sums_content(parts)
    for folder, parts in sums.items()
  }


def _is_of_an_export(name: str, path: str) -> bool:
  if _PARTIAL.search(name):  # of an export that was killed
    name = _PARTIAL.sub('', name)
    return name in KNOWN or name.startswith('model.ckpt-')
  if name == CARD:
    return model_card.MADE in file_access.read_bytes(path).decode('utf-8', 'replace')
  return name in KNOWN or name.startswith('model.ckpt-')


def _write(
  output: str,
  files: Mapping[str, bytes],
  lock: FolderLock,
  stale: list[str] | None = None,
  beside: Iterable[str] = (),
) -> list[str]:
  """Writes the files of an export, and their checksums in each folder; returns their names.

  Args:
    output: the folder.
    files: name -> content.
    lock: of the folder.
    stale: files of an earlier export, to be removed; None for all that `files` lacks.
    beside: names of files that are written already.
  """
  with console.phase('hashing', output):
    files = {**files, **_with_sums(output, files, beside)}
  for path in _stale_files(output, files) if stale is None else stale:
    file_access.remove(path)
  # Configs are last: a folder with a config is complete.
  done = 0
  with console.progress('writing', sum(map(len, files.values())), 'B') as live:
    for name in sorted(files, key=lambda name: name.endswith('config.json')):
      live(done, name)
      lock.check(read=True)
      file_access.write_bytes(file_access.join(output, *name.split('/')), files[name])
      done += len(files[name])
  folders: dict[str, list[str]] = {}
  for name, content in files.items():
    folder, _, file = name.rpartition('/')
    folders.setdefault(folder, []).append(f'{file} ({quantity(len(content), "B")})')
  for folder in sorted(folders):
    place = file_access.join(output, folder) if folder else output
    say('written', f'{place}: {", ".join(folders[folder])}', always=True)
  return list(files)

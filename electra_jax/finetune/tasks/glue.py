"""GLUE (Wang et al. 2019): nine tasks and a diagnostic set, in the files of its download script or prepared by TFDS.

Sources of what stands here: figures, and the submission's format, gluebenchmark.com; epochs, swapped pairs and the order of
the labels, the original's configure_finetuning.py and classification_tasks.py.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from electra_jax import console, file_access
from electra_jax.data.corpus import readers
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import prepared, tables
from electra_jax.finetune.tasks.task import Recipe
from electra_jax.finetune.tasks.text import GLUE, IDS, Columns, TextTask, examples_of

_FILES = {'train': ('train.tsv',), 'dev': ('dev.tsv',), 'test': ('test.tsv',)}
_TFDS = {'train': 'train', 'dev': 'validation', 'test': 'test'}
_MRPC_IDS = ('#1 ID', '#2 ID')
_MOST_BROKEN = 0.01  # of a file's lines; QQP has a few that were broken in two when it was made


@dataclasses.dataclass(frozen=True)
class _Glue:
  """What is particular to a task.

  Attributes:
    folders: names that its folder may have, the script's first.
    first, second, target: names that columns may have.
    labels, words: labels as the files have them, and TFDS's names for them, in the same order.
    figures: without their mean; `further_figures` of splits that have others.
    files, tfds, site_files: names by split of the files, of TFDS's splits, and of the submissions.
  """

  folders: tuple[str, ...]
  first: tuple[str, ...]
  second: tuple[str, ...]
  target: tuple[str, ...]
  labels: tuple[str, ...]
  figures: tuple[str, ...]
  site_files: Mapping[str, str]
  words: tuple[str, ...] = ()
  recipe: Recipe = Recipe()
  swap: bool = False
  low: float = 0.0
  high: float = 1.0
  further_figures: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  files: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: _FILES)
  tfds: Mapping[str, str] = dataclasses.field(default_factory=lambda: _TFDS)


_PAIR = {
  'first': ('sentence1', 'premise', 'text'),
  'second': ('sentence2', 'hypothesis', 'pair'),
  'target': ('label',),
}
_ENTAILMENT = ('entailment', 'not_entailment')

_TASKS = {
  'cola': _Glue(
    ('CoLA',),
    ('sentence', 'text'),
    (),
    ('label',),
    ('0', '1'),
    ('matthews',),
    {'test': 'CoLA.tsv'},
    ('unacceptable', 'acceptable'),
  ),
  'sst2': _Glue(
    ('SST-2', 'SST', 'SST2'),
    ('sentence', 'text'),
    (),
    ('label',),
    ('0', '1'),
    ('accuracy',),
    {'test': 'SST-2.tsv'},
    ('negative', 'positive'),
  ),
  'mrpc': _Glue(
    ('MRPC',),
    ('#1 String', 'sentence1', 'text'),
    ('#2 String', 'sentence2', 'pair'),
    ('Quality', 'label'),
    ('0', '1'),
    ('accuracy', 'f1'),
    {'test': 'MRPC.tsv'},
    ('not_equivalent', 'equivalent'),
    swap=True,
  ),
  'stsb': _Glue(
    ('STS-B', 'STS', 'STSB'),
    _PAIR['first'],
    _PAIR['second'],
    ('score', 'label'),
    (),
    ('pearson', 'spearman'),
    {'test': 'STS-B.tsv'},
    recipe=Recipe(epochs=10.0),
    swap=True,
    high=5.0,
  ),
  'qqp': _Glue(
    ('QQP',),
    ('question1', 'text'),
    ('question2', 'pair'),
    ('is_duplicate', 'label'),
    ('0', '1'),
    ('accuracy', 'f1'),
    {'test': 'QQP.tsv'},
    ('not_duplicate', 'duplicate'),
  ),
  'mnli': _Glue(
    ('MNLI',),
    ('sentence1', 'premise', 'Premise', 'text'),
    ('sentence2', 'hypothesis', 'Hypothesis', 'pair'),
    ('gold_label', 'label', 'Label'),
    ('contradiction', 'entailment', 'neutral'),
    ('accuracy',),
    {'test': 'MNLI-m.tsv', 'test_mismatched': 'MNLI-mm.tsv', 'diagnostic': 'AX.tsv'},
    further_figures={'diagnostic': ('matthews', 'accuracy')},
    files={
      'train': ('train.tsv',),
      'dev': ('dev_matched.tsv',),
      'dev_mismatched': ('dev_mismatched.tsv',),
      'test': ('test_matched.tsv',),
      'test_mismatched': ('test_mismatched.tsv',),
      'diagnostic': ('diagnostic-full.tsv', 'diagnostic.tsv', 'AX.tsv'),
    },
    tfds={
      'train': 'train',
      'dev': 'validation_matched',
      'dev_mismatched': 'validation_mismatched',
      'test': 'test_matched',
      'test_mismatched': 'test_mismatched',
    },
  ),
  'qnli': _Glue(
    ('QNLI',),
    ('question', 'text'),
    ('sentence', 'pair'),
    ('label',),
    _ENTAILMENT,
    ('accuracy',),
    {'test': 'QNLI.tsv'},
  ),
  'rte': _Glue(
    ('RTE',),
    **_PAIR,
    labels=_ENTAILMENT,
    figures=('accuracy',),
    site_files={'test': 'RTE.tsv'},
    recipe=Recipe(epochs=10.0),
  ),
  'wnli': _Glue(
    ('WNLI',),
    **_PAIR,
    labels=('0', '1'),
    figures=('accuracy',),
    site_files={'test': 'WNLI.tsv'},
    words=('not_entailment', 'entailment'),
  ),
}

NAMES = tuple(_TASKS)


def open_task(name: str, data: Any) -> TextTask:
  """A task of GLUE, its data found and read when asked for.

  Its score has GLUE's figures (CoLA: Matthews' correlation; MRPC and QQP: accuracy and F1 of class 1; STS-B: Pearson's and
  Spearman's correlations; the others: accuracy) and `glue`, their mean, which is the task's part of the GLUE score. Of MNLI
  that part is the mean of `glue` of dev and dev_mismatched; its diagnostic set, where it is labelled, has Matthews'
  correlation (of three classes) and accuracy.

  Args:
    name: one of `NAMES`.
    data: config.data: source, the folder of all tasks or the task's own, or `tfds:glue` or `tfds:glue/NAME` with options;
      train, dev and test, files in the original layout that are taken instead.

  Raises:
    UserError: there is no data for the task.
  """
  glue = _TASKS[name]
  source = getattr(data, 'source', '')
  given = {
    split: getattr(data, split) for split in ('train', 'dev', 'test') if getattr(data, split, '')
  }
  if source.startswith(prepared.PREFIX):
    found = _in_tfds(name, source)
  elif source:
    found = _in_folder(name, source)
  elif given:
    found = {}
  else:
    raise UserError(
      f'the task {name!r} has no data; set config.data.source to the folder of GLUE, with {glue.folders[0]} in '
      f'it, or to tfds:glue/{name}'
    )
  found |= {split: functools.partial(_read_file, name, path=path) for split, path in given.items()}
  order = [*glue.files]
  splits = tuple(sorted(found, key=order.index))

  def load(task, split):
    rows, path = found[split](strict=split in glue.site_files)
    return examples_of(
      task, rows, path, targets='where told' if split in glue.site_files else 'all'
    )

  return dataclasses.replace(_task(name), splits=splits, load=load)


def define(name: str, data: Any, labels: tuple[str, ...]) -> TextTask:
  """As tasks.define_task has it: the labels are GLUE's."""
  return (
    open_task(name, data) if any((data.source, data.train, data.dev, data.test)) else _task(name)
  )


def restore(description: dict) -> TextTask:
  """The task of what `describe` gave, without data."""
  return _task(description['name'])


def _task(name):
  glue = _TASKS[name]
  figures = {'': (*glue.figures, GLUE)} | dict(glue.further_figures)
  return TextTask(
    name,
    head='classification' if glue.labels else 'regression',
    labels=glue.labels,
    metric=GLUE if len(glue.figures) > 1 else glue.figures[0],
    recipe=glue.recipe,
    splits=(),
    columns=Columns(glue.first, glue.second, glue.target),
    figures=figures,
    low=glue.low,
    high=glue.high,
    words={word: i for i, word in enumerate(glue.words)},
    swap=glue.swap,
    site_files=glue.site_files,
    layout=_cola_without_header if name == 'cola' else None,
  )


# ------------------------------------------------------------------------------------------------ files


def _in_folder(name, source):
  """Of each split there is, what reads it: a function of `strict` that gives rows and their path."""
  glue, source = _TASKS[name], file_access.normal(source)
  inside = file_access.listing(source)
  wanted = {folder.lower() for folder in (*glue.folders, name)}
  own = next(
    (
      entry
      for entry in inside
      if entry.lower() in wanted and file_access.is_folder(file_access.join(source, entry))
    ),
    None,
  )
  folder = file_access.join(source, own) if own else source
  found = _files_of(folder, glue.files)
  if name == 'mnli' and own and 'diagnostic' not in found:
    for entry in inside:
      if entry.lower() in ('diagnostic', 'diagnostics', 'ax') and 'diagnostic' not in found:
        found |= _files_of(
          file_access.join(source, entry), {'diagnostic': (*glue.files['diagnostic'], 'test.tsv')}
        )
  readers_of = {
    split: functools.partial(_read_file, name, path=path) for split, path in found.items()
  }
  if name == 'mrpc':
    readers_of = _mrpc_as_published(name, folder) | readers_of
  if not readers_of:
    what = (
      f'neither a folder {glue.folders[0]} nor {glue.files["train"][0]} is there'
      if inside
      else 'there is no such folder, or nothing in it'
    )
    raise UserError(
      f'{source!r} holds no data of the task {name!r}: {what}; set config.data.source to the folder of GLUE or of '
      'the task'
    )
  return readers_of


def _files_of(folder, names: Mapping[str, Sequence[str]]) -> dict[str, str]:
  """Paths of the files that are there, by split, plain or compressed."""
  there = {}
  for entry in file_access.listing(folder):
    plain = next(
      (entry.removesuffix(suffix) for suffix in file_access.COMPRESSIONS if entry.endswith(suffix)),
      entry,
    )
    there[plain] = file_access.join(folder, entry)
  found = {
    split: next((there[name] for name in choices if name in there), None)
    for split, choices in names.items()
  }
  return {split: path for split, path in found.items() if path}


def _read_file(name: str, path: str, strict: bool, keep=None):
  """Rows of a file in the original layout, and its path.

  Args:
    strict: whether a broken line is an error; else it is left out, and told.
    keep: which rows to keep, by their values; None for all.
  """
  text, broken = tables.read_text(path), None if strict else []
  rows = _cola_without_header(text, path)
  if rows is None:
    table_format, glue = tables.format_of(path), _TASKS[name]
    if table_format not in tables.FORMATS:
      table_format = 'tsv'
    if (
      table_format == 'tsv' and text
    ):  # checked by the whole header, while rows keep what is used: MNLI has parses of a kilobyte
      header = text.split('\n', 1)[0].removesuffix('\r').split('\t')
      for choices in (glue.first, glue.second, () if strict else glue.target):
        if choices and not set(choices) & set(header):
          tables.need(choices[:1], header, path)
    wanted = {*glue.first, *glue.second, *glue.target, *IDS, *_MRPC_IDS}
    rows = tables.parse_table(text, path, table_format, broken=broken, keep=wanted)
  if broken:
    if len(broken) > _MOST_BROKEN * len(rows):
      raise UserError(
        f'{tables.place(path, broken[0])}, and {len(broken) - 1} more, have more or fewer fields than the header; '
        'get the file anew'
      )
    console.say(
      'data',
      f'{path}: {len(broken)} lines without all of their fields are left out, the first is line {broken[0]}',
    )
  return ([row for row in rows if keep(row.values)] if keep else rows), path


def _cola_without_header(text: str, path: str) -> list[tables.Row] | None:
  """Rows of CoLA's train and dev, which have no header: source, label, the author's mark, sentence. None for other files."""
  fields = text.split('\n', 1)[0].removesuffix('\r').split('\t')
  if (
    len(fields) != 4 or fields[1] not in ('0', '1') or len(fields[2]) > 3
  ):  # '*' or '??' where the author doubts it
    return None
  return tables.parse_table(
    text, path, 'tsv', ('source', 'label', 'mark', 'sentence'), header=False
  )


def _mrpc_as_published(name, folder):
  """MRPC before the download script made its own files of it: dev_ids.tsv tells which of the training pairs are GLUE's dev set."""
  found = _files_of(
    folder,
    {
      'train': ('msr_paraphrase_train.txt',),
      'test': ('msr_paraphrase_test.txt',),
      'ids': ('dev_ids.tsv', 'mrpc_dev_ids.tsv'),
    },
  )
  parts = (
    {'test': functools.partial(_read_file, name, path=found['test'])} if 'test' in found else {}
  )
  if 'train' not in found:
    return parts

  def read(strict, in_dev):
    if 'ids' not in found:
      raise UserError(
        f'the folder {folder!r} has msr_paraphrase_train.txt and no dev_ids.tsv, which tells what of it is the dev '
        'set; add it, or the train.tsv and dev.tsv of the GLUE download script'
      )
    ids = {tuple(line.split('\t')[:2]) for line in tables.read_lines(found['ids'])}
    return _read_file(
      name,
      found['train'],
      strict,
      lambda values: (tuple(map(values.get, _MRPC_IDS)) in ids) == in_dev,
    )

  return parts | {
    'train': functools.partial(read, in_dev=False),
    'dev': functools.partial(read, in_dev=True),
  }


# ------------------------------------------------------------------------------------------------ TFDS


def _in_tfds(name, source):
  """As `_in_folder`, of a prepared TFDS dataset."""
  location, semicolon, options = source.partition(';')
  if location == f'{prepared.PREFIX}glue':
    location = f'{location}/{name}'
  there = prepared.splits(location + semicolon + options)
  found = {
    split: functools.partial(_read_tfds, name, location + semicolon + options, theirs)
    for split, theirs in _TASKS[name].tfds.items()
    if theirs in there
  }
  if not found:
    raise UserError(
      f'TFDS dataset {location.removeprefix(prepared.PREFIX)!r} has no data of the task {name!r}, but the splits '
      f'{readers.named(there)}; set config.data.source=tfds:glue/{name}'
    )
  if name == 'mnli' and 'glue/mnli' in location:
    diagnostic = (
      location.replace('glue/mnli', 'glue/ax')
      + semicolon
      + options.replace('download=yes', 'download=no')
    )
    try:
      prepared.splits(diagnostic)
      found['diagnostic'] = functools.partial(_read_tfds, name, diagnostic, 'test')
    except UserError:  # not prepared
      pass
  return found


def _read_tfds(name, source, split, strict):
  """Rows in the order of the original file, which TFDS shuffles; targets of -1 are none."""
  rows = sorted(prepared.read(source, split), key=lambda row: row.values.get('idx', row.line))
  for row in rows:
    if row.values.get('label') == -1:
      row.values['label'] = None
  return rows, f'{source.partition(";")[0]} ({split})'

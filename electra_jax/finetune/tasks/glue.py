"""GLUE (Wang et al. 2019): nine tasks and a diagnostic set.

Data comes from the files of GLUE's download script or from a prepared TFDS dataset.

Sources: metrics and the format of submissions, gluebenchmark.com; epochs, swapped pairs and the
order of the labels, the original program's configure_finetuning.py and classification_tasks.py.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from electra_jax import console, file_access
from electra_jax.config.finetuning import TaskDataConfig
from electra_jax.data.corpus import readers
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import prepared, tables
from electra_jax.finetune.tasks.task import Features, Options, Outputs, TaskRecipe
from electra_jax.finetune.tasks.text_task import (
  IDS,
  METRICS,
  Example,
  TextColumns,
  TextTask,
  examples_of_rows,
)

MEAN = 'glue'  # the metric that is the mean of a task's other metrics
_MRPC_IDS = ('#1 ID', '#2 ID')
# Lines of a file that may be malformed; QQP has a few that were split when it was made.
_MALFORMED_SHARE = 0.01

# A split's rows and their path; the argument is whether a malformed line is an error.
_Reader = Callable[[bool], tuple[list[tables.Row], str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueSpec:
  """One task of GLUE; see `task.TaskSpec`.

  Attributes:
    folders: names that its folder may have, the download script's first.
    first: names that the column of the text may have.
    second: names that the column of the second text may have; () for tasks of single texts.
    target: names that the column of the label or value may have.
    labels: as the files have them, in the order of the logits; () for regression.
    synonyms: TFDS's names of the labels, in the same order.
    metric_names: without their mean.
    published_metric: the metric that Clark et al. 2020 (section 3.1) report and average over; ''
      for WNLI, which they exclude.
    site_files: names of the submission files by split.
    recipe: the default settings of training.
    swap: whether training sees each pair in both orders.
    high: regression: the highest value; the lowest is 0.
    diagnostic_metrics: the metrics of the diagnostic set.
    files: names of the files by split.
    tfds_splits: names of TFDS's splits by split.
    headerless: whether train and dev have no header (CoLA).
    has_original_files: whether the data may be in MRPC's original files.
    has_diagnostic: whether the diagnostic set is labeled as this task is (MNLI).
  """

  folders: tuple[str, ...]
  first: tuple[str, ...]
  second: tuple[str, ...] = ()
  target: tuple[str, ...] = ('label',)
  labels: tuple[str, ...] = ()
  synonyms: tuple[str, ...] = ()
  metric_names: tuple[str, ...] = ('accuracy',)
  published_metric: str = 'accuracy'
  site_files: Mapping[str, str]
  recipe: TaskRecipe = TaskRecipe()
  swap: bool = False
  high: float = 1.0
  diagnostic_metrics: tuple[str, ...] = ()
  files: Mapping[str, tuple[str, ...]] = dataclasses.field(
    default_factory=lambda: {'train': ('train.tsv',), 'dev': ('dev.tsv',), 'test': ('test.tsv',)}
  )
  tfds_splits: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {'train': 'train', 'dev': 'validation', 'test': 'test'}
  )
  headerless: bool = False
  has_original_files: bool = False
  has_diagnostic: bool = False
  fixed_labels: bool = True

  @property
  def head(self) -> str:
    """Classification, or regression for a task without labels."""
    return 'classification' if self.labels else 'regression'

  def open(self, name: str, data: TaskDataConfig, options: Options = None) -> 'GlueTask':
    """Finds the task's data, which is read when it is first used.

    Args:
      name: of the task.
      data: config.data: source, the folder of all tasks or of this one, or `tfds:glue` or
        `tfds:glue/NAME` with options; train, dev and test, files in the original format that are
        used instead.
      options: none.

    Raises:
      UserError: there is no data for the task.
    """
    given = {split: path for split in ('train', 'dev', 'test') if (path := getattr(data, split))}
    found: dict[str, _Reader]
    if data.source.startswith(prepared.PREFIX):
      found = _in_tfds(self, name, data.source)
    elif data.source:
      found = _in_folder(self, name, data.source)
    elif given:
      found = {}
    else:
      raise UserError(
        f'the task {name!r} has no data; set config.data.source to the folder of GLUE, which '
        f'contains {self.folders[0]}, or to tfds:glue/{name}'
      )
    found |= {split: functools.partial(_read_file, self, path) for split, path in given.items()}
    order = [*self.files]

    def load(task: 'GlueTask', split: str) -> list[Example]:
      unlabeled = split in self.site_files  # a malformed line would shift the submission
      rows, path = found[split](unlabeled)
      return examples_of_rows(task, rows, path, required=not unlabeled)

    return self._task(name, splits=tuple(sorted(found, key=order.index)), load=load)

  def define(
    self, name: str, data: TaskDataConfig, options: Options, labels: tuple[str, ...]
  ) -> 'GlueTask':
    """The task for a model of another program; its labels are GLUE's. See `task.TaskSpec`."""
    has_data = any((data.source, data.train, data.dev, data.test))
    return self.open(name, data, options) if has_data else self._task(name)

  def restore(self, description: Mapping[str, Any], options: Options = None) -> 'GlueTask':
    """The task of a description, without data."""
    return self._task(description['name'])

  def _task(
    self,
    name: str,
    splits: tuple[str, ...] = (),
    load: Callable[['GlueTask', str], list[Example]] | None = None,
  ) -> 'GlueTask':
    columns = TextColumns(self.first, self.second, self.target)
    return GlueTask(
      name=name,
      spec=self,
      columns=columns,
      labels=self.labels,
      high=self.high,
      splits=splits,
      load=load,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueTask(TextTask):
  """A task of GLUE.

  Its score has GLUE's metrics (CoLA: Matthews' correlation; MRPC and QQP: accuracy and F1 of class
  1; STS-B: Pearson's and Spearman's correlations; the others: accuracy) and `glue`, their mean,
  which is the task's part of the GLUE score. For MNLI that part is the mean of `glue` of dev and
  dev_mismatched. Its diagnostic set, where it is labeled, has Matthews' correlation (of three
  classes) and accuracy.

  Attributes:
    spec: the kind of task.
  """

  configured_columns = False
  spec: GlueSpec

  @property
  def head(self) -> str:  # type: ignore[override]  # a constant of other text tasks
    """Classification or regression."""
    return self.spec.head

  @property
  def metric(self) -> str:  # type: ignore[override]  # a constant of other text tasks
    """The only metric, or the mean of several."""
    names = self.spec.metric_names
    return MEAN if len(names) > 1 else names[0]

  @property
  def recipe(self) -> TaskRecipe:  # type: ignore[override]  # a constant of other text tasks
    """The default settings of training."""
    return self.spec.recipe

  @property
  def swap(self) -> bool:  # type: ignore[override]  # a constant of other text tasks
    """Whether training sees each pair in both orders."""
    return self.spec.swap

  @property
  def synonyms(self) -> Mapping[str, int]:
    """TFDS's names of the labels and the label's index."""
    return {name: i for i, name in enumerate(self.spec.synonyms)}

  def parse_target(self, word: str) -> int | float:
    """The label's index, or a value between 0 and the task's highest; see `TextTask`."""
    target = super().parse_target(word)
    if self.head == 'regression' and not self.low <= target <= self.high:
      raise ValueError(f'the value {word}; expected one from {self.low:g} to {self.high:g}')
    return target

  def measure(self, split: str, gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The metrics of a split without their mean."""
    names = self.spec.metric_names
    if split == 'diagnostic' and self.spec.diagnostic_metrics:
      names = self.spec.diagnostic_metrics
    return {name: METRICS[name](gold, predicted) for name in names}

  def with_mean(self, split: str, metrics: dict[str, float]) -> dict[str, float]:
    """Adds the mean, `glue`; the diagnostic set has none."""
    if split == 'diagnostic' and self.spec.diagnostic_metrics:
      return metrics
    return metrics | {MEAN: float(np.mean(list(metrics.values())))}

  def table_rows(self, text: str, path: str) -> list[tables.Row] | None:
    """The rows of a file without a header, for CoLA."""
    return _rows_without_header(text, path) if self.spec.headerless else None

  def submission(
    self, split: str, examples: Sequence[Example], features: Features, outputs: Outputs
  ) -> dict[str, bytes]:
    """The file of a split for GLUE's site, which counts examples from 0 in the file's order."""
    if split not in self.spec.site_files:
      return {}
    answers = self.answers(outputs)
    if self.head == 'regression':
      words = [f'{value:.3f}' for value in np.clip(answers, self.low, self.high)]
    else:
      words = [self.labels[index] for index in answers]
    lines = [f'{i}\t{word}\n' for i, word in enumerate(words)]
    return {self.spec.site_files[split]: ('index\tprediction\n' + ''.join(lines)).encode()}

  def submission_folder(self, split: str) -> str:
    """No folder: the names of the files differ between tasks and splits."""
    return ''


#### The tasks ####

_FIRST = ('sentence1', 'premise', 'text')
_SECOND = ('sentence2', 'hypothesis', 'pair')
_ENTAILMENT = ('entailment', 'not_entailment')

COLA = GlueSpec(
  folders=('CoLA',),
  first=('sentence', 'text'),
  labels=('0', '1'),
  synonyms=('unacceptable', 'acceptable'),
  metric_names=('matthews',),
  published_metric='matthews',
  site_files={'test': 'CoLA.tsv'},
  headerless=True,
)
SST2 = GlueSpec(
  folders=('SST-2', 'SST', 'SST2'),
  first=('sentence', 'text'),
  labels=('0', '1'),
  synonyms=('negative', 'positive'),
  site_files={'test': 'SST-2.tsv'},
)
MRPC = GlueSpec(
  folders=('MRPC',),
  first=('#1 String', 'sentence1', 'text'),
  second=('#2 String', 'sentence2', 'pair'),
  target=('Quality', 'label'),
  labels=('0', '1'),
  synonyms=('not_equivalent', 'equivalent'),
  metric_names=('accuracy', 'f1'),
  site_files={'test': 'MRPC.tsv'},
  swap=True,
  has_original_files=True,
)
STSB = GlueSpec(
  folders=('STS-B', 'STS', 'STSB'),
  first=_FIRST,
  second=_SECOND,
  target=('score', 'label'),
  metric_names=('pearson', 'spearman'),
  published_metric='spearman',
  site_files={'test': 'STS-B.tsv'},
  recipe=TaskRecipe(epochs=10.0),
  swap=True,
  high=5.0,
)
QQP = GlueSpec(
  folders=('QQP',),
  first=('question1', 'text'),
  second=('question2', 'pair'),
  target=('is_duplicate', 'label'),
  labels=('0', '1'),
  synonyms=('not_duplicate', 'duplicate'),
  metric_names=('accuracy', 'f1'),
  site_files={'test': 'QQP.tsv'},
)
MNLI = GlueSpec(
  folders=('MNLI',),
  first=('sentence1', 'premise', 'Premise', 'text'),
  second=('sentence2', 'hypothesis', 'Hypothesis', 'pair'),
  target=('gold_label', 'label', 'Label'),
  labels=('contradiction', 'entailment', 'neutral'),
  site_files={'test': 'MNLI-m.tsv', 'test_mismatched': 'MNLI-mm.tsv', 'diagnostic': 'AX.tsv'},
  diagnostic_metrics=('matthews', 'accuracy'),
  files={
    'train': ('train.tsv',),
    'dev': ('dev_matched.tsv',),
    'dev_mismatched': ('dev_mismatched.tsv',),
    'test': ('test_matched.tsv',),
    'test_mismatched': ('test_mismatched.tsv',),
    'diagnostic': ('diagnostic-full.tsv', 'diagnostic.tsv', 'AX.tsv'),
  },
  tfds_splits={
    'train': 'train',
    'dev': 'validation_matched',
    'dev_mismatched': 'validation_mismatched',
    'test': 'test_matched',
    'test_mismatched': 'test_mismatched',
  },
  has_diagnostic=True,
)
QNLI = GlueSpec(
  folders=('QNLI',),
  first=('question', 'text'),
  second=('sentence', 'pair'),
  labels=_ENTAILMENT,
  site_files={'test': 'QNLI.tsv'},
)
RTE = GlueSpec(
  folders=('RTE',),
  first=_FIRST,
  second=_SECOND,
  labels=_ENTAILMENT,
  site_files={'test': 'RTE.tsv'},
  recipe=TaskRecipe(epochs=10.0),
)
WNLI = GlueSpec(
  folders=('WNLI',),
  first=_FIRST,
  second=_SECOND,
  labels=('0', '1'),
  synonyms=('not_entailment', 'entailment'),
  published_metric='',
  site_files={'test': 'WNLI.tsv'},
)


#### Files ####


def _in_folder(spec: GlueSpec, name: str, source: str) -> dict[str, _Reader]:
  """The reader of each split that is in a folder."""
  source = file_access.normal(source)
  inside = file_access.listing(source)
  own = _subfolder(source, inside, (*spec.folders, name))
  folder = own or source
  found = _existing_files(folder, spec.files)
  if spec.has_diagnostic and own and 'diagnostic' not in found:
    found |= _diagnostic_files(spec, source, inside)
  splits: dict[str, _Reader] = {
    split: functools.partial(_read_file, spec, path) for split, path in found.items()
  }
  if spec.has_original_files:
    splits = _original_mrpc(spec, folder) | splits
  if not splits:
    why = 'the folder does not exist or is empty'
    if inside:
      why = f'it contains neither a folder {spec.folders[0]} nor {spec.files["train"][0]}'
    raise UserError(
      f'{source!r} has no data of the task {name!r}: {why}; set config.data.source to the folder '
      'of GLUE or of the task'
    )
  return splits


def _subfolder(source: str, inside: Sequence[str], names: Sequence[str]) -> str | None:
  """The path of the first folder with one of the names, in any case; None where there is none."""
  wanted = {name.lower() for name in names}
  for entry in inside:
    path = file_access.join(source, entry)
    if entry.lower() in wanted and file_access.is_folder(path):
      return path
  return None


def _diagnostic_files(spec: GlueSpec, source: str, inside: Sequence[str]) -> dict[str, str]:
  """The diagnostic set's file, in a folder beside the task's."""
  names = {'diagnostic': (*spec.files['diagnostic'], 'test.tsv')}
  for entry in inside:
    if entry.lower() in ('diagnostic', 'diagnostics', 'ax'):
      if found := _existing_files(file_access.join(source, entry), names):
        return found
  return {}


def _existing_files(folder: str, names: Mapping[str, Sequence[str]]) -> dict[str, str]:
  """Paths of the files that exist, by split; files may be compressed."""
  there: dict[str, str] = {}
  for entry in file_access.listing(folder):
    suffix = next((s for s in file_access.COMPRESSIONS if entry.endswith(s)), '')
    there[entry.removesuffix(suffix)] = file_access.join(folder, entry)
  found: dict[str, str] = {}
  for split, choices in names.items():
    path = next((there[name] for name in choices if name in there), None)
    if path:
      found[split] = path
  return found


def _read_file(
  spec: GlueSpec,
  path: str,
  strict: bool,
  keep: Callable[[Mapping[str, Any]], bool] | None = None,
) -> tuple[list[tables.Row], str]:
  """Rows of a file in the original format, and its path.

  Args:
    spec: of the task.
    path: of the file.
    strict: whether a malformed line is an error; else it is skipped and reported.
    keep: the rows to keep, by their values; None for all.
  """
  text = tables.read_file_text(path)
  broken: list[int] | None = None if strict else []
  rows = _rows_without_header(text, path)
  if rows is None:
    table_format = tables.format_from_name(path)
    if table_format not in tables.FORMATS:
      table_format = 'tsv'
    if table_format == 'tsv' and text:
      _check_header(spec, tables.first_fields(text), path, strict)
    wanted = {*spec.first, *spec.second, *spec.target, *IDS, *_MRPC_IDS}
    rows = tables.parse_table(text, path, table_format, broken=broken, keep=wanted)
  if broken:
    _report_malformed(broken, len(rows), path)
  return ([row for row in rows if keep(row.values)] if keep else rows), path


def _check_header(spec: GlueSpec, header: Collection[str], path: str, strict: bool) -> None:
  """Checks the whole header: rows keep only the columns in use (MNLI has parses of a kilobyte)."""
  for choices in (spec.first, spec.second, () if strict else spec.target):
    if choices and not set(choices) & set(header):
      tables.require_columns(choices[:1], header, path)


def _report_malformed(broken: Sequence[int], rows: int, path: str) -> None:
  if len(broken) > _MALFORMED_SHARE * rows:
    raise UserError(
      f'{tables.place(path, broken[0])}, and {len(broken) - 1} more, have more or fewer fields '
      'than the header; download the file again'
    )
  console.say(
    'data',
    f'{path}: {len(broken)} lines with more or fewer fields than the header are skipped, the first '
    f'is line {broken[0]}',
  )


def _rows_without_header(text: str, path: str) -> list[tables.Row] | None:
  """Rows of CoLA's train and dev, which have no header; None for other files.

  The columns are source, label, the author's mark ('*' or '??' where he doubts the sentence) and
  sentence.
  """
  fields = tables.first_fields(text)
  if len(fields) != 4 or fields[1] not in ('0', '1') or len(fields[2]) > 3:
    return None
  return tables.parse_table(
    text, path, 'tsv', ('source', 'label', 'mark', 'sentence'), header=False
  )


def _original_mrpc(spec: GlueSpec, folder: str) -> dict[str, _Reader]:
  """MRPC's original files, which GLUE's download script splits.

  dev_ids.tsv lists the training pairs that are GLUE's dev set.
  """
  found = _existing_files(
    folder,
    {
      'train': ('msr_paraphrase_train.txt',),
      'test': ('msr_paraphrase_test.txt',),
      'ids': ('dev_ids.tsv', 'mrpc_dev_ids.tsv'),
    },
  )
  splits: dict[str, _Reader] = {}
  if 'test' in found:
    splits['test'] = functools.partial(_read_file, spec, found['test'])
  if 'train' not in found:
    return splits

  def read(strict: bool, in_dev: bool) -> tuple[list[tables.Row], str]:
    if 'ids' not in found:
      raise UserError(
        f'the folder {folder!r} has msr_paraphrase_train.txt without dev_ids.tsv, which lists the '
        'pairs of the dev set; add it, or the train.tsv and dev.tsv of the GLUE download script'
      )
    ids = {tuple(line.split('\t')[:2]) for line in tables.read_lines(found['ids'])}

    def keep(values: Mapping[str, Any]) -> bool:
      return (tuple(map(values.get, _MRPC_IDS)) in ids) == in_dev

    return _read_file(spec, found['train'], strict, keep)

  splits['train'] = functools.partial(read, in_dev=False)
  splits['dev'] = functools.partial(read, in_dev=True)
  return splits


#### TFDS ####


def _in_tfds(spec: GlueSpec, name: str, source: str) -> dict[str, _Reader]:
  """The reader of each split of a prepared TFDS dataset."""
  location, semicolon, options = source.partition(';')
  if location == f'{prepared.PREFIX}glue':
    location = f'{location}/{name}'
  there = prepared.prepared_splits(location + semicolon + options)
  found: dict[str, _Reader] = {
    split: functools.partial(_read_tfds, location + semicolon + options, theirs)
    for split, theirs in spec.tfds_splits.items()
    if theirs in there
  }
  if not found:
    raise UserError(
      f'TFDS dataset {location.removeprefix(prepared.PREFIX)!r} has no data of the task {name!r}; '
      f'its splits are {readers.named(there)}; set config.data.source=tfds:glue/{name}'
    )
  if spec.has_diagnostic and 'glue/mnli' in location:
    options = options.replace('download=yes', 'download=no')
    diagnostic = location.replace('glue/mnli', 'glue/ax') + semicolon + options
    try:
      prepared.prepared_splits(diagnostic)
      found['diagnostic'] = functools.partial(_read_tfds, diagnostic, 'test')
    except UserError:  # not prepared
      pass
  return found


def _read_tfds(source: str, split: str, strict: bool) -> tuple[list[tables.Row], str]:
  """Rows in the order of the original file, which TFDS shuffles; a target of -1 becomes None."""
  rows = prepared.read_prepared(source, split)
  rows = sorted(rows, key=lambda row: row.values.get('idx', row.line))
  for row in rows:
    if row.values.get('label') == -1:
      row.values['label'] = None
  return rows, f'{source.partition(";")[0]} ({split})'

"""The fields of a fine-tuning config, with the published recipe as defaults.

The recipe is Clark et al. 2020, table 7, and configure_finetuning.py of the original program.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from electra_jax import registry
from electra_jax.config import declarations
from electra_jax.config.declarations import Config, ConfigDict, field, group, options
from electra_jax.config.groups import (
  ALLOW_LOSS_HELP,
  CACHE,
  CACHE_HELP,
  DROPOUT_SCALE_HELP,
  DTYPE_HELP,
  DTYPES,
  KERNEL_HELP,
  KERNELS,
  PRECISION_HELP,
  PRECISIONS,
  REMAT,
  REMAT_HELP,
  RESIDUAL_HELP,
  RESIDUALS,
  SCALES,
  SKIP_HELP,
  TRACKERS_HELP,
  TRACKING_HELP,
  MeshConfig,
  ShardingConfig,
  TrackingConfig,
)

# The published schemes of tags of entities; see finetune/tasks/tag_schemes.py.
TAG_SCHEMES = ('io', 'iob1', 'iob2', 'ioe1', 'ioe2', 'iobes', 'bilou', 'bmes', 'bmewo')


@dataclasses.dataclass(frozen=True)
class TaskDataConfig(Config):
  """Labeled data; see docs/finetuning.md."""

  source: str = field(
    '',
    "Folder in the task's original layout, or tfds:glue/cola; '' where the files are named.",
    files='read',
  )
  train: str = field('', 'File of training examples, here or at gs://.', files='read')
  dev: str = field('', 'File of development examples.', files='read')
  test: str = field('', 'File of test examples.', files='read')
  dev_fraction: float = field(
    0.1,
    'Without dev data: the part of the training examples that becomes dev; 0: dev is required.',
    at_least=0,
    below=1,
  )
  format: str = field(
    'auto',
    "Format: auto (by the file's name), tsv, csv, jsonl, json, conll, conllu, parquet or arrow.",
  )
  text: str = field('text', 'Column of the text; span tasks: of the question.')
  pair: str = field('', 'Column of the second text; span tasks: of the context.')
  label: str = field('label', 'Column of the label, value, tags or answers.')
  tags: str = field(
    'auto', 'conll: column of the tags, from 0, -1 the last; conllu: upos, xpos or a key of MISC.'
  )
  label_names: str = field(
    '',
    'Names of labels or tags that are integers, separated by commas, or a file of them.',
    files='read',
  )
  label_separator: str = field(
    'auto', 'multilabel: what separates labels in text; auto: the first of | ; , that occurs.'
  )
  tag_scheme: str = field(
    'auto',
    'Tagging: how tags mark entities; auto: by the tags.',
    choices=('auto', *TAG_SCHEMES),
    before='iob2',
  )
  ignore_labels: str = field('', 'Tagging: types, separated by commas, that count as O.')
  repair_tags: str = field(
    'refuse',
    'Tagging: tags that violate their scheme: refuse, or repair as conlleval does.',
    choices=('refuse', 'repair'),
  )
  long_texts: str = field(
    'cut',
    'Own texts longer than a row: cut, or windows whose outputs are pooled.',
    choices=('cut', 'windows'),
  )
  window_pooling: str = field(
    'mean',
    'long_texts=windows: mean of probabilities or values over the windows of a text, or max.',
    choices=('mean', 'max'),
  )
  max_question: int = field(64, 'Span tasks: tokens of a question, at most.')
  stride: int = field(128, 'Windows on a long text or context: tokens from one to the next.')
  max_answer: int = field(30, 'Span tasks: tokens of an answer, at most.')
  n_best: int = field(20, 'Span tasks: number of candidate answers.')
  bad_answers: str = field(
    'error',
    'Span tasks: answers that are not in their context: error, or drop them from training.',
    choices=('error', 'drop'),
  )
  answer_units: str = field(
    'auto',
    'Span tasks: F1 of words, of characters, or auto: of characters in scripts without spaces.',
    choices=('auto', 'words', 'characters'),
    before='words',
  )


@dataclasses.dataclass(frozen=True)
class HeadConfig(Config):
  """The task's head on the encoder."""

  style: str = field(
    'published',
    'published, or transformers: the layers of its ElectraFor... and ModernBertFor... classes.',
    choices=('published', 'transformers'),
  )
  dropout: float = field(
    -1.0,
    'Dropout of the head; -1: as published, or as in transformers.',
    at_least=0,
    below=1,
    also=(-1.0,),
  )
  pooling: str = field(
    'cls',
    'Tasks with one output per row: cls as published, or mean over the tokens.',
    choices=('cls', 'mean'),
  )
  beam: int = field(20, 'Span tasks: number of starts, and of ends for each.', at_least=1)
  class_weights: str = field(
    '', "Classification: weights of labels in the loss: balanced, or as in no=1,yes=2.5; '': equal."
  )
  label_smoothing: float = field(
    0.0,
    'Classification: probability that the loss spreads over all labels.',
    at_least=0,
    below=1,
  )
  loss_denominator: str = field(
    'average',
    'Tagging, class_weights: divide the loss by the tokens or weights of an average batch, or of '
    'this batch.',
    choices=('average', 'batch'),
    before='batch',
  )
  impossible_weight: float = field(
    0.5, 'Span tasks: weight of the loss of whether there is an answer, as published.', at_least=0
  )


@dataclasses.dataclass(frozen=True)
class EncoderChoices(Config):
  """Fields of the pretrained encoder that fine-tuning may change."""

  dropout: float = field(
    0.1,
    'Dropout of embeddings and sublayer outputs; none where the encoder is frozen.',
    at_least=0,
    below=1,
  )
  attention_dropout: float = field(
    0.1,
    'Dropout of attention probabilities; none with fast kernels or a frozen encoder.',
    at_least=0,
    below=1,
  )
  attention: str = field('auto', KERNEL_HELP, choices=KERNELS)
  remat: str = field('auto', REMAT_HELP, choices=REMAT, before='none')
  scan_unroll: int = field(
    0, 'Layers per iteration of the scan; 0: all on CPU, 1 elsewhere.', at_least=0
  )
  dropout_scale: str = field('float32', DROPOUT_SCALE_HELP, choices=SCALES, before='dtype')
  residual: str = field('auto', RESIDUAL_HELP, choices=RESIDUALS, before='dtype')


@dataclasses.dataclass(frozen=True)
class FinetuningOptimizerConfig(Config):
  """AdamW with a rate per layer."""

  learning_rate: float = field(
    0.0,
    'Peak rate; 0: by width, 3e-4 to 256, 1e-4 to 768, 5e-5 beyond (table 7); frozen: 1e-2.',
    at_least=0,
  )
  layer_decay: float = field(
    0.0,
    'Factor of the rate from layer to layer down; 1: none; 0: by width, 0.8, 0.8, 0.9.',
    at_least=0,
    at_most=1,
  )
  published_depths: bool = field(
    False, 'Depths as in the original, where the last layer has layer_decay squared.'
  )
  warmup: float = field(0.1, 'Fraction of the steps with linear warm-up.', at_least=0, below=1)
  b1: float = field(0.9, "Adam's decay of the first moment.", at_least=0, below=1)
  b2: float = field(0.999, "Adam's decay of the second moment.", at_least=0, below=1)
  eps: float = field(1e-6, "Adam's epsilon, added outside the square root.", at_least=0)
  weight_decay: float = field(
    0.01, "Decoupled weight decay, as in the original's code; table 7 has 0.", at_least=0
  )
  clip: float = field(1.0, 'Largest global norm of the gradients; 0: no clipping.', at_least=0)
  bias_correction: bool = field(False, "Adam's bias correction; False as published.")


@dataclasses.dataclass(frozen=True)
class SearchConfig(Config):
  """What a search varies: all combinations of these values are compared on dev."""

  learning_rate: tuple[Any, ...] = field(
    (), 'Values of optimizer.learning_rate to compare, as (1e-4, 3e-4); (): no search over it.'
  )
  epochs: tuple[Any, ...] = field((), 'Values of epochs.')
  batch_size: tuple[Any, ...] = field((), 'Values of batch_size; each compiles another step.')
  warmup: tuple[Any, ...] = field((), 'Values of optimizer.warmup.')
  layer_decay: tuple[Any, ...] = field(
    (), 'Values of optimizer.layer_decay; each compiles another step.'
  )
  weight_decay: tuple[Any, ...] = field(
    (), 'Values of optimizer.weight_decay; each compiles another step.'
  )
  clip: tuple[Any, ...] = field((), 'Values of optimizer.clip; each compiles another step.')
  halving: int = field(
    0,
    'Successive halving: after parts of the training the best 1/halving of the settings continue; '
    '0: all do.',
    at_least=2,
    also=(0,),
  )

  @property
  def varied(self) -> dict[str, tuple[Any, ...]]:
    """Field of the config -> the values to compare, for the fields that are varied."""
    values = {target: getattr(self, name) for name, target in SEARCHED.items()}
    return {target: given for target, given in values.items() if given}


# Fields of config.search and what they vary. Batch sizes first: the first setting of each compiles.
SEARCHED = {
  'batch_size': 'batch_size',
  'layer_decay': 'optimizer.layer_decay',
  'weight_decay': 'optimizer.weight_decay',
  'clip': 'optimizer.clip',
  'warmup': 'optimizer.warmup',
  'epochs': 'epochs',
  'learning_rate': 'optimizer.learning_rate',
}


@dataclasses.dataclass(frozen=True)
class FinetuningConfig(Config):
  """A fine-tuning run: one or several tasks, in trials."""

  name: str = field('finetune', 'Names the default workdir, runs/<name>.', one_line=True)
  init: str = field(
    '',
    "Pretrained run, a task's folder of a fine-tuned run, hf:FOLDER, hf:org/name, tf:CHECKPOINT, "
    'or none.',
    files='read',
  )
  init_step: str = field(
    'last', 'Checkpoint of a run: last, best (by its held-out loss) or a step.'
  )
  like: str = field(
    '',
    "With init='none': the run whose encoder sizes and tokenizer are taken, without its weights.",
    files='read',
  )
  task: str = field('cola', 'Task, or several separated by commas; docs/finetuning.md lists them.')
  task_options: dict[str, Any] = options('Options of a task that user code registered.')
  frozen: bool = field(False, 'Keep the encoder unchanged and train only the head: a probe.')
  seed: int = field(0, "Seed of the first trial's head, batches and dropout; then one more each.")
  num_trials: int = field(1, 'Runs with different seeds.', at_least=1, resumable=True)
  keep_trials: str = field(
    'best', 'Trials whose weights are kept.', choices=('best', 'all', 'none'), resumable=True
  )
  epochs: float = field(0.0, 'Epochs; 0: as published for the task.', at_least=0)
  batch_size: int = field(32, 'Rows per step, over all devices.', at_least=1)
  max_length: int = field(
    0, 'Tokens per row, at most; 0: as published for the task.', at_least=8, also=(0,)
  )
  bucketed: bool = field(
    True, 'Batch rows of similar length, padded to 16, 32, 64, ...; else all to max_length.'
  )
  batch_order: str = field(
    'mixed',
    'bucketed: mixed (of similar length, others in each epoch), or sorted as in version 0.1.0.',
    choices=('mixed', 'sorted'),
    before='sorted',
  )
  allow_loss: bool = field(False, ALLOW_LOSS_HELP, resumable=True)
  train_examples: int = field(
    0, 'Train on this many examples, chosen by the seed; 0: all.', at_least=0
  )
  eval_every: float = field(
    1.0, 'Epochs between evaluations on dev; 0: only at the end.', at_least=0
  )
  select: str = field(
    'last',
    'Weights and metrics of a trial: last, as published, or best by the dev metric.',
    choices=('last', 'best'),
  )
  best_by: str = field(
    'metric',
    "What decides which evaluation on dev is the best: the task's metric, or the loss.",
    choices=('metric', 'loss'),
  )
  patience: int = field(
    0,
    'End a trial after this many evaluations without improvement, by best_by; 0: never.',
    at_least=0,
  )
  data: TaskDataConfig = group(TaskDataConfig, 'Labeled data.')
  head: HeadConfig = group(HeadConfig, "The task's head.")
  model: EncoderChoices = group(EncoderChoices, 'Fields of the pretrained encoder that may change.')
  optimizer: FinetuningOptimizerConfig = group(FinetuningOptimizerConfig, 'AdamW.')
  search: SearchConfig = group(SearchConfig, 'Settings to compare; num_trials trials of each.')
  mesh: MeshConfig = group(MeshConfig, 'The devices as a grid: devices per axis.', resumable=True)
  sharding: ShardingConfig = group(
    ShardingConfig, 'Mesh axes that split each axis of the parameters.', resumable=True
  )
  dtype: str = field('auto', DTYPE_HELP, choices=DTYPES)
  precision: str = field('float32', PRECISION_HELP, choices=PRECISIONS, before='bfloat16')
  micro_batches: int = field(1, 'Parts that the rows of a device are split into.', at_least=1)
  skip_nonfinite: bool = field(False, SKIP_HELP, resumable=True)
  log_every: int = field(50, 'Steps between lines of training metrics.', at_least=1)
  save_every: int = field(
    500,
    'Steps between checkpoints; each evaluation on dev saves one too.',
    at_least=1,
    resumable=True,
  )
  eval_batch_size: int = field(
    64,
    'A batch of evaluation or prediction has at most as many tokens as so many longest rows.',
    at_least=1,
    resumable=True,
  )
  compilation_cache: str = field(CACHE, CACHE_HELP, resumable=True, files='written')
  trackers: tuple[str, ...] = field(
    ('tensorboard',), TRACKERS_HELP, choices=registry.TRACKERS, resumable=True
  )
  tracking: TrackingConfig = group(TrackingConfig, TRACKING_HELP, resumable=True)

  @property
  def tasks(self) -> tuple[str, ...]:
    """Names of the tasks, in their order."""
    return tuple(filter(None, (name.strip() for name in self.task.split(','))))

  @property
  def settings(self) -> tuple[dict[str, Any], ...]:
    """The settings that a search compares: by field, what each changes; () without a search.

    Raises:
      UserError: a value has another type than its field.
    """
    varied, known = self.search.varied, declarations.fields_of(FinetuningConfig)
    typed = [[declarations.typed_value(known[f], v) for v in given] for f, given in varied.items()]
    if not varied:
      return ()
    return tuple(dict(zip(varied, values, strict=True)) for values in itertools.product(*typed))

  def with_setting(self, setting: Mapping[str, Any]) -> 'FinetuningConfig':
    """The config of a setting, without the search."""
    return self.replace({**setting, 'search': SearchConfig()})

  def seed_of(self, trial: int) -> int:
    """The seed of a trial, which are counted from 1."""
    return self.seed + trial - 1

  @property
  def specs(self) -> dict[str, tuple[str, ...]]:
    """Kind -> names of the specs that the config uses, as `registry.from_user_code` takes them."""
    return {'task': self.tasks}


def default_config() -> ConfigDict:
  """The ConfigDict of all fine-tuning fields with their defaults, for a config file to change."""
  return declarations.config_dict(FinetuningConfig)

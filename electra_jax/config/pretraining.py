"""The fields of a pretraining config. Defaults are ELECTRA-Small (Clark et al. 2020, table 6).

A field is declared here once; see declarations.py for what is derived from it. Rules across fields
are in rules.py.
"""

import dataclasses
from typing import Any

from electra_jax import registry
from electra_jax.config import declarations
from electra_jax.config.declarations import Config, ConfigDict, field, group, options
from electra_jax.config.families import FAMILIES
from electra_jax.config.groups import (
  ALLOW_LOSS_HELP,
  CACHE,
  CACHE_HELP,
  DROPOUT_SCALE_HELP,
  DTYPES,
  GENERATORS,
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
  TRAINING_DTYPE_HELP,
  MeshConfig,
  ShardingConfig,
  TrackingConfig,
)

AUTO = ('auto', 'yes', 'no')
ACTIVATIONS = ('gelu', 'gelu_tanh')
BUDGETS = ('budget_flops', 'budget_tokens', 'budget_epochs', 'budget_minutes')


@dataclasses.dataclass(frozen=True)
class ContinuedConfig(Config):
  """How the weights of config.init are used; see docs/continued.md."""

  step: str = field('last', 'Checkpoint of a run: last, best or a step.')
  generator: str = field(
    '',
    "Generator: '' for that of config.init, hf:FOLDER, scratch, or narrowed (cut from the "
    'discriminator).',
    files='read',
  )
  optimizer: str = field(
    'fresh',
    "Adam's moments: fresh, kept, or resumed (kept, and the schedule continues at its step).",
    choices=('fresh', 'kept', 'resumed'),
  )
  new_tokens: str = field(
    'refuse',
    'Embeddings of tokens that config.init lacks: refuse, mean of all, or mean of their pieces.',
    choices=('refuse', 'mean', 'pieces'),
  )
  positions: str = field(
    'refuse',
    'Rows longer than the position table (electra): refuse, interpolated or repeated.',
    choices=('refuse', 'interpolated', 'repeated'),
  )


@dataclasses.dataclass(frozen=True)
class DataConfig(Config):
  """Text, tokenizer and rows; see docs/data.md."""

  source: str = field(
    'sample',
    'Corpus: sample (bundled), files, folders, globs, gs://..., tfds:NAME; options and weights.',
    argument='source',
    files='read',
  )
  document_format: str = field(
    'blank_line', 'What separates documents in text files: blank_line, file or line.'
  )
  invalid_utf8: str = field(
    'refuse', 'Bytes that are not UTF-8: refuse the file, or replace them (counted).'
  )
  heldout_fraction: float = field(
    0.05,
    'Fraction of the documents that is held out for evaluation; 0: none, no evaluation.',
    at_least=0,
    below=1,
  )
  near_duplicates: float = field(
    0.0, 'MinHash similarity from which a later document is dropped, such as 0.8; 0: keep all.'
  )
  row_format: str = field(
    'packed', "packed (no token lost), or segment_pair (the original program's two-segment rows)."
  )
  seed: int = field(0, 'Seed of the draws of segment_pair.')
  tokenizer: str = field(
    'unigram',
    'To train: unigram, bpe, wordpiece or byte_level_bpe; or an existing file or folder, '
    'hf:org/name, or init.',
    files='read',
  )
  add_special_tokens: bool = field(
    False, 'Append [PAD], [UNK], [CLS], [SEP] and [MASK] to an existing tokenizer that lacks them.'
  )
  segmenter: str = field(
    '',
    'For scripts without spaces: function of user code that gives the words of a text; see '
    'docs/extending.md.',
  )
  tokenizer_characters: float = field(
    200e6,
    'Characters of the corpus that a tokenizer is trained on, in lines chosen by hash.',
    at_least=1e3,
  )
  new_words: str = field(
    '',
    'With tokenizer init: file of words, one per line, that become tokens (continued.new_tokens).',
    files='read',
  )
  tokenizer_options: dict[str, Any] = options('Options of a tokenizer that user code registered.')
  vocab_size: int = field(
    30522, 'Vocabulary size of a trained tokenizer, special tokens included.', argument='vocab'
  )
  normalization: str = field(
    'auto',
    'Rule of a trained tokenizer: auto, none, nfc, nfkc, nmt_nfkc, original (as in 0.1.0), or a '
    'file of rules.',
    before='original',
    files='read',
  )
  lowercase: str = field(
    'auto',
    'Lower-case text; auto: in WordPiece, or as an existing tokenizer was saved.',
    choices=AUTO,
  )
  casing: str = field(
    'unicode',
    'Rule by which text is lower-cased: unicode, or turkish (Turkish and Azeri: I to ı, İ to i).',
    choices=('unicode', 'turkish'),
  )
  strip_accents: str = field(
    'auto',
    'Strip accents of Latin, Greek and Cyrillic letters; auto: no, or as an existing tokenizer was '
    'saved.',
    choices=AUTO,
  )
  byte_fallback: str = field(
    'auto',
    'unigram, bpe: rare characters as bytes instead of [UNK]; auto: from 8,192 tokens on.',
    choices=AUTO,
  )
  allow_loss: bool = field(False, ALLOW_LOSS_HELP, resumable=True)
  store: str = field(
    '',
    'Corpus made by --mode=prepare --output=..., a folder or gs://; replaces all fields above.',
    resumable=True,
    per_phase=True,
    files='read',
  )
  weights: tuple[Any, ...] = field(
    (),
    'Weights of the sources, in their order; (): those of the source, or of the preparation.',
    per_phase=True,
  )
  mixture_temperature: float = field(
    0.0,
    'Weights in proportion to tokens ** (1 / T); 1: by size, large: equal; 0: not used.',
    at_least=0,
    per_phase=True,
  )
  cache: str = field(
    'runs/cache',
    'Folder of prepared corpora and of shards fetched from remote stores.',
    resumable=True,
    files='written',
  )
  workers: int = field(
    0,
    'Processes that prepare the corpus; 0: one per core. Does not change the rows.',
    at_least=0,
    resumable=True,
  )
  reader: str = field(
    'auto',
    'Reads batches: tf (tf.data), numpy, auto: numpy on CPU, else tf where it is installed.',
    choices=('auto', 'tf', 'numpy'),
    resumable=True,
  )


@dataclasses.dataclass(frozen=True)
class ModelConfig(Config):
  """The discriminator; electra_jax/config/families.py describes the families."""

  family: str = field(
    'electra',
    'electra as published, modern (ModernBERT), or an encoder of transformers by its model_type.',
    choices=tuple(FAMILIES),
  )
  hidden_size: int = field(256, 'Width of the layers.', at_least=1)
  embedding_size: int = field(
    128, 'Width of the embeddings; projected where it differs.', at_least=1
  )
  num_layers: int = field(12, 'Number of layers.', at_least=1)
  num_heads: int = field(4, 'Number of attention heads.', at_least=1)
  intermediate_size: int = field(1024, 'Inner width of the feed-forward layers.', at_least=1)
  max_positions: int = field(
    512,
    'Rows of the position table, the longest sequence; deberta-v2: longer distances are one.',
    at_least=1,
  )
  position_buckets: int = field(256, 'deberta-v2: buckets of distances, to each side.', at_least=2)
  type_vocab_size: int = field(2, 'Number of token types, in families that have them.', at_least=1)
  activation: str = field(
    'gelu', 'Of feed-forward layers: gelu, or gelu_tanh, its approximation.', choices=ACTIVATIONS
  )
  layer_norm_eps: float = field(1e-12, 'Added to the variance in LayerNorm.')
  initializer_range: float = field(0.02, 'Standard deviation of initial weights.')
  dropout: float = field(0.1, 'Dropout of embeddings and sublayer outputs.', at_least=0, below=1)
  attention_dropout: float = field(0.1, 'Dropout of attention probabilities.', at_least=0, below=1)
  global_every: int = field(
    3, 'modern: every n-th layer attends globally, the others locally.', at_least=1
  )
  local_window: int = field(128, 'modern: width of local attention, in tokens.', at_least=1)
  global_rope_theta: float = field(160_000.0, 'modern: rotary base of global layers.')
  local_rope_theta: float = field(10_000.0, 'modern: rotary base of local layers.')
  vocab_multiple: int = field(
    128, 'The embedding table is padded to a multiple of this many rows.', at_least=1
  )
  remat: str = field('auto', REMAT_HELP, choices=REMAT, before='none')
  scan_unroll: int = field(
    0,
    'Layers per iteration of the scan; 0: all on CPU (faster), 1 elsewhere (compiles faster).',
    at_least=0,
  )
  attention: str = field('auto', KERNEL_HELP, choices=KERNELS)
  dropout_generator: str = field(
    'counter',
    'Random bits of dropout: counter (also in kernels), hash (as in version 0.1.0) or threefry.',
    choices=GENERATORS,
    before='hash',
  )
  dropout_scale: str = field('float32', DROPOUT_SCALE_HELP, choices=SCALES, before='dtype')
  residual: str = field('auto', RESIDUAL_HELP, choices=RESIDUALS, before='dtype')


@dataclasses.dataclass(frozen=True)
class GeneratorConfig(Config):
  """The generator, relative to the discriminator."""

  hidden_fraction: float = field(
    0.25, "Fraction of the discriminator's width, feed-forward width and heads."
  )
  layers_fraction: float = field(1.0, "Fraction of the discriminator's number of layers.")
  num_heads: int = field(0, 'Number of heads; 0: in proportion to the width.', at_least=0)
  intermediate_size: int = field(
    0, 'Feed-forward width; 0: in proportion to the width.', at_least=0
  )
  embedding_size: int = field(
    0, "sharing=none: width of the generator's embeddings; 0: the discriminator's.", at_least=0
  )
  uniform: bool = field(False, 'No generator: every token of the vocabulary is equally likely.')
  init: str = field(
    '',
    'sharing=none or disentangled: initial weights beside a fresh discriminator: '
    'hf:FOLDER, tf:CHECKPOINT or a run.',
    files='read',
  )
  frozen: bool = field(
    False, 'Keep the weights of generator.init or config.init unchanged; forward pass only.'
  )
  alone_steps: int = field(
    0, 'First steps of config.steps that train only the generator, so that it can catch up.'
  )


@dataclasses.dataclass(frozen=True)
class SchedulesConfig(Config):
  """Settings that change over training.

  ('linear', from, to), ('exponential', from, to, decay), ('points', (step, value), ...), or () for
  a constant.
  """

  temperature: tuple[Any, ...] = field((), 'Schedule of objective.temperature.')
  mask_rate: tuple[Any, ...] = field((), 'Schedule of objective.mask_rate.')
  discriminator_weight: tuple[Any, ...] = field((), 'Schedule of objective.discriminator_weight.')


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Config):
  """The pretraining objective; see docs/objectives.md."""

  name: str = field(
    'electra',
    'The objective.',
    choices=registry.OBJECTIVES,
    argument='objective',
  )
  masking: str = field(
    'uniform',
    'Units that are masked: uniform (single tokens), words (whole), spans (of whole words).',
    choices=('uniform', 'words', 'spans'),
  )
  span_p: float = field(
    0.2, 'spans: the length in words is geometric with this parameter.', above=0, at_most=1
  )
  span_max: int = field(10, 'spans: the longest, in words.', at_least=1)
  mask_rate: float = field(
    0.15, 'Fraction of the tokens that is masked.', above=0, below=1, per_phase=True
  )
  mask_share: float = field(
    0.85,
    'Fraction of the masked units shown as [MASK]; the rest keep their tokens.',
    at_least=0,
    at_most=1,
  )
  temperature: float = field(
    1.0, "Temperature of the generator's softmax when sampling; 0: most likely token.", at_least=0
  )
  disallow_correct: bool = field(False, 'Never sample the original token.')
  generator_weight: float = field(1.0, "Weight of the generator's loss.", at_least=0)
  discriminator_weight: float = field(50.0, "Weight of the discriminator's loss.", at_least=0)
  prediction_weight: float = field(
    1.0, "replace_mlm, all_tokens_mlm: weight of the main tower's loss.", at_least=0
  )
  google: bool = field(
    False, "The original program's behavior: masks drawn with replacement, and its counts."
  )
  schedules: SchedulesConfig = group(SchedulesConfig, 'Settings that change over training.')
  options: dict[str, Any] = options('Options of an objective that user code registered.')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Config):
  """The optimizer and the learning rate's schedule."""

  name: str = field(
    'adamw',
    'adamw, or lamb (for batches of tens of thousands of rows).',
    choices=registry.OPTIMIZERS,
  )
  learning_rate: float = field(
    5e-4,
    'Peak learning rate, after warm-up; decays to 0 at the last step.',
    above=0,
    per_phase=True,
    argument='lr',
  )
  generator_learning_rate: float = field(
    0.0,
    "Above 0: rate of the generator's own parameters, clipped by their own norm.",
    at_least=0,
    per_phase=True,
  )
  decay_power: float = field(1.0, 'Power of the decay: 1 linear, 0.5 square root.', above=0)
  decay_after_warmup: bool = field(
    False, 'Start the decay after the warm-up; as published it runs over all steps.'
  )
  warmup_steps: int = field(10_000, 'Steps of linear warm-up.', per_phase=True, argument='warmup')
  warmup_fraction: float = field(
    0.0,
    'Replaces warmup_steps: fraction of the steps of the run or phase; 0: not used.',
    at_least=0,
    below=1,
  )
  b1: float = field(0.9, "Adam's decay of the first moment.", at_least=0, below=1)
  b2: float = field(0.999, "Adam's decay of the second moment.", at_least=0, below=1)
  eps: float = field(1e-6, "Adam's epsilon, added outside the square root.")
  weight_decay: float = field(0.01, 'Decoupled weight decay; not applied to biases and norms.')
  clip: float = field(1.0, 'Largest global norm of the gradients; 0: no clipping.')
  bias_correction: bool = field(False, "Adam's bias correction; False as published.")
  update_counts: str = field(
    'separate',
    'What bias_correction counts: updates of each part of the model (separate), or of the run '
    '(shared, as in 0.1.0).',
    choices=('separate', 'shared'),
    before='shared',
  )
  options: dict[str, Any] = options('Options of an optimizer that user code registered.')


@dataclasses.dataclass(frozen=True)
class PretrainingConfig(Config):
  """A pretraining run."""

  name: str = field('run', 'Names the default workdir, runs/<name>.', one_line=True)
  seed: int = field(0, 'Seed of parameters, batches, masks, samples and dropout.', argument='seed')
  init: str = field(
    '',
    "Initial weights: hf:FOLDER, hf:org/name, tf:CHECKPOINT or a run's folder; '': random. "
    'Decides the sizes.',
    files='read',
  )
  continued: ContinuedConfig = group(ContinuedConfig, 'With config.init: how its weights are used.')
  data: DataConfig = group(DataConfig, 'Text, tokenizer and rows.')
  sequence_length: int = field(128, 'Tokens per row.', at_least=8, per_phase=True, argument='seq')
  batch_size: int = field(
    128, 'Rows per step, over all devices.', at_least=1, per_phase=True, argument='batch'
  )
  steps: int = field(
    1_000_000,
    'Updates of the run; the schedule ends there.',
    at_least=1,
    per_phase=True,
    argument='steps',
  )
  budget_flops: float = field(
    0.0, 'Replaces steps: as many as this many FLOPs pay for; 0: not used.', at_least=0
  )
  budget_convention: str = field(
    'model',
    'FLOPs of budget_flops: model (6 N per token, and attention) or paper (the published script).',
    choices=('model', 'paper'),
  )
  budget_tokens: float = field(
    0.0, 'Replaces steps: as many as make this many tokens; 0: not used.', at_least=0
  )
  budget_epochs: float = field(
    0.0,
    'Replaces steps: as many as pass this many times over the rows of the corpus; 0: not used.',
    at_least=0,
  )
  budget_minutes: float = field(
    0.0,
    'Replaces steps: as many as these devices make in this time, timed at the start.',
    at_least=0,
  )
  phases: tuple[Any, ...] = field(
    (), 'Consecutive parts of the run, each a dict of its steps and the fields that change.'
  )
  model: ModelConfig = group(ModelConfig, 'The discriminator.')
  generator: GeneratorConfig = group(GeneratorConfig, 'The generator.')
  sharing: str = field(
    'embeddings',
    'What the towers share: embeddings, none, all (one tower), or disentangled (GDES).',
    choices=registry.SHARING_SCHEMES,
    argument='sharing',
  )
  objective: ObjectiveConfig = group(ObjectiveConfig, 'The pretraining objective.')
  optimizer: OptimizerConfig = group(OptimizerConfig, 'The optimizer and the schedule of its rate.')
  mesh: MeshConfig = group(MeshConfig, 'The devices as a grid: devices per axis.', resumable=True)
  sharding: ShardingConfig = group(
    ShardingConfig, 'Mesh axes that split each axis of the parameters.', resumable=True
  )
  dtype: str = field('auto', TRAINING_DTYPE_HELP, choices=DTYPES, argument='dtype')
  precision: str = field('float32', PRECISION_HELP, choices=PRECISIONS, before='bfloat16')
  micro_batches: int = field(
    0,
    'Parts that the rows of a device are split into; 0: as many as its memory requires.',
    at_least=0,
    per_phase=True,
  )
  skip_nonfinite: bool = field(False, SKIP_HELP, resumable=True)
  peak_flops: float = field(
    0.0,
    'FLOP/s of one device, which utilization refers to; 0: as its maker states for dense bfloat16.',
    at_least=0,
    resumable=True,
  )
  log_every: int = field(100, 'Steps between lines of training metrics.', at_least=1)
  eval_every: int = field(5_000, 'Steps between evaluations on held-out rows.', at_least=1)
  eval_rows: int = field(
    2_048, 'Held-out rows in each of those, at most; the final evaluation takes all.', at_least=1
  )
  eval_batch_size: int = field(64, 'Rows per evaluation step.', at_least=1)
  save_every: int = field(5_000, 'Steps between checkpoints.', at_least=1)
  keep: int = field(
    2,
    'Number of latest checkpoints kept, besides the best (best_by).',
    at_least=1,
    resumable=True,
  )
  best_by: str = field(
    'objective',
    'Chooses the best checkpoint: objective (docs/pretraining.md), or the held-out total_loss.',
    choices=('objective', 'total_loss'),
    before='total_loss',
  )
  best_phases: str = field(
    'last',
    'Phases whose checkpoints can be the best: last, or all that train the discriminator.',
    choices=('last', 'all'),
    before='all',
  )
  logit_bins: str = field(
    'nonlinear',
    'Bins of logits for auc and ap: nonlinear (dense around 0), or uniform (version 0.1.0).',
    choices=('nonlinear', 'uniform'),
    before='uniform',
  )
  profile_steps: tuple[Any, ...] = field(
    (0, 0),
    'First and last step of a profiler trace in WORKDIR/profile; (0, 0): none.',
    resumable=True,
  )
  compilation_cache: str = field(CACHE, CACHE_HELP, resumable=True, files='written')
  trackers: tuple[str, ...] = field(
    ('tensorboard',), TRACKERS_HELP, choices=registry.TRACKERS, resumable=True
  )
  tracking: TrackingConfig = group(TrackingConfig, TRACKING_HELP, resumable=True)

  @property
  def specs(self) -> dict[str, tuple[str, ...]]:
    """Kind -> names of the specs that the config uses, as `registry.from_user_code` takes them."""
    return {
      'objective': (self.objective.name,),
      'sharing scheme': (self.sharing,),
      'optimizer': (self.optimizer.name,),
      'tokenizer': (self.data.tokenizer,),
      'segmenter': (self.data.segmenter,),
      # A source may choose its format by the names of its files, so each may be in use.
      'corpus format': tuple(registry.CORPUS_FORMATS),
    }


def default_config() -> ConfigDict:
  """The ConfigDict of all pretraining fields with their defaults, for a config file to change."""
  return declarations.config_dict(PretrainingConfig)


def with_arguments(config: ConfigDict, arguments: str | None) -> ConfigDict:
  """The ConfigDict with the arguments after the colon of `--config=FILE:name=value,...` applied.

  Raises:
    UserError: for an unknown name, or a value of another type.
  """
  return declarations.with_arguments(config, arguments, PretrainingConfig)

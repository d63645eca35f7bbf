"""Fields that pretraining and fine-tuning share: the mesh, and the parameters on it."""

import dataclasses

from electra_jax.config.declarations import Config, field

DTYPES = ('auto', 'float32', 'bfloat16')
KERNELS = ('auto', 'xla', 'pallas', 'splash', 'cudnn')
GENERATORS = ('counter', 'hash', 'threefry')
SCALES = ('float32', 'dtype')
RESIDUALS = ('auto', 'float32', 'dtype')
REMAT = ('auto', 'none', 'dots', 'full')
PRECISIONS = ('float32', 'tensorfloat32', 'bfloat16')
CACHE = '~/.cache/electra_jax/xla'

DTYPE_HELP = 'Type of matrix products; auto: bfloat16 on TPU and GPU, float32 on CPU.'
TRAINING_DTYPE_HELP = (
  'Type of matrix products; auto: bfloat16 on TPU, GPU and CPUs with AVX512-BF16 or AMX, '
  'float32 on other CPUs.'
)
PRECISION_HELP = (
  'Arithmetic of float32 products: float32, tensorfloat32 (TPU: three passes), bfloat16 (one; '
  'GPU: TF32).'
)
CACHE_HELP = "Folder of compiled programs, reused by later runs; '': none."
SKIP_HELP = (
  'Skip updates whose loss or gradient is not finite (at most 1%, and 19 in a row), instead of '
  'stopping.'
)
REMAT_HELP = (
  'What the backward pass recomputes: none, dots (all but products), full; auto: dots on TPU and '
  'in loops on CPU.'
)
DROPOUT_SCALE_HELP = (
  "Type of dropout's factor 1 / (1 - rate): float32, or dtype as in version 0.1.0 (in bfloat16 the "
  'mean is up to 0.2% off).'
)
RESIDUAL_HELP = (
  'Type of what is added up from layer to layer: float32, or dtype; auto: float32 on CPU and in '
  'the modern family.'
)
ALLOW_LOSS_HELP = (
  'Continue where a tokenizer loses 20% or more of the characters of a text, as [UNK] or removed.'
)
KERNEL_HELP = (
  'Attention kernel: xla, pallas or splash (TPU), cudnn (GPU) or auto; xla and pallas have dropout.'
)


TRACKERS_HELP = (
  'Where metrics go besides metrics.jsonl: a tuple of tensorboard, wandb, mlflow; (): nowhere.'
)
TRACKING_HELP = 'What trackers learn of the run; see docs/monitoring.md.'


@dataclasses.dataclass(frozen=True)
class TrackingConfig(Config):
  """What trackers learn of a run."""

  project: str = field(
    'electra_jax', 'Name for runs that are compared: project of wandb, experiment of mlflow.'
  )
  run_name: str = field('', "Name of the run; '': config.name. Trials add their task and number.")
  send_paths: bool = field(
    False,
    'Send all fields of the config, paths included; else numbers and names of closed lists.',
  )


@dataclasses.dataclass(frozen=True)
class MeshConfig(Config):
  """The devices as a grid."""

  data: int = field(-1, 'Devices that split rows and the optimizer state; -1: all remaining.')
  fsdp: int = field(1, 'Devices that split rows and parameters.')
  tensor: int = field(1, 'Devices that split heads, feed-forward layers and the vocabulary.')
  slices: int = field(
    0,
    'TPU slices joined by a slower network, spanned by data; 0: as the devices report.',
    at_least=0,
  )


@dataclasses.dataclass(frozen=True)
class ShardingConfig(Config):
  """Mesh axes that split each logical axis of the parameters: fsdp, tensor, 'fsdp,tensor' or ''."""

  vocab: str = field('tensor', 'Rows of the embedding table.')
  heads: str = field('tensor', 'Queries, keys and values.')
  mlp: str = field('tensor', 'Inner width of the feed-forward layers.')
  embed: str = field('fsdp', 'Width of embeddings and layers.')
  embed_out: str = field('', 'The other side of square projections.')
  positions: str = field('', 'Rows of the position table.')
  optimizer: str = field(
    'data', "Axis that also splits the optimizer state (ZeRO-1): data, or '' for none."
  )
  smallest: int = field(
    65_536, 'Tensors of fewer elements are kept whole on each device.', at_least=0
  )

"""Fields that pretraining and fine-tuning share: the mesh, and the parameters on it."""

import dataclasses

from electra_jax.config.declarations import Config, field

DTYPES = ('auto', 'float32', 'bfloat16')
KERNELS = ('auto', 'xla', 'splash', 'cudnn')
REMAT = ('none', 'dots', 'full')
CACHE = '~/.cache/electra_jax/xla'

DTYPE_HELP = 'Type of matrix products; auto: bfloat16 on TPU and GPU, float32 on CPU.'
CACHE_HELP = "Folder of compiled programs, reused by later runs; '': none."
SKIP_HELP = 'Skip steps whose loss or gradient is not finite, instead of stopping.'
REMAT_HELP = 'What the backward pass recomputes: none, dots (all but matrix products) or full.'
KERNEL_HELP = 'Attention kernel: xla, splash (TPU), cudnn (GPU) or auto; only xla has dropout.'


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

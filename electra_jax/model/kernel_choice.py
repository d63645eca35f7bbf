"""What each attention kernel supports, and the choice of the kernel of a run."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from electra_jax.config.declarations import one_of
from electra_jax.config.groups import GENERATORS, SCALES
from electra_jax.model.dropout import DropoutSettings

LANES = 128  # of a TPU: splash takes lengths that are multiples of it
# Sizes that model/pallas_attention.py takes: whole rows in one step up to the first length.
PALLAS_WHOLE_ROWS = 512
PALLAS_LONGEST = 1024
PALLAS_LARGEST_HEAD = 128


class Limitation(NamedTuple):
  """Why a kernel cannot be used.

  Attributes:
    reason: a verb and its object; the subject is the kernel.
    remedy: what to set so that it can be used; '' for nothing.
  """

  reason: str
  remedy: str = ''


@dataclasses.dataclass(frozen=True)
class Request:
  """What the choice of the kernel depends on.

  Attributes:
    platform: of the devices: 'cpu', 'gpu' or 'tpu'.
    length: of the rows.
    head_size: of both towers.
    attention_dropout: the rate.
    dtype: of the products.
    dropout: random bits and scale of dropout.
    compute_capability: of the GPU, as JAX's devices have it ('8.0'); None if unknown.
  """

  platform: str
  length: int
  head_size: int
  attention_dropout: float
  dtype: DTypeLike
  dropout: DropoutSettings = DropoutSettings()
  compute_capability: str | None = None


def _pallas_lengths(length: int) -> Limitation | None:
  multiple = 8 if length <= PALLAS_WHOLE_ROWS else LANES
  if length > PALLAS_LONGEST:
    return Limitation(
      f'takes rows of up to {PALLAS_LONGEST} positions, not {length}', 'a shorter sequence_length'
    )
  return _multiples(length, multiple)


def _splash_lengths(length: int) -> Limitation | None:
  return _multiples(length, LANES)


def _multiples(length: int, multiple: int) -> Limitation | None:
  if length % multiple:
    return Limitation(
      f'takes multiples of {multiple} positions, not {length}',
      f'sequence_length to a multiple of {multiple}',
    )
  return None


def _pallas_limitation(request: Request) -> Limitation | None:
  if request.head_size % 8 or request.head_size > PALLAS_LARGEST_HEAD:
    return Limitation(
      f'takes head sizes up to {PALLAS_LARGEST_HEAD} that are multiples of 8, '
      f'not {request.head_size}',
      'hidden_size or num_heads',
    )
  return None


def _cudnn_lengths(length: int) -> Limitation | None:
  if length % 2:
    return Limitation(f'takes even lengths, not {length}', 'sequence_length to an even number')
  return None


def _cudnn_limitation(request: Request) -> Limitation | None:
  """The limits of jax.nn.dot_product_attention with a mask, on the oldest GPUs it supports."""
  dtype, head_size = jnp.dtype(request.dtype), request.head_size
  if dtype not in (jnp.bfloat16, jnp.float16):
    return Limitation(f'takes bfloat16 and float16, not {dtype}', 'dtype to bfloat16')
  if head_size % 8 or head_size > 128:
    return Limitation(
      f'takes head sizes up to 128 that are multiples of 8, not {head_size}',
      'hidden_size or num_heads',
    )
  capability = request.compute_capability
  if capability is not None and not _at_least(capability, 8):
    return Limitation(f'requires a GPU of compute capability 8.0 or more, not {capability}')
  return None


def _at_least(compute_capability: str, major: int) -> bool:
  """Whether a capability such as '8.0' is large enough; those of AMD ('gfx90a') are not numbers."""
  number = compute_capability.partition('.')[0]
  return number.isdigit() and int(number) >= major


class Kernel(NamedTuple):
  """What an attention kernel supports.

  Attributes:
    lengths: why it does not take rows of a length, or None.
    sizes: why it does not take other sizes or types of a request, or None.
    platform: the only one that it runs on; '' for any.
    generators: of random bits that its dropout has, the best one first; () if it has no dropout.
    scales: of dropout.
    general: whether it supports one direction and relative positions.
    shortest: rows that `auto` uses it for.
    shortest_with_dropout: the same where there is attention dropout.
  """

  lengths: Callable[[int], Limitation | None] = lambda length: None
  sizes: Callable[[Request], Limitation | None] = lambda request: None
  platform: str = ''
  generators: tuple[str, ...] = ()
  scales: tuple[str, ...] = ('float32',)
  general: bool = False
  shortest: int = 0
  shortest_with_dropout: int = 0


KERNELS = {
  'xla': Kernel(generators=GENERATORS, scales=SCALES, general=True),
  'pallas': Kernel(
    _pallas_lengths,
    _pallas_limitation,
    platform='tpu',
    generators=('counter',),
    # By the models of time and memory of docs/tpu.md, not measured on a chip.
    shortest=512,
    shortest_with_dropout=128,
  ),
  'splash': Kernel(_splash_lengths, platform='tpu', shortest=512),
  'cudnn': Kernel(_cudnn_lengths, _cudnn_limitation, platform='gpu'),
}


def dropout_limitation(kernel: str, rate: float, dropout: DropoutSettings) -> Limitation | None:
  """Why a kernel does not have the dropout of a config; None where it has it.

  Args:
    kernel: a key of KERNELS.
    rate: of dropout of attention probabilities.
    dropout: random bits and scale.
  """
  supported = KERNELS[kernel]
  if not rate:
    return None
  if not supported.generators:
    return Limitation('has no attention dropout', 'attention_dropout to 0')
  for name, value, values in (
    ('dropout_generator', dropout.generator, supported.generators),
    ('dropout_scale', dropout.scale, supported.scales),
  ):
    if value not in values:
      return Limitation(
        f'does not support {name} {value!r} for attention dropout', f'{name} to {values[0]!r}'
      )
  return None


def limitation(kernel: str, request: Request) -> Limitation | None:
  """Why a kernel cannot be used; None where it can."""
  limits = KERNELS[kernel]
  if limits.platform not in ('', request.platform):
    return Limitation(f'runs on {limits.platform.upper()}, not on {request.platform.upper()}')
  found = dropout_limitation(kernel, request.attention_dropout, request.dropout)
  return found or limits.lengths(request.length) or limits.sizes(request)


def require_dropout(kernel: str, rate: float, dropout: DropoutSettings) -> None:
  """Raises ValueError if a kernel does not have the dropout of a config."""
  if found := dropout_limitation(kernel, rate, dropout):
    raise ValueError(
      f'attention {kernel!r} {found.reason}; set {found.remedy} or attention to xla.'
    )


def _candidate(request: Request) -> str:
  """The kernel that `auto` uses if nothing is in its way."""
  if request.platform != 'tpu':
    return {'gpu': 'cudnn'}.get(request.platform, 'xla')
  if limitation('pallas', request) and not limitation('splash', request):
    return 'splash'
  return 'pallas'


def choose_attention(wanted: str, request: Request) -> tuple[str, str]:
  """Chooses the attention kernel of a run.

  `auto` is XLA's attention on a CPU. On a TPU it is our own kernel in Pallas, with dropout from
  rows of 128 tokens on, without from 512; where that does not take the sizes, as rows of more than
  1,024 tokens, it is splash, which has no dropout. On a GPU it is cuDNN without dropout and with
  16-bit products, whose dense mask takes 2 * batch * length**2 bytes (see kernels.cudnn) where
  XLA's probabilities take as much per head.

  Args:
    wanted: 'auto', 'xla', 'pallas', 'splash' or 'cudnn'.
    request: what it depends on.

  Returns:
    The kernel and, in a few words, why.

  Raises:
    ValueError: the wanted kernel is not available here.
  """
  if wanted not in ('auto', *KERNELS):
    raise ValueError(f'attention is {wanted!r}; expected {one_of(("auto", *KERNELS))}.')
  kernel = _candidate(request) if wanted == 'auto' else wanted
  if kernel == 'xla':
    only = f'the only one on {request.platform.upper()}'
    return kernel, 'as configured' if wanted == kernel else only
  found = limitation(kernel, request)
  if wanted != 'auto':
    if found:
      remedies = ' or '.join(filter(None, [found.remedy, 'attention to auto']))
      raise ValueError(f'attention {kernel!r} {found.reason}; set {remedies}.')
    return kernel, 'as configured'
  if found:
    remedy = f'; set {found.remedy} to use it' if found.remedy else ''
    return 'xla', f'{kernel} {found.reason}{remedy}'
  limits = KERNELS[kernel]
  least = limits.shortest_with_dropout if request.attention_dropout else limits.shortest
  if request.length < least:
    return 'xla', f'rows of {request.length} are short; {kernel} is used from {least} on'
  return kernel, _reason(kernel, request)


def _reason(kernel: str, request: Request) -> str:
  if request.attention_dropout:
    return 'it has attention dropout'
  if kernel == 'pallas':
    return 'it never stores the scores'
  return 'attention_dropout is 0' + ('; segments are a dense mask' if kernel == 'cudnn' else '')

"""Attention behind one function."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from electra_jax.model import kernels
from electra_jax.model.config import KERNELS
from electra_jax.model.dropout import dropout

# From here on `auto` takes splash. By memory, not by time, which no chip has measured: compiled for a v5e, forward and backward
# of a base encoder on 8,192 tokens hold 29 % less with splash in rows of 512, 12 % less in rows of 256, 1 % less in rows of 128.
SPLASH_FROM_LENGTH = 512


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segment_ids: jax.Array,
  is_global: jax.Array | bool | None = None,
  *,
  reach: int,
  kernel: str,
  dropout_rate: float,
  dropout_keys: jax.Array | None,
  dropout_site: int,
  dropout_generator: str,
  direction: str = 'both',
) -> jax.Array:
  """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1) inside segments.

  A position attends to the positions of its own segment, so packed documents do not see each other and no real token sees
  padding (segment 0). Softmax and its input are float32, the products are in the inputs' type.

  Args:
    query, key, value: [batch, length, heads, head_size].
    segment_ids: [batch, length], 0 at padding.
    is_global: None for all positions, or a boolean (may be traced): where it is false, only positions at most `reach` apart
      see each other.
    reach: positions that a local layer sees to either side, a Python integer.
    kernel: 'xla', 'splash' or 'cudnn', what choose_attention returned.
    dropout_rate, dropout_keys, dropout_site, dropout_generator: dropout of the probabilities, see model/dropout.py.
    direction: which side of itself a position sees: 'both', 'left' or 'right'; itself always. One side alone takes kernel 'xla'.

  Returns: [batch, length, heads, head_size].

  Raises ValueError where `kernel` cannot do what is asked.
  """
  if kernel != 'xla' and dropout_rate:
    raise ValueError(
      f'attention {kernel!r} has no dropout of its probabilities; the rate is {dropout_rate}, not 0.'
    )
  if kernel != 'xla' and direction != 'both':
    raise ValueError(f'attention {kernel!r} sees both sides; to the {direction} alone takes xla.')
  # Scaling the query and not the scores saves a quarter of attention's time on a CPU.
  query = (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)
  if kernel == 'splash':
    return kernels.splash(query, key, value, segment_ids, is_global, reach)
  visible = visible_positions(segment_ids, is_global, reach, direction)
  if kernel == 'cudnn':
    return kernels.cudnn(query, key, value, visible)
  scores = jnp.einsum('bqnd,bknd->bnqk', query, key, preferred_element_type=jnp.float32)
  probabilities = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(jnp.float32).min), axis=-1)
  probabilities = dropout(
    probabilities.astype(value.dtype), dropout_rate, dropout_keys, dropout_site, dropout_generator
  )
  return jnp.einsum('bnqk,bknd->bqnd', probabilities, value)


def visible_positions(
  segment_ids: jax.Array, is_global: jax.Array | bool | None, reach: int, direction: str = 'both'
) -> jax.Array:
  """Who attends to whom, boolean [batch, 1, length, length] with the query's position before the key's. Arguments as of attention."""
  length = segment_ids.shape[1]
  visible = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
  ahead = (
    jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
  )  # of the query, where the key is
  if is_global is not None:
    visible &= is_global | (jnp.abs(ahead) <= reach)
  if direction != 'both':
    visible &= ahead <= 0 if direction == 'left' else ahead >= 0
  return visible


def choose_attention(
  wanted: str,
  *,
  platform: str,
  length: int,
  head_size: int,
  attention_dropout: float,
  dtype: DTypeLike,
  compute_capability: str | None = None,
) -> tuple[str, str]:
  """The kernel of a run, and why, in a few words.

  `auto` takes XLA's attention wherever attention_dropout is not 0, since neither of the others has it. Without it: on a CPU
  XLA's, on a TPU splash from a length of 512 (by memory, not measured on a chip), on a GPU cuDNN in 16 bits, whose dense mask
  costs 2 * batch * length**2 bytes (see kernels.cudnn) where XLA's probabilities cost as much for every head.

  Args:
    wanted: 'auto', 'xla', 'splash' or 'cudnn'.
    platform: of the devices, 'cpu', 'gpu' or 'tpu'.
    length: of the rows.
    head_size: of both towers.
    attention_dropout: the rate.
    dtype: of the products.
    compute_capability: of the GPU, as JAX's devices give it ('8.0'), if known.

  Raises ValueError, in one sentence, where the wanted kernel cannot be had.
  """
  if wanted not in ('auto', *KERNELS):
    raise ValueError(f'attention is {wanted!r}; it is one of auto, {", ".join(KERNELS)}.')
  if wanted == 'xla':
    return 'xla', 'as configured'
  kernel = {'tpu': 'splash', 'gpu': 'cudnn'}.get(platform, 'xla') if wanted == 'auto' else wanted
  if kernel == 'xla':
    return 'xla', f'the only one on {platform.upper()}'
  obstacle, remedy = _obstacle(
    kernel, platform, length, head_size, attention_dropout, jnp.dtype(dtype), compute_capability
  )
  if wanted != 'auto':
    if obstacle:
      raise ValueError(
        f'attention {kernel!r} {obstacle}; set {remedy + " or " if remedy else ""}attention to auto.'
      )
    return kernel, 'as configured'
  if obstacle:
    return 'xla', f'{kernel} {obstacle}' + (f'; set {remedy} to have it' if remedy else '')
  if kernel == 'splash' and length < SPLASH_FROM_LENGTH:
    return 'xla', f'rows of {length} are short, splash is taken from {SPLASH_FROM_LENGTH} on'
  return kernel, 'attention_dropout is 0' + (
    '; segments are a dense mask' if kernel == 'cudnn' else ''
  )


def _obstacle(
  kernel: str,
  platform: str,
  length: int,
  head_size: int,
  attention_dropout: float,
  dtype: np.dtype[Any],
  compute_capability: str | None,
) -> tuple[str | None, str | None]:
  """What keeps a fast kernel from being used, or None, and what to set instead, if anything would do."""
  home = {'splash': 'tpu', 'cudnn': 'gpu'}[kernel]
  if platform != home:
    return f'runs on {home.upper()}, not on {platform.upper()}', None
  if attention_dropout:
    return 'has no attention dropout', 'attention_dropout to 0'
  if kernel == 'splash':
    if length % kernels.LANES:
      return (
        f'takes multiples of {kernels.LANES} positions, not {length}',
        f'sequence_length to a multiple of {kernels.LANES}',
      )
    return None, None
  # The limits of jax.nn.dot_product_attention's implementation, with a mask and on the oldest GPUs that it serves.
  if dtype not in (jnp.bfloat16, jnp.float16):
    return f'takes bfloat16 and float16, not {dtype}', 'dtype to bfloat16'
  if head_size % 8 or head_size > 128:
    return f'takes heads of up to 128 in steps of 8, not {head_size}', 'hidden_size or num_heads'
  if length % 2:
    return f'takes even lengths, not {length}', 'sequence_length to an even number'
  if compute_capability is not None and not _at_least(compute_capability, 8):
    return f'runs on NVIDIA GPUs of compute capability 8.0 on, not {compute_capability}', None
  return None, None


def _at_least(compute_capability: str, major: int) -> bool:
  """AMD's are no numbers ('gfx90a')."""
  number = compute_capability.partition('.')[0]
  return number.isdigit() and int(number) >= major


def rotary_tables(
  positions: jax.Array, head_size: int, theta: float
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of rotary positions (Su et al. 2021, section 3.2.2), float32 [batch, length, 1, head_size / 2]."""
  frequencies = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
  angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates x [batch, length, heads, head_size] by its positions: element i of the first half pairs with i of the second."""
  cos, sin = tables
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(
    x.dtype
  )

"""Memory of a compiled step, memory of a device, and the number of micro-batches that follows."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from electra_jax.errors import UserError
from electra_jax.model.config import EncoderConfig

SHARE = 0.95  # of an accelerator's memory that a step may take
_CPU_SHARE = 0.8  # of the free memory of the machine


def available() -> int:
  """Returns the bytes that one device can give to a step.

  On an accelerator, SHARE of its limit. On a CPU, 80% of the free memory, divided among its
  devices.
  """
  device = jax.local_devices()[0]
  stats = device.memory_stats() if device.platform != 'cpu' else None
  if stats and 'bytes_limit' in stats:
    return int(SHARE * stats['bytes_limit'])
  return int(_CPU_SHARE * _free_on_this_machine() / jax.local_device_count())


def _free_on_this_machine() -> int:
  """Returns the bytes that this process can still take; 8 GiB where that is unknown."""
  free = [8 << 30]
  try:
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
    meminfo = dict(line.split(':') for line in lines)
    free = [int(meminfo['MemAvailable'].split()[0]) << 10]
    limit = pathlib.Path('/sys/fs/cgroup/memory.max').read_text().strip()
    if limit != 'max':
      used = int(pathlib.Path('/sys/fs/cgroup/memory.current').read_text())
      free.append(int(limit) - used)
  except (OSError, KeyError, ValueError):
    pass  # not Linux, or no control group: what was found so far is used
  return min(free)


def peak_bytes(compiled: jax.stages.Compiled) -> int:
  """Returns the bytes per device that a compiled step takes at its peak.

  These are its arguments, results that do not reuse the memory of arguments, and temporaries.
  """
  m: Any = compiled.memory_analysis()
  # Elsewhere than on TPU the peak is unknown. The sum of all temporaries, which is used instead,
  # counts temporaries twice that are not alive at the same time.
  if m.peak_memory_in_bytes and _is_tpu(compiled):
    return max(int(m.peak_memory_in_bytes), int(m.argument_size_in_bytes))
  results = m.output_size_in_bytes - m.alias_size_in_bytes
  return int(m.argument_size_in_bytes + results + m.temp_size_in_bytes)


def _is_tpu(compiled: jax.stages.Compiled) -> bool:
  shardings = jax.tree.leaves(compiled.input_shardings)
  return any(device.platform == 'tpu' for s in shardings for device in s.device_set)


def choose_micro_batches(
  compile_step: Callable[[int], jax.stages.Compiled], rows: int, budget: int, first_guess: int = 1
) -> tuple[int, jax.stages.Compiled, int]:
  """Finds the fewest micro-batches whose compiled step fits.

  Args:
    compile_step: number of micro-batches to the compiled step. The compiler for TPU refuses one
      that does not fit (RESOURCE_EXHAUSTED).
    rows: rows per device.
    budget: bytes per device.
    first_guess: the number to start with, which saves compiling steps that cannot fit.

  Returns:
    The number of micro-batches, the compiled step, and its bytes per device.

  Raises:
    UserError: not even one row at a time fits.
  """
  divisors = [k for k in range(1, rows + 1) if rows % k == 0]
  k = min((k for k in divisors if k >= first_guess), default=rows)
  while True:
    try:
      compiled = compile_step(k)
      needed = peak_bytes(compiled)
      if needed <= budget:
        return k, compiled, needed
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      needed = 2 * budget  # the message has no reliable number
    if k == rows:
      raise UserError(
        f'one row at a time requires {needed / 1e9:.1f} GB per device, and {budget / 1e9:.1f} GB '
        'are free; choose a smaller model, shorter rows (:seq=128), --config.model.remat=full, or '
        'split the parameters: --config.mesh.fsdp=-1 --config.mesh.data=1.'
      )
    k = min((d for d in divisors if d >= k * min(8, max(2, needed // budget))), default=rows)


def activation_bytes(config: EncoderConfig, length: int) -> int:
  """Estimates the bytes per row that are kept for the backward pass.

  choose_micro_batches starts near the estimate.

  Args:
    config: of an encoder.
    length: tokens per row.
  """
  size = jnp.dtype(config.dtype).itemsize
  hidden = config.hidden_size
  residual = jnp.dtype(config.residual_dtype).itemsize
  if config.remat == 'full':
    return config.num_layers * length * hidden * residual
  if config.remat == 'dots':  # the six or seven dense layers, and the output of attention
    inner = (2 if config.gated_feed_forward else 1) * config.intermediate_size
    return config.num_layers * length * ((6 * hidden + inner) * size + hidden * residual)
  per_token = (12 * hidden + 4 * config.intermediate_size) * size + 2 * hidden * residual
  attention = config.num_heads * length**2 * (2 * size + 5)
  if config.traits.relative:  # scores with all distances, before they are shifted
    attention += config.num_heads * length * 2 * (2 * length) * 4
  return config.num_layers * (length * per_token + attention)

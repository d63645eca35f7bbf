"""How much memory a compiled step takes, how much there is, and how many micro-batches that makes."""

import pathlib

import jax

from electra_jax.errors import UserError

SHARE = 0.95  # of an accelerator's memory that a step may take


def available() -> int:
  """Bytes that one device can give to a step: SHARE of an accelerator's limit; on a CPU 80% of what is free, shared by its devices."""
  device = jax.local_devices()[0]
  stats = device.memory_stats() if device.platform != 'cpu' else None
  if stats and 'bytes_limit' in stats:
    return int(SHARE * stats['bytes_limit'])
  free = [8 << 30]
  try:
    meminfo = dict(
      line.split(':') for line in pathlib.Path('/proc/meminfo').read_text().splitlines()
    )
    free = [int(meminfo['MemAvailable'].split()[0]) << 10]
    limit = pathlib.Path('/sys/fs/cgroup/memory.max').read_text().strip()
    if limit != 'max':
      free.append(int(limit) - int(pathlib.Path('/sys/fs/cgroup/memory.current').read_text()))
  except (OSError, KeyError, ValueError):
    pass  # not Linux, or no control group: what was found so far holds
  return int(0.8 * min(free) / jax.local_device_count())


def of(compiled) -> int:
  """Bytes a device that a compiled step holds at its peak: arguments, results that are not given back in their place, temporaries."""
  m = compiled.memory_analysis()
  # The sum of all temporaries counts what lives after each other twice; the peak is known on TPU alone.
  return (
    max(m.peak_memory_in_bytes, m.argument_size_in_bytes)
    if m.peak_memory_in_bytes and _is_tpu(compiled)
    else (
      m.argument_size_in_bytes
      + m.output_size_in_bytes
      - m.alias_size_in_bytes
      + m.temp_size_in_bytes
    )
  )


def _is_tpu(compiled) -> bool:
  return any(
    d.platform == 'tpu' for s in jax.tree.leaves(compiled.input_shardings) for d in s.device_set
  )


def choose_micro_batches(compile_step, rows: int, budget: int, first_guess: int = 1):
  """The fewest micro-batches whose compiled step fits.

  Args:
    compile_step: number of micro-batches -> compiled step; on a TPU it refuses one that does not fit (RESOURCE_EXHAUSTED).
    rows: rows a device.
    budget: bytes a device.
    first_guess: where to begin, so as not to compile what cannot fit.

  Returns: micro-batches, the compiled step, its bytes.

  Raises UserError where even one row at a time does not fit.
  """
  divisors = [k for k in range(1, rows + 1) if rows % k == 0]
  k = min((k for k in divisors if k >= first_guess), default=rows)
  while True:
    try:
      compiled = compile_step(k)
      needed = of(compiled)
      if needed <= budget:
        return k, compiled, needed
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      needed = 2 * budget  # by how much it is too large is not said in a form to rely on
    if k == rows:
      raise UserError(
        f'one row at a time needs {needed / 1e9:.1f} GB a device and {budget / 1e9:.1f} GB are free; '
        'choose a smaller model, shorter rows (:seq=128), --config.model.remat=full, or split the parameters: --config.mesh.fsdp=-1 '
        '--config.mesh.data=1.'
      )
    k = min((d for d in divisors if d >= k * min(8, max(2, needed // budget))), default=rows)


def activation_bytes(config, length: int) -> int:
  """A rough count of what one row leaves for the backward pass, to begin the search of choose_micro_batches near its end."""
  c, size = config, jax.numpy.dtype(config.dtype).itemsize
  layer = length * (
    14 * c.hidden_size + 4 * c.intermediate_size
  ) * size + c.num_heads * length**2 * (2 * size + 5)
  return c.num_layers * (layer if c.remat == 'none' else length * c.hidden_size * size)

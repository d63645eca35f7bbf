"""Metrics of a run: the lines of metrics.jsonl, and the peak that utilization refers to."""

import math
import os
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from electra_jax import file_access, json_reader
from electra_jax.training import run_folder

METRICS = 'metrics.jsonl'

# Dense bfloat16 FLOP/s of one device of JAX, as stated by the manufacturers. Data sheets that state
# numbers with sparsity are halved. A TPU v3 or 7x has two devices per chip.
PEAK_FLOPS = {
  # docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x, per chip
  'TPU v3': 123e12 / 2,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  'TPU7x': 2307e12 / 2,
  # NVIDIA A100, H100 and H200 Tensor Core GPU data sheets, SXM
  'NVIDIA A100': 312e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H200': 989e12,
  # NVIDIA H20 Tensor Core GPU data sheet
  'NVIDIA H20': 148e12,
  # NVIDIA Blackwell data sheet: 4.5 and 5 PFLOPS with sparsity, per GPU of an HGX B200 and a GB200
  'NVIDIA B200': 2250e12,
  'NVIDIA GB200': 2500e12,
  # AMD Instinct MI300X accelerator data sheet
  'AMD Instinct MI300X': 1307.4e12,
}


class PeakFlops(NamedTuple):
  """The most FLOP/s that the devices of a run can reach together.

  Attributes:
    flops: FLOP/s of all devices; 0 if it is not known.
    source: where the number comes from; 'measured' on CPUs.
  """

  flops: float
  source: str


def peak_flops(per_device: float = 0.0) -> PeakFlops:
  """The peak of all devices.

  Manufacturers of CPUs state none. There, products of square float32 matrices are timed.

  Args:
    per_device: FLOP/s of one device, config.peak_flops; 0 for those of its kind.
  """
  if per_device:
    return PeakFlops(per_device * jax.device_count(), 'config.peak_flops')
  device = jax.devices()[0]
  if device.platform == 'cpu':
    return PeakFlops(_measured_flops(), 'measured')
  kinds = [kind for kind in PEAK_FLOPS if device.device_kind.startswith(kind)]
  flops = PEAK_FLOPS[max(kinds, key=len)] * jax.device_count() if kinds else 0.0
  return PeakFlops(flops, 'as stated by its maker')


def _measured_flops(side: int = 1024, repeats: int = 4) -> float:
  """FLOP/s of the fastest of some products of two `[side, side]` matrices."""
  product = jax.jit(lambda x: x @ x)
  x = jnp.ones((side, side), jnp.float32)
  product(x).block_until_ready()
  best = math.inf
  for _ in range(repeats):
    start = time.perf_counter()
    product(x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * side**3 / best


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Reads WORKDIR/metrics.jsonl.

  Damaged lines, such as an incomplete one after a kill, are skipped.
  """
  return parse_metrics(metrics_content(workdir))[0]


def metrics_content(workdir: str | os.PathLike[str]) -> bytes:
  """The content of WORKDIR/metrics.jsonl; nothing if it does not exist.

  Raises:
    UserError: it cannot be read.
  """
  path = run_folder.folder(workdir) / METRICS
  with file_access.reaching(path, local=True):
    return bytes(path.read_bytes()) if path.exists() else b''


def parse_metrics(content: bytes) -> tuple[list[dict[str, Any]], list[int]]:
  """Reads the lines of metrics.jsonl.

  Returns:
    The lines, and the numbers of those that are damaged, from 1.
  """
  lines: list[dict[str, Any]] = []
  damaged = []
  for number, text in enumerate(content.split(b'\n'), 1):
    try:
      line = json_reader.parse(text, 'the line', rules=json_reader.OWN) if text.strip() else None
    except json_reader.InvalidJson:
      line = text
    if isinstance(line, dict) and _is_line(line):
      lines.append(line)
    elif line is not None:
      damaged.append(number)
  return lines, damaged


def _is_line(line: dict[str, Any]) -> bool:
  """Whether an object is a line of metrics: a kind, a step, and numbers or null."""
  return (
    isinstance(line.get('kind'), str)
    and isinstance(line.get('step'), int)
    and all(
      value is None or isinstance(value, (int, float))
      for name, value in line.items()
      if name != 'kind'
    )
  )

"""Metrics of a run: metrics.jsonl, TensorBoard's files, and the peak that utilization refers to."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from electra_jax import file_access
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


def _summary_writer() -> Callable[..., Any]:
  """tensorboardX.SummaryWriter, imported without torch.

  tensorboardX imports torch if it is installed. Scalars do not need it, and it costs seconds.
  """
  hidden = 'torch' not in sys.modules
  if hidden:
    sys.modules['torch'] = None  # type: ignore[assignment]  # documented: import then fails
  try:
    from tensorboardX import SummaryWriter
  finally:
    if hidden:
      del sys.modules['torch']
  writer: Callable[..., Any] = SummaryWriter
  return writer


class Writer:
  """Appends metrics to WORKDIR/metrics.jsonl and to TensorBoard's event files.

  When a run resumes at a step, lines of later steps are removed: those steps are taken again. In a
  bucket the files are replaced from time to time, see `run_folder.Spool`.

  Attributes:
    seconds: time of training, over all starts.
  """

  def __init__(self, workdir: str | os.PathLike[str], step: int) -> None:
    """Opens the files.

    Args:
      workdir: folder of the run or trial.
      step: step that the run resumes at; 0 for a new run.
    """
    lines = [line for line in read_metrics(workdir) if line['step'] <= step] if step else []
    self.seconds: float = max((line['seconds'] for line in lines), default=0.0)
    self._spool = run_folder.Spool(run_folder.folder(workdir))
    self._path = self._spool.path / METRICS
    file_access.write_bytes(self._path, ''.join(json.dumps(line) + '\n' for line in lines).encode())
    self._board = _summary_writer()(
      str(self._spool.path / 'tensorboard'),
      purge_step=step + 1 if step else None,
      flush_secs=int(run_folder.UPLOAD_EVERY),
    )

  def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
    """Appends a line. Values that are not finite become null.

    Args:
      kind: 'train', 'heldout' or 'dev'.
      step: steps that were taken.
      metrics: name -> value.
    """
    plain = {
      name: float(value) if math.isfinite(value) else None for name, value in metrics.items()
    }
    with self._path.open('a') as file:
      file.write(json.dumps({'kind': kind, 'step': step, **plain}) + '\n')
    for name, value in plain.items():
      if value is not None and name not in ('tokens', 'seconds'):
        self._board.add_scalar(f'{kind}/{name}', value, step)
    self._spool.soon()

  def keep(self) -> str | None:
    """Makes sure that all lines so far are stored; called before a checkpoint is saved.

    Otherwise a run that resumes from the checkpoint could lack them.

    Returns:
      A sentence if the bucket could not be written, else None. It is tried again later.
    """
    self._board.flush()
    return self._spool.now(METRICS)

  def close(self) -> None:
    """Closes the files.

    Raises:
      UserError: the last lines could not be written to the bucket; they stay on this machine.
    """
    self._board.close()
    self._spool.close()


class NoWriter:
  """Takes the place of a `Writer` in all processes except the first. Writes nothing."""

  def __init__(self) -> None:
    """Starts at 0 seconds."""
    self.seconds = 0.0

  def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
    """Does nothing."""

  def keep(self) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Reads WORKDIR/metrics.jsonl. An incomplete last line, as after a kill, is ignored."""
  path = run_folder.folder(workdir) / METRICS
  lines = []
  with file_access.reaching(path):
    content = path.read_bytes() if path.exists() else b''
  for text in content.decode(errors='replace').splitlines():
    try:
      lines.append(json.loads(text))
    except ValueError:
      break
  return lines


def quantity(value: float, unit: str = '') -> str:
  """Formats a number with an SI prefix: 1234567 becomes '1.23 M'."""
  for factor, prefix in ((1e18, 'E'), (1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= factor:
      return f'{value / factor:.3g} {prefix}{unit}'
  return f'{value:.3g} {unit}'.rstrip()

"""What a run writes down: metrics.jsonl, TensorBoard, and lines on the console."""

import json
import math
import os
import pathlib
import time

import jax
import jax.numpy as jnp

# bfloat16 matrix products a second of one device, dense, as their makers state them.
PEAK_FLOPS = {'TPU v3': 123e12 / 2, 'TPU v4': 275e12, 'TPU v5 lite': 197e12, 'TPU v5e': 197e12, 'TPU v5': 459e12, 'TPU v5p': 459e12,
              'TPU v6 lite': 918e12, 'TPU v6e': 918e12, 'NVIDIA A100': 312e12, 'NVIDIA H100': 989e12, 'NVIDIA H200': 989e12}


def peak_flops() -> tuple[float, str]:
  """FLOP/s that all devices together could do, and where the number is from.

  On a CPU, whose makers state none, square products are timed for a moment; 0 where nothing is known.
  """
  device = jax.devices()[0]
  if device.platform == 'cpu':
    side = 1024
    product = jax.jit(lambda x: x @ x)
    x = jnp.ones((side, side), jnp.float32)
    product(x).block_until_ready()
    best = math.inf
    for _ in range(4):
      start = time.perf_counter()
      product(x).block_until_ready()
      best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best, 'measured'
  kinds = [kind for kind in PEAK_FLOPS if device.device_kind.startswith(kind)]
  return (PEAK_FLOPS[max(kinds, key=len)] * jax.device_count() if kinds else 0.0), 'as stated by its maker'


class Writer:
  """Appends figures to WORKDIR/metrics.jsonl and to TensorBoard's event files.

  On resuming at `step`, lines past it are taken out: those steps are done, and written, again.
  """

  def __init__(self, workdir, step: int):
    from tensorboardX import SummaryWriter
    self.path = pathlib.Path(workdir) / 'metrics.jsonl'
    lines = [line for line in read_metrics(workdir) if line['step'] <= step]
    temporary = self.path.with_suffix('.tmp')
    temporary.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    os.replace(temporary, self.path)
    self.seconds = max((line['seconds'] for line in lines), default=0.0)     # of training, over all starts
    self._board = SummaryWriter(str(pathlib.Path(workdir) / 'tensorboard'), purge_step=step + 1 if step else None)

  def write(self, kind: str, step: int, figures: dict) -> None:
    """kind: 'train' or 'heldout'. Figures that are not finite become null."""
    plain = {name: float(value) if math.isfinite(value) else None for name, value in figures.items()}
    with self.path.open('a') as file:
      file.write(json.dumps({'kind': kind, 'step': step, **plain}) + '\n')
    for name, value in plain.items():
      if value is not None and name not in ('tokens', 'seconds'):
        self._board.add_scalar(f'{kind}/{name}', value, step)

  def close(self):
    self._board.close()


def read_metrics(workdir) -> list[dict]:
  """The lines of WORKDIR/metrics.jsonl; a last line that a kill cut short is left out."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  lines = []
  for text in path.read_text().splitlines() if path.exists() else []:
    try:
      lines.append(json.loads(text))
    except ValueError:
      break
  return lines


def quantity(value: float, unit: str = '') -> str:
  """1234567 -> '1.23 M'."""
  for factor, prefix in ((1e18, 'E'), (1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= factor:
      return f'{value / factor:.3g} {prefix}{unit}'
  return f'{value:.3g} {unit}'.rstrip()

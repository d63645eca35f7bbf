"""What a run writes down: metrics.jsonl, TensorBoard, and lines on the console."""

import json
import math
import sys
import time

import jax
import jax.numpy as jnp

from electra_jax.training import run_folder

METRICS = 'metrics.jsonl'

# bfloat16 matrix products a second of one device, dense, as their makers state them.
PEAK_FLOPS = {
  'TPU v3': 123e12 / 2,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  'NVIDIA A100': 312e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H200': 989e12,
}


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
  return (
    PEAK_FLOPS[max(kinds, key=len)] * jax.device_count() if kinds else 0.0
  ), 'as stated by its maker'


def _summary_writer():
  """tensorboardX.SummaryWriter, without torch, which it imports where there is one: seconds and memory that scalars have no need of."""
  hidden = 'torch' not in sys.modules
  if hidden:
    sys.modules['torch'] = None
  try:
    from tensorboardX import SummaryWriter
  finally:
    if hidden:
      del sys.modules['torch']
  return SummaryWriter


class Writer:
  """Appends figures to WORKDIR/metrics.jsonl and to TensorBoard's event files.

  On resuming at `step`, lines past it are taken out: those steps are done, and written, again. In a bucket the files are
  replaced now and then, see training.workdir.Spool.

  Attributes:
    seconds: of training, over all starts.
  """

  def __init__(self, workdir, step: int):
    lines = [line for line in read_metrics(workdir) if line['step'] <= step] if step else []
    self.seconds = max((line['seconds'] for line in lines), default=0.0)
    self._spool = run_folder.Spool(run_folder.folder(workdir))
    self._path = self._spool.path / METRICS
    run_folder.write_bytes(self._path, ''.join(json.dumps(line) + '\n' for line in lines).encode())
    self._board = _summary_writer()(
      str(self._spool.path / 'tensorboard'),
      purge_step=step + 1 if step else None,
      flush_secs=int(run_folder.UPLOAD_EVERY),
    )

  def write(self, kind: str, step: int, figures: dict) -> None:
    """kind: 'train' or 'heldout'. Figures that are not finite become null."""
    plain = {
      name: float(value) if math.isfinite(value) else None for name, value in figures.items()
    }
    with self._path.open('a') as file:
      file.write(json.dumps({'kind': kind, 'step': step, **plain}) + '\n')
    for name, value in plain.items():
      if value is not None and name not in ('tokens', 'seconds'):
        self._board.add_scalar(f'{kind}/{name}', value, step)
    self._spool.soon()

  def keep(self) -> str | None:
    """To be called before a checkpoint is saved: what was written so far stays whatever happens, or it would be missing after a
    resume from there. Returns a sentence where the bucket could not be written; it is tried again."""
    self._board.flush()
    return self._spool.now(METRICS)

  def close(self) -> None:
    """Raises UserError where the last figures could not be written to the bucket; they are kept on this machine then."""
    self._board.close()
    self._spool.close()


class NoWriter:
  """What processes other than the first have in place of a Writer."""

  seconds = 0.0

  def write(self, kind: str, step: int, figures: dict) -> None:
    pass

  def keep(self) -> None:
    pass

  def close(self) -> None:
    pass


def read_metrics(workdir) -> list[dict]:
  """The lines of WORKDIR/metrics.jsonl; a last line that a kill cut short is left out."""
  path, lines = run_folder.folder(workdir) / METRICS, []
  with run_folder.reaching(path):
    content = path.read_bytes() if path.exists() else b''
  for text in content.decode(errors='replace').splitlines():
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

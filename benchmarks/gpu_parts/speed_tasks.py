"""Tasks of gpu.py that take training steps: one side, one size, one kernel in a process."""

import contextlib
import dataclasses
import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import train_step

from electra_jax.config import ModelConfig
from electra_jax.model.config import EncoderConfig, generator_config
from electra_jax.model.electra import Electra
from electra_jax.pretrain import masking
from electra_jax.pretrain.objectives.electra import OBJECTIVE
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.training.encoders import encoder_config
from gpu_parts.batches import Attempt, largest_batch
from gpu_parts.worker import Answer

DTYPE = 'bfloat16'
SEARCH_STEP = 8  # rows by which batches are tried


# A size for tests besides those of train_step.py.
TINY = ModelConfig(
  hidden_size=32, embedding_size=32, intermediate_size=64, num_heads=2, num_layers=1
)
SIZES = train_step.SIZES | {'tiny': train_step.Size(TINY, 512, 1 / 2, 0.1)}


def towers(
  size: str, length: int, attention: str, attention_dropout: float, unroll: int
) -> tuple[EncoderConfig, EncoderConfig]:
  """Generator and discriminator as the program computes them on this device."""
  chosen = SIZES[size]
  model = dataclasses.replace(
    chosen.model,
    dropout=chosen.dropout,
    attention=attention,
    attention_dropout=attention_dropout,
    scan_unroll=min(unroll, chosen.model.num_layers),
  )
  discriminator = encoder_config(model, chosen.vocab_size, length, DTYPE)
  return generator_config(discriminator, chosen.fraction, 1.0), discriminator


class Memory(NamedTuple):
  """Bytes of the device, on a CPU of the process.

  Attributes:
    peak: the most since the process started.
    held: between two steps: parameters, moments, rows.
    limit: that the process can have; None if unknown.
  """

  peak: int
  held: int
  limit: int | None


def process_memory() -> Memory:
  """Memory of this process, where the device has none."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return Memory(peak, peak, None)


class Ours:
  """Steps of electra_jax."""

  def __init__(
    self, generator: EncoderConfig, discriminator: EncoderConfig, rows: np.ndarray
  ) -> None:
    """Initializes the state; the first step compiles."""
    self.run = train_step.ours(generator, discriminator, rows)
    self.device = jax.default_backend()

  def memory(self) -> Memory:
    """Memory of JAX's allocator."""
    stats = jax.devices()[0].memory_stats()
    if not stats:
      return process_memory()
    return Memory(stats['peak_bytes_in_use'], stats['bytes_in_use'], stats.get('bytes_limit'))

  def attention(self) -> list[str]:
    """Nothing: the task `attention_kernels` shows what is compiled."""
    return []

  @staticmethod
  def lacks_memory(error: Exception) -> bool:
    """Whether an error is a lack of memory."""
    return 'RESOURCE_EXHAUSTED' in str(error)

  def free(self) -> None:
    """Frees the state, and the programs."""
    self.run = None
    gc.collect()
    jax.clear_caches()


class Peer:
  """Steps of transformers with PyTorch: torch.compile, fused AdamW, SDPA with cuDNN first."""

  def __init__(
    self, generator: EncoderConfig, discriminator: EncoderConfig, rows: np.ndarray
  ) -> None:
    """Initializes models and optimizer; the first step compiles.

    torch.compile requires a C++ compiler on a CPU, so there the models are not compiled.
    """
    import torch

    self.torch = torch
    self.device = 'gpu' if torch.cuda.is_available() else 'cpu'
    self._run = train_step.peer(generator, discriminator, rows, self.device == 'gpu')

  def run(self, steps: int) -> None:
    """Takes steps and waits for them."""
    with self._backends():
      self._run(steps)

  @contextlib.contextmanager
  def _backends(self) -> Iterator[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [
      SDPBackend.CUDNN_ATTENTION,
      SDPBackend.FLASH_ATTENTION,
      SDPBackend.EFFICIENT_ATTENTION,
      SDPBackend.MATH,
    ]
    with sdpa_kernel(order, set_priority=True):
      yield

  def memory(self) -> Memory:
    """Memory of PyTorch's allocator."""
    if self.device == 'cpu':
      return process_memory()
    cuda = self.torch.cuda
    return Memory(cuda.max_memory_allocated(), cuda.memory_allocated(), cuda.mem_get_info()[1])

  def attention(self) -> list[str]:
    """The operations of attention in one step."""
    with self.torch.profiler.profile() as profile:
      self.run(1)
    names = {event.key for event in profile.key_averages()}
    return sorted(name for name in names if '_scaled_dot_product' in name)

  @staticmethod
  def lacks_memory(error: Exception) -> bool:
    """Whether an error is a lack of memory."""
    return type(error).__name__ == 'OutOfMemoryError'

  def free(self) -> None:
    """Frees models, optimizer and compiled functions."""
    self._run = None
    self.torch._dynamo.reset()
    gc.collect()
    if self.device == 'gpu':
      self.torch.cuda.empty_cache()
      self.torch.cuda.reset_peak_memory_stats()


SIDES = {'ours': Ours, 'peer': Peer}


def step_flops(generator: EncoderConfig, discriminator: EncoderConfig, rows: np.ndarray) -> float:
  """Floating-point operations of the model in a step, see electra_jax/training/flops.py."""
  predictions = masking.max_predictions(train_step.MASK_RATE, rows.shape[1])
  settings = Settings(max_predictions=predictions)
  return OBJECTIVE.step_flops(settings, Electra(generator, discriminator), rows.shape)


def require_device(side: Ours | Peer, device: str) -> None:
  """Raises RuntimeError where a side computes on another device than it should."""
  if side.device != device:
    raise RuntimeError(f'the device of {type(side).__name__} is {side.device}; expected {device}.')


def contend(answer: Answer, side: str, device: str, batch: int, **computed: object) -> None:
  """Takes the first step, then obeys commands on the standard input until it is closed.

  Commands: {"steps": n} times n steps; {"memory": true}; {"attention": true}; {"product": true}
  measures a large matrix product.
  """
  start = time.perf_counter()
  generator, discriminator = towers(**computed)
  rows = train_step.random_rows(discriminator, batch, computed['length'])
  taken = SIDES[side](generator, discriminator, rows)
  require_device(taken, device)
  built = time.perf_counter()
  taken.run(1)
  end = time.perf_counter()
  answer(
    build_seconds=built - start,
    first_step_seconds=end - built,
    flops=step_flops(generator, discriminator, rows),
  )
  product: Callable[[], float] | None = None
  for line in sys.stdin:
    command = json.loads(line)
    if 'steps' in command:
      answer(seconds=train_step.timed(taken.run, command['steps'])[0])
    elif 'memory' in command:
      answer(**taken.memory()._asdict())
    elif 'attention' in command:
      answer(operations=taken.attention())
    else:
      product = product or train_step.matrix_product_rate(jnp.dtype(DTYPE))
      answer(flops_per_second=product())


def largest(
  answer: Answer,
  side: str,
  device: str,
  start: int,
  most: int,
  seconds: float,
  **computed: object,
) -> None:
  """Searches the largest batch of which two steps run; answers each attempt, then the end.

  Args:
    answer: sends an answer.
    side: a key of SIDES.
    device: where it must compute.
    start: rows of the first attempt.
    most: rows that are not exceeded.
    seconds: after which no further attempt starts.
    **computed: as of `towers`.
  """
  end = time.perf_counter() + seconds

  def attempt(batch: int) -> Attempt | None:
    if time.perf_counter() > end:
      return None
    generator, discriminator = towers(**computed)
    taken = None
    try:
      rows = train_step.random_rows(discriminator, batch, computed['length'])
      taken = SIDES[side](generator, discriminator, rows)
      require_device(taken, device)
      taken.run(2)
      memory = taken.memory()
      found = Attempt(batch, True, memory.peak, memory.held, memory.limit)
    except Exception as error:
      if not SIDES[side].lacks_memory(error):
        raise
      found = Attempt(batch, False)
    if taken is not None:
      taken.free()
    answer(**found._asdict())
    return found

  largest_batch(attempt, start, most, SEARCH_STEP)
  answer(done=True)

"""A training step: processor seconds, the compiler's count of memory, and resident memory."""

import time
from typing import TYPE_CHECKING

from growing import resident

if TYPE_CHECKING:  # XLA reads its flags when JAX is imported, so functions import it
  from electra_jax.config import PretrainingConfig
  from electra_jax.pretrain.build import Program

BASE = {
  'batch': 8,
  'length': 128,
  'width': 128,
  'layers': 4,
  'vocabulary': 8_000,
  'fraction': 0.25,  # of the width that the generator has
}
HEAD = 32
WARM_UP = 1
LEAST_STEPS = 3
LEAST_SECONDS = 1.0  # of processor time


def config_of(point: dict[str, float]) -> 'PretrainingConfig':
  """The checked config of an ELECTRA of some sizes.

  Args:
    point: sizes that differ from BASE.
  """
  from electra_jax.config import checked_pretraining, default_config

  size = BASE | point
  c = default_config()
  c.name, c.dtype = 'growth', 'float32'
  c.sequence_length, c.batch_size = size['length'], size['batch']
  c.data.vocab_size = size['vocabulary']
  c.steps, c.optimizer.warmup_steps, c.micro_batches = 100, 10, 1
  c.model.update(
    hidden_size=size['width'],
    embedding_size=128,
    num_layers=size['layers'],
    num_heads=size['width'] // HEAD,
    intermediate_size=4 * size['width'],
    max_positions=max(512, size['length']),
  )
  c.generator.hidden_fraction = size['fraction']
  return checked_pretraining(c)


def program_of(config: 'PretrainingConfig', devices: list | None = None) -> 'Program':
  """The program of a config's only phase, as the trainer builds it.

  Args:
    config: a checked config.
    devices: of the mesh; None for all.
  """
  from electra_jax.config import phases_of
  from electra_jax.pretrain import build
  from electra_jax.training import partitioning

  layout = partitioning.make_layout(config, devices)
  tokenizer = build.any_tokenizer(config.data.vocab_size)
  return build.program(config, phases_of(config)[0], tokenizer, layout)


def measure(point: dict[str, float]) -> dict[str, float]:
  """Compiles and takes steps of a config.

  Args:
    point: sizes that differ from BASE.

  Returns:
    `processor`: seconds of the fastest step; `memory`: bytes that the compiled step takes by the
    compiler's account; `resident`: the most bytes of the process.
  """
  from electra_jax import allocator
  from electra_jax.training import devices, memory, partitioning

  allocator.keep_freed_memory()
  devices.execute_in_main_thread()
  import jax
  import numpy as np

  from electra_jax.pretrain import build

  config = config_of(point)
  program = program_of(config)
  step = build.compile_step(program, 1)
  state = build.compile_initial(program, config)()
  shape = config.batch_size, config.sequence_length
  ids = np.random.default_rng(0).integers(5, config.data.vocab_size, shape, dtype=np.int32)
  mesh = program.layout.mesh
  batch = {
    'token_ids': partitioning.global_batch(ids, mesh, config.batch_size),
    'schedules': partitioning.replicate(program.inputs, mesh),
  }
  times: list[float] = []
  while len(times) < WARM_UP + LEAST_STEPS or sum(times) < LEAST_SECONDS:
    start = time.process_time()
    state, sums = step(state, batch)
    jax.block_until_ready((state, sums))
    times.append(time.process_time() - start)
  return {
    'processor': min(times[WARM_UP:]),
    'memory': memory.peak_bytes(step),
    'resident': resident.most(),
  }

"""The type of matrix products that config.dtype stands for."""

import os
import pathlib
from typing import NamedTuple

import jax.numpy as jnp

from electra_jax.config.declarations import one_of
from electra_jax.errors import UserError

# Features of processors, as Linux names them, with which training in bfloat16 takes less time than
# in float32 (benchmarks/README.md). Processors with AMX have the first one, too.
FAST_IN_BFLOAT16 = ('avx512_bf16', 'amx_bf16')
CPUINFO = pathlib.Path('/proc/cpuinfo')
ON_CPUS = 'ELECTRA_JAX_CPU_DTYPE'  # environment variable
DTYPES = ('float32', 'bfloat16')


class ProductType(NamedTuple):
  """The dtype of matrix products, and why it was chosen."""

  dtype: str
  reason: str


def compute_dtype(name: str, platform: str) -> jnp.dtype:
  """The type that `choose_dtype` chooses: for 'auto' float32 on CPU, bfloat16 elsewhere.

  Args:
    name: config.dtype.
    platform: of the devices: 'cpu', 'gpu' or 'tpu'.
  """
  return jnp.dtype(choose_dtype(name, platform).dtype)


def choose_dtype(name: str, platform: str, recorded: str | None = None) -> ProductType:
  """What config.dtype means for a run that does not pretrain.

  Args:
    name: config.dtype.
    platform: of the devices: 'cpu', 'gpu' or 'tpu'.
    recorded: what the first start of the run chose, which a run that is resumed keeps.
  """
  if name != 'auto':
    return ProductType(name, 'as configured')
  if recorded:
    return ProductType(recorded, 'auto, as at the first start')
  return ProductType('float32' if platform == 'cpu' else 'bfloat16', f'auto, on {platform.upper()}')


def choose_training_dtype(name: str, platform: str, recorded: str | None = None) -> ProductType:
  """What config.dtype means for the steps of pretraining.

  On a CPU 'auto' depends on the processor, never on a measurement: bfloat16 where it has
  instructions for it, else float32. The environment variable ELECTRA_JAX_CPU_DTYPE replaces that.

  Args:
    name: config.dtype.
    platform: of the devices: 'cpu', 'gpu' or 'tpu'.
    recorded: as of `choose_dtype`.

  Raises:
    UserError: the environment variable has another value than the two types.
  """
  if name != 'auto' or recorded or platform != 'cpu':
    return choose_dtype(name, platform, recorded)
  if given := os.environ.get(ON_CPUS):
    if given not in DTYPES:
      raise UserError(f'{ON_CPUS} is {given!r}; expected {one_of(DTYPES)}.')
    return ProductType(given, f'auto, by {ON_CPUS}')
  features = processor_features()
  for feature in FAST_IN_BFLOAT16:
    if feature in features:
      return ProductType('bfloat16', f'auto, on a CPU with {feature}')
  return choose_dtype(name, platform)


def processor_features() -> frozenset[str]:
  """The features of this machine's processor as Linux names them; none on other systems."""
  try:
    lines = CPUINFO.read_text(encoding='utf-8').splitlines()
  except OSError:
    return frozenset()
  return frozenset(next((x.partition(':')[2] for x in lines if x.startswith('flags')), '').split())


def describe_products(products: ProductType, precision: str, platform: str) -> str:
  """The arithmetic of matrix products, for the console.

  Args:
    products: their dtype.
    precision: config.precision.
    platform: of the devices: 'cpu', 'gpu' or 'tpu'.
  """
  found = f'{products.dtype} ({products.reason})'
  if platform == 'cpu' or precision == 'float32':
    return f'{found}, those of float32 arrays in float32'
  passes = {
    ('tpu', 'tensorfloat32'): 'three bfloat16 passes',
    ('tpu', 'bfloat16'): 'a single bfloat16 pass',
  }
  how = passes.get((platform, precision), 'TF32')
  return f'{found}, those of float32 arrays in {how} (config.precision {precision})'

"""Matrix products of XLA on a CPU beside those of PyTorch, by type and form, on one thread.

taskset -c 0 python benchmarks/products.py

A product of a dense layer `[rows, in] x [in, out]`, the gradient of its input and that of its
kernel. "Plain" is the result in the type of the inputs, "float32" has a float32 result, and
"row-major" has also the left side transposed in memory first, as `ProductSettings.row_major` in
electra_jax/model/products.py. GFLOP/s of processor time, the best of the rounds.

taskset -c 0 python benchmarks/products.py --layers=12 --rows=16

Only the products of the layers of an encoder, one layer after the other, as they are computed for
one text: each kernel is read from memory once. Milliseconds of processor time, median and range.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable

# Before JAX starts: one thread.
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '')
  + ' --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1'
).strip()

import jax
import jax.numpy as jnp
import numpy as np
import torch

from electra_jax.model.products import row_major

# Summed axes of the two sides, by the name of the product.
SUMMED = {'output': (1, 0), 'gradient of the input': (1, 1), 'gradient of the kernel': (0, 0)}


def sides(rows: int, width: int, out: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """The two sides of each product."""
  draw = np.random.default_rng(0).standard_normal
  x, kernel, gradient = draw((rows, width)), draw((width, out)), draw((rows, out))
  return {
    'output': (x, kernel),
    'gradient of the input': (gradient, kernel),
    'gradient of the kernel': (x, gradient),
  }


def of_xla(name: str, dtype: str, form: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """A compiled product."""
  left, right = SUMMED[name]

  def multiply(x: jax.Array, y: jax.Array) -> jax.Array:
    summed = left
    if form == 'row-major' and left == 0:
      x, summed = row_major(x.T), 1
    wanted = jnp.dtype(dtype) if form == 'plain' else jnp.float32
    return jax.lax.dot_general(
      x, y, (((summed,), (right,)), ((), ())), preferred_element_type=wanted
    )

  return jax.jit(multiply)


def finished(multiply: Callable[..., jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
  """The product, when it is there."""
  return jax.block_until_ready(multiply(x, y))


def of_torch(name: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
  """A product of PyTorch."""
  left, right = SUMMED[name]
  return lambda x, y: torch.matmul(x if left else x.T, y.T if right else y)


def seconds(run: Callable[[], object]) -> float:
  """Processor seconds of a call."""
  start = time.process_time()
  run()
  return time.process_time() - start


def best_seconds(run: Callable[[], object], rounds: int) -> float:
  """Processor seconds of the fastest of some calls, after one that is not timed."""
  run()
  return min(seconds(run) for _ in range(rounds))


def encoder_kernels(layers: int, width: int, out: int) -> list[np.ndarray]:
  """The kernels of query, key, value, output and both dense layers, `[layers, in, out]` each."""
  draw = np.random.default_rng(0).standard_normal
  shapes = [(width, width)] * 4 + [(width, out), (out, width)]
  return [draw((layers, *shape), np.float32) / shape[0] ** 0.5 for shape in shapes]


def print_layers(layers: int, rows: int, width: int, out: int, rounds: int) -> None:
  """Measures the products of the layers of an encoder, in turn, and prints a table."""
  stacked = encoder_kernels(layers, width, out)
  x = np.random.default_rng(1).standard_normal((rows, width), np.float32)

  def layer(x, kernels):
    query, key, value, output, inner, outer = kernels
    return (((x @ query + x @ key + x @ value) @ output) @ inner) @ outer, None

  def unrolled(x, kernels):
    for one in kernels:
      x, _ = layer(x, one)
    return x

  in_loop = jax.jit(lambda x, kernels: jax.lax.scan(layer, x, kernels)[0])
  apart = [[jnp.asarray(kernel[i]) for kernel in stacked] for i in range(layers)]
  of_torch = [[torch.from_numpy(kernel[i].copy()) for kernel in stacked] for i in range(layers)]
  calls = {
    'XLA, a loop over stacked kernels': functools.partial(
      finished, in_loop, jnp.asarray(x), [jnp.asarray(kernel) for kernel in stacked]
    ),
    'XLA, the kernels of each layer apart': functools.partial(
      finished, jax.jit(unrolled), jnp.asarray(x), apart
    ),
    'PyTorch': functools.partial(unrolled, torch.from_numpy(x), of_torch),
  }
  found: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(rounds + 1):
    for name, call in calls.items():
      found[name].append(1e3 * seconds(call))
  print(f'| the products of {layers} layers, {rows} rows | ms, median (range) |\n|---|---|')
  for name, (_, *times) in found.items():
    print(f'| {name} | {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f}) |')


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rows', type=int, default=4096)
  parser.add_argument('--width', type=int, default=256)
  parser.add_argument('--out', type=int, default=1024)
  parser.add_argument('--layers', type=int, default=0, help='of an encoder; 0: single products')
  parser.add_argument('--rounds', type=int, default=20)
  flags = parser.parse_args()
  torch.set_num_threads(1)
  if flags.layers:
    print_layers(flags.layers, flags.rows, flags.width, flags.out, flags.rounds)
    return
  work = 2 * flags.rows * flags.width * flags.out / 1e9

  forms = [('float32', 'plain'), ('float32', 'row-major')]
  forms += [('bfloat16', form) for form in ('plain', 'float32', 'row-major')]
  titles = [f'XLA {dtype}, {form}' for dtype, form in forms]
  print(f'| product | {" | ".join(titles)} | PyTorch float32 | PyTorch bfloat16 |')
  print('|---' * (len(forms) + 3) + '|')
  for name, pair in sides(flags.rows, flags.width, flags.out).items():
    runs = []
    for dtype, form in forms:
      x, y = (jnp.asarray(side, dtype) for side in pair)
      runs.append(functools.partial(finished, of_xla(name, dtype, form), x, y))
    for dtype in (torch.float32, torch.bfloat16):
      x, y = (torch.from_numpy(side).to(dtype) for side in pair)
      runs.append(functools.partial(of_torch(name), x, y))
    rates = [work / best_seconds(run, flags.rounds) for run in runs]
    print(f'| {name} | ' + ' | '.join(f'{rate:.0f}' for rate in rates) + ' |', flush=True)


if __name__ == '__main__':
  main()

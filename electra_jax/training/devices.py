"""The devices of a run: their description for the console, and the cache of compiled programs."""

import contextlib
import os
import pathlib
import re

import jax

CACHE_BYTES = 2 << 30  # of compiled programs that are kept: some thousand on a CPU
CACHED_FROM = 0.1  # seconds of compilation; JAX's 1.0 leaves out short rows and small models
# Names of JAX's files: a user may give a folder that has others, too.
PROGRAM = re.compile(r'.+-[0-9a-f]{64}-cache')
THRESHOLD = 'jax_persistent_cache_min_compile_time_secs'
LLVM_LEVEL = 'xla_backend_optimization_level'
XLA_FLAGS = os.environ.get('XLA_FLAGS', '')  # XLA reads them once, too


def describe_devices(mesh: jax.sharding.Mesh) -> str:
  """Number and kind of the devices, number of processes and sizes of the mesh axes, as one line."""
  devices = jax.devices()
  count = f'{len(devices)} x {devices[0].device_kind}'
  if jax.process_count() > 1:
    count += f' of {jax.process_count()} processes'
  return f'{count}, mesh ' + ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())


def execute_in_main_thread() -> None:
  """Lets the CPU compute in the thread that starts a computation; before the first computation.

  Only there the C library keeps the memory that it frees (electra_jax/allocator.py). Other devices
  compute as before.
  """
  jax.config.update('jax_cpu_enable_async_dispatch', False)


def use_compilation_cache(folder: str) -> None:
  """Keeps compiled programs in a folder for the next start. Does nothing if `folder` is empty.

  Programs that were not used for longest are removed from a local folder of over CACHE_BYTES.
  `jax_compilation_cache_max_size` would do so too, but requires a package that JAX does not, and
  fails on folders that were filled without it.

  Args:
    folder: value of `config.compilation_cache`; `~` is expanded.
  """
  if not folder:
    return
  folder = os.path.expanduser(folder)
  jax.config.update('jax_compilation_cache_dir', folder)
  if THRESHOLD.upper() not in os.environ:
    jax.config.update(THRESHOLD, CACHED_FROM)
  if '://' not in folder:
    remove_oldest(pathlib.Path(folder), CACHE_BYTES)


def remove_oldest(folder: pathlib.Path, limit: int) -> None:
  """Removes the compiled programs of a folder that were not read for longest.

  Other processes may read, add and remove programs meanwhile.

  Args:
    folder: of JAX's compilation cache; it may be missing.
    limit: bytes that may remain.
  """
  found = []
  for path in folder.glob('*-cache'):
    if not PROGRAM.fullmatch(path.name):
      continue
    with contextlib.suppress(OSError):  # removed by another process
      status = path.stat()
      found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
  for _, size, path in sorted(found, reverse=True):
    limit -= size
    if limit < 0:
      with contextlib.suppress(OSError):
        path.unlink()


def compiler_options(mesh: jax.sharding.Mesh) -> dict[str, int]:
  """Options of jax.jit for the devices of a mesh: on a CPU those that shorten compilation.

  With LLVM's first level a start takes a tenth less time on the clock. Results were bitwise equal
  wherever they were compared (benchmarks/README.md). What XLA_FLAGS sets is left as it is.

  Args:
    mesh: the mesh that a program is compiled for.
  """
  if mesh.devices.flat[0].platform != 'cpu' or LLVM_LEVEL in XLA_FLAGS:
    return {}
  return {LLVM_LEVEL: 1}

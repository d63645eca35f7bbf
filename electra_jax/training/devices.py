"""The devices of a run: their description for the console, and the cache of compiled programs."""

import os

import jax


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

  Args:
    folder: value of `config.compilation_cache`; `~` is expanded.
  """
  if folder:
    jax.config.update('jax_compilation_cache_dir', os.path.expanduser(folder))

"""What results depend on besides code and data: processor, versions, commit."""

import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = (
  'jax',
  'jaxlib',
  'jax-cuda13-plugin',
  'flax',
  'optax',
  'orbax-checkpoint',
  'torch',
  'transformers',
  'scikit-learn',
  'numpy',
)
# Of the processor's features those that decide which matrix products a library has.
FEATURES = ('avx', 'avx2', 'fma', 'avx512f', 'avx512_bf16', 'avx512_vnni', 'amx_bf16', 'asimd')


def environment() -> dict[str, object]:
  """Processor, its features, cores of this process, versions of packages, and the commit."""
  lines = _processor_lines()
  flags = lines.get('flags', lines.get('Features', '')).split()
  affinity = getattr(os, 'sched_getaffinity', None)
  return {
    'processor': lines.get('model name', platform.processor() or platform.machine()),
    'features': [name for name in FEATURES if name in flags],
    'cores': len(affinity(0)) if affinity else os.cpu_count(),
    'versions': {'python': platform.python_version()} | _versions(),
    'commit': _commit(),
  }


def _processor_lines() -> dict[str, str]:
  """The fields of the first processor of /proc/cpuinfo; empty on other systems."""
  path = pathlib.Path('/proc/cpuinfo')
  if not path.exists():
    return {}
  first = path.read_text(encoding='utf-8').split('\n\n')[0]
  pairs = (line.partition(':') for line in first.splitlines())
  return {name.strip(): value.strip() for name, _, value in pairs}


def _versions() -> dict[str, str]:
  """Versions of the packages that are installed."""
  found = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _commit() -> str | None:
  """The commit of this tree; None outside a git repository, or without git."""
  if not shutil.which('git'):
    return None
  command = ['git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD']
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  return done.stdout.strip() or None


def run_main(*flags: str) -> None:
  """Runs `python -m electra_jax.main` with flags, from the repository's root.

  Raises:
    SystemExit: the program failed or was stopped, with its exit status.
  """
  command = [sys.executable, '-m', 'electra_jax.main', *flags]
  done = subprocess.run(command, cwd=ROOT, check=False)
  if done.returncode:
    raise SystemExit(done.returncode)

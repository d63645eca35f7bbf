"""Which local files of a sweep its workers lack, where they get a copy of the committed tree.

launch/tpu.sh copies the committed tree of the repository to each worker and starts the program in
its root. There, addresses and committed files can be read, and no other file of this machine.
"""

import glob
import os
import subprocess
from collections.abc import Iterator, Sequence

from electra_jax import file_access
from electra_jax.config import Config, phases_of
from electra_jax.config.config_files import config_path, shipped_configs
from electra_jax.config.declarations import fields_of, flat
from electra_jax.sweep.resolve import ResolvedSweep


def first_missing_file(
  sweep: ResolvedSweep, given: Sequence[tuple[str, str]]
) -> tuple[str, str] | None:
  """The first value that names a local file which is not committed; None where all are.

  A name that is no file here, such as 'sample', counts as none.

  Args:
    sweep: the resolved sweep.
    given: more values that name files, each with what it is, for messages.

  Returns:
    What it is, and the value.
  """
  committed = _committed_files()
  for what, value in [*given, *_values_of(sweep)]:
    for location in _locations(value):
      if any(os.path.relpath(file) not in committed for file in _local_files(location)):
        return what, value
  return None


def _values_of(sweep: ResolvedSweep) -> Iterator[tuple[str, str]]:
  """The values of a sweep that name files to read, and what each of them is."""
  shipped = shipped_configs().values()
  files = [('config.base', sweep.config.base)]
  files += [(f'{name} of config.finetune', file) for name, file, _ in sweep.config.finetune]
  for what, text in files:
    path = config_path(text).partition(':')[0]
    if path not in shipped:
      yield what, path
  yield from (('config.known', file) for file in sweep.config.known)
  seen = set()
  for job in sweep.jobs:
    configs: list[tuple[str, Config]] = [
      *((f'run {job.run}: config', phase.config) for phase in phases_of(job.config)),
      *((f'{name} of config.finetune: config', task) for name, task in job.tasks.items()),
    ]
    for where, config in configs:
      values = flat(config)
      for name, entry in fields_of(type(config)).items():
        if entry.declaration.files == 'read' and (name, values[name]) not in seen:
          seen.add((name, values[name]))
          yield f'{where}.{name}', values[name]


def _locations(value: str) -> Iterator[str]:
  """What a value may name: `FORMAT:LOCATION;option=LOCATION;...`, with commas between."""
  for part in value.split(','):
    location, *options = (piece.strip() for piece in part.split(';'))
    name, colon, rest = location.partition(':')
    yield rest if colon and not rest.startswith('//') else location
    yield from (option.partition('=')[2] for option in options)


def _local_files(location: str) -> list[str]:
  """The files of this machine that a path, a pattern or the beginning of names stands for."""
  if not location or file_access.is_remote(location):
    return []
  path = os.path.expanduser(location)
  if os.path.isdir(path):
    return [os.path.join(path, name) for name in file_access.files_below(path)]
  if os.path.exists(path):
    return [path]
  # A TensorFlow checkpoint is named without the ends of its files' names.
  return file_access.glob(path) or file_access.glob(glob.escape(path) + '.*')


def _committed_files() -> set[str]:
  """The committed files of the tree that launch/tpu.sh copies, relative to its root.

  Empty where the working directory is not that root.
  """
  command = ['git', 'ls-tree', '-r', '-z', '--name-only', 'HEAD']
  try:
    done = subprocess.run(command, capture_output=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return set()
  names = {os.fsdecode(name) for name in done.stdout.split(b'\0') if name}
  # Names below a subfolder are relative to it, and workers do not start there.
  return names if os.path.join('launch', 'tpu.sh') in names else set()

"""Versions that a run's folder was written with: WORKDIR/versions.json.

    {"format": 1,
     "started_with": {"electra_jax": "0.2.0", "jax": "0.10.2", "jaxlib": "0.10.2"},
     "last_run_with": {...}}

`format` is the version of the folder's layout. It grows when a program of an older version could
not read a folder correctly. Folders of version 0.1.0 have no such file; they count as format 0.
`started_with` stays as it was when the run was started. Fields of its config that did not exist
then have the value `before` of their declaration.
"""

import importlib.metadata
import os
from typing import Any

from electra_jax import file_access
from electra_jax.errors import UserError
from electra_jax.training import run_folder
from electra_jax.version import __version__

FILE = 'versions.json'
FORMAT = 1


def current() -> dict[str, str]:
  """Versions of the installed packages that determine the results of a run."""
  return {
    'electra_jax': __version__,
    'jax': importlib.metadata.version('jax'),
    'jaxlib': importlib.metadata.version('jaxlib'),
  }


def read_versions(workdir: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads a run's versions.json; a folder without the file has format 0 and no versions.

  Raises:
    UserError: the folder's format is newer than this program's.
  """
  path = run_folder.folder(workdir) / FILE
  found: dict[str, Any] = {'format': 0}
  if file_access.exists(path):
    shape = {'format': int, 'started_with?': {str: str}, 'last_run_with?': {str: str}}
    found = run_folder.read_json(path, shape)
  if found['format'] > FORMAT:
    writer = found.get('last_run_with', {}).get('electra_jax', 'a newer version')
    raise UserError(
      f'{os.fspath(workdir)} has format {found["format"]} of run folders, written by electra_jax '
      f'{writer}; electra_jax {__version__} reads formats up to {FORMAT}: update it.'
    )
  return found


def record_versions(workdir: str | os.PathLike[str], resumed: bool) -> None:
  """Writes the installed versions into a run's folder.

  Args:
    workdir: the run's folder.
    resumed: whether the run has saved anything; its `started_with` and `format` then stay.

  Raises:
    UserError: the folder's format is newer than this program's.
  """
  before = read_versions(workdir)
  started = before.get('started_with') if resumed else current()
  if resumed and started is None:  # a run of version 0.1.0, which recorded nothing
    started = {'electra_jax': '0.1.0'}
  content = {
    'format': before['format'] if resumed else FORMAT,
    'started_with': started,
    'last_run_with': current(),
  }
  run_folder.write_json(run_folder.folder(workdir) / FILE, content)

"""What user code registered for a run: WORKDIR/plugins.json.

    {"plugins": [{"kind": "objective", "name": "focal", "file": "/home/me/focal.py"}]}

The file exists only in folders of runs that use specs of user code. Its content is for messages:
opening such a run where a spec is not registered fails with a sentence that names the file. Code is
never executed from a run's folder.
"""

import os
from collections.abc import Mapping, Sequence

from electra_jax import file_access, registry
from electra_jax.training import run_folder

FILE = 'plugins.json'


def record(workdir: str | os.PathLike[str], used: Mapping[str, Sequence[str]]) -> None:
  """Writes which of the names in use were registered by user code.

  Args:
    workdir: the run's folder.
    used: kind -> names, as `registry.from_user_code` takes them.

  Raises:
    UserError: the folder cannot be written.
  """
  path = run_folder.folder(workdir) / FILE
  found = registry.from_user_code(used)
  if found:
    run_folder.write_json(path, {'plugins': found})
  elif file_access.exists(path):  # of an earlier start of another config
    with file_access.reaching(path, 'removed'):
      path.unlink()


def require_recorded(workdir: str | os.PathLike[str]) -> None:
  """Checks that all user code that a run's folder records is loaded.

  Raises:
    UserError: something is not registered; the sentence names the file that registers it.
  """
  path = run_folder.folder(workdir) / FILE
  if file_access.exists(path):
    content = run_folder.read_json(path, {'plugins': [{'kind': str, 'name': str, 'file': str}]})
    registry.require_registered(content['plugins'], os.fspath(workdir))

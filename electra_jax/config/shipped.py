"""The configs that are shipped with the package, by name: `small`, `finetune/cola`."""

import difflib
import os
import pathlib

from electra_jax.errors import UserError

_PACKAGE = pathlib.Path(__file__).parents[1]


def shipped_configs() -> dict[str, str]:
  """Paths of the shipped configs by name; a name is a path in `configs/` without `.py`.

  An installed package contains the folder `configs/`; in a checkout it is beside the package.
  """
  inside = _PACKAGE / 'configs'
  folder = inside if inside.is_dir() else _PACKAGE.parent / 'configs'
  found = sorted(path for path in folder.rglob('*.py') if path.name != '__init__.py')
  return {path.relative_to(folder).with_suffix('').as_posix(): str(path) for path in found}


def config_path(text: str) -> str:
  """The file of a config, with its arguments.

  Args:
    text: a path or the name of a shipped config, with or without arguments after a colon:
      `mine.py`, `small:seq=128`. `configs/small.py` names the shipped config too, where the working
      directory has no such file.

  Returns:
    The path, with the arguments as they were given.

  Raises:
    UserError: there is no such file, and no shipped config of that name.
  """
  path, colon, arguments = text.partition(':')
  if not path or os.path.isfile(path):
    return text
  name = path.removeprefix('configs/').removesuffix('.py')
  shipped = shipped_configs()
  if name in shipped:
    return f'{shipped[name]}{colon}{arguments}'
  if path.endswith('.py') or os.path.exists(path):
    return text  # the error message of reading the file is exact
  near = difflib.get_close_matches(name, shipped, n=1)
  meant = f'; did you mean {near[0]}?' if near else f'; expected a file, or {", ".join(shipped)}.'
  raise UserError(f'the config {path!r} is neither a file nor a shipped config{meant}')

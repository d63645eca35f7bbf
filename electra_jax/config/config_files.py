"""Config files: how they are read, and the shipped ones by name: `small`, `finetune/cola`."""

import difflib
import importlib.util
import os
import pathlib

from electra_jax.config.declarations import ConfigDict
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


def load_config_file(path: str) -> ConfigDict:
  """The ConfigDict of a config file.

  Args:
    path: the file or the name of a shipped config, as on the command line: FILE:ARGUMENTS.

  Raises:
    UserError: the file cannot be read, raises an error, or returns no ConfigDict.
  """
  import ml_collections

  file, colon, arguments = config_path(path).partition(':')
  try:
    spec = importlib.util.spec_from_file_location('config_file', file)
    if spec is None or spec.loader is None:
      raise UserError('this is not a Python file; expected one with get_config.')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arguments) if colon else module.get_config()
  except UserError as error:
    raise UserError(f'{path}: {error}') from None
  except OSError as error:
    raise UserError(
      f'the config file {file} cannot be read ({error.strerror}); expected a path from here.'
    ) from None
  except Exception as error:  # whatever a user's file raises
    reason = ' '.join(str(error).split())
    raise UserError(
      f'the config file {path} does not work ({type(error).__name__}: {reason}).'
    ) from None
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f'get_config of {path} returns no ConfigDict; expected one.')
  return config

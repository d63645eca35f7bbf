"""The config that a run's folder keeps, compared with the config of the present start."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from electra_jax import file_access
from electra_jax.config import (
  FinetuningConfig,
  PretrainingConfig,
  completed,
  differences,
  flat,
  names_with,
  to_plain,
)
from electra_jax.config.declarations import UNSET, Config, fields_of
from electra_jax.errors import UserError
from electra_jax.training import run_folder

C = TypeVar('C', bound=Config)
CONFIG = 'config.json'


def changed_fields(
  folder: epath.Path,
  config: PretrainingConfig | FinetuningConfig,
  free: tuple[str, ...] = (),
) -> list[str]:
  """Describes fields that differ from the kept config and may not change when a run resumes.

  Args:
    folder: the run's folder.
    config: config of the present start.
    free: fields that may change, beside those that are declared as resumable.

  Returns:
    A phrase per field; none if the folder keeps no config.

  Raises:
    UserError: the kept config is damaged, or the folder cannot be reached.
  """
  path = folder / CONFIG
  if not file_access.exists(path):
    return []
  kind = type(config)
  kept = completed(run_folder.read_json(path), kind)
  return list(differences(kept, to_plain(config), (*names_with(kind, 'resumable'), *free)))


def newer_fields(folder: epath.Path, kind: type[Config]) -> dict[str, Any]:
  """Fields that the kept config lacks, because they are newer than the run -> their `before`.

  Fields whose default is what the program did before are left out.

  Args:
    folder: the run's folder.
    kind: class of the config.

  Raises:
    UserError: the kept config is damaged, or the folder cannot be reached.
  """
  path = folder / CONFIG
  if not file_access.exists(path):
    return {}
  kept, newer = run_folder.read_json(path), {}
  for name, entry in fields_of(kind).items():
    at: Any = kept
    for part in name.split('.'):
      at = at.get(part, UNSET) if isinstance(at, Mapping) else UNSET
    if at is UNSET and entry.declaration.before is not UNSET:
      newer[name] = entry.declaration.before
  return newer


def with_kept_meaning(config: C, folder: epath.Path) -> C:
  """The config of a run that is resumed, with the meaning that it was started with.

  Fields that are newer than the run have their `before`, unless the config sets them.

  Args:
    config: config of the present start.
    folder: the run's folder.
  """
  defaults = flat(type(config)())
  newer = newer_fields(folder, type(config))
  given = flat(config)
  return config.replace(
    {name: before for name, before in newer.items() if given[name] == defaults[name]}
  )


def kept_plain(config: Config, folder: epath.Path) -> dict[str, Any]:
  """The config to keep of a run that is resumed: fields newer than the run stay left out."""
  plain, given = to_plain(config), flat(config)
  for name, before in newer_fields(folder, type(config)).items():
    *groups, last = name.split('.')
    at = plain
    for group in groups:
      at = at[group]
    if given[name] == before:
      del at[last]
  return plain


def another_config_error(folder: epath.Path, changed: Sequence[str]) -> UserError:
  """The error of a start in a folder that holds the run of another config."""
  more = '; ...' if len(changed) > 3 else ''
  return UserError(
    f'{folder} holds a run of another config ({"; ".join(changed[:3])}{more}); give the same '
    'config to resume it, or another --workdir.'
  )

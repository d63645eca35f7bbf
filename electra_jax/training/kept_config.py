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
  from_plain,
  names_with,
  to_plain,
)
from electra_jax.config.declarations import UNSET, fields_of
from electra_jax.errors import UserError
from electra_jax.training import run_folder, versions

CONFIG = 'config.json'
C = TypeVar('C', PretrainingConfig, FinetuningConfig)


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


def as_started(folder: epath.Path, config: C) -> C:
  """The config of a run that is resumed, with the meaning that it was started with.

  Fields that did not exist when the run was started, and that the present start leaves at their
  default, get the value that the run implies: `before` of their declaration.

  Args:
    folder: the run's folder.
    config: config of the present start.

  Raises:
    UserError: the kept config is damaged, or the folder cannot be reached.
  """
  path = folder / CONFIG
  if not file_access.exists(path):
    return config
  plain = run_folder.read_json(path)
  # Starts of later versions have written the values into the kept config.
  started_with = versions.read_versions(folder).get('started_with') or {}
  first_version = started_with.get('electra_jax', '0.1.0') == '0.1.0'
  kept, given = flat(from_plain(plain, type(config))), flat(config)
  changes = {}
  for name, entry in fields_of(type(config)).items():
    before = entry.declaration.before
    if before is UNSET or given[name] != entry.default or kept[name] != before:
      continue
    if first_version or not _has(plain, name):
      changes[name] = before
  return config.replace(changes)


def _has(plain: Mapping[str, Any], name: str) -> bool:
  """Whether a config as JSON has it has a field, named with dots."""
  *groups, last = name.split('.')
  for group in groups:
    plain = plain.get(group, {})
  return last in plain


def another_config_error(folder: epath.Path, changed: Sequence[str]) -> UserError:
  """The error of a start in a folder that holds the run of another config."""
  more = '; ...' if len(changed) > 3 else ''
  return UserError(
    f'{folder} holds a run of another config ({"; ".join(changed[:3])}{more}); give the same '
    'config to resume it, or another --workdir.'
  )

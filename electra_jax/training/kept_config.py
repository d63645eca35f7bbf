"""The config that a run's folder keeps, compared with the config of the present start."""

from collections.abc import Sequence

from etils import epath

from electra_jax import file_access
from electra_jax.config import (
  FinetuningConfig,
  PretrainingConfig,
  completed,
  differences,
  names_with,
  to_plain,
)
from electra_jax.errors import UserError
from electra_jax.training import run_folder

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


def another_config_error(folder: epath.Path, changed: Sequence[str]) -> UserError:
  """The error of a start in a folder that holds the run of another config."""
  more = '; ...' if len(changed) > 3 else ''
  return UserError(
    f'{folder} holds a run of another config ({"; ".join(changed[:3])}{more}); give the same '
    'config to resume it, or another --workdir.'
  )

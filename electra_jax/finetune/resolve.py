"""Interprets a fine-tuning config, in one place: (config, workdir) -> ResolvedFinetuning.

All other code takes the typed values, never a ConfigDict.
"""

import dataclasses
import os
from typing import Any

from etils import epath

from electra_jax import file_access
from electra_jax.config import (
  AnyConfig,
  FinetuningConfig,
  ModelConfig,
  checked_finetuning,
  from_plain,
)
from electra_jax.errors import UserError
from electra_jax.finetune import initial
from electra_jax.training import plugins, run_folder, versions
from electra_jax.training.kept_config import as_started
from electra_jax.training.run_folder import read_json

# Largest width of an encoder, its learning rate and layer-wise decay (Clark et al. 2020, table 7).
BY_WIDTH = ((256, 3e-4, 0.8), (768, 1e-4, 0.8), (None, 5e-5, 0.9))
# Learning rate of a head on a frozen encoder; docs/finetuning.md describes how it was measured.
FROZEN_RATE = 1e-2


@dataclasses.dataclass(frozen=True)
class ResolvedFinetuning:
  """What a fine-tuning config means for a run's folder.

  Attributes:
    config: the run's fields.
    workdir: the run's folder.
    origin: of the weights that an earlier start of the run used, for JSON; None where no trial was
      started. All trials start from the same weights.
    encoder: config.model of the encoder as that start recorded it; None as `origin`.
    dtype: of matrix products, as that start recorded it; None as `origin`, and for runs of 0.1.0.
  """

  config: FinetuningConfig
  workdir: epath.Path
  origin: dict[str, Any] | None = None
  encoder: ModelConfig | None = None
  dtype: str | None = None


def resolve_finetuning(config: AnyConfig, workdir: str | os.PathLike[str]) -> ResolvedFinetuning:
  """Resolves a config that a run is started or resumed with. No data is read.

  Args:
    config: a ConfigDict, or a typed config.
    workdir: the run's folder.

  Raises:
    UserError: fields are invalid or contradict each other, or the folder holds a model that was
      imported.
  """
  c, folder = checked_finetuning(config), run_folder.folder(workdir)
  encoder = folder / initial.ENCODER
  resumed = started(folder)
  if resumed:
    c = as_started(folder, c)
  origin = model = dtype = None
  if resumed and file_access.exists(encoder):
    recorded = read_json(encoder, initial.ENCODER_SHAPE)
    origin, model = recorded['origin'], from_plain(recorded['model'], ModelConfig)
    dtype = recorded.get('dtype')
  if origin and origin.get('imported'):
    raise UserError(
      f'{folder} holds a model that was imported; train it further in another --workdir, with '
      f'--config.init={folder}/{c.tasks[0]}.'
    )
  return ResolvedFinetuning(c, folder, origin, model, dtype)


def resolve_saved_finetuning(workdir: str | os.PathLike[str]) -> ResolvedFinetuning:
  """Resolves the config in a fine-tuned run's folder, for prediction.

  Raises:
    UserError: the folder holds no config of a fine-tuned run.
  """
  folder = run_folder.folder(workdir)
  versions.read_versions(folder)
  plugins.require_recorded(folder)
  c = from_plain(read_json(folder / 'config.json'), FinetuningConfig)
  # This kernel runs on all devices and takes rows of any length.
  return ResolvedFinetuning(c.replace({'model.attention': 'xla'}), folder)


def started(folder: epath.Path) -> bool:
  """Whether a trial was started in a run's folder, or a pretraining run.

  Raises:
    UserError: the folder cannot be reached.
  """
  with file_access.reaching(folder):
    if not folder.exists():
      return False
    trials = any(any(folder.glob(place)) for place in ('*/trial-*', '*/search/*/trial-*'))
    return trials or (folder / 'checkpoints').exists()


def learning_rates(config: FinetuningConfig, hidden_size: int) -> tuple[float, float]:
  """Learning rate and layer-wise decay: the config's, or the published ones by width.

  Args:
    config: its zeros are replaced.
    hidden_size: of the encoder.
  """
  if config.frozen:
    return config.optimizer.learning_rate or FROZEN_RATE, 1.0
  rate, decay = next(
    (rate, decay) for widest, rate, decay in BY_WIDTH if widest is None or hidden_size <= widest
  )
  return config.optimizer.learning_rate or rate, config.optimizer.layer_decay or decay

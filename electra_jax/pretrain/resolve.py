"""The one place where a pretraining config is interpreted: (config, workdir) -> ResolvedRun.

`--mode=train`, `prepare` and `plan` resolve the config of a command line, `evaluate`, `inspect` and
the other modes that open a run resolve the one in its folder. All code below takes the typed
values of a ResolvedRun, never a ConfigDict.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from electra_jax.config import AnyConfig, Phase, PretrainingConfig, checked_pretraining, phases_of
from electra_jax.pretrain import build, continued
from electra_jax.training import run_folder
from electra_jax.training.encoders import run_config


@dataclasses.dataclass(frozen=True)
class ResolvedRun:
  """What a config means, with all that it leaves to other sources filled in.

  Attributes:
    config: the run's fields. Sizes, sharing and vocabulary size are those of the initial weights
      where there are any.
    phases: the parts of the run, at least one; each has a config of its own.
    workdir: the run's folder; None for a run that has none (prepare, plan).
    source: the initial weights and their tokenizer; None where parameters are initialized randomly,
      or restored from a checkpoint of the run.
    tokenizer: path of the tokenizer that comes with the initial weights; None where
      config.data.tokenizer names it.
  """

  config: PretrainingConfig
  phases: tuple[Phase, ...]
  workdir: epath.Path | None = None
  source: continued.Source | None = None
  tokenizer: str | None = None

  def with_steps(self, steps: int) -> 'ResolvedRun':
    """The run with another number of steps, checked again. Raises UserError."""
    config = checked_pretraining(self.config.replace({'steps': steps}), sizes_known=True)
    return dataclasses.replace(self, config=config, phases=phases_of(config))


def resolve(
  config: AnyConfig, workdir: str | os.PathLike[str] | None = None, platform: str | None = None
) -> ResolvedRun:
  """Resolves a config that a run is started or resumed with. No data is read.

  Args:
    config: a ConfigDict, or a typed config.
    workdir: the run's folder. Where it holds a checkpoint, sizes are those that the run was started
      with, and initial weights are not read.
    platform: 'cpu', 'gpu' or 'tpu', for what the config leaves to it; None for JAX's default.

  Raises:
    UserError: for fields that cannot be, or contradict each other or the initial weights.
  """
  c = checked_pretraining(config)
  c, source = continued.with_sizes(c, workdir)
  c = checked_pretraining(c, sizes_known=True)
  phases = phases_of(c)
  for phase in phases:  # sizes that contradict each other are reported before long work
    build.build_model(phase.config, phase.config.data.vocab_size, platform)
  folder = None if workdir is None else run_folder.folder(workdir)
  return ResolvedRun(c, phases, folder, source, continued.tokenizer_path(c, source, folder))


def resolve_saved(
  workdir: str | os.PathLike[str], changes: Mapping[str, Any] | None = None
) -> ResolvedRun:
  """Resolves the config that is kept in a run's folder.

  Args:
    workdir: the run's folder.
    changes: fields to change, by name with dots.

  Raises:
    UserError: where the folder holds no config of a run.
  """
  folder = run_folder.folder(workdir)
  c = run_config(folder).replace(changes or {})
  return ResolvedRun(c, phases_of(c), folder, None, continued.tokenizer_path(c, None, folder))

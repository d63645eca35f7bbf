"""The one place where a pretraining config is interpreted: (config, workdir) -> ResolvedRun.

The modes train, prepare and plan resolve the config of a command line. Modes that open a run
resolve the config in its folder. All other code takes the typed values of a ResolvedRun, never a
ConfigDict.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from electra_jax.config import AnyConfig, Phase, PretrainingConfig, checked_pretraining, phases_of
from electra_jax.pretrain import build
from electra_jax.pretrain.continued.sizes import with_sizes
from electra_jax.pretrain.continued.source import InitialWeights, recorded_revisions
from electra_jax.pretrain.continued.tokens import tokenizer_path
from electra_jax.training import checkpoints, run_folder
from electra_jax.training.encoders import run_config
from electra_jax.training.kept_config import as_started


@dataclasses.dataclass(frozen=True)
class ResolvedRun:
  """A config with all values that it leaves to other sources.

  Attributes:
    config: the run's fields. Sizes, sharing and vocabulary size are those of the initial weights
      where there are any.
    phases: the parts of the run, at least one, each with its own config.
    workdir: the run's folder; None for a run without one (prepare, plan).
    source: the initial weights and their tokenizer; None where parameters are initialized randomly,
      or restored from a checkpoint of the run.
    revisions: commits of the repositories that initial weights were downloaded from, by source.
    tokenizer: path of the tokenizer that comes with the initial weights; None where
      config.data.tokenizer names it.
  """

  config: PretrainingConfig
  phases: tuple[Phase, ...]
  workdir: epath.Path | None = None
  source: InitialWeights | None = None
  tokenizer: str | None = None
  revisions: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def with_dtype(self, dtype: str) -> 'ResolvedRun':
    """The run with the dtype that 'auto' stands for on its devices."""
    config = self.config.replace({'dtype': dtype})
    return dataclasses.replace(self, config=config, phases=phases_of(config))

  def with_steps(self, steps: int) -> 'ResolvedRun':
    """The run with another number of steps, checked again. Raises UserError."""
    config = checked_pretraining(self.config.replace({'steps': steps}), sizes_known=True)
    return dataclasses.replace(self, config=config, phases=phases_of(config))


def resolve_run(
  config: AnyConfig, workdir: str | os.PathLike[str] | None = None, platform: str | None = None
) -> ResolvedRun:
  """Resolves a config that a run is started or resumed with. No data is read.

  Args:
    config: a ConfigDict, or a typed config.
    workdir: the run's folder. Where it holds a checkpoint, sizes are those that the run was started
      with, fields newer than the run have the meaning that it was started with, and initial weights
      are not read.
    platform: 'cpu', 'gpu' or 'tpu', for what the config leaves to it; None for JAX's default.

  Raises:
    UserError: for fields that are invalid, or contradict each other or the initial weights.
  """
  c = checked_pretraining(config)
  folder = None if workdir is None else run_folder.folder(workdir)
  saved = folder is not None and checkpoints.any_saved(folder)
  if folder is not None and saved:
    c = as_started(folder, c)
  c, source = with_sizes(c, workdir)
  c = checked_pretraining(c, sizes_known=True)
  phases = phases_of(c)
  # Sizes that contradict each other, and unknown options, are reported before long work.
  for phase in phases:
    build.build_model(phase.config, phase.config.data.vocab_size, platform)
  build.build_optimizer(c)
  revisions: Mapping[str, str] = source.revisions if source else {}
  if source is None and (saved or c.generator.init):
    revisions = recorded_revisions(folder)
  return ResolvedRun(c, phases, folder, source, tokenizer_path(c, source, folder), revisions)


def resolve_saved_run(
  workdir: str | os.PathLike[str], changes: Mapping[str, Any] | None = None
) -> ResolvedRun:
  """Resolves the config in a run's folder.

  Args:
    workdir: the run's folder.
    changes: fields to change, by names with dots.

  Raises:
    UserError: the folder holds no config of a run.
  """
  folder = run_folder.folder(workdir)
  c = run_config(folder).replace(changes or {})
  path = tokenizer_path(c, None, folder)
  return ResolvedRun(c, phases_of(c), folder, None, path, recorded_revisions(folder))

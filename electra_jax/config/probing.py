"""The fields of a config of probes: linear classifiers on frozen states of an encoder."""

import dataclasses
from typing import Any

from electra_jax.config import declarations
from electra_jax.config.declarations import Config, ConfigDict, field, group, options, require
from electra_jax.config.finetuning import FinetuningConfig, TaskDataConfig
from electra_jax.config.finetuning_rules import check_finetuning
from electra_jax.config.groups import ALLOW_LOSS_HELP, CACHE, CACHE_HELP, DTYPE_HELP, DTYPES


@dataclasses.dataclass(frozen=True)
class ProbingConfig(Config):
  """Linear probes of an encoder, for one task."""

  name: str = field('probe', 'Names the default workdir, runs/<name>.', one_line=True)
  init: str = field(
    '',
    "What is probed: '' for the run of --workdir; hf:FOLDER, hf:org/name, tf:CHECKPOINT, a run.",
    files='read',
  )
  init_step: str = field('last', 'Checkpoint of a run: last, best or a step.')
  task: str = field('pos', 'Task of tags or of classes.')
  task_options: dict[str, Any] = options('Options of a task that user code registered.')
  train_examples: int = field(
    2_000, 'Train on this many examples, others for each seed; 0: all.', at_least=0
  )
  num_trials: int = field(3, 'Seeds: of the training examples and the control task.', at_least=1)
  seed: int = field(0, 'The first seed; then one more each.')
  max_length: int = field(
    0, 'Tokens per row, at most; 0: as published for the task.', at_least=8, also=(0,)
  )
  pooling: str = field(
    'mean',
    'Tasks of classes: the mean over the tokens of a row, or cls.',
    choices=('mean', 'cls'),
  )
  penalty: float = field(
    1.0,
    'Half of it times the squared norm of the weights is added to the summed loss; scikit-learn: '
    '1 / C.',
    at_least=0,
  )
  max_steps: int = field(100, 'Steps of L-BFGS, at most.', at_least=1)
  mix: bool = field(True, 'Probe a learned mix of all layers, too.')
  control: bool = field(True, 'Tags: probe for random labels of words, too, for selectivity.')
  allow_loss: bool = field(False, ALLOW_LOSS_HELP)
  eval_batch_size: int = field(
    64, 'A batch has at most as many tokens as so many longest rows.', at_least=1
  )
  dtype: str = field('auto', DTYPE_HELP, choices=DTYPES)
  compilation_cache: str = field(CACHE, CACHE_HELP, files='written')
  data: TaskDataConfig = group(TaskDataConfig, 'Labeled data.')

  def finetuning(self, workdir: str) -> FinetuningConfig:
    """The config of fine-tuning on a frozen encoder that has the same fields.

    Args:
      workdir: the run that is probed where `init` names nothing.
    """
    shared = {
      name: getattr(self, name)
      for name in ('task', 'task_options', 'init_step', 'train_examples', 'max_length')
    }
    more = {name: getattr(self, name) for name in ('eval_batch_size', 'dtype', 'allow_loss')}
    given = FinetuningConfig().replace(
      {'init': self.init or workdir, 'frozen': True, **shared, **more}
    )
    return dataclasses.replace(given, data=self.data)


def check_probing(c: ProbingConfig) -> None:
  """Checks the rules across fields. Raises UserError for the first that does not hold."""
  check_finetuning(c.finetuning('the run'))
  require(
    len(c.finetuning('the run').tasks) == 1,
    f'config.task is {c.task!r}; expected one task, as in --config.task=pos.',
  )
  require(
    0 <= c.seed and c.seed + c.num_trials <= 2**32,
    f'config.seed is {c.seed}; the seeds of all trials must be between 0 and 2**32.',
  )


def default_config() -> ConfigDict:
  """The ConfigDict of all fields of probes with their defaults, for a config file to change."""
  return declarations.config_dict(ProbingConfig)

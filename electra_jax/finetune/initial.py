"""The encoder that fine-tuning starts from: model, tokenizer and weights, or fresh weights.

It comes from a pretraining run, a task of a fine-tuned run, or files of another program.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from etils import epath

from electra_jax import file_access, hub, registry
from electra_jax.config import FinetuningConfig, ModelConfig, flat, from_plain
from electra_jax.config.declarations import fields_of
from electra_jax.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.interop import own
from electra_jax.interop.origins import open_source, with_tokenizer
from electra_jax.interop.weights import Weights, as_encoder, place_params
from electra_jax.training import checkpoints, run_folder
from electra_jax.training.checkpoints import Criterion
from electra_jax.training.encoders import run_config
from electra_jax.training.progress import read_metrics
from electra_jax.training.run_folder import read_json

PyTree: TypeAlias = Any

# Files of a fine-tuned run.
ENCODER = 'encoder.json'  # config.model of the pretraining run, and the origin of the weights
TASK = 'task.json'  # in the folder of a task
KEPT = 'kept.json'  # in the folder of a task: the trials whose weights are kept, the best first
DEV_LOSS = 'dev_loss'  # the loss in evaluations on dev
ENCODER_SHAPE = {'model': dict, 'origin': dict}
# Fields of config.model that describe how an encoder is computed here, not the encoder.
OWN_CHOICES = (
  'vocab_multiple',
  'remat',
  'scan_unroll',
  'attention',
  'dropout_generator',
  'dropout_scale',
  'residual',
)


@dataclasses.dataclass(frozen=True)
class Initial:
  """An encoder to start from.

  Attributes:
    model: the group config.model of the run that it comes from.
    tokenizer: of that run.
    origin: for JSON: `run`, `name`, `step` (None for fresh weights, or where it is not known),
      `tokens` that it was pretrained on; for weights of another program also their `checksum`.
    weights: the folder whose checkpoints contain them, or the weights themselves, `embeddings` and
      `discriminator` in NumPy; None for fresh weights.
    notes: sentences to print at the start.
  """

  model: ModelConfig
  tokenizer: Tokenizer
  origin: dict[str, Any]
  weights: str | dict[str, Any] | None
  notes: tuple[str, ...] = ()

  def restore(self, shapes: PyTree, shardings: PyTree) -> PyTree:
    """`embeddings` and `discriminator`, created with the given shardings.

    Args:
      shapes: of the parameters.
      shardings: of the parameters.

    Raises:
      UserError: a parameter is missing or has another shape.
    """
    assert self.weights is not None, 'fresh weights are not restored'
    if isinstance(self.weights, dict):
      return place_params(self.weights, shapes, shardings)
    return checkpoints.restore_subtrees(self.weights, self.origin['step'], shapes, shardings)

  def describe(self) -> str:
    """The origin of the weights, to print at the start."""
    if self.weights is None:
      return f'fresh weights, in the encoder of {self.origin["run"]}'
    step, tokens = self.origin['step'], self.origin.get('tokens')
    return (
      str(self.origin['run'])
      + (f', step {step:,}' if step is not None else '')
      + (f', pretrained on {tokens:,.0f} tokens' if tokens else '')
      + (f', on top of {self.origin["after"]}' if 'after' in self.origin else '')
    )


def open_initial(config: FinetuningConfig, before: Mapping[str, Any] | None = None) -> Initial:
  """Opens the encoder that config.init names.

  Args:
    config: of the fine-tuning run.
    before: the origin that an earlier start of the run used. All trials start from the same
      weights, even if a pretraining run that is still training has a later checkpoint by now.

  Raises:
    UserError: config.init is not a run, or lacks the checkpoint, or a source of another program is
      incomplete.
  """
  fresh = config.init == 'none'
  source = config.like if fresh else config.init
  if registry.is_foreign(source):
    weights = open_source(_pinned(source, before))
    start = initial_of_weights(weights, source, fresh, before)
    if weights.head is None or fresh:
      return start
    note = f'the head for {weights.head.kind} is not used; a new one is trained'
    return dataclasses.replace(start, notes=(*start.notes, note))
  folder = run_folder.folder(source)
  field = 'config.like' if fresh else 'config.init'
  with file_access.reaching(folder):
    # A task that was fine-tuned before, as MNLI before RTE in the paper.
    if (folder / TASK).exists():
      return _of_task(folder, fresh, config.init_step, before)
    if not (folder / 'config.json').exists() or not (folder / 'tokenizer').is_dir():
      raise UserError(
        f'{field} is {folder}, which is not a run: it has no config.json and tokenizer; set it to '
        'the folder of a pretrained run.'
      )
    if (folder / ENCODER).exists():
      raise UserError(
        f'{field} is {folder}, which is a fine-tuned run; set it to the folder of one of its '
        f'tasks, as {folder}/mnli, or of a pretrained run.'
      )
  return _of_pretraining(folder, fresh, config.init_step, before)


def with_choices_of(recorded: ModelConfig, start: Initial) -> Initial:
  """An encoder that is computed as an earlier start of the run recorded it.

  Weights of other programs come without such choices, and the defaults differ between versions.

  Args:
    recorded: config.model in the run's encoder.json.
    start: the encoder as it is opened now.
  """
  choices = {name: getattr(recorded, name) for name in OWN_CHOICES}
  return dataclasses.replace(start, model=start.model.replace(choices))


def _pinned(source: str, before: Mapping[str, Any] | None) -> str:
  """The source at the commit that an earlier start used."""
  name, path = registry.split_source(source)
  return f'{name}:{hub.pinned(path, (before or {}).get("revision", ""))}'


def _of_pretraining(
  folder: epath.Path, fresh: bool, which: str, before: Mapping[str, Any] | None
) -> Initial:
  """The discriminator of a pretraining run."""
  tokenizer = load_tokenizer(folder / 'tokenizer')
  pretraining = run_config(folder)
  origin: dict[str, Any] = {'run': str(folder), 'name': pretraining.name, 'step': None}
  if pretraining.init:
    origin['after'] = pretraining.init
  if fresh:
    return Initial(pretraining.model, tokenizer, origin, None)
  best_by = checkpoints.run_criterion(pretraining)
  step = checkpoints.find_step(folder, before['step'] if before else which, best_by)
  lines = [line for line in read_metrics(folder) if line['step'] <= step and 'tokens' in line]
  origin |= {'step': step, 'tokens': max((line['tokens'] for line in lines), default=None)}
  weights: str | dict[str, Any] = str(folder)
  # The embeddings of such a scheme are the sum of two parts.
  if registry.SHARING_SCHEMES.get(pretraining.sharing).folds_into:
    both = own.read_weights(folder, str(step), moments=False).params
    weights = {name: both[name] for name in ('embeddings', 'discriminator')}
  return Initial(pretraining.model, tokenizer, origin, weights)


def initial_of_weights(
  weights: Weights, source: str, fresh: bool = False, before: Mapping[str, Any] | None = None
) -> Initial:
  """The discriminator in files of another program.

  Args:
    weights: the content of the files.
    source: as in the config, hf:... or tf:...
    fresh: whether only the encoder's sizes and the tokenizer are used.
    before: as in `open_initial`.

  Raises:
    UserError: the files have no discriminator, or no tokenizer that fits it, or other weights than
      those that the run started from.
  """
  field = f'config.{"like" if fresh else "init"} {source}'
  weights = as_encoder(weights)
  if weights.discriminator is None:
    raise UserError(
      f'{field} has a generator but no discriminator, which fine-tuning requires; set it to the '
      'discriminator.'
    )
  weights, tokenizer = with_tokenizer(weights, field)
  encoder = weights.discriminator
  model = ModelConfig().replace(
    {
      entry.name: entry.kind(getattr(encoder, entry.name))
      for entry in fields_of(ModelConfig).values()
      if entry.name not in OWN_CHOICES
    }
  )
  name = source.split(';')[0].rstrip('/').split('/')[-1].split(':')[-1]
  origin: dict[str, Any] = {'run': source, 'name': name, 'step': None}
  if fresh:
    return Initial(model, tokenizer, origin, None)
  params = {name: weights.params[name] for name in ('embeddings', 'discriminator')}
  origin |= {'step': weights.step, 'tokens': None, 'checksum': checksum(params)}
  if weights.revision:
    origin['revision'] = weights.revision
  if before and before.get('checksum') != origin['checksum']:
    raise UserError(
      f'{field} has other weights than those that the run started from; restore them, or use '
      'another --workdir.'
    )
  return Initial(model, tokenizer, origin, params, weights.notes)


def checksum(params: PyTree) -> int:
  """CRC-32 of a tree of NumPy arrays, in the order of their names."""
  found = 0
  for _, value in jax.tree_util.tree_leaves_with_path(params):
    found = zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data, found)
  return found


def _of_task(
  folder: epath.Path, fresh: bool, which: str, before: Mapping[str, Any] | None
) -> Initial:
  """The encoder of a task's best trial in a fine-tuned run."""
  saved = read_json(folder.parent / ENCODER, ENCODER_SHAPE)
  tokenizer = load_tokenizer(folder.parent / 'tokenizer')
  model = from_plain(saved['model'], ModelConfig)
  origin: dict[str, Any] = {'run': str(folder), 'name': folder.name, 'step': None}
  if fresh:
    return Initial(model, tokenizer, origin, None)
  trial = before['trial'] if before else best_trial(folder)
  if before:
    which = before['step']
  elif which in ('last', 'best'):  # the weights that the trial was scored with
    which = read_json(folder.parent / 'config.json').get('select', 'last')
  by = read_json(folder.parent / 'config.json').get('best_by', 'metric')
  best_by = best_criterion(by, read_json(folder / TASK, {'metric': str})['metric'])
  step = checkpoints.find_step(folder / trial, which, best_by)
  origin |= {'step': step, 'trial': trial, 'tokens': saved['origin'].get('tokens')}
  return Initial(model, tokenizer, origin, str(folder / trial))


def best_criterion(best_by: str, metric: str) -> Criterion:
  """How the best evaluation on dev is chosen: by the task's metric, or by the loss.

  Args:
    best_by: config.best_by.
    metric: of the task.
  """
  return Criterion(DEV_LOSS, 'min') if best_by == 'loss' else Criterion(metric, 'max')


def best_trial(folder: epath.Path) -> str:
  """The name of the folder of the best trial of a task whose weights are kept.

  Raises:
    UserError: no weights are kept.
  """
  kept = kept_trials(folder)
  if not kept:
    raise UserError(
      f'{folder} has no weights: its trials are not complete, or config.keep_trials was none; '
      'complete them, or use another folder.'
    )
  return f'trial-{kept[0]}'


def kept_trials(folder: epath.Path) -> list[int]:
  """Numbers of the trials of a task whose weights are kept, the best first."""
  if not file_access.exists(folder / KEPT):
    return []
  trials: list[int] = read_json(folder / KEPT, {'trials': [int]})['trials']
  return trials


def with_choices(model: ModelConfig, config: FinetuningConfig) -> ModelConfig:
  """The config.model of the pretrained encoder, with the fields that fine-tuning chooses."""
  return model.replace(flat(config.model))


def weights_count(params: PyTree) -> int:
  """Number of elements of a tree of arrays or shapes."""
  return sum(x.size for x in jax.tree.leaves(params))

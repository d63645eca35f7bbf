"""What fine-tuning starts from: the encoder and the tokenizer of a run or of another program, and its weights, or fresh ones."""

import dataclasses
import zlib

import jax
import numpy as np

from electra_jax import registry
from electra_jax.config import FinetuningConfig, ModelConfig, flat, from_plain
from electra_jax.config.declarations import fields_of
from electra_jax.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.interop import own
from electra_jax.interop.origins import is_foreign, open_source, with_tokenizer
from electra_jax.interop.weights import Weights, placed
from electra_jax.training import checkpoints, run_folder
from electra_jax.training.encoders import run_config
from electra_jax.training.progress import read_metrics
from electra_jax.training.run_folder import read_json

ENCODER = (
  'encoder.json'  # in a fine-tuned run: config.model of the pretraining run, and where it is from
)
TASK = 'task.json'  # in each task's folder of a fine-tuned run
# Fields of config.model that describe how an encoder is computed here, not the encoder.
OWN_CHOICES = ('vocab_multiple', 'remat', 'scan_unroll', 'attention', 'dropout_generator')
KEPT = 'kept.json'  # there too: the trials whose weights are kept, the best first


@dataclasses.dataclass(frozen=True)
class Initial:
  """An encoder to start from.

  Attributes:
    model: the group config.model of the run that it comes from.
    tokenizer: that run's.
    origin: plain facts: `run`, `name`, `step` (None for fresh weights, or where it is not known), `tokens` that it was pretrained on;
      of another program's weights also their `checksum`.
    weights: the folder whose checkpoints hold it, or the weights themselves, `embeddings` and `discriminator` in NumPy; None for
      fresh weights.
    notes: sentences for the first screen.
  """

  model: ModelConfig
  tokenizer: Tokenizer
  origin: dict
  weights: str | dict | None
  notes: tuple[str, ...] = ()

  def restore(self, shapes, shardings):
    """`embeddings` and `discriminator`, born with the given shardings. Raises UserError that names what is missing or misfits."""
    if isinstance(self.weights, dict):
      return placed(self.weights, shapes, shardings)
    return checkpoints.restore_subtrees(self.weights, self.origin['step'], shapes, shardings)

  def describe(self) -> str:
    """For the first screen."""
    if self.weights is None:
      return f'fresh weights, in the encoder of {self.origin["run"]}'
    step, tokens = self.origin['step'], self.origin.get('tokens')
    return (
      self.origin['run']
      + (f', step {step:,}' if step is not None else '')
      + (f', pretrained on {tokens:,.0f} tokens' if tokens else '')
      + (f', on top of {self.origin["after"]}' if 'after' in self.origin else '')
    )


def open_initial(config: FinetuningConfig, before: dict | None = None) -> Initial:
  """What config.init says.

  Args:
    config: of the fine-tuning run.
    before: the origin that an earlier start of the run had: its trials are all to begin with the same weights, though a run that
      still trains has a later checkpoint by now.

  Raises UserError where config.init names no run, or one without such a checkpoint, or what a source of another program lacks.
  """
  fresh = config.init == 'none'
  if is_foreign(source := config.like if fresh else config.init):
    weights = open_source(source)
    start = of_weights(weights, source, fresh, before)
    left = (
      f'the head for {weights.head.kind} is left behind, and a new one trained'
      if weights.head and not fresh
      else ''
    )
    return dataclasses.replace(start, notes=(*start.notes, left)) if left else start
  folder = run_folder.folder(config.like if fresh else config.init)
  field = 'config.like' if fresh else 'config.init'
  with run_folder.reaching(folder):
    if (
      folder / TASK
    ).exists():  # a task that was fine-tuned on before, as MNLI before RTE in the paper
      return _of_task(folder, fresh, config.init_step, before)
    if not (folder / 'config.json').exists() or not (folder / 'tokenizer').is_dir():
      raise UserError(
        f'{field} {folder} is not a run: it has no config.json and tokenizer; name the folder of a pretrained run.'
      )
    if (folder / ENCODER).exists():
      raise UserError(
        f'{field} {folder} is a fine-tuned run; name the folder of one of its tasks, as {folder}/mnli, or of a pretrained run.'
      )
  tokenizer = load_tokenizer(folder / 'tokenizer')
  pretraining = run_config(folder)
  origin = {'run': str(folder), 'name': pretraining.name, 'step': None} | (
    {'after': pretraining.init} if pretraining.init else {}
  )
  if fresh:
    return Initial(pretraining.model, tokenizer, origin, None)
  step = checkpoints.find_step(folder, before['step'] if before else config.init_step)
  lines = [line for line in read_metrics(folder) if line['step'] <= step and 'tokens' in line]
  tokens = max((line['tokens'] for line in lines), default=None)
  weights = str(folder)
  if registry.SHARING_SCHEMES.get(pretraining.sharing).folds_into:  # embeddings in two parts
    both = own.read(folder, step, moments=False).params
    weights = {name: both[name] for name in ('embeddings', 'discriminator')}
  return Initial(pretraining.model, tokenizer, origin | {'step': step, 'tokens': tokens}, weights)


def of_weights(
  weights: Weights, source: str, fresh: bool = False, before: dict | None = None
) -> Initial:
  """The discriminator of another program's files.

  Args:
    weights: what they hold.
    source: what the config calls them, hf:... or tf:...
    fresh: whether the encoder's sizes and the tokenizer alone are wanted.
    before: as of open_initial.

  Raises UserError where they have no discriminator, or no tokenizer that fits it, or are not what the run began with.
  """
  field = f'config.{"like" if fresh else "init"} {source}'
  if weights.discriminator is None:
    raise UserError(
      f'{field} holds a generator and no discriminator, which is what is fine-tuned; name the discriminator.'
    )
  weights, tokenizer = with_tokenizer(weights, field)
  d = weights.discriminator
  model = ModelConfig().replace(
    {
      entry.name: entry.kind(getattr(d, entry.name))
      for entry in fields_of(ModelConfig).values()
      if entry.name not in OWN_CHOICES
    }
  )
  origin = {
    'run': source,
    'name': source.split(';')[0].rstrip('/').split('/')[-1].split(':')[-1],
    'step': None,
  }
  if fresh:
    return Initial(model, tokenizer, origin, None)
  params = {name: weights.params[name] for name in ('embeddings', 'discriminator')}
  origin |= {'step': weights.step, 'tokens': None, 'checksum': checksum(params)}
  if before and before.get('checksum') != origin['checksum']:
    raise UserError(
      f'{field} holds other weights than those that the run began with; restore them, or use another --workdir.'
    )
  return Initial(model, tokenizer, origin, params, weights.notes)


def checksum(params) -> int:
  """Of a tree of NumPy arrays."""
  found = 0
  for _, value in jax.tree_util.tree_leaves_with_path(params):  # in the order of their names
    found = zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8), found)
  return found


def _of_task(folder, fresh, which, before) -> Initial:
  saved = read_json(folder.parent / ENCODER)
  tokenizer = load_tokenizer(folder.parent / 'tokenizer')
  model = from_plain(saved['model'], ModelConfig)
  origin = {'run': str(folder), 'name': folder.name, 'step': None}
  if fresh:
    return Initial(model, tokenizer, origin, None)
  trial = before['trial'] if before else best_trial(folder)
  if before:
    which = before['step']
  elif which in ('last', 'best'):  # the weights that the trial was scored with
    which = read_json(folder.parent / 'config.json').get('select', 'last')
  step = checkpoints.find_step(
    folder / trial, which, metric=read_json(folder / TASK)['metric'], mode='max'
  )
  return Initial(
    model,
    tokenizer,
    origin | {'step': step, 'trial': trial, 'tokens': saved['origin'].get('tokens')},
    str(folder / trial),
  )


def best_trial(folder) -> str:
  """The folder's name of the best trial of a task whose weights are kept. Raises UserError where none is."""
  kept = kept_trials(folder)
  if not kept:
    raise UserError(
      f'{folder} keeps no weights: its trials are not done, or config.keep_trials was none; run them, or name another folder.'
    )
  return f'trial-{kept[0]}'


def kept_trials(folder) -> list[int]:
  """Numbers of the trials of a task whose weights are kept, the best first."""
  return read_json(folder / KEPT)['trials'] if run_folder.exists(folder / KEPT) else []


def with_choices(model: ModelConfig, config: FinetuningConfig) -> ModelConfig:
  """The config.model of the pretrained encoder, with the fields that fine-tuning chooses."""
  return model.replace(flat(config.model))


def weights_count(params) -> int:
  """Elements of a tree of arrays or shapes."""
  return sum(x.size for x in jax.tree.leaves(params))

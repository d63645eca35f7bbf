"""Checkpoints of pretraining runs of this package as `Weights`."""

import dataclasses

from etils import epath

from electra_jax import file_access, registry
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.errors import UserError
from electra_jax.interop.weights import (
  DISCRIMINATOR,
  GENERATOR,
  Weights,
  check_weights,
  trim_vocabulary,
)
from electra_jax.training import checkpoints, run_folder
from electra_jax.training.encoders import run_config, sharing, towers

_OTHER_HEAD = 'predictor_head'  # of an objective that trains the kept tower to predict tokens


def read_weights(folder: str | epath.Path, which: str = 'last', moments: bool = True) -> Weights:
  """Reads both towers of a run's checkpoint.

  A run of masked language modeling has one tower, which is both the discriminator (without its
  head) and the generator. Disentangled embeddings are added up. Other parts that some objectives
  have are left out, with a note.

  Args:
    folder: the run's folder; may be at gs://.
    which: 'last', 'best' (by config.best_by), or a step.
    moments: whether to read Adam's moments.

  Raises:
    UserError: the folder is not a pretraining run, or has no such checkpoint.
  """
  place = run_folder.folder(folder)
  _check_is_run(place)
  config = run_config(place).replace({'model.attention': 'xla'})
  size = load_tokenizer(place / 'tokenizer').size
  objective = registry.OBJECTIVES.get(config.objective.name)
  generator, discriminator = (
    dataclasses.replace(tower, vocab_multiple=1)
    for tower in towers(config, objective.one_tower, size, 'cpu')
  )
  step = checkpoints.find_step(place, which, checkpoints.run_criterion(config))
  trees = {'params': checkpoints.read_arrays(place, step, 'params')}
  if moments:
    trees |= checkpoints.read_moments(place, step) or {}
  scheme = registry.SHARING_SCHEMES.get(sharing(config, objective.one_tower))
  trees = {name: scheme.fold(tree, values=name == 'params') for name, tree in trees.items()}
  params = trees['params']
  has_generator = 'generator' in params or scheme.one_encoder
  notes = []
  if not has_generator:
    if 'generator_head' in params:  # the two towers of Electric's cloze generator
      notes.append(
        f'the generator of {place} is left out: it is a two-tower cloze model, which only '
        'pretraining uses'
      )
  if _OTHER_HEAD in params:
    notes.append(f'the head of {place} that predicts tokens from the kept tower is left out')
  kept = (*DISCRIMINATOR, *(GENERATOR if has_generator else ()))
  trees = {
    name: trim_vocabulary({top: x for top, x in tree.items() if top in kept}, size)
    for name, tree in trees.items()
  }
  return check_weights(
    Weights(
      source=f'{place} (step {step:,})',
      discriminator=discriminator,
      generator=generator if has_generator else None,
      sharing=scheme.exported_as if has_generator else 'embeddings',
      params=trees.pop('params'),
      tokenizer=str(place / 'tokenizer'),
      step=step,
      moments=trees or None,
      notes=tuple(notes),
    ),
    optional=() if objective.has_discriminator else ('discriminator_head',),
  )


def _check_is_run(folder: epath.Path) -> None:
  with file_access.reaching(folder):
    is_run = (folder / 'config.json').exists() and (folder / 'tokenizer').is_dir()
    is_finetuned = (folder / 'encoder.json').exists() or (folder / 'task.json').exists()
  if is_finetuned:
    raise UserError(
      f'{folder} is a fine-tuned run, which has no generator; name the pretrained run that it was '
      'initialized from.'
    )
  if not is_run:
    raise UserError(
      f'{folder} is not a run: it has no config.json and tokenizer; name the folder of a '
      'pretrained run, hf:FOLDER or tf:CHECKPOINT.'
    )

"""Checkpoints of pretraining runs of this package as `Weights`."""

import dataclasses
from typing import Any

from etils import epath

from electra_jax.config import PretrainingConfig
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
    which: 'last', 'best' (by the held-out loss), or a step.
    moments: whether to read Adam's moments.

  Raises:
    UserError: the folder is not a pretraining run, or has no such checkpoint.
  """
  place = run_folder.folder(folder)
  _check_is_run(place)
  config = run_config(place).replace({'model.attention': 'xla'})
  size = load_tokenizer(place / 'tokenizer').size
  generator, discriminator = (
    dataclasses.replace(tower, vocab_multiple=1) for tower in towers(config, size, 'cpu')
  )
  step = checkpoints.find_step(place, which)
  trees = {'params': checkpoints.read_arrays(place, step, 'params')}
  if moments:
    trees |= checkpoints.read_moments(place, step) or {}
  scheme, trees = _fold_scheme(sharing(config), trees)
  params = trees['params']
  has_generator = 'generator' in params or scheme == 'all'
  notes = []
  if not has_generator:
    scheme = 'embeddings'
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
      sharing=scheme,
      params=trees.pop('params'),
      tokenizer=str(place / 'tokenizer'),
      step=step,
      moments=trees or None,
      notes=tuple(notes),
    ),
    optional=() if _trains_detection(config) else ('discriminator_head',),
  )


def _check_is_run(folder: epath.Path) -> None:
  with run_folder.reaching(folder):
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


def _trains_detection(config: PretrainingConfig) -> bool:
  """Whether the objective trains the discriminator's head."""
  return config.objective.name not in ('mlm', 'replace_mlm')


def _fold_scheme(scheme: str, trees: dict[str, Any]) -> tuple[str, dict[str, Any]]:
  """Replaces a sharing scheme that only pretraining uses by one that `Weights` has."""
  if scheme != 'disentangled':
    return scheme, trees
  return 'none', {name: folded(tree, values=name == 'params') for name, tree in trees.items()}


def folded(tree: dict[str, Any], values: bool = True) -> dict[str, Any]:
  """Returns the parameters of sharing='disentangled' as those of sharing='none'.

  The discriminator's embeddings are the generator's plus their difference.

  Args:
    tree: NumPy arrays by parameter.
    values: False for moments, which are those of the difference.
  """
  difference = tree['embeddings_difference']
  # Absent from the moments of a frozen generator.
  base = tree['generator_embeddings'] if values else {}
  tables = {
    name: value + base[name] if values and name != 'norm' else value
    for name, value in difference.items()
  }
  rest = {name: x for name, x in tree.items() if name != 'embeddings_difference'}
  return rest | {'embeddings': tables}


def unfolded(tree: dict[str, Any], values: bool = True) -> dict[str, Any]:
  """Inverse of `folded`, up to rounding.

  Without embeddings of a generator, the difference is 0 and the discriminator's become the
  generator's.

  Args:
    tree: NumPy arrays by parameter.
    values: False for moments.
  """
  embeddings = tree['embeddings']
  base = tree.get('generator_embeddings', embeddings)
  tables = {
    name: value - base[name] if values and name != 'norm' else value
    for name, value in embeddings.items()
  }
  found = {name: x for name, x in tree.items() if name != 'embeddings'}
  found['embeddings_difference'] = tables
  return {'generator_embeddings': embeddings} | found if values else found

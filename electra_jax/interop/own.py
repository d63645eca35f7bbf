"""Checkpoints of our own pretraining runs as Weights, on this machine."""

import dataclasses

from electra_jax import registry
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.errors import UserError
from electra_jax.interop.weights import DISCRIMINATOR, GENERATOR, Weights, checked, trimmed
from electra_jax.training import checkpoints, run_folder
from electra_jax.training.encoders import run_config, sharing, towers


def read(folder: str, which='last', moments: bool = True) -> Weights:
  """Both towers of a run's checkpoint, with Adam's moments.

  Of a run of masked language modelling the one tower is both, and has no discriminator_head; disentangled embeddings are folded
  together; what other objectives have besides is left out, with a note.

  Args:
    folder: of the run, which may be gs://.
    which: 'last', 'best' (by the held-out loss), or a step.
    moments: False leaves them unread.

  Raises UserError where it is no pretraining run, or holds no such checkpoint.
  """
  folder = run_folder.folder(folder)
  with run_folder.reaching(folder):
    is_run = (folder / 'config.json').exists() and (folder / 'tokenizer').is_dir()
    is_finetuned = (folder / 'encoder.json').exists() or (folder / 'task.json').exists()
  if is_finetuned:
    raise UserError(
      f'{folder} is a fine-tuned run, whose generator is gone; name the pretrained run that it began with.'
    )
  if not is_run:
    raise UserError(
      f'{folder} is not a run: it has no config.json and tokenizer; name the folder of a pretrained run, hf:FOLDER or tf:CHECKPOINT.'
    )
  config = run_config(folder)
  config = config.replace({'model.attention': 'xla'})
  size = load_tokenizer(folder / 'tokenizer').size
  objective = registry.OBJECTIVES.get(config.objective.name)
  generator, discriminator = (
    dataclasses.replace(tower, vocab_multiple=1)
    for tower in towers(config, objective.one_tower, size, 'cpu')
  )
  step = checkpoints.find_step(folder, which)
  both = checkpoints.read_moments(folder, step) if moments else None
  trees = {'params': checkpoints.read_arrays(folder, step, 'params')} | (both or {})
  of, notes = sharing(config, objective.one_tower), []
  if of == 'disentangled':
    of, trees = (
      'none',
      {name: folded(tree, values=name == 'params') for name, tree in trees.items()},
    )
  if 'generator' not in trees['params'] and of != 'all':  # electric's two towers, or none
    generator, of = None, 'embeddings'
    if 'generator_head' in trees['params']:
      notes.append(
        f'the generator of {folder} is left out: it is two towers, one a side, of use in pretraining alone'
      )
  kept = (*DISCRIMINATOR, *(GENERATOR if generator else ()))
  if 'predictor_head' in trees['params']:
    notes.append(f'the head of {folder} that predicts tokens from the kept tower is left out')
  trees = {
    name: trimmed({top: x for top, x in tree.items() if top in kept}, size)
    for name, tree in trees.items()
  }
  return checked(
    Weights(
      source=f'{folder} (step {step:,})',
      discriminator=discriminator,
      generator=generator,
      sharing=of,
      params=trees.pop('params'),
      tokenizer=str(folder / 'tokenizer'),
      step=step,
      moments=trees or None,
      notes=tuple(notes),
    ),
    optional=() if objective.has_discriminator else ('discriminator_head',),
  )


def folded(tree: dict, values: bool = True) -> dict:
  """Parameters of `sharing='disentangled'` as those of 'none': the discriminator's tables are the generator's plus their difference.

  Args:
    tree: NumPy arrays by our names.
    values: False for moments: those of a sum's second term are the sum's.
  """
  own, under = (
    tree['embeddings_difference'],
    tree.get('generator_embeddings'),
  )  # where it is frozen it has no moments
  tables = {
    name: own[name] + under[name] if values and name != 'norm' else own[name] for name in own
  }
  return {name: x for name, x in tree.items() if name != 'embeddings_difference'} | {
    'embeddings': tables
  }


def unfolded(tree: dict, values: bool = True) -> dict:
  """The other way, to rounding: the difference of the discriminator's tables from the generator's, or from themselves where it has none."""
  own = tree['embeddings']
  under = tree.get('generator_embeddings', own)
  tables = {
    name: own[name] - under[name] if values and name != 'norm' else own[name] for name in own
  }
  found = {name: x for name, x in tree.items() if name != 'embeddings'} | {
    'embeddings_difference': tables
  }
  return {'generator_embeddings': own} | found if values else found

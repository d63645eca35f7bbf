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
  scheme, notes = registry.SHARING_SCHEMES.get(sharing(config, objective.one_tower)), []
  of = scheme.exported_as
  trees = {name: scheme.fold(tree, values=name == 'params') for name, tree in trees.items()}
  # electric's two towers, or none
  if 'generator' not in trees['params'] and not scheme.one_encoder:
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

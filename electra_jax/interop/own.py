"""Checkpoints of our own pretraining runs as Weights, on this machine."""

import dataclasses

from electra_jax.data.tokenizers import load_tokenizer
from electra_jax.errors import UserError
from electra_jax.interop.weights import Weights, checked, trimmed
from electra_jax.training import checkpoints, workdir as workdirs
from electra_jax.training.encoders import run_config, towers


def read(folder: str, which='last', moments: bool = True) -> Weights:
  """Both towers of a run's checkpoint, with Adam's moments.

  Args:
    folder: of the run, which may be gs://.
    which: 'last', 'best' (by the held-out loss), or a step.
    moments: False leaves them unread.

  Raises UserError where it is no pretraining run, or holds no such checkpoint.
  """
  folder = workdirs.folder(folder)
  with workdirs.reaching(folder):
    is_run = (folder / 'config.json').exists() and (folder / 'tokenizer').is_dir()
    is_finetuned = (folder / 'encoder.json').exists() or (folder / 'task.json').exists()
  if is_finetuned:
    raise UserError(f'{folder} is a fine-tuned run, whose generator is gone; name the pretrained run that it began with.')
  if not is_run:
    raise UserError(f'{folder} is not a run: it has no config.json and tokenizer; name the folder of a pretrained run, hf:FOLDER or tf:CHECKPOINT.')
  config = run_config(folder)
  config.model.attention = 'xla'
  size = load_tokenizer(folder / 'tokenizer').size
  generator, discriminator = (dataclasses.replace(tower, vocab_multiple=1) for tower in towers(config, size, 'cpu'))
  step = checkpoints.find_step(folder, which)
  both = checkpoints.read_moments(folder, step) if moments else None
  return checked(Weights(
      source=f'{folder} (step {step:,})', discriminator=discriminator, generator=generator, sharing=config.sharing,
      params=trimmed(checkpoints.read_arrays(folder, step, 'params'), size), tokenizer=str(folder / 'tokenizer'), step=step,
      moments=both and {name: trimmed(tree, size) for name, tree in both.items()}))

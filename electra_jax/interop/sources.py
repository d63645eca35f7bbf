"""Where weights can be from: Hugging Face's folders, the original's checkpoints, runs of our own."""

from electra_jax.errors import UserError
from electra_jax.interop.weights import Weights

FOREIGN = ('hf:', 'tf:')


def is_foreign(text: str) -> bool:
  """Whether a source is of another program, hf:... or tf:..., and not a run's folder."""
  return text.startswith(FOREIGN)


def open_source(text: str, step: str = 'last') -> Weights:
  """The weights of a source.

  Args:
    text: hf:FOLDER (see interop/huggingface.py), tf:CHECKPOINT (interop/google.py), or the folder of a pretraining run.
    step: of a run: last, best or a step.

  Raises UserError where it cannot be opened, or is not what it should be.
  """
  kind, path = (text[:2], text[3:]) if is_foreign(text) else ('run', text)
  if not path:
    raise UserError(f'{text!r} names nothing; give hf:FOLDER, tf:CHECKPOINT, or the folder of a run.')
  if kind == 'hf':
    from electra_jax.interop import huggingface
    return huggingface.read(path)
  if kind == 'tf':
    from electra_jax.interop import google
    return google.read(path)
  from electra_jax.interop import own
  return own.read(path, step)

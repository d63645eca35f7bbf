"""Where weights can be from: Hugging Face's folders, the original's checkpoints, runs of our own; and the tokenizer beside them."""

import dataclasses

from electra_jax.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.interop.weights import Weights, trimmed

FOREIGN = ('hf:', 'tf:')
# A vocabulary of another program may have rows up to a multiple of one of these, which nothing is ever looked up in.
ROW_MULTIPLES = (8, 16, 32, 64, 128, 256)


def is_foreign(text: str) -> bool:
  """Whether a source is of another program, hf:... or tf:..., and not a run's folder."""
  return text.startswith(FOREIGN)


def open_source(text: str, step: str = 'last', moments: bool = False) -> Weights:
  """The weights of a source.

  Args:
    text: hf:FOLDER (see interop/huggingface.py), tf:CHECKPOINT (interop/google.py), or the folder of a pretraining run.
    step: of a run: last, best or a step.
    moments: Adam's too, where it has them.

  Raises UserError where it cannot be opened, or is not what it should be.
  """
  kind, path = (text[:2], text[3:]) if is_foreign(text) else ('run', text)
  if not path:
    raise UserError(
      f'{text!r} names nothing; give hf:FOLDER, tf:CHECKPOINT, or the folder of a run.'
    )
  if kind == 'hf':
    from electra_jax.interop import huggingface

    return huggingface.read(path)
  if kind == 'tf':
    from electra_jax.interop import google

    return google.read(path, moments)
  from electra_jax.interop import own

  return own.read(path, step, moments)


def with_tokenizer(
  weights: Weights, field: str, lowercase: bool | None = None, strip_accents: bool | None = None
) -> tuple[Weights, Tokenizer]:
  """The tokenizer of weights, and these without rows that only pad its vocabulary.

  Args:
    weights: of `open_source`.
    field: that named them, for a complaint.
    lowercase, strip_accents: as of load_tokenizer, where nothing beside the vocabulary says it.

  Raises UserError where there is no tokenizer, or it does not fit.
  """
  if weights.tokenizer is None:
    raise UserError(
      f'{field} has no tokenizer; add its files: vocab.txt (with tokenizer_config.json, if it is cased), tokenizer.json or a SentencePiece model.'
    )
  tokenizer = load_tokenizer(weights.tokenizer, lowercase, strip_accents)
  return cut(weights, tokenizer.size, field), tokenizer


def cut(weights: Weights, size: int, field: str) -> Weights:
  """Weights without rows that only pad a vocabulary of `size` tokens. Raises UserError where rows and tokens do not belong together."""
  rows = weights.vocab_size
  if rows == size:
    return weights
  if rows not in (-(-size // n) * n for n in ROW_MULTIPLES):
    raise UserError(
      f'{field} has embeddings of {rows:,} tokens and a tokenizer of {size:,}; put the tokenizer there that it was trained with.'
    )

  def shorter(config):
    return config and dataclasses.replace(config, vocab_size=size)

  note = f'{rows - size} rows that pad the vocabulary of {size:,} tokens are left out'
  return dataclasses.replace(
    weights,
    discriminator=shorter(weights.discriminator),
    generator=shorter(weights.generator),
    notes=(*weights.notes, note),
    params=trimmed(weights.params, size),
    moments=weights.moments
    and {name: trimmed(tree, size) for name, tree in weights.moments.items()},
  )

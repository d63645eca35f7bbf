"""Opens initial weights, as in config.init, with the tokenizer beside them.

A source is 'FORMAT:PATH' with a format of registry.WEIGHT_FORMATS, or the folder of a pretraining
run.
"""

import dataclasses

from electra_jax.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.interop.weights import Weights, trim_vocabulary
from electra_jax.model.config import EncoderConfig
from electra_jax.registry import WEIGHT_FORMATS, split_source

# Another program may have padded the embedding table to a multiple of one of these numbers of rows.
ROW_MULTIPLES = (8, 16, 32, 64, 128, 256)
# Or it may have this share of further rows: DeBERTa-v3 has 128,100 for 128,001 tokens.
_SPARE = 0.01


def open_source(text: str, step: str = 'last', moments: bool = False) -> Weights:
  """Reads the weights of a source.

  Args:
    text: 'hf:FOLDER' (interop/huggingface.py), 'tf:CHECKPOINT' (interop/google.py), or the folder
      of a pretraining run (interop/own.py).
    step: for a run, 'last', 'best' or a step.
    moments: whether to read Adam's moments, where the source has them.

  Raises:
    UserError: the source cannot be opened, or is not what its format requires.
  """
  name, path = split_source(text)
  if not path:
    known = [f'{prefix}:{WEIGHT_FORMATS.get(prefix).argument}' for prefix in WEIGHT_FORMATS]
    raise UserError(
      f'the source of weights is {text!r}, which has no path; expected {", ".join(known)} or the '
      'folder of a run.'
    )
  if name:
    weights: Weights = WEIGHT_FORMATS.get(name).read(path, moments)
    return weights
  from electra_jax.interop import own

  return own.read_weights(path, step, moments)


def with_tokenizer(
  weights: Weights, field: str, lowercase: bool | None = None, strip_accents: bool | None = None
) -> tuple[Weights, Tokenizer]:
  """Returns weights without padding rows of the vocabulary, and their tokenizer.

  Args:
    weights: from `open_source`.
    field: the field that named them, for messages.
    lowercase: as in load_tokenizer, if no file beside the vocabulary records it.
    strip_accents: the same.

  Raises:
    UserError: there is no tokenizer, or its size does not match the embeddings.
  """
  if weights.tokenizer is None:
    raise UserError(
      f'{field} has no tokenizer; add its files: vocab.txt (with tokenizer_config.json for a cased '
      'vocabulary), tokenizer.json or a SentencePiece model.'
    )
  tokenizer = load_tokenizer(weights.tokenizer, lowercase, strip_accents)
  return without_padding_rows(weights, tokenizer.size, field), tokenizer


def without_padding_rows(weights: Weights, size: int, field: str) -> Weights:
  """Returns weights without the rows that pad a vocabulary.

  Args:
    weights: the weights.
    size: tokens of the vocabulary.
    field: the field that named the weights, for messages.

  Raises:
    UserError: the number of rows is less than `size`, or more than a padded `size`.
  """
  rows = weights.vocab_size
  if rows == size:
    return weights
  is_padded = rows in (-(-size // n) * n for n in ROW_MULTIPLES)
  if not is_padded and not size < rows <= size * (1 + _SPARE):
    raise UserError(
      f'{field} has embeddings of {rows:,} tokens and a tokenizer of {size:,}; put the tokenizer '
      'there that it was trained with.'
    )

  def shorter(config: EncoderConfig | None) -> EncoderConfig | None:
    return config and dataclasses.replace(config, vocab_size=size)

  moments = weights.moments
  return dataclasses.replace(
    weights,
    discriminator=shorter(weights.discriminator),
    generator=shorter(weights.generator),
    notes=(
      *weights.notes,
      f'{rows - size} rows that pad the vocabulary of {size:,} tokens are left out',
    ),
    params=trim_vocabulary(weights.params, size),
    moments=moments and {name: trim_vocabulary(tree, size) for name, tree in moments.items()},
  )

"""Limits on what input may claim or expand to, so that a damaged or hostile file is refused early.

Real files stay far below them. `--input_limits=FACTOR` multiplies all of them. The factor is kept
in an environment variable, because worker processes read files too.
"""

import os

from electra_jax.errors import UserError

VARIABLE = 'ELECTRA_JAX_INPUT_LIMITS'

JSON_BYTES = 1 << 28  # of a JSON document
JSON_DEPTH = 100  # of objects and lists in each other; not multiplied
LINE_BYTES = 1 << 28  # of a line of a corpus or of a table
DOCUMENT_BYTES = 1 << 30  # of a document that consists of several lines
TABLE_BYTES = 1 << 30  # of a file that is read whole, decompressed
FIELD_CHARACTERS = 1 << 26  # of a field of a CSV file
PICKLE_BYTES = 1 << 26  # of the part of a .bin file that describes its tensors
HEADER_BYTES = 100_000_000  # of the header of a safetensors file, as that library limits it
VOCABULARY_TOKENS = 1 << 24
TOKEN_CHARACTERS = 1 << 16
ENCODER_SIZE = 1 << 24  # the largest size of an encoder, such as its vocabulary
ENCODER_LAYERS = 1 << 12
# A file may expand to EXPANSION times its stored size, or to FREE_BYTES. Text expands 3 to 10
# times, logs of repeated lines about 100 times. gzip reaches 1,032 at most; xz, zstd, bzip2 more.
EXPANSION = 1_100
FREE_BYTES = 1 << 26

REMEDY = 'raise the limits with --input_limits if you trust it'


def factor() -> float:
  """The factor by which limits are multiplied.

  Raises:
    UserError: the environment variable is not a number of at least 1.
  """
  text = os.environ.get(VARIABLE) or '1'
  try:
    value = float(text)
  except ValueError:
    value = 0.0
  if not 1 <= value < float('inf'):
    raise UserError(f'{VARIABLE} is {text!r}; expected a number of at least 1.')
  return value


def set_factor(value: float) -> None:
  """Multiplies the limits in this process, and in those that it starts.

  Raises:
    UserError: `value` is not a number of at least 1.
  """
  if not 1 <= value < float('inf'):
    raise UserError(f'--input_limits is {value:g}; expected a number of at least 1.')
  os.environ[VARIABLE] = repr(float(value))


def scaled(limit: int) -> int:
  """A limit of this module, multiplied."""
  return int(limit * factor())


def check(size: int, limit: int, what: str, unit: str = 'bytes') -> None:
  """Checks a size against a limit of this module.

  Args:
    size: the size.
    limit: the limit, before it is multiplied.
    what: what has the size, as the beginning of the sentence, such as "the file 'x'".
    unit: of the size.

  Raises:
    UserError: the size is larger.
  """
  most = scaled(limit)
  if size > most:
    raise too_large(what, most, unit)


def check_expansion(expanded: int, stored: int, what: str) -> None:
  """Checks how far stored bytes expand.

  Args:
    expanded: bytes that were decompressed so far.
    stored: bytes that they were read from.
    what: as in `check`.

  Raises:
    UserError: they expand too far.
  """
  if expanded > max(scaled(FREE_BYTES), stored * scaled(EXPANSION)):
    raise UserError(
      f'{what} expands to more than {scaled(EXPANSION):,} times its stored {stored:,} bytes, as '
      f'hostile files do; expected text: {REMEDY}.'
    )


def too_large(what: str, most: int, unit: str = 'bytes') -> UserError:
  """The error for a size above a limit.

  Args:
    what: as in `check`.
    most: the limit, multiplied.
    unit: of the limit.
  """
  return UserError(f'{what} has more than {most:,} {unit}; {REMEDY}.')

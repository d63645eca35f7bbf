"""Columns of text in Arrow and Parquet: their names, their values, and errors of their files."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from electra_jax import file_access
from electra_jax.data.corpus.readers import named
from electra_jax.errors import UserError

Arrow = Any  # objects of pyarrow, which has no annotations


@contextlib.contextmanager
def naming_damage(path: str, title: str, what: str = 'the corpus file') -> Iterator[None]:
  """Raises what reading a damaged file raises as a UserError that names the file.

  Args:
    path: of the file.
    title: what it should be, such as 'a Parquet file'.
    what: how the message calls it.
  """
  import pyarrow as pa

  try:
    yield
  except Exception as error:
    damage = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
    if isinstance(error, UserError) or not (
      isinstance(error, damage) or file_access.is_remote(path)
    ):
      raise
    raise UserError(
      f'{what} {path!r} is not {title}, damaged or cut short '
      f'({file_access.reason(error)}); replace it'
    ) from None


def text_columns(schema: Arrow) -> list[str]:
  """Names of the columns that hold text, with dots where they are in structures."""
  return ['.'.join(names) for names, kind in _leaves(schema) if _is_text(kind)]


def texts_of(values: Arrow, names: Sequence[str] = ()) -> list[bytes | None]:
  """The values of a column as bytes; None for null.

  Args:
    values: an array.
    names: of the structures that lead to the texts in it.
  """
  import pyarrow as pa
  import pyarrow.compute as pc

  values.validate(full=True)  # Arrow ends the process where offsets or indices are damaged
  for name in names:
    values = pc.struct_field(values, name)
  if pa.types.is_dictionary(values.type):
    values = values.dictionary_decode()
  found: list[bytes | None] = values.cast(pa.large_binary()).to_pylist()
  return found


def column_path(schema: Arrow, column: str, path: str) -> tuple[str, ...]:
  """The names that lead to a column of strings: one, or several where it is in structures.

  Raises:
    UserError: there is no such column, or it holds something else.
  """
  found = {'.'.join(names): (names, kind) for names, kind in _leaves(schema)}
  if column not in found:
    raise UserError(
      f'the corpus file {path!r} has no column {column!r}; its columns are {named(found)}; name '
      'one with ;field=NAME'
    )
  names, kind = found[column]
  if not _is_text(kind):
    texts = [name for name, (_, kind) in found.items() if _is_text(kind)]
    raise UserError(
      f'the column {column!r} of the corpus file {path!r} holds {kind}, not text; its columns of '
      f'text are {named(texts)}; name one with ;field=NAME'
    )
  return names


def _leaves(
  fields: Iterable[Arrow], prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Arrow]]:
  """(names that lead to it, type) of each column that is not a structure."""
  import pyarrow as pa

  for field in fields:
    if pa.types.is_struct(field.type):
      yield from _leaves(field.type, (*prefix, field.name))
    else:
      yield (*prefix, field.name), field.type


def _is_text(kind: Arrow) -> bool:
  import pyarrow as pa

  value = kind.value_type if pa.types.is_dictionary(kind) else kind
  return any(
    is_kind(value)
    for is_kind in (
      pa.types.is_string,
      pa.types.is_large_string,
      pa.types.is_string_view,
      pa.types.is_binary,
      pa.types.is_large_binary,
      pa.types.is_binary_view,
    )
  )

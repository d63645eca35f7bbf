"""Texts that are given in Python: they are written to a file of JSON lines, which is read as such.

An iterable can be read once, and preparation reads a corpus several times, in several processes.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from electra_jax import file_access
from electra_jax.data.corpus.corpus_format import Contents, CorpusFormat, CorpusSource
from electra_jax.data.corpus.jsonl_format import JSONL
from electra_jax.data.corpus.readers import DocumentReader, named
from electra_jax.errors import UserError

PREFIX = 'texts:'

_files: dict[str, str] = {}  # location -> file, while the texts are prepared

Text = str | None | Mapping[str, Any]  # a text, or a record with one, as of datasets.Dataset


class GivenTexts(CorpusFormat):
  """Texts that `written` has written. Their hash identifies them, not their file."""

  title = 'texts given in Python'
  selectable = False
  detectable = False

  def owns(self, location: str) -> bool:
    """See the base class."""
    return location.startswith(PREFIX)

  def describe(self, source: CorpusSource) -> str:
    """See the base class."""
    return self.title

  def contents(self, source: CorpusSource) -> Contents:
    """See the base class."""
    if source.location not in _files:
      raise UserError(
        f'the corpus {source.location!r} was given in Python and is not kept; expected the folder '
        'of its rows (--config.data.store=FOLDER).'
      )
    path = _files[source.location]
    return {path: file_access.facts(path)}

  def identity(self, source: CorpusSource, contents: Contents) -> tuple[str, str]:
    """See the base class."""
    return '', source.location

  def read(self, path: str, options: Mapping[str, str], reader: DocumentReader) -> Iterator[str]:
    """See the base class."""
    return JSONL.read(path, JSONL.options, reader)


GIVEN_TEXTS = GivenTexts()


@contextlib.contextmanager
def written(
  texts: Iterable[Text], folder: str | os.PathLike[str], field: str = 'text'
) -> Iterator[str]:
  """Writes texts, one at a time in memory, and yields their name for config.data.source.

  Args:
    texts: strings, or mappings with a string in a field. None is a blank document.
    folder: for the file, which is removed at the end; a local path.
    field: the field.

  Raises:
    UserError: an item is no text, or has no such field; the file cannot be written.
  """
  with file_access.reaching(folder, 'written', local=True):
    os.makedirs(folder, exist_ok=True)
    descriptor, path = tempfile.mkstemp('.jsonl', 'texts-', folder)
  location = ''
  try:
    digest = hashlib.blake2b(digest_size=16)
    with os.fdopen(descriptor, 'wb') as file, file_access.reaching(path, 'written', local=True):
      for number, item in enumerate(texts):
        line = _line(_text_of(item, number, field))
        digest.update(line)
        file.write(line)
    location = PREFIX + digest.hexdigest()
    _files[location] = path
    yield location
  finally:
    _files.pop(location, None)
    os.unlink(path)


def _line(text: str) -> bytes:
  """A line of JSON; half of a surrogate pair is escaped, as UTF-8 has none."""
  try:
    return json.dumps({'text': text}, ensure_ascii=False).encode() + b'\n'
  except UnicodeEncodeError:
    return json.dumps({'text': text}).encode() + b'\n'


def _text_of(item: Text, number: int, field: str) -> str:
  """The text of an item."""
  if isinstance(item, Mapping):
    if field not in item:
      raise UserError(
        f'item {number:,} of the texts has no field {field!r}; its fields are {named(item)}; name '
        'one with field=NAME.'
      )
    item = item[field]
  if item is not None and not isinstance(item, str):
    raise UserError(
      f'item {number:,} of the texts is of type {type(item).__name__}; expected a string, or a '
      'mapping with one (field=NAME).'
    )
  return item or ''

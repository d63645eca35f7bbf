"""What a source holds: its files, the format of each by its content, and the column of texts."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from electra_jax import file_access, registry
from electra_jax.data.corpus import file_kinds
from electra_jax.data.corpus.corpus_format import (
  Contents,
  CorpusFormat,
  CorpusSource,
  FieldFormat,
  format_by_name,
  is_ambiguous,
  unknown_option,
)
from electra_jax.data.corpus.readers import DocumentReader, not_text
from electra_jax.errors import UserError

_GLOB_CHARACTERS = set('*?[')
_HIDDEN = ('.', '__MACOSX')
# Beginnings of the names of texts about a data set.
_ABOUT = ('readme', 'license', 'licence', 'citation', 'changelog', 'notice')
_SHOWN = 5

Skipped = dict[str, list[str]]  # kind -> files of that kind that hold no corpus


class FormatPart(NamedTuple):
  """Files of a source that have one format.

  Attributes:
    source: the source, with that format and all of its options.
    contents: what it holds, see `CorpusFormat.contents`.
  """

  source: CorpusSource
  contents: Contents


class Found(NamedTuple):
  """What a source holds.

  Attributes:
    parts: one per format, in the order of the first file of each.
    skipped: files of a folder that hold no corpus.
  """

  parts: list[FormatPart]
  skipped: Skipped


class _NoCorpus(UserError):
  """A file holds no corpus.

  Attributes:
    kind: what it is.
  """

  def __init__(self, error: UserError, kind: str) -> None:
    super().__init__(str(error))
    self.kind = kind


def detect_formats(source: CorpusSource) -> Found:
  """What a source holds: its files with their facts, sorted.

  The content of a file decides on its format, unless the source has `;format=NAME` or the name of
  the file ends as those of a format do. In a folder, files that hold no corpus are skipped; a file
  or pattern that names one is refused.

  Raises:
    UserError: a file is missing, cannot be read, or holds no corpus; a pattern matches no file.
  """
  if source.spec.owns(source.location):
    return Found([FormatPart(source, source.spec.contents(source))], {})
  location = os.path.expanduser(source.location)
  if file_access.exists(location):
    if file_access.is_folder(location):
      return _in_folder(source, location)
    if not file_access.is_remote(location) and not os.path.isfile(location):
      raise UserError(
        f'the corpus {location!r} is not a file that can be read twice; expected one on a disk'
      )
    return _of_files(source, {location: file_access.facts(location)})
  if not _GLOB_CHARACTERS & set(location):
    raise UserError(
      f'the corpus file {location!r} does not exist; expected a file, a folder, a pattern such as '
      "'text/*.txt', or 'sample'"
    )
  found = file_access.find_files(location)
  if not found:
    raise UserError(
      f"the corpus pattern {location!r} matches no file; expected one that does, or 'sample'"
    )
  return _of_files(source, found)


def notes(source: CorpusSource, found: Found) -> list[tuple[str, str]]:
  """(label, text) of what was detected and not stated, for the console."""
  lines = []
  for part in found.parts:
    spec = part.source.spec
    if part.source.format != source.format and not spec.owns(part.source.location):
      number = len(part.contents)
      files = f'{number:,} files' if number != 1 else 'a file'
      lines.append(('format', f'{spec.title}: {files} of {source.location}'))
    field = part.source.options.get('field', '')
    if field != spec.options.get('field', field) and 'field' not in source.given:
      lines.append(('column', f'{field!r} of {spec.describe(part.source)}'))
  for kind, names in found.skipped.items():
    shown = ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')
    files = f'{len(names):,} files' if len(names) > 1 else 'a file'
    lines.append(('skipped', f'{files} of {source.location}, {kind}: {shown}'))
  return lines


#### Folders ####


def _in_folder(source: CorpusSource, location: str) -> Found:
  """What a folder holds: a data set of a format for folders, or the files below it."""
  names = set(file_access.listing(location))
  for name in registry.CORPUS_FORMATS:
    spec = registry.CORPUS_FORMATS.get(name)
    if spec.owns_folder(names):
      own = spec.folder_source(source, name)
      return Found([FormatPart(own, spec.contents(own))], {})
  below = {
    path: facts
    for path, facts in file_access.find_files(f'{file_access.escape(location)}/**').items()
    if facts.size and not _is_hidden(_relative(path, location))
  }
  if not below:
    raise UserError(
      f'the corpus folder {location!r} holds no file with content; expected text, JSON lines, CSV, '
      'Parquet or Arrow'
    )
  return _of_files(source, below, location)


def _relative(path: str, folder: str) -> str:
  inner = path.rpartition('://')[2], folder.rpartition('://')[2].rstrip('/')
  return inner[0].removeprefix(inner[1]).lstrip('/')


def _is_hidden(relative: str) -> bool:
  return any(name.startswith(_HIDDEN) for name in relative.split('/'))


def is_about_a_data_set(path: str) -> bool:
  """Whether a text file describes the files beside it, by its name."""
  return pathlib.PurePosixPath(path).name.lower().startswith(_ABOUT)


#### Files ####


def _of_files(
  source: CorpusSource, files: Mapping[str, file_access.Facts], folder: str | None = None
) -> Found:
  """The files in parts of one format each.

  Args:
    source: the source.
    files: path -> facts.
    folder: that holds them, in which files that hold no corpus are skipped; None for none.
  """
  by_format: dict[str, dict[str, file_access.Facts]] = {}
  skipped: Skipped = {}
  alike: dict[str, str] = {}  # of files at addresses, one of each ending is looked into
  for path, facts in files.items():
    remote = file_access.is_remote(path)
    if not remote and not os.access(path, os.R_OK):
      raise UserError(f'the corpus file {path!r} may not be read; change its permissions')
    ending = ''.join(pathlib.PurePosixPath(path).suffixes)
    try:
      if source.chosen:
        name = source.format
      elif remote and ending in alike:
        name = alike[ending]
      else:
        name = alike[ending] = _format_of(path, facts, source.text_format)
    except _NoCorpus as error:
      if folder is None:
        raise UserError(str(error)) from None
      skipped.setdefault(error.kind, []).append(_relative(path, folder))
      continue
    by_format.setdefault(name, {})[path] = facts
  if folder is not None:
    _skip_texts_about_records(by_format, skipped, folder, source)
  if not by_format:
    kinds = ', '.join(f'{len(names):,} times {kind}' for kind, names in skipped.items())
    raise UserError(
      f'the corpus folder {folder!r} holds no corpus: {kinds}; expected text, JSON lines, CSV, '
      'Parquet or Arrow'
    )
  _check_options(source, list(by_format))
  place = {path: number for number, path in enumerate(files)}
  ordered = sorted(by_format.items(), key=lambda item: place[next(iter(item[1]))])
  return Found(
    [FormatPart(_with_format(source, name, found), found) for name, found in ordered], skipped
  )


def _skip_texts_about_records(
  by_format: dict[str, dict[str, file_access.Facts]],
  skipped: Skipped,
  folder: str,
  source: CorpusSource,
) -> None:
  """Moves READMEs and licenses beside files of records to the skipped ones."""
  if source.chosen or not any(
    isinstance(registry.CORPUS_FORMATS.get(name), FieldFormat) for name in by_format
  ):
    return
  texts = by_format.get(source.text_format, {})
  for path in [path for path in texts if is_about_a_data_set(path)]:
    del texts[path]
    skipped.setdefault('a text about the data', []).append(_relative(path, folder))
  if source.text_format in by_format and not texts:
    del by_format[source.text_format]


def _format_of(path: str, facts: file_access.Facts, text_format: str) -> str:
  """The name of the format of a file.

  Raises:
    _NoCorpus: it holds no corpus.
  """
  name, kind = _looked_into(path, facts.size, facts.version, tuple(registry.CORPUS_FORMATS))
  if kind:
    raise _NoCorpus(not_text(path, kind), kind)
  return name or text_format


@functools.lru_cache(maxsize=1 << 17)
def _looked_into(path: str, size: int, version: str, known: tuple[str, ...]) -> tuple[str, str]:
  """(name of the format, '' for plain text; what the file is if it holds no corpus, else '').

  Args:
    path: of the file.
    size: of the file; as `version`, so that a changed file is looked into again.
    version: of the file.
    known: the formats that are registered.
  """
  del size, version, known
  by_name = format_by_name(path)
  suffix, head = _head(path)
  return format_of_content(path, by_name, head, bool(suffix))


def format_of_content(
  path: str, by_name: str | None, head: bytes, compressed: bool
) -> tuple[str, str]:
  """(name of a file's format, '' for plain text; what the file is if it holds no corpus, else '').

  Args:
    path: of the file.
    by_name: of `format_by_name`.
    head: its first bytes, decompressed.
    compressed: whether it is compressed.

  Raises:
    UserError: it is compressed in a way in which it cannot be read.
  """
  named: CorpusFormat | None = registry.CORPUS_FORMATS.get(by_name) if by_name else None
  ambiguous = by_name is not None and is_ambiguous(path, by_name)
  if by_name and named and not named.is_text:
    return by_name, ''
  if kind := file_kinds.zip_kind(head):
    return '', kind
  if found := file_kinds.format_by_magic(head):
    title = registry.CORPUS_FORMATS.get(found).title
    if compressed and not registry.CORPUS_FORMATS.get(found).compressible:
      raise UserError(
        f'the corpus file {path!r} is compressed {title}, which cannot be read in parts; '
        'decompress it'
      )
    return found, ''
  if kind := file_kinds.binary_kind(head, whole=len(head) < file_kinds.HEAD_BYTES):
    return '', kind
  if by_name and not ambiguous:
    return by_name, ''
  for name in registry.CORPUS_FORMATS:
    if registry.CORPUS_FORMATS.get(name).recognizes_text(head):
      return name, ''
  return ('', 'a JSON document that is not JSON lines') if ambiguous and head else ('', '')


def _head(path: str) -> tuple[str, bytes]:
  """(how a file is compressed, its first bytes, decompressed); no bytes of a damaged file."""
  with file_access.open_binary(path) as raw:
    suffix = file_access.compression(path)
    if not suffix:
      suffix = file_access.compression(path, raw.read(16))
      raw.seek(0)
    try:
      stream = file_access.decompressed(raw, path, suffix)
      return suffix, file_access.read_at_most(stream, file_kinds.HEAD_BYTES)
    except UserError:
      return suffix, b''
    except file_access.damage():  # reported when the file is read
      return suffix, b''


def _check_options(source: CorpusSource, names: list[str]) -> None:
  """Raises UserError for an option that no format of the source's files has."""
  specs = [registry.CORPUS_FORMATS.get(name) for name in names]
  for option in source.given:
    if not any(option in spec.options for spec in specs):
      raise unknown_option(source.location, specs[0].title, option)


def _with_format(
  source: CorpusSource, name: str, files: Mapping[str, file_access.Facts]
) -> CorpusSource:
  """The source with a format, its options, and the column of texts where it is not given."""
  spec: CorpusFormat = registry.CORPUS_FORMATS.get(name)
  given = {option: value for option, value in source.given.items() if option in spec.options}
  if 'documents' in spec.options and 'documents' not in given:
    given['documents'] = source.text_format
  options = spec.parse_options(source.location, given)
  if isinstance(spec, FieldFormat) and 'field' not in given:
    path, facts = next(iter(files.items()))
    field = _field(name, path, facts.size, facts.version, tuple(sorted(options.items())))
    options |= {'field': field} if field else {}
  return dataclasses.replace(source, format=name, options=options)


@functools.lru_cache(maxsize=1 << 10)
def _field(
  name: str, path: str, size: int, version: str, options: tuple[tuple[str, str], ...]
) -> str | None:
  """See `FieldFormat.detected_field`; a file that has not changed is read once."""
  del size, version
  spec = registry.CORPUS_FORMATS.get(name)
  field: str | None = spec.detected_field(path, dict(options), DocumentReader())
  return field

"""Corpus formats: the base class of all, and what they read.

User code adds a format with one class, from its config file:

    class Subtitles(CorpusFormat):
      title = 'subtitles'
      extensions = ('.srt',)

      def read(self, path, options, reader):
        ...  # yields documents

    registry.CORPUS_FORMATS.register('subtitles', Subtitles(), help='Subtitles in SubRip format.')
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from electra_jax import file_access, registry
from electra_jax.data.corpus.readers import DocumentReader
from electra_jax.errors import UserError

# Files are grouped until a group has so many bytes. A group is what one reader reads.
GROUP_BYTES = 256_000_000

_COMPRESSED_ARCHIVES = {'.tgz': '.tar', '.txz': '.tar', '.tbz2': '.tar', '.tzst': '.tar'}
# Names of the column of texts in published data sets, the most specific first.
_LIKELY_FIELDS = (
  'content',
  'body',
  'document',
  'article',
  'raw_content',
  'passage',
  'sentence',
  'abstract',
)

# What a source holds: for files their facts by path.
Contents = Any
# What earlier sources hold, by keys that each format chooses.
Claims = dict[Any, Any]
# A value that can be a key, and whose `repr` is the same in every process.
Key = Any


@dataclasses.dataclass(frozen=True)
class CorpusSource:
  """One part of config.data.source.

  Attributes:
    location: a path, a pattern, an address, 'sample', or 'tfds:NAME'.
    format: the name of its corpus format.
    options: of the format, all of them, as text.
    weight: share of the rows in a mixture, relative to the weights of the other sources.
    heldout: fraction of its documents that is held out; None for that of the corpus.
    given: the options that were given, not their defaults.
    chosen: whether the format was given; else the content of files decides.
    text_format: the format of its files of plain text.
  """

  location: str
  format: str
  options: Mapping[str, str] = dataclasses.field(default_factory=dict)
  weight: float | None = None
  heldout: float | None = None
  given: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
  chosen: bool = dataclasses.field(default=False, compare=False)
  text_format: str = dataclasses.field(default='blank_line', compare=False)

  @property
  def spec(self) -> 'CorpusFormat':
    """The corpus format."""
    spec: CorpusFormat = registry.CORPUS_FORMATS.get(self.format)
    return spec


@dataclasses.dataclass(frozen=True)
class Group:
  """The part of a source that one reader reads, in order: the unit of parallel reader.

  Attributes:
    source_index: position of the source among all sources.
    source: the source.
    files: paths or addresses; empty where the format does not read files.
    start: first of the examples, where the format reads examples of a dataset.
    stop: the one after the last.
    bytes: stored bytes, an estimate for examples of a dataset.
  """

  source_index: int
  source: CorpusSource
  files: tuple[str, ...] = ()
  start: int = 0
  stop: int = 0
  bytes: int = 0


class CorpusFormat:
  """One way in which documents are stored.

  A subclass for files sets the attributes and defines `read`. The other methods have a meaning for
  files already.

  Attributes:
    title: what such a file is, for messages, as in "'a.jsonl' is JSON lines".
    extensions: in lower case with the dot, before the extension of a compression. Files with such
      a name are read in this format unless the source has `;format=NAME`.
    ambiguous_extensions: extensions that files of this format may have, beside other files; the
      source must have `;format=NAME`.
    magic: first bytes of such files, if they are not text. A text file that starts with them is
      refused.
    options: those that a source may set with `;name=value`, and their defaults. Values are text.
    version: part of the fingerprint of prepared corpora. Raise it when the format begins to give
      other documents.
    compressible: whether a compressed file can be read.
    plain_text: whether `config.data.document_format` may name it, for files with unknown
      extensions.
    selectable: whether a source may select it with `;format=NAME`.
    detectable: whether files or folders of the format are recognized.
    seeks: whether files are read at any place, and not from their beginning to their end.
    is_text: whether files are text.
  """

  title: str = ''
  extensions: tuple[str, ...] = ()
  ambiguous_extensions: tuple[str, ...] = ()
  magic: tuple[bytes, ...] = ()
  options: Mapping[str, str] = {}
  version: int = 0
  compressible: bool = True
  plain_text: bool = False
  selectable: bool = True
  detectable: bool = True
  seeks: bool = False
  is_text: bool = False

  def read(self, path: str, options: Mapping[str, str], reader: DocumentReader) -> Iterator[str]:
    """Yields the documents of a file in order; blank ones are dropped by the caller.

    Args:
      path: of the file, local or an address.
      options: of the source, see the attribute.
      reader: gives lines, or decompressed bytes.

    Raises:
      UserError: the file is damaged, or not in this format.
    """
    raise NotImplementedError

  def owns(self, location: str) -> bool:
    """Whether a location that is not a file is one of this format."""
    return False

  def owns_folder(self, names: Set[str]) -> bool:
    """Whether a folder with files of these names is a data set of this format."""
    return False

  def folder_source(self, source: CorpusSource, name: str) -> CorpusSource:
    """The source of a folder that this format owns; `name` is that of the format."""
    for option in source.given:
      if option not in self.options:
        raise unknown_option(source.location, self.title, option)
    options = self.parse_options(source.location, source.given)
    return dataclasses.replace(source, format=name, options=options)

  def recognizes(self, head: bytes) -> bool:
    """Whether a file that begins so, decompressed, has this format, by `magic`."""
    return any(map(head.startswith, self.magic))

  def recognizes_text(self, head: bytes) -> bool:
    """Whether a text file that begins so has this format, whatever its name."""
    return False

  def parse_options(self, location: str, given: Mapping[str, str]) -> dict[str, str]:
    """The options of a source, with the defaults of those that are not given.

    Raises:
      UserError: the format has no such option, or the value is wrong.
    """
    for name in given:
      if name not in self.options:
        raise unknown_option(location, self.title, name)
    return {**self.options, **given}

  def describe(self, source: CorpusSource) -> str:
    """A source in a few words."""
    return source.location

  #### What a source holds ####

  def contents(self, source: CorpusSource) -> Contents:
    """What a source holds whose location the format owns; detection.py finds those of files.

    Raises:
      UserError: it cannot be read.
    """
    raise NotImplementedError

  def unclaimed(
    self, index: int, source: CorpusSource, contents: Contents, claims: Claims
  ) -> Contents:
    """The contents without what an earlier source, or this one, holds already; claims the rest.

    Args:
      index: of the source.
      source: the source.
      contents: of the source.
      claims: what earlier sources hold; is added to.

    Raises:
      UserError: sources with weights hold the same file.
    """
    found = {}
    for path, facts in contents.items():
      key = (file_access.absolute(path), self.part_read(source))
      first, first_path, first_location = claims.setdefault(key, (index, path, source.location))
      if (first, first_path) == (index, path):
        found[path] = facts
      elif first != index and source.weight is not None:
        raise UserError(
          f'the corpus file {path!r} is in two sources, {first_location!r} and '
          f'{source.location!r}; expected it in one, because they have weights'
        )
    return found

  def part_read(self, source: CorpusSource) -> Key:
    """The part of a file that the source reads: two sources may read different parts of one."""
    return source.format, *sorted(source.options.items())

  def groups(self, index: int, source: CorpusSource, contents: Contents) -> list[Group]:
    """The contents in groups of about `GROUP_BYTES`, in order; a larger file is its own group."""
    groups = []
    files: list[str] = []
    size = 0
    for path, facts in contents.items():
      if files and (size >= GROUP_BYTES or facts.size >= GROUP_BYTES):
        groups.append(Group(index, source, tuple(files), bytes=size))
        files = []
        size = 0
      files.append(path)
      size += facts.size
    if files:
      groups.append(Group(index, source, tuple(files), bytes=size))
    return groups

  def identity(self, source: CorpusSource, contents: Contents) -> tuple[Any, Any]:
    """(how the source is read, what it holds): values whose `repr` changes with the documents."""
    return self.options_identity(source), [
      (file_access.absolute(path), facts.size, facts.version) for path, facts in contents.items()
    ]

  def options_identity(self, source: CorpusSource) -> Key:
    """What decides, beside the format's name, which documents are read of a file."""
    return self.version, sorted(source.options.items())

  def documents(self, group: Group, reader: DocumentReader) -> Iterator[str]:
    """Yields the documents of a group in order, blank ones dropped."""
    for path in group.files:
      for text in self.read(path, group.source.options, reader):
        yield from reader.document(text)


class FieldFormat(CorpusFormat):
  """A format for files of records, with the document in one field of each record."""

  options: Mapping[str, str] = {'field': 'text'}

  def text_fields(
    self, path: str, options: Mapping[str, str], reader: DocumentReader
  ) -> Sequence[str]:
    """Names of the fields of a file that hold text; empty where that is not known.

    Raises:
      UserError: the file is damaged, or not in this format.
    """
    return ()

  def detected_field(
    self, path: str, options: Mapping[str, str], reader: DocumentReader
  ) -> str | None:
    """The field of a file that holds the documents; None if that is unknown."""
    try:
      found = self.text_fields(path, options, reader)
    except UserError:  # reported when the file is read
      return None
    if self.options['field'] in found:
      return self.options['field']
    by_name = {name.lower(): name for name in reversed(found)}
    likely = next((by_name[name] for name in _LIKELY_FIELDS if name in by_name), None)
    return likely or (found[0] if len(found) == 1 else None)

  def part_read(self, source: CorpusSource) -> tuple[str, str]:
    """See the base class."""
    return source.format, source.options['field']

  def options_identity(self, source: CorpusSource) -> str:
    """See the base class. Without `version`: corpora that version 0.1.0 prepared are reused."""
    return source.options['field']


def format_by_name(path: str) -> str | None:
  """The format that has the extension of a file's name; None if there is none.

  Raises:
    UserError: the file is compressed in a way in which it cannot be read.
  """
  compressed, extension = _extension(path)
  found = None
  for name in registry.CORPUS_FORMATS:
    spec = registry.CORPUS_FORMATS.get(name)
    if extension in spec.extensions or (not found and extension in spec.ambiguous_extensions):
      found = name
  if found is None:
    return None
  spec = registry.CORPUS_FORMATS.get(found)
  if compressed and not spec.compressible:
    raise UserError(
      f'the corpus file {path!r} is compressed {spec.title}, which cannot be read in parts; '
      'decompress it'
    )
  return found


def is_ambiguous(path: str, name: str) -> bool:
  """Whether a file that `format_by_name` takes for a format may as well be another kind of file."""
  return _extension(path)[1] in registry.CORPUS_FORMATS.get(name).ambiguous_extensions


def unknown_option(location: str, title: str, name: str) -> UserError:
  """The error for an option that the format of a source does not have."""
  return UserError(
    f'the corpus source {location!r} is {title}, which has no option {name}; leave out {name}=...'
  )


def option_names() -> list[str]:
  """Names of the options of all formats."""
  specs = map(registry.CORPUS_FORMATS.get, registry.CORPUS_FORMATS)
  return list(dict.fromkeys(name for spec in specs for name in spec.options))


def _extension(path: str) -> tuple[bool, str]:
  """(whether a file is compressed, the extension before that of its compression)."""
  name = pathlib.PurePosixPath(path)
  if archive := _COMPRESSED_ARCHIVES.get(name.suffix.lower()):
    return True, archive
  compressed = name.suffix.lower() in file_access.COMPRESSIONS
  return compressed, pathlib.PurePosixPath(name.stem if compressed else name.name).suffix.lower()

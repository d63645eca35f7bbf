"""Archives of files, zip and tar: each member is read in the format of its content.

Members are not unpacked into a folder: they are read one at a time, in the order of the archive.
Names that lead out of the archive and links are refused, as hostile archives have them.
"""

import contextlib
import dataclasses
import io
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO, cast

from electra_jax import file_access, input_limits, registry
from electra_jax.data.corpus import detection, file_kinds
from electra_jax.data.corpus.corpus_format import CorpusFormat, FieldFormat, format_by_name
from electra_jax.data.corpus.readers import SKIPPED, DocumentReader, OpenedFile
from electra_jax.errors import UserError

if TYPE_CHECKING:
  from _typeshed import WriteableBuffer

_TAR_NAME = 257  # place of 'ustar' in the header of a member
_ENCRYPTED = 1
# What damaged archives raise beside the exceptions of damaged compressed files.
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error)


@dataclasses.dataclass(frozen=True)
class Member:
  """A file in an archive.

  Attributes:
    path: of the archive, a slash and the member's name, for messages and to detect its format.
    open: opens its content; the stream is valid until the next member.
  """

  path: str
  open: Callable[[], BinaryIO]


class ArchiveFormat(CorpusFormat):
  """An archive. `documents` is what separates documents in members of text."""

  options = {'field': '', 'documents': 'blank_line'}
  version = 1

  def members(self, opened: OpenedFile, path: str) -> Iterator[Member]:
    """Yields the files of an archive in its order, without folders.

    Raises:
      UserError: a member has a name that leads out of the archive, or is no regular file.
    """
    raise NotImplementedError

  def read(self, path: str, options: Mapping[str, str], reader: DocumentReader) -> Iterator[str]:
    """See the base class. Members that hold no corpus are skipped and counted by their kind."""
    with reader.opened(path) as opened, _naming_damage(path):
      seen = 0
      limited = _Expansion(path, reader.stored_size(path))
      for member in self.members(opened, path):
        yield from _texts_of(member, options, reader, limited)
        position = opened.raw.tell()
        reader.advance(position - seen)
        seen = max(seen, position)
      reader.advance(reader.stored_size(path) - seen)


class ZipFormat(ArchiveFormat):
  """A zip archive, in the order of its directory."""

  title = 'a zip archive'
  extensions = ('.zip',)
  magic = (b'PK\x03\x04', b'PK\x05\x06')
  compressible = False
  seeks = True

  def members(self, opened: OpenedFile, path: str) -> Iterator[Member]:
    """See the base class."""
    with _naming_unsupported(path):
      archive = zipfile.ZipFile(opened.raw)
    for info in archive.infolist():
      mode = info.external_attr >> 16
      _check_name(path, info.filename, bool(mode) and stat.S_ISLNK(mode))
      if info.is_dir() or not info.file_size:
        continue
      if info.flag_bits & _ENCRYPTED:
        raise UserError(f'the member {info.filename!r} of {path!r} is encrypted; decrypt it')

      def open_member(info: zipfile.ZipInfo = info) -> BinaryIO:
        with _naming_unsupported(path):
          return cast(BinaryIO, archive.open(info))

      yield Member(f'{path}/{info.filename}', open_member)


class TarFormat(ArchiveFormat):
  """A tar archive, compressed or not, in the order of its members."""

  title = 'a tar archive'
  extensions = ('.tar',)

  def recognizes(self, head: bytes) -> bool:
    """See the base class."""
    return head[_TAR_NAME : _TAR_NAME + 5] == b'ustar'

  def members(self, opened: OpenedFile, path: str) -> Iterator[Member]:
    """See the base class."""
    with tarfile.open(fileobj=opened.stream, mode='r|') as archive:
      for info in archive:
        archive.members = []  # type: ignore[attr-defined]  # it would keep all of them in memory
        _check_name(path, info.name, not (info.isfile() or info.isdir()))
        if not info.isfile() or not info.size:
          continue

        def open_member(info: tarfile.TarInfo = info) -> BinaryIO:
          return cast(BinaryIO, archive.extractfile(info))

        yield Member(f'{path}/{info.name}', open_member)


ZIP = ZipFormat()
TAR = TarFormat()


def _check_name(path: str, name: str, is_link: bool) -> None:
  """Raises UserError for a member that a careless program would write or read elsewhere."""
  if is_link:
    raise UserError(
      f'the member {name!r} of {path!r} is a link or a device; expected regular files: repack it'
    )
  parts = name.replace('\\', '/').split('/')
  if '..' in parts or name.startswith(('/', '\\')) or ':' in parts[0]:
    raise UserError(
      f'the member {name!r} of {path!r} has a name that leads out of the archive; expected '
      'relative names: repack it'
    )


@contextlib.contextmanager
def _naming_damage(path: str) -> Iterator[None]:
  try:
    yield
  except _DAMAGE as error:
    raise UserError(
      f'the corpus file {path!r} is damaged or cut short ({file_access.reason(error)}); replace it'
    ) from None


@contextlib.contextmanager
def _naming_unsupported(path: str) -> Iterator[None]:
  """Names what zipfile does not implement: other ways of compression, and newer versions of zip."""
  try:
    yield
  except NotImplementedError as error:
    raise UserError(
      f'the corpus file {path!r} cannot be read ({file_access.reason(error)}); expected a zip '
      'archive compressed by deflate, bzip2 or LZMA: repack it'
    ) from None


#### Members ####


class _Expansion:
  """Counts what the members of an archive expand to, all together.

  Members may share stored bytes, so that each expands little and all of them without end.
  """

  def __init__(self, path: str, stored: int) -> None:
    self._path = path
    self._stored = stored
    self._count = 0

  def add(self, count: int) -> None:
    self._count += count
    input_limits.check_expansion(self._count, self._stored, f'the corpus file {self._path!r}')


class _Stream(io.RawIOBase):
  """The stream of a member, of which the first bytes were read before. What is read counts."""

  def __init__(self, inner: BinaryIO, limited: _Expansion) -> None:
    self._inner = inner
    self._limited = limited
    self._place = 0
    self.head = file_access.read_at_most(inner, file_kinds.HEAD_BYTES)
    limited.add(len(self.head))

  def readable(self) -> bool:
    return True

  def tell(self) -> int:
    return self._place

  def readinto(self, buffer: 'WriteableBuffer') -> int:
    target = memoryview(buffer).cast('B')
    if self._place < len(self.head):
      piece = self.head[self._place : self._place + len(target)]
    else:
      piece = self._inner.read(len(target))
      self._limited.add(len(piece))
    target[: len(piece)] = piece
    self._place += len(piece)
    return len(piece)


class _MemberReader(DocumentReader):
  """Reads a member of an archive, for the format of the member."""

  def __init__(
    self, outer: DocumentReader, raw: io.RawIOBase, own_magic: tuple[bytes, ...]
  ) -> None:
    super().__init__(outer.invalid_utf8, None, outer.counts, own_magic)
    self._outer = outer
    self._raw = cast(BinaryIO, io.BufferedReader(raw))
    self._copy: BinaryIO | None = None

  def add_replaced(self, number: int) -> None:
    """See the base class: the documents are the archive's."""
    self._outer.add_replaced(number)

  @contextlib.contextmanager
  def opened(self, path: str) -> Iterator[OpenedFile]:
    """See the base class."""
    with self.naming_damage(path):
      head = cast(io.BufferedReader, self._raw).peek()
      suffix = file_access.compression(path, head)
      yield OpenedFile(self._raw, file_access.decompressed(self._raw, path, suffix))

  @contextlib.contextmanager
  def stored(self, path: str) -> Iterator[tuple[BinaryIO, int]]:
    """See the base class. The member is copied to a temporary file, which can be read anywhere."""
    if self._copy is None:
      self._copy = cast(BinaryIO, tempfile.TemporaryFile())  # closed by `close`
      try:
        shutil.copyfileobj(self._raw, self._copy)
      except OSError as error:
        raise UserError(
          f'{path!r} cannot be copied to {tempfile.gettempdir()!r} '
          f'({file_access.reason(error)}); set TMPDIR to a folder with room'
        ) from None
    size = self._copy.seek(0, io.SEEK_END)
    self._copy.seek(0)
    yield self._copy, size

  def close(self) -> None:
    """Removes the copy."""
    if self._copy is not None:
      self._copy.close()


def _texts_of(
  member: Member, options: Mapping[str, str], reader: DocumentReader, limited: _Expansion
) -> Iterator[str]:
  """The documents of a member."""
  name = member.path.rpartition('/')[2]
  if name.startswith('.') or '/__MACOSX/' in member.path:
    return
  with member.open() as inner:
    raw = _Stream(inner, limited)
    suffix = file_access.compression(member.path, raw.head)
    head = _decompressed_head(raw.head, member.path, suffix)
    chosen, kind = _format_of(member.path, head, bool(suffix))
    spec = registry.CORPUS_FORMATS.get(chosen or options['documents'])
    if isinstance(spec, ArchiveFormat):
      kind = f'{spec.title} in an archive'
    if not kind and spec.plain_text and detection.is_about_a_data_set(member.path):
      kind = 'a text about the data'
    if kind:
      reader.add(f'{SKIPPED}{kind}')
      return
    with contextlib.closing(_MemberReader(reader, raw, spec.magic)) as of_member:
      settings = _settings(spec, member, options, of_member, head)
      yield from spec.read(member.path, settings, of_member)


def _format_of(path: str, head: bytes, compressed: bool) -> tuple[str, str]:
  """See `detection.format_of_content`; what cannot be read is skipped, too."""
  try:
    return detection.format_of_content(path, format_by_name(path), head, compressed)
  except UserError:
    return '', 'a compressed file of a format that is read in parts'


def _settings(
  spec: CorpusFormat,
  member: Member,
  options: Mapping[str, str],
  reader: _MemberReader,
  head: bytes,
) -> dict[str, str]:
  """The options for a member, with the column of texts where it is not given."""
  given = {key: value for key, value in options.items() if key in spec.options and value}
  settings = spec.parse_options(member.path, given)
  if isinstance(spec, FieldFormat) and 'field' not in given:
    name = member.path
    looking: DocumentReader = reader
    if not spec.seeks:  # a stream is read once, so its beginning decides
      name = member.path.removesuffix(file_access.compression(member.path))
      looking = _MemberReader(DocumentReader(), cast(io.RawIOBase, io.BytesIO(head)), spec.magic)
    field = spec.detected_field(name, settings, looking)
    settings |= {'field': field} if field else {}
  return settings


def _decompressed_head(head: bytes, path: str, suffix: str) -> bytes:
  """The first bytes of a member, decompressed as far as they reach."""
  if not suffix:
    return head
  pieces: list[bytes] = []
  stream = cast(io.BufferedReader, file_access.decompressed(io.BytesIO(head), path, suffix))
  with contextlib.suppress(*file_access.damage()):  # the stream is cut after its first bytes
    while len(b''.join(pieces)) < file_kinds.HEAD_BYTES and (piece := stream.read1(1 << 12)):
      pieces.append(piece)
  return b''.join(pieces)

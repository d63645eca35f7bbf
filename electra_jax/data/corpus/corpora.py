"""Documents of a corpus, which is one or several sources, each with its format."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence

from electra_jax import file_access
from electra_jax.data.corpus import detection
from electra_jax.data.corpus.corpus_format import Claims, CorpusSource, Group
from electra_jax.data.corpus.readers import DocumentReader
from electra_jax.data.corpus.sources import check_sources, parse_sources, source_at
from electra_jax.data.corpus.text_format import SAMPLE_PATH

__all__ = [
  'SAMPLE_PATH',
  'CorpusSource',
  'Group',
  'corpus_identity',
  'describe_sources',
  'documents',
  'groups',
  'is_held_out',
  'parse_sources',
  'read_documents',
]

# Text as in config.data.source, a path, or a source.
SourceLike = str | os.PathLike[str] | CorpusSource

_SHOWN = 3  # sources in a description


def groups(sources: Sequence[CorpusSource]) -> list[Group]:
  """The contents of sources in groups, one for each reader, in order.

  Names, sizes and first bytes of the files decide. Each file occurs once. No group spans sources,
  or files of two formats.

  Raises:
    UserError: a file is missing, cannot be read, is a folder, or in another format; a pattern
      matches no file; there is no source; a file is in two sources of a mixture; a dataset is not
      prepared or has no such split or text.
  """
  return [
    group
    for index, part in _parts(sources)
    for group in part.source.spec.groups(index, part.source, part.contents)
  ]


def documents(
  group: Group,
  invalid_utf8: str = 'refuse',
  advance: Callable[[int], None] | None = None,
  counts: dict[str, int] | None = None,
) -> Iterator[str]:
  """The documents of a group in order, one at a time in memory. Blank ones are dropped.

  Args:
    group: what to read.
    invalid_utf8: what becomes of bytes that are not UTF-8: 'refuse' them, or 'replace' them with
      U+FFFD.
    advance: is called with the number of bytes of `group.bytes` read since the last call.
    counts: is added to: `blank_documents` (only white space, or null), `replaced_bytes` (not UTF-8;
      half a surrogate pair in JSON counts as one) and `documents_with_replacements`.

  Returns:
    Documents unchanged; the paragraphs of a text file are separated by newlines.

  Raises:
    UserError: a file is damaged, not UTF-8, or not in its format; the sentence names the place.
  """
  spec = group.source.spec
  return spec.documents(group, DocumentReader(invalid_utf8, advance, counts, spec.magic))


def read_documents(
  source: SourceLike | Sequence[SourceLike],
  document_format: str = 'blank_line',
  invalid_utf8: str = 'refuse',
) -> Iterator[str]:
  """All documents of a source.

  Args:
    source: text as in config.data.source, a path, a `CorpusSource`, or a sequence of those.
    document_format: see `parse_sources`.
    invalid_utf8: see `documents`.

  Yields:
    Documents.

  Raises:
    UserError: see `groups` and `documents`.
  """
  found: list[CorpusSource] = []
  items: Sequence[SourceLike]
  if isinstance(source, str | os.PathLike | CorpusSource):
    items = [source]
  else:
    items = source
  for item in items:
    if isinstance(item, str):
      found += parse_sources(item, document_format)
    elif isinstance(item, CorpusSource):
      found.append(item)
    else:
      found.append(source_at(os.fspath(item), document_format=document_format))
  for group in groups(check_sources(found)):
    yield from documents(group, invalid_utf8)


def corpus_identity(sources: Sequence[CorpusSource]) -> str:
  """A hash that changes when the documents of the sources do.

  It covers path, size and version of files; the content of the bundled sample; name, version,
  selected examples and sizes of TFDS datasets; formats and their options. It does not cover
  weights.
  """
  digest = hashlib.blake2b(digest_size=16)
  for _, (source, contents) in _parts(sources):
    values = (source.format, *source.spec.identity(source, contents))
    digest.update(repr(values).encode(errors='surrogateescape') + b'\0')
  return digest.hexdigest()


def describe_sources(sources: Sequence[CorpusSource]) -> str:
  """The sources in a few words, for the console."""
  shown = [
    source.spec.describe(source)
    + (f' (weight {source.weight:g})' if source.weight is not None and len(sources) > 1 else '')
    for source in sources
  ]
  if len(shown) <= _SHOWN:
    return ', '.join(shown)
  return f'{", ".join(shown[: _SHOWN - 1])} and {len(shown) - _SHOWN + 1} more'


def is_held_out(text: str, fraction: float) -> bool:
  """Whether a document is in the held-out split.

  A hash of its text decides, so neither its place nor other documents matter.

  Args:
    text: the document.
    fraction: the expected fraction of documents that are held out, 0 to 1.
  """
  digest = hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
  return int.from_bytes(digest, 'big') < fraction * 2**64


def notes(sources: Sequence[CorpusSource]) -> list[tuple[str, str]]:
  """(label, text) for the console of what was detected: formats, columns, skipped files."""
  return [
    note for source in sources for note in detection.notes(source, detection.detect_formats(source))
  ]


def skipped_files(sources: Sequence[CorpusSource]) -> list[dict[str, int]]:
  """For each source how many files of its folder hold no corpus, by what they are."""
  counts = []
  for source in sources:
    is_folder = not source.spec.owns(source.location) and file_access.is_folder(
      os.path.expanduser(source.location)
    )
    skipped = detection.detect_formats(source).skipped if is_folder else {}
    counts.append({kind: len(names) for kind, names in skipped.items()})
  return counts


def _parts(sources: Sequence[CorpusSource]) -> Iterator[tuple[int, detection.FormatPart]]:
  """Yields (index of the source, part) of what each source holds and no earlier one does."""
  check_sources(sources)
  claims: Claims = {}
  for index, source in enumerate(sources):
    for part in detection.detect_formats(source).parts:
      spec = part.source.spec
      contents = spec.unclaimed(index, part.source, part.contents, claims)
      if contents or not part.contents:
        yield index, detection.FormatPart(part.source, contents)

"""Documents from any corpus: text, JSON lines or Parquet files, TensorFlow Datasets, the bundled sample, or several."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

from electra_jax import file_access
from electra_jax.data.corpus import readers, tfds
from electra_jax.data.corpus.sources import (
  DOCUMENT_FORMATS,
  SAMPLE,
  WHAT_TO_GIVE,
  Source,
  checked,
  format_of,
  parse_sources,
  source_at,
)
from electra_jax.errors import UserError

SAMPLE_PATH = pathlib.Path(__file__).parent / 'sample' / 'corpus.txt.xz'
INVALID_UTF8 = ('refuse', 'replace')
GROUP_BYTES = 256_000_000
GROUP_EXAMPLES = 200_000

_GLOB_CHARACTERS = set('*?[')


@dataclasses.dataclass(frozen=True)
class Group:
  """What one reader reads, in order: the unit of parallel reading."""

  source: int  # index of its source
  spec: Source
  files: tuple[str, ...] = ()  # of a source of files
  start: int = 0  # of a TFDS dataset: the first of the examples that its split selects
  stop: int = 0  # and the one after the last
  bytes: int = 0  # on disk; of a TFDS dataset about


def groups(sources: Sequence[Source]) -> list[Group]:
  """What the sources hold, cut into pieces for one reader each, in order; their names and sizes alone decide.

  Files are sorted and come once each. They are gathered in order until a group has `GROUP_BYTES`; a larger file is a
  group of its own. Of TFDS datasets each `GROUP_EXAMPLES` examples are one. No group spans sources.

  Raises:
    UserError: a file is missing, cannot be read, is a folder, or of another format; a pattern matches nothing; there is
      no source; text is in two sources of a mixture; a TFDS dataset is not prepared or has no such split or text.
  """
  found = []
  for i, (source, contents) in enumerate(_contents(sources)):
    if source.format == 'tfds':
      builder, slices = contents
      total = sum(last - first for _, first, last in slices)
      size = sum(tfds.slice_bytes(builder, part) for part in slices)
      for start in range(0, total, GROUP_EXAMPLES):
        stop = min(start + GROUP_EXAMPLES, total)
        found.append(
          Group(i, source, (), start, stop, size * stop // total - size * start // total)
        )
      continue
    gathered, size = [], 0
    for path, facts in contents.items():
      if gathered and (size >= GROUP_BYTES or facts.size >= GROUP_BYTES):
        found.append(Group(i, source, tuple(gathered), bytes=size))
        gathered, size = [], 0
      gathered.append(path)
      size += facts.size
    if gathered:
      found.append(Group(i, source, tuple(gathered), bytes=size))
  return found


def documents(
  group: Group,
  invalid_utf8: str = 'refuse',
  advance: Callable[[int], None] | None = None,
  counts: dict[str, int] | None = None,
) -> Iterator[str]:
  """The group's documents in order, one at a time in memory.

  Args:
    invalid_utf8: what becomes of bytes that are not UTF-8: `'refuse'`, or `'replace'` by U+FFFD.
    advance: called with the number of bytes of `group.bytes` read since the last call.
    counts: added to: `'blank_documents'` (of white space alone, or null, which are left out), `'replaced_bytes'` (that
      were not UTF-8; half a surrogate pair in JSON counts as one) and `'documents_with_replacements'`.

  Yields:
    Documents as they stand, the paragraphs of a text file parted by newlines.

  Raises:
    UserError: something damaged, not UTF-8, or not in the format it should have, named with its place.
  """
  if invalid_utf8 not in INVALID_UTF8:
    raise UserError(
      f'invalid_utf8 is {invalid_utf8!r}; it can be {", ".join(map(repr, INVALID_UTF8))}'
    )
  return _documents(group, invalid_utf8, advance, counts)


def read(
  source, document_format: str = 'blank_line', invalid_utf8: str = 'refuse'
) -> Iterator[str]:
  """All documents of a source as in config.data.source, of a path or a `Source`, or of a list of those."""
  found = []
  for item in source if isinstance(source, Sequence) and not isinstance(source, str) else [source]:
    if isinstance(item, str):
      found += parse_sources(item, document_format)
    else:
      found.append(
        item
        if isinstance(item, Source)
        else source_at(os.fspath(item), document_format=document_format)
      )
  for group in groups(checked(found)):
    yield from documents(group, invalid_utf8)


def corpus_identity(sources: Sequence[Source]) -> str:
  """A hash that changes when the corpus does.

  It covers the content of the bundled sample; path, size and version of other files; name, version, selected examples
  and files' sizes of TFDS datasets; and how they are read. Weights are not in it.
  """
  digest = hashlib.blake2b(digest_size=16)
  for source, contents in _contents(sources):
    if source.format == 'tfds':
      known = tfds.identity(source, contents[0])
    elif source.format == SAMPLE:
      known = hashlib.blake2b(SAMPLE_PATH.read_bytes()).hexdigest()
    else:
      known = [
        (file_access.absolute(path), facts.size, facts.version) for path, facts in contents.items()
      ]
    field = source.field if source.format in ('jsonl', 'parquet') else ''
    digest.update(repr((source.format, field, known)).encode(errors='surrogateescape') + b'\0')
  return digest.hexdigest()


def describe(sources: Sequence[Source]) -> str:
  """The sources in a few words, for a person."""

  def words(source):
    name = 'the bundled sample' if source.format == SAMPLE else source.location
    name += f' {source.split}' if source.format == 'tfds' else ''
    return name + (
      f' (weight {source.weight:g})' if source.weight is not None and len(sources) > 1 else ''
    )

  shown = [words(source) for source in sources]
  return (
    ', '.join(shown) if len(shown) <= 3 else f'{", ".join(shown[:2])} and {len(shown) - 2} more'
  )


def is_held_out(text: str, fraction: float) -> bool:
  """Whether a document belongs to the held-out split: a hash of its text alone decides, so no order or neighbour does.

  Args:
    text: the document.
    fraction: the expected share of documents held out, 0 to 1.
  """
  digest = hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
  return int.from_bytes(digest, 'big') < fraction * 2**64


def _documents(group, invalid_utf8, advance, counts):
  spec = group.spec
  if spec.format == 'tfds':
    yield from tfds.read_examples(
      spec, group.start, group.stop, invalid_utf8, advance, group.bytes, counts
    )
  for path in group.files:
    if spec.format == 'jsonl':
      yield from readers.read_jsonl(path, spec.field, invalid_utf8, advance, counts)
    elif spec.format == 'parquet':
      yield from readers.read_parquet(path, spec.field, invalid_utf8, advance, counts)
    else:
      text_format = 'blank_line' if spec.format == SAMPLE else spec.format
      yield from readers.read_text(path, text_format, invalid_utf8, advance, counts)


def _contents(sources):
  """Yields (source, what it holds): files with their facts, or a TFDS builder and its slices; nothing comes twice."""
  checked(sources)
  seen = {}
  for i, source in enumerate(sources):
    if source.format == 'tfds':
      builder = tfds.open_dataset(source)
      slices = tfds.slices(source, builder)
      for split, first, last in slices:
        taken = seen.setdefault((builder.info.full_name, source.field, split), [])
        if any(first < end and start < last for start, end in taken):
          raise UserError(
            f'examples of split {split!r} of {source.location!r} are named twice; choose splits that do '
            'not overlap'
          )
        taken.append((first, last))
      yield source, (builder, slices)
      continue
    found = {}
    for path, facts in _files(source).items():
      what = (source.format, source.field) if source.format in ('jsonl', 'parquet') else 'text'
      first = seen.setdefault((file_access.absolute(path), what), (i, path))
      if first == (i, path):
        found[path] = facts
      elif first[0] != i and source.weight is not None:
        raise UserError(
          f'the corpus file {path!r} is in two sources, {sources[first[0]].location!r} and '
          f'{source.location!r}; with weights it can be in one'
        )
    yield source, found


def _files(source):
  """The files of a source with their facts, sorted."""
  if source.format == SAMPLE:
    return {str(SAMPLE_PATH): file_access.facts(SAMPLE_PATH)}
  location = os.path.expanduser(source.location)
  if file_access.exists(location):
    _check_file(location)
    found = {location: file_access.facts(location)}
  elif _GLOB_CHARACTERS & set(location):
    found = file_access.find(location)
    if not found:
      raise UserError(
        f"the corpus pattern {location!r} matches no file; give a pattern that does, or 'sample'"
      )
  else:
    raise UserError(f'the corpus file {location!r} does not exist; {WHAT_TO_GIVE}')
  for path in found:
    if not file_access.is_remote(path) and not os.access(path, os.R_OK):
      raise UserError(f'the corpus file {path!r} may not be read; change its permissions')
    told = format_of(path)
    if (
      told
      and told != source.format
      and source.format in DOCUMENT_FORMATS
      and not format_of(location)
    ):
      raise UserError(
        f'the corpus pattern {location!r} matches {path!r}, which is no text; give a pattern for each '
        'kind of file, which ends as they do'
      )
  return found


def _check_file(path):
  if file_access.is_folder(path):
    raise UserError(
      f"the corpus {path!r} is a folder; give the files in it, such as '{path}/*.txt'"
    )
  if not file_access.is_remote(path) and not os.path.isfile(path):
    raise UserError(
      f'the corpus {path!r} is no file that can be read twice; give one that is on a disk'
    )

"""Documents from a source: the bundled sample, or text files, plain or compressed, read as a stream."""

import bz2
import glob
import gzip
import hashlib
import io
import lzma
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence

from electra_jax.config import UserError

SAMPLE = 'sample'
SAMPLE_PATH = pathlib.Path(__file__).parent / 'sample' / 'corpus.txt.xz'
DOCUMENT_FORMATS = ('blank_line', 'line', 'file')

_OPENERS = {'.gz': gzip.open, '.xz': lzma.open, '.bz2': bz2.open}
_BUFFER_BYTES = 1 << 18
_ADVANCE_LINES = 256
_GLOB_CHARACTERS = set('*?[')

Source = str | os.PathLike | Sequence[str | os.PathLike]


def corpus_files(source: Source) -> list[pathlib.Path]:
  """The files a source names, sorted and each once.

  Args:
    source: `'sample'` for the bundled corpus, or a path or glob of text files, or a list of those.

  Raises:
    UserError: a file is missing, cannot be read or is a folder; a glob matches nothing; the source is empty.
  """
  if isinstance(source, str | os.PathLike):
    source = [source]
  files = set()
  for item in source:
    item = os.fspath(item)
    if item == SAMPLE:
      files.add(SAMPLE_PATH)
    elif os.path.exists(item):
      files.add(pathlib.Path(item))
    elif _GLOB_CHARACTERS & set(item):
      matches = [path for path in glob.glob(item, recursive=True) if os.path.isfile(path)]
      if not matches:
        raise UserError(f"the corpus pattern {item!r} matches no file; give a pattern that does, or 'sample'")
      files.update(map(pathlib.Path, matches))
    else:
      raise UserError(f"the corpus file {item!r} does not exist; give a file, a pattern like 'text/*.txt', or 'sample'")
  if not files:
    raise UserError("the corpus source is empty; give a file, a pattern such as 'text/*.txt', or 'sample'")
  for path in files:
    if path.is_dir():
      raise UserError(f"the corpus {str(path)!r} is a folder; give the files in it, such as '{path}/*.txt'")
    if not os.access(path, os.R_OK):
      raise UserError(f'the corpus file {str(path)!r} may not be read; change its permissions')
  return sorted(files)


def corpus_bytes(source: Source) -> int:
  """Bytes that the source's files take on disk, the unit of `documents`' `advance`."""
  return sum(path.stat().st_size for path in corpus_files(source))


def corpus_identity(source: Source) -> str:
  """A hash that changes when the corpus does: the content of the bundled sample; path, size and time of other files."""
  digest = hashlib.blake2b(digest_size=16)
  for path in corpus_files(source):
    if path == SAMPLE_PATH:
      digest.update(b'sample\0' + hashlib.blake2b(path.read_bytes()).digest())
    else:
      stat = path.stat()
      digest.update(f'{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0'.encode(errors='surrogateescape'))
  return digest.hexdigest()


def describe(source: Source) -> str:
  """The source in a few words, for a person."""
  if source == SAMPLE:
    return 'the bundled sample'
  files = corpus_files(source)
  return str(files[0]) if len(files) == 1 else f'{files[0]} and {len(files) - 1} more'


def documents(
  source: Source,
  document_format: str = 'blank_line',
  advance: Callable[[int], None] | None = None,
) -> Iterator[str]:
  """Yields the corpus's documents in order, holding one at a time in memory.

  Args:
    source: see `corpus_files`. `.gz`, `.xz` and `.bz2` are decompressed on the way.
    document_format: `'blank_line'`: documents are parted by blank lines, and their lines are paragraphs; `'line'`: each
      line is one; `'file'`: each file is one.
    advance: called with the number of bytes of the files on disk read since the last call.

  Yields:
    Documents as they stand in the file, their paragraphs parted by newlines. Those of white space alone are left out.

  Raises:
    UserError: as `corpus_files`; no document at all; a file that is not UTF-8, or is damaged.
  """
  if document_format not in DOCUMENT_FORMATS:
    raise UserError(f"document_format is {document_format!r}; it can be {', '.join(map(repr, DOCUMENT_FORMATS))}")
  files = corpus_files(source)
  found = False
  for path in files:
    for document in _file_documents(path, document_format, advance):
      found = True
      yield document
  if not found:
    raise UserError(f"the corpus is empty: no text in {describe(source)}; give files that hold some, or 'sample'")


def is_held_out(text: str, fraction: float) -> bool:
  """Whether a document belongs to the held-out split: a hash of its text alone decides, so no order or neighbour does.

  Args:
    text: the document.
    fraction: the expected share of documents held out, 0 to 1.
  """
  digest = hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
  return int.from_bytes(digest, 'big') < fraction * 2**64


def _file_documents(path, document_format, advance):
  paragraphs = []
  for line in _lines(path, advance):
    blank = not line.strip()
    if document_format == 'line':
      if not blank:
        yield line
    elif not blank or (document_format == 'file' and paragraphs):
      paragraphs.append(line)
    elif paragraphs:
      yield '\n'.join(paragraphs)
      paragraphs = []
  if paragraphs:
    yield '\n'.join(paragraphs).rstrip('\n')


def _lines(path, advance):
  """Lines of a file without their ends, decoded; only \\n parts lines, as other separators occur inside paragraphs."""
  seen = 0
  offset = 0
  with open(path, 'rb') as raw:
    opener = _OPENERS.get(path.suffix.lower())
    stream = io.BufferedReader(opener(raw), _BUFFER_BYTES) if opener else raw
    number = 0
    while True:
      try:
        line = stream.readline()
      except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f'the corpus file {str(path)!r} is damaged or cut short ({error}); make it again') from None
      if advance and (number % _ADVANCE_LINES == 0 or len(line) > _BUFFER_BYTES or not line):
        position = raw.tell()
        if position > seen:
          advance(position - seen)
          seen = position
      if not line:
        return
      number += 1
      try:
        text = line.decode('utf-8-sig' if number == 1 else 'utf-8')
      except UnicodeDecodeError as error:
        where = f'byte 0x{line[error.start]:02x} on line {number}, byte {offset + error.start} of the text'
        raise UserError(f'the corpus file {str(path)!r} is not UTF-8 ({where}); convert it, with iconv say') from None
      offset += len(line)
      yield text.rstrip('\r\n')

"""Text files, with documents between blank lines, one per line or one per file; the sample."""

import hashlib
import pathlib
from collections.abc import Iterator, Mapping

from electra_jax import file_access, input_limits
from electra_jax.data.corpus.corpus_format import Contents, CorpusFormat, CorpusSource
from electra_jax.data.corpus.readers import DocumentReader

SAMPLE_PATH = pathlib.Path(__file__).parents[1] / 'sample' / 'corpus.txt.xz'


class TextFormat(CorpusFormat):
  """Plain text. The lines of a document are joined with newlines."""

  title = 'text'
  plain_text = True
  is_text = True

  def part_read(self, source: CorpusSource) -> str:
    """Text formats read the same of a file."""
    return 'text'

  def options_identity(self, source: CorpusSource) -> str:
    """Empty, as version 0.1.0 has it: corpora that it prepared are reused."""
    return ''


class BlankLineFormat(TextFormat):
  """Text with blank lines between documents."""

  def read(self, path: str, options: Mapping[str, str], reader: DocumentReader) -> Iterator[str]:
    """See the base class."""
    paragraphs: list[str] = []
    size = 0
    for number, line in reader.lines(path):
      if line and not line.isspace():
        paragraphs.append(line)
        size += len(line)
        _check_document(size, number, path)
      elif paragraphs:
        yield '\n'.join(paragraphs)
        paragraphs = []
        size = 0
    if paragraphs:
      yield '\n'.join(paragraphs)


class LineFormat(TextFormat):
  """Text with one document per line."""

  def read(self, path: str, options: Mapping[str, str], reader: DocumentReader) -> Iterator[str]:
    """See the base class."""
    for _, line in reader.lines(path):
      yield line


class WholeFileFormat(TextFormat):
  """Text with one document per file."""

  def read(self, path: str, options: Mapping[str, str], reader: DocumentReader) -> Iterator[str]:
    """See the base class. Blank lines at the start and the end are dropped."""
    lines: list[str] = []
    size = 0
    for number, line in reader.lines(path):
      if lines or (line and not line.isspace()):
        lines.append(line)
        size += 1 + len(line)
        _check_document(size, number, path)
    yield '\n'.join(lines).rstrip('\n')


def _check_document(size: int, line: int, path: str) -> None:
  """Raises UserError for a document of many lines that is larger than memory should hold."""
  if size > input_limits.DOCUMENT_BYTES:
    what = f'the document that ends after line {line} of the corpus file {path!r}'
    input_limits.check(size, input_limits.DOCUMENT_BYTES, what, 'characters')


class SampleFormat(BlankLineFormat):
  """The bundled sample, whose location is 'sample'."""

  title = 'the bundled sample'
  plain_text = False
  selectable = False
  detectable = False

  def owns(self, location: str) -> bool:
    """See the base class."""
    return location == 'sample'

  def describe(self, source: CorpusSource) -> str:
    """See the base class."""
    return self.title

  def contents(self, source: CorpusSource) -> Contents:
    """The file of the sample."""
    return {str(SAMPLE_PATH): file_access.facts(SAMPLE_PATH)}

  def identity(self, source: CorpusSource, contents: Contents) -> tuple[str, str]:
    """A hash of the text, because the file's path and time differ between installations."""
    return '', hashlib.blake2b(SAMPLE_PATH.read_bytes()).hexdigest()


BLANK_LINE = BlankLineFormat()
LINE = LineFormat()
FILE = WholeFileFormat()
SAMPLE = SampleFormat()

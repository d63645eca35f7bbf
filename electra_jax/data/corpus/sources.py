"""What config.data.source says: where the text is, how it is kept, and how much of it goes into a mixture."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

from electra_jax import file_access
from electra_jax.data.corpus import tfds
from electra_jax.errors import UserError

SAMPLE = 'sample'
DOCUMENT_FORMATS = ('blank_line', 'line', 'file')
FILE_FORMATS = (*DOCUMENT_FORMATS, 'jsonl', 'parquet')
WHAT_TO_GIVE = "give a file, a pattern like 'text/*.txt', or 'sample'"

_OPTIONS = ('format', 'field', 'split', 'data_dir', 'download', 'weight')
_APPLYING = {
  SAMPLE: ('weight',),
  'tfds': ('field', 'split', 'data_dir', 'download', 'weight'),
  'tfds folder': ('field', 'split', 'weight'),
  'jsonl': ('format', 'field', 'weight'),
  'parquet': ('format', 'field', 'weight'),
}
_TEXT_OPTIONS = ('format', 'weight')
_WORDS = {
  SAMPLE: 'the bundled sample',
  'tfds': 'a TFDS dataset',
  'tfds folder': 'the folder of a TFDS dataset',
  'jsonl': 'JSON lines',
  'parquet': 'Parquet',
}
_SUFFIXES = {'.jsonl': 'jsonl', '.ndjson': 'jsonl', '.parquet': 'parquet', '.json': 'json'}
_ARCHIVES = ('.tar', '.tgz', '.zip', '.7z', '.rar')


@dataclasses.dataclass(frozen=True)
class Source:
  """One part of config.data.source."""

  location: str  # 'sample', a path, pattern or address, or 'tfds:NAME', where NAME may be a prepared version's folder
  format: str  # 'blank_line', 'line', 'file' (text), 'jsonl', 'parquet', 'tfds', 'sample'
  field: str = 'text'  # JSONL field, Parquet column, TFDS feature; dots lead into nested ones
  split: str = 'train'  # of a TFDS dataset, in TFDS's slicing syntax
  data_dir: str = ''  # where TFDS looks for the dataset; '': where it keeps them
  download: bool = False  # TFDS: download and prepare it where it is not there
  weight: float | None = None  # share of the rows in a mixture, against the other sources' weights


def parse_sources(text: str, document_format: str = 'blank_line') -> tuple[Source, ...]:
  """The sources that config.data.source names: `location;option=value;...`, several with commas between.

  Options are format, field, split, data_dir, download (yes or no) and weight. Files are JSON lines where their names
  end in .jsonl or .ndjson, Parquet where they end in .parquet (before the suffix of their compression), and else text
  in `document_format`, unless the option says otherwise.

  Raises:
    UserError: no source, an unknown option or value, an option that does not apply, some weights given and others not.
  """
  if document_format not in DOCUMENT_FORMATS:
    raise UserError(
      f'document_format is {document_format!r}; it can be {", ".join(map(repr, DOCUMENT_FORMATS))}'
    )
  sources = []
  for part in text.split(','):
    location, *options = (piece.strip() for piece in part.split(';'))
    if location:
      sources.append(source_at(location, options, document_format))
    elif any(options):
      raise UserError(f'the corpus source {part.strip()!r} has options and no file; {WHAT_TO_GIVE}')
  return checked(sources)


def source_at(
  location: str, options: Sequence[str] = (), document_format: str = 'blank_line'
) -> Source:
  """One source from its location and its options, each `name=value`. Raises UserError for options that are none."""
  given = {}
  for option in filter(None, options):
    name, equals, value = (piece.strip() for piece in option.partition('='))
    if not equals or name not in _OPTIONS:
      raise UserError(
        f'the corpus source {location!r} has an option {option!r} that is not known; options are '
        f'{", ".join(f"{name}=..." for name in _OPTIONS)}, with semicolons between'
      )
    if not value or name in given:
      raise UserError(
        f'the corpus source {location!r} gives its option {name} '
        + ('twice' if value else 'no value')
      )
    given[name] = value
  kind = _kind(location, given.get('format'), document_format)
  for name in given:
    if name not in _APPLYING.get(kind, _TEXT_OPTIONS):
      raise UserError(
        f'the corpus source {location!r} is {_WORDS.get(kind, "text")}, for which {name}=... means '
        'nothing; leave it out'
      )
  if given.get('download', 'no') not in ('yes', 'no'):
    raise UserError(
      f'the corpus source {location!r} has download={given["download"]}; it can be yes or no'
    )
  given |= {
    'format': kind.split()[0],
    'download': given.get('download') == 'yes',
    'weight': _weight(location, given['weight']) if 'weight' in given else None,
  }
  return Source(location, **given)


def format_of(path: str) -> str | None:
  """The format that a file's name tells, before the suffix of its compression. Raises UserError for archives."""
  name = pathlib.PurePosixPath(path)
  compressed = name.suffix.lower() in file_access.COMPRESSIONS
  suffix = pathlib.PurePosixPath(name.stem if compressed else name.name).suffix.lower()
  if suffix in _ARCHIVES:
    raise UserError(f'the corpus file {path!r} is an archive of files; unpack it')
  if compressed and suffix == '.parquet':
    raise UserError(
      f'the corpus file {path!r} is compressed Parquet, which cannot be read in parts; decompress it, as '
      'Parquet compresses what is inside'
    )
  return _SUFFIXES.get(suffix)


def checked(sources: Sequence[Source]) -> tuple[Source, ...]:
  """The sources, if they can stand beside each other. Raises UserError where there is none, or some lack a weight."""
  if not sources:
    raise UserError(
      "the corpus source is empty; give a file, a pattern such as 'text/*.txt', or 'sample'"
    )
  without = [source.location for source in sources if source.weight is None]
  if without and len(without) < len(sources):
    raise UserError(
      f'the corpus source {without[0]!r} has no weight and others do; add ;weight=... to each, or to '
      'none'
    )
  return tuple(sources)


def _kind(location, given_format, document_format):
  """The source's format, where 'tfds folder' is a dataset that is not looked up by name."""
  if location == SAMPLE:
    return SAMPLE
  if location.startswith(tfds.PREFIX):
    return 'tfds folder' if tfds.is_folder(location.removeprefix(tfds.PREFIX)) else 'tfds'
  told = format_of(location)
  if given_format is None and told == 'json':  # the name alone does not tell, and neither is text
    raise UserError(
      f'the corpus source {location!r} may be JSON lines or one JSON document; add ;format=jsonl where '
      'each line is an object'
    )
  if given_format is None:
    return told or document_format
  if given_format not in FILE_FORMATS:
    raise UserError(
      f'the corpus source {location!r} has format={given_format}; it can be {", ".join(FILE_FORMATS)}'
    )
  return given_format


def _weight(location, text):
  try:
    weight = float(text)
  except ValueError:
    weight = math.nan
  if not 0 < weight < math.inf:
    raise UserError(f'the corpus source {location!r} has weight={text}; give a number above 0')
  return weight

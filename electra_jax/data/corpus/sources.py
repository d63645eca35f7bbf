"""Parses config.data.source: locations, their formats and options, and weights of a mixture."""

import math
from collections.abc import Sequence

from electra_jax import registry
from electra_jax.data.corpus.corpus_format import (
  CorpusSource,
  format_by_name,
  option_names,
  unknown_option,
)
from electra_jax.errors import UserError

_EXPECTED = "expected a file, a folder, a pattern such as 'text/*.txt', or 'sample'"


def parse_sources(text: str, document_format: str = 'blank_line') -> tuple[CorpusSource, ...]:
  """The sources that config.data.source names: `location;option=value;...`, with commas between.

  Options are `format`, `weight` and those of the format. The extension of a file's name, before
  that of its compression, selects its format unless the option does.

  Args:
    text: as in the config.
    document_format: the format of files with unknown extensions.

  Raises:
    UserError: there is no source, an option or its value is unknown or does not apply, or only some
      sources have weights.
  """
  texts = [name for name in registry.CORPUS_FORMATS if registry.CORPUS_FORMATS.get(name).plain_text]
  if document_format not in texts:
    raise UserError(
      f'document_format is {document_format!r}; expected one of {", ".join(map(repr, texts))}.'
    )
  sources = []
  for part in text.split(','):
    location, *options = (piece.strip() for piece in part.split(';'))
    if location:
      sources.append(source_at(location, options, document_format))
    elif any(options):
      raise UserError(
        f'the corpus source {part.strip()!r} has options but no location; {_EXPECTED}'
      )
  return check_sources(sources)


def source_at(
  location: str, options: Sequence[str] = (), document_format: str = 'blank_line'
) -> CorpusSource:
  """One source.

  Args:
    location: see `CorpusSource`.
    options: each `name=value`.
    document_format: see `parse_sources`.

  Raises:
    UserError: an option or its value is unknown or does not apply.
  """
  given = _split_options(location, options)
  weight = given.pop('weight', None)
  heldout = given.pop('heldout', None)
  chosen = 'format' in given
  owners = [
    name for name in registry.CORPUS_FORMATS if registry.CORPUS_FORMATS.get(name).owns(location)
  ]
  if owners:
    name = owners[0]
    if 'format' in given:
      raise unknown_option(location, registry.CORPUS_FORMATS.get(name).title, 'format')
  else:
    name = _format_of_files(location, given.pop('format', None), document_format)
  spec = registry.CORPUS_FORMATS.get(name)
  by_content = not owners and not chosen  # the content may be of a format that has the option
  certain = {
    option: value
    for option, value in given.items()
    if option in spec.options or not by_content or option not in _options_of_files()
  }
  return CorpusSource(
    location,
    name,
    spec.parse_options(location, certain),
    None if weight is None else _parse_weight(location, weight),
    None if heldout is None else _parse_fraction(location, heldout),
    given,
    chosen,
    document_format,
  )


def check_sources(sources: Sequence[CorpusSource]) -> tuple[CorpusSource, ...]:
  """The sources, if they can be read together.

  Raises:
    UserError: there is none, or only some have weights.
  """
  if not sources:
    raise UserError(f'the corpus source is empty; {_EXPECTED}')
  without = [source.location for source in sources if source.weight is None]
  if without and len(without) < len(sources):
    raise UserError(
      f'the corpus source {without[0]!r} has no weight and others do; add ;weight=... to each or '
      'to none'
    )
  return tuple(sources)


def _options_of_files() -> set[str]:
  """Options of the formats that the content of a file may have."""
  specs = map(registry.CORPUS_FORMATS.get, registry.CORPUS_FORMATS)
  return {name for spec in specs if spec.detectable for name in spec.options}


def _split_options(location: str, options: Sequence[str]) -> dict[str, str]:
  """Names and values of options that some format has."""
  known = ('format', *option_names(), 'weight', 'heldout')
  given: dict[str, str] = {}
  for option in filter(None, options):
    name, equals, value = (piece.strip() for piece in option.partition('='))
    if not equals or name not in known:
      raise UserError(
        f'the corpus source {location!r} has the unknown option {option!r}; expected some of '
        f'{", ".join(f"{name}=..." for name in known)}, with semicolons between'
      )
    if not value or name in given:
      raise UserError(
        f'the corpus source {location!r} has its option {name} '
        + ('twice; leave out one' if value else 'without a value; add one')
      )
    given[name] = value
  return given


def _format_of_files(location: str, given: str | None, document_format: str) -> str:
  """The name of the format of a file or pattern; `given` is that of the option."""
  if given is not None:
    formats = [
      name for name in registry.CORPUS_FORMATS if registry.CORPUS_FORMATS.get(name).selectable
    ]
    if given not in formats:
      raise UserError(
        f'the corpus source {location!r} has format={given}; expected one of {", ".join(formats)}.'
      )
    return given
  return format_by_name(location) or document_format


def _parse_weight(location: str, text: str) -> float:
  try:
    weight = float(text)
  except ValueError:
    weight = math.nan
  if not 0 < weight < math.inf:
    raise UserError(f'the corpus source {location!r} has weight={text}; expected a number above 0.')
  return weight


def _parse_fraction(location: str, text: str) -> float:
  try:
    fraction = float(text)
  except ValueError:
    fraction = math.nan
  if not 0 <= fraction < 1:
    raise UserError(
      f'the corpus source {location!r} has heldout={text}; expected a fraction of at least 0 and '
      'below 1.'
    )
  return fraction

"""Segmenters of user code: words of scripts that are written without spaces.

A segmenter is a function of registry.SEGMENTERS that returns the words of a text. Where two words
are not separated by white space, a space is put between them before the tokenizer sees the text, so
that no token crosses the boundary and the tokens of every kind show it. Offsets are those of the
text without these spaces.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np

from electra_jax import json_reader, registry
from electra_jax.errors import UserError

# Beside the files of a tokenizer: the name and the version of its segmenter.
SEGMENTER_FILE = 'segmenter.json'

Segment: TypeAlias = Callable[[str], Iterable[str]]


def segmenter_record(name: str) -> bytes:
  """The file of a segmenter, which is part of the tokenizer's fingerprint.

  Raises:
    UserError: no segmenter has this name.
  """
  version = getattr(registry.SEGMENTERS.get(name), 'version', 0)
  return (json.dumps({'name': name, 'version': version}) + '\n').encode()


def find_segmenter(files: Mapping[str, bytes], source: str) -> Segment | None:
  """The segmenter of a tokenizer; None for none.

  Args:
    files: of the tokenizer.
    source: the tokenizer, for error messages.

  Raises:
    UserError: it is not registered, or it is of another version.
  """
  if SEGMENTER_FILE not in files:
    return None
  described = json_reader.parse(files[SEGMENTER_FILE], f'{SEGMENTER_FILE} of {source!r}')
  json_reader.check(described, {'name': str, 'version': int}, f'{SEGMENTER_FILE} of {source!r}')
  name = described['name']
  if name not in registry.SEGMENTERS:
    raise UserError(
      f'the tokenizer {source!r} uses the segmenter {name!r}, which is not registered; set '
      '--plugins=FILE to the file that registers it.'
    )
  segment: Segment = registry.SEGMENTERS.get(name)
  version = getattr(segment, 'version', 0)
  if version != described['version']:
    raise UserError(
      f'the segmenter {name!r} has version {version}, and the tokenizer {source!r} was made with '
      f'version {described["version"]}; use that version, or prepare the corpus again.'
    )
  return segment


def separated(text: str, segment: Segment) -> tuple[str, np.ndarray]:
  """Puts a space between words that are not separated.

  Args:
    text: any text.
    segment: the segmenter.

  Returns:
    The text with spaces, and the place in the original text of each of its characters and of its
    end, int32 `[characters + 1]`.

  Raises:
    UserError: the words are not those of the text.
  """
  cuts = _cuts(text, segment)
  places = np.arange(len(text) + 1, dtype=np.int32)
  if not cuts:
    return text, places
  ends = [*cuts, len(text)]
  parts = [text[start:end] for start, end in zip([0, *cuts], ends, strict=True)]
  return ' '.join(parts), np.insert(places, cuts, np.array(cuts, np.int32))


def original_spans(spans: np.ndarray, places: np.ndarray) -> np.ndarray:
  """Spans of a text of `separated` as spans of the original text.

  Args:
    spans: int32 `[tokens, 2]`, without white space around tokens.
    places: of `separated`.
  """
  start, end = spans.T
  last = places[np.maximum(end, 1) - 1] + np.int32(1)
  return np.stack([places[start], np.where(start < end, last, places[start])], axis=1)


def _cuts(text: str, segment: Segment) -> list[int]:
  """Where words of a text begin that no white space precedes, without the first word."""
  cuts = []
  at = 0
  for word in segment(text):
    word = word.strip()
    start = text.find(word, at)
    if start < 0 or text[at:start].strip():
      raise UserError(
        f'the segmenter returned {word[:40]!r} for {text[at : at + 40]!r}; expected the words of '
        'the text in their order, without a change of their characters.'
      )
    if word and start == at > 0:
      cuts.append(start)
    at = start + len(word)
  return cuts

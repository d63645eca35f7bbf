"""Model files of SentencePiece: pieces, scores and normalization; and pieces appended to a model.

The file is a protocol buffer, `sentencepiece_model.proto`. Its fields are read here and not with
the module of the sentencepiece package, which imports with few versions of protobuf only, while
TensorFlow requires others. The package's processor gives neither types nor rules of normalization.
"""

import dataclasses
import struct
from collections.abc import Iterator, Sequence
from typing import Any

# Types of pieces.
(
  NORMAL_PIECE,
  UNKNOWN_PIECE,
  CONTROL_PIECE,
  USER_DEFINED_PIECE,
  UNUSED_PIECE,
  BYTE_PIECE,
) = range(1, 7)
# Types of models.
UNIGRAM_MODEL, BPE_MODEL = range(1, 3)
# The character that stands for white space in a piece, U+2581.
SPACE = '\u2581'


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
  """A model of SentencePiece.

  Attributes:
    pieces: (text, score, type) of each id. A score is the logarithm of a probability (unigram), or
      falls with each merge (BPE).
    model_type: UNIGRAM_MODEL, BPE_MODEL, or that of words (3) or characters (4).
    byte_fallback: whether characters that are in no piece become bytes.
    space_after_words: whether a piece ends with the space of its word; otherwise it begins with it.
    charsmap: compiled rules of normalization; empty for none.
    add_dummy_prefix: whether a space is added before the text.
    remove_extra_whitespaces: whether spaces at both ends are removed, and repeated ones merged.
    escape_whitespaces: whether spaces become U+2581.
  """

  pieces: tuple[tuple[str, float, int], ...]
  model_type: int
  byte_fallback: bool
  space_after_words: bool
  charsmap: bytes
  add_dummy_prefix: bool
  remove_extra_whitespaces: bool
  escape_whitespaces: bool

  @property
  def scores(self) -> dict[str, float]:
    """Text -> score of the normal pieces."""
    return {text: score for text, score, kind in self.pieces if kind == NORMAL_PIECE}

  @property
  def has_all_characters(self) -> bool:
    """Whether every character of a normal piece is a piece, too.

    If so, the number of unknown characters of a text does not depend on how it is split.
    """
    scores = self.scores
    return all(character in scores for text in scores for character in text)


def parse_model(content: bytes) -> SentencePieceModel:
  """Parses a file that SentencePiece opens.

  Field numbers and defaults are those of sentencepiece_model.proto.

  Raises:
    ValueError: it is cut short or damaged, or fields have other types.
  """
  try:
    return _parsed(content)
  except (IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
    raise ValueError(f'a field is missing, cut short or of another type: {error}') from None


def _parsed(content: bytes) -> SentencePieceModel:
  pieces = []
  trainer: dict[int, Any] = {}
  normalizer: dict[int, Any] = {}
  for number, value in _fields(content):
    if number == 1:
      piece = dict(_fields(value))
      score = struct.unpack('<f', piece.get(2, bytes(4)))[0]
      pieces.append((piece[1].decode(), score, piece.get(3, NORMAL_PIECE)))
    elif number == 2:
      trainer.update(_fields(value))
    elif number == 3:
      normalizer.update(_fields(value))
  return SentencePieceModel(
    pieces=tuple(pieces),
    model_type=trainer.get(3, UNIGRAM_MODEL),
    byte_fallback=bool(trainer.get(35, 0)),
    space_after_words=bool(trainer.get(24, 0)),
    charsmap=normalizer.get(2, b''),
    add_dummy_prefix=bool(normalizer.get(3, 1)),
    remove_extra_whitespaces=bool(normalizer.get(4, 1)),
    escape_whitespaces=bool(normalizer.get(5, 1)),
  )


def append_pieces(content: bytes, pieces: Sequence[tuple[str, float]]) -> bytes:
  """Returns the file of a model with more normal pieces.

  Args:
    content: a model file.
    pieces: (text, score) of each; their ids follow those of the model.
  """
  size = sum(number == 1 for number, _ in _fields(content)) + len(pieces)
  # Concatenated messages merge: repeated fields are appended, others replaced. Field 4 holds
  # samples of what the model did before.
  kept = b''.join(_field(number, value) for number, value in _fields(content) if number != 4)
  added = (
    _field(1, _field(1, text.encode()) + _field(2, struct.pack('<f', score), wire_type=5))
    for text, score in pieces
  )
  return kept + b''.join(added) + _field(2, _field(4, size))


def with_pieces(content: bytes, pieces: Sequence[tuple[str, float, int]]) -> bytes:
  """Returns the file of a model with other pieces.

  Args:
    content: a model file.
    pieces: (text, score, type) of each id.
  """
  kept = (_field(n, value) for n, value in _fields(content) if n not in (1, 4))
  made = (
    _field(
      1,
      _field(1, text.encode()) + _field(2, struct.pack('<f', score), wire_type=5) + _field(3, kind),
    )
    for text, score, kind in pieces
  )
  return b''.join([*made, *kept]) + _field(2, _field(4, len(pieces)))


def normalizer_spec(charsmap: bytes) -> bytes:
  """The message of a model with rules of normalization, compiled; its other fields are usual."""
  return _field(1, b'user_defined') + _field(2, charsmap)


def with_normalization(content: bytes, charsmap: bytes) -> bytes:
  """Returns the file of a model with other rules of normalization.

  Args:
    content: a model file.
    charsmap: the compiled rules.
  """
  return content + _field(3, normalizer_spec(charsmap))  # concatenated messages merge


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
  """(number, value) of a message's fields: integers for varints, otherwise bytes."""
  at = 0

  def integer() -> int:
    nonlocal at
    value = shift = 0
    while True:
      byte = content[at]
      at += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value
      if shift > 63:
        raise ValueError('a number has more than 64 bits')

  while at < len(content):
    tag = integer()
    if tag & 7 == 0:
      yield tag >> 3, integer()
    else:
      size = {1: 8, 5: 4}.get(tag & 7) or integer()
      if at + size > len(content):
        raise ValueError('a field is cut short')
      yield tag >> 3, content[at : at + size]
      at += size


def _field(number: int, value: int | bytes, wire_type: int = 2) -> bytes:
  """An encoded field; integers are varints, and `wire_type` is that of bytes."""
  if isinstance(value, int):
    return _varint(number << 3) + _varint(value)
  size = _varint(len(value)) if wire_type == 2 else b''
  return _varint(number << 3 | wire_type) + size + value


def _varint(value: int) -> bytes:
  out = bytearray()
  while value > 127:
    out.append(value & 127 | 128)
    value >>= 7
  return bytes([*out, value])

"""What a SentencePiece model file holds: pieces, their scores, how text is normalized; and pieces added to it.

The file is a protocol buffer, `sentencepiece_model.proto`. The module that comes with SentencePiece works with few versions of
protobuf, and TensorFlow needs others, so its fields are read here.
"""

import dataclasses
import struct
from collections.abc import Iterator, Sequence

# Types of pieces.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Types of models.
UNIGRAM, BPE = 1, 2


@dataclasses.dataclass(frozen=True)
class Model:
  """A model.

  Attributes:
    pieces: (text, score, type) of each id; a score is the logarithm of a probability (unigram), or falls with each merge (BPE).
    kind: UNIGRAM, BPE, or that of words (3) or characters (4).
    byte_fallback: whether characters that no piece has become bytes.
    space_after_words: whether a piece ends with the space of its word, where others begin with it.
    charsmap: rules of normalization, compiled; empty for none.
    add_dummy_prefix: whether a space is put before the text.
    remove_extra_whitespaces: whether spaces at both ends go, and all but one of several.
    escape_whitespaces: whether spaces become U+2581.
  """

  pieces: tuple[tuple[str, float, int], ...]
  kind: int
  byte_fallback: bool
  space_after_words: bool
  charsmap: bytes
  add_dummy_prefix: bool
  remove_extra_whitespaces: bool
  escape_whitespaces: bool


def read(content: bytes) -> Model:
  """The model in a file that SentencePiece opens. Field numbers and defaults are those of sentencepiece_model.proto."""
  pieces, trainer, normalizer = [], {}, {}
  for number, value in _fields(content):
    if number == 1:
      piece = dict(_fields(value))
      pieces.append(
        (piece[1].decode(), struct.unpack('<f', piece.get(2, bytes(4)))[0], piece.get(3, NORMAL))
      )
    elif number in (2, 3):
      (trainer if number == 2 else normalizer).update(_fields(value))
  return Model(
    pieces=tuple(pieces),
    kind=trainer.get(3, UNIGRAM),
    byte_fallback=bool(trainer.get(35, 0)),
    space_after_words=bool(trainer.get(24, 0)),
    charsmap=normalizer.get(2, b''),
    add_dummy_prefix=bool(normalizer.get(3, 1)),
    remove_extra_whitespaces=bool(normalizer.get(4, 1)),
    escape_whitespaces=bool(normalizer.get(5, 1)),
  )


def appended(content: bytes, pieces: Sequence[tuple[str, float]]) -> bytes:
  """The file of a model with more normal pieces, (text, score), whose ids follow those that are there."""
  size = sum(number == 1 for number, _ in _fields(content)) + len(pieces)
  # Joining messages merges them: what may repeat is appended, the rest replaced. Field 4 are samples of what it did before.
  kept = b''.join(_field(number, value) for number, value in _fields(content) if number != 4)
  added = (
    _field(1, _field(1, text.encode()) + _field(2, struct.pack('<f', score), kind=5))
    for text, score in pieces
  )
  return kept + b''.join(added) + _field(2, _field(4, size))


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
  """Numbers and values of a message's fields: integers, and bytes for all else."""
  at = 0

  def integer():
    nonlocal at
    value = shift = 0
    while True:
      byte = content[at]
      at += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value

  while at < len(content):
    tag = integer()
    if tag & 7 == 0:
      yield tag >> 3, integer()
    else:
      size = {1: 8, 5: 4}.get(tag & 7) or integer()
      yield tag >> 3, content[at : at + size]
      at += size


def _field(number: int, value: int | bytes, kind: int | None = None) -> bytes:
  kind = (0 if isinstance(value, int) else 2) if kind is None else kind
  tag = _integer(number << 3 | kind)
  if kind == 0:
    return tag + _integer(value)
  return tag + (_integer(len(value)) if kind == 2 else b'') + value


def _integer(value: int) -> bytes:
  out = bytearray()
  while value > 127:
    out.append(value & 127 | 128)
    value >>= 7
  return bytes([*out, value])

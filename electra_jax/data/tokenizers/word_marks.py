"""How the tokens of a vocabulary show where words begin and what text they stand for.

`▁` or `Ġ` stands for the space before a word (SentencePiece, byte-level BPE), `##` marks the inside
of a word (WordPiece), `</w>` its end (BPE of GPT-1). Each kind of mark is a subclass of `Marks`.
"""

import abc
import functools
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from electra_jax.errors import UserError

# First and last character of scripts that are written without spaces: South East Asian and Tibetan,
# Chinese and Japanese.
SPACELESS = (
  (0x0E00, 0x109F),
  (0x1780, 0x17FF),
  (0x1950, 0x1AAF),
  (0x2E80, 0x9FFF),
  (0xF900, 0xFAFF),
  (0xFF66, 0xFF9F),
  (0x1B000, 0x1B16F),
  (0x20000, 0x3FFFF),
)
# First bytes in UTF-8 of characters of which nearly all begin words: punctuation and symbols,
# Chinese and Japanese, emoji.
WORD_BYTES = (*range(0xE2, 0xEA), *range(0xF0, 0xF5))
# Those of punctuation, symbols and emoji only.
SYMBOL_BYTES = (0xE2, *range(0xF0, 0xF5))
# Parts of a tokenizer.json that change a text before it is split into tokens.
STEPS = ('normalizer', 'pre_tokenizer')
# What is replaced where a character stands for a space.
_SPACES = ({'String': ' '}, {'Regex': ' '})


def begins_word(text: str, spaceless: bool = True) -> bool:
  """Whether a token with this text begins a word, by its first character.

  A word begins at white space, at punctuation and symbols, and at characters of scripts that are
  written without spaces. Marks continue the character before them. U+2581, which SentencePiece
  writes for a space, is a symbol in Unicode.

  Args:
    text: of the token.
    spaceless: whether characters of scripts without spaces begin words; not where a segmenter
      separates words.
  """
  character = text[:1]
  if not character or (category := unicodedata.category(character)[0]) == 'M':
    return False
  return (
    category in 'PS'
    or character.isspace()
    or spaceless
    and any(first <= ord(character) <= last for first, last in SPACELESS)
  )


def byte_begins_word(byte: int, spaceless: bool = True) -> bool:
  """Whether a character whose UTF-8 begins with a byte begins a word, as far as that decides it.

  Args:
    byte: the first byte.
    spaceless: see `begins_word`.
  """
  if byte < 128:
    return begins_word(chr(byte))
  return byte in (WORD_BYTES if spaceless else SYMBOL_BYTES)


class Marks(abc.ABC):
  """The marks of a vocabulary.

  Attributes:
    notation: one sentence for readers of tokens; see `Tokenizer.notation`.
    keeps_spaces: whether tokens show where a text has spaces.
    spaceless: whether characters of scripts without spaces begin words.
  """

  notation = ''
  keeps_spaces = True
  spaceless = True

  @abc.abstractmethod
  def begins(self, token: str) -> bool:
    """Whether a token begins a word.

    Raises:
      UserError: the marks do not show it.
    """

  def ends(self, token: str) -> bool:
    """Whether a word begins after a token, whatever follows it."""
    del token
    return False

  def surface(self, token: str) -> tuple[bool, str]:
    """Whether a space precedes a token, and its text without marks."""
    return False, token

  def content(self, token: str) -> bytes:
    """The UTF-8 of a token without marks, without a space before it."""
    return self.surface(token)[1].encode('utf-8', 'replace')


class SpaceMarks(Marks):
  """A character for the space before a word, as of SentencePiece."""

  def __init__(self, mark: str) -> None:
    """Sets the character."""
    self.mark = mark
    self.notation = f'{mark} begins a word.'

  def begins(self, token: str) -> bool:
    """See `Marks.begins`."""
    byte = byte_of(token)
    if byte is not None:
      return byte_begins_word(byte, self.spaceless)
    return token.startswith(self.mark) or begins_word(token, self.spaceless)

  def surface(self, token: str) -> tuple[bool, str]:
    """See `Marks.surface`."""
    return token.startswith(self.mark), token.removeprefix(self.mark).replace(self.mark, ' ')


class PrefixMarks(Marks):
  """A prefix of tokens inside a word, as of WordPiece."""

  keeps_spaces = False

  def __init__(self, prefix: str) -> None:
    """Sets the prefix; '' if every token is a word."""
    self.prefix = prefix
    self.notation = f'{prefix} continues a word.' if prefix else 'A token is one word.'

  def begins(self, token: str) -> bool:
    """See `Marks.begins`."""
    return not self._inside(token)

  def surface(self, token: str) -> tuple[bool, str]:
    """See `Marks.surface`."""
    inside = self._inside(token)
    return not inside, token.removeprefix(self.prefix) if inside else token

  def _inside(self, token: str) -> bool:
    return bool(self.prefix) and token.startswith(self.prefix) and token != self.prefix


class SuffixMarks(Marks):
  """A suffix of the last token of a word, as of GPT-1."""

  keeps_spaces = False

  def __init__(self, suffix: str) -> None:
    """Sets the suffix."""
    self.suffix = suffix
    self.notation = f'{suffix} ends a word.'

  def begins(self, token: str) -> bool:
    """See `Marks.begins`: words begin after the ends of others."""
    return False

  def ends(self, token: str) -> bool:
    """See `Marks.ends`."""
    return token.endswith(self.suffix)

  def surface(self, token: str) -> tuple[bool, str]:
    """See `Marks.surface`."""
    return False, token.removesuffix(self.suffix) + ' ' * self.ends(token)


class ByteMarks(Marks):
  """Bytes as characters, as of byte-level BPE (Radford et al. 2019), where Ġ is the space."""

  notation = 'Ġ begins a word, Ċ is a line break.'

  def begins(self, token: str) -> bool:
    """See `Marks.begins`."""
    content = token_bytes(token)
    try:
      text = content.decode()
    except UnicodeDecodeError as error:
      text = content[: error.start].decode()
    if text:
      return begins_word(text, self.spaceless)
    return bool(content) and byte_begins_word(content[0], self.spaceless)

  def ends(self, token: str) -> bool:
    """See `Marks.ends`: after a line break or a tab. A space begins the next word."""
    content = token_bytes(token)
    return not content.strip() and content[-1:] in b'\t\n\v\f\r' and bool(content)

  def surface(self, token: str) -> tuple[bool, str]:
    """See `Marks.surface`."""
    content = token_bytes(token)
    return content[:1] == b' ', content.removeprefix(b' ').decode('utf-8', 'replace')

  def content(self, token: str) -> bytes:
    """See `Marks.content`."""
    return token_bytes(token).removeprefix(b' ')


class NoMarks(Marks):
  """Tokens that do not show where words begin."""

  def begins(self, token: str) -> bool:
    """See `Marks.begins`."""
    raise UserError(
      'the tokens of the tokenizer do not show where words begin; set '
      '--config.objective.masking=uniform, or use another tokenizer.'
    )


def find_marks(description: Mapping[str, Any]) -> Marks:
  """The marks of a tokenizer.json.

  Args:
    description: the content of the file.
  """
  model = description['model']
  kind = model.get('type', 'BPE')
  prefix = model.get('continuing_subword_prefix') or ''
  if kind in ('WordPiece', 'WordLevel'):
    return PrefixMarks(prefix if kind == 'WordPiece' else '')
  steps = [step for name in STEPS for step in components(description.get(name))]
  if any(step['type'] == 'ByteLevel' for step in steps):
    return ByteMarks()
  if suffix := model.get('end_of_word_suffix'):
    return SuffixMarks(suffix)
  if prefix:
    return PrefixMarks(prefix)
  for step in steps:
    if step['type'] == 'Metaspace':
      return SpaceMarks(step['replacement'])
    content = step.get('content', '')
    if step['type'] == 'Replace' and step['pattern'] in _SPACES and content.strip():
      return SpaceMarks(content)
  return NoMarks()


def components(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
  """Yields the steps of a part of a tokenizer.json, those inside of sequences included."""
  if not part:
    return
  inside = [
    step for key in ('normalizers', 'pretokenizers', 'processors') for step in part.get(key, ())
  ]
  if not inside:
    yield part
  for step in inside:
    yield from components(step)


def byte_of(token: str) -> int | None:
  """The byte that a token such as <0x0A> stands for; None for other tokens."""
  if len(token) != 6 or not token.startswith('<0x') or token[5] != '>':
    return None
  try:
    return int(token[3:5], 16)
  except ValueError:
    return None


def token_bytes(token: str) -> bytes:
  """The bytes of a token of byte-level BPE; characters that stand for no byte are themselves."""
  table = _bytes_of_characters()
  return b''.join(bytes([table[c]]) if c in table else c.encode('utf-8', 'replace') for c in token)


@functools.cache
def _bytes_of_characters() -> dict[str, int]:
  """Character -> byte, as of GPT-2: printable bytes are themselves, others follow from U+0100."""
  printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in printable]
  return {chr(byte): byte for byte in printable} | {chr(256 + i): b for i, b in enumerate(others)}

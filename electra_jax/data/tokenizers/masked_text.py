"""Texts with masks: what is around a mask has the tokens that it has around a word."""

from collections.abc import Sequence
from typing import Protocol


class MaskedTokenizer(Protocol):
  """What is needed of a `Tokenizer`."""

  keeps_spaces: bool
  mask_id: int

  def encode(self, text: str) -> list[int]:
    """See `Tokenizer.encode`."""

  def encode_inside_word(self, text: str) -> list[int]:
    """See `Tokenizer.encode_inside_word`."""


def encode(tokenizer: MaskedTokenizer, parts: Sequence[str]) -> list[int]:
  """Returns the ids of a text whose parts are separated by [MASK].

  White space before a mask belongs to the masked word. What follows a mask without white space
  continues the word; punctuation does so only where tokens show their spaces, since it is a word
  where they do not.

  Args:
    tokenizer: of any kind.
    parts: of the text, without the masks.
  """
  found: list[int] = []
  for i, part in enumerate(parts):
    is_last = i == len(parts) - 1
    text = part if is_last else part.rstrip()
    if i:
      found.append(tokenizer.mask_id)
    continues = i and text and not text[0].isspace()
    if continues and (text[0].isalnum() or tokenizer.keeps_spaces):
      found += tokenizer.encode_inside_word(text)
    else:
      found += tokenizer.encode(text)
  return found

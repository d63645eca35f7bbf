"""From one vocabulary to another: lists of new words, and tokens that both have."""

import os
from collections.abc import Sequence

import numpy as np

from electra_jax import file_access
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError

# Below this share of known tokens, a vocabulary is a different one, not an extended one.
KNOWN_SHARE = 0.5


def read_words(path: str | os.PathLike[str]) -> list[str]:
  """Returns the words of a UTF-8 file with one word per line, without blank lines.

  Raises:
    UserError: there is no such file, it is not UTF-8, or it has no word.
  """
  path = os.fspath(path)
  if not file_access.exists(path):
    raise UserError(
      f'the list of words {path!r} does not exist; expected a text file with one word per line.'
    )
  try:
    text = file_access.read_bytes(path).decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise UserError(
      f'the list of words {path!r} is not UTF-8 at byte {error.start}; save it as UTF-8.'
    ) from None
  words = [word for line in text.splitlines() if (word := line.strip())]
  if not words:
    raise UserError(f'the list of words {path!r} is empty; expected one word per line.')
  return words


def carried_over(old: Tokenizer, new: Tokenizer) -> tuple[np.ndarray, list[int]]:
  """Finds the tokens of a new vocabulary in an old one.

  Tokens are the same if their texts are. Special tokens are the same by role, whatever their names.

  Returns:
    The old id of each new token, int32 `[new.size]`, -1 where it has none; and the new ids that
    have none.

  Raises:
    UserError: less than `KNOWN_SHARE` of the new tokens are in the old vocabulary.
  """
  found = np.array([old.ordinary_ids.get(token, -1) for token in new.tokens], np.int32)
  for role in ('pad_id', 'unk_id', 'cls_id', 'sep_id', 'mask_id'):
    found[getattr(new, role)] = getattr(old, role)
  known = int((found >= 0).sum())
  if known < KNOWN_SHARE * new.size:
    raise UserError(
      f'only {known} of {new.size} tokens of the tokenizer are in the vocabulary of the initial '
      'weights, so it is another vocabulary; use the tokenizer of the weights, or extend it.'
    )
  return found, np.flatnonzero(found < 0).tolist()


def pieces_of(old: Tokenizer, new: Tokenizer, new_ids: Sequence[int]) -> list[np.ndarray]:
  """Splits the text of each new token into tokens of an old vocabulary.

  A token that begins a word is split as a word, any other token as the inside of a word where
  possible. Unknown characters are dropped; a token without a known character gives [UNK].

  Args:
    old: the old tokenizer.
    new: the new tokenizer.
    new_ids: ids of ordinary tokens of `new`.

  Returns:
    Ids of the old vocabulary, int32 `[pieces]`, for each new id.
  """
  found = []
  for new_id in new_ids:
    begins, text = new.surface(new_id)
    text = text.strip()
    ids = old.encode(text) if begins else old.encode_inside_word(text)
    known = [i for i in ids if i != old.unk_id] or [old.unk_id]
    found.append(np.array(known, np.int32))
  return found

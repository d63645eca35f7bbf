"""The special tokens: their names, and their ids in a vocabulary."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from electra_jax import console
from electra_jax.errors import UserError

SPECIAL_TOKENS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS
# Ids in the vocabularies that this package trains.
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(len(SPECIAL_TOKENS))

# Names in SentencePiece models of other projects, the most common name first.
USUAL_NAMES = {
  PAD: (PAD, '<pad>'),
  UNK: (UNK, '<unk>'),
  CLS: (CLS, '<cls>', '<s>', '<bos>'),
  SEP: (SEP, '<sep>', '</s>', '<eos>'),
  MASK: (MASK, '<mask>'),
}
# Names of tokens that are appended to a vocabulary with names in angle brackets.
OTHER_NAMES = {PAD: '<pad>', UNK: '<unk>', CLS: '<s>', SEP: '</s>', MASK: '<mask>'}
OWN_NAMES = {token: (token,) for token in SPECIAL_TOKENS}


def role_of(token: str) -> str:
  """The name of a special token's role in the files of `transformers`: 'cls_token' for [CLS]."""
  return f'{token[1:-1].lower()}_token'


def find_special_tokens(
  tokens: Sequence[str], names: Mapping[str, Sequence[str]], source: str
) -> dict[str, int]:
  """Returns the ids of the special tokens, with the keys pad_id, unk_id, cls_id, sep_id, mask_id.

  Args:
    tokens: the vocabulary, in the order of its ids.
    names: special token -> names that it may have; the first one in the vocabulary is used.
    source: name of the vocabulary in error messages.

  Raises:
    UserError: the vocabulary lacks some of them.
  """
  ids = {token: i for i, token in enumerate(tokens)}
  found: dict[str, int] = {}
  missing = []
  for token in SPECIAL_TOKENS:
    name = next((name for name in names[token] if name in ids), None)
    if name is None:
      missing.append(' or '.join(names[token]))
    else:
      found[f'{token[1:-1].lower()}_id'] = ids[name]
  if missing:
    raise missing_tokens(source, missing)
  return found


def missing_tokens(source: str, missing: Sequence[str], remedy: str = '') -> UserError:
  """The mistake that a vocabulary lacks special tokens.

  Args:
    source: name of the vocabulary.
    missing: names of the tokens.
    remedy: what else may help; '' to use another tokenizer.
  """
  remedy = remedy or 'use a tokenizer that has them'
  return UserError(
    f'the vocabulary of {source} lacks {", ".join(missing)}; {remedy}, or set '
    '--config.data.add_special_tokens to append them.'
  )


def names_for_missing(missing: Sequence[str], vocabulary: Collection[str]) -> dict[str, str]:
  """Names of special tokens that a vocabulary lacks, in the style of those that it has.

  Args:
    missing: of SPECIAL_TOKENS.
    vocabulary: all tokens.

  Returns:
    Special token -> name.
  """
  angular = any(name in vocabulary for name in ('<unk>', '<pad>', '<s>', '</s>', '<bos>', '<eos>'))
  return {
    token: next(
      name
      for name in ((OTHER_NAMES[token], token) if angular else (token, OTHER_NAMES[token]))
      if name not in vocabulary
    )
    for token in missing
  }


def print_appended(names: Iterable[str]) -> None:
  """Prints which special tokens were appended to a vocabulary."""
  console.say('tokenizer', f'appended to the vocabulary: {", ".join(names)}')

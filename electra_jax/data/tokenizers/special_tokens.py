"""The special tokens: their names, and where a vocabulary has them."""

from collections.abc import Mapping, Sequence

from electra_jax.errors import UserError

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
# Where a vocabulary is made here.
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(len(SPECIAL_TOKENS))

# What other people's SentencePiece models call them, the likelier name first.
USUAL_NAMES = {
  PAD: (PAD, '<pad>'),
  UNK: (UNK, '<unk>'),
  CLS: (CLS, '<cls>', '<s>'),
  SEP: (SEP, '<sep>', '</s>'),
  MASK: (MASK, '<mask>'),
}
OWN_NAMES = {token: (token,) for token in SPECIAL_TOKENS}


def find_special_tokens(
  tokens: Sequence[str], names: Mapping[str, Sequence[str]], source: str
) -> dict[str, int]:
  """Ids of the special tokens, as `{'pad_id': ..., 'unk_id': ..., 'cls_id': ..., 'sep_id': ..., 'mask_id': ...}`.

  Args:
    tokens: the vocabulary, in the order of its ids.
    names: what each special token may be called, the first one that is there being taken.
    source: what the vocabulary is called in a complaint.

  Raises:
    UserError: some are missing.
  """
  ids = {token: i for i, token in enumerate(tokens)}
  found = {
    token: next((ids[name] for name in names[token] if name in ids), None)
    for token in SPECIAL_TOKENS
  }
  if missing := [' or '.join(names[token]) for token in SPECIAL_TOKENS if found[token] is None]:
    raise UserError(
      f'the vocabulary of {source} lacks {", ".join(missing)}; use one that has them, or train one here'
    )
  return {f'{token[1:-1].lower()}_id': i for token, i in found.items()}

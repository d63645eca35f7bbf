"""Tokenizers in folders of runs: saved whole or not at all, and compared by their fingerprint."""

import os

from electra_jax import file_access
from electra_jax.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from electra_jax.errors import UserError


def keep_tokenizer(folder: str | os.PathLike[str], tokenizer: Tokenizer) -> None:
  """Saves a tokenizer as a folder, unless a complete one is there.

  A local folder gets its name when it is complete. In a bucket, files are replaced one by one.

  Args:
    folder: the folder, whose earlier content is removed, or an address.
    tokenizer: the tokenizer.

  Raises:
    UserError: it cannot be written.
  """
  final = os.fspath(folder)
  if saved_fingerprint(final) == tokenizer.fingerprint:
    return
  if file_access.is_remote(final):
    file_access.remove(final)
    tokenizer.save(final)
    return
  temporary = f'{final}.tmp'
  file_access.remove(temporary)
  tokenizer.save(temporary)
  file_access.remove(final)
  with file_access.reaching(final, 'written', local=True):
    os.replace(temporary, final)
    file_access.sync_folder(os.path.dirname(final))


def saved_fingerprint(folder: str | os.PathLike[str]) -> str | None:
  """The fingerprint of the tokenizer in a folder; None if there is none, or it is damaged.

  Raises:
    UserError: the folder cannot be reached.
  """
  if not file_access.exists(folder):
    return None
  try:
    return load_tokenizer(folder).fingerprint
  except file_access.Unreachable:
    raise
  except UserError:  # such as an earlier start that ended between two of its files
    return None

"""The vocabulary of initial weights and that of the rows."""

import dataclasses
import os

import numpy as np

from electra_jax import file_access
from electra_jax.config import PretrainingConfig
from electra_jax.data.store.shard_cache import default_cache
from electra_jax.data.tokenizers import vocabulary
from electra_jax.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.pretrain.continued.source import InitialWeights, letter_cases
from electra_jax.training import run_folder


@dataclasses.dataclass(frozen=True)
class TokenRows:
  """Where the embeddings of each token come from.

  Attributes:
    ids: of each token the id in the weights, int32 `[vocab]`; -1 for a new token.
    pieces: of each new token the ids in the weights whose mean it is initialized with; None for
      the mean of all.
    note: sentence for the console; '' where nothing changes.
  """

  ids: np.ndarray
  pieces: tuple[np.ndarray | None, ...] = ()
  note: str = ''

  def select(self, table: np.ndarray, initialize: bool) -> np.ndarray:
    """Rows of a table of the weights for each token.

    Args:
      table: `[old vocab, ...]`.
      initialize: whether new rows are means; otherwise they are zeros, as moments are.

    Returns:
      `[vocab, ...]`.
    """
    if not self.pieces and np.array_equal(self.ids, np.arange(len(table))):
      return table
    selected: np.ndarray = table[np.maximum(self.ids, 0)]
    new = np.flatnonzero(self.ids < 0)
    selected[new] = 0
    if initialize and len(new):
      mean = table.mean(0)
      selected[new] = [mean if p is None else table[np.asarray(p)].mean(0) for p in self.pieces]
    return selected


def carried_rows(
  config: PretrainingConfig, source: InitialWeights, tokenizer: Tokenizer
) -> TokenRows:
  """Where the embeddings of each token of the rows' tokenizer come from.

  Raises:
    UserError: tokens are new and config.continued.new_tokens refuses them, or fewer tokens are
      known than in an extended vocabulary.
  """
  old, how = source.tokenizer, config.continued.new_tokens
  if old is None or old.tokens == tokenizer.tokens:
    return TokenRows(np.arange(tokenizer.size))
  ids, new = vocabulary.carried_over(old, tokenizer)
  if new and how == 'refuse':
    raise UserError(
      f'{len(new):,} tokens of the tokenizer are not among those of {source.weights.source} '
      f'({tokenizer.token(new[0])!r} is the first); choose how their embeddings are initialized: '
      '--config.continued.new_tokens=mean or pieces.'
    )
  removed = source.weights.vocab_size - len(np.unique(ids[ids >= 0]))
  notes = []
  if new:
    origin = 'their pieces' if how == 'pieces' else 'all tokens'
    notes.append(f'{len(new):,} new tokens, initialized with the mean of {origin}')
  if removed:
    notes.append(f'{removed:,} tokens of the source are removed')
  pieces = vocabulary.pieces_of(old, tokenizer, new) if how == 'pieces' else [None] * len(new)
  note = '; '.join(notes) or 'the tokens are those of the source, with other ids'
  return TokenRows(ids, tuple(pieces), note)


def check_same_tokens(source: InitialWeights, tokenizer: Tokenizer) -> None:
  """Raises UserError where the weights have another vocabulary than the rows."""
  if source.tokenizer is None or source.tokenizer.tokens == tokenizer.tokens:
    return
  old, new = source.tokenizer.tokens, tokenizer.tokens
  different = (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
  first = next(different, min(len(old), len(new)))

  def name(tokens: tuple[str, ...]) -> str:
    return repr(tokens[first]) if first < len(tokens) else 'none'

  raise UserError(
    f'{source.weights.source} has another vocabulary than the rows: token {first} is {name(old)} '
    f'there and {name(new)} here; set --config.data.tokenizer=init, or prepare the rows with its '
    'tokenizer.'
  )


def tokenizer_path(
  config: PretrainingConfig, source: InitialWeights | None, workdir: os.PathLike[str] | None = None
) -> str | None:
  """The path of the tokenizer of config.data.tokenizer='init', config.data.new_words included.

  The vocabulary of the rows is compared with that of the weights, before rows are prepared.

  Args:
    config: config of the run.
    source: the initial weights; None for a run that was started before, whose tokenizer is in
      `workdir`.
    workdir: folder of the run.

  Returns:
    The path; None where config.data.tokenizer names another tokenizer, or there are no initial
    weights.

  Raises:
    UserError: the source has no tokenizer, a word cannot be a token, or the vocabularies do not
      fit.
  """
  if not (config.init or config.generator.init) or config.data.store:
    return None
  path = None
  if config.data.tokenizer == 'init':
    if source is None:
      assert workdir is not None
      return str(run_folder.folder(workdir) / 'tokenizer')
    path = _tokenizer_of(config, source)
  if source is not None:
    tokenizer = load_tokenizer(
      path or file_access.normal(config.data.tokenizer),
      *letter_cases(config),
      add_special_tokens=config.data.add_special_tokens,
    )
    if config.init:
      carried_rows(config, source, tokenizer)
    else:
      check_same_tokens(source, tokenizer)
  return path


def _tokenizer_of(config: PretrainingConfig, source: InitialWeights) -> str:
  """The path of the tokenizer of the weights, extended by config.data.new_words."""
  if source.tokenizer is None or source.weights.tokenizer is None:
    raise UserError(
      f'{source.weights.source} has no tokenizer beside it; add its vocab.txt, or name a '
      'tokenizer: --config.data.tokenizer=FILE.'
    )
  if not config.data.new_words:
    return source.weights.tokenizer
  longer = source.tokenizer.with_words(vocabulary.read_words(config.data.new_words))
  cache = file_access.normal(config.data.cache or default_cache())
  path = file_access.join(cache, 'tokenizers', f'extended-{longer.fingerprint}')
  longer.save(path)
  return path
